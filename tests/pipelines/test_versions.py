"""A stage whose body changed must say so: with a new version, or with golden files written again on purpose."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def golden() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_write", ROOT / "tests" / "golden" / "write.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_stage_changed_without_a_new_version(golden: ModuleType) -> None:
    written = json.loads(golden.GOLDEN.read_text())
    changed = [name for name, now in golden.current().items() if written.get(name) != now]
    assert not changed, f"raise the version of {changed} if a row can come out different, then `make golden`"


def test_a_changed_body_is_seen_and_a_comment_is_not(
    golden: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipelines.stages.matches as matches

    source = Path(matches.__file__).read_text()
    place = tmp_path / "pipelines" / "stages" / "matches.py"
    place.parent.mkdir(parents=True)
    digests = []
    assert "iou > 0" in source
    for text in (source, source + "\n# a comment\n", source.replace("iou > 0", "iou > 0.1")):
        place.write_text(text)
        monkeypatch.setattr(golden, "ROOT", tmp_path)
        monkeypatch.setattr(golden.inspect, "getfile", lambda module: str(place))
        digests.append(golden.body_digest(matches))
        monkeypatch.undo()
    assert digests[0] == digests[1] != digests[2]


def test_the_gate_watches_all_that_a_stage_is_made_of(golden: ModuleType) -> None:
    import pipelines.stages.captions as captions

    watched = {path.as_posix() for path in golden.body_files(captions)}
    assert watched >= {
        "pipelines/stages/captions.py",
        "cookgen/perception/caption_models/__init__.py",
        "cookgen/perception/caption_models/tags.py",
        "cookgen/perception/motion.py",
        "cookgen/dataset/decode.py",
    }
