"""Starts the language model servers that the run itself needs, keeps them alive, and ends them with the run.

A server is a process of its own: llama.cpp, which installs with the package, or vLLM, which lives in an environment of
its own. Several replicas of one model are several such processes, each on a port, and where there are GPUs each on its
own. Each leads a process group, on a leash (leash.py). A thread watches it: a server that dies, or no longer answers
its health check, is started again on the same port, so that its clients need only ask again. One that keeps dying is
given up.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cookgen import modelstore
from cookgen.config import machinery
from cookgen.errors import ModelServerError, UsageError
from cookgen.pretrained import unpacked_gguf
from pipelines.leash import processes_of

LOG_NAME = "llm-server.log"  # of the first replica; llm-server-2.log of the second
_HERE = Path(__file__).parent
_MEMORY_SECONDS = 5.0
# To end politely. vLLM waits for its workers, who give back shared memory; llama.cpp has nothing to give back.
_GRACE_S = {"llama.cpp": 2, "vllm": 20}
# vLLM looks for nothing outside this machine, and listens on no outward address.
_VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
}
# A weak model that may write spaces between JSON's marks writes them for ever.
_STRUCTURED = '{"backend": "xgrammar", "disable_any_whitespace": true}'


@dataclass(frozen=True)
class ServerConfig:
    """How the language model's servers run; which model they serve is `actions.model`.

    llama.cpp gives the same answer to the same request: temperature is 0, and requests come one at a time to an empty
    cache. vLLM computes requests together, and its last digits, and now and then a word, hang on which: so `kind` is
    part of what the actions are kept under. Nothing else here changes an answer.
    """

    kind: Literal["llama.cpp", "vllm"] = "llama.cpp"
    replicas: int = machinery(1)  # each holds the whole model
    gpus: int = machinery(1)  # of each replica of vLLM, on a machine that has any
    context_tokens: int = machinery(2048)
    # Two threads wait for each other at every step: 20 times slower as soon as the cores are shared.
    threads: int = machinery(1)
    python: str = machinery(".venv-vllm/bin/python")  # vLLM's; a relative path is one of the checkout
    arguments: tuple[str, ...] = machinery(())  # more of vLLM's own: --set server.arguments=--dtype,bfloat16
    start_timeout_s: float = machinery(600.0)  # to load the model and answer for the first time
    hung_after_s: float = machinery(60.0)  # a server silent for that long is killed and started again
    max_deaths: int = machinery(4)  # in a row: one that lived for steady_s starts the count anew
    steady_s: float = machinery(60.0)

    def __post_init__(self) -> None:
        for name in ("replicas", "gpus", "context_tokens", "threads", "max_deaths"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.arguments and self.kind != "vllm":
            raise ValueError(f"arguments {' '.join(self.arguments)!r} are vLLM's; set kind to vllm as well")


def _silent(message: str, **values: Any) -> None:
    """Says nothing."""


@contextlib.contextmanager
def serve_llm(
    config: ServerConfig, *, model: str, log_folder: Path, say: Callable[..., None] = _silent
) -> Iterator[tuple[str, ...]]:
    """Runs the servers for the length of the block; yields the base URL of each, `http://127.0.0.1:PORT/v1`.

    model: a .gguf file, for vLLM also a transformers folder, or a name that modelstore.resolve knows as one of these.
    Their output goes to `llm-server.log`, `llm-server-2.log`, … in `log_folder`; what they took is said at the end.
    Raises ModelError where the model is missing, UsageError where vLLM or its GPUs are, ModelServerError where a server
    does not start, and where the block failed because one had been given up.
    """
    log_folder.mkdir(parents=True, exist_ok=True)
    launches = _launches(config, model, say)
    logs = [LOG_NAME, *(f"llm-server-{number}.log" for number in range(2, config.replicas + 1))]
    servers = [
        _Server(config, launch, model=model, log=log_folder / log) for launch, log in zip(launches, logs, strict=True)
    ]

    def verdict() -> str | None:
        return next((server.verdict for server in servers if server.verdict is not None), None)

    try:
        for server in servers:
            server.start()
        for server in servers:
            server.settled.wait()
        if (why := verdict()) is not None:
            raise ModelServerError(why)
        try:
            yield tuple(server.url for server in servers)
        except ModelServerError as error:
            if (why := verdict()) is not None:
                raise ModelServerError(why) from error
            raise
    finally:
        for server in servers:
            server.stopping.set()
        for server in servers:
            server.join()
        _say_what_they_took(servers, config.kind, say)


@dataclass(frozen=True)
class _Launch:
    """How a server is started: a command that listens on 127.0.0.1:`port`, and what it finds in the environment."""

    command: Sequence[str]
    port: int
    environment: Mapping[str, str]


def _launches(config: ServerConfig, model: str, say: Callable[..., None]) -> list[_Launch]:
    path = modelstore.resolve(model).path
    ports = _free_ports(config.replicas)
    if config.kind == "llama.cpp":
        command = [sys.executable, "-P", str(_HERE / "llama_server.py"), "--model", str(path), "--alias", model]
        command += ["--context-tokens", str(config.context_tokens), "--threads", str(config.threads)]
        return [_Launch([*command, "--port", str(port)], port, os.environ) for port in ports]
    python = _HERE.parent / config.python
    if not python.is_file():
        raise UsageError(f"server.python={config.python}: no such file; make vLLM's environment with `make vllm-env`")
    if path.suffix == ".gguf":
        say(f"{model}: vLLM reads no GGUF: unpacking it, which takes a minute the first time")
        path = unpacked_gguf(path)
    devices = _devices(config)
    # PYTHONPATH is this environment's; vLLM has its own packages.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | _VLLM_ENVIRONMENT
    command = [str(python), "-P", "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"]
    command += ["--model", str(path), "--served-model-name", model, "--max-model-len", str(config.context_tokens)]
    command += ["--structured-outputs-config", _STRUCTURED, "--disable-access-log-for-endpoints", "/health"]
    if devices:
        command += ["--tensor-parallel-size", str(config.gpus)]
        places = [{"CUDA_VISIBLE_DEVICES": names} for names in devices]
    else:
        # Compiling for a CPU takes longer than it saves, and bfloat16 is slow on most.
        command += ["--enforce-eager", "--dtype", "float32"]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"} | environment
        places = [{"OMP_NUM_THREADS": str(config.threads)}] * config.replicas
    return [
        _Launch([*command, "--port", str(port), *config.arguments], port, environment | place)
        for port, place in zip(ports, places, strict=True)
    ]


def _devices(config: ServerConfig) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each replica; none on a machine without a GPU."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        try:
            listing = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError):
            return []
        found = [str(number) for number, _ in enumerate(re.findall(r"^GPU ", listing, re.MULTILINE))]
    else:
        found = [name.strip() for name in named.split(",") if re.match(r"\s*\w", name)]  # "" and "-1" mean none
    needed = config.replicas * config.gpus
    if found and len(found) < needed:
        raise UsageError(
            f"server.replicas={config.replicas} with server.gpus={config.gpus} each need {needed} GPUs, and "
            f"{len(found)} can be seen ({', '.join(found)}); set one of them lower"
        )
    return [",".join(found[first : first + config.gpus]) for first in range(0, needed, config.gpus)] if found else []


class _Server:
    """A child process and the thread that watches it.

    Only that thread starts processes: a child that asked to die with its parent dies with the parent's *thread*.
    """

    def __init__(self, config: ServerConfig, launch: _Launch, *, model: str, log: Path) -> None:
        self.config, self.launch, self.model, self.log = config, launch, model, log
        self.url = f"http://127.0.0.1:{launch.port}/v1"
        self.verdict: str | None = None  # why it was given up
        self.peak_bytes = 0
        self.lives = 0
        self.settled = threading.Event()  # ready for the first time, or given up
        self.stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="llm-server", daemon=True)

    def start(self) -> None:
        """Returns at once; `settled` says when it answers or was given up."""
        self._thread.start()

    def join(self) -> None:
        """Returns when the process is gone, after `stopping` was set."""
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        deaths = 0
        while not self.stopping.is_set():
            started = time.monotonic()
            was_killed = False
            try:
                end, was_killed = self._run_once()
            except Exception as error:  # noqa: BLE001 - a thread that ends in silence would leave the run waiting
                end = f"could not be started ({error})"
            if self.stopping.is_set():
                break
            deaths = 1 if time.monotonic() - started > self.config.steady_s else deaths + 1
            # A server that never answered once will not do so the next time, unless something from outside ended it.
            if deaths >= self.config.max_deaths or not (self.settled.is_set() or was_killed):
                self.verdict = (
                    f"the language model server at {self.url} ({self.model}) {end}"
                    + (f", {deaths} times in a row" if deaths > 1 else "")
                    + f". The end of {self.log}:\n{_tail(self.log)}\n"
                    "Mend what it names, or set actions.endpoint to another server."
                )
                break
            self.stopping.wait(min(0.1 * 2**deaths, 5.0))
        self.settled.set()

    def _run_once(self) -> tuple[str, bool]:
        """One life of the server; returns how it ended, and whether it was killed from outside."""
        grace_s = _GRACE_S[self.config.kind]
        process = self._spawn(grace_s)
        self.lives += 1
        try:
            last_answer = time.monotonic()
            weighed = 0.0
            is_ready = False
            while not self.stopping.is_set():
                if (code := process.poll()) is not None:
                    return f"died ({_how(code)})", code == -signal.SIGKILL
                if self._answers():
                    last_answer, is_ready = time.monotonic(), True
                    self.settled.set()
                    if last_answer - weighed > _MEMORY_SECONDS:
                        self.peak_bytes = max(self.peak_bytes, _memory_bytes(process.pid))
                        weighed = last_answer
                patience_s = self.config.hung_after_s if is_ready else self.config.start_timeout_s
                if time.monotonic() - last_answer > patience_s:
                    return f"did not answer for {patience_s:g} s", False
                # wait(), not a sleep: a death is seen at once
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.5 if is_ready else 0.05)
            self.peak_bytes = max(self.peak_bytes, _memory_bytes(process.pid))
            return "was stopped", False
        finally:
            _kill(process, patience_s=grace_s + 5)

    def _spawn(self, grace_s: int) -> subprocess.Popen[bytes]:
        leash = [sys.executable, "-I", str(_HERE / "leash.py"), str(os.getpid()), str(grace_s)]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*leash, *self.launch.command],
                env=self.launch.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        # No proxies: the environment may name one, and it would be asked for our own loopback address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{self.launch.port}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.URLError, ValueError):
            return False


def _say_what_they_took(servers: Sequence[_Server], kind: str, say: Callable[..., None]) -> None:
    gib = sum(server.peak_bytes for server in servers) / 2**30
    restarts = sum(max(0, server.lives - 1) for server in servers)
    lost = [server for server in servers if server.verdict is not None]
    if gib:  # else none of them ever answered, and the error says why
        say(
            f"language model: {len(servers)} x {kind}, at most {gib:.1f} GiB of memory, {restarts} restarts"
            + "".join(f"; the one of {server.log} was given up" for server in lost),
            servers=len(servers),
            peak_gib=gib,
            restarts=restarts,
            given_up=len(lost),
        )


def _memory_bytes(group: int) -> int:
    """What the processes of a group hold in memory now, shared pages counted once (PSS)."""
    total = 0
    for pid in processes_of(group):
        with contextlib.suppress(OSError):
            found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(found[1]) * 1024 if found else 0
    return total


def _free_ports(number: int) -> list[int]:
    """Ports that nothing listens on, below those that systems hand out to outgoing connections (32768 and up): so that
    they are still free when the servers must come back to them."""
    ports: list[int] = []
    for port in random.SystemRandom().sample(range(20000, 32000), 200 + number):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == number:
            return ports
    raise ModelServerError(f"no {number} free ports between 20000 and 32000 on 127.0.0.1; end what listens there")


def _kill(process: subprocess.Popen[bytes], *, patience_s: float) -> None:
    """Ends the leash and what is on it, politely first."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience_s)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # where the leash itself was killed
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10.0)


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
