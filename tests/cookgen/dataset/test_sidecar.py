"""Features beside the shards: the right array for each step, or an error; never another step's."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cookgen import load_split
from cookgen.dataset.tar import tar_member
from cookgen.errors import FormatError, UnknownNameError, UsageError
from cookgen.files import canonical_json
from tests.shardset import Story, add_features, feature_of, make_set

LONG = "x" * 110  # its members' names do not fit a plain tar header
STORIES = [Story("a", 2), Story(LONG, 3), Story("b", 4), Story("c", 2, split="val")]
SHAPE = (3, 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = make_set(tmp_path_factory.mktemp("sidecar") / "set", STORIES, target_shard_bytes=60_000)
    add_features(out, "one", SHAPE)
    add_features(out, "two", (7,))
    return out


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "set"))


def test_every_step_has_its_own_array(made: Path) -> None:
    for split in ("train", "val"):
        for narrative in load_split(split, made, features=("one", "two")):
            whole = narrative.features["one"]
            assert whole.dtype == np.float16
            assert whole.shape == (narrative.num_steps, *SHAPE)
            assert dict(narrative.features).keys() == {"one", "two"}
            for step in narrative.steps:
                assert (whole[step.index] == feature_of(step.key, SHAPE)).all()
                assert (step.features["one"] == feature_of(step.key, SHAPE)).all()
                assert (step.features["two"] == feature_of(step.key, (7,))).all()
                assert step.features["one"].flags.writeable
    for window in load_split("train", made, unit="window", window=2, features=("one",)):
        expected = np.stack([feature_of(step.key, SHAPE) for step in window.steps])
        assert (window.features["one"] == expected).all()


def test_features_pickle_with_their_samples(made: Path) -> None:
    step = pickle.loads(pickle.dumps(load_split("train", made, unit="clip", features=("one",))[1]))
    assert (step.features["one"] == feature_of(step.key, SHAPE)).all()


def test_names_that_are_not_there(made: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown features in .* 'onee': did you mean 'one'"):
        load_split("train", made, features=("onee",))
    with pytest.raises(UsageError, match=r"give a list of names: features=\('one',\)"):
        load_split("train", made, features="one")
    step = load_split("train", made, unit="clip", features=("one",))[0]
    assert "two" not in step.features
    assert step.features.get("two") is None
    with pytest.raises(KeyError, match="was opened with features: one"):
        step.features["two"]


def rewrite(path: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in change(members):
            tar.addfile(tar_member(name, len(content)), io.BytesIO(content))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members[:-1], "3 of 4 steps of demo-b"),
        (lambda members: members[:-4], "0 of 4 steps of demo-b"),
        (lambda members: [*members[:-2], members[-1], members[-2]], "stands where it does not belong"),
        (lambda members: [*members, members[0]], "stands where it does not belong"),
        (
            lambda members: [*members[:-1], (members[-1][0], npy(np.zeros(SHAPE, np.float32)))],
            "not every array is float16",
        ),
        (
            lambda members: [*members[:-1], (members[-1][0], npy(np.zeros((5, 3), np.float16)))],
            "not every array is float16",
        ),
        (lambda members: [*members[:-1], (members[-1][0], b"")], "not every array is float16"),
    ],
)
def test_a_sidecar_that_is_not_aligned(
    copied: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]], message: str
) -> None:
    (narrative,) = (item for item in load_split("train", copied, features=("one",)) if item.name == "demo-b")
    path = copied / "features" / "one" / narrative.row.shard
    rewrite(path, lambda members: sorted(members))  # the narrative in question is not always the last
    rewrite(
        path, lambda members: [m for m in members if "demo-b" not in m[0]] + [m for m in members if "demo-b" in m[0]]
    )
    assert narrative.features["one"].shape == (4, *SHAPE)
    rewrite(path, change)
    with pytest.raises(FormatError, match=message):
        np.array(narrative.features["one"])


def test_a_sidecar_that_ends_early_or_is_no_tar_file(copied: Path) -> None:
    narrative = load_split("train", copied, features=("one",))[0]
    path = copied / "features" / "one" / narrative.row.shard
    path.write_bytes(path.read_bytes()[: 512 + 130])
    with pytest.raises(FormatError, match=r"Delete the file and run `cookgen features` again"):
        np.array(narrative.features["one"])
    path.write_bytes(b"no tar file" * 100)
    with pytest.raises(FormatError, match="not a readable tar file"):
        np.array(narrative.features["one"])
    path.unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        np.array(narrative.features["one"])


@pytest.mark.parametrize("shape", [(10**13,), (2**31, 2**31), (1,) * 100])
def test_a_shape_that_no_file_can_hold(copied: Path, shape: tuple[int, ...]) -> None:
    path = copied / "features" / "one" / "features.json"
    path.write_text(canonical_json({**json.loads(path.read_text()), "shape": shape}))
    with pytest.raises(FormatError, match=r"no room for 2 arrays|features\.json: shape"):
        np.array(load_split("train", copied, features=("one",))[0].features["one"])


def test_features_of_another_set_are_refused(copied: Path, tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", STORIES[:1] + STORIES[3:])
    shutil.copytree(copied / "features", other / "features")
    with pytest.raises(
        FormatError, match=r"features\.json: not computed from this set's train/.*Run `cookgen features` again"
    ):
        load_split("train", other, features=("one",))


def test_a_features_json_that_breaks_the_format(copied: Path) -> None:
    path = copied / "features" / "one" / "features.json"
    shutil.copy(copied / "features" / "two" / "features.json", path)
    with pytest.raises(FormatError, match="name 'two', its folder's is 'one'"):
        load_split("train", copied, features=("one",))
    path.write_text(canonical_json({"format": "cookgen/1", "shape": [-1]}))
    with pytest.raises(FormatError, match=r"features\.json: name: Field required"):
        load_split("train", copied, features=("one",))
