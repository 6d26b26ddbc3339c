"""Both engines on small stages: same states, same stops, nothing lost, nothing computed twice, errors come through."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray.cloudpickle

from cookgen.errors import ModelServerError, TooManyFailuresError, UsageError
from cookgen.records import Action, Reason, Reject, SourceVideo, Video, Word
from cookgen.runlog import Tally
from pipelines import engine, inline
from pipelines.ffmpeg import ChildKilledError
from pipelines.progress import CountedStore, FailuresConfig, Trace
from pipelines.stage import Places, Stage, VideoState, key_of, lineage_of, pending, resume
from pipelines.store import MAX_ATTEMPTS, Store

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


def run_inline(out: Path, videos: list[SourceVideo]) -> list[VideoState]:
    store = Store(out)
    done = list(inline.run(videos, STAGES, results=store, places=places(out)))
    store.flush()
    return done


def run_ray(
    out: Path,
    videos: list[SourceVideo],
    stages: tuple[Stage, ...] = STAGES,
    *,
    address: str | None = None,
    share: float = 1.0,
    show: Callable[[dict[str, Tally]], None] = lambda tallies: None,
) -> list[VideoState]:
    """Runs, and returns what is kept."""
    engine.run(
        videos,
        stages,
        out=out,
        places=places(out),
        address=address,
        failures=FailuresConfig(share=share, of_last=5),
        trace=Trace(out / ".runs"),
        show=show,
    )
    return [resume(source, stages, find=Store(out).get) for source in videos]


def plain(states: list[VideoState]) -> list[Any]:
    """The states without the seconds that the work took."""
    return [
        (
            state.source,
            {name: (r.key, r.rows, r.rejects, r.lineage) for name, r in state.whole.items() if not r.is_failure},
        )
        for state in states
    ]


def test_the_engines_agree_and_the_next_run_finds_it_all(tmp_path: Path) -> None:
    tallies: dict[str, Tally] = {}
    by_ray = run_ray(tmp_path / "ray", sources(24), show=lambda new: tallies.update(new))
    by_loop = run_inline(tmp_path / "loop", sources(24))
    assert plain(by_ray) == plain(by_loop)
    assert tallies["videos"].rejects == {"truncated": 3}
    assert (tallies["videos"].done, tallies["speech"].total) == (24, 21)
    for out in ("ray", "loop"):
        store = Store(tmp_path / out)
        kept = [resume(source, STAGES, find=store.known) for source in sources(24)]
        unfinished = [state.source.video_id for state in kept if pending(state, STAGES)]
        assert unfinished == ["5", "15"]  # our own mistake is tried again; everything else is kept


def test_a_local_ray_listens_on_this_machine_alone(tmp_path: Path) -> None:
    heard: set[str] = set()

    def look(tallies: dict[str, Tally]) -> None:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found = process.net_connections("tcp")
                heard.update(one.laddr.ip for one in found if one.status == psutil.CONN_LISTEN)

    run_ray(tmp_path, sources(2), show=look)
    assert heard and heard <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_run_is_drawn_as_a_trace_even_where_it_was_killed(tmp_path: Path) -> None:
    run_ray(tmp_path, sources(4))
    [path] = (tmp_path / ".runs").glob("trace-*.json")
    text = path.read_text()
    events = json.loads(text.rstrip().rstrip(",") + "]")
    assert sorted((event["name"], event["args"]["narrative"]) for event in events) == sorted(
        [
            (stage, f"toy-{n}")
            for n in range(4)
            for stage in ("videos", "speech", "actions")
            if n != 3 or stage == "videos"
        ]
    )
    assert all(event["ph"] == "X" and event["dur"] >= 0 and event["tid"] != os.getpid() for event in events)


def test_a_video_that_kills_its_worker_is_given_up_and_the_others_are_not(tmp_path: Path) -> None:
    def die(video: Video, *, config: Nothing) -> Iterator[Word]:
        with (tmp_path / "tries").open("a") as tries:
            tries.write(video.video_id)
        if video.video_id == "1":
            os._exit(139)  # as a decoder that crashes
        yield Word(narrative=video.narrative, word_id=0, text="w", start_s=0, end_s=1, probability=1)

    stages = (STAGES[0], Stage(**{**vars(STAGES[1]), "run": die, "load": None}), STAGES[2])
    done = run_ray(tmp_path, sources(3), stages)
    assert Store(tmp_path).failure(stages[1], key_at(done[1], stages)) == "a worker of its own died 2 times"
    assert [len(done[n].whole["actions"].rows) for n in (0, 2)] == [1, 1]
    assert pending(done[1], stages) == ["speech", "actions"]
    assert (tmp_path / "tries").read_text().count("1") in (2, 3)


def key_at(state: VideoState, stages: tuple[Stage, ...]) -> str:
    """The key of the stage that comes next."""
    stage = next(stage for stage in stages if stage.name in pending(state, stages))
    return key_of(stage, lineage_of(stage, state, stages), state.source)


def test_an_exception_stays_with_its_video(tmp_path: Path) -> None:
    done = run_inline(tmp_path, sources(7))
    (reject,) = done[5].whole["speech"].rejects
    assert (reject.reason, reject.detail) == (Reason.INTERNAL_ERROR, "RuntimeError: nobody foresaw this")
    assert "actions" not in done[5].results
    assert [action.text for action in done[6].whole["actions"].rows] == ["6 w0", "6 w1", "6 w2"]  # type: ignore[attr-defined]


def test_a_video_that_fails_again_and_again_is_left_alone(tmp_path: Path) -> None:
    for number in range(MAX_ATTEMPTS):
        assert "speech" in pending(resume(sources(7)[5], STAGES, find=Store(tmp_path).known), STAGES), number
        run_inline(tmp_path, sources(7))
    store = Store(tmp_path)
    state = resume(sources(7)[5], STAGES, find=store.known)
    assert pending(state, STAGES) == []
    assert state.results["speech"].reasons == ("internal_error",)
    assert [kept.narrative for kept in store.drop(lambda kept: "internal_error" in kept.reasons)] == ["toy-5"]
    store.drop_failures()
    assert "speech" in pending(resume(sources(7)[5], STAGES, find=Store(tmp_path).known), STAGES)


def test_what_can_pass_is_tried_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.stage.RETRY_PAUSES_S", (0.0, 0.0))
    tries: list[str] = []

    def stumble(video: Video, *, config: Nothing) -> Iterator[Word]:
        tries.append(video.video_id)
        yield Word(narrative=video.narrative, word_id=len(tries), text="w", start_s=0, end_s=1, probability=1)
        if video.video_id == "1" or len(tries) < 3:
            raise ChildKilledError("ffmpeg was killed by SIGKILL") if len(tries) % 2 else OSError(errno.ESTALE, "stale")

    stages = (STAGES[0], Stage(**{**vars(STAGES[1]), "run": stumble, "load": None}))
    store = Store(tmp_path)
    good, bad = inline.run(sources(2), stages, results=store, places=places(tmp_path))
    assert tries == ["0", "0", "0", "1", "1", "1"]
    assert [row.word_id for row in good.whole["speech"].rows] == [3]  # type: ignore[attr-defined]
    assert bad.whole["speech"].reasons == ("internal_error",)


@pytest.mark.parametrize("with_ray", [False, True])
def test_a_run_of_which_too_much_fails_stops(tmp_path: Path, with_ray: bool) -> None:
    def fail(video: Video, *, config: Nothing) -> Iterator[Word]:
        if int(video.video_id) % 2:
            raise RuntimeError("the disk is a mess")
        yield Word(narrative=video.narrative, word_id=0, text="w", start_s=0, end_s=1, probability=1)

    stages = (STAGES[0], Stage(**{**vars(STAGES[1]), "run": fail, "load": None}))
    videos = [source for source in sources(40) if not source.video_id.endswith("3")]
    failures = FailuresConfig(share=0.3, of_last=10)
    with pytest.raises(
        TooManyFailuresError, match=r"40 % of the last 10 videos failed at speech: internal_error; stop"
    ):
        if with_ray:
            engine.run(
                videos,
                stages,
                out=tmp_path,
                places=places(tmp_path),
                address=None,
                failures=failures,
                trace=Trace(tmp_path),
                show=lambda tallies: None,
            )
        else:
            counted = CountedStore(Store(tmp_path), stages, [], failures=failures, trace=Trace(tmp_path))
            list(inline.run(videos, stages, results=counted, places=places(tmp_path)))


@pytest.mark.parametrize("with_ray", [False, True])
def test_a_dead_server_ends_the_run_and_keeps_what_was_done(tmp_path: Path, with_ray: bool) -> None:
    stages = (*STAGES[:2], Stage(**{**vars(STAGES[2]), "run": dead_server}))
    store = Store(tmp_path)
    with pytest.raises(ModelServerError, match="does not answer"):
        if with_ray:
            run_ray(tmp_path, sources(2), stages)
        else:
            try:
                list(inline.run(sources(2), stages, results=store, places=places(tmp_path)))
            finally:
                store.flush()
    kept = resume(sources(1)[0], STAGES, find=Store(tmp_path).known)
    assert {"videos", "speech"} <= kept.results.keys()


def test_only_what_hangs_on_a_change_is_computed(tmp_path: Path) -> None:
    run_inline(tmp_path, sources(3))
    store = Store(tmp_path)
    retitled = [source.model_copy(update={"title": "Soup", "mtime_ns": 9}) for source in sources(3)]
    counted = CountedStore(store, STAGES, [], failures=FailuresConfig(), trace=Trace(tmp_path))
    list(inline.run(retitled, STAGES, results=counted, places=places(tmp_path)))
    assert counted.tallies["videos"].reused == 0  # the file was touched, so it is read again
    # ... and found the same: what comes after is kept, also for one that never saw the first.
    assert (counted.tallies["speech"].reused, counted.tallies["actions"].reused) == (3, 3)
    newer = (STAGES[0], Stage(**{**vars(STAGES[1]), "version": 2}), STAGES[2])
    kept = resume(sources(1)[0], newer, find=store.known)
    assert list(kept.results) == ["videos"]


def test_what_was_kept_under_another_key_is_found_by_ray_too(tmp_path: Path) -> None:
    run_inline(tmp_path, sources(3))
    tallies: dict[str, Tally] = {}
    touched = [source.model_copy(update={"mtime_ns": 9}) for source in sources(3)]
    run_ray(tmp_path, touched, show=lambda new: tallies.update(new))
    assert [tallies[name].reused for name in ("videos", "speech", "actions")] == [0, 3, 3]


def test_a_row_of_another_video_is_a_mistake_that_is_seen(tmp_path: Path) -> None:
    def swap(source: SourceVideo, *, config: Nothing) -> Iterator[Video | Reject]:
        yield from probe(source.model_copy(update={"narrative": "toy-other"}), config=config)

    stages = (Stage(**{**vars(STAGES[0]), "run": swap}),)
    with pytest.raises(AssertionError, match="a row of toy-other among those of toy-0"):
        list(inline.run(sources(1), stages, results=Store(tmp_path), places=places(tmp_path)))


def test_a_stage_for_a_gpu_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    stages = tuple(replace(stage, needs=replace(stage.needs, gpus=1.0)) for stage in STAGES[:2])
    with pytest.raises(UsageError, match=r"videos and speech should run on a GPU, .* --set videos.device=cpu speech"):
        run_ray(tmp_path, sources(2), stages)


@pytest.mark.full
def test_two_stages_share_one_gpu(tmp_path: Path) -> None:
    stages = tuple(replace(stage, needs=replace(stage.needs, gpus=1.0)) for stage in STAGES[:2])
    node = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--num-gpus=1", "--port=0", "--block"]
    node += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--num-cpus=2"]
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as short,  # sockets lie in it
        subprocess.Popen([*node, f"--temp-dir={short}"], stdout=subprocess.PIPE, text=True) as head,
    ):
        try:
            assert head.stdout is not None
            said = (re.search(r"--address='(\S+)'", line) for line in head.stdout)
            address = next(filter(None, said))[1]
            done = run_ray(tmp_path, sources(5), stages, address=address)
            assert all(not pending(state, stages) for state in done if state.source.video_id != "3")
        finally:
            head.terminate()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nonsense", "ray://127.0.0.1:10001"])
def test_an_address_without_a_cluster_is_said_at_once(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match=f"--ray {address}: .*--ray"):
        run_ray(tmp_path, [], address=address)
