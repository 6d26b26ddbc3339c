"""The stages on Ray Data's streaming execution: one machine or a cluster, the same program.

Videos stream through a chain of operators, one pool of actors a stage, so that cutting, listening and the model calls
overlap; an actor loads its model once. The rows that travel are the videos' JSON; media stay in the store's media
folder, which all nodes must see, or in a bucket (bucket.py). One actor beside the driver is the only writer of the
store, and deals out the videos: the driver itself holds none of their rows.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # advice to Ray's developers, on our user's terminal
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a late thread must not start a second Ray

import psutil
import ray
import ray.data
import ray.util.metrics
from ray._private import ray_constants
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cookgen.errors import CookgenError, EngineError, UsageError, reason_of
from cookgen.files import canonical_json
from cookgen.records import SourceVideo
from cookgen.runlog import Tally
from pipelines import THREADS
from pipelines.bucket import Bucket
from pipelines.progress import CountedStore, FailuresConfig, Trace, Worker
from pipelines.stage import Places, Result, Stage, VideoState, advance, failure, pending, resume
from pipelines.store import Store

_POLL_SECONDS = 0.5
_MAX_ATTEMPTS = 2  # at a video by itself, of which the worker dies each time; Ray alone would try it for ever
_MAX_BLOCKS = 1000  # of videos that travel together
_SEND_SECONDS = 0.2
_END_SECONDS = 2.0  # for a run that goes no further to end politely
_OBJECT_STORE_BYTES = 256 * 2**20  # rows are small; a local Ray would take a third of the memory
logging.getLogger("ray.data").setLevel(logging.ERROR)
_CHECKOUT = Path(__file__).resolve().parents[1]


class _StoreWriter:
    """The store behind an actor: the only process that writes results. It also deals out the videos."""

    def __init__(
        self,
        out: Path,
        bucket: Bucket | None,
        stages: tuple[Stage, ...],
        sources: Sequence[str],
        failures: FailuresConfig,
        trace: Trace,
    ) -> None:
        self._stages, self._store = {stage.name: stage for stage in stages}, Store(out, bucket)
        self._sources = [SourceVideo.model_validate_json(source) for source in sources]
        surveys = (resume(source, stages, find=self._store.known) for source in self._sources)
        self._counted = CountedStore(self._store, stages, surveys, failures=failures, trace=trace)
        self._failure: Exception | None = None
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._metrics = _Metrics()

    def states(self, orders: Sequence[int]) -> list[tuple[str, str]]:
        """Each video as far as it is kept, and the stages of which something else is kept, under other keys."""
        stages = tuple(self._stages.values())
        found = []
        for source in (self._sources[order] for order in orders):
            state = self._store.state(source, stages)
            known = [name for name in pending(state, stages) if self._store.knows(self._stages[name], source.narrative)]
            found.append((state.to_json(), " ".join(known)))
        return found

    def get(self, stage: str, key: str) -> str | None:
        result = self._counted.get(self._stages[stage], key)
        return None if result is None else result.to_json()

    def put(self, stage: str, worker: Worker, results: Sequence[tuple[str, float]]) -> None:
        for text, ended_s in results:  # also those that come after one that ends the run: they are done
            result = Result.from_json(text, self._stages[stage])
            self._metrics.count(result)
            try:
                self._counted.put(result, worker=worker, ended_s=ended_s)
            except CookgenError as error:
                self.fail(error)
        if self._failure is not None:
            raise self._failure

    def attempt(self, stage: str, narrative: str) -> int:
        """A careful worker begins this stage of this video: for the how-many-th time."""
        self._attempts[stage, narrative] += 1
        return self._attempts[stage, narrative]

    def tallies(self) -> dict[str, Tally]:
        self._store.flush_if_due()
        return self._counted.tallies

    def flush(self) -> None:
        self._counted.flush()

    def fail(self, error: Exception) -> None:
        """Remembers the first error that must end the run: Ray Data does not carry its type to the driver."""
        self._failure = self._failure or error

    def failure(self) -> Exception | None:
        return self._failure


class _Metrics:
    """The run's numbers among Ray's own, which Prometheus can collect."""

    def __init__(self) -> None:
        self._videos = ray.util.metrics.Counter(
            "cookgen_videos", "Videos that a stage is done with", tag_keys=("stage", "outcome")
        )
        self._seconds = ray.util.metrics.Histogram(
            "cookgen_stage_seconds",
            "Seconds that a stage took for a video",
            boundaries=[0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000],
            tag_keys=("stage",),
        )

    def count(self, result: Result) -> None:
        outcome = next((reject.reason.value for reject in result.rejects if reject.is_video_level), "passed")
        self._videos.inc(1, {"stage": result.stage, "outcome": outcome})
        self._seconds.observe(result.seconds, {"stage": result.stage})


class _StoreClient:
    """The way to the store from a worker. What is put goes off at once where the work is slow, and else together."""

    def __init__(self, stage: Stage, writer: Any) -> None:
        self._stage, self._writer, self._worker = stage, writer, Worker.this()
        self._waiting: list[tuple[str, float]] = []
        self._on_their_way: list[Any] = []
        self._sent_at = time.monotonic()

    def get(self, stage: Stage, key: str) -> Result | None:
        text = ray.get(self._writer.get.remote(stage.name, key))
        return None if text is None else Result.from_json(text, stage)

    def put(self, result: Result) -> None:
        self._waiting.append((result.to_json(), time.time()))
        if time.monotonic() - self._sent_at > _SEND_SECONDS:
            self._send()

    def hand_over(self, *, wait: bool) -> None:
        """Sends what waits. Returns when the store has all of it, or else what was sent by the call before."""
        before, self._on_their_way = self._on_their_way, []
        self._send()
        ray.get(before + self._on_their_way if wait else before)

    def _send(self) -> None:
        self._sent_at = time.monotonic()
        if self._waiting:
            self._on_their_way.append(self._writer.put.remote(self._stage.name, self._worker, self._waiting))
            self._waiting = []


class _New:
    """A store of which nothing is kept that could be of use."""

    def __init__(self, client: _StoreClient) -> None:
        self.put = client.put

    def get(self, stage: Stage, key: str) -> None:
        return None


class _StageWorker:
    """One stage in a worker process; its tool is loaded at the first video that needs it."""

    def __init__(self, number: int, stages: tuple[Stage, ...], places: Places, writer: Any) -> None:
        self._stage, self._stages, self._places = stages[number], stages, places
        self._writer, self._client = writer, _StoreClient(stages[number], writer)
        self._tool: Any = None
        # The one before it died, maybe of a video: then each is tried by itself, and what was done is looked up.
        self._is_careful = ray.get_runtime_context().was_current_actor_reconstructed

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        try:
            if "state" not in block:  # the first stage: only the numbers travel before it
                found = ray.get(self._writer.states.remote(block["id"].tolist()))
                states, known = [state for state, _ in found], [names for _, names in found]
            else:
                states, known = list(block["state"]), list(block["known"])
            todo = [VideoState.from_json(state, self._stages) for state in states]
            done = [self._advance(state, names.split()) for state, names in zip(todo, known, strict=True)]
            is_last = self._stage is self._stages[-1]
            self._client.hand_over(wait=is_last)
        except CookgenError as error:
            ray.get(self._writer.fail.remote(getattr(error, "cause", error)))  # .cause: it came from the writer itself
            raise
        return {"state": ["" if is_last else state.to_json() for state in done], "known": known}

    def _advance(self, state: VideoState, known: Sequence[str]) -> VideoState:
        name, narrative = self._stage.name, state.source.narrative
        if name not in pending(state, self._stages):
            return state
        if self._is_careful and ray.get(self._writer.attempt.remote(name, narrative)) > _MAX_ATTEMPTS:
            result = failure(self._stage, state, self._stages, f"a worker of its own died {_MAX_ATTEMPTS} times")
            self._client.put(result)
            return state.with_result(result)
        results = self._client if self._is_careful or name in known else _New(self._client)
        return advance(self._stage, state, self._stages, results=results, tool=self._load)

    def _load(self) -> Any:
        if self._tool is None and self._stage.load is not None:
            self._tool = self._stage.load(self._stage.config, self._places)
        return self._tool


def run(
    sources: Sequence[SourceVideo],
    stages: tuple[Stage, ...],
    *,
    out: Path,
    places: Places,
    address: str | None,
    failures: FailuresConfig,
    trace: Trace,
    show: Callable[[dict[str, Tally]], None],
) -> None:
    """Takes each video through the stages; what comes of it is in the store. Starts a local Ray unless `address` names
    a cluster.

    Raises UsageError where no cluster answers at `address`, and whatever error of the run as a whole (a dead model
    server, a full disk) ended it in a worker; what was done until then is in the store.
    """
    on_term = signal.getsignal(signal.SIGTERM)
    _connect(address)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # ray.init has put its own in its place
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    texts = [canonical_json(source.to_json()) for source in sources]
    writer = (
        ray.remote(_StoreWriter)
        .options(num_cpus=0, scheduling_strategy=here)
        .remote(out, places.bucket, stages, texts, failures, trace)
    )
    consumer = _Consumer(len(sources), stages, places, writer)
    try:
        consumer.start()
        while consumer.is_alive():
            consumer.join(_POLL_SECONDS)
            show(_answer(writer.tallies.remote()))
        _answer(writer.flush.remote())
        if error := _answer(writer.failure.remote()) or consumer.error:
            raise error
    except BaseException as error:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)  # one line of ours says it
        known = _known(error)
        _end(writer, consumer, is_local=address is None, is_dead=isinstance(known, EngineError))
        if known is error:
            raise
        raise known from error
    ray.shutdown()


def _end(writer: Any, consumer: threading.Thread, *, is_local: bool, is_dead: bool) -> None:
    """Ends a run that goes no further. Not by ray.shutdown while Ray Data goes on: its next call would end this
    process at once and without a word, the model servers and Ray's own processes left behind."""
    if not is_dead:
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(writer.flush.remote(), timeout=_END_SECONDS)
    if is_local and (is_dead or consumer.is_alive()):
        _kill_ray()
        return
    with contextlib.suppress(ray.exceptions.RayError):
        ray.kill(writer)  # nothing goes on without it
    consumer.join(_END_SECONDS)
    if not consumer.is_alive():  # else a worker is busy for longer, and ends with this process
        ray.shutdown()


def _kill_ray() -> None:
    """Kills the local Ray, its workers first: those that only just start would look for the raylet for half a minute.
    A polite end would wait for what may be dead."""
    node = ray._private.worker.global_worker.node
    for raylet in node.all_processes.get(ray_constants.PROCESS_TYPE_RAYLET, ()):
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(raylet.process.pid)
            family.suspend()  # no more workers
            for process in family.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
    node.kill_all_processes(check_alive=False, allow_graceful=False)


def _known(error: BaseException) -> BaseException:
    """The error of ours that one of Ray's stands for; every other one as it is."""
    if isinstance(error, ray.exceptions.RayTaskError):  # a full disk that the writer met; or a mistake of ours
        cause: BaseException = error.cause
        return cause if isinstance(cause, CookgenError) else error
    if isinstance(error, ray.exceptions.RayError | ConnectionError):
        return _dead("a process of Ray's died", error)
    return error


def _connect(address: str | None) -> None:
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    # Ray asks for no password: one of this machine alone must not listen on its outward addresses, as Ray's does.
    ray_constants.ENABLE_RAY_CLUSTER = not (address is None or address.startswith("127.0.0.1:"))
    if address is None:
        try:
            ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
        except Exception as error:
            raise _dead("Ray did not start", error) from error
        return
    _probe(address)
    modules = [str(_CHECKOUT / "cookgen"), str(_CHECKOUT / "pipelines")]
    try:
        ray.init(address=address, runtime_env={"py_modules": modules, "env_vars": THREADS}, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address) from error


def _probe(address: str) -> None:
    """Raises UsageError at once where nothing listens; Ray itself would wait for minutes."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise UsageError(f"--ray {address}: a Ray Client address. Run on a node of the cluster, with --ray auto")
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address) from error


def _no_cluster(address: str) -> UsageError:
    return UsageError(
        f"--ray {address}: no Ray cluster answers there. Write auto or HOST:PORT; start one "
        "with `ray start --head`, or leave --ray out to use this machine alone"
    )


class _Consumer(threading.Thread):
    """Takes what Ray Data yields, beside the main thread, which shows progress and stays open to Ctrl-C."""

    def __init__(self, num_videos: int, stages: tuple[Stage, ...], places: Places, writer: Any) -> None:
        super().__init__(daemon=True)
        self._chain = _chain(num_videos, stages, places, writer)
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for _ in self._chain:
                pass
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            self.error = error


def _answer(reference: Any) -> Any:
    """What an actor answers; raises EngineError where what would bring the answer is dead."""
    while True:
        for kind, _ in ray._private.worker.global_worker.node.dead_processes():  # those of a local Ray
            raise _dead(f"Ray's {kind} died")
        with contextlib.suppress(ray.exceptions.GetTimeoutError):
            return ray.get(reference, timeout=_POLL_SECONDS)


def _dead(what: str, error: Exception | None = None) -> EngineError:
    why = f" ({reason_of(error)})" if error else ""
    return EngineError(f"{what}{why}; what was done is kept, the same command goes on from there")


def _gpu_share(stages: tuple[Stage, ...]) -> float:
    """How much of a GPU a stage's worker gets that wants a whole one: a single GPU holds one of each such stage.

    Raises UsageError where there is no GPU: Ray would wait for one for ever.
    """
    wanting = [stage for stage in stages if stage.needs.gpus]
    if not wanting:
        return 0.0
    gpus = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
    if not any(gpus):
        names = " and ".join(stage.name for stage in wanting)
        settings = " ".join(f"{stage.name}.device=cpu" for stage in wanting)
        raise UsageError(f"{names} should run on a GPU, and Ray sees none here; use --set {settings}")
    smallest = float(min(filter(None, gpus)))
    return round(min(1.0, smallest / sum(stage.needs.gpus for stage in wanting)), 4)


def _chain(num_videos: int, stages: tuple[Stage, ...], places: Places, writer: Any) -> Iterator[Any]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    smallest = min(node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    beside_driver = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    # Not ray.data.range, whose tasks need a core of their own: the workers may hold them all.
    numbers = [{"id": number} for number in range(num_videos)]
    dataset = ray.data.from_items(numbers, override_num_blocks=min(num_videos, _MAX_BLOCKS))
    # Every pool holds at least one worker, and one node must have room for them all, for the others may be lost: where
    # it is small, the shares of a core must be smaller.
    share = min(1.0, 0.9 * smallest / sum(stage.needs.cpus for stage in stages))
    gpu_share = _gpu_share(stages)
    for number, stage in enumerate(stages):
        most = stage.needs.workers or max(1, num_cpus // 4)
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=most)
        dataset = dataset.map_batches(
            _StageWorker,
            fn_constructor_args=(number, stages, places, writer),
            batch_size=1 if stage.needs.gpus else None,  # whole blocks; for a GPU Ray Data wants a number
            num_cpus=round(share * stage.needs.cpus, 4),
            num_gpus=gpu_share * stage.needs.gpus or None,
            runtime_env={"py_executable": stage.needs.python} if stage.needs.python else None,
            compute=pool,
            label_selector=beside_driver if stage.name in places.endpoints else None,
        )
    yield from dataset.iter_batches(batch_size=None)
