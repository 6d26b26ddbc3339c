"""Every rule of sidecars, with features of a real set that break just that rule."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cookgen.dataset import validate_features as rules
from cookgen.dataset import validate_shard as shard_rules
from cookgen.dataset.problem import Problem
from cookgen.dataset.tar import tar_member
from cookgen.dataset.validate import validate
from cookgen.files import canonical_json, file_sha256
from cookgen.records import Narrative
from tests.shardset import Story, add_features, make_set

SHAPE = (2, 3)
NAMES = tuple("abcdefgh")
JSON = "features/clip/features.json"
Content = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some shards of one split, with the features "clip"."""
    stories = [Story(name, num_clips=2) for name in NAMES]
    out = make_set(tmp_path_factory.mktemp("good") / "set", stories, target_shard_bytes=30_000)
    add_features(out, "clip", SHAPE)
    return out


@dataclass
class Bench:
    """A copy of the good set; what follows from a change is mended so that nothing else is wrong."""

    out: Path

    @property
    def folder(self) -> Path:
        return self.out / "features" / "clip"

    @property
    def shards(self) -> list[str]:
        return sorted(path.relative_to(self.out).as_posix() for path in self.out.glob("train/*.tar"))

    def problems(self) -> list[Problem]:
        found = validate(self.out)
        assert all(str(problem).isprintable() for problem in found)
        return found

    def edit_json(self, edit: Callable[[dict[str, Any]], object]) -> None:
        path = self.folder / "features.json"
        values = json.loads(path.read_bytes())
        edit(values)
        path.write_text(canonical_json(values))

    def restamp(self) -> None:
        self.edit_json(lambda values: values["sha256s"].update({p: file_sha256(self.folder / p) for p in self.shards}))

    def write(self, content: bytes, number: int = 0) -> None:
        (self.folder / self.shards[number]).write_bytes(content)
        self.restamp()

    def edit_members(self, edit: Callable[[Content], Content | None], number: int = 0) -> None:
        path = self.folder / self.shards[number]
        with tarfile.open(path) as tar:
            members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for member, content in edit(members) or members:
                member.size = len(content) if member.isreg() else 0
                tar.addfile(member, io.BytesIO(content))
        self.restamp()

    def replace(self, content: bytes) -> None:
        """Another file in the place of the first array."""
        self.edit_members(lambda members: [(members[0][0], content), *members[1:]])


@pytest.fixture
def bench(good: Path, tmp_path: Path) -> Bench:
    return Bench(Path(shutil.copytree(good, tmp_path / "set")))


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def test_good_features_have_no_problems_also_after_the_tests_own_rewriting(bench: Bench) -> None:
    assert len(bench.shards) > 1
    assert bench.problems() == []
    bench.edit_members(lambda members: None)
    bench.replace(npy(np.ones(SHAPE, np.float16)))
    assert bench.problems() == []


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 2, 5), (700_000,)])
def test_any_shape(bench: Bench, shape: tuple[int, ...]) -> None:
    add_features(bench.out, "other", shape)
    assert bench.problems() == []


# ---- features.json


@pytest.mark.parametrize(
    "edit",
    [
        lambda values: values.update(format="cookgen/2"),
        lambda values: values.update(dtype="float32"),
        lambda values: values.update(shape=[2, -3]),
        lambda values: values.update(shape=[2.0, 3]),
        lambda values: values.update(extra=1),
        lambda values: values.pop("revision"),
        lambda values: values["sha256s"].update({"train/cookgen-train-000000.tar": "x"}),
        lambda values: values.update(name="other"),
        lambda values: values["sha256s"].update({"train/cookgen-train-000099.tar": "0" * 64}),
        lambda values: values["of_shards"].update({"../../x.tar": "0" * 64}),
        lambda values: values["sha256s"].pop("train/cookgen-train-000000.tar"),
        lambda values: values["of_shards"].pop("train/cookgen-train-000000.tar"),
    ],
)
def test_the_manifest(bench: Bench, edit: Callable[[dict[str, Any]], object]) -> None:
    bench.edit_json(edit)
    assert [(p.rule, p.where) for p in bench.problems()] == [(rules.FEATURES, JSON)]


def test_a_manifest_in_another_spelling(bench: Bench) -> None:
    path = bench.folder / "features.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()), indent=1))
    assert [(p.rule, p.where) for p in bench.problems()] == [(shard_rules.CANONICAL, JSON)]


@pytest.mark.parametrize("damage", ["missing", "a link", "a folder", "a fifo", "very large", "no JSON", "deep"])
def test_a_manifest_that_cannot_be_read(bench: Bench, damage: str) -> None:
    path = bench.folder / "features.json"
    moved = path.rename(bench.out.parent / "features.json")
    if damage == "a link":
        path.symlink_to(moved)
    elif damage == "a folder":
        path.mkdir()
    elif damage == "a fifo":
        os.mkfifo(path)
    elif damage == "very large":
        with path.open("wb") as stream:
            stream.truncate(2**40)
    elif damage in ("no JSON", "deep"):
        path.write_bytes(b"\xff" if damage == "no JSON" else b"[" * 100_000)
    found = bench.problems()
    assert {p.where for p in found} == {JSON}
    assert rules.FEATURES in {p.rule for p in found}


def test_features_outside_of_the_set(bench: Bench) -> None:
    moved = bench.folder.rename(bench.out.parent / "elsewhere")
    bench.folder.symlink_to(moved)
    assert [(p.rule, p.where) for p in bench.problems()] == [(rules.FEATURES, JSON)]


def test_features_of_other_shards_are_stale(bench: Bench) -> None:
    bench.edit_json(lambda values: values["of_shards"].update({bench.shards[1]: "0" * 64}))
    (found,) = bench.problems()
    assert (found.rule, found.where) == (rules.FRESH, JSON)
    assert found.found == f"stale: computed from another {bench.shards[1]}; run cookgen features again"


# ---- sidecars


def test_a_sidecar_that_is_missing_a_link_or_has_other_bytes(bench: Bench) -> None:
    path = bench.folder / bench.shards[0]
    sidecar = f"features/clip/{bench.shards[0]}"
    moved = path.rename(bench.out.parent / "moved.tar")
    assert [(p.rule, p.where, p.found) for p in bench.problems()] == [(rules.SIDECARS, sidecar, "missing")]
    path.symlink_to(moved)
    assert [(p.rule, p.where) for p in bench.problems()] == [(rules.SIDECARS, sidecar)]
    path.unlink()
    path.write_bytes(moved.read_bytes())
    assert bench.problems() == []
    bench.edit_json(lambda values: values["sha256s"].update({bench.shards[0]: "0" * 64}))
    assert [(p.rule, p.where) for p in bench.problems()] == [(rules.SIDECARS, sidecar)]


def set_member(**values: Any) -> Callable[[Content], None]:
    def edit(members: Content) -> None:
        for name, value in values.items():
            setattr(members[1][0], name, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (lambda members: members[1:], rules.KEYS),
        (lambda members: members[:-1], rules.KEYS),
        (lambda members: members[::-1], rules.KEYS),
        (lambda members: [*members, (tar_member("demo-z-000.npy", 0), members[0][1])], rules.KEYS),
        (lambda members: [*members, members[-1]], rules.KEYS),
        (set_member(name="demo-a-001.npz"), rules.KEYS),
        (set_member(name="../../x.npy"), rules.KEYS),
        (set_member(mtime=1), shard_rules.METADATA),
        (set_member(mode=0o755), shard_rules.METADATA),
        (set_member(uname="root"), shard_rules.METADATA),
        (set_member(type=tarfile.SYMTYPE, linkname="/etc/passwd"), shard_rules.REGULAR),
        (set_member(type=tarfile.LNKTYPE, linkname="demo-a-000.npy"), shard_rules.REGULAR),
        (set_member(type=tarfile.DIRTYPE), shard_rules.REGULAR),
    ],
)
def test_members(bench: Bench, edit: Callable[[Content], Content | None], rule: str) -> None:
    bench.edit_members(edit)
    found = bench.problems()
    assert [p.rule for p in found] == [rule]
    assert found[0].where.startswith(f"features/clip/{bench.shards[0]}")


@pytest.mark.parametrize("content", [b"", b"x", os.urandom(2048), pickle.dumps([1])])
def test_a_sidecar_that_is_no_tar_file(bench: Bench, content: bytes) -> None:
    bench.write(content)
    found = bench.problems()
    assert {p.rule for p in found} <= {shard_rules.TAR, rules.KEYS}
    assert {p.where for p in found} == {f"features/clip/{bench.shards[0]}"}


def header(text: str, *, version: bytes = b"\x01\x00", data: bytes = bytes(12)) -> bytes:
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode() + data


ARRAY = np.zeros(SHAPE, np.float16)


@pytest.mark.parametrize(
    "content",
    [
        lambda: b"",
        lambda: os.urandom(140),
        lambda: npy(ARRAY)[:-1],
        lambda: npy(ARRAY) + b"\0",
        lambda: npy(ARRAY)[:20],
        lambda: npy(ARRAY.T),
        lambda: npy(np.asfortranarray(ARRAY)),
        lambda: npy(ARRAY.reshape(3, 2)),
        lambda: npy(ARRAY.reshape(6)),
        lambda: npy(ARRAY.astype(np.float32)),
        lambda: npy(ARRAY.astype(np.int16)),
        lambda: npy(ARRAY.astype(">f2")),
        lambda: npy(np.array([[None] * 3] * 2, object), allow_pickle=True),
        lambda: pickle.dumps(ARRAY),
        lambda: npy(np.full(SHAPE, np.nan, np.float16)),
        lambda: npy(np.array([[0, 0, 0], [0, 0, np.inf]], np.float16)),
        lambda: npy(np.array([[-np.inf, 0, 0], [0, 0, 0]], np.float16)),
        lambda: header("{'descr': '<f2', 'fortran_order': False, 'shape': (99999999999, 99999999999), }\n"),
        lambda: header("{'descr': '<f2', 'fortran_order': False, 'shape': (2, 3), }\n", version=b"\x09\x00"),
        lambda: header("[" * 60_000),
        lambda: header("9" * 60_000),
        lambda: header("__import__('os')"),
    ],
)
def test_arrays(bench: Bench, content: Callable[[], bytes]) -> None:
    bench.replace(content())
    assert [(p.rule, p.where) for p in bench.problems()] == [
        (rules.ARRAY, f"features/clip/{bench.shards[0]}: {first_key(bench)}.npy")
    ]


def first_key(bench: Bench) -> str:
    with tarfile.open(bench.out / bench.shards[0]) as tar:
        return tar.getnames()[0].removesuffix(".json")


def test_the_largest_finite_numbers_are_finite(bench: Bench) -> None:
    bench.replace(npy(np.array([[65504, -65504, 6e-8], [-0.0, 1, 2]], np.float16)))
    assert bench.problems() == []


def test_shapes_that_no_memory_holds(bench: Bench) -> None:
    for shape in ([2**62, 2**62], [1] * 100_000):
        bench.edit_json(lambda values, shape=shape: values.update(shape=shape))  # type: ignore[misc]
        found = bench.problems()
        assert {p.rule for p in found} <= {rules.ARRAY, rules.FEATURES}
        assert found


def test_memory_does_not_grow_with_an_array(bench: Bench) -> None:
    key, size = first_key(bench), 2**25
    shards = {bench.shards[0]: file_sha256(bench.out / bench.shards[0])}
    shape = (size // 2,)
    path = bench.folder / bench.shards[0]
    with path.open("wb") as stream:  # sparse: nothing is written but headers
        array_header = npy(np.empty(shape, np.float16))[: -2 * shape[0]]
        stream.write(tar_member(f"{key}.npy", len(array_header) + size).tobuf(tarfile.PAX_FORMAT))
        stream.write(array_header)
        stream.truncate(512 + -(-(len(array_header) + size) // 512) * 512 + 1024)
    bench.edit_json(
        lambda values: values.update(shape=shape, of_shards=shards, sha256s={bench.shards[0]: file_sha256(path)})
    )
    row = Narrative(
        narrative=key.removesuffix("-000"),
        split="train",
        shard=bench.shards[0],
        num_steps=1,
        first_member_offset=0,
        num_bytes=1,
    )
    tracemalloc.start()
    found = list(rules.feature_problems(bench.out, "clip", shards, [row]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == []
    assert peak < 2**23
