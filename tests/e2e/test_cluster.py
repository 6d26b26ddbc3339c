"""A run on a Ray of several nodes gives the bytes that a plain loop gives, and gives them when a node dies under it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.cluster import Cluster
from pipelines.sources.demo import DemoConfig, make_videos

Run = Callable[..., Any]
Digests = Callable[[Path], dict[str, str]]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_videos(folder, DemoConfig(num_videos=2, min_steps=3, max_steps=3))
    return folder


@pytest.fixture(scope="module")
def expected(pipelines: Run, set_digests: Digests, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The digests of the set that a plain loop makes."""
    out = tmp_path_factory.mktemp("inline") / "set"
    pipelines("run", "--videos", videos, "--out", out, "--engine", "inline")
    return set_digests(out)


@contextlib.contextmanager
def cluster_of(num_nodes: int, *, cpus: int = 1) -> Iterator[Cluster]:
    """A cluster for the length of the block; nodes of one CPU are the smallest there are."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="cg-", dir="/tmp"))  # pytest's own have longer paths than a socket may have
    command = [sys.executable, "-m", "pipelines.cluster"]
    size = ["--nodes", str(num_nodes), "--cpus-per-node", str(cpus), "--port", str(port)]
    try:
        subprocess.run([*command, "up", *size, "--folder", str(folder)], cwd=ROOT, check=True, timeout=300)
        found = Cluster.load(folder)
        assert found is not None
        yield found
    finally:
        subprocess.run([*command, "down", "--folder", str(folder)], cwd=ROOT, check=True, timeout=60)
        shutil.rmtree(folder)


def at_work(raylet: psutil.Process) -> bool:
    """Whether a worker of a stage on this node has a video in its hands; Ray writes it into the process's title."""
    titles = []
    for process in raylet.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            titles += process.cmdline()[:1]
    return any(title.startswith("ray::MapWorker") and title.rstrip().endswith(".submit") for title in titles)


@pytest.mark.full
def test_a_run_completes_when_a_node_dies_under_it(
    set_digests: Digests, videos: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "set"
    with cluster_of(2) as cluster, (tmp_path / "log").open("w+") as log:
        node = psutil.Process(cluster.nodes[1].pid)
        (raylet,) = [child for child in node.children() if child.name() == "raylet"]
        options = ["--videos", str(videos), "--out", str(out), "--ray", cluster.address]
        command = [sys.executable, "-m", "pipelines", "run", *options]
        driver = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not at_work(raylet):
                assert driver.poll() is None, "the run ended before the node was at work"
                time.sleep(0.02)
            raylet.kill()
            psutil.wait_procs([node], timeout=60)
            assert not node.is_running() or node.status() == psutil.STATUS_ZOMBIE
            assert driver.poll() is None, "the run ended before the node was dead"
            code = driver.wait(timeout=500)
        finally:
            driver.kill()
            driver.wait()
        log.seek(0)
        said = log.read()
    assert code == 0, said
    assert set_digests(out) == expected


@pytest.mark.full
@pytest.mark.parametrize(("num_nodes", "cpus"), [(1, 1), (1, 8), (3, 1)])  # of 8: several workers a stage
def test_any_number_of_nodes_and_workers_gives_the_same_bytes(
    pipelines: Run,
    set_digests: Digests,
    videos: Path,
    expected: dict[str, str],
    tmp_path: Path,
    num_nodes: int,
    cpus: int,
) -> None:
    out = tmp_path / "set"
    with cluster_of(num_nodes, cpus=cpus) as cluster:
        pipelines("run", "--videos", videos, "--out", out, "--ray", cluster.address)
    assert set_digests(out) == expected
