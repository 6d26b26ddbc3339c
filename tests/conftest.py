"""What all tests share: where the real videos are."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pytest

from cookgen.files import file_sha256

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# pytest runs a process a core; with a team of threads in each they would spin, waiting for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real videos, odd files and real annotations."""
    folder = os.environ.get("COOKGEN_TEST_DATA")
    if not folder:
        pytest.skip("COOKGEN_TEST_DATA is not set: it names the folder of real test videos")
    return Path(folder).resolve()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of a real S3 server of this machine's own."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its file system, to which s3:// leads in this process and its children while the test runs."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # one of an earlier test may lead elsewhere
    return fsspec.filesystem("s3")


class Pipelines(Protocol):
    """Runs `python -m pipelines …` as a user does."""

    def __call__(
        self, *args: str | Path, code: int = 0, timeout_s: float = 500
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def pipelines() -> Pipelines:
    """Runs the command line in a process of its own and asserts its exit code."""

    def run(*args: str | Path, code: int = 0, timeout_s: float = 500) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines", *map(str, args)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == code, f"exit {done.returncode}, not {code}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def set_digests() -> Callable[[Path], dict[str, str]]:
    """The sha256 of every file of a shard set; `.store` and `.runs` are not part of it."""

    def digests(out: Path) -> dict[str, str]:
        files = [
            path
            for path in out.rglob("*")
            if path.is_file() and path.relative_to(out).parts[0] not in (".store", ".runs")
        ]
        return {path.relative_to(out).as_posix(): file_sha256(path) for path in sorted(files)}

    return digests
