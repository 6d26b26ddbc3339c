"""Writing shard sets: packing, what becomes of every video, bytes, and that other readers see the same clips."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cookgen.config import apply_settings
from cookgen.dataset.tables import read_table, table_path
from cookgen.dataset.validate import validate
from cookgen.errors import InputError, UnknownNameError, UsageError
from cookgen.files import canonical_json, file_sha256
from cookgen.records import (
    SET_CHECKS,
    TABLES,
    Check,
    Clip,
    Evidence,
    Manifest,
    Narrative,
    Reason,
    Record,
    Reject,
    Sample,
    Video,
    meaning_of,
)
from pipelines.stage import Result, Stage, VideoState
from pipelines.stages.shards import ShardsConfig, write_shards
from tests.shardset import NUM_FRAMES, STAGES, Media, RunConfig, Story, jpg, make_state, make_states, mp4

MIXED = (
    Story("plain"),
    Story("long", num_clips=7, title="Long one", topic="soup"),
    Story("by-hand", num_clips=2, manual=True),
    Story("odd_ends", num_clips=5, lonely_clips=frozenset({1}), lonely_actions=frozenset({3})),
    Story("mute", num_clips=4, without_caption=frozenset({0})),
    Story("held-out", split="val", first_shade=3),
    Story("short", num_clips=1),
    Story("mute-short", num_clips=2, without_caption=frozenset({1})),
    Story("broken", stops_at="videos", stop_reason=Reason.DECODE_ERROR),
    Story("no-shots", stops_at="clips"),
    Story("silent", stops_at="actions", stop_reason=Reason.NO_ACTIONS),
    Story("n" * 120, num_clips=2),
)


def write(
    states: list[VideoState], media: Media, out: Path, config: ShardsConfig | None = None, **options: Any
) -> Manifest:
    config = config or ShardsConfig()
    rejects = options.pop("source_rejects", ())
    return write_shards(
        states,
        rejects,
        config=config,
        run_config=RunConfig(config),
        places=media.places,
        out=out,
        stages=options.pop("stages", STAGES),
        **options,
    )


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return Media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def mixed(media: Media, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    out = tmp_path_factory.mktemp("sets") / "mixed"
    return out, write(make_states(MIXED, media), media, out, ShardsConfig(target_shard_bytes=60_000))


def rows(out: Path, record: type[Record]) -> list[Any]:
    return list(read_table(table_path(out, record), record))


def tars(out: Path) -> list[Path]:
    return sorted(out.glob("*/*.tar"))


def contents(tar_path: Path) -> dict[str, bytes]:
    with tarfile.open(tar_path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def everything(out: Path) -> dict[str, str]:
    return {path.relative_to(out).as_posix(): file_sha256(path) for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_written_set_is_valid(mixed: tuple[Path, Manifest]) -> None:
    out, manifest = mixed
    assert [str(problem) for problem in validate(out)] == []
    assert json.loads((out / "dataset.json").read_bytes()) == manifest.to_json()
    assert (out / "dataset.json").read_text() == canonical_json(manifest.to_json())
    assert list(manifest.splits) == ["train", "val"]
    assert manifest.name == "cookgen-demo"


def test_every_video_has_exactly_one_outcome(mixed: tuple[Path, Manifest]) -> None:
    out, _ = mixed
    kept = {row.narrative for row in rows(out, Narrative)}
    refused = [row for row in rows(out, Reject) if row.is_video_level]
    assert Counter(row.narrative for row in refused).most_common(1)[0][1] == 1
    assert kept | {row.narrative for row in refused} == {story.narrative for story in MIXED}
    assert not kept & {row.narrative for row in refused}
    reasons = {row.narrative: (row.stage, row.reason) for row in refused}
    assert reasons == {
        "demo-short": ("shards", Reason.TOO_FEW_STEPS),
        "demo-mute-short": ("shards", Reason.TOO_FEW_STEPS),
        "demo-broken": ("videos", Reason.DECODE_ERROR),
        "demo-no-shots": ("clips", Reason.NO_SHOTS),
        "demo-silent": ("actions", Reason.NO_ACTIONS),
    }


def test_unmatched_clips_and_actions_have_their_own_rows(mixed: tuple[Path, Manifest]) -> None:
    out, _ = mixed
    unmatched = [row for row in rows(out, Reject) if row.reason is Reason.UNMATCHED]
    # A pair that was not chosen leaves its clip and its action alone; a clip without a caption was matched.
    assert sorted((row.narrative, row.clip_index, row.action_index) for row in unmatched if row.clip_index is None) == [
        ("demo-odd_ends", None, 1),
        ("demo-odd_ends", None, 3),
    ]
    stopped = {row.narrative for row in rows(out, Reject) if row.is_video_level and row.stage != "shards"}
    alone = [(row.narrative, row.clip_index) for row in unmatched if row.action_index is None]
    assert [row for row in alone if row[0] not in stopped] == [("demo-odd_ends", 1), ("demo-odd_ends", 3)]
    # A video that stopped before the matching leaves all its clips alone.
    cut = [(row.narrative, row.clip_index) for row in rows(out, Clip) if row.narrative in stopped]
    assert sorted(row for row in alone if row[0] in stopped) == sorted(cut)
    assert cut


def test_tar_members(mixed: tuple[Path, Manifest]) -> None:
    out, _ = mixed
    for path in tars(out):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        suffixes = [member.name.rpartition(".")[2] for member in members]
        assert suffixes == ["json", "mp4", "jpg"] * (len(members) // 3)
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname, member.type) == ("", "", tarfile.REGTYPE)
        narratives = list(dict.fromkeys(member.name.rpartition("-")[0] for member in members))
        assert narratives == sorted(narratives)
        assert [narrative for narrative in narratives if len(narrative) > 110] or max(map(len, narratives)) < 110


def test_the_json_of_a_clip(mixed: tuple[Path, Manifest]) -> None:
    out, _ = mixed
    found = {name: content for path in tars(out) for name, content in contents(path).items()}
    # Clips 1 and 3 of odd_ends have no partner: clips 0, 2 and 4 become steps 000, 001 and 002.
    assert [name for name in found if name.startswith("demo-odd_ends") and name.endswith(".json")] == [
        f"demo-odd_ends-{index:03d}.json" for index in range(3)
    ]
    text = found["demo-odd_ends-001.json"]
    sample = Sample.model_validate_json(text, strict=True)
    assert canonical_json(json.loads(text)).encode() == text
    assert (sample.index, sample.num_steps, sample.clip.start_s, sample.clip.num_frames) == (1, 3, 10.0, NUM_FRAMES)
    assert (sample.match.iou, sample.match.rule, sample.action.word_ids) == (0.6, "iou", (4, 6))
    assert sample.checks == {"text_similarity": 0.5}  # the narrative's own score is in the table only
    assert set(sample.lineage) == {stage.name for stage in STAGES}
    assert sample.lineage["speech"].model == "whisper-tiny.en@1"
    assert found["demo-odd_ends-001.mp4"] == mp4(2, has_audio=False)
    assert found["demo-odd_ends-001.jpg"] == jpg(2)
    assert sample.clip.sha256 == hashlib.sha256(found["demo-odd_ends-001.mp4"]).hexdigest()
    by_hand = Sample.model_validate_json(found["demo-by-hand-000.json"])
    assert (by_hand.action.origin, by_hand.action.word_ids) == ("manual", None)
    # The clip without a caption is not a step.
    assert Sample.model_validate_json(found["demo-mute-000.json"]).clip.start_s == 5.0


def test_the_index_gives_the_very_bytes_of_a_narrative(mixed: tuple[Path, Manifest]) -> None:
    out, _ = mixed
    index = rows(out, Narrative)
    assert [row.narrative for row in index] == sorted(row.narrative for row in index)
    for row in index:
        content = (out / row.shard).read_bytes()
        part = content[row.first_member_offset : row.first_member_offset + row.num_bytes]
        with tarfile.open(fileobj=io.BytesIO(part), mode="r:") as tar:  # a tar file of its own, but for its end
            names = tar.getnames()
        assert len(names) == 3 * row.num_steps
        assert {name.rpartition("-")[0] for name in names} == {row.narrative}
    for path in tars(out):  # no byte of a shard belongs to two narratives or to none
        spans = sorted((row.first_member_offset, row.num_bytes) for row in index if out / row.shard == path)
        assert spans[0][0] == 0
        assert all(start + size == after for (start, size), (after, _) in pairwise(spans))
        assert not (path.read_bytes()[sum(spans[-1]) :]).strip(b"\0")


def test_statistics(mixed: tuple[Path, Manifest]) -> None:
    _, manifest = mixed
    total = manifest.statistics["total"]
    assert total["num_videos"] == {"train": 6 - 1 + 1 - 1 + 1, "val": 1}
    assert total["num_clips"] == 3 + 7 + 2 + 3 + 3 + 3 + 2
    assert total["num_frames"] == total["num_clips"] * NUM_FRAMES
    assert total["mean_clip_s"] == 1.0
    assert total["mean_clips_per_video"] == round(total["num_clips"] / 7, 6)
    assert manifest.statistics["sources"] == {"demo": total}
    assert manifest.splits["train"].num_clips + manifest.splits["val"].num_clips == total["num_clips"]


def test_rewriting_removes_what_an_earlier_set_left(media: Media, tmp_path: Path) -> None:
    out = tmp_path / "out"
    states = make_states(MIXED, media)
    write(states, media, out, ShardsConfig(target_shard_bytes=20_000))
    before = tars(out)
    (out / "tables" / "old.parquet").write_bytes(b"")
    (out / "train" / ".tmp-abc.tar").write_bytes(b"half")
    (out / "train" / "mine.txt").write_text("not ours")
    manifest = write(states[:2], media, out)
    assert len(tars(out)) == 1 < len(before)
    assert manifest.splits["val"].num_narratives == 0
    assert not (out / "tables" / "old.parquet").exists()
    assert not (out / "train" / ".tmp-abc.tar").exists()
    assert (out / "train" / "mine.txt").exists()
    assert validate(out) == []


def test_a_set_that_is_being_written_is_not_complete(media: Media, tmp_path: Path) -> None:
    out = tmp_path / "out"
    states = make_states(MIXED[:3], media)
    write(states, media, out)

    def report(path: Path) -> None:
        assert path.parent == out
        assert not (out / "dataset.json").exists()
        assert (out / "README.md").exists()
        path.write_text("<html>")

    write(states, media, out, report=report)
    assert (out / "report.html").read_text() == "<html>"
    assert (out / "dataset.json").exists()

    def fails(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("no page")

    with pytest.raises(RuntimeError, match="no page"):
        write(states, media, out, report=fails)
    assert not (out / "dataset.json").exists()
    assert (out / "report.html").read_text() == "<html>"


def test_nothing_usable_makes_an_empty_valid_set(media: Media, tmp_path: Path) -> None:
    manifest = write(make_states([Story("x", stops_at="clips")], media), media, tmp_path)
    assert {name: split.num_narratives for name, split in manifest.splits.items()} == {"train": 0, "val": 0}
    assert validate(tmp_path) == []
    assert "configs:" not in (tmp_path / "README.md").read_text()
    write([], media, tmp_path)
    assert validate(tmp_path) == []


def test_rejects_of_the_source_stand_in_the_table(media: Media, tmp_path: Path) -> None:
    nameless = Reject(narrative=None, path="b\\xff.mp4", stage="source", reason=Reason.BAD_NAME)
    missing = Reject(narrative="demo-gone", path="gone.mp4", stage="source", reason=Reason.VIDEO_MISSING)
    write(make_states(MIXED[:1], media), media, tmp_path, source_rejects=[missing, nameless])
    assert rows(tmp_path, Reject) == [nameless, missing]
    assert validate(tmp_path) == []


def test_a_video_with_two_outcomes_is_our_mistake(media: Media, tmp_path: Path) -> None:
    twice = Reject(narrative="demo-plain", path="plain.mp4", stage="source", reason=Reason.VIDEO_MISSING)
    stopped = make_states([Story("plain", stops_at="clips")], media)
    with pytest.raises(AssertionError, match="demo-plain: 2 outcomes"):
        write(stopped, media, tmp_path, source_rejects=[twice])
    with pytest.raises(AssertionError, match="same narrative"):
        write(make_states([MIXED[0], MIXED[0]], media), media, tmp_path)


def test_min_steps(media: Media, tmp_path: Path) -> None:
    states = make_states([Story("two", num_clips=2), Story("four", num_clips=4)], media)
    write(states, media, tmp_path, ShardsConfig(min_steps=4))
    assert [row.narrative for row in rows(tmp_path, Narrative)] == ["demo-four"]
    assert [row.detail for row in rows(tmp_path, Reject)] == [
        "2 matched clips with a caption; a narrative has at least 4"
    ]
    with pytest.raises(ValueError, match="min_steps is 0"):
        ShardsConfig(min_steps=0)


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_a_damaged_media_store_ends_the_run_and_leaves_no_set(damage: str, tmp_path: Path) -> None:
    media = Media(tmp_path)
    states = make_states([Story("plain")], media)
    name = states[0].results["clips"].rows[1].sha256  # type: ignore[attr-defined]
    path = media.places.medium(name, ".mp4")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "truncated" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(InputError, match=name[:10]):
        write(states, media, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert tars(tmp_path / "out") == []


def test_a_split_that_is_no_folder_name_is_refused(media: Media, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"split '\.\./up': a split names a folder"):
        write(make_states([Story("x", split="../up")], media), media, tmp_path)
    manifest = write(make_states([Story("x", split="testing")], media), media, tmp_path)
    assert list(manifest.splits) == ["testing", "train", "val"]
    assert validate(tmp_path) == []


stories = st.lists(
    st.tuples(st.integers(2, 5), st.booleans(), st.text("abz09_-", min_size=1, max_size=6)),
    min_size=1,
    max_size=12,
    unique_by=lambda item: item[2],
).map(lambda items: [Story(name, num_clips=count, split="val" if val else "train") for count, val, name in items])


def packing(out: Path) -> dict[str, list[str]]:
    """Shard -> its narratives in order."""
    found: dict[str, list[str]] = {}
    for path in tars(out):
        names = groupby(name.rpartition("-")[0] for name in contents(path))
        found[path.relative_to(out).as_posix()] = [name for name, _ in names]
    return found


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(stories=stories, extra=st.integers(2, 4), target=st.integers(1, 120_000), shuffled=st.randoms())
def test_packing_laws(
    stories: list[Story], extra: int, target: int, shuffled: Any, media: Media, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = ShardsConfig(target_shard_bytes=target)
    folder = tmp_path_factory.mktemp("packing")
    states = make_states(stories, media)
    manifest = write(states, media, folder / "a", config)

    # Every narrative is whole, once, in time order; shards are numbered without gaps and none is empty.
    packed = packing(folder / "a")
    assert sorted(name for names in packed.values() for name in names) == sorted(story.narrative for story in stories)
    assert all(names == sorted(names) for names in packed.values())
    for split, listed in manifest.splits.items():
        paths = [f"{split}/cookgen-{split}-{number:06d}.tar" for number in range(len(listed.shards))]
        assert [shard.path for shard in listed.shards] == paths
        assert [path for path in packed if path.startswith(f"{split}/")] == paths
        size = sum(row.num_bytes for row in rows(folder / "a", Narrative) if row.split == split)
        assert len(paths) <= -(-size // target)
        assert all(file_sha256(folder / "a" / shard.path) == shard.sha256 for shard in listed.shards)

    # The order in which videos come changes no byte of anything.
    again = list(states)
    shuffled.shuffle(again)
    write(again, media, folder / "b", config)
    assert everything(folder / "a") == everything(folder / "b")

    # One more video changes one shard, as long as the number of buckets stays.
    more = make_state(Story("newcomer", num_clips=extra), media)
    grown = write([*states, more], media, folder / "c", config)
    if len(grown.splits["train"].shards) == len(manifest.splits["train"].shards):
        old, new = ({shard.path: shard.sha256 for shard in each.splits["train"].shards} for each in (manifest, grown))
        assert sum(old[path] != new[path] for path in new) == 1
    assert grown.splits["val"] == manifest.splits["val"]


def test_many_narratives_make_shards_near_the_target(media: Media, tmp_path: Path) -> None:
    states = make_states([Story(f"v{number}", num_clips=2) for number in range(120)], media)
    size = 120 * 40_000
    manifest = write(states, media, tmp_path, ShardsConfig(target_shard_bytes=size // 10))
    shards = manifest.splits["train"].shards
    assert 4 <= len(shards) <= 10
    assert all(2 <= shard.num_narratives <= 40 for shard in shards)


def test_tables_hold_what_the_stages_said(mixed: tuple[Path, Manifest], media: Media) -> None:
    out, _ = mixed
    states = {story.narrative: make_state(story, media) for story in MIXED}
    for record, stage in ((Video, "videos"), (Clip, "clips"), (Check, "checks")):
        wanted = [
            row for name in sorted(states) if stage in states[name].results for row in states[name].results[stage].rows
        ]
        assert rows(out, record) == wanted
    assert all(not Path(row.path).is_absolute() for row in rows(out, Video))
    for record in TABLES:
        metadata = pq.read_metadata(table_path(out, record))
        assert metadata.row_group(0).column(0).compression == "ZSTD" if metadata.num_rows else True


# ---- configured bounds decide


def with_scores(story: Story, media: Media, scores: dict[tuple[int | None, str], float]) -> VideoState:
    """The story's state with these checks in the place of its own."""
    state = make_state(story, media)
    rows = tuple(
        Check(narrative=story.narrative, clip_index=clip_index, check=check, score=score)
        for (clip_index, check), score in scores.items()
    )
    return state.with_result(replace(state.whole["checks"], rows=rows))


def failures(out: Path) -> list[tuple[str | None, int | None, int | None, str]]:
    return [
        (row.narrative, row.clip_index, row.action_index, row.detail)
        for row in rows(out, Reject)
        if row.reason is Reason.CHECK_FAILED
    ]


def test_a_clip_that_breaks_a_bound_is_left_out_with_a_reason(media: Media, tmp_path: Path) -> None:
    scores = {(0, "talking_head"): 0.0, (1, "talking_head"): 0.75, (2, "talking_head"): 0.5}
    state = with_scores(Story("plain"), media, {**scores, (0, "clip_decodes"): 1.0, (1, "clip_decodes"): 1.0})
    write([state], media, tmp_path / "free")
    assert rows(tmp_path / "free", Narrative)[0].num_steps == 3 and failures(tmp_path / "free") == []
    write([state], media, tmp_path / "bound", ShardsConfig(require=("talking_head<=0.5",)))
    assert failures(tmp_path / "bound") == [
        ("demo-plain", 1, 1, "talking_head is 0.75; shards.require: talking_head<=0.5")
    ]
    assert rows(tmp_path / "bound", Narrative)[0].num_steps == 2
    starts = [
        json.loads(content)["clip"]["start_s"]
        for path in tars(tmp_path / "bound")
        for name, content in contents(path).items()
        if name.endswith(".json")
    ]
    assert starts == [0, 10]
    assert validate(tmp_path / "bound") == []
    # What was not measured does not pass, and what is left is too little.
    write([state], media, tmp_path / "both", ShardsConfig(require=("talking_head<=0.5", "clip_decodes>=1")))
    assert [detail for *_, detail in failures(tmp_path / "both")] == [
        "talking_head is 0.75; shards.require: talking_head<=0.5",
        "clip_decodes was not measured; shards.require: clip_decodes>=1",
    ]
    (end,) = [row for row in rows(tmp_path / "both", Reject) if row.is_video_level]
    assert end.reason is Reason.TOO_FEW_STEPS
    assert end.detail == (
        "1 matched clips with a caption, of those that shards.require allows; a narrative has at least 2"
    )
    assert validate(tmp_path / "both") == []


def test_a_video_that_breaks_a_bound_is_rejected(media: Media, tmp_path: Path) -> None:
    states = [
        with_scores(Story(name), media, {(None, "step_order"): score})
        for name, score in (("good", 0.9), ("bad", 0.4), ("even", 0.5))
    ] + [make_state(Story("unmeasured"), media), make_state(Story("stopped", stops_at="clips"), media)]
    write(states, media, tmp_path, ShardsConfig(require=("step_order>=0.5",)))
    assert [row.narrative for row in rows(tmp_path, Narrative)] == ["demo-even", "demo-good"]
    assert failures(tmp_path) == [
        ("demo-bad", None, None, "step_order is 0.4; shards.require: step_order>=0.5"),
        ("demo-unmeasured", None, None, "step_order was not measured; shards.require: step_order>=0.5"),
    ]
    assert validate(tmp_path) == []


def test_bounds_are_settings(media: Media) -> None:
    config = apply_settings(ShardsConfig(), ["require=talking_head<=0.5, step_order >= .25"])
    assert [tuple(bound) for bound in config.requirements] == [("talking_head", "<=", 0.5), ("step_order", ">=", 0.25)]
    assert apply_settings(config, ["require="]).requirements == ()
    with pytest.raises(UnknownNameError, match="did you mean 'talking_head'"):
        apply_settings(ShardsConfig(), ["require=talking_heads<=0.5"])
    for wrong in ("talking_head=0.5", "talking_head<0.5", "talking_head", "talking_head<=nan"):
        with pytest.raises(UsageError, match="write a check, >= or <=, and a number"):
            apply_settings(ShardsConfig(), [f"require={wrong}"])


EVIDENCE = Stage(name="evidence", reads=(), writes=Evidence, run=lambda: (), config=ShardsConfig(), version=1)


def with_meanings(story: Story, media: Media, *vectors: list[float]) -> VideoState:
    """The story's state with what its actions mean."""
    state = make_state(story, media)
    told = tuple(
        Evidence(narrative=story.narrative, action_index=index, meaning=meaning_of(np.array(vector, np.float32)))
        for index, vector in enumerate(vectors)
    )
    lineage = state.whole["captions"].lineage
    result = Result("evidence", "0" * 64, story.narrative, told, (), lineage, seconds=0.1)
    return state.with_result(result)


def test_a_recipe_that_another_split_has_is_seen(media: Media, tmp_path: Path) -> None:
    onions, bread, both = [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]
    states = [
        with_meanings(Story("a", num_clips=2), media, onions, onions),
        with_meanings(Story("b", num_clips=2), media, bread, bread),
        with_meanings(Story("c", num_clips=2, split="val", first_shade=3), media, both, both),
        with_meanings(Story("d", num_clips=1), media, both),  # no narrative: it has one step
    ]
    manifest = write(states, media, tmp_path / "a", stages=(*STAGES, EVIDENCE))
    found = [row for row in rows(tmp_path / "a", Check) if row.check in SET_CHECKS]
    assert [(row.narrative, row.clip_index) for row in found] == [("demo-a", None), ("demo-b", None), ("demo-c", None)]
    assert [row.score for row in found] == pytest.approx([0.6, 0.8, 0.8], abs=1e-3)
    assert manifest.splits["val"].num_clips == 2 and validate(tmp_path / "a") == []
    assert not (tmp_path / "a" / "tables" / "evidence.parquet").exists()
    write(states[:2], media, tmp_path / "b", stages=(*STAGES, EVIDENCE))
    assert not [row for row in rows(tmp_path / "b", Check) if row.check in SET_CHECKS]


# ---- other readers: the same number of clips, for narratives of different lengths


def expected(manifest: Manifest) -> dict[str, int]:
    return {name: split.num_clips for name, split in manifest.splits.items()}


def in_a_process_of_its_own(script: str, *arguments: object, home: Path) -> Any:
    """What the script prints as its last line, as JSON. Other readers leave files open and caches about."""
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_plain_tarfile_reads_the_same_clips(mixed: tuple[Path, Manifest]) -> None:
    out, manifest = mixed
    for split, num_clips in expected(manifest).items():
        names = [name for shard in manifest.splits[split].shards for name in contents(out / shard.path)]
        assert len(names) == 3 * num_clips


def test_webdataset_reads_the_same_clips(mixed: tuple[Path, Manifest], tmp_path: Path) -> None:
    out, manifest = mixed
    script = """
import json, sys
import webdataset
samples = list(webdataset.WebDataset(sys.argv[1:], shardshuffle=False))
print(json.dumps([[json.loads(sample["json"])[name] for name in ("narrative", "num_steps")] + sorted(sample)
                  for sample in samples]))
"""
    for split, num_clips in expected(manifest).items():
        urls = [out / shard.path for shard in manifest.splits[split].shards]
        samples = in_a_process_of_its_own(script, *urls, home=tmp_path)
        assert len(samples) == num_clips
        assert all({"json", "mp4", "jpg"} <= set(keys) for _, _, *keys in samples)
        steps = Counter(narrative for narrative, *_ in samples)
        assert all(num_steps == steps[narrative] for narrative, num_steps, *_ in samples)


def test_datasets_reads_the_same_clips(mixed: tuple[Path, Manifest], tmp_path: Path) -> None:
    out, manifest = mixed
    script = """
import json, sys
import datasets
loaded = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])
loaded = loaded.cast_column("mp4", datasets.Video(decode=False)).cast_column("jpg", datasets.Image(decode=False))
found = {}
for split, rows in loaded.items():
    found[split] = [[row["__key__"], row["json"]["video"]["title"], row["json"]["action"]["word_ids"],
                     len(row["mp4"]["bytes"]), row["json"]["lineage"]["speech"]["model"]] for row in rows]
print(json.dumps(found))
"""
    found = in_a_process_of_its_own(script, out, tmp_path / "cache", home=tmp_path)
    counts = expected(manifest)
    assert {split: len(items) for split, items in found.items()} == {
        "train": counts["train"],
        "validation": counts["val"],
    }
    by_key = {item[0]: item[1:] for items in found.values() for item in items}
    # Nulls and values of one field in one set, in whatever order the shards come.
    assert by_key["demo-long-000"][:2] == ["Long one", [0, 2]]
    assert by_key["demo-by-hand-001"][:2] == [None, None]
    assert by_key["demo-long-001"][2] == len(mp4(1, has_audio=True))
    assert by_key["demo-long-001"][3] == "whisper-tiny.en@1"
