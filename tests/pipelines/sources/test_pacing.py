"""Pacing: which link comes next, how long a host is left in peace, and when it is left alone."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.sources.answers import Answer
from pipelines.sources.ledger import Outcome
from pipelines.sources.pacing import Pace, Queue, Task

EAGER = Pace(connections=1, sleep_s=0.0, attempts=3, backoff_s=0.0, max_wait_s=60.0, budget=3)
ANSWERS = {outcome: Answer(outcome) for outcome in Outcome}


def tasks(*ids: str, host: str = "one") -> list[Task]:
    return [Task(video_id, f"https://{host}/{video_id}.mp4") for video_id in ids]


def drain(queue: Queue, answers: dict[str, list[Answer]]) -> list[str]:
    """Takes and finishes until nothing comes; each id's answers in turn, the last one for ever. Returns the ids."""
    taken: list[str] = []
    while (task := queue.take()) is not None:
        given_before = taken.count(task.video_id)
        taken.append(task.video_id)
        queue.finish(task, answers[task.video_id][min(given_before, len(answers[task.video_id]) - 1)])
    return taken


@given(
    st.integers(0, 10_000),
    st.none() | st.floats(0, 1e6),
    st.floats(0.5, 1.5),
    st.floats(0, 10),
    st.floats(0, 1000),
)
def test_the_wait_grows_to_its_bound_and_is_never_shorter_than_asked(
    num: int, asked: float | None, jitter: float, backoff_s: float, max_wait_s: float
) -> None:
    pace = Pace(connections=1, sleep_s=0, attempts=1, backoff_s=backoff_s, max_wait_s=max_wait_s, budget=1)
    wait_s = pace.wait_s(num, asked, jitter=jitter)
    assert wait_s >= (asked or 0.0)
    assert wait_s <= max(max_wait_s * jitter, asked or 0.0)
    assert pace.wait_s(num + 1, asked, jitter=jitter) >= wait_s
    if asked is None and num < 20 and backoff_s * 2.0 ** max(num - 1, 0) <= max_wait_s:
        assert wait_s == pytest.approx(backoff_s * 2.0 ** max(num - 1, 0) * jitter)


def test_what_failed_comes_again_after_the_others_as_often_as_attempts_say() -> None:
    network, late, gone = ANSWERS[Outcome.NETWORK], ANSWERS[Outcome.RATE_LIMITED], ANSWERS[Outcome.REMOVED]
    queue = Queue(tasks("a", "b", "c"), EAGER)
    taken = drain(queue, {"a": [network], "b": [late, ANSWERS[Outcome.OK]], "c": [gone]})
    assert taken == ["a", "b", "c", "a", "b", "a"]
    assert queue.skipped == {}


def test_a_host_that_keeps_refusing_is_left_alone_and_no_other() -> None:
    blocked, ok = ANSWERS[Outcome.BLOCKED], ANSWERS[Outcome.OK]
    queue = Queue([*tasks("a", "b", "c", "d", "e"), *tasks("x", "y", host="two:8")], EAGER)
    answers = {**{i: [blocked] for i in "abcde"}, "x": [ok], "y": [ok]}
    taken = drain(queue, answers)
    assert sorted(taken) == ["a", "b", "c", "x", "y"]
    assert queue.skipped == dict.fromkeys("de", "not attempted: host one blocked after 3 answers")


@pytest.mark.parametrize("between", [outcome for outcome in Outcome if outcome.is_final])
def test_only_refusals_in_a_row_count(between: Outcome) -> None:
    ids = "abcdefg"
    answers = {i: [ANSWERS[between if i in "cf" else Outcome.BLOCKED]] for i in ids}
    assert drain(Queue(tasks(*ids), EAGER), answers) == list(ids)


def test_a_failing_network_is_no_refusal_but_no_answer_either() -> None:
    pace = Pace(connections=1, sleep_s=0.0, attempts=1, backoff_s=0.0, max_wait_s=60.0, budget=2)
    queue = Queue(tasks("a", "b", "c", "d"), pace)
    blocked, network = ANSWERS[Outcome.BLOCKED], ANSWERS[Outcome.NETWORK]
    assert drain(queue, {"a": [blocked], "b": [network], "c": [blocked], "d": [network]}) == ["a", "b", "c"]
    assert queue.skipped == {"d": "not attempted: host one blocked after 2 answers"}


def test_what_was_asked_before_is_not_called_not_attempted() -> None:
    queue = Queue(tasks("a", "b", "c"), EAGER)
    late = Answer(Outcome.RATE_LIMITED)
    assert drain(queue, {"a": [late], "b": [late], "c": [late]}) == ["a", "b", "c"]
    assert queue.skipped == {}


def test_a_host_that_asks_for_too_long_a_wait_is_left_alone_at_once() -> None:
    queue = Queue(tasks("a", "b"), EAGER)
    assert drain(queue, {"a": [Answer(Outcome.RATE_LIMITED, retry_after_s=3600.0)]}) == ["a"]
    assert queue.skipped == {"b": "not attempted: host one blocked: it asks to wait 3600 s"}


def test_no_host_has_more_connections_than_allowed() -> None:
    pace = Pace(connections=2, sleep_s=0.0, attempts=1, backoff_s=0.0, max_wait_s=0.0, budget=1)
    queue = Queue([*tasks("a", "b", "c"), *tasks("x", host="two")], pace)
    assert queue.num_useful_threads == 3
    first = [queue.take() for _ in range(3)]
    assert sorted(task.video_id for task in first if task) == ["a", "b", "x"]
    waiting: list[Task | None] = []
    thread = threading.Thread(target=lambda: waiting.append(queue.take()))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    queue.finish(next(task for task in first if task and task.video_id == "a"), ANSWERS[Outcome.OK])
    thread.join()
    assert waiting == tasks("c")


def test_stop_wakes_who_waits() -> None:
    pace = Pace(connections=1, sleep_s=3600.0, attempts=1, backoff_s=0.0, max_wait_s=0.0, budget=1)
    queue = Queue(tasks("a", "b"), pace)
    task = queue.take()
    assert task is not None
    queue.finish(task, ANSWERS[Outcome.OK])
    waiting: list[Task | None] = []
    thread = threading.Thread(target=lambda: waiting.append(queue.take()))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()  # b's turn comes in an hour
    queue.stop()
    thread.join()
    assert waiting == [None]


def test_whom_a_link_is_asked_of() -> None:
    urls = ["https://me:p@ss@host:8/x", "s3://bucket/a/b.mp4", "file:///videos/a.mp4"]
    assert [Task("a", url).host for url in urls] == ["host:8", "bucket", ""]
