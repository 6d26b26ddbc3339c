"""The model servers: the embedded one for real; it answers, comes back where it was, and never outlives its run.

vLLM's are tried for real by tests/e2e/test_vllm.py, where there is an environment for it; how several are started and
ended is tried here with a stand-in, a small HTTP server that says how it was called.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from cookgen.errors import ModelError, ModelServerError, UnknownNameError, UsageError
from cookgen.perception.llm import ChatModel
from pipelines.serve import LOG_NAME, ServerConfig, serve_llm
from pipelines.stages.actions import ActionsConfig
from tests.processes import all_gone, is_gone

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
    return [child for child in found if any("llama_server.py" in part for part in _command(child)[:3])]


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
    with serve_llm(ServerConfig(), model=MODEL, log_folder=tmp_path_factory.mktemp("logs")) as (url,):
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


def test_the_server_is_in_a_process_group_of_its_own_and_ends_on_an_error_and_says_what_it_took(tmp_path: Path) -> None:
    before = {process.pid for process in servers()}
    said: list[dict[str, Any]] = []
    logs = tmp_path / "logs"
    with (
        pytest.raises(ZeroDivisionError),
        serve_llm(ServerConfig(), model=MODEL, log_folder=logs, say=lambda line, **values: said.append(values)),
    ):
        (server,) = (process for process in servers() if process.pid not in before)
        leash = server.ppid()
        assert os.getpgid(server.pid) == leash != os.getpgid(0)
        held_gib = server.memory_full_info().pss / 2**30
        raise ZeroDivisionError
    assert is_gone(server.pid)
    assert is_gone(leash)
    assert b"smollm2-135m-instruct" in (logs / LOG_NAME).read_bytes()
    assert said == [{"servers": 1, "peak_gib": said[0]["peak_gib"], "restarts": 0, "given_up": 0}]
    assert 0.05 < 0.9 * held_gib <= said[0]["peak_gib"] <= 2 * held_gib


def test_a_server_that_hangs_is_replaced(tmp_path: Path) -> None:
    before = {process.pid for process in servers()}
    with serve_llm(ServerConfig(hung_after_s=3), model=MODEL, log_folder=tmp_path) as (url,):
        (server,) = (process for process in servers() if process.pid not in before)
        server.suspend()
        assert all_gone([server.pid], timeout_s=60)
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
        leash, server = psutil.Process(run.pid).children(recursive=True)
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert all_gone([leash.pid, server.pid], timeout_s=5)


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


def test_a_server_that_is_killed_before_it_ever_answered_is_started_again(tmp_path: Path) -> None:
    before = servers()

    def kill() -> None:
        wait_for(lambda: servers() != before)
        next(process for process in servers() if process not in before).kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with serve_llm(ServerConfig(), model=MODEL, log_folder=tmp_path) as (found,):
        killer.join()
        assert ask(found, QUESTIONS[0])["dish"]


def test_a_server_that_keeps_dying_is_given_up_and_the_failing_run_says_so(tmp_path: Path) -> None:
    before = {process.pid for process in servers()}

    def new() -> list[psutil.Process]:
        return [process for process in servers() if process.pid not in before]

    config = ServerConfig(max_deaths=2)
    with (
        pytest.raises(ModelServerError, match=r"SIGKILL.*2 times in a row") as caught,
        serve_llm(config, model=MODEL, log_folder=tmp_path) as (url,),
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


# Several servers, and how vLLM is called: with a stand-in

STAND_IN = """
import http.server, json, os, subprocess, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
if "--die" in sys.argv:
    sys.exit("engine: out of memory")
engine = subprocess.Popen(["sleep", "600"])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"arguments": sys.argv[1:], "environment": dict(os.environ), "engine": engine.pid}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """In vLLM's place: a python that runs the stand-in, whatever it is told to run."""
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {program} "$@"\n')
    python.chmod(0o755)
    return python


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model as transformers has it, as far as the stand-in looks."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


def told(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=10) as reply:
        return dict(json.loads(reply.read()))


def option(call: dict[str, Any], name: str) -> str:
    arguments = call["arguments"]
    return str(arguments[arguments.index(name) + 1])


def test_each_replica_of_vllm_has_its_own_port_log_and_gpus(
    stand_in: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-a,7")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    config = ServerConfig(kind="vllm", python=str(stand_in), replicas=2, gpus=2, arguments=("--dtype", "bfloat16"))
    with serve_llm(config, model=str(folder), log_folder=tmp_path / "logs") as urls:
        calls = [told(url) for url in urls]
    assert len(set(urls)) == 2
    assert [call["environment"]["CUDA_VISIBLE_DEVICES"] for call in calls] == ["4,5", "GPU-a,7"]
    for call, url in zip(calls, urls, strict=True):
        assert "PYTHONPATH" not in call["environment"]
        assert call["environment"]["HF_HUB_OFFLINE"] == "1"
        assert call["arguments"][:3] == ["-P", "-m", "vllm.entrypoints.openai.api_server"]
        assert call["arguments"][-2:] == ["--dtype", "bfloat16"], "the user's own come last, and win"
        assert option(call, "--host") == "127.0.0.1"
        assert option(call, "--model") == option(call, "--served-model-name") == str(folder)
        assert option(call, "--tensor-parallel-size") == "2"
        assert url == f"http://127.0.0.1:{option(call, '--port')}/v1"
        assert all_gone([call["engine"]])
    assert sorted(log.name for log in (tmp_path / "logs").iterdir()) == ["llm-server-2.log", LOG_NAME]


def test_without_a_gpu_vllm_runs_on_the_cpu(
    stand_in: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = ServerConfig(kind="vllm", python=str(stand_in), threads=2)
    with serve_llm(config, model=str(folder), log_folder=tmp_path) as (url,):
        call = told(url)
    assert "--enforce-eager" in call["arguments"]
    assert "--tensor-parallel-size" not in call["arguments"]
    assert call["environment"]["OMP_NUM_THREADS"] == "2"


def test_a_replica_that_dies_is_started_again_and_the_other_is_left_alone(
    stand_in: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = ServerConfig(kind="vllm", python=str(stand_in), replicas=2)
    said: list[str] = []
    say = lambda line, **values: said.append(line)  # noqa: E731
    with serve_llm(config, model=str(folder), log_folder=tmp_path, say=say) as urls:
        first, second = (told(url)["engine"] for url in urls)
        psutil.Process(first).parent().kill()  # type: ignore[union-attr]
        assert all_gone([first])

        def is_back() -> bool:
            try:
                return bool(told(urls[0])["engine"] != first)
            except OSError:
                return False

        wait_for(is_back)
        assert told(urls[1])["engine"] == second
    assert re.fullmatch(r"language model: 2 x vllm, at most 0\.\d GiB of memory, 1 restarts", said[0])


def test_too_few_gpus_a_missing_environment_and_a_server_that_dies_are_said(
    stand_in: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(**values: Any) -> None:
        config = ServerConfig(kind="vllm", **{"python": str(stand_in), **values})
        with serve_llm(config, model=str(folder), log_folder=tmp_path):
            pass

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(UsageError, match=r"server\.replicas=2 with server\.gpus=2 .* 4 GPUs.* 3 "):
        start(replicas=2, gpus=2)
    with pytest.raises(UsageError, match=r"server\.python=.*none.*make vllm-env"):
        start(python=str(tmp_path / "none"))
    with pytest.raises(ModelServerError, match=r"(?s)exit code 1.*out of memory"):
        start(arguments=("--die",))


# Ray Serve, which is a URL to us: its configuration is only looked at, for it comes without its package


def unknown_to_ray(configuration: str) -> set[str]:
    """The names in a Ray Serve configuration of language models that the installed Ray does not have."""
    package = Path(str(find_spec("ray").submodule_search_locations[0]))  # type: ignore[union-attr, index]
    fields = {
        node.name: {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}  # type: ignore[union-attr]
        for path in ("serve/schema.py", "llm/_internal/serve/core/configs/llm_config.py")
        for node in ast.parse((package / path).read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    builders = {
        node.name
        for node in ast.parse((package / "serve/llm/__init__.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    found = yaml.safe_load(configuration)
    (application,) = found["applications"]
    (model,) = application["args"]["llm_configs"]
    module, builder = application["import_path"].split(":")
    unknown = (
        set(found) - fields["ServeDeploySchema"]
        | set(found["http_options"]) - fields["HTTPOptionsSchema"]
        | set(application) - fields["ServeApplicationSchema"]
        | set(model) - fields["LLMConfig"]
        | set(model["model_loading_config"]) - fields["ModelLoadingConfig"]
        | set(model["deployment_config"]) - fields["DeploymentSchema"]
        | {builder} - builders
    )
    return unknown | {module} - {"ray.serve.llm"}


def test_the_configuration_of_ray_serve_names_what_ray_has() -> None:
    configuration = (ROOT / "docker" / "rayserve.yaml").read_text()
    assert unknown_to_ray(configuration) == set()
    for right in ("num_replicas", "model_source", "build_openai_app", "proxy_location"):
        assert unknown_to_ray(configuration.replace(right, f"{right}_x")) == {f"{right}_x"}


def test_contradictions_are_refused() -> None:
    for wrong in ({"replicas": 0}, {"gpus": 0}, {"arguments": ("--x",)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ServerConfig(**wrong)  # type: ignore[arg-type]
