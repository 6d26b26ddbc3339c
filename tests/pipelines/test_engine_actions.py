"""The actions of several videos at once, many requests each, in both engines, with a server that fails in every way."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle

from cookgen.records import Action, Reason, Reject, SourceVideo, Video, Word
from cookgen.runlog import Tally
from pipelines import engine, inline
from pipelines.progress import FailuresConfig, Trace
from pipelines.stage import Needs, Places, Stage, VideoState, resume
from pipelines.stages import actions
from pipelines.stages.actions import ActionsConfig
from pipelines.store import Store
from tests.chatserver import Reply, chat_server, read_window, shown_window
from tests.pipelines.test_engine import Nothing, probe

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the workers cannot import a test

FOODS = ("leeks", "onions", "radishes", "peas", "pears", "figs", "dates")
NUM_STEPS = 12


@dataclass(frozen=True)
class Server:
    """A test's server as configuration: where the stage finds it."""

    url: str


def hear(video: Video, *, config: Nothing) -> Iterator[Word]:
    food = FOODS[int(video.video_id)]
    text = " ".join(f"Chop the {food}. I do love {food}. Stir {number} {food}." for number in range(NUM_STEPS))
    for number, word in enumerate(text.split()):
        yield Word(
            narrative=video.narrative,
            word_id=number,
            text=word,
            start_s=0.3 * number,
            end_s=0.3 * number + 0.3,
            probability=1,
        )


def stages_of(url: str) -> tuple[Stage, ...]:
    config = ActionsConfig(
        model="any", endpoint=url, window_words=24, overlap_words=8, requests_in_flight=6, timeout_s=3, patience_s=30
    )
    few = Needs(cpus=0.2, workers=1)
    return (
        Stage(name="videos", reads=(SourceVideo,), writes=Video, run=probe, config=Nothing(), version=1, needs=few),
        Stage(name="speech", reads=(Video,), writes=Word, run=hear, config=Nothing(), version=1, needs=few),
        replace(actions.STAGE, config=config),
    )


def sources() -> list[SourceVideo]:
    return [
        SourceVideo(narrative=f"toy-{n}", source="toy", video_id=f"{n}", path=f"{n}.mp4", num_bytes=n + 1, mtime_ns=0)
        for n in range(len(FOODS))
        if n != 3  # which this toy's probe calls truncated
    ]


class Model:
    """Reads windows right, fails now and then, and swaps what two requests that wait together should get."""

    def __init__(self, *, is_swapping: bool = False, awaits_two: bool = False) -> None:
        self.is_swapping = is_swapping
        self.two_videos = threading.Event()  # while it waits for them, Ray has time to start its second worker
        if not awaits_two:
            self.two_videos.set()
        self.draw = random.Random(3)
        self.lock = threading.Lock()
        self.now: Counter[str] = Counter()  # food -> requests that wait
        self.most_videos = self.num_answers = self.num_swapped = 0
        self.held: list[tuple[threading.Event, list[str], str]] = []

    def __call__(self, request: dict[str, Any], number: int) -> Reply:
        tags = [tag for line in shown_window(request)[1] for tag in line]
        (food,) = {food for food in FOODS if any(tag.startswith(food) for tag in tags)}
        with self.lock:
            self.now[food] += 1
            self.most_videos = max(self.most_videos, sum(count > 0 for count in self.now.values()))
            if self.most_videos > 1:
                self.two_videos.set()
            fault = self.draw.random()
        try:
            self.two_videos.wait(2)
            time.sleep(0.01)
            if fault < 0.3:
                return self.draw.choice(
                    [
                        Reply(status=500, body=b"boom"),
                        Reply(drop=True),
                        Reply("{}", cut=20),
                        Reply(status=429, body=b"{}"),
                    ]
                )
            if number == 5:
                return Reply(hang=True)
            said = json.dumps(read_window(request))
            if self.is_swapping and fault < 0.6:
                said = self._swapped(said)
            with self.lock:
                self.num_answers += 1
            return Reply(said)
        finally:
            with self.lock:
                self.now[food] -= 1

    def _swapped(self, own: str) -> str:
        with self.lock:
            if self.held:
                met, theirs, said = self.held.pop()
                theirs.append(own)
                met.set()
                self.num_swapped += 2
                return said
            met, mine = threading.Event(), list[str]()
            self.held.append((met, mine, own))
        met.wait(1)
        with self.lock:
            if not mine:
                self.held.remove((met, mine, own))
        return mine[0] if mine else own


def run(out: Path, model: Model, *, with_ray: bool) -> tuple[list[VideoState], dict[str, Tally]]:
    tallies: dict[str, Tally] = {}
    places = Places(videos=out, media=out, scratch=out)
    with chat_server(model) as server:
        stages = stages_of(server.url)
        if with_ray:
            engine.run(
                sources(),
                stages,
                out=out,
                places=places,
                address=None,
                failures=FailuresConfig(share=1.0),
                trace=Trace(out),
                show=tallies.update,
            )
        else:
            store = Store(out)
            list(inline.run(sources(), stages, results=store, places=places))
            store.flush()
    store = Store(out)
    return [resume(source, stages, find=store.get) for source in sources()], tallies


def rows_of(state: VideoState) -> list[Action | Reject]:
    result = state.whole[actions.NAME]
    return [*result.rows, *result.rejects]  # type: ignore[list-item]


@pytest.mark.full
def test_two_videos_at_once_with_many_requests_each_and_a_failing_server(tmp_path: Path) -> None:
    calm, storm = Model(), Model(awaits_two=True)
    states, _ = run(tmp_path / "inline", calm, with_ray=False)
    stormy, tallies = run(tmp_path / "ray", storm, with_ray=True)
    assert [rows_of(state) for state in stormy] == [rows_of(state) for state in states]
    for state, source in zip(stormy, sources(), strict=True):
        found = [row for row in rows_of(state) if isinstance(row, Action)]
        food = FOODS[int(source.video_id)]
        told = [f"Chop the {food}", *(f"Stir {number} {food}" for number in range(NUM_STEPS))]
        assert Counter(row.text for row in found) == Counter({**dict.fromkeys(told, 1), told[0]: NUM_STEPS})
    assert storm.most_videos == 2
    tally = tallies[actions.NAME]
    num_heard = tally.answer_tokens // 3  # on a busy machine an answer may come after its request has timed out
    assert (tally.prompt_tokens, tally.answer_tokens) == (7 * num_heard, 3 * num_heard)
    assert 0 < num_heard <= storm.num_answers
    assert sum(state.whole[actions.NAME].tokens[0] for state in stormy) == tally.prompt_tokens
    assert tallies["speech"].tokens == ""


@pytest.mark.parametrize("with_ray", [False, pytest.param(True, marks=pytest.mark.full)])
def test_swapped_replies_are_rejects_and_never_another_videos_actions(tmp_path: Path, with_ray: bool) -> None:
    model = Model(is_swapping=True)
    states, _ = run(tmp_path, model, with_ray=with_ray)
    assert model.num_swapped > 0
    reasons = Counter(row.reason for state in states for row in rows_of(state) if isinstance(row, Reject))
    assert reasons[Reason.UNUSABLE_ANSWER] > 0
    assert Reason.INTERNAL_ERROR not in reasons
    for state, source in zip(states, sources(), strict=True):
        ends = 0
        spans = []
        for row in rows_of(state):
            if isinstance(row, Action):
                assert row.text.endswith(FOODS[int(source.video_id)])
                spans.append((row.word_first, row.word_end))
            elif not row.is_video_level:
                first, last = row.detail.split()[1].split("-")
                spans.append((int(first), int(last) + 1))
        for first, end in sorted(spans):  # type: ignore[type-var]
            assert first == ends
            ends = end  # type: ignore[assignment]
        assert ends == 10 * NUM_STEPS
