"""The same training on a Ray cluster, by Ray Train: Ray starts the ranks that torchrun would."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from cookgen.errors import CookgenError, UsageError, reason_of

T = TypeVar("T")
Say = Callable[[str], None]
_POLL_SECONDS = 0.5
_PACKAGE = Path(__file__).resolve().parents[1]
_QUIET = {"logging_level": "ERROR", "log_to_driver": False, "configure_logging": False}
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths mean what they meant
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


class _Mailbox:
    """What the workers tell the driver: Ray alone would neither keep an error's type nor our lines as they are."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._error: CookgenError | None = None

    def say(self, line: str) -> None:
        self._lines.append(line)

    def fail(self, error: CookgenError) -> None:
        self._error = self._error or error

    def take(self) -> tuple[list[str], CookgenError | None]:
        lines, self._lines = self._lines, []
        return lines, self._error


def launch(work: Callable[[Say], T], out: Path, *, num_workers: int, address: str | None = None, say: Say) -> T:
    """Calls `work` in `num_workers` processes, each a rank; returns what rank 0 returned.

    Each has a GPU where the cluster has any, else a CPU.

    work: pickles, and calls `train` with the function that it is given as `say`. out: the run's folder, which all nodes
    must see. address: of a running cluster ("auto", "HOST:PORT"); None starts Ray on this machine.

    A CookgenError of a worker is raised here. Ctrl-C ends the workers at once: the run goes on at its last checkpoint.
    Raises UsageError where no cluster answers, or it has too few CPUs or GPUs.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.train
        from ray.train.torch import TorchTrainer
    except ModuleNotFoundError as error:
        raise UsageError(f"--launcher ray: {error.name} is not installed; run `pip install 'ray[train]'`") from error

    _connect(ray, address)
    try:
        resources = ray.cluster_resources()
        use_gpu = resources.get("GPU", 0) > 0
        kind = "GPU" if use_gpu else "CPU"
        there = int(resources.get(kind, 0))
        if there < num_workers:
            raise UsageError(f"--launcher ray: {num_workers} ranks need a {kind} each, Ray has {there}. Ask for fewer")
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        mailbox = ray.remote(_Mailbox).options(num_cpus=0, label_selector=here).remote()

        def rank() -> T:
            try:
                return work(lambda line: ray.get(mailbox.say.remote(line)))
            except CookgenError as error:
                ray.get(mailbox.fail.remote(error))
                raise

        trainer = TorchTrainer(
            rank,
            scaling_config=ray.train.ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
            run_config=ray.train.RunConfig(
                name="ray",
                storage_path=str(out.resolve() / ".ray"),
                failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        return cast(T, _fitted(ray, trainer, mailbox, say))
    finally:
        ray.shutdown()


def _fitted(ray: Any, trainer: Any, mailbox: Any, say: Say) -> Any:
    """What rank 0 returned. Ray Train works beside the main thread, which passes on lines and stays open to Ctrl-C."""
    results: list[Any] = []
    failures: list[BaseException] = []

    def fit() -> None:
        try:
            results.append(trainer.fit().return_value)
        except BaseException as error:  # noqa: BLE001 - carried to the main thread below
            failures.append(error)

    fitting = threading.Thread(target=fit, daemon=True)
    fitting.start()
    error = None
    while True:
        is_over = not fitting.is_alive()
        lines, error = ray.get(mailbox.take.remote())
        for line in lines:
            say(line)
        if is_over:
            break
        fitting.join(_POLL_SECONDS)
    if failures:
        raise error or failures[0]
    return results[0]


def _connect(ray: Any, address: str | None) -> None:
    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, **_QUIET)
        else:
            ray.init(address=address, runtime_env={"py_modules": [str(_PACKAGE)]}, **_QUIET)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"--launcher ray: no Ray cluster answers at {address} ({reason_of(error)})") from error
