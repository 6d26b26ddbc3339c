"""Videos that a list names by id and that the user's folder lacks are fetched from the places that may have them.

    OUT/.store/videos/ID.mp4           what was fetched; a file with such a name is whole and opens as a video
    OUT/.store/videos/.partial/ID/     what is on its way; the next attempt goes on from there
    OUT/.store/links.jsonl             what came of each attempt (ledger.py)

Each place is asked for what the places before it did not have. Nothing is written outside OUT.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import av
from av.stream import Disposition

from cookgen.errors import CookgenError, OutputError
from cookgen.files import atomic_path, explained
from cookgen.runlog import Tally
from pipelines.probe import open_container, overrun
from pipelines.sources.answers import Answer, NotFetchedError, causes, classify
from pipelines.sources.folder import VIDEO_SUFFIXES
from pipelines.sources.ledger import Attempt, Ledger, Outcome, one_line, without_credentials
from pipelines.sources.pacing import Pace, Queue, Task
from pipelines.sources.places import FetchConfig, FetchPlace, Missing

MAX_THREADS = 16
STOP_S = 5.0  # what threads get to end in when the run is interrupted


def fetch_videos(
    places: Sequence[FetchPlace],
    missing: Sequence[Missing],
    config: FetchConfig,
    out: Path,
    *,
    retry: frozenset[Outcome] = frozenset(),
    show: Callable[[Mapping[str, Tally]], None],
) -> dict[str, str]:
    """Fetches what the places have. What was found to be final is not asked for again, but for `retry`.

    Returns, by video id, why one was not asked for: its host was left alone, or the id can be no file's name. Raises
    OutputError where OUT cannot be written. Ctrl-C ends it within seconds; what came so far is kept.
    """
    ledger, tallies = Ledger(links_path(out)), dict[str, Tally]()
    left = {item.video_id for item in missing if item.is_safe}
    skipped: dict[str, str] = {}

    def is_settled(video_id: str, url: str) -> bool:
        last = ledger.of(video_id).get(without_credentials(url, video_id))
        # Asked for again all the same: a file that was fetched and is not there any more.
        return last is not None and last.outcome.is_final and last.outcome not in retry | {Outcome.OK}

    _sweep(fetched_folder(out))
    for place in places:
        urls = sorted((video_id, url) for video_id, url in place.urls.items() if video_id in left)
        tasks = [Task(*item) for item in urls if not is_settled(*item)]
        if tasks:
            tally = tallies[place.name] = Tally(total=len(tasks))
            job = _Job(place, tasks, config, fetched_folder(out), ledger, tally)
            job.run(lambda: show(tallies))
            left -= job.fetched
            skipped |= job.queue.skipped
    unsafe = "not attempted: an id is 1 to 64 of the characters A-Z, a-z, 0-9, _ and -"
    skipped = {video_id: why for video_id, why in skipped.items() if video_id in left}
    return skipped | {item.video_id: unsafe for item in missing if not item.is_safe}


def _sweep(folder: Path) -> None:
    """Removes what a killed run left of a video that is whole by now."""
    for part in (folder / ".partial").glob("*"):
        if any(folder.glob(f"{part.name}.*")):
            shutil.rmtree(part, ignore_errors=True)


def fetched_folder(out: Path) -> Path:
    """Where fetched videos lie."""
    return out / ".store" / "videos"


def links_path(out: Path) -> Path:
    """Where the ledger is."""
    return out / ".store" / "links.jsonl"


class _StoppedError(Exception):
    """The run is being interrupted: the attempt did not end, and nothing is to be remembered."""


class _Job:
    """Fetches the tasks of one place, in threads."""

    def __init__(
        self,
        place: FetchPlace,
        tasks: Sequence[Task],
        config: FetchConfig,
        folder: Path,
        ledger: Ledger,
        tally: Tally,
    ) -> None:
        pace = Pace(
            connections=config.connections,
            sleep_s=place.sleep_s,
            attempts=config.attempts,
            backoff_s=config.backoff_s,
            max_wait_s=config.max_wait_s,
            budget=config.budget,
        )
        self.queue = Queue(tasks, pace)
        self._outcomes: dict[str, Outcome] = {}  # by video id, of the newest attempt
        self._place, self._config, self._folder, self._ledger, self._tally = place, config, folder, ledger, tally

    @property
    def fetched(self) -> set[str]:
        """The ids of the videos that are here now."""
        return {video_id for video_id, outcome in self._outcomes.copy().items() if outcome is Outcome.OK}

    def run(self, show: Callable[[], None]) -> None:
        """Returns when all is done. Raises what a thread raised, and KeyboardInterrupt."""
        started = time.monotonic()

        def tell() -> None:
            outcomes, self._tally.seconds = Counter(self._outcomes.copy().values()), time.monotonic() - started
            self._tally.done, self._tally.rows = outcomes.total(), outcomes.pop(Outcome.OK, 0)
            self._tally.rejects = {outcome.value: count for outcome, count in outcomes.items()}
            show()

        num_threads = min(MAX_THREADS, self.queue.num_useful_threads)
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fetch")
        jobs = [pool.submit(self._work) for _ in range(num_threads)]
        try:
            while wait(jobs, timeout=0.5, return_when=FIRST_EXCEPTION).not_done and not self.queue.is_stopped:
                tell()
        finally:
            self.queue.stop()
            wait(jobs, timeout=STOP_S)
            pool.shutdown(wait=False)
            tell()
        for job in jobs:
            job.result()

    def _work(self) -> None:
        try:
            while (task := self.queue.take()) is not None:
                answer = self._attempt(task)
                self.queue.finish(task, answer)
        except _StoppedError:
            return
        finally:
            self.queue.stop()  # also the others, where this one failed

    def _attempt(self, task: Task) -> Answer:
        started = time.monotonic()
        work = self._folder / ".partial" / task.video_id / self._place.name

        def watch(num_bytes: int) -> None:
            if self.queue.is_stopped:
                raise _StoppedError
            if num_bytes > self._config.max_bytes:
                raise NotFetchedError(Outcome.CORRUPT, f"larger than fetch.max_bytes={self._config.max_bytes}")
            if time.monotonic() - started > self._config.max_video_s:
                raise NotFetchedError(
                    Outcome.NETWORK, f"took longer than fetch.max_video_s={self._config.max_video_s:g}"
                )

        with explained(work):
            work.mkdir(parents=True, exist_ok=True)
        try:
            answer = self._keep(task.video_id, self._place.get(task.video_id, task.url, work, watch))
        except (_StoppedError, CookgenError):
            raise
        except Exception as error:  # one video must not end the run of all the others
            for cause in causes(error):
                if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise OutputError(f"{work}: the disk is full. Free some space and run again") from error
            answer = classify(error)
        if answer.outcome.is_final:
            shutil.rmtree(work, ignore_errors=True)
        shown, query = without_credentials(task.url, task.video_id), urlsplit(task.url).query
        detail = answer.detail.replace(task.url, shown)
        self._ledger.add(
            Attempt(
                video_id=task.video_id,
                place=self._place.name,
                url=shown,
                at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                outcome=answer.outcome,
                detail=one_line(detail.replace(query, "…") if query else detail),
            )
        )
        self._outcomes[task.video_id] = answer.outcome
        return answer

    def _keep(self, video_id: str, path: Path) -> Answer:
        """Gives the file its name, if it is a video."""
        if fault := _fault(path):
            raise NotFetchedError(Outcome.CORRUPT, fault)
        suffix = path.suffix if path.suffix in VIDEO_SUFFIXES else ".mp4"
        with explained(self._folder), atomic_path(self._folder / f"{video_id}{suffix}") as temporary:
            path.replace(temporary)
        shutil.rmtree(self._folder / ".partial" / video_id, ignore_errors=True)
        return Answer(Outcome.OK)


def _fault(path: Path) -> str | None:
    """What keeps a file from being a whole video; None where nothing does."""
    try:
        with open_container(path) as container:
            if not any(not stream.disposition & Disposition.attached_pic for stream in container.streams.video):
                return "no picture in it"
    except av.FFmpegError as error:
        return f"not a video ({error.strerror or type(error).__name__})"
    return overrun(path)
