"""Starts the model server that the run itself needs, keeps it alive, and ends it with the run.

The server is a child process in a process group of its own. A thread watches it: a server that dies, or no longer
answers its health check, is started again on the same port, so that its clients need only ask again. One that keeps
dying is given up.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cookgen import modelstore
from cookgen.config import machinery
from cookgen.errors import ModelServerError

PROGRAM = Path(__file__).with_name("llama_server.py")
LOG_NAME = "llm-server.log"


@dataclass(frozen=True)
class ServerConfig:
    """How the embedded language model server runs; which model it serves is `actions.model`. None of it changes an
    answer: temperature is 0, and requests come one at a time to an empty cache."""

    context_tokens: int = machinery(2048)
    # Two threads wait for each other at every step: 20 times slower as soon as the cores are shared.
    threads: int = machinery(1)
    start_timeout_s: float = machinery(120.0)  # to load the model and answer for the first time
    hung_after_s: float = machinery(60.0)  # a server silent for that long is killed and started again
    max_deaths: int = machinery(4)  # in a row: one that lived for steady_s starts the count anew
    steady_s: float = machinery(60.0)


@contextlib.contextmanager
def serve_llm(config: ServerConfig, *, model: str, log_folder: Path) -> Iterator[str]:
    """Runs the server for the length of the block; yields its base URL, `http://127.0.0.1:PORT/v1`.

    model: a .gguf file, or a name that modelstore.resolve knows as one.
    Its output goes to `llm-server.log` in `log_folder`. Raises ModelError where the model is missing, ModelServerError
    where the server does not start, and where the block failed because the server had been given up.
    """
    server = _Server(config, model=model, path=modelstore.resolve(model).path, log=log_folder / LOG_NAME)
    log_folder.mkdir(parents=True, exist_ok=True)
    server.start()
    try:
        yield server.url
    except ModelServerError as error:
        if server.verdict is not None:
            raise ModelServerError(server.verdict) from error
        raise
    finally:
        server.stop()


class _Server:
    """The child process and the thread that watches it.

    Only that thread starts processes: a child that asked to die with its parent dies with the parent's *thread*.
    """

    def __init__(self, config: ServerConfig, *, model: str, path: Path, log: Path) -> None:
        self.config, self.model, self.path, self.log = config, model, path, log
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.verdict: str | None = None  # why it was given up
        self._settled = threading.Event()  # ready for the first time, or given up
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="llm-server", daemon=True)

    def start(self) -> None:
        """Returns when the server answers; raises ModelServerError when it was given up before."""
        self._thread.start()
        try:
            self._settled.wait()
        except BaseException:  # Ctrl-C while the model loads
            self.stop()
            raise
        if self.verdict is not None:
            self.stop()
            raise ModelServerError(self.verdict)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        deaths = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                end = self._run_once()
            except Exception as error:  # noqa: BLE001 - a thread that ends in silence would leave the run waiting
                end = f"could not be started ({error})"
            if self._stopping.is_set():
                break
            deaths = 1 if time.monotonic() - started > self.config.steady_s else deaths + 1
            # A server that never answered once will not do so the next time.
            if deaths >= self.config.max_deaths or not self._settled.is_set():
                self.verdict = (
                    f"the language model server at {self.url} ({self.model}) {end}"
                    + (f", {deaths} times in a row" if deaths > 1 else "")
                    + f". The end of {self.log}:\n{_tail(self.log)}\n"
                    "Mend what it names, or set actions.endpoint to another server."
                )
                break
            self._stopping.wait(min(0.1 * 2**deaths, 5.0))
        self._settled.set()

    def _run_once(self) -> str:
        """One life of the server; returns how it ended."""
        process = self._spawn()
        try:
            last_answer = time.monotonic()
            is_ready = False
            while not self._stopping.is_set():
                if (code := process.poll()) is not None:
                    return f"died ({_how(code)})"
                if self._answers():
                    last_answer, is_ready = time.monotonic(), True
                    self._settled.set()
                patience_s = self.config.hung_after_s if is_ready else self.config.start_timeout_s
                if time.monotonic() - last_answer > patience_s:
                    return f"did not answer for {patience_s:g} s"
                # wait(), not a sleep: a death is seen at once
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5 if is_ready else 0.05)
            return "was stopped"
        finally:
            _kill(process)

    def _spawn(self) -> subprocess.Popen[bytes]:
        config = self.config
        command = [sys.executable, "-P", str(PROGRAM), "--model", str(self.path), "--alias", self.model]
        command += ["--port", str(self.port), "--context-tokens", str(config.context_tokens)]
        command += ["--threads", str(config.threads), "--parent", str(os.getpid())]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _answers(self) -> bool:
        # No proxies: the environment may name one, and it would be asked for our own loopback address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.port}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.URLError, ValueError):
            return False


def _free_port() -> int:
    """A port that nothing listens on, below those that systems hand out to outgoing connections (32768 and up):
    so that it is still free when the server must come back to it."""
    candidates = random.SystemRandom().sample(range(20000, 32000), 200)
    for port in candidates:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise ModelServerError("no free port between 20000 and 32000 on 127.0.0.1; end what listens there")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the child's whole process group, politely first."""
    for number, patience_s in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
            return


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _tail(log: Path, num_lines: int = 5) -> str:
    with contextlib.suppress(OSError), log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4000))
        return "\n".join(stream.read().decode(errors="replace").splitlines()[-num_lines:])
    return "(no log)"
