"""The embedded model server, for real: it answers, comes back where it was, and never outlives its run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from cookgen.errors import ModelError, ModelServerError, UnknownNameError
from cookgen.perception.llm import ChatModel
from pipelines.serve import LOG_NAME, ServerConfig, serve_llm
from pipelines.stages.actions import ActionsConfig

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = {
    "type": "object",
    "properties": {"dish": {"type": "string", "pattern": "^[a-z]{1,12}( [a-z]{1,12}){0,5}$"}},
    "required": ["dish"],
    "additionalProperties": False,
}
QUESTIONS = ("Name a soup.", "What goes with rice?", "Name a soup that is made of beans.")

MODEL = ActionsConfig().model


def servers() -> list[psutil.Process]:
    """The model servers that this process has started and that run."""
    found = psutil.Process().children(recursive=True)
    return [child for child in found if any("llama_server.py" in part for part in _command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def wait_for(holds: Callable[[], bool], *, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def ask(url: str, question: str) -> dict[str, object]:
    chat = ChatModel([url], "smollm2-135m-instruct", timeout_s=60, patience_s=60)
    return chat.complete([{"role": "user", "content": question}], json_schema=SCHEMA, max_tokens=60)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve_llm(ServerConfig(), model=MODEL, log_folder=tmp_path_factory.mktemp("logs")) as url:
        yield url
    assert not servers()


def test_answers_are_the_same_in_any_order_and_after_a_kill_on_the_same_port(url: str) -> None:
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith("/v1")
    first = {question: ask(url, question) for question in QUESTIONS}
    (server,) = servers()
    server.kill()
    again = {question: ask(url, question) for question in reversed(QUESTIONS)}  # the client only asks again
    assert again == first
    (restarted,) = servers()
    assert restarted.pid != server.pid


def test_the_server_leads_a_process_group_of_its_own_and_ends_on_an_error(tmp_path: Path) -> None:
    before = {process.pid for process in servers()}
    with pytest.raises(ZeroDivisionError), serve_llm(ServerConfig(), model=MODEL, log_folder=tmp_path / "logs"):
        (server,) = (process for process in servers() if process.pid not in before)
        assert os.getpgid(server.pid) == server.pid != os.getpgid(0)
        raise ZeroDivisionError
    assert not server.is_running()
    assert b"smollm2-135m-instruct" in (tmp_path / "logs" / LOG_NAME).read_bytes()


def test_a_server_that_hangs_is_replaced(tmp_path: Path) -> None:
    before = {process.pid for process in servers()}
    with serve_llm(ServerConfig(hung_after_s=3), model=MODEL, log_folder=tmp_path) as url:
        (server,) = (process for process in servers() if process.pid not in before)
        server.suspend()
        wait_for(lambda: not server.is_running())
        assert ask(url, QUESTIONS[0])


def test_a_killed_run_leaves_no_server_behind(tmp_path: Path) -> None:
    program = (
        "import time; from pathlib import Path; from pipelines.serve import *\n"
        f"with serve_llm(ServerConfig(), model={MODEL!r}, log_folder=Path({str(tmp_path)!r})):\n"
        "    print('up', flush=True); time.sleep(600)"
    )
    run = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        (server,) = psutil.Process(run.pid).children(recursive=True)
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, timeout_s=5)


def test_a_model_that_cannot_be_loaded_ends_with_the_servers_own_words(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    with (
        pytest.raises(ModelServerError, match=r"actions\.endpoint") as caught,
        serve_llm(ServerConfig(), model=str(broken), log_folder=tmp_path),
    ):
        pass
    assert "died" in str(caught.value)
    assert "broken.gguf" in str(caught.value)


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises((UnknownNameError, ModelError), match="smollm2"),
        serve_llm(ServerConfig(), model="smollm2", log_folder=tmp_path),
    ):
        pass


def test_a_server_that_keeps_dying_is_given_up_and_the_failing_run_says_so(tmp_path: Path) -> None:
    before = {process.pid for process in servers()}

    def new() -> list[psutil.Process]:
        return [process for process in servers() if process.pid not in before]

    config = ServerConfig(max_deaths=2)
    with (
        pytest.raises(ModelServerError, match=r"SIGKILL.*2 times in a row") as caught,
        serve_llm(config, model=MODEL, log_folder=tmp_path) as url,
    ):
        killed = set()
        for _ in range(2):
            wait_for(lambda: any(process.pid not in killed for process in new()))
            for process in new():
                killed.add(process.pid)
                process.kill()
        wait_for(lambda: not new())
        time.sleep(1.5)
        assert not new()
        ChatModel([url], "x", timeout_s=5, patience_s=0.2).complete([], json_schema=SCHEMA, max_tokens=1)
    assert isinstance(caught.value.__cause__, ModelServerError)
