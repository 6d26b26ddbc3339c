"""Both engines on small stages: same states, same stops, nothing lost, nothing computed twice, errors come through."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle

from cookgen.errors import ModelServerError, UsageError
from cookgen.records import Action, Reason, Reject, SourceVideo, Video, Word
from cookgen.runlog import Tally
from pipelines import engine, inline
from pipelines.progress import CountedStore
from pipelines.stage import Places, Stage, VideoState, pending, resume
from pipelines.store import Store

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test


@dataclass(frozen=True)
class Nothing:
    """A stage's configuration with nothing to configure."""


def probe(source: SourceVideo, *, config: Nothing) -> Iterator[Video | Reject]:
    if source.video_id.endswith("3"):
        yield Reject(narrative=source.narrative, path=source.path, stage="videos", reason=Reason.TRUNCATED)
        return
    yield Video(
        **{name: getattr(source, name) for name in ("narrative", "source", "video_id", "path", "num_bytes")},
        sha256=f"{source.num_bytes:064x}",
        duration_s=10,
        start_s=0,
        width=64,
        height=64,
        fps=25,
        video_stream=0,
        audio_stream=None,
        has_audio=False,
        split="train",
    )


def hear(video: Video, *, config: Nothing, tool: list[str]) -> Iterator[Word | Reject]:
    tool.append(video.narrative)  # one list a worker: loaded once
    if video.video_id.endswith("5"):
        raise RuntimeError("nobody foresaw this")
    for number in range(video.num_bytes % 4):
        yield Word(
            narrative=video.narrative, word_id=number, text=f"w{number}", start_s=number / 3, end_s=1, probability=1
        )


def act(video: Video, words: tuple[Word, ...], *, config: Nothing) -> Iterator[Action | Reject]:
    if not words:
        yield Reject(narrative=video.narrative, path=video.path, stage="actions", reason=Reason.NO_ACTIONS)
    for word in words:
        yield Action(
            narrative=video.narrative,
            action_index=word.word_id,
            text=f"{video.video_id} {word.text}",
            start_s=word.start_s,
            end_s=word.end_s,
            origin="asr",
            raw_text=word.text,
            word_first=word.word_id,
            word_end=word.word_id + 1,
        )


def dead_server(video: Video, words: tuple[Word, ...], *, config: Nothing) -> Iterator[Action]:
    raise ModelServerError("http://127.0.0.1:1/v1: does not answer")
    yield


STAGES = (
    Stage(name="videos", reads=(SourceVideo,), writes=Video, run=probe, config=Nothing(), version=1),
    Stage(
        name="speech",
        reads=(Video,),
        writes=Word,
        run=hear,
        config=Nothing(),
        version=1,
        load=lambda config, places: [],
    ),
    Stage(name="actions", reads=(Video, Word), writes=Action, run=act, config=Nothing(), version=1),
)


def sources(count: int) -> list[SourceVideo]:
    return [
        SourceVideo(
            narrative=f"toy-{n}",
            source="toy",
            video_id=f"{n}",
            path=f"{n}.mp4",
            num_bytes=n + 1,
            mtime_ns=0,
            title=f"“{n}”",
        )
        for n in range(count)
    ]


def places(out: Path) -> Places:
    return Places(videos=out, media=out, scratch=out)


def run_inline(out: Path, states: list[VideoState]) -> list[VideoState]:
    store = Store(out)
    done = list(inline.run(states, STAGES, results=store, places=places(out)))
    store.flush()
    return done


def plain(states: list[VideoState]) -> list[Any]:
    """The states without the seconds that the work took."""
    return [
        (state.source, {name: (r.key, r.rows, r.rejects, r.lineage) for name, r in state.results.items()})
        for state in states
    ]


def test_the_engines_agree_and_the_next_run_finds_it_all(tmp_path: Path) -> None:
    states = [VideoState(source) for source in sources(24)]
    tallies: dict[str, Tally] = {}
    by_ray = engine.run(
        states,
        STAGES,
        out=tmp_path / "ray",
        places=places(tmp_path),
        address=None,
        show=lambda new: tallies.update(new),
    )
    by_loop = run_inline(tmp_path / "loop", states)
    assert plain(by_ray) == plain(by_loop)
    assert tallies["videos"].rejects == {"truncated": 3}
    assert (tallies["videos"].done, tallies["speech"].total) == (24, 21)
    for out in ("ray", "loop"):
        kept = [resume(source, STAGES, results=Store(tmp_path / out)) for source in sources(24)]
        unfinished = [state.source.video_id for state in kept if pending(state, STAGES)]
        assert unfinished == ["5", "15"]  # our own mistake is tried again; everything else is kept


def test_a_video_that_kills_its_worker_is_given_up_and_the_others_are_not(tmp_path: Path) -> None:
    def die(video: Video, *, config: Nothing) -> Iterator[Word]:
        if video.video_id == "1":
            os._exit(139)  # as a decoder that crashes
        yield Word(narrative=video.narrative, word_id=0, text="w", start_s=0, end_s=1, probability=1)

    stages = (STAGES[0], Stage(**{**vars(STAGES[1]), "run": die, "load": None}), STAGES[2])
    states = [VideoState(source) for source in sources(3)]
    done = engine.run(states, stages, out=tmp_path, places=places(tmp_path), address=None, show=lambda new: None)
    (reject,) = done[1].results["speech"].rejects
    assert (reject.reason, reject.detail) == (Reason.INTERNAL_ERROR, "its worker died 3 times")
    assert [len(done[n].results["actions"].rows) for n in (0, 2)] == [1, 1]
    assert pending(resume(sources(2)[1], stages, results=Store(tmp_path)), stages) == ["speech", "actions"]


def test_an_exception_stays_with_its_video(tmp_path: Path) -> None:
    done = run_inline(tmp_path, [VideoState(source) for source in sources(7)])
    (reject,) = done[5].results["speech"].rejects
    assert (reject.reason, reject.detail) == (Reason.INTERNAL_ERROR, "RuntimeError: nobody foresaw this")
    assert "actions" not in done[5].results
    assert [action.text for action in done[6].results["actions"].rows] == ["6 w0", "6 w1", "6 w2"]


@pytest.mark.parametrize("with_ray", [False, True])
def test_a_dead_server_ends_the_run_and_keeps_what_was_done(tmp_path: Path, with_ray: bool) -> None:
    stages = (*STAGES[:2], Stage(**{**vars(STAGES[2]), "run": dead_server}))
    states = [VideoState(source) for source in sources(2)]
    store = Store(tmp_path)
    with pytest.raises(ModelServerError, match="does not answer"):
        if with_ray:
            engine.run(states, stages, out=tmp_path, places=places(tmp_path), address=None, show=lambda new: None)
        else:
            try:
                list(inline.run(states, stages, results=store, places=places(tmp_path)))
            finally:
                store.flush()
    kept = resume(sources(1)[0], STAGES, results=Store(tmp_path))
    assert {"videos", "speech"} <= kept.results.keys()


def test_only_what_hangs_on_a_change_is_computed(tmp_path: Path) -> None:
    run_inline(tmp_path, [VideoState(source) for source in sources(3)])
    store = Store(tmp_path)
    retitled = [source.model_copy(update={"title": "Soup", "mtime_ns": 9}) for source in sources(3)]
    counted = CountedStore(store, STAGES, [])
    list(inline.run([VideoState(s) for s in retitled], STAGES, results=counted, places=places(tmp_path)))
    assert counted.tallies["videos"].reused == 0  # the file was touched, so it is read again
    assert (counted.tallies["speech"].reused, counted.tallies["actions"].reused) == (3, 3)  # and found the same
    newer = (STAGES[0], Stage(**{**vars(STAGES[1]), "version": 2}), STAGES[2])
    kept = resume(sources(1)[0], newer, results=store)
    assert list(kept.results) == ["videos"]


def test_a_row_of_another_video_is_a_mistake_that_is_seen(tmp_path: Path) -> None:
    def swap(source: SourceVideo, *, config: Nothing) -> Iterator[Video | Reject]:
        yield from probe(source.model_copy(update={"narrative": "toy-other"}), config=config)

    stages = (Stage(**{**vars(STAGES[0]), "run": swap}),)
    with pytest.raises(AssertionError, match="a row of toy-other among those of toy-0"):
        list(inline.run([VideoState(sources(1)[0])], stages, results=Store(tmp_path), places=places(tmp_path)))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense", "ray://127.0.0.1:10001"])
def test_an_address_without_a_cluster_is_said_at_once(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match=f"--ray {address}: .*--ray"):
        engine.run([], STAGES, out=tmp_path, places=places(tmp_path), address=address, show=lambda new: None)
