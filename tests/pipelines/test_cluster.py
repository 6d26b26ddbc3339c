"""The local cluster for real: it starts, is found again, and ends with nobody else; and what docker/ names exists."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from ray.scripts.scripts import healthcheck, start

from cookgen.config import apply_settings
from cookgen.errors import CookgenError
from pipelines import cluster
from pipelines.cluster import Cluster, Node
from pipelines.profiles import embedded

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets; pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="cg-", dir="/tmp"))
    yield folder
    run("down", "--folder", folder)
    shutil.rmtree(folder)


def run(*args: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs `python -m pipelines.cluster …` as a user does."""
    command = [sys.executable, "-m", "pipelines.cluster", *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == code, f"exit {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def sleeper() -> tuple[subprocess.Popen[bytes], int]:
    """A process that leads a session, and its start as /proc tells it."""
    child = subprocess.Popen(["sleep", "300"], start_new_session=True)
    return child, cluster._stat(child.pid).started


def test_a_cluster_runs_on_loopback_alone_until_it_is_ended(folder: Path) -> None:
    bystander, _ = sleeper()
    port = free_port()
    assert f"make shards RAY=127.0.0.1:{port}" in run("up", "--port", str(port), "--folder", folder).stdout
    found = Cluster.load(folder)
    assert found is not None
    nodes = [psutil.Process(node.pid) for node in found.nodes]
    processes = [process for node in nodes for process in (node, *node.children(recursive=True))]
    names = [process.name() for process in processes]
    assert (names.count("raylet"), names.count("gcs_server")) == (2, 1)
    listening = [c.laddr for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert port in {place.port for place in listening}
    assert [place.ip for place in listening if place.ip.removeprefix("::ffff:") != "127.0.0.1"] == []

    again = run("up", "--port", str(free_port()), "--folder", folder, code=2)
    assert f"a cluster of 2 nodes at 127.0.0.1:{port} runs there" in again.stderr
    assert again.stderr.count("\n") == 1

    next(p for p in processes if p.name() == "raylet" and p.ppid() == nodes[1].pid).kill()
    psutil.wait_procs([nodes[1]], timeout=60)  # a node whose raylet dies ends; the cluster is still one
    assert "runs there" in run("up", "--port", str(free_port()), "--folder", folder, code=2).stderr

    assert "ended" in run("down", "--folder", folder).stdout
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    assert bystander.poll() is None
    assert [path.name for path in folder.iterdir()] == ["lock"]
    assert "no cluster" in run("down", "--folder", folder).stdout
    bystander.kill()
    bystander.wait()


def test_a_process_that_has_the_pid_of_a_node_by_now_is_left_alone(folder: Path) -> None:
    child, started = sleeper()
    Cluster("127.0.0.1:1", (Node(child.pid, started - 1),)).save(folder)
    assert "ended, 0 processes" in run("down", "--folder", folder).stdout
    assert child.poll() is None
    Cluster("127.0.0.1:1", (Node(child.pid, started),)).save(folder)  # so the next line can fail
    assert "ended, 1 processes" in run("down", "--folder", folder).stdout
    assert child.wait() == -15


def test_what_outlives_the_first_process_of_its_node_is_ended_too(folder: Path) -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 300 & wait"], start_new_session=True)
    started = cluster._stat(child.pid).started
    node = Node(child.pid, started)
    while len(cluster._processes(node)) < 2:
        assert child.poll() is None
    child.kill()
    child.wait()
    (orphan,) = cluster._processes(node)
    Cluster("127.0.0.1:1", (node,)).save(folder)
    run("down", "--folder", folder)
    assert not psutil.pid_exists(orphan) or psutil.Process(orphan).status() == psutil.STATUS_ZOMBIE


def test_a_state_file_whose_processes_are_gone_is_no_cluster(folder: Path) -> None:
    child, started = sleeper()
    child.kill()
    child.wait()
    Cluster("127.0.0.1:1", (Node(child.pid, started),)).save(folder)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = run("up", "--port", str(port), "--folder", folder, code=2).stderr
    assert f"--port {port}: 127.0.0.1:{port} is not free" in said  # so the stale file was no hindrance, and is gone
    assert not (folder / "cluster.json").exists()


def test_a_node_that_does_not_start_is_one_line_and_leaves_nothing(folder: Path) -> None:
    (folder / "0").write_text("a file where the node's folder should be")
    said = run("up", "--port", str(free_port()), "--folder", folder, code=2).stderr
    assert "a node of the cluster ended with exit code 1" in said
    assert str(folder / "0.log") in said
    assert said.count("\n") == 1
    assert not (folder / "cluster.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--nodes", "0"), "--nodes 0: must be at least 1"),
        (("--cpus-per-node", "0"), "--cpus-per-node 0: must be at least 1"),
        (("--port", "80"), "--port 80: must be between 1024 and 65535"),
        (("--folder", f"/tmp/{'a' * 60}"), "choose a shorter one"),
    ],
)
def test_options_that_cannot_be_are_said(options: tuple[str, ...], message: str) -> None:
    assert message in run("up", *options, code=2).stderr


def test_a_damaged_state_file_is_said(folder: Path) -> None:
    (folder / "cluster.json").write_text("{}")
    assert "cluster.json: cannot be read" in run("down", "--folder", folder, code=2).stderr
    (folder / "cluster.json").unlink()


# docker/: nothing of it can be run where no Docker engine is; what can be checked is that all that it names exists.


def faults(docker: Path) -> list[str]:
    """What the files of the folder name that does not exist: targets, variables, options, settings, paths, services."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(docker.iterdir())}
    compose = yaml.safe_load(texts["compose.yaml"])
    _, ray_cluster = yaml.safe_load_all(texts["kuberay.yaml"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = []

    def demand(holds: object, what: str) -> None:
        if not holds:
            found.append(what)

    for name, text in texts.items():
        text = re.sub(r"\\\n#?", " ", text)
        for target, variables in re.findall(r"\bmake ([a-z][a-z-]+)((?: +[A-Z]+=(?:\"[^\"]*\"|\S+))*)", text):
            demand(re.search(rf"^{target}:", makefile, re.MULTILINE), f"{name}: make {target}")
            for word in shlex.split(variables):
                variable, _, value = word.partition("=")
                demand(f"$({variable})" in makefile, f"{name}: {variable}=")
                if variable == "SET":
                    try:
                        apply_settings(embedded("folder"), value.split())
                    except CookgenError as error:
                        found.append(f"{name}: {error}")
        for command, given in re.findall(r"\bray (start|health-check)\b([^\n\]]*)", text):
            known = {
                option for parameter in (start, healthcheck)[command != "start"].params for option in parameter.opts
            }
            found += [
                f"{name}: ray {command} {option}" for option in re.findall(r"--[a-z-]+", given) if option not in known
            ]
        for path in re.findall(r"\b(?:docker|tests)/[\w./]+\w", text):
            inside = docker.parent if path.startswith("docker/") else ROOT
            demand((inside / path).exists(), f"{name}: {path}")
        for host in re.findall(r"http://([a-z]\w+):", text):
            demand(host in compose["services"], f"{name}: no service {host}")
        for image in re.findall(r"^FROM (\S+)|^ +(?:- )?image: (\S+)", text, re.MULTILINE):
            demand(re.fullmatch(r"[\w-]+(/[\w-]+)?:[\w.-]+", "".join(image)), f"{name}: image {''.join(image)}")
        if name.startswith("Dockerfile"):
            copied = [
                word
                for line in re.findall(r"^COPY --chown=cookgen (.*) \S+$", text, re.MULTILINE)
                for word in line.split()
            ]
            found += [f"{name}: COPY {word}" for word in copied if not (ROOT / word).exists()]
            found += [f"{name}: {word} is not copied" for word in needed_to_install(makefile) - set(copied)]
            demand(re.findall(r"^USER (.*)$", text, re.MULTILINE)[-1:] == ["cookgen"], f"{name}: runs as root")
    for name, service in compose["services"].items():
        if "build" in service:
            demand(
                (docker / service["build"]["context"] / service["build"]["dockerfile"]).resolve().exists(),
                f"compose: {name} is built from nothing",
            )
        demand("ports" not in service, f"compose: {name} publishes ports")
        demand("healthcheck" in service, f"compose: {name} has no healthcheck")
    groups = [ray_cluster["spec"]["headGroupSpec"], *ray_cluster["spec"]["workerGroupSpecs"]]
    known = {option for parameter in start.params for option in parameter.opts}
    found += [f"kuberay: {key}" for group in groups for key in group["rayStartParams"] if f"--{key}" not in known]
    return found


def needed_to_install(makefile: str) -> set[str]:
    """The top-level files and folders that `make setup` and `make shards` read."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    (prerequisites,) = re.findall(r"^\$\(READY\): (.*)$", makefile, re.MULTILINE)
    paths = [*prerequisites.split(), project["project"]["readme"], *wheel["packages"], *wheel["force-include"]]
    return {Path(path).parts[0] for path in paths} | {"Makefile", "pipelines"}


def test_all_that_the_docker_files_name_exists() -> None:
    assert faults(ROOT / "docker") == []


@pytest.mark.parametrize(
    ("name", "right", "wrong", "fault"),
    [
        ("Dockerfile.cpu", "make setup", "make set-up", "Dockerfile.cpu: make set-up"),
        ("Dockerfile.cpu", "USER cookgen", "USER root", "Dockerfile.cpu: runs as root"),
        ("Dockerfile.cpu", "constraints.txt README", "README", "Dockerfile.cpu: constraints.txt is not copied"),
        ("Dockerfile.gpu", "COPY --chown=cookgen envs", "COPY --chown=cookgen env", "Dockerfile.gpu: COPY env"),
        ("Dockerfile.gpu", "speech.device", "speech.gadget", "speech.gadget"),
        ("Dockerfile.gpu", "FROM nvidia", "FROM some.host/nvidia", "Dockerfile.gpu: image some.host/nvidia"),
        ("compose.yaml", "VIDEOS=", "FILMS=", "compose.yaml: FILMS="),
        ("compose.yaml", "--include-dashboard", "--with-dashboard", "compose.yaml: ray start --with-dashboard"),
        ("compose.yaml", "http://vllm:8000", "http://llm:8000", "compose.yaml: no service llm"),
        ("compose.yaml", "docker/Dockerfile.cpu", "docker/Dockerfile", "compose.yaml: docker/Dockerfile"),
        ("compose.yaml", "    restart: on-failure", "    ports: ['6379:6379']", "compose: worker publishes ports"),
        ("kuberay.yaml", "object-store-memory", "object-store", "kuberay: object-store"),
    ],
)
def test_that_check_can_fail(tmp_path: Path, name: str, right: str, wrong: str, fault: str) -> None:
    docker = Path(shutil.copytree(ROOT / "docker", tmp_path / "docker"))
    text = (docker / name).read_text()
    assert right in text
    (docker / name).write_text(text.replace(right, wrong))
    assert any(fault in found for found in faults(docker))
