"""Sidecars beside real tiny shard sets: aligned, kept, resumed after a kill at any moment, and refused with reasons."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cookgen import features as features_module
from cookgen import load_split
from cookgen.cli import features as features_command
from cookgen.commands import run_command
from cookgen.errors import (
    FormatError,
    InputError,
    ModelError,
    OutputError,
    OutputInUseError,
    ShapeError,
    UnknownNameError,
    UsageError,
)
from cookgen.features import ENCODERS, compute_features, encoder_config, plan_features
from cookgen.perception.encoders.clip import ClipConfig
from cookgen.perception.encoders.text import TextConfig
from cookgen.records import Features
from tests.shardset import Story, make_set

STORIES = [Story("a", num_clips=5), Story("b", num_clips=4), Story("d", num_clips=7), Story("v", split="val")]
NUM_CLIPS = 5 + 4 + 7 + 3
SOURCE = Path(features_module.__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP vision tower with random weights."""
    folder = tmp_path_factory.mktemp("model") / "tiny-clip"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip(model: Path) -> ClipConfig:
    return ClipConfig(str(model), device="cpu", batch_size=3, num_workers=0)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of several shards a split."""
    out = make_set(tmp_path_factory.mktemp("pristine") / "out", STORIES, target_shard_bytes=20_000)
    assert len(list(out.glob("train/*.tar"))) > 1
    return out


@pytest.fixture
def out(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "out")
    return tmp_path / "out"


def files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != ".runs"  # not part of a set
    }


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:") as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def shards(out: Path) -> list[str]:
    manifest = json.loads((out / "dataset.json").read_bytes())
    return [shard["path"] for split in manifest["splits"].values() for shard in split["shards"]]


def check(out: Path, name: str) -> Features:
    """The format's promises, read with tarfile and numpy alone."""
    folder = out / "features" / name
    found = Features.model_validate_json((folder / "features.json").read_bytes())
    assert set(files(folder)) == {"features.json", *shards(out)}
    assert set(found.sha256s) == set(found.of_shards) == set(shards(out))
    for path in shards(out):
        assert found.sha256s[path] == hashlib.sha256((folder / path).read_bytes()).hexdigest()
        assert found.of_shards[path] == hashlib.sha256((out / path).read_bytes()).hexdigest()
        keys = [name.removesuffix(".json") for name in members(out / path) if name.endswith(".json")]
        assert [f"{key}.npy" for key in keys] == list(members(folder / path))
        for content in members(folder / path).values():
            array = np.load(io.BytesIO(content), allow_pickle=False)
            assert array.dtype == np.dtype("<f2") and array.shape == found.shape and array.flags.c_contiguous
        with tarfile.open(folder / path) as tar:
            for entry in tar:
                assert (entry.mtime, entry.uid, entry.gid, entry.mode, entry.uname) == (0, 0, 0, 0o644, "")
    return found


def test_sidecars_are_aligned_and_hold_what_the_encoder_says(out: Path, clip: ClipConfig) -> None:
    before = files(out)
    found = compute_features(out, clip)
    assert found == check(out, "clip")
    assert (found.model, found.dtype, found.shape) == ("tiny-clip", "float16", (4, 32))
    assert found.config == {"kind": "clip", "version": 1, "about": ClipConfig.about, "tokens": "patch"}
    assert {name: digest for name, digest in files(out).items() if not name.startswith("features/")} == before
    assert [path.name for path in (out / "features").iterdir()] == ["clip"]  # nothing else is left
    encoder = clip.load()
    for split in ("train", "val"):
        for narrative in load_split(split, out, features=("clip",)):
            direct = encoder.encode([encoder.prepare(step) for step in narrative.steps])
            np.testing.assert_allclose(narrative.features["clip"], direct, atol=2e-3)


def test_a_second_encoder_changes_nothing_of_the_first_or_of_the_shards(out: Path, clip: ClipConfig) -> None:
    compute_features(out, clip)
    before = files(out)
    compute_features(out, TextConfig(field="action"))
    assert check(out, "text").shape == (384,)
    after = files(out)
    assert {name: after[name] for name in before} == before
    narrative = load_split("val", out, features=("clip", "text"))[0]
    assert narrative.features["text"].shape == (3, 384) and narrative.features["clip"].shape == (3, 4, 32)


def test_the_bytes_hang_on_neither_workers_nor_the_process_and_randomness_is_left_alone(
    out: Path, clip: ClipConfig
) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    compute_features(out, clip, name="one")
    assert (torch.get_rng_state() == state).all()
    compute_features(out, replace(clip, num_workers=2), name="two")
    one, two = (files(out / "features" / name) for name in ("one", "two"))
    assert {**one, "features.json": ""} == {**two, "features.json": ""}


def test_a_second_run_does_nothing(out: Path, clip: ClipConfig, model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(model, tmp_path / "elsewhere" / "tiny-clip")
    first = compute_features(out, clip)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    told: list[Any] = []
    again = replace(clip, model=str(other), batch_size=1)  # the same bytes elsewhere, and another machine
    assert compute_features(out, again, show=told.append) == first
    assert told == [] and {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    plan = plan_features(out, again)
    assert plan.is_complete and not plan.to_do and len(plan.kept) == len(shards(out))


def retell(out: Path, *, without: str | None = None) -> None:
    """The set is written again with another text in one story, or without one."""
    stories = [replace(story, first_text="Chop the leek") if story.video_id == "b" else story for story in STORIES]
    make_set(out, [story for story in stories if story.video_id != without], target_shard_bytes=20_000)


def test_only_rewritten_shards_are_computed_again(out: Path, clip: ClipConfig) -> None:
    compute_features(out, clip)
    before, old = files(out), {path: (out / "features/clip" / path).stat().st_ino for path in shards(out)}
    retell(out)
    changed = [path for path in shards(out) if files(out)[path] != before.get(path)]
    assert 0 < len(changed) < len(shards(out))
    assert [shard.path for shard in plan_features(out, clip).to_do] == changed
    told: list[tuple[int, int, int]] = []
    compute_features(out, clip, show=lambda tally: told.append((tally.done, tally.reused, tally.total)))
    check(out, "clip")
    kept = {path: (out / "features/clip" / path).stat().st_ino for path in shards(out) if path not in changed}
    assert kept == {path: old[path] for path in kept}  # the same files: neither computed nor copied
    num_kept = NUM_CLIPS - sum(len(members(out / path)) // 3 for path in changed)
    assert told[0] == (num_kept, num_kept, NUM_CLIPS) and told[-1][0] == NUM_CLIPS
    load_split("train", out, features=("clip",))


def test_a_sidecar_of_a_shard_that_is_gone_goes(out: Path, clip: ClipConfig) -> None:
    compute_features(out, clip)
    make_set(out, STORIES[:3], target_shard_bytes=20_000)
    assert not plan_features(out, clip).is_complete and not plan_features(out, clip).to_do
    compute_features(out, clip)
    assert not [path for path in check(out, "clip").sha256s if path.startswith("val/")]


def test_a_sidecar_that_was_deleted_is_computed_again(out: Path, clip: ClipConfig) -> None:
    compute_features(out, clip)
    before = files(out)
    path = out / "features" / "clip" / shards(out)[0]
    path.unlink()
    compute_features(out, clip)
    assert files(out) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from cookgen import features
from cookgen.perception.encoders.clip import ClipConfig
features.NOTE_SECONDS = 0.0
out, model, at = sys.argv[1:]
def show(tally):
    if tally.done >= int(at):
        os.kill(os.getpid(), signal.SIGKILL)
features.compute_features(Path(out), ClipConfig(model, device="cpu", batch_size=3, num_workers=2), show=show)
"""


def test_a_killed_process_is_gone_on_from(out: Path, clip: ClipConfig, tmp_path: Path) -> None:
    compute_features(out, clip)
    whole = files(out)
    shutil.rmtree(out / "features")
    command = [sys.executable, "-c", KILLED, str(out), clip.model, "14"]  # in the second shard, in its second batch
    with (tmp_path / "stderr").open("w") as stderr:  # a file: a pipe would wait for the workers, which live on a little
        code = subprocess.call(command, cwd=SOURCE, stderr=stderr, timeout=120)
    assert code == -signal.SIGKILL, (tmp_path / "stderr").read_text()
    assert not (out / "features" / "clip" / "features.json").exists()
    note = json.loads((out / ".runs" / "features-clip" / "note.json").read_bytes())
    assert len(note["sha256s"]) == 1 and note["num_clips"] == 3
    with pytest.raises(UsageError, match="Choose another --name, or --overwrite"):
        compute_features(out, replace(clip, tokens="pooled"))
    again = shutil.copytree(out, tmp_path / "again")
    told: list[int] = []
    # At once, for the workers that may still live hold no lock; and with batches that do not fit what was noted.
    compute_features(out, replace(clip, batch_size=2), show=lambda tally: told.append(tally.reused))
    assert told[0] == len(members(out / next(iter(note["sha256s"])))) // 3 + 3
    check(out, "clip")
    compute_features(again, clip)
    assert files(again) == whole


WRITES = {"os.rename", "os.link", "os.remove", "os.truncate", "os.mkdir", "shutil.rmtree", "os.rmdir"}


def killed_at(moment: int, out: Path, config: Any) -> int:
    """Runs it in a process that is killed before the n-th change of a file; returns the exit code."""

    def run() -> None:
        left = moment

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            is_write = event in WRITES or (event == "open" and str(arguments[1])[:1] in ("w", "a"))
            if is_write or (event == "open" and arguments[1] == "r+b"):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        features_module.NOTE_SECONDS = 0.0
        sys.addaudithook(hook)
        compute_features(out, config)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


def test_a_kill_at_any_write_leaves_whole_features_and_a_run_that_ends_the_same(
    out: Path, clip: ClipConfig, tmp_path: Path
) -> None:
    compute_features(out, clip)
    retell(out)
    start = shutil.copytree(out, tmp_path / "start")
    compute_features(out, clip)
    whole = files(out)
    moments = 0
    while True:
        again = shutil.copytree(start, tmp_path / str(moments))
        code = killed_at(moments, again, clip)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        folder = again / "features" / "clip"
        if (folder / "features.json").exists():  # a reader finds all of it or nothing
            found = json.loads((folder / "features.json").read_bytes())
            assert files(folder) == found["sha256s"] | {"features.json": files(folder)["features.json"]}
        compute_features(again, clip)
        assert files(again) == whole, f"killed before write {moments}"
        shutil.rmtree(again)
        moments += 1
    assert moments > 15


def test_other_settings_under_the_same_name_are_refused_until_overwritten(out: Path, clip: ClipConfig) -> None:
    compute_features(out, clip)
    before = files(out)
    pooled = TextConfig(field="caption")
    with pytest.raises(UsageError, match=r"holds features of tiny-clip@.*all-minilm.*--name, or --overwrite"):
        compute_features(out, pooled, name="clip")
    assert files(out) == before
    compute_features(out, pooled, name="clip", overwrite=True)
    assert check(out, "clip").shape == (384,)


def test_changed_weights_are_another_model(out: Path, clip: ClipConfig, model: Path, tmp_path: Path) -> None:
    compute_features(out, clip)
    weights = load_file(model / "model.safetensors")
    other = shutil.copytree(model, tmp_path / "tiny-clip")
    save_file({name: tensor * 2 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="Choose another --name, or --overwrite"):
        compute_features(out, replace(clip, model=str(other)))


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "nan"), (1e6, r"-?\d+")])
def test_a_number_that_float16_cannot_hold_names_the_clip(
    out: Path, clip: ClipConfig, model: Path, tmp_path: Path, value: float, said: str
) -> None:
    weights = load_file(model / "model.safetensors")
    last = max(name for name in weights if name.endswith("mlp.fc2.bias"))
    weights[last].fill_(value)
    other = shutil.copytree(model, tmp_path / "broken")
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"^demo-\w-000: broken gives {said}.*float16"):
        compute_features(out, replace(clip, model=str(other)))
    assert not (out / "features" / "clip" / "features.json").exists()


def test_a_damaged_shard_is_refused_before_anything_is_computed_from_it(out: Path, clip: ClipConfig) -> None:
    path = out / shards(out)[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError, match=rf"{path.name}: its sha256 is .*dataset.json says .*Fetch the set again"):
        compute_features(out, clip)
    path.unlink()
    with pytest.raises(FormatError, match=rf"{path.name}: cannot be read"):
        compute_features(out, clip)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_keyframe_that_cannot_be_decoded_names_the_clip(out: Path, clip: ClipConfig, num_workers: int) -> None:
    """A set that is wrong from the start: its digests agree."""
    manifest = json.loads((out / "dataset.json").read_bytes())
    (entry,) = manifest["splits"]["val"]["shards"]
    content = (out / entry["path"]).read_bytes()
    with tarfile.open(out / entry["path"]) as tar:
        jpg = tar.getmember("demo-v-001.jpg")
    broken = content[: jpg.offset_data] + b"\0" * jpg.size + content[jpg.offset_data + jpg.size :]
    (out / entry["path"]).write_bytes(broken)
    entry["sha256"] = hashlib.sha256(broken).hexdigest()
    (out / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match=r"demo-v-001.jpg: not a readable JPEG") as caught:
        compute_features(out, replace(clip, num_workers=num_workers))
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Lengths:
    """An encoder of somebody's own: the action's letters. Its arrays have no fixed shape, which is against the rule."""

    kind: ClassVar[str] = "lengths"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "letters"

    fixed: int | None = None
    batch_size: int = 2
    num_workers: int = 0

    def identity(self) -> str:
        return "letters@1"

    def load(self) -> Lengths:
        return self

    def prepare(self, step: Any) -> str:
        return str(step.action)

    def encode(self, inputs: Sequence[str]) -> Any:
        return [np.array([float(ord(letter)) for letter in text[: self.fixed]], np.float32) for text in inputs]


def test_an_encoder_of_ones_own(out: Path) -> None:
    compute_features(out, Lengths(fixed=5))
    assert check(out, "lengths").shape == (5,)
    step = load_split("train", out, features=("lengths",))[0].steps[1]
    assert "".join(map(chr, step.features["lengths"].astype(int))) == step.action[:5]


def test_features_of_several_shapes_name_the_clip(out: Path) -> None:
    with pytest.raises(ShapeError, match=r"demo-\w-001: its features have the shape \[\d+\], those of other clips"):
        compute_features(out, Lengths())


def test_a_model_that_cannot_be_loaded_leaves_all_as_it_was(out: Path, clip: ClipConfig, tmp_path: Path) -> None:
    compute_features(out, clip)
    before = files(out)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    broken = replace(clip, model=str(tmp_path / "broken"))
    with pytest.raises(ModelError):
        compute_features(out, broken, overwrite=True)
    assert files(out) == before
    with pytest.raises(ModelError):
        compute_features(out, broken, name="new")
    compute_features(out, clip, name="new")  # the name is still free


def test_two_runs_at_once_are_refused(out: Path, clip: ClipConfig) -> None:
    refused: list[str] = []

    def show(tally: Any) -> None:
        try:
            compute_features(out, clip)
        except OutputInUseError as error:
            refused.append(str(error))

    compute_features(out, clip, show=show)
    assert refused and f"being written by process {os.getpid()} on " in refused[0]
    check(out, "clip")


def test_a_lock_that_was_left_is_no_lock(out: Path, clip: ClipConfig) -> None:
    (out / ".runs" / "features-clip").mkdir(parents=True)
    (out / ".runs" / "features-clip" / "lock").write_text("process 1 on nowhere")
    compute_features(out, clip)
    compute_features(out, clip, name="other")
    assert sorted(path.name for path in (out / "features").iterdir()) == ["clip", "other"]
    (out / ".runs" / "features-third").mkdir()
    with (out / ".runs" / "features-third" / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(OutputInUseError, match="choose another --name"):
            compute_features(out, clip, name="third")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 65])
def test_names_that_cannot_be(out: Path, clip: ClipConfig, name: str) -> None:
    before = files(out)
    with pytest.raises(UsageError, match="use 1 to 64 of the characters"):
        compute_features(out, clip, name=name)
    assert files(out) == before


def test_what_is_not_ours_is_left_alone(out: Path, clip: ClipConfig) -> None:
    mine = out / "features" / "clip" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(OutputError, match="has no features"):
        compute_features(out, clip)
    assert mine.read_text() == "mine"
    (mine.parent / "features.json").write_text('{"format": "cookgen/1"}')
    with pytest.raises(OutputError, match=r"features.json: cannot be read .*--overwrite"):
        compute_features(out, clip)
    compute_features(out, clip, overwrite=True)
    check(out, "clip")


def test_a_link_out_of_the_set_is_not_followed(out: Path, clip: ClipConfig, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "letter.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    (out / "features").mkdir()
    (out / "features" / "clip").symlink_to(mine.parent)
    with pytest.raises(OutputError, match="a link out of the set"):
        compute_features(out, clip, overwrite=True)
    assert mine.read_text() == "mine"


def test_a_file_in_the_place_of_the_folder(out: Path, clip: ClipConfig) -> None:
    (out / "features").write_text("")
    with pytest.raises(OutputError):
        compute_features(out, clip)


def edited(out: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((out / "dataset.json").read_bytes())
    edit(manifest["splits"])
    (out / "dataset.json").write_text(json.dumps(manifest))


def test_sets_that_cannot_be(out: Path, clip: ClipConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        compute_features(tmp_path / "nowhere", clip)
    assert not (tmp_path / "nowhere").exists()
    edited(out, lambda splits: splits["train"]["shards"].append(splits["train"]["shards"][0]))
    with pytest.raises(FormatError, match="lists a shard twice"):
        compute_features(out, clip)
    edited(out, lambda splits: [split.update(shards=[], num_clips=0) for split in splits.values()])
    with pytest.raises(InputError, match="holds no clips"):
        compute_features(out, clip)


def test_a_shard_outside_of_the_set_is_neither_read_nor_written(out: Path, clip: ClipConfig) -> None:
    edited(out, lambda splits: splits["val"]["shards"][0].update(path="../../evil.tar"))
    with pytest.raises(FormatError, match="outside of the set"):
        compute_features(out, clip)
    assert not list(out.parent.rglob("evil.tar"))


def test_settings_by_name(model: Path) -> None:
    config = encoder_config("clip", model=str(model), settings=["tokens=pooled", "batch_size=5"])
    assert config == ClipConfig(str(model), tokens="pooled", batch_size=5)
    assert encoder_config("text", settings=["field=action"]) == TextConfig(field="action")
    for message, error, arguments in (
        ("did you mean 'clip'", UnknownNameError, {"encoder": "clpi"}),
        ("needs --model", UsageError, {"encoder": "clip"}),
        ("has models of its own", UsageError, {"encoder": "conse", "model": "x"}),
        ("did you mean 'tokens'", UnknownNameError, {"encoder": "clip", "model": "x", "settings": ["token=patch"]}),
        ("4k . 1", UsageError, {"encoder": "video_vae", "model": "x", "settings": ["num_frames=16"]}),
        ("'patch' or 'pooled'", UsageError, {"encoder": "clip", "model": "x", "settings": ["tokens=all"]}),
    ):
        with pytest.raises(error, match=message):
            encoder_config(**arguments)


def test_workers_and_batches_that_cannot_be(out: Path, clip: ClipConfig) -> None:
    for config in (replace(clip, batch_size=0), replace(clip, num_workers=-1)):
        with pytest.raises(UsageError, match="at least 1 and at least 0"):
            compute_features(out, config)


def command(*arguments: str | Path) -> int:
    def other() -> int:
        raise AssertionError

    given = ["features", *map(str, arguments)]
    return run_command({"features": features_command, "other": other}, given, prog="cookgen", description="")


def test_the_command(out: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(out)
    options = (out, "--encoder", "clip", "--model", model, "--set", "tokens=patch", "num_workers=0", "device=cpu")
    assert command(*options, "--dry-run") == 0
    assert f"{NUM_CLIPS} clips to compute" in capsys.readouterr().out
    assert files(out) == before and not (out / "features").exists()
    assert command(*options) == 0
    said = capsys.readouterr()
    assert f"clip {NUM_CLIPS}/{NUM_CLIPS}" in said.err and "features=('clip',)" in said.out
    check(out, "clip")
    assert command(*options) == 0
    assert f"0 clips to compute in 0 shards, {NUM_CLIPS} kept" in capsys.readouterr().out
    assert command(out, "--encoder", "clip", "--model", model, "--set", "tokens=pooled") == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_stand_in_is_called_one_everywhere(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(out, "--encoder", "conse") == 0
    assert "conse: a stand-in for a joint image-text space, not CLIP" in capsys.readouterr().out
    found = check(out, "conse")
    assert "stand-in" in found.config["about"] and found.shape == (384,)
    assert command("--help") == 0
    assert "a stand-in for a joint image-text space, not CLIP" in " ".join(
        capsys.readouterr().out.replace("│", " ").split()
    )


def test_the_help_names_every_encoder_and_setting() -> None:
    text = features_command.__doc__ or ""
    for kind, config in ENCODERS.items():
        assert kind in text
        for item in fields(config):
            assert item.name in text, f"{kind}: {item.name}"


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, cookgen.features\nprint(sorted({'torch', 'transformers', 'diffusers'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
