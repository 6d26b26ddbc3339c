"""Every rule that `validate` checks, with a set that breaks just that rule."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cookgen.dataset import duplicates as duplicate_rules
from cookgen.dataset import validate as rules
from cookgen.dataset import validate_features as feature_rules
from cookgen.dataset import validate_media as media_rules
from cookgen.dataset import validate_shard as shard_rules
from cookgen.dataset.problem import Problem
from cookgen.dataset.tables import read_table, table_path, write_table
from cookgen.dataset.validate import MAX_PROBLEMS, validate
from cookgen.errors import InputError
from cookgen.files import canonical_json, digest, file_sha256
from cookgen.records import (
    TABLES,
    Action,
    Caption,
    Clip,
    Match,
    Narrative,
    Reason,
    Record,
    Reject,
    Video,
    hashed_split,
)
from tests.shardset import Story, add_features, jpg, make_set, mp4, sha256

STORIES = (
    Story("a", num_clips=3),
    Story("b", num_clips=2, manual=True),
    Story("c", num_clips=2, split="val", first_shade=3),
    Story("gone", stops_at="clips"),
)
TRAIN = "train/cookgen-train-000000.tar"
VAL = "val/cookgen-val-000000.tar"
Content = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("good") / "set", STORIES)


@dataclass
class Bench:
    """A copy of the good set, to break one thing of; what follows from it is mended so that nothing else is wrong."""

    out: Path

    def problems(self) -> list[Problem]:
        found = validate(self.out)
        for problem in found:  # every problem can be printed anywhere, and names a file
            assert str(problem).isprintable()
            assert problem.where
        return found

    def rules(self) -> set[str]:
        return {problem.rule for problem in self.problems()}

    # ---- dataset.json

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.out / "dataset.json").read_bytes())  # type: ignore[no-any-return]

    def write_manifest(self, values: dict[str, Any]) -> None:
        (self.out / "dataset.json").write_text(canonical_json(values))

    def edit_manifest(self, edit: Callable[[dict[str, Any]], object]) -> None:
        values = self.manifest()
        edit(values)
        self.write_manifest(values)

    def restamp(self) -> None:
        """Sizes and sha256 of the shards as they are now."""

        def stamp(values: dict[str, Any]) -> None:
            for split in values["splits"].values():
                for shard in split["shards"]:
                    path = self.out / shard["path"]
                    shard |= {"num_bytes": path.stat().st_size, "sha256": file_sha256(path)}

        self.edit_manifest(stamp)

    # ---- shards

    def members(self, shard: str = TRAIN) -> Content:
        with tarfile.open(self.out / shard) as tar:
            return [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]

    def write_members(self, members: Content, shard: str = TRAIN, *, mend_index: bool = True) -> None:
        offsets: dict[str, tuple[int, int]] = {}
        with tarfile.open(self.out / shard, "w", format=tarfile.PAX_FORMAT) as tar:
            for member, content in members:
                member.size = len(content)
                narrative, start = member.name.rpartition("-")[0], tar.offset
                tar.addfile(member, io.BytesIO(content))
                offsets[narrative] = (offsets.get(narrative, (start, 0))[0], tar.offset)
        self.restamp()
        if mend_index:

            def mend(row: Narrative) -> Narrative:
                if row.shard != shard or row.narrative not in offsets:
                    return row
                start, end = offsets[row.narrative]
                return row.model_copy(update={"first_member_offset": start, "num_bytes": end - start})

            self.edit_rows(Narrative, mend)

    def edit_members(self, edit: Callable[[Content], Content | None], shard: str = TRAIN, **options: Any) -> None:
        members = self.members(shard)
        self.write_members(edit(members) or members, shard, **options)

    def edit_json(self, edit: Callable[[dict[str, Any]], object], key: str = "demo-a-001", shard: str = TRAIN) -> None:
        def apply(members: Content) -> Content:
            edited = []
            for member, content in members:
                if member.name == f"{key}.json":
                    values = json.loads(content)
                    edit(values)
                    content = canonical_json(values).encode()
                edited.append((member, content))
            return edited

        self.edit_members(apply, shard)

    def replace(self, name: str, content: bytes, shard: str = TRAIN) -> None:
        def apply(members: Content) -> Content:
            return [(member, content if member.name == name else old) for member, old in members]

        self.edit_members(apply, shard)

    def replace_clip(self, content: bytes, key: str = "demo-a-000", shard: str = TRAIN, **changes: Any) -> None:
        """Another MP4, with the sha256 that it has."""
        changes = {"sha256": sha256(content), **changes}
        narrative, _, index = key.rpartition("-")
        self.replace(f"{key}.mp4", content, shard)
        self.edit_json(lambda values: values["clip"].update(changes), key, shard)
        self.edit_rows(
            Clip,
            lambda row: (
                row.model_copy(update=changes) if (row.narrative, row.clip_index) == (narrative, int(index)) else row
            ),
        )

    def configure(self, values: Any) -> None:
        """Another configuration, with the digest that it has."""
        self.edit_manifest(lambda manifest: manifest.update(config={"digest": digest(values), "values": values}))

    def edit_video(self, name: str, shard: str, **changes: Any) -> None:
        """Another source video, in the samples and in the table."""
        for member, _ in self.members(shard):
            key, _, suffix = member.name.partition(".")
            if suffix == "json" and key.startswith(f"{name}-"):
                self.edit_json(lambda values: values["video"].update(changes), key, shard)
        self.edit_rows(Video, lambda row: row.model_copy(update=changes) if row.narrative == name else row)

    # ---- tables

    def rows(self, record: type[Record]) -> list[Any]:
        return list(read_table(table_path(self.out, record), record))

    def edit_rows(self, record: type[Any], edit: Callable[[Any], Any]) -> None:
        """Each row becomes what `edit` says; None drops it."""
        edited = [edit(row) for row in self.rows(record)]
        write_table(table_path(self.out, record), record, [row for row in edited if row is not None])


@pytest.fixture
def bench(good: Path, tmp_path: Path) -> Bench:
    return Bench(Path(shutil.copytree(good, tmp_path / "set")))


def test_a_good_set_has_no_problems_also_after_the_tests_own_rewriting(bench: Bench) -> None:
    assert bench.problems() == []
    bench.write_members(bench.members())
    for record in TABLES:
        bench.edit_rows(record, lambda row: row)
    assert bench.problems() == []


# ---- what is no set


def test_what_is_no_set_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        validate(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no dataset\.json"):
        validate(tmp_path)
    (tmp_path / "dataset.json").mkdir()
    with pytest.raises(InputError, match=r"no dataset\.json"):
        validate(tmp_path)
    fifo = tmp_path / "other"
    fifo.mkdir()
    os.mkfifo(fifo / "dataset.json")
    with pytest.raises(InputError, match=r"no dataset\.json"):
        validate(fifo)


# ---- dataset.json


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", shard_rules.CANONICAL),
        (b"\xff\xfe", shard_rules.CANONICAL),
        (b"[" * 100_000, shard_rules.CANONICAL),
        (b'{"format": NaN}', shard_rules.CANONICAL),
        (b"null", rules.MANIFEST),
        (b'{"format":"cookgen/2"}', rules.MANIFEST),
        (pickle.dumps({"format": "cookgen/1"}), shard_rules.CANONICAL),
        (b'{"format":' + b"9" * 10_000 + b"}", shard_rules.CANONICAL),
    ],
)
def test_a_broken_manifest(bench: Bench, content: bytes, rule: str) -> None:
    (bench.out / "dataset.json").write_bytes(content)
    assert rule in bench.rules()
    assert {problem.where for problem in bench.problems()} == {"dataset.json"}


def test_a_manifest_larger_than_any_real_one_is_not_read(bench: Bench) -> None:
    with (bench.out / "dataset.json").open("wb") as stream:
        stream.truncate(2**40)
    assert [problem.rule for problem in bench.problems()] == [rules.MANIFEST]


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (lambda values: values.update(extra=1), rules.MANIFEST),
        (lambda values: values.update(format="cookgen/9"), rules.MANIFEST),
        (lambda values: values["splits"]["train"]["shards"][0].update(sha256="x"), rules.MANIFEST),
        (lambda values: values["splits"]["train"].update(num_clips="5"), rules.MANIFEST),
        (lambda values: values["splits"]["train"].update(num_clips=6), rules.SPLITS),
        (lambda values: values["splits"]["val"].update(num_narratives=0), rules.SPLITS),
        (lambda values: values["splits"]["train"]["shards"][0].update(num_bytes=512), rules.SHARD_BYTES),
        (lambda values: values["splits"]["train"]["shards"][0].update(sha256="0" * 64), rules.SHARD_BYTES),
        (lambda values: values["splits"]["train"]["shards"][0].update(num_clips=4), rules.SHARD_COUNTS),
        (lambda values: values["splits"]["train"]["shards"][0].update(num_narratives=1), rules.SHARD_COUNTS),
        (lambda values: values["statistics"]["total"].update(num_clips=99), rules.STATISTICS),
        (lambda values: values["statistics"]["sources"]["demo"].update(mean_clip_s=2.0), rules.STATISTICS),
        (lambda values: values["config"]["values"].update(engine="other"), rules.CONFIG),
        (lambda values: values["config"].update(digest="0" * 64), rules.CONFIG),
        (lambda values: values["splits"].pop("val"), rules.SPLITS),
        (lambda values: values["splits"].update({"a b": values["splits"]["val"]}), rules.SPLITS),
    ],
)
def test_a_manifest_that_says_what_is_not_so(bench: Bench, edit: Callable[[dict[str, Any]], object], rule: str) -> None:
    bench.edit_manifest(edit)
    assert rule in bench.rules()


def test_a_manifest_in_another_spelling(bench: Bench) -> None:
    (bench.out / "dataset.json").write_text(json.dumps(bench.manifest(), indent=1))
    assert bench.rules() == {shard_rules.CANONICAL}


@pytest.mark.parametrize("path", ["../outside.tar", "/etc/passwd", "train/../../outside.tar", "a\0b.tar", "C:\\x.tar"])
def test_a_shard_path_that_leaves_the_folder_is_not_opened(bench: Bench, path: str) -> None:
    (bench.out.parent / "outside.tar").write_bytes(b"secret")
    bench.edit_manifest(lambda values: values["splits"]["train"]["shards"][0].update(path=path))
    found = bench.problems()
    assert any(problem.rule == rules.SHARD_FILES and "not opened" in problem.found for problem in found)
    assert any(problem.rule == rules.SHARD_NAMES for problem in found)


def test_a_shard_that_is_missing_or_a_link(bench: Bench) -> None:
    path = bench.out / TRAIN
    moved = path.rename(bench.out.parent / "moved.tar")
    missing = [problem for problem in bench.problems() if problem.rule == rules.SHARD_FILES]
    assert [(problem.where, problem.found) for problem in missing] == [(TRAIN, "missing")]
    path.symlink_to(moved)
    linked = [problem for problem in bench.problems() if problem.rule == rules.SHARD_FILES]
    assert [problem.where for problem in linked] == [TRAIN]
    path.unlink()
    os.mkfifo(path)
    assert rules.SHARD_FILES in bench.rules()


def test_a_split_folder_that_is_a_link_out_of_the_set(bench: Bench) -> None:
    moved = (bench.out / "train").rename(bench.out.parent / "train")
    (bench.out / "train").symlink_to(moved)
    assert rules.SHARD_FILES in bench.rules()


def test_shards_numbered_with_a_gap(bench: Bench) -> None:
    (bench.out / TRAIN).rename(bench.out / "train" / "cookgen-train-000001.tar")

    def renumber(values: dict[str, Any]) -> None:
        values["splits"]["train"]["shards"][0]["path"] = "train/cookgen-train-000001.tar"

    bench.edit_manifest(renumber)
    bench.edit_rows(
        Narrative,
        lambda row: row.model_copy(update={"shard": row.shard.replace("train-000000", "train-000001")}),
    )
    assert bench.rules() == {rules.SHARD_NAMES}


@pytest.mark.parametrize(
    "name",
    ["train/cookgen-train-000001.tar", "old.tar", "deep/er/x.TAR", "tables/index.pkl", "m.pt", "features/x.tar"],
)
def test_files_that_do_not_belong_here(bench: Bench, name: str) -> None:
    path = bench.out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert [(problem.rule, problem.where) for problem in bench.problems()] == [(rules.UNLISTED, name)]


@pytest.mark.parametrize(
    "name", ["features/.x.partial/train/cookgen-train-000000.tar", ".store/x.tar", ".runs/y.pkl", "n/o.txt"]
)
def test_files_that_may_be_here(bench: Bench, name: str) -> None:
    path = bench.out / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    assert bench.problems() == []


# ---- tar


def set_member(**values: Any) -> Callable[[Content], None]:
    def edit(members: Content) -> None:
        for name, value in values.items():
            setattr(members[4][0], name, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (set_member(mtime=1), shard_rules.METADATA),
        (set_member(mtime=1.5), shard_rules.METADATA),
        (set_member(uid=1000), shard_rules.METADATA),
        (set_member(gid=1000), shard_rules.METADATA),
        (set_member(mode=0o755), shard_rules.METADATA),
        (set_member(uname="root"), shard_rules.METADATA),
        (set_member(gname="root"), shard_rules.METADATA),
        (set_member(pax_headers={"comment": "hello"}), shard_rules.METADATA),
        (set_member(type=tarfile.SYMTYPE, linkname="/etc/passwd"), shard_rules.REGULAR),
        (set_member(type=tarfile.LNKTYPE, linkname="demo-a-000.mp4"), shard_rules.REGULAR),
        (set_member(type=tarfile.DIRTYPE), shard_rules.REGULAR),
        (set_member(type=tarfile.CHRTYPE), shard_rules.REGULAR),
        (set_member(name="../demo-a-001.mp4"), shard_rules.NAMES),
        (set_member(name="/demo-a-001.mp4"), shard_rules.NAMES),
        (set_member(name="demo-a-001.pkl"), shard_rules.NAMES),
        (set_member(name="demo-a-1.mp4"), shard_rules.NAMES),
        (set_member(name="demo-a-0001.mp4"), shard_rules.NAMES),
        (set_member(name="demo-\u00e4-001.mp4"), shard_rules.NAMES),
        (set_member(name="demo-a-\u0661\u0661\u0661.mp4"), shard_rules.NAMES),
        (set_member(name="\x1b[31mred"), shard_rules.NAMES),
        (set_member(name="x" * 3000), shard_rules.NAMES),
        (lambda members: members[:4] + members[5:], shard_rules.ORDER),
        (lambda members: [members[1], members[0], *members[2:]], shard_rules.ORDER),
        (lambda members: [*members[:1], members[2], members[1], *members[3:]], shard_rules.ORDER),
        (lambda members: [*members[:3], members[2], *members[3:]], shard_rules.ORDER),
        (lambda members: members[3:], shard_rules.INDICES),
        (lambda members: members[:3] + members[6:], shard_rules.INDICES),
        (lambda members: members[3:6] + members[:3] + members[6:], shard_rules.INDICES),
        (lambda members: members[:6] + members[9:], shard_rules.NUM_STEPS),
        (lambda members: members[:3] + members[9:], shard_rules.MIN_STEPS),
        (lambda members: members[:6] + members[9:] + members[6:9], shard_rules.WHOLE),
        (lambda members: members + members[:9], shard_rules.WHOLE),
    ],
)
def test_tar_members(bench: Bench, edit: Callable[[Content], Content | None], rule: str) -> None:
    bench.edit_members(edit)
    assert rule in bench.rules()


def test_a_narrative_in_two_splits(bench: Bench) -> None:
    bench.edit_members(lambda members: members + bench.members(TRAIN)[:9], VAL)
    whole = [problem for problem in bench.problems() if problem.rule == shard_rules.WHOLE]
    assert [problem.where for problem in whole] == [f"{VAL}: demo-a"]
    assert TRAIN in whole[0].found


@pytest.mark.parametrize("cut", [1, 511, 512, 700, 5000, -10_240, 0])
def test_a_shard_cut_short(bench: Bench, cut: int) -> None:
    path = bench.out / TRAIN
    path.write_bytes(path.read_bytes()[:cut])
    bench.restamp() if cut else None
    found = bench.rules()
    assert shard_rules.TAR in found or found >= {rules.SHARD_COUNTS}


@pytest.mark.parametrize("place", ["after the end", "in a header", "between members"])
def test_bytes_that_a_tar_reader_does_not_show(bench: Bench, place: str) -> None:
    path = bench.out / TRAIN
    content = bytearray(path.read_bytes())
    row = next(row for row in bench.rows(Narrative) if row.narrative == "demo-b")
    if place == "after the end":
        content[-1] = 1
    elif place == "in a header":
        content[row.first_member_offset + 200] ^= 1  # checksum wrong: plain readers stop there, silently
    else:
        content[row.first_member_offset : row.first_member_offset] = bytes(512)
    path.write_bytes(content)
    bench.restamp()
    assert shard_rules.TAR in bench.rules()


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 10_240, os.urandom(2048), pickle.dumps([1])])
def test_a_shard_that_is_no_tar_file(bench: Bench, content: bytes) -> None:
    (bench.out / TRAIN).write_bytes(content)
    bench.restamp() if content else None
    found = bench.rules()
    assert found & {shard_rules.TAR, rules.SHARD_COUNTS, rules.MANIFEST}


def test_a_header_that_claims_very_much_is_not_read_into_memory(bench: Bench) -> None:
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = tarfile.XHDTYPE, 2**32
    path = bench.out / TRAIN
    with path.open("wb") as stream:
        stream.write(header.tobuf(tarfile.GNU_FORMAT))
        stream.truncate(2**33)  # sparse
    found = list(shard_rules.shard_problems(path, TRAIN, "train", shard_rules.Rules(), shard_rules.Found()))
    assert [problem.rule for problem in found] == [shard_rules.TAR]
    assert "claims" in found[0].found


def test_a_global_header(bench: Bench) -> None:
    with tarfile.open(bench.out / TRAIN) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(bench.out / TRAIN, "w", format=tarfile.PAX_FORMAT, pax_headers={"mtime": "5"}) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    bench.restamp()
    assert shard_rules.METADATA in bench.rules()


# ---- JSON of a clip


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(values: dict[str, Any]) -> None:
        *parts, last = path.split(".")
        for part in parts:
            values = values[part]
        values[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (put("format", "cookgen/2"), shard_rules.SCHEMA),
        (put("extra", 1), shard_rules.SCHEMA),
        (put("index", "1"), shard_rules.SCHEMA),
        (put("caption.text", ""), shard_rules.SCHEMA),
        (put("action.origin", "guess"), shard_rules.SCHEMA),
        (put("match.iou", 1.5), shard_rules.SCHEMA),
        (put("match.rule", None), shard_rules.SCHEMA),
        (put("clip", None), shard_rules.SCHEMA),
        (lambda values: values.pop("lineage"), shard_rules.SCHEMA),
        (put("narrative", "demo-b"), shard_rules.AGREES),
        (put("index", 2), shard_rules.AGREES),
        (put("split", "val"), shard_rules.AGREES),
        (put("video.title", "another"), shard_rules.AGREES),
        (put("video.source", "youcook2"), shard_rules.AGREES),
        (put("num_steps", 4), shard_rules.NUM_STEPS),
        (put("clip.start_s", 99.0), shard_rules.CLIP),
        (put("clip.first_pts_s", 4.0), shard_rules.CLIP),
        (put("clip.last_pts_s", 6.0), shard_rules.CLIP),
        (put("keyframe.pts_s", 5.95), shard_rules.CLIP),
        (put("keyframe.pts_s", 4.95), shard_rules.CLIP),
        (put("clip.end_s", 6.2), shard_rules.CLIP),
        (put("clip.end_s", 1e308), shard_rules.CLIP),
        (put("clip.fps", 12.0), shard_rules.CLIP),
        (put("action.end_s", 1.0), shard_rules.ACTION),
        (put("action.word_ids", None), shard_rules.ACTION),
        (put("action.word_ids", [3, 3]), shard_rules.ACTION),
        (put("action.origin", "manual"), shard_rules.ACTION),
        (put("match.start_diff_s", 0.6), shard_rules.MATCH),
        (put("match.iou", 0.41), shard_rules.MATCH),
        (put("match.rule", "iou"), shard_rules.MATCH),
        (put("action.start_s", 5.8), shard_rules.MATCH),
        (put("clip.num_frames", 9), media_rules.DECODES),
        (put("clip.num_frames", 11), media_rules.DECODES),
        (put("clip.width", 448), media_rules.DECODES),
        (put("clip.height", 448), media_rules.KEYFRAME),
        (put("clip.has_audio", False), media_rules.ENCODING),
        (put("clip.sha256", "0" * 64), media_rules.CLIP_SHA256),
        (put("clip.fps", 20.0), media_rules.TIMES),
        (put("caption.text", "something else"), rules.TABLE_AGREES),
        (put("action.text", "something else"), rules.TABLE_AGREES),
        (put("keyframe.pts_s", 5.5), rules.TABLE_AGREES),
    ],
)
def test_the_json_of_a_clip(bench: Bench, edit: Callable[[dict[str, Any]], object], rule: str) -> None:
    bench.edit_json(edit)
    found = [problem for problem in bench.problems() if problem.rule == rule]
    assert found
    if rule != rules.TABLE_AGREES:
        assert all(problem.where.startswith(f"{TRAIN}: demo-a-00") for problem in found)


def test_manual_actions_have_no_words(bench: Bench) -> None:
    bench.edit_json(put("action.word_ids", [0, 1]), key="demo-b-000")
    assert shard_rules.ACTION in bench.rules()


def test_clips_out_of_time_order(bench: Bench) -> None:
    """The samples of clips 0 and 1 exchanged, each renumbered: only the order in time is wrong."""

    def swap(members: Content) -> Content:
        first, second = members[:3], members[3:6]
        for (member, _), (other, _) in zip(first, second, strict=True):
            member.name, other.name = other.name, member.name

        def renumbered(group: Content, index: int) -> Content:
            values = json.loads(group[0][1]) | {"index": index}
            return [(group[0][0], canonical_json(values).encode()), *group[1:]]

        return renumbered(second, 0) + renumbered(first, 1) + members[6:]

    bench.edit_members(swap)
    assert bench.rules() == {shard_rules.RISING}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"num_steps":' + b"9" * 5000 + b"}",
        pickle.dumps({"format": "cookgen/1"}),
    ],
)
def test_json_that_is_none(bench: Bench, content: bytes) -> None:
    bench.replace("demo-a-001.json", content)
    found = bench.problems()
    assert any(p.rule == shard_rules.SCHEMA and p.where == f"{TRAIN}: demo-a-001.json" for p in found)


def test_json_with_nan_blanks_or_a_key_twice_is_not_canonical(bench: Bench) -> None:
    content = next(content for member, content in bench.members() if member.name == "demo-a-001.json")
    for broken in (
        content.replace(b'"iou":0.4', b'"iou":NaN'),
        content.replace(b'"iou":0.4', b'"iou":0.40'),
        content.replace(b'"iou":0.4', b'"iou":0.4000001'),
        content.replace(b'"iou":0.4', b'"iou": 0.4'),
        content.replace(b'"iou":0.4', b'"iou":9,"iou":0.4'),
        content + b"\n",
        b"\xef\xbb\xbf" + content,
    ):
        assert broken != content
        bench.replace("demo-a-001.json", broken)
        assert shard_rules.CANONICAL in bench.rules()


def test_json_larger_than_any_real_one_is_not_read(bench: Bench) -> None:
    bench.replace("demo-a-001.json", b" " * (shard_rules.MAX_JSON_BYTES + 1))
    found = [problem for problem in bench.problems() if problem.rule == shard_rules.SCHEMA]
    assert [problem.where for problem in found] == [f"{TRAIN}: demo-a-001.json"]


def test_the_configuration_says_what_the_smallest_narrative_and_the_thresholds_are(bench: Bench) -> None:
    bench.configure({"shards": {"min_steps": 3}})
    found = bench.problems()
    assert {problem.rule for problem in found} == {shard_rules.MIN_STEPS}
    assert {problem.where for problem in found} == {f"{TRAIN}: demo-b", f"{VAL}: demo-c"}
    bench.configure({"shards": {"min_steps": 2}, "matches": {"sure_iou": 0.7}})
    assert bench.rules() == {shard_rules.MATCH}
    bench.configure({"shards": "?", "matches": {"sure_iou": "high", "min_iou": None}})
    assert bench.problems() == []


# ---- media


def test_another_good_clip_is_no_problem(bench: Bench) -> None:
    bench.replace_clip(mp4(2))
    assert bench.problems() == []
    bench.replace_clip(mp4(2, has_audio=True), has_audio=True)
    assert bench.problems() == []


@pytest.mark.parametrize(
    ("content", "changes", "rule"),
    [
        (lambda: mp4(0, edit_list=True), {}, media_rules.EDIT_LIST),
        (lambda: mp4(0, faststart=False), {}, media_rules.FASTSTART),
        (lambda: mp4(0, starts_at_0=False), {}, media_rules.TIMES),
        (lambda: mp4(0, num_frames=8), {}, media_rules.DECODES),
        (lambda: mp4(0, num_frames=12), {}, media_rules.DECODES),
        (lambda: mp4(0, has_audio=True), {}, media_rules.ENCODING),
        (lambda: mp4(0, has_audio=True, sample_rate=44_100), {"has_audio": True}, media_rules.ENCODING),
        (lambda: mp4(0, pix_fmt="yuv444p"), {}, media_rules.ENCODING),
        (lambda: mp4(0, codec="mpeg4"), {}, media_rules.ENCODING),
        (lambda: mp4(0)[:-300], {}, media_rules.DECODES),
        (lambda: mp4(0)[:600], {}, media_rules.DECODES),
        (lambda: b"", {}, media_rules.DECODES),
        (lambda: os.urandom(3000), {}, media_rules.DECODES),
        (lambda: b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/x.ts\n", {}, media_rules.DECODES),
        (lambda: pickle.dumps([1, 2]), {}, media_rules.DECODES),
        (lambda: b"\0\0\0\x08free" * 10_000, {}, media_rules.DECODES),
        (lambda: b"\0\0\0\0moov" * 100, {}, media_rules.DECODES),
        (lambda: jpg(0), {}, media_rules.DECODES),
    ],
)
def test_clips(bench: Bench, content: Callable[[], bytes], changes: dict[str, Any], rule: str) -> None:
    bench.replace_clip(content(), **changes)
    found = bench.problems()
    assert rule in {problem.rule for problem in found}
    assert {problem.where for problem in found} == {f"{TRAIN}: demo-a-000.mp4"}


def test_a_clip_with_other_bytes_than_its_sha256(bench: Bench) -> None:
    bench.replace("demo-a-000.mp4", mp4(2))
    assert bench.rules() == {media_rules.CLIP_SHA256}


@pytest.mark.parametrize(
    "content",
    [
        lambda: jpg(0, side=32),
        lambda: jpg(0, format="PNG"),
        lambda: jpg(0)[:300],
        lambda: b"",
        lambda: os.urandom(500),
        lambda: pickle.dumps("jpg"),
        lambda: mp4(0),
    ],
)
def test_keyframes(bench: Bench, content: Callable[[], bytes]) -> None:
    bench.replace("demo-a-000.jpg", content())
    found = bench.problems()
    assert [(p.rule, p.where) for p in found] == [(media_rules.KEYFRAME, f"{TRAIN}: demo-a-000.jpg")]


# ---- card


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: None,
        lambda text: "",
        lambda text: text.removeprefix("---\n"),
        lambda text: "---\n[}\n---\n",
        lambda text: "---\njust text\n---\n",
        lambda text: text.replace("train/*.tar", "val/*.tar"),
        lambda text: text.replace("validation", "val"),
        lambda text: "---\nconfigs: 5\n---\n",
        lambda text: "---\nconfigs: [{data_files: [{}]}]\n---\n",
        lambda text: "---\n" + "[" * 20_000 + "\n---\n",
        lambda text: "---\n!!python/object/apply:os.system [true]\n---\n",
    ],
)
def test_the_card(bench: Bench, edit: Callable[[str], str | None]) -> None:
    path = bench.out / "README.md"
    text = edit(path.read_text())
    path.unlink() if text is None else path.write_text(text)
    assert {(p.rule, p.where) for p in bench.problems()} == {(rules.CARD, "README.md")}


# ---- tables


@pytest.mark.parametrize("record", TABLES, ids=lambda record: record.TABLE)
@pytest.mark.parametrize("damage", ["missing", "empty", "no parquet", "cut", "a column less", "another type", "a link"])
def test_a_table_that_cannot_be_read(bench: Bench, record: type[Record], damage: str) -> None:
    path = table_path(bench.out, record)
    content, table = path.read_bytes(), pq.read_table(path)
    path.unlink()
    if damage == "empty":
        path.write_bytes(b"")
    elif damage == "no parquet":
        path.write_bytes(pickle.dumps([1]))
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "a column less":
        pq.write_table(table.drop_columns([table.column_names[-1]]), path)
    elif damage == "another type":
        pq.write_table(table.set_column(1, table.column_names[1], pa.nulls(len(table), pa.date32())), path)
    elif damage == "a link":
        path.symlink_to("/etc/passwd")
    found = bench.problems()
    assert any(p.rule == rules.TABLE and p.where == f"tables/{record.TABLE}.parquet" for p in found)


def test_a_row_that_breaks_its_record(bench: Bench) -> None:
    path = table_path(bench.out, Clip)
    table = pq.read_table(path)
    for name, value in (("num_frames", 0), ("start_s", float("nan")), ("sha256", "?")):
        column = pa.array([value] * len(table), table.schema.field(name).type)
        pq.write_table(table.set_column(table.column_names.index(name), name, column), path)
        found = [problem for problem in bench.problems() if problem.rule == rules.TABLE]
        assert [problem.where for problem in found] == ["tables/clips.parquet"]
        assert name in found[0].found


def test_more_columns_may_follow(bench: Bench) -> None:
    path = table_path(bench.out, Clip)
    table = pq.read_table(path)
    pq.write_table(table.append_column("score", pa.nulls(len(table), pa.float64())), path)
    assert bench.problems() == []


def of(record: type[Any], name: str, /, **changes: Any) -> Callable[[Bench], None]:
    """Changes the narrative's rows in a table; drops them where there are no changes."""

    def edit(row: Any) -> Any:
        if row.narrative != name:
            return row
        return row.model_copy(update=changes) if changes else None

    return lambda bench: bench.edit_rows(record, edit)


def add(row: Record) -> Callable[[Bench], None]:
    def edit(bench: Bench) -> None:
        write_table(table_path(bench.out, type(row)), type(row), [*bench.rows(type(row)), row])

    return edit


def refusal(narrative: str | None) -> Reject:
    return Reject(narrative=narrative, path="x.mp4", stage="clips", reason=Reason.NO_SHOTS)


@pytest.mark.parametrize(
    ("edit", "rule"),
    [
        (of(Narrative, "demo-a", num_steps=2), rules.TABLE_AGREES),
        (of(Narrative, "demo-a", split="val"), rules.TABLE_AGREES),
        (of(Narrative, "demo-a", first_member_offset=512), rules.TABLE_AGREES),
        (of(Narrative, "demo-a", num_bytes=512), rules.TABLE_AGREES),
        (of(Narrative, "demo-a", shard=VAL), rules.TABLE_AGREES),
        (of(Narrative, "demo-a"), rules.TABLE_AGREES),
        (of(Narrative, "demo-a", narrative="demo-gone"), rules.OUTCOME),
        (of(Video, "demo-a"), rules.TABLE_AGREES),
        (of(Video, "demo-a", split="val"), rules.TABLE_AGREES),
        (of(Video, "demo-a", sha256="0" * 64), rules.TABLE_AGREES),
        (of(Video, "demo-a", title="x"), rules.TABLE_AGREES),
        (of(Video, "demo-a", path="/abs.mp4"), rules.VIDEO_ROWS),
        (of(Video, "demo-a", path="../up.mp4"), rules.VIDEO_ROWS),
        (of(Video, "demo-a", video_id="other"), rules.VIDEO_ROWS),
        (of(Video, "demo-b", narrative="demo-a"), rules.VIDEO_ROWS),
        (of(Clip, "demo-a"), rules.TABLE_AGREES),
        (of(Clip, "demo-a", keyframe_pts_s=0.7), rules.TABLE_AGREES),
        (of(Action, "demo-a"), rules.TABLE_AGREES),
        (of(Action, "demo-a", raw_text="?"), rules.TABLE_AGREES),
        (of(Caption, "demo-a"), rules.TABLE_AGREES),
        (of(Match, "demo-a"), rules.TABLE_AGREES),
        (of(Match, "demo-a", chosen=False), rules.TABLE_AGREES),
        (of(Reject, "demo-gone"), rules.OUTCOME),
        (add(refusal("demo-a")), rules.OUTCOME),
        (add(refusal("demo-gone")), rules.OUTCOME),
    ],
)
def test_tables_that_say_something_else(bench: Bench, edit: Callable[[Bench], None], rule: str) -> None:
    edit(bench)
    assert rule in bench.rules()


def test_rejects_without_a_narrative_and_of_rows_count_for_no_video(bench: Bench) -> None:
    add(refusal(None))(bench)
    add(refusal("demo-a").model_copy(update={"clip_index": 0}))(bench)
    add(refusal("demo-unheard-of"))(bench)
    assert bench.problems() == []


def test_a_clash_of_names_takes_the_digest_of_the_path(bench: Bench) -> None:
    from cookgen.files import narrative_name

    name = narrative_name("demo", "z", clash_path="z.mkv")
    row = bench.rows(Video)[0].model_copy(update={"narrative": name, "video_id": "z", "path": "z.mkv"})
    add(row)(bench)
    add(refusal(name))(bench)
    assert bench.problems() == []


# ---- splits and packing


def test_narratives_of_a_shard_in_another_order(bench: Bench) -> None:
    bench.edit_members(lambda members: members[9:] + members[:9])
    found = bench.problems()
    assert [(p.rule, p.where) for p in found] == [(shard_rules.SORTED, f"{TRAIN}: demo-a")]


def test_a_plain_folders_videos_are_split_by_hash(tmp_path: Path) -> None:
    names = [f"v{number}" for number in range(40)]
    right = {name: hashed_split(f"folder-{name}", 0.03) for name in names}
    val = next(name for name in names if right[name] == "val")
    train = next(name for name in names if right[name] == "train")
    stories = [
        Story(name, num_clips=2, source="folder", split=right[name], first_shade=3 * (name == val))
        for name in (val, train)
    ]
    bench = Bench(make_set(tmp_path / "good", stories))
    assert bench.problems() == []
    bench.configure({"videos": {"val_fraction": 1.0}})
    assert [(p.rule, p.where) for p in bench.problems()] == [(rules.HASHED, f"{TRAIN}: folder-{train}")]
    bench.configure({"videos": {"val_fraction": 0}})
    assert [(p.rule, p.where) for p in bench.problems()] == [(rules.HASHED, f"{VAL}: folder-{val}")]


# ---- duplicates


def picture(seed: int, *, quality: int = 90, side: int = 64) -> bytes:
    """A JPEG of bright and dark spots, others for each seed."""
    spots = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(spots).resize((128, 128)).resize((side, side)).convert("RGB").save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def assert_only(bench: Bench, rule: str, where: str = f"{VAL}: demo-c", *, is_warning: bool = False) -> None:
    found = [(problem.rule, problem.where, problem.is_warning) for problem in bench.problems()]
    assert found == [(rule, where, is_warning)]


def test_a_source_video_in_two_splits(bench: Bench) -> None:
    bench.edit_video("demo-a", TRAIN, sha256="1" * 64)
    bench.edit_video("demo-b", TRAIN, sha256="1" * 64)
    assert bench.problems() == []
    bench.edit_video("demo-c", VAL, sha256="1" * 64)
    assert_only(bench, duplicate_rules.SAME_VIDEO)


def test_a_clip_in_two_splits(bench: Bench) -> None:
    bench.replace_clip(bench.members(TRAIN)[1][1], "demo-c-000", VAL)
    assert_only(bench, duplicate_rules.SAME_CLIP)


def test_a_keyframe_in_two_splits(bench: Bench) -> None:
    for name in ("demo-a-000", "demo-a-001"):
        bench.replace(f"{name}.jpg", picture(0))
    assert bench.problems() == []
    bench.replace("demo-c-000.jpg", picture(0), VAL)
    assert_only(bench, duplicate_rules.SAME_KEYFRAME)


def test_narratives_that_look_alike(bench: Bench) -> None:
    for index in range(2):
        bench.replace(f"demo-a-{index:03d}.jpg", picture(index))
        bench.replace(f"demo-b-{1 - index:03d}.jpg", picture(index, quality=30))
        bench.replace(f"demo-c-{index:03d}.jpg", picture(5 + index), VAL)
    assert_only(bench, duplicate_rules.NEAR_WITHIN, f"{TRAIN}: demo-b", is_warning=True)
    bench.replace("demo-b-000.jpg", picture(7))
    bench.replace("demo-b-001.jpg", picture(8))
    assert bench.problems() == []
    bench.replace("demo-c-001.jpg", picture(1, quality=30), VAL)
    assert bench.problems() == []  # a single pair is no evidence
    bench.replace("demo-c-000.jpg", picture(0, quality=30), VAL)
    assert_only(bench, duplicate_rules.NEAR)


# ---- features


def test_features_of_the_set(bench: Bench) -> None:
    folder = add_features(bench.out, "clip", (2, 3))
    add_features(bench.out, "text", ())
    assert bench.problems() == []
    (bench.out / "features" / ".next.partial" / "train").mkdir(parents=True)
    (bench.out / "features" / ".next.partial" / "train" / "x.tar").write_bytes(b"half")
    assert bench.problems() == []
    left_over = folder / "train" / "cookgen-train-000001.tar"
    left_over.write_bytes(b"")
    assert_only(bench, rules.UNLISTED, left_over.relative_to(bench.out).as_posix())
    left_over.unlink()
    bench.replace("demo-c-000.jpg", picture(0), VAL)  # another shard than the one that they were computed from
    found = bench.problems()
    assert [(p.rule, p.where) for p in found] == [
        (feature_rules.FRESH, f"features/{name}/features.json") for name in ("clip", "text")
    ]
    assert all("run cookgen features again" in problem.found for problem in found)


# ---- as a whole


def test_the_list_of_problems_has_an_end(bench: Bench) -> None:
    for number in range(MAX_PROBLEMS + 10):
        (bench.out / f"{number}.tar").touch()
    found = bench.problems()
    assert len(found) == MAX_PROBLEMS + 1
    assert "more than" in found[-1].found


def test_text_from_the_set_is_cut_and_escaped() -> None:
    problem = Problem("a\x1b[2Jb\n", "rule", "\udcff" + "x" * 10_000)
    assert str(problem).isprintable()
    assert len(str(problem)) < 600
    json.dumps(str(problem)).encode("utf-8")


def test_random_damage_never_ends_in_an_exception_and_is_seen_in_shards(good: Path, tmp_path: Path) -> None:
    import random

    source = random.Random(7)
    for number in range(40):
        out = tmp_path / str(number)
        shutil.copytree(good, out)
        bench = Bench(out)
        path = source.choice([out / TRAIN, out / VAL, out / "dataset.json"])
        content = bytearray(path.read_bytes())
        for _ in range(source.choice([1, 20])):
            content[source.randrange(len(content))] ^= 1 << source.randrange(8)
        path.write_bytes(content)
        found = bench.problems()
        if path.suffix == ".tar":
            assert found
            bench.restamp()  # also where the manifest lists the damaged bytes
            bench.problems()
        shutil.rmtree(out)
