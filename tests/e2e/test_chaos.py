"""A short chaos, the long one is `make chaos`; and that each of its checks can fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import chaos
from tests.chaos import Chaos, Family, differences, digests, leftovers, play_full_disk, results, twice

MARK = ("COOKGEN_CHAOS", "a test's own")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    # Not pytest's own folder: the paths of Ray's sockets must be short.
    with chaos.temporary_place("demo.num_videos=1") as place:
        game = Chaos(place, seed=0)
        game.undisturbed()
        yield game


@pytest.mark.full
def test_a_run_that_is_killed_three_times_ends_as_if_nothing_had_been(undisturbed: Chaos) -> None:
    undisturbed.deck = ["worker", "ffmpeg", "driver"]
    undisturbed.play(3)
    undisturbed.check_lingering()
    assert undisturbed.findings == []
    assert undisturbed.killed.total() == 3


@pytest.mark.full
@pytest.mark.parametrize("engine", ["ray", "inline"])
def test_a_disk_that_fills_up_ends_the_run_in_one_line(undisturbed: Chaos, engine: str) -> None:
    play_full_disk(undisturbed, engine)
    assert undisturbed.findings == []


def test_a_flipped_byte_is_seen(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder / "train").mkdir(parents=True)
        (tmp_path / folder / ".store").mkdir()
        (tmp_path / folder / ".store" / "lock").write_text(folder)
        (tmp_path / folder / "train" / "x.tar").write_bytes(bytes(1000))
    assert differences(digests(tmp_path / "a"), digests(tmp_path / "b")) == []
    with (tmp_path / "b" / "train" / "x.tar").open("r+b") as stream:
        stream.seek(500)
        stream.write(b"\x01")
    assert differences(digests(tmp_path / "a"), digests(tmp_path / "b")) == ["train/x.tar"]
    shutil.rmtree(tmp_path / "b" / "train")
    assert differences(digests(tmp_path / "a"), digests(tmp_path / "b")) == ["train/x.tar"]


ORPHANS = """
import subprocess, sys, time
child = "import time; time.sleep(60)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
subprocess.Popen([sys.executable, "-c", child], start_new_session=True, env={})
time.sleep(60)
"""


def test_what_outlives_its_driver_is_found_and_ended() -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    driver = subprocess.Popen([sys.executable, "-c", ORPHANS], env={MARK[0]: MARK[1]})
    try:
        with Family(psutil.Process(driver.pid), MARK) as family:
            while len(family.alive()) < 3:
                time.sleep(0.1)
            driver.kill()
            driver.wait()
            _, survivors = family.wait_until_gone(1)
            orphans = family.alive()
            assert len(survivors) == len(orphans) == 2
        assert psutil.wait_procs(orphans, timeout=10)[1] == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        driver.kill()
        bystander.wait()
        driver.wait()


def test_one_that_nobody_saw_being_born_is_known_by_its_mark() -> None:
    quick = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    driver = subprocess.Popen([sys.executable, "-c", quick], env={MARK[0]: MARK[1]})
    dead = psutil.Process(driver.pid)
    driver.wait()  # its child has another parent by now
    with Family(dead, MARK) as family:
        assert len(family.alive()) == 1


def part(out: Path, number: int, key: str, seconds: float) -> None:
    path = out / ".store" / "results" / "clips" / f"{number:08d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"narrative": "demo-a", "seconds": seconds})
    pq.write_table(pa.table({"key": [key], "narrative": ["demo-a"], "result": [text]}), path)


def test_a_result_that_was_computed_again_is_seen(tmp_path: Path) -> None:
    part(tmp_path, 0, "k", seconds=1.5)
    part(tmp_path, 1, "k", seconds=1.5)  # merged parts beside those that they come from: no work was done
    assert twice(results(tmp_path)) == []
    part(tmp_path, 2, "k", seconds=1.4)
    assert len(twice(results(tmp_path))) == 1


def test_half_written_files_and_scratch_are_seen(tmp_path: Path) -> None:
    whole = [tmp_path / "train" / "cookgen-train-000000.tar", tmp_path / ".store" / "media" / "ab" / "abcd.mp4"]
    left = [tmp_path / "train" / ".tmp-x.tar", tmp_path / ".store" / "scratch" / "clips-1"]
    for path in (*whole, *left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert leftovers(tmp_path) == sorted(map(str, left))
