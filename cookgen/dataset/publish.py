"""`cookgen publish`: a shard set, or its annotations alone, copied to a folder, to any fsspec URL or to the Hub.

What is copied is what the set lists, never what else lies in its folder. README.md goes first; dataset.json goes last,
for its presence means that the set is complete. Files that are there already with the same bytes are passed over.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cookgen.dataset.card import (
    authors_section,
    common_values,
    front_matter,
    licence_section,
    statistics_section,
)
from cookgen.dataset.croissant import croissant
from cookgen.dataset.export import split_files, write_parquet
from cookgen.dataset.location import locate
from cookgen.dataset.sidecar import feature_names, feature_path, open_sidecar
from cookgen.dataset.split import load_split, read_manifest
from cookgen.dataset.statistics import Statistics
from cookgen.dataset.summary import read_statistics
from cookgen.dataset.tables import read_table, table_path, table_writer
from cookgen.errors import CookgenError, FormatError, OutputError, UsageError, reason_of
from cookgen.files import atomic_path, canonical_json, file_sha256, write_atomic
from cookgen.records import TABLES, Action, Manifest, Record, Reject, Word

_CARD, _MANIFEST = "README.md", "dataset.json"


@dataclass(frozen=True)
class PublishedFile:
    """One file to publish: `path` is relative to `root` here and to the target there."""

    root: Path
    path: str
    num_bytes: int
    sha256: str

    @property
    def source(self) -> Path:
        """Where it lies now."""
        return self.root / self.path


def set_files(out: Path) -> list[PublishedFile]:
    """All files of the set in `out`, in the order in which they are published; hidden files and links are none of it.

    Raises FormatError for a file that the set must have and has not, or whose bytes are not those that dataset.json or
    features.json lists.
    """
    manifest = read_manifest(out)
    shards = {shard.path: shard.sha256 for _, split in sorted(manifest.splits.items()) for shard in split.shards}
    if bad := [path for path in shards if not re.fullmatch(r"[A-Za-z0-9_]+/cookgen-[A-Za-z0-9_]+-[0-9]{6}\.tar", path)]:
        raise FormatError(f"{out / _MANIFEST}: shard {bad[0]!r} is not named {{split}}/cookgen-{{split}}-000000.tar")
    listed: dict[str, str | None] = {_CARD: None}
    if (out / "report.html").is_file():
        listed["report.html"] = None
    listed |= dict.fromkeys((table_path("", record).as_posix() for record in TABLES), None)
    listed |= shards
    for name in feature_names(out):
        item = open_sidecar(locate(out), name, manifest).features
        listed |= {feature_path(item.name, path): item.sha256s[path] for path in shards}
        listed[feature_path(item.name, "features.json")] = None
    return [_checked(out, path, sha256) for path, sha256 in [*listed.items(), (_MANIFEST, None)]]


def _checked(root: Path, path: str, sha256: str | None) -> PublishedFile:
    file = root / path
    try:
        if not stat.S_ISREG(file.lstat().st_mode) or not file.resolve().is_relative_to(root.resolve()):
            raise FormatError(f"{file}: a link or no regular file; a set that is published holds its files itself")
        found = file_sha256(file)
    except OSError as error:
        raise FormatError(f"{file}: cannot be read ({error.strerror}), and the set lists it") from error
    if sha256 not in (None, found):
        raise FormatError(
            f"{file}: sha256 {found}, the set lists {sha256}; `cookgen validate {root}` says what is wrong"
        )
    return PublishedFile(root, path, file.stat().st_size, found)


@contextmanager
def annotation_files(out: Path) -> Iterator[list[PublishedFile]]:
    """The ids and annotations of the set in `out`, written to a folder that lives as long as the block.

    No shards, keyframes, features or speech, and nothing that quotes it: `raw_text` of actions from speech and `detail`
    of rejects are empty. No dataset.json either: it is no shard set.
    """
    manifest = read_manifest(out)
    statistics = read_statistics(out)
    with tempfile.TemporaryDirectory(prefix="cookgen-annotations-") as name:
        root = Path(name)
        paths = {record.TABLE: table_path(root, record) for record in TABLES if record is not Word}
        for record in TABLES:
            if record is not Word:
                _copy_table(out, root, record)
        parquet = write_parquet(out, root / "annotations", manifest, with_speech=False)
        ids = [
            narrative.steps[0].sample.video.video_id
            for split in manifest.splits
            for narrative in load_split(split, out)
        ]
        usable = sorted(video_id for video_id in ids if video_id.splitlines() == [video_id])
        write_atomic(root / "ids.txt", "".join(f"{video_id}\n" for video_id in usable))
        write_atomic(root / "config.json", canonical_json(manifest.config.to_json()))
        records = paths | {f"annotations-{path.name.partition('-')[0]}": path for path in parquet}
        metadata = croissant(manifest.name, root, records, licences=statistics.licences)
        write_atomic(root / "croissant.json", canonical_json(metadata))
        write_atomic(root / _CARD, annotations_card(manifest, statistics, num_unlisted=len(ids) - len(usable)))
        found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        found.sort(key=lambda path: path != _CARD)
        yield [_checked(root, path, None) for path in found]


def _copy_table(out: Path, root: Path, record: type[Record]) -> None:
    with table_writer(table_path(root, record), record) as append:
        for row in read_table(table_path(out, record), record):
            if isinstance(row, Action) and row.origin == "asr":
                row = row.model_copy(update={"raw_text": ""})
            elif isinstance(row, Reject):
                row = row.model_copy(update={"detail": ""})
            append(row)


def annotations_card(manifest: Manifest, statistics: Statistics, *, num_unlisted: int = 0) -> str:
    """README.md of the annotations alone: what is missing, and the commands that make it again from the videos."""
    files = [{"split": name, "path": f"annotations/{name}-00000-of-00001.parquet"} for _, name in split_files(manifest)]
    front = common_values(manifest.name, manifest.splits, statistics)
    if files:
        front["configs"] = [{"config_name": "default", "data_files": files}]
    values = manifest.config.values
    source = str(values.get("source", "folder"))
    options = {"demo": "", "youcook2": " --videos VIDEOS --annotations youcookii_annotations_trainval.json"}
    where = "The demo makes its own" if source == "demo" else "Get them where you may, into a folder `VIDEOS`"
    settings = "".join(f" \\\n    {_quoted(setting)}" for setting in _settings(values))
    unlisted = (
        f"\n{num_unlisted} videos have a line break in their id and are not in `ids.txt`." if num_unlisted else ""
    )
    rebuild = f"""## Rebuilding the clips

This folder is no shard set. **It holds no video, no keyframes, no transcripts and no features**, because the videos are
not ours to hand on; what quoted their speech (`raw_text` of actions from speech, `detail` of rejects) is empty.
`ids.txt` names the videos, one id a line. {where}; then, in a checkout of
{manifest.created_by}, run

```sh
python -m pipelines run --source {_quoted(source)}{options.get(source, " --videos VIDEOS")} \\
    --ids path/to/this/folder/ids.txt --out rebuilt{" --set" if settings else ""}{settings}
cookgen validate rebuilt
```

The settings are those of `config.json`; addresses of model servers are not among them: add your own. With the same
videos (`sha256` in `tables/videos.parquet`) and the same ffmpeg (below) clips come out byte for byte: compare
`clip_sha256` in `annotations/`. Actions and captions are as repeatable as the models that wrote them.{unlisted}"""
    loading = """## Loading

```python
import datasets

annotations = datasets.load_dataset("path/to/this/folder")  # a row a clip; `narrative` and `index` give the order
```"""
    sections = [
        f"# {front['pretty_name']}: ids and annotations",
        "What cookgen found in long narrative videos: a row a clip with its span, the action and a caption.",
        rebuild,
        authors_section(statistics),
        statistics_section(manifest.splits, statistics),
        licence_section(statistics),
        loading,
    ]
    return front_matter(front) + "\n\n".join(sections) + "\n"


def _settings(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The configuration as `--set` takes it."""
    for name, value in sorted(values.items()):
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{name}.")
        elif prefix or name != "source":
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{name}={text}"


def _quoted(text: str) -> str:
    """One word of a shell's line; control characters, which would break out of the card's block, become blanks."""
    return shlex.quote("".join(mark if mark.isprintable() else " " for mark in text))


def publish(files: Sequence[PublishedFile], to: str, *, say: Callable[[str], None]) -> int:
    """Copies the files to `to`; `say` is told of each. Returns how many had to be copied.

    to: a folder, a URL of fsspec, or hf://datasets/{user}/{name}. Raises OutputError where the target holds something
    else or cannot be written, UsageError where it names nothing that can be written to.
    """
    if to.startswith("hf://"):
        return _publish_to_hub(files, to, say)
    return _publish_to_files(files, to, say)


def _publish_to_files(files: Sequence[PublishedFile], to: str, say: Callable[[str], None]) -> int:
    system, root = _file_system(to)
    is_local = isinstance(system, LocalFileSystem)
    sets = {file.root.resolve() for file in files}
    if is_local and any(Path(root).resolve().is_relative_to(out) for out in sets):
        raise UsageError(f"{to}: lies in the set that is to be published; name another folder")
    try:
        system.invalidate_cache()
        there: dict[str, int] = {}
        if system.exists(root):
            details = system.find(root, detail=True)
            there = {path.removeprefix(root).lstrip("/"): info["size"] for path, info in details.items()}
        wanted = {file.path: file for file in files}
        visible = {path for path in there if not any(part.startswith(".") for part in path.split("/"))}
        if foreign := sorted(visible - wanted.keys()):
            raise OutputError(f"{to}: holds {foreign[0]!r}, which is not in what is published; name an empty target")
        if _MANIFEST in there and _differs(system, root, wanted[_MANIFEST], there):
            raise OutputError(f"{to}: holds another shard set; name an empty target, or remove that set first")
        num_copied = 0
        for file in files:
            if not _differs(system, root, file, there):
                say(f"is there   {file.path}")
                continue
            say(f"copying    {file.path} ({_size(file.num_bytes)})")
            if is_local:
                with atomic_path(Path(root, file.path)) as temporary:
                    shutil.copyfile(file.source, temporary)
            else:
                place = f"{root}/{file.path}"
                system.makedirs(place.rpartition("/")[0], exist_ok=True)
                system.put_file(str(file.source), place)
            num_copied += 1
        return num_copied
    except CookgenError:
        raise
    except Exception as error:  # each file system raises errors of its own
        raise OutputError(
            f"{to}: cannot be written ({reason_of(error)}). Mend that; the same command goes on"
        ) from error


def _file_system(to: str) -> tuple[Any, str]:
    if not to:
        raise UsageError("TO is empty: name a folder, a URL or hf://datasets/USER/NAME")
    try:
        system, root = fsspec.url_to_fs(to)
    except Exception as error:
        raise UsageError(
            f"{to}: cannot be reached ({reason_of(error)}); give a folder, or a URL that fsspec knows"
        ) from error
    return system, root.rstrip("/")


def _differs(system: Any, root: str, file: PublishedFile, there: Mapping[str, int]) -> bool:
    """Whether the target has not these very bytes."""
    if there.get(file.path) != file.num_bytes:
        return True
    with system.open(f"{root}/{file.path}", "rb") as stream:
        found = hashlib.sha256()
        while block := stream.read(2**20):
            found.update(block)
    return found.hexdigest() != file.sha256


def _publish_to_hub(files: Sequence[PublishedFile], to: str, say: Callable[[str], None]) -> int:
    """Three steps, each of which the Hub makes one or more commits of: the card, the rest, dataset.json.

    A repository that is not there is made, and is private: its owner opens it. The Hub knows by itself which bytes it
    has. The token comes from its usual place (`hf auth login`, or HF_TOKEN).
    """
    repository = hub_repository(to)
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UsageError(f"{to}: {error}; install cookgen[hub]") from error
    target: dict[str, Any] = {"repo_id": repository, "repo_type": "dataset"}
    ends = {file.path: file for file in files if file.path in (_CARD, _MANIFEST)}
    api = HfApi()
    try:
        api.create_repo(**target, private=True, exist_ok=True)
        there = set(api.list_repo_files(**target)) - {".gitattributes"}
        if foreign := sorted(there - {file.path for file in files}):
            raise OutputError(f"{to}: holds {foreign[0]!r}, which is not in what is published; name another repository")
        if _MANIFEST in there:  # until everything is there again
            api.delete_file(_MANIFEST, **target)
        # Links to the files of the set and to nothing else: what is in this folder is what is uploaded.
        with tempfile.TemporaryDirectory(prefix="cookgen-publish-") as folder:
            for file in files:
                if file.path not in ends:
                    link = Path(folder, file.path)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file.source.resolve())
            say(f"uploading  {_CARD}")
            api.upload_file(**target, path_or_fileobj=ends[_CARD].source, path_in_repo=_CARD)
            say(f"uploading  {len(files) - len(ends)} files")
            api.upload_folder(**target, folder_path=folder, commit_message="Upload with cookgen")
            if _MANIFEST in ends:
                say(f"uploading  {_MANIFEST}")
                api.upload_file(**target, path_or_fileobj=ends[_MANIFEST].source, path_in_repo=_MANIFEST)
    except CookgenError:
        raise
    except Exception as error:
        raise OutputError(
            f"{to}: the Hub refused, or cannot be reached: {reason_of(error)}. The same command goes on"
        ) from error
    return len(files)


def hub_repository(to: str) -> str:
    """user/name of hf://datasets/user/name. Raises UsageError where it is anything else."""
    if not (found := re.fullmatch(r"hf://datasets/([A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)/?", to)):
        raise UsageError(f"{to}: write it as hf://datasets/USER/NAME")
    return found[1]


def plan_text(files: Sequence[PublishedFile], to: str) -> str:
    """Each file with its size, and the total. Raises UsageError where `to` is not how a target is written."""
    _ = hub_repository(to) if to.startswith("hf://") else _file_system(to)
    lines = [f"{_size(file.num_bytes):>10}  {file.path}" for file in files]
    total = _size(sum(file.num_bytes for file in files))
    return "\n".join([*lines, f"{total:>10}  {len(files)} files to {to}"])


def _size(num_bytes: int) -> str:
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if num_bytes >= 1000**power:
            return f"{num_bytes / 1000**power:.1f} {unit}"
    return f"{num_bytes} B"
