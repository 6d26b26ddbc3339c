"""The stages on Ray Data's streaming execution: one machine or a cluster, the same program.

Videos stream through a chain of operators, one pool of actors a stage, so that cutting, listening and the model calls
overlap; an actor loads its model once. The rows that travel are the videos' JSON; media stay in the store's media
folder, which all nodes must see. One actor beside the driver is the only writer of the store.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # advice to Ray's developers, on our user's terminal
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # a late thread must not start a second Ray

import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cookgen.errors import CookgenError, UsageError
from cookgen.runlog import Tally
from pipelines import THREADS
from pipelines.progress import CountedStore
from pipelines.stage import Places, Result, Stage, VideoState, advance, failure, pending
from pipelines.store import Store

_POLL_SECONDS = 0.5
_MAX_ATTEMPTS = 3  # at a video whose worker dies each time; Ray alone would try it for ever
_OBJECT_STORE_BYTES = 256 * 2**20  # rows are small; a local Ray would take a third of the memory
logging.getLogger("ray.data").setLevel(logging.ERROR)
_CHECKOUT = Path(__file__).resolve().parents[1]


class _StoreWriter:
    """The store behind an actor: the only process that writes results."""

    def __init__(self, out: Path, stages: tuple[Stage, ...], states: Sequence[str]) -> None:
        self._stages = {stage.name: stage for stage in stages}
        self._counted = CountedStore(Store(out), stages, [VideoState.from_json(state, stages) for state in states])
        self._failure: Exception | None = None
        self._attempts: Counter[tuple[str, str]] = Counter()

    def get(self, stage: str, key: str) -> str | None:
        result = self._counted.get(self._stages[stage], key)
        return None if result is None else result.to_json()

    def put(self, result: str, stage: str) -> None:
        self._counted.put(Result.from_json(result, self._stages[stage]))

    def attempt(self, stage: str, narrative: str) -> int:
        """The how-many-th time it is that a worker begins this stage of this video."""
        self._attempts[stage, narrative] += 1
        return self._attempts[stage, narrative]

    def tallies(self) -> dict[str, Tally]:
        self._counted.store.flush_if_due()
        return self._counted.tallies

    def flush(self) -> None:
        self._counted.store.flush()

    def fail(self, error: Exception) -> None:
        """Remembers the first error that must end the run: Ray Data does not carry its type to the driver."""
        self._failure = self._failure or error

    def failure(self) -> Exception | None:
        return self._failure


class _StoreClient:
    """The way to the store from a worker."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def get(self, stage: Stage, key: str) -> Result | None:
        text = ray.get(self._writer.get.remote(stage.name, key))
        return None if text is None else Result.from_json(text, stage)

    def put(self, result: Result) -> None:
        ray.get(self._writer.put.remote(result.to_json(), result.stage))


class _StageWorker:
    """One stage in a worker process; its tool is loaded at the first video that needs it."""

    def __init__(self, number: int, stages: tuple[Stage, ...], places: Places, writer: Any) -> None:
        self._stage, self._stages, self._places = stages[number], stages, places
        self._writer, self._results = writer, _StoreClient(writer)
        self._tool: Any = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        state = VideoState.from_json(row["state"], self._stages)
        try:
            if self._stage.name in pending(state, self._stages):
                attempt = ray.get(self._writer.attempt.remote(self._stage.name, state.source.narrative))
                if attempt > _MAX_ATTEMPTS:
                    result = failure(self._stage, state, self._stages, f"its worker died {_MAX_ATTEMPTS} times")
                    self._results.put(result)
                    return {"order": row["order"], "state": state.with_result(result).to_json()}
            state = advance(self._stage, state, self._stages, results=self._results, tool=self._load)
        except CookgenError as error:
            ray.get(self._writer.fail.remote(getattr(error, "cause", error)))  # .cause: it came from the writer itself
            raise
        return {"order": row["order"], "state": state.to_json()}

    def _load(self) -> Any:
        if self._tool is None and self._stage.load is not None:
            self._tool = self._stage.load(self._stage.config, self._places)
        return self._tool


def run(
    states: Sequence[VideoState],
    stages: tuple[Stage, ...],
    *,
    out: Path,
    places: Places,
    address: str | None,
    show: Callable[[dict[str, Tally]], None],
) -> list[VideoState]:
    """Each video after its last stage, in the order given. Starts a local Ray unless `address` names a cluster.

    Raises UsageError where no cluster answers at `address`, and whatever error of the run as a whole (a dead model
    server, a full disk) ended it in a worker; what was done until then is in the store.
    """
    on_term = signal.getsignal(signal.SIGTERM)
    _connect(address)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_term)  # ray.init has put its own in its place
    try:
        return _run(states, stages, out=out, places=places, show=show)
    except BaseException:
        logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)  # one line of ours says it
        raise
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
    if address is None:
        ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet)
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


def _run(
    states: Sequence[VideoState],
    stages: tuple[Stage, ...],
    *,
    out: Path,
    places: Places,
    show: Callable[[dict[str, Tally]], None],
) -> list[VideoState]:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    rows = [{"order": order, "state": state.to_json()} for order, state in enumerate(states)]
    writer = (
        ray.remote(_StoreWriter)
        .options(num_cpus=0, scheduling_strategy=here)
        .remote(out, stages, [row["state"] for row in rows])
    )
    finished: dict[int, VideoState] = {}
    failures: list[BaseException] = []

    def consume() -> None:
        try:
            for row in _chain(rows, stages, places, writer):
                finished[row["order"]] = VideoState.from_json(row["state"], stages)
        except BaseException as error:  # noqa: BLE001 - carried to the main thread below
            failures.append(error)

    # Ray Data is consumed beside the main thread, which shows progress and stays open to Ctrl-C.
    consumer = threading.Thread(target=consume, daemon=True)
    consumer.start()
    while consumer.is_alive():
        consumer.join(_POLL_SECONDS)
        show(ray.get(writer.tallies.remote()))
    ray.get(writer.flush.remote())
    if failures:
        raise ray.get(writer.failure.remote()) or failures[0]
    return [finished[order] for order in range(len(rows))]


def _chain(
    rows: list[dict[str, Any]], stages: tuple[Stage, ...], places: Places, writer: Any
) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    num_cpus = int(ray.cluster_resources().get("CPU", 1))
    beside_driver = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), 1000))
    # Every pool holds at least one worker, so on a small machine the shares of a core must be smaller.
    share = min(1.0, 0.9 * num_cpus / sum(stage.needs.cpus for stage in stages))
    for number, stage in enumerate(stages):
        most = stage.needs.workers or max(1, num_cpus // 4)
        pool = ray.data.ActorPoolStrategy(min_size=1, max_size=most)
        dataset = dataset.map(
            _StageWorker,
            fn_constructor_args=(number, stages, places, writer),
            num_cpus=round(share * stage.needs.cpus, 4),
            num_gpus=stage.needs.gpus or None,
            compute=pool,
            label_selector=beside_driver if stage.name in places.endpoints else None,
        )
    yield from dataset.iter_rows()
