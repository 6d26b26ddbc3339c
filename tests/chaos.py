"""`make chaos`: kills what a run is made of, at seeded moments, and sees that the set comes out as if nothing had been.

The set is made once undisturbed (inline), then again and again under kills: of the driver, a stage's worker, the
store's writer, Ray's raylet and gcs_server, an ffmpeg, the language model's server; Ctrl-C and a polite kill as well.
Whatever ended the driver, all its processes must be gone within PATIENCE_S; then the same command goes on. A run that
comes to its end is compared, and a new round begins on an empty OUT, until the kills are used up. Last, a disk that
fills up in the middle of a run. Prints JSON lines; what breaks a rule is a line with "finding", and the exit code is 1.

When the kills fall hangs on the seed and on the machine's speed: the order of targets and the delays are the seed's.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import tyro

from cookgen.dataset.validate import validate
from cookgen.files import file_sha256

ROOT = Path(__file__).resolve().parents[1]
# As little as passes through all stages and makes a narrative.
SMALL = ("demo.num_videos=2", "demo.min_steps=3", "demo.max_steps=3", "clips.size_px=112", "shards.min_steps=1")
TARGETS = ("driver", "interrupt", "terminate", "worker", "writer", "raylet", "gcs", "ffmpeg", "llm")
DRIVER_ENDS = {"driver": (-9,), "interrupt": (130,), "terminate": (130,)}
RUN_ENDS = (
    *DRIVER_ENDS,
    "writer",
    "raylet",
    "gcs",
    "full disk",
)  # a run may end of these, in one line; of the others it may not
SIGNALS = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM}  # of the others: SIGKILL
ONLY_WITH_RAY = ("worker", "writer", "raylet", "gcs")
PATIENCE_S = 20.0  # for a dead run's processes to be gone
END_S = 45.0  # for a run to end of what it cannot survive: where Ray only just starts, Ray itself waits for 30 s
# They hold nothing meanwhile: two helpers of a raylet that was killed ask its gcs_server for a minute before they go,
# and workers that only just start look for it for half a minute.
LINGERING = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "default_worker.py")
LINGERING_S = 120.0
RUN_S = 300.0  # a run that takes longer hangs
MOST_IN_A_RUN = 2  # times that a run must bear the loss of one kind of child: it gives up at the third or fourth

Results = dict[tuple[str, str], set[str]]  # (stage, key) -> all texts that are kept of it


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def kind_of(process: psutil.Process) -> str:
    """What a process is to a run: one of TARGETS, or a short name of what else it is."""
    words = process.cmdline() or [process.name()]
    program = Path(words[0].split()[0]).name if words[0] else process.name()
    if program in ("raylet", "gcs_server"):
        return program.removesuffix("_server")
    if words[0].startswith("ray::"):
        return "writer" if "_StoreWriter" in words[0] else "worker" if "MapWorker" in words[0] else words[0]
    if program.startswith("ffmpeg"):
        return "ffmpeg"
    names = [Path(word).name for word in words[1:]]
    if "llama_server.py" in names:
        return "llm"
    return next((name for name in names if name.endswith(".py")), " ".join(words)[:60])


class Family:
    """All processes that came of one: its descendants, noted while they live, and those that inherited its mark."""

    def __init__(self, driver: psutil.Process, mark: tuple[str, str]) -> None:
        self._mark = mark
        self._kinds = {driver: "driver"}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def __enter__(self) -> Family:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends what is left of it, but for those that are known to linger."""
        self._ended.set()
        self._watcher.join()
        for process in self.alive():
            with contextlib.suppress(psutil.Error):
                if self._kinds[process] not in LINGERING:
                    process.kill()

    def lingering(self) -> list[psutil.Process]:
        return [process for process in self.alive() if self._kinds[process] in LINGERING]

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self.look()

    def look(self, *, with_marked: bool = False) -> None:
        """Notes who is new, and what each is now: a worker of Ray's takes its name some time after its birth."""
        with self._lock:
            strangers: dict[int, list[psutil.Process]] = defaultdict(list)
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    if process in self._kinds:
                        continue
                    if with_marked and process.environ().get(self._mark[0]) == self._mark[1]:
                        self._kinds[process] = "new"
                    else:
                        strangers[process.ppid()].append(process)
            parents = [process for process in self._kinds if is_alive(process)]
            for parent in parents:
                born = strangers.pop(parent.pid, [])
                parents += born  # the loop goes on with them
                self._kinds |= dict.fromkeys(born, "new")
            for process, kind in self._kinds.items():
                if kind != "driver" and is_alive(process):
                    with contextlib.suppress(psutil.Error):
                        self._kinds[process] = kind_of(process)

    def alive(self, kind: str | None = None) -> list[psutil.Process]:
        self.look(with_marked=kind is None)
        kinds = self._kinds.copy()  # the watcher goes on
        return [process for process, name in kinds.items() if kind in (None, name) and is_alive(process)]

    def wait_until_gone(self, patience_s: float) -> tuple[dict[str, float], list[str]]:
        """How long each kind was still there, in seconds; and what is there after `patience_s`. Without those that are
        known to linger."""
        started = time.monotonic()
        seconds: dict[str, float] = {}
        while True:
            alive = [self._kinds[process] for process in self.alive() if self._kinds[process] not in LINGERING]
            if not alive or time.monotonic() - started > patience_s:
                return seconds, sorted(alive)
            seconds |= dict.fromkeys(alive, round(time.monotonic() - started, 1))
            time.sleep(0.1)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Run:
    """One driver: `python -m pipelines run`, its family, and what it has said."""

    driver: subprocess.Popen[bytes]
    family: Family
    engine: str
    log: Path
    started: float = field(default_factory=time.monotonic)
    began: float = field(default_factory=time.time)
    struck: list[str] = field(default_factory=list)  # the targets so far

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def strike(self, target: str, choice: random.Random) -> bool:
        """Kills the target as soon as there is one; False where the run ends before, or none comes."""
        deadline = time.monotonic() + PATIENCE_S
        while self.driver.poll() is None and time.monotonic() < deadline:
            if target in DRIVER_ENDS:
                self.family.look()  # the last chance to see children that lose their parent now
                self.driver.send_signal(SIGNALS.get(target, signal.SIGKILL))
            else:
                found = sorted(self.family.alive(target), key=lambda process: process.pid)
                try:
                    choice.choice(found).kill()
                except (IndexError, psutil.NoSuchProcess):
                    time.sleep(0.02)
                    continue
            self.struck.append(target)
            return True
        return False


@dataclass
class Place:
    """A folder for one chaos: OUT, the runs' logs, their temporary files, and Ray's."""

    work: Path
    out: Path
    settings: tuple[str, ...]
    num_runs: int = 0

    def environment(self) -> dict[str, str]:
        for name in ("tmp", "ray", "logs"):
            (self.work / name).mkdir(exist_ok=True)
        return {**os.environ, "TMPDIR": str(self.work / "tmp"), "RAY_TMPDIR": str(self.work / "ray")}

    @contextlib.contextmanager
    def run(self, engine: str) -> Iterator[Run]:
        mark = ("COOKGEN_CHAOS", uuid.uuid4().hex)
        self.num_runs += 1
        log = self.work / "logs" / f"{self.num_runs:03d}.txt"
        command = [sys.executable, "-m", "pipelines", "run", "--source", "demo", "--out", str(self.out)]
        command += ["--engine", engine, "--set", *self.settings]
        environment = {**self.environment(), mark[0]: mark[1]}
        with log.open("wb") as stream:
            driver = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream
            )
        with Family(psutil.Process(driver.pid), mark) as family:
            try:
                yield Run(driver, family, engine, log)
            finally:
                if driver.poll() is None:
                    driver.kill()
                driver.wait()

    def ask(self, command: str) -> dict[str, Any]:
        """What `python -m pipelines COMMAND --json` says; {} before a run has begun."""
        words = [sys.executable, "-m", "pipelines", command, "--out", str(self.out), "--json"]
        done = subprocess.run(
            words, cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=120, check=False
        )
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def counts(self) -> dict[str, int]:
        """How many videos have passed each stage, as `status` knows it."""
        return {stage: tally["done"] for stage, tally in self.ask("status").get("stages", {}).items()}


@contextlib.contextmanager
def temporary_place(*settings: str) -> Iterator[Place]:
    """A place whose path is short: Ray's sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as work:
        yield Place(Path(work), Path(work) / "out", (*SMALL, *settings))


def digests(out: Path) -> dict[str, str]:
    """The sha256 of every file of a shard set; `.store` and `.runs` are not part of it."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    names = [path.relative_to(out).as_posix() for path in files]
    return {
        name: file_sha256(path)
        for name, path in zip(names, files, strict=True)
        if not name.startswith((".store/", ".runs/"))
    }


def results(out: Path) -> Results:
    """All that the store's parts hold."""
    found: Results = defaultdict(set)
    for part in sorted((out / ".store" / "results").glob("*/[0-9]*.parquet")):
        for row in pq.read_table(part, columns=["key", "result"]).to_pylist():
            found[part.parent.name, row["key"]].add(row["result"])
    return dict(found)


def owners(kept: Results) -> Counter[tuple[str, str]]:
    """(stage, narrative) -> under how many keys it is kept."""
    return Counter((stage, json.loads(min(texts))["narrative"]) for (stage, _), texts in kept.items())


def twice(kept: Results) -> list[str]:
    """What was computed although it was kept: another text, if only by its seconds, under the same key."""
    return [f"{stage} {key[:12]}: {len(texts)} results" for (stage, key), texts in kept.items() if len(texts) > 1]


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Names of the files that are not the same."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def leftovers(*folders: Path) -> list[str]:
    """Half-written files and scratch in an OUT, or anything in a folder for temporary files."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            parts = path.relative_to(folder).parts
            is_scratch = len(parts) > 2 and parts[:2] == (".store", "scratch")
            # torch makes the folder of its own cache, always the same, as soon as it is imported.
            is_temporary = folder.name == "tmp" and not parts[0].startswith("torchinductor_")
            if path.name.startswith(".tmp-") or is_scratch or is_temporary:
                found.append(str(path))
    return sorted(found)


def num_computed(out: Path, since: float) -> int:
    """Results that were computed since then, as far as the run's log of its progress tells: the last seconds before a
    kill are not in it."""
    lines = (out / ".runs" / "progress.jsonl").read_text().splitlines() if (out / ".runs").is_dir() else []
    newest: dict[str, Any] = {}
    for line in lines:
        with contextlib.suppress(ValueError):  # the last line of a killed run may be half written
            event = json.loads(line)
            if event["event"] == "progress" and event["time_s"] >= since:
                newest = event["stages"]
    return sum(tally["done"] - tally["reused"] for tally in newest.values())


def internal_errors(out: Path) -> list[str]:
    rows = pq.read_table(out / "tables" / "rejects.parquet").to_pylist()
    return [f"{row['path']}: {row['stage']}: {row['detail']}" for row in rows if row["reason"] == "internal_error"]


class Chaos:
    """The game: a deck of targets, the undisturbed set to compare with, and the findings."""

    def __init__(self, place: Place, seed: int) -> None:
        self.place, self.random = place, random.Random(seed)
        self.deck: list[str] = []
        self.findings: list[str] = []
        self.killed: Counter[str] = Counter()
        self.rounds, self.num_computed, self.num_kept = 1, 0, 0
        self.expected: dict[str, str] = {}
        self.expected_owners: Counter[tuple[str, str]] = Counter()
        self.usual_s = 0.0
        self.lingering: list[psutil.Process] = []
        self.kept: Results = {}  # what the store held when the run that goes on now began

    def find(self, what: str, **more: Any) -> None:
        self.findings.append(what)
        say(finding=what, run=self.place.num_runs, **more)

    def undisturbed(self) -> None:
        """Makes the set once, inline, and remembers it."""
        out = self.place.out
        with self.place.run("inline") as run:
            code = run.driver.wait(RUN_S)
            self.usual_s = run.seconds
        assert code == 0, f"the undisturbed run ended with {code}:\n{run.said()}"
        self.expected, self.expected_owners = digests(out), owners(results(out))
        num_narratives = pq.read_metadata(out / "tables" / "narratives.parquet").num_rows
        assert num_narratives, "the undisturbed set has no narrative; nothing to compare"
        say(undisturbed_s=self.usual_s, narratives=num_narratives, files=len(self.expected))

    def draw(self, run: Run) -> str:
        """The next target of the deck that this run has, and can bear."""
        while True:
            for target in self.deck:
                can_bear = target in RUN_ENDS or run.struck.count(target) < MOST_IN_A_RUN
                if can_bear and (run.engine == "ray" or target not in ONLY_WITH_RAY):
                    self.deck.remove(target)
                    return target
            self.deck += self.random.sample(TARGETS, len(TARGETS))

    def wait_for_moment(self, run: Run) -> None:
        """Some time; and then, in a third of the cases, until a file is half written."""
        delay, is_writing = self.random.uniform(0, self.usual_s), self.random.random() < 1 / 3
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.driver.wait(delay)
        deadline = time.monotonic() + PATIENCE_S
        while is_writing and run.driver.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):  # a folder that goes while it is listed
                is_writing = not any(self.place.out.rglob(".tmp-*"))

    def play(self, num_kills: int) -> None:
        """Runs under kills until there have been so many, and then one that is left alone."""
        shutil.rmtree(self.place.out)
        is_last = False
        while not is_last:
            is_last = self.killed.total() >= num_kills
            with self.place.run("inline" if self.random.random() < 0.2 else "ray") as run:
                if not is_last:
                    self.strike_until_it_ends(run, num_kills)
                self.watch_the_end(run)
            is_complete = run.driver.returncode == 0 and self.check_complete_set()
            if run.driver.returncode == 0 and self.killed.total() < num_kills:
                shutil.rmtree(self.place.out)
                self.rounds, self.kept = self.rounds + 1, {}
        if not is_complete:
            self.find("the run that was left alone did not make the set", said=run.said()[-2000:])

    def strike_until_it_ends(self, run: Run, num_kills: int) -> None:
        while run.driver.poll() is None and self.killed.total() < num_kills:
            target = self.draw(run)
            self.wait_for_moment(run)
            if not run.strike(target, self.random):
                self.deck.insert(0, target)  # it stays due
                continue
            at_s = run.seconds
            self.killed[target] += 1
            if target in RUN_ENDS:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    run.driver.wait(END_S)
            number = self.killed.total()
            say(kill=number, target=target, at_s=at_s, engine=run.engine, round=self.rounds, done=self.place.counts())
            if target in RUN_ENDS:
                return

    def watch_the_end(self, run: Run) -> None:
        """Waits for the driver's end; then nothing of it may live, and what it had kept must still be there."""
        last = run.struck[-1] if run.struck else None
        try:
            run.driver.wait(0.1 if last in RUN_ENDS else RUN_S)
        except subprocess.TimeoutExpired:
            self.find(f"the driver hangs after {last}", said=run.said()[-2000:])
            run.driver.kill()
        code = run.driver.wait()
        took_s = run.seconds
        gone_s, survivors = run.family.wait_until_gone(PATIENCE_S)
        self.lingering += run.family.lingering()
        lines = run.said().splitlines()
        say(
            run=self.place.num_runs, engine=run.engine, exit=code, seconds=took_s, said=lines[-1:], still_there_s=gone_s
        )
        if survivors:
            self.find(f"alive {PATIENCE_S:g} s after the driver's end, after {last}: {', '.join(survivors)}")
        if code != 0 and code not in DRIVER_ENDS.get(last or "", (2,) if last in RUN_ENDS else ()):
            self.find(f"exit {code} after {last}", said=run.said()[-2000:])
        if "Traceback" in run.said():
            self.find(f"a traceback after {last}", said=run.said()[-3000:])
        elif code == 2 and sum(line.startswith("error: ") for line in lines) != 1:
            self.find(f"exit 2 without one line that says why, after {last}", said=run.said()[-2000:])
        self.check_store(run)

    def check_lingering(self) -> None:
        """What was let linger must be gone in the end; what is not is killed."""
        _, alive = psutil.wait_procs(self.lingering, timeout=LINGERING_S)
        for process in filter(is_alive, alive):
            self.find(f"{kind_of(process)} is alive {LINGERING_S:g} s after the last run")
            process.kill()

    def check_store(self, run: Run) -> None:
        """What was on disk is still there, was not computed again, and will be found by the next run."""
        out = self.place.out
        now = results(out)
        if lost := self.kept.keys() - now.keys():
            self.find(f"{len(lost)} results are lost", first=sorted(lost)[0])
        if again := twice(now):
            self.find(f"computed although kept: {again}")
        # Not videos: a kitchen that is rendered again has another time, which is in its key.
        if many := [owner for owner, number in owners(now).items() if owner[0] != "videos" and number > 1]:
            self.find(f"kept under several keys: {many}")
        self.num_computed += max(num_computed(out, run.began), len(now) - len(self.kept))
        self.num_kept += len(now) - len(self.kept)
        self.kept = now
        on_disk = Counter(stage for stage, _ in owners(now))
        if on_disk and (found := self.place.ask("plan").get("kept", {})) != {**found, **on_disk}:
            self.find(f"on disk are {dict(on_disk)}, and the next run would use {found}")

    def check_complete_set(self) -> bool:
        """Compares a finished run's set; False where it is not the undisturbed one."""
        out = self.place.out
        if errors := internal_errors(out):
            self.find(f"a kill became a verdict: {errors}")
        elif others := differences(self.expected, digests(out)):
            self.find(f"other bytes: {others}")
        elif faults := validate(out):
            self.find(f"cookgen validate: {faults}")
        elif left := leftovers(out, self.place.work / "tmp"):
            self.find(f"left over: {left[:5]}, {len(left)} in all")
        elif (found := owners(self.kept).keys()) != self.expected_owners.keys():
            self.find(f"other results: {sorted(found ^ self.expected_owners.keys())}")
        else:
            return True
        return False


@contextlib.contextmanager
def small_disk(folder: Path, num_bytes: int) -> Iterator[Path]:
    """A file system of that size: a tmpfs in a mount namespace of its own, which needs no root, seen through /proc.

    Raises OSError with the reason where this machine has no such namespaces.
    """
    folder.mkdir()
    script = f'mount -t tmpfs -o size={num_bytes} chaos "$0" && echo mounted && exec sleep infinity'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(folder)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stderr is not None
    try:
        if holder.stdout.readline() != "mounted\n":
            raise OSError(f"no small disk can be made here: {holder.stderr.read().strip()}")
        yield Path(f"/proc/{holder.pid}/root{folder}")
    finally:
        holder.kill()
        holder.communicate()


def fill(disk: Path) -> Path:
    """Takes all the space that is left; returns the file to delete."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as stream:
        for num_bytes in (2**20, 2**12):
            with contextlib.suppress(OSError):
                while stream.write(bytes(num_bytes)) == num_bytes:
                    pass
    return ballast


def play_full_disk(chaos: Chaos, engine: str) -> None:
    """The disk is full as soon as the first results are kept: one line, nothing lost, and the rest is made later."""
    usual = chaos.place
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk(usual.work / f"disk-{engine}", 192 * 2**20))
        except OSError as error:
            say(full_disk=engine, skipped=str(error))
            return
        chaos.place, chaos.kept = replace(usual, out=disk / "out"), {}
        with chaos.place.run(engine) as run:
            while run.driver.poll() is None and not results(chaos.place.out):
                time.sleep(0.05)
            run.struck.append("full disk")
            full_at_s, ballast = run.seconds, fill(disk)
            with contextlib.suppress(subprocess.TimeoutExpired):
                run.driver.wait(PATIENCE_S)
            chaos.watch_the_end(run)
        code, said = run.driver.returncode, run.said().splitlines()[-1:]
        say(full_disk=engine, at_s=full_at_s, exit=code, said=said, kept=len(chaos.kept))
        if code != 2 or "full" not in "".join(said):
            chaos.find(f"a full disk is not what the run ended of: exit {code}, {said}")
        ballast.unlink()
        with chaos.place.run(engine) as run:
            chaos.watch_the_end(run)
        if run.driver.returncode != 0 or not chaos.check_complete_set():
            chaos.find("the run after a full disk did not make the set", said=run.said()[-2000:])
        usual.num_runs, chaos.place = chaos.place.num_runs, usual


def main(kills: int = 20, seed: int = 0) -> int:
    """Plays, and returns 1 where there was a finding.

    Args:
        kills: So many kills.
        seed: Which targets, in which order and when.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no run outlives this
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and theirs, ignore it
    with temporary_place() as place:
        chaos = Chaos(place, seed)
        chaos.undisturbed()
        chaos.play(kills)
        for engine in ("ray", "inline"):
            play_full_disk(chaos, engine)
        chaos.check_lingering()
        in_flight = chaos.num_computed - chaos.num_kept
        say(
            kills=chaos.killed,
            computed=chaos.num_computed,
            of_these_lost_in_flight=in_flight,
            runs=chaos.place.num_runs,
            rounds=chaos.rounds,
            findings=chaos.findings,
        )
    return 1 if chaos.findings else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
