"""`make shards` with no arguments, at a smaller size: the whole way, twice, both engines, killed and resumed."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from cookgen import load_split
from cookgen.cli import main as cookgen_command
from cookgen.dataset.validate import validate
from cookgen.records import Segment
from pipelines import flow
from pipelines.calibration import PAPER, Thresholds, calibrate
from pipelines.request import request_of
from pipelines.stage import _identity
from pipelines.stages import actions

Run = Callable[..., Any]
Digests = Callable[[Path], dict[str, str]]
ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--set", "demo.num_videos=3")


@pytest.fixture(scope="module")
def demo(pipelines: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "shards"
    pipelines("run", "--out", out, *SMALL)
    return out


def table(out: Path, name: str) -> list[dict[str, Any]]:
    return pq.read_table(out / "tables" / f"{name}.parquet").to_pylist()


def test_the_set_is_valid_and_every_video_is_accounted_for(demo: Path) -> None:
    assert validate(demo) == []
    narratives = {row["narrative"] for row in table(demo, "narratives")}
    rejected = [
        row["narrative"] for row in table(demo, "rejects") if row["clip_index"] is None and row["action_index"] is None
    ]
    assert len(narratives) + len(rejected) == 3
    assert not narratives & set(rejected)


def test_there_is_a_train_and_a_val_narrative_to_read(demo: Path) -> None:
    assert len(load_split("train", demo)) >= 1
    assert len(load_split("val", demo)) >= 1
    for split in ("train", "val"):
        for narrative in load_split(split, demo):
            for step in narrative.steps:
                frames = step.frames()
                assert frames.shape == (step.sample.clip.num_frames, 448, 448, 3)
                assert step.keyframe().shape == (448, 448, 3)
                assert step.action and step.caption


def test_steps_agree_with_the_ground_truth(demo: Path) -> None:
    hits = steps = spoken = 0
    for split in ("train", "val"):
        for narrative in load_split(split, demo):
            truth = json.loads(
                (demo / ".store" / "demo" / f"{narrative.steps[0].sample.video.video_id}.gt.json").read_text()
            )
            spoken += len(truth["actions"])
            steps += len(narrative.steps)
            for step in narrative.steps:
                middle = (step.sample.action.start_s + step.sample.action.end_s) / 2
                said = next((a["text"] for a in truth["actions"] if a["start_s"] <= middle <= a["end_s"]), "")
                hits += bool(content_words(step.action) & content_words(said))
    assert hits >= 0.85 * steps  # what comes out is right, misheard words apart
    assert steps >= 0.5 * spoken  # and a small model finds at least half


def content_words(text: str) -> set[str]:
    words = {"".join(c for c in word.lower() if c.isalpha()) for word in text.split()}
    return {word for word in words if len(word) > 3 and word not in {"with", "into", "over", "until", "then", "from"}}


WEBDATASET = """
import json, sys, webdataset
samples = list(webdataset.WebDataset(sys.argv[1:], shardshuffle=False))
print(json.dumps({"clips": len(samples), "whole": sum({"json", "mp4", "jpg"} <= sample.keys() for sample in samples)}))
"""
DATASETS = """
import json, sys, datasets
loaded = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])
print(json.dumps({name: split.num_rows for name, split in loaded.items()}))
"""


def read_elsewhere(code: str, *args: Path) -> Any:
    """What a foreign reader prints, in a process of its own, without a network."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_every_reader_counts_the_same_clips(demo: Path) -> None:
    manifest = json.loads((demo / "dataset.json").read_text())
    for name, split in manifest["splits"].items():
        paths = [demo / shard["path"] for shard in split["shards"]]
        in_tar = 0
        for path in paths:
            with tarfile.open(path) as tar:
                in_tar += sum(member.name.endswith(".mp4") for member in tar)
        assert in_tar == split["num_clips"] == sum(len(n.steps) for n in load_split(name, demo))
        if paths:
            assert read_elsewhere(WEBDATASET, *paths) == {"clips": in_tar, "whole": in_tar}


def test_hugging_face_datasets_opens_it(demo: Path, tmp_path: Path) -> None:
    rows = read_elsewhere(DATASETS, demo, tmp_path)
    splits = json.loads((demo / "dataset.json").read_text())["splits"]
    assert rows == {"train": splits["train"]["num_clips"], "validation": splits["val"]["num_clips"]}


def test_a_second_run_does_nothing_and_says_so(pipelines: Run, set_digests: Digests, demo: Path) -> None:
    before = set_digests(demo)
    done = pipelines("run", "--out", demo, *SMALL)
    assert "nothing to do" in done.stderr
    assert set_digests(demo) == before


def test_both_engines_give_the_same_bytes(pipelines: Run, set_digests: Digests, demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "inline"
    pipelines("run", "--out", out, "--engine", "inline", *SMALL)
    assert set_digests(out) == set_digests(demo)


def test_a_killed_run_is_resumed_to_the_same_bytes(
    pipelines: Run, set_digests: Digests, demo: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "pipelines", "run", "--out", str(out), *SMALL]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    clips = out / ".store" / "results" / "clips"
    deadline = time.monotonic() + 400
    while not clips.is_dir() and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert driver.poll() is None, "the run ended before it could be killed"
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    _gone, alive = psutil.wait_procs(children, timeout=150)  # two of Ray's agents take a minute to see it
    assert not [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not (out / "dataset.json").exists()
    kept = json.loads(pipelines("plan", "--out", out, "--json").stdout)["kept"]
    assert kept["videos"] >= 1
    pipelines("run", "--out", out, *SMALL)
    assert set_digests(out) == set_digests(demo)


def test_a_changed_threshold_runs_what_hangs_on_it_and_nothing_else(pipelines: Run, demo: Path, tmp_path: Path) -> None:
    changed = (*SMALL, "matches.max_start_diff_s=4.5")
    done = pipelines("run", "--out", demo, *changed, "--dry-run")
    lines = [line for line in done.stdout.splitlines() if " kept, " in line]
    to_do = {line.split()[0]: int(line.split(" kept, ")[1].split()[0]) for line in lines}
    assert f"to do (stale, max_start_diff_s 5.0 -> 4.5: {to_do['matches']})" in done.stdout
    assert "s of work by what such videos took before" in done.stdout
    with_clips = len({row["narrative"] for row in table(demo, "captions")})
    assert to_do["matches"] == with_clips
    assert sum(to_do[stage] for stage in ("videos", "clips", "speech", "actions", "captions")) == 0


REMATCH = """
import sys
from pipelines.__main__ import main
code = main(["rematch", "--engine", "inline", "--out", *sys.argv[1:]])
print(sorted({"torch", "transformers", "faster_whisper", "xllamacpp", "onnxruntime", "dlib"} & sys.modules.keys()))
sys.exit(code)
"""


def test_other_thresholds_need_no_model(demo: Path, set_digests: Digests, tmp_path: Path) -> None:
    out = Path(shutil.copytree(demo, tmp_path / "shards"))
    truths = {path.name.split(".")[0]: json.loads(path.read_text()) for path in out.glob(".store/demo/*.gt.json")}
    steps = {name: marked_steps(truth) for name, truth in truths.items()}
    before = calibrate(out, steps)
    assert before.paper.precision > 0.8 and before.num_videos == 3

    def rematch(thresholds: Thresholds) -> set[str]:
        """Runs it in a process that has seen no model; returns the stages that were computed."""
        traces = set((out / ".runs").glob("trace-*.json"))
        command = [sys.executable, "-c", REMATCH, str(out), *thresholds.command.split()]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
        assert done.stdout.splitlines()[-1] == "[]"
        new = set((out / ".runs").glob("trace-*.json")) - traces
        return {event["name"] for path in new for event in json.loads(path.read_text().rstrip().rstrip(",") + "]")}

    strict = Thresholds(max_start_diff_s=1.0, min_iou=0.5, sure_iou=0.7)
    assert rematch(strict) == {"matches", "checks"}
    assert validate(out) == []
    chosen = sum(row["chosen"] for row in table(out, "matches"))
    [point] = [point for point in before.points if point.thresholds == strict]
    assert chosen == point.num_matches < before.paper.num_matches
    assert calibrate(out, steps).points == before.points  # it hangs on clips and actions alone
    assert rematch(PAPER) == set()  # kept from before
    assert set_digests(out) == set_digests(demo)


def marked_steps(truth: dict[str, Any]) -> list[Segment]:
    """What a person would mark: each action for as long as its shot is seen."""
    shots = [tuple(shot) for shot in truth["shots"]]
    return [
        Segment(start_s=start_s, end_s=end_s, text=action["text"])
        for action in truth["actions"]
        for start_s, end_s in shots
        if start_s <= action["start_s"] < end_s
    ]


@pytest.fixture
def other_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another prompt than the set was made with, in this process, which may have read the real one."""

    def forget() -> None:
        actions._prompt.cache_clear()
        _identity.cache_clear()

    prompt = actions._prompt()
    (tmp_path / "prompt.json").write_text(json.dumps({**prompt, "system": prompt["system"] + " Be brief."}))
    monkeypatch.setattr(actions, "PROMPT", tmp_path / "prompt.json")
    forget()
    yield
    monkeypatch.undo()
    forget()


@pytest.mark.usefixtures("other_prompt")
def test_a_changed_prompt_runs_the_actions_and_what_they_change(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    shutil.copytree(demo, out)
    before = {row["narrative"]: [] for row in table(out, "videos")}
    for row in table(out, "actions"):
        before[row["narrative"]].append((row["action_index"], row["text"], row["start_s"], row["end_s"]))
    heard = {row["narrative"] for row in table(out, "speech")}
    traces = set((out / ".runs").glob("trace-*.json"))
    request = request_of(source="demo", out=out, settings=SMALL[1:])
    planned = flow.plan(request)
    assert {name: count for name, count in planned.to_do.items() if count} == {
        "actions": len(heard),
        **dict.fromkeys(("evidence", "matches", "checks"), len(heard)),
    }
    [(why, _)] = planned.why["actions"].items()
    assert why.startswith("stale, prompt-") and " -> prompt-" in why
    assert planned.why["matches"] == {"after actions": len(heard)}
    flow.run(request, engine="inline")
    [trace] = {path for path in (out / ".runs").glob("trace-*.json") if path not in traces}
    events = json.loads(trace.read_text().rstrip().rstrip(",") + "]")
    computed = sorted((event["name"], event["args"]["narrative"]) for event in events)
    after: dict[str, list[Any]] = {name: [] for name in before}
    for row in table(out, "actions"):
        after[row["narrative"]].append((row["action_index"], row["text"], row["start_s"], row["end_s"]))
    changed = {name for name in heard if after[name] != before[name] and after[name]}
    assert [pair for pair in computed if pair[0] == "actions"] == [("actions", name) for name in sorted(heard)]
    assert {pair for pair in computed if pair[0] != "actions"} <= {
        (stage, name) for stage in ("evidence", "matches", "checks") for name in heard
    }
    assert {name for stage, name in computed if stage == "matches"} >= changed
    assert validate(out) == []


def test_tars_are_plain(demo: Path) -> None:
    for path in demo.glob("*/*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
                assert (member.uname, member.gname) == ("", "")
                content = tar.extractfile(member)
                assert content is not None
                if member.name.endswith(".json"):
                    assert json.load(io.BytesIO(content.read()))["format"] == "cookgen/1"


STREAMED = """
import json, sys, datasets
loaded = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2], streaming=True)
keys = {n: [r["__key__"] for r in s.cast_column("mp4", datasets.Video(decode=False))] for n, s in loaded.items()}
print(json.dumps(keys))
"""


def test_features_of_the_demo_are_joined_and_everyone_still_reads_it(demo: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(demo, tmp_path / "set"))
    assert cookgen_command(["features", str(out), "--encoder", "conse"]) == 0
    assert validate(out) == []
    keys: dict[str, list[str]] = {}
    for split, name in (("train", "train"), ("val", "validation")):
        clips = load_split(split, out, unit="clip", features=("conse",), frames=2)
        keys[name] = [clip.key for clip in clips]
        for batch in clips.torch(batch_size=2, num_workers=2):
            assert batch["features"]["conse"].shape[1:] == (384,)
            assert batch["frames"].shape[1:] == (2, 448, 448, 3)
    assert read_elsewhere(STREAMED, out, tmp_path / "cache") == keys


def test_every_command_of_the_package_works_on_the_demo(demo: Path, tmp_path: Path) -> None:
    narrative = load_split("train", demo)[0].name
    for command in (
        ["validate", str(demo)],
        ["card", str(demo)],
        ["card", str(demo), "--croissant"],
        ["stats", str(demo)],
        ["inspect", str(demo), narrative],
        ["export", str(demo), "--to", str(tmp_path / "parquet"), "--format", "parquet"],
        ["export", str(demo), "--to", str(tmp_path / "story"), "--format", "seed-story"],
        ["publish", str(demo), str(tmp_path / "copy"), "--yes"],
        ["publish", str(demo), str(tmp_path / "ids"), "--annotations-only", "--yes"],
    ):
        assert cookgen_command(command) == 0, command
    assert validate(tmp_path / "copy") == []
    assert not list((tmp_path / "ids").rglob("*.tar"))
