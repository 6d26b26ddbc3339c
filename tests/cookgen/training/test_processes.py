"""What needs processes of its own: kills, full disks, and several ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import ROOT
from tests.cookgen.training.test_loop import close, same, weights
from tests.cookgen.training.tinytask import curve, run

# Imports once, then forks a child for every point at which one is to be killed; the last one goes to the end.
KILLER = """
import os, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.cookgen.training.tinytask import run

shards, out = Path(sys.argv[1]), Path(sys.argv[2])

def lines():
    path = out / "metrics.jsonl"
    return path.read_text().count("\\n") if path.exists() else 0

def is_saving():
    return any((out / "checkpoints").glob(".tmp-step-*"))

points = [lambda: lines() >= 1, is_saving, lambda: lines() >= 5, is_saving, lambda: lines() >= 8]
for point in [*points, None]:
    child = os.fork()
    if not child:
        says = []
        run(shards, out, task={"save_s": 0.1, "step_s": 0.02}, says=says, steps=9, ema_decay=0.7)
        print(*[line for line in says if not line.startswith("step")], sep="\\n", flush=True)
        os._exit(0)
    while point is not None and not point():
        time.sleep(0.001)
    if point is not None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else "ended", is_saving(), flush=True)
"""

FULL = """
import resource, sys
from pathlib import Path
from cookgen.errors import OutputError
from tests.cookgen.training.tinytask import run

shards, out = Path(sys.argv[1]), Path(sys.argv[2])
run(shards, out, stop_after=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    run(shards, out)
except OutputError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(run(shards, out).is_finished)
"""


def python(*args: str | Path, env: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-W", "error", *map(str, args)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False, env=os.environ | (env or {})
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_killed_at_any_moment(shards: Path, tmp_path: Path) -> None:
    said = python("-c", KILLER, shards, tmp_path / "killed").splitlines()
    assert [line.split()[0] for line in said].count("killed") == 5
    assert "killed True" in said  # one was killed while it wrote a checkpoint
    run(shards, tmp_path / "whole", steps=9, ema_decay=0.7)
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    for name in ("model", "ema", "optimizer", "rng-0"):
        assert same(weights(tmp_path / "killed", 9, name), weights(tmp_path / "whole", 9, name)), name


def test_a_disk_that_takes_no_more(shards: Path, tmp_path: Path) -> None:
    error, is_finished = python("-c", FULL, shards, tmp_path / "run").splitlines()
    assert "cannot be written (File too large). Choose another --out" in error
    assert is_finished == "True"
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp*"))


def test_a_full_disk(shards: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        from cookgen.errors import OutputError

        run(shards, disk / "run", stop_after=2, validate_every=99)
        (disk / "filler").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 100_000))
        with pytest.raises(OutputError, match=r"the disk is full. Free some space and run again"):
            run(shards, disk / "run", validate_every=99)
        assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step-00000002"]
        (disk / "filler").unlink()
        assert run(shards, disk / "run", keep_last=1).is_finished
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def ranks(shards: Path, *jobs: dict[str, Any]) -> list[str]:
    """Runs the jobs in two processes that torchrun starts."""
    rendezvous = ["--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    module = ["-m", "tests.cookgen.training.tinytask", shards, json.dumps(jobs)]
    env = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return python("-W", "default", "-m", "torch.distributed.run", *rendezvous, *module, env=env).splitlines()


def test_two_ranks(shards: Path, tmp_path: Path) -> None:
    """Two ranks train as one does with twice the batches, replicated or sharded; each goes on where another stopped."""
    task: dict[str, Any] = {"dropout": 0.0}
    batch = {"steps": 6, "batch_size": 1, "accumulation": 2, "ema_decay": 0.8}
    ddp, fsdp, both, bf16 = (tmp_path / name for name in ("ddp", "fsdp", "both", "bf16"))
    unreadable = {"task": {"unreadable": "demo-t5"}, "config": {"batch_size": 1}}
    said = ranks(
        shards,
        {"out": str(ddp), "task": task, "config": batch},
        {"out": str(fsdp), "task": task, "config": batch | {"fsdp": True}},
        {"out": str(both), "task": task, "config": batch | {"stop_after": 2}},
        {
            "out": str(both),
            "task": task,
            "config": batch | {"stop_after": 2, "fsdp": True, "activation_checkpointing": True},
        },
        {"out": str(bf16), "task": task, "config": batch | {"fsdp": True, "precision": "bf16"}},
        {"out": str(tmp_path / "unreadable"), **unreadable},
    )
    assert "\n".join(said).count("all 6 steps are done") == 3, said  # rank 0 alone says it
    # And no rank waits for the other; two processes write, so their lines may run into one.
    assert "\n".join(said).count("FormatError: demo-t5: made unreadable") == 2, said
    run(shards, tmp_path / "one", task=task, **batch | {"accumulation": 4})
    close(ddp, tmp_path / "one")
    close(fsdp, tmp_path / "one")
    close(bf16, fsdp, rtol=0.05)
    for name in ("model", "ema", "optimizer"):
        one, sharded, replicated = (weights(out, 6, name) for out in (tmp_path / "one", fsdp, ddp))
        assert one.keys() == sharded.keys() == replicated.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(sharded[key], tensor, rtol=1e-3, atol=1e-5, msg=f"{name} {key}")
            torch.testing.assert_close(replicated[key], tensor, rtol=1e-3, atol=1e-5, msg=f"{name} {key}")
    # One process goes on with what two wrote, the accumulation its only other setting.
    config = json.loads((both / "config.json").read_text())
    config["training"]["accumulation"] = 4
    (both / "config.json").write_text(json.dumps(config))
    says: list[str] = []
    run(shards, both, task=task, says=says, **batch | {"accumulation": 4})
    assert "written by 2 ranks and now 1" in says[0]
    close(both, tmp_path / "one")
