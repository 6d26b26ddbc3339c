"""A Ray cluster of several nodes on this machine alone: `python -m pipelines.cluster up|down`.

up      starts a head and other nodes, and leaves them running; nothing of them listens beyond 127.0.0.1
down    ends exactly the processes that `up` started, and no other Ray
node    one node in the foreground: what `up` starts, each in a session of its own (setsid). Whatever a node starts
        stays in its session, and is found there even when it outlives the node's first process

FOLDER/cluster.json     who runs: the head's address, and the first process of each node, the head's first
FOLDER/0/ FOLDER/0.log  the head's Ray session and what it said; 1, 2, … are the other nodes'
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cookgen.commands import run_command
from cookgen.errors import InputError, OutputInUseError, UsageError
from cookgen.files import canonical_json, explained, lock_held, write_atomic

_HOST = (
    "127.0.0.1"  # Ray binds what it serves to this address alone when it is the node's; to all of them with any other
)
_FOLDER = Path(tempfile.gettempdir()) / f"cookgen-cluster-{os.getuid()}"
_MAX_FOLDER_BYTES = 40  # Ray puts up to 66 more behind it, and the path of a Unix socket has at most 107
_OBJECT_STORE_BYTES = 256 * 2**20  # rows are small; Ray would take a third of the memory for each node
_IS_UP = "alive"  # a node's word, when it is registered with the head
_START_TIMEOUT_S = 120.0
_STOP_PATIENCE_S = 10.0
_CHECKOUT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Node:
    """The first process of a node, which leads the session that all processes of the node are in."""

    pid: int
    started: int  # in clock ticks since the machine's start: tells it from a later process with its pid


@dataclass(frozen=True)
class Cluster:
    """What `up` started: the head's address, and the nodes, the head first."""

    address: str
    nodes: tuple[Node, ...]

    def save(self, folder: Path) -> None:
        write_atomic(folder / "cluster.json", canonical_json(asdict(self)))

    @staticmethod
    def load(folder: Path) -> Cluster | None:
        """The cluster that was started in the folder, running or not. Raises InputError where the file is damaged."""
        path = folder / "cluster.json"
        try:
            values = json.loads(path.read_bytes())
            return Cluster(values["address"], tuple(Node(**node) for node in values["nodes"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); end the cluster's processes yourself and delete it"
            ) from error


def up(*, nodes: int = 2, cpus_per_node: int = 1, port: int = 6379, folder: Path = _FOLDER) -> int:
    """Starts a Ray cluster of several nodes on this machine; they run until `down`, and can be reached from here alone.

    Args:
        nodes: How many, the head among them.
        cpus_per_node: How many CPUs each is said to have; nothing stops their sum from being more than there are.
        port: The head's port.
        folder: Where the nodes' sockets, logs and pids are; each folder can have a cluster of its own.
    """
    if nodes < 1:
        raise UsageError(f"--nodes {nodes}: must be at least 1")
    if cpus_per_node < 1:
        raise UsageError(f"--cpus-per-node {cpus_per_node}: must be at least 1")
    if not 1024 <= port <= 65535:
        raise UsageError(f"--port {port}: must be between 1024 and 65535")
    folder = folder.absolute()
    if len(os.fsencode(folder)) > _MAX_FOLDER_BYTES:
        raise UsageError(
            f"--folder {folder}: its path has more than {_MAX_FOLDER_BYTES} bytes, and Ray's sockets could not lie in "
            "it; choose a shorter one"
        )
    with lock_held(folder / "lock", folder, choose="--folder"):
        cluster = Cluster.load(folder)
        if cluster is not None:
            if any(map(_processes, cluster.nodes)):
                pids = ", ".join(str(node.pid) for node in cluster.nodes)
                raise OutputInUseError(
                    f"{folder}: a cluster of {len(cluster.nodes)} nodes at {cluster.address} runs there (processes "
                    f"{pids}). Use it, end it with `{_command('down', folder)}`, or choose another --folder and --port"
                )
            _forget(cluster, folder)  # it ended without `down`
        _require_free(port)
        cluster = _start(nodes, port=port, cpus=cpus_per_node, folder=folder)
    _say(f"{nodes} nodes run, with {cpus_per_node} CPU each, until `{_command('down', folder)}`. Use them:")
    _say(f"make shards RAY={cluster.address}")
    return 0


def down(*, folder: Path = _FOLDER) -> int:
    """Ends the cluster that `up` started.

    Args:
        folder: As given to `up`.
    """
    folder = folder.absolute()
    if not (folder / "cluster.json").exists():
        _say(f"{folder}: no cluster was started there")
        return 0
    with lock_held(folder / "lock", folder, choose="--folder"):
        cluster = Cluster.load(folder)
        if cluster is not None:
            num_ended = _end(cluster.nodes)
            _forget(cluster, folder)
            _say(f"{cluster.address}: ended, {num_ended} processes")
    return 0


def node(*, address: str, folder: Path, cpus: int, head: bool = False) -> int:
    """Runs one node of the cluster; ends when it is told to (TERM), or when one of the node's own processes has died.

    Args:
        address: The head's.
        folder: The node's own: nodes that shared one would unpack the code of a run over each other.
        cpus: How many CPUs it is said to have.
        head: Whether it is the head.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"  # a node that is told to end has nothing to hand over
    # What `ray start --block` runs. It cannot be used: it takes 127.0.0.1 for the machine's outward address.
    from ray._private.node import Node as RayNode
    from ray._private.parameter import RayParams

    role = {"gcs_server_port": int(address.rpartition(":")[2]), "include_dashboard": False, "no_monitor": True}
    params = RayParams(
        node_ip_address=_HOST,
        temp_dir=str(folder),
        num_cpus=cpus,
        num_gpus=None if head else 0,  # the machine's GPUs count once
        object_store_memory=_OBJECT_STORE_BYTES,
        include_log_monitor=False,
        # Any free port: several nodes have one address.
        min_worker_port=0,
        max_worker_port=0,
        node_manager_port=0,
        dashboard_agent_listen_port=0,
        **(role if head else {"gcs_address": address}),
    )
    running = RayNode(params, head=head, shutdown_at_exit=True, spawn_reaper=True)
    _say(_IS_UP)
    while not running.dead_processes():
        time.sleep(0.5)
    running.kill_all_processes(check_alive=False, allow_graceful=False)
    return 1


def _start(num_nodes: int, *, port: int, cpus: int, folder: Path) -> Cluster:
    """Starts the nodes, returns when all are alive. Where one does not start, ends them all and raises UsageError."""
    cluster = Cluster(f"{_HOST}:{port}", ())
    children: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(num_nodes):
            child = _spawn(number, cluster.address, cpus=cpus, folder=folder)
            children.append(child)
            cluster = Cluster(cluster.address, (*cluster.nodes, Node(child.pid, _stat(child.pid).started)))
            cluster.save(folder)
            if number == 0:
                _await(child, _log(number, folder))
        for number, child in enumerate(children):
            _await(child, _log(number, folder))
    except BaseException:
        _end(cluster.nodes)
        (folder / "cluster.json").unlink(missing_ok=True)  # the logs stay, to be read
        raise
    return cluster


def _spawn(number: int, address: str, *, cpus: int, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pipelines.cluster", "node", "--address", address, "--cpus", str(cpus)]
    command += ["--folder", str(folder / str(number)), *(["--head"] if number == 0 else [])]
    with explained(folder, "Choose another --folder, or mend its rights"), _log(number, folder).open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=_CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await(child: subprocess.Popen[bytes], log: Path) -> None:
    """Returns when the node is alive. Raises UsageError where it ended, or took too long."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while _IS_UP not in (said := log.read_text(encoding="utf-8", errors="replace").splitlines()):
        if child.poll() is not None or time.monotonic() > deadline:
            end = "did not start in time" if child.returncode is None else f"ended with exit code {child.returncode}"
            last = ([line for line in said if line.strip()] or ["(nothing)"])[-1]
            raise UsageError(f"a node of the cluster {end}, so all were ended. {log} says why; its last line: {last}")
        time.sleep(0.1)


def _end(nodes: Sequence[Node]) -> int:
    """Ends all processes of the nodes, politely first; returns how many there were. One that is gone is no error."""
    found = {node: _processes(node) for node in nodes}
    for leader, pids in found.items():
        for pid in [leader.pid] if leader.pid in pids else pids:  # the first process ends the node's others
            _signal(pid, signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _STOP_PATIENCE_S
        while (left := [pid for node in nodes for pid in _processes(node)]) and time.monotonic() < deadline:
            if number is signal.SIGKILL:
                for pid in left:
                    _signal(pid, number)
            time.sleep(0.1)
    return sum(map(len, found.values()))


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _forget(cluster: Cluster, folder: Path) -> None:
    """Removes what a cluster that has ended left behind."""
    for number in range(len(cluster.nodes)):
        shutil.rmtree(folder / str(number), ignore_errors=True)
        _log(number, folder).unlink(missing_ok=True)
    (folder / "cluster.json").unlink(missing_ok=True)


@dataclass(frozen=True)
class _Stat:
    """What /proc/PID/stat says of a process."""

    state: str
    session: int
    started: int


def _stat(pid: int) -> _Stat:
    """Raises OSError where there is no such process."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return _Stat(state=words[0], session=int(words[3]), started=int(words[19]))


def _processes(node: Node) -> list[int]:
    """The pids of the node's processes that run; none where the pid of its first is another process's by now."""
    running: dict[int, _Stat] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with contextlib.suppress(OSError):  # it has just ended
                running[int(path.name)] = _stat(int(path.name))
    leader = running.get(node.pid)
    if leader is not None and leader.started != node.started:
        return []
    return [
        pid
        for pid, stat in running.items()
        if stat.session == node.pid and stat.started >= node.started and stat.state not in "ZX"
    ]


def _require_free(port: int) -> None:
    """Raises UsageError where something listens at this port; Ray itself would say so in a page of text."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise UsageError(f"--port {port}: {_HOST}:{port} is not free ({error.strerror}); choose another") from error


def _log(number: int, folder: Path) -> Path:
    return folder / f"{number}.log"


def _command(name: str, folder: Path) -> str:
    return f"python -m pipelines.cluster {name}" + ("" if folder == _FOLDER else f" --folder {folder}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    return run_command(
        {"up": up, "down": down, "node": node},
        sys.argv[1:] if args is None else args,
        prog="python -m pipelines.cluster",
        description="A Ray cluster of several nodes on this machine alone.",
    )


if __name__ == "__main__":
    sys.exit(main())
