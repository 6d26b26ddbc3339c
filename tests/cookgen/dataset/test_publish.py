"""`cookgen publish`: what is listed and nothing else, dataset.json last, and nothing twice.

The folder and memory:// are real targets. No Hub can be reached: there the calls are checked against the signatures of
the real client, and a refused connection is met for real.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import fsspec
import huggingface_hub
import pyarrow.parquet as pq
import pytest
import yaml

from cookgen import load_split
from cookgen.dataset.publish import PublishedFile, annotation_files, hub_repository, plan_text, publish, set_files
from cookgen.dataset.validate import validate
from cookgen.errors import FormatError, InputError, OutputError, UsageError
from cookgen.records import ConfigStamp, Manifest
from tests.cookgen.dataset.test_croissant import read_croissant
from tests.shardset import Story, add_features, make_set

ROOT = Path(__file__).resolve().parents[3]
STORIES = (
    Story("a", num_clips=2),
    Story("b", num_clips=4, manual=True),
    Story("c", split="val"),
    *(Story(name) for name in "defg"),
)
TABLES = ("videos", "clips", "speech", "actions", "captions", "matches", "checks", "rejects", "narratives")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A set with sidecars, and with much in its folder that is none of it."""
    out = make_set(tmp_path / "set", STORIES, target_shard_bytes=10_000)
    add_features(out, "clip", (2, 3))
    for path in (".store/media/x.mp4", ".runs/log", "notes.txt", "train/.tmp-1.tar", "features/begun/train/x.tar"):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_text("not of the set")
    (out / "train" / "cookgen-train-999999.tar").symlink_to("/etc/hostname")
    return out


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def listed(out: Path) -> list[str]:
    """What a complete set has, worded apart from the publisher."""
    shards = sorted(path.relative_to(out).as_posix() for path in out.glob("*/cookgen-*-00000*.tar"))
    assert len(shards) > 2
    features = [f"features/clip/{name}" for name in ("features.json", *shards)]
    return ["README.md", "dataset.json", *(f"tables/{table}.parquet" for table in TABLES), *shards, *features]


def heard(files: list[PublishedFile], to: str | Path) -> tuple[int, list[str]]:
    said: list[str] = []
    return publish(files, str(to), say=said.append), said


def digests(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_listed_and_nothing_else(out: Path) -> None:
    files = set_files(out)
    paths = [file.path for file in files]
    assert sorted(paths) == sorted(listed(out))
    assert (paths[0], paths[-1]) == ("README.md", "dataset.json")
    assert paths.index("features/clip/features.json") > paths.index("features/clip/val/cookgen-val-000000.tar")
    text = plan_text(files, "there")
    assert all(path in text for path in paths)
    assert text.endswith(f"  {len(paths)} files to there")


def test_to_a_folder_and_again(out: Path, tmp_path: Path) -> None:
    to, files = tmp_path / "published", set_files(out)
    num_copied, said = heard(files, to)
    assert num_copied == len(files)
    assert said[-1].startswith("copying    dataset.json")
    assert digests(to) == {path: (out / path).read_bytes() for path in listed(out)}
    assert [problem for problem in validate(to) if "features" in problem.where] == []
    assert load_split("train", to, features=("clip",))[0].features["clip"].shape[1:] == (2, 3)
    assert heard(files, to)[0] == 0


def test_it_goes_on_where_it_was(out: Path, tmp_path: Path) -> None:
    to, files = tmp_path / "published", set_files(out)
    publish(files, str(to), say=lambda line: None)
    (to / "dataset.json").unlink()
    (to / "tables" / "clips.parquet").write_bytes(b"half")
    shard = to / "val" / "cookgen-val-000000.tar"
    shard.write_bytes(b"\0" * shard.stat().st_size)  # the size alone proves nothing
    (to / "val" / ".tmp-left-by-a-kill.tar").touch()
    num_copied, said = heard(files, to)
    assert num_copied == 3
    assert [line.split()[1] for line in said if line.startswith("copying")] == [
        "tables/clips.parquet",
        "val/cookgen-val-000000.tar",
        "dataset.json",
    ]


def test_dataset_json_is_not_there_when_a_copy_fails(out: Path, tmp_path: Path) -> None:
    to, files = tmp_path / "published", set_files(out)
    (out / "val" / "cookgen-val-000000.tar").unlink()
    with pytest.raises(OutputError, match="the same command goes on"):
        publish(files, str(to), say=lambda line: None)
    assert (to / "README.md").is_file() and not (to / "dataset.json").exists()
    assert not list(to.rglob(".tmp-*"))


def test_to_a_url(out: Path, tmp_path: Path, memory: Any) -> None:
    files = set_files(out)
    assert heard(files, "memory://bucket/set")[0] == len(files)
    assert {path.removeprefix("/bucket/set/") for path in memory.find("/bucket/set")} == set(listed(out))
    assert heard(files, "memory://bucket/set/")[0] == 0
    memory.pipe("/bucket/set/tables/clips.parquet", b"half")
    assert heard(files, "memory://bucket/set")[0] == 1
    narrative = load_split("val", "memory://bucket/set", cache=tmp_path / "cache")[0]
    assert narrative.steps[0].mp4 == load_split("val", out)[0].steps[0].mp4


def test_a_target_of_something_else_is_refused(out: Path, tmp_path: Path, memory: Any) -> None:
    files = set_files(out)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("x")
    memory.pipe("/bucket/thesis.tex", b"x")
    for to in (theirs, "memory://bucket"):
        with pytest.raises(OutputError, match=r"thesis\.tex"):
            publish(files, str(to), say=lambda line: None)
    assert list(theirs.iterdir()) == [theirs / "thesis.tex"]
    other = make_set(tmp_path / "other", STORIES[1:], target_shard_bytes=10**9)
    publish(set_files(other), str(tmp_path / "published"), say=lambda line: None)
    with pytest.raises(OutputError, match="another shard set"):
        publish(files, str(tmp_path / "published"), say=lambda line: None)
    for to in (out, out / "below"):
        with pytest.raises(UsageError, match="lies in the set"):
            publish(files, str(to), say=lambda line: None)


@pytest.mark.parametrize("to", ["nope://x", "hf://x", "hf://datasets/x", "hf://models/a/b", "hf://datasets/a/b/../c"])
def test_targets_that_are_none(to: str) -> None:
    with pytest.raises(UsageError):
        plan_text([], to)


def test_a_file_in_the_way(out: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        publish(set_files(out), str(tmp_path / "file" / "below"), say=lambda line: None)


@pytest.mark.parametrize("path", ["val/cookgen-val-000000.tar", "features/clip/val/cookgen-val-000000.tar"])
def test_other_bytes_than_those_listed_are_not_published(out: Path, path: str) -> None:
    content = bytearray((out / path).read_bytes())
    content[5000] ^= 1
    (out / path).write_bytes(content)
    with pytest.raises(FormatError, match=re.escape(path)):
        set_files(out)


@pytest.mark.parametrize("path", ["README.md", "tables/clips.parquet", "val", "features/clip/train", "report.html"])
def test_links_are_not_published(out: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret").write_text("secret")
    if (out / path).exists():
        (out / path).rename(tmp_path / "elsewhere")
    (out / path).symlink_to(tmp_path / ("elsewhere" if path != "report.html" else "secret"))
    with pytest.raises(FormatError, match="a link"):
        set_files(out)


@pytest.mark.parametrize("path", ["../secret.tar", "/etc/hostname", ".store/media/x.mp4", "train/*.tar", "notes.txt"])
def test_a_hostile_manifest_names_nothing_else(out: Path, path: str) -> None:
    values = json.loads((out / "dataset.json").read_bytes())
    values["splits"]["train"]["shards"][0]["path"] = path
    (out / "dataset.json").write_text(json.dumps(values))
    with pytest.raises(FormatError):
        set_files(out)


def test_what_is_no_complete_set(tmp_path: Path, out: Path) -> None:
    with pytest.raises(InputError):
        set_files(tmp_path)
    (out / "tables" / "speech.parquet").unlink()
    with pytest.raises(FormatError, match=r"speech\.parquet"):
        set_files(out)


def test_annotations_only_hold_no_picture_and_no_spoken_word(out: Path, tmp_path: Path) -> None:
    with annotation_files(out) as files:
        publish(files, str(tmp_path / "to"), say=lambda line: None)
    found = digests(tmp_path / "to")
    assert sorted(found) == sorted(
        ["README.md", "annotations/train-00000-of-00001.parquet", "annotations/validation-00000-of-00001.parquet"]
        + ["config.json", "croissant.json", "ids.txt"]
        + [f"tables/{table}.parquet" for table in TABLES if table != "speech"]
    )
    for step in (step for split in ("train", "val") for item in load_split(split, out) for step in item.steps):
        assert not any(step.read("jpg") in content or step.read("mp4") in content for content in found.values())
    actions = pq.read_table(tmp_path / "to" / "tables" / "actions.parquet").to_pylist()
    whole = pq.read_table(out / "tables" / "actions.parquet").to_pylist()
    assert actions == [row | ({"raw_text": ""} if row["origin"] == "asr" else {}) for row in whole]
    assert {row["origin"] for row in actions} == {"asr", "manual"}
    rows = pq.read_table(tmp_path / "to" / "annotations" / "train-00000-of-00001.parquet").to_pylist()
    assert {row["action_raw_text"] == "" for row in rows if row["action_origin"] == "asr"} == {True}
    assert set(pq.read_table(tmp_path / "to" / "tables" / "rejects.parquet")["detail"].to_pylist()) <= {""}
    assert found["ids.txt"] == b"a\nb\nc\nd\ne\nf\ng\n"
    manifest = Manifest.model_validate_json((out / "dataset.json").read_bytes())
    assert ConfigStamp.model_validate_json(found["config.json"]) == manifest.config
    with pytest.raises(InputError, match=r"dataset\.json"):
        load_split("train", tmp_path / "to")


def test_annotations_load_by_their_card_and_their_croissant(out: Path, tmp_path: Path) -> None:
    with annotation_files(out) as files:
        publish(files, str(tmp_path / "to"), say=lambda line: None)
    front = yaml.safe_load((tmp_path / "to" / "README.md").read_text().split("---\n")[1])
    assert [item["split"] for item in front["configs"][0]["data_files"]] == ["train", "validation"]
    script = """
import datasets, json, sys
loaded = datasets.load_dataset(sys.argv[1])
print(json.dumps({name: loaded[name]["key"][:] for name in loaded}))
"""
    places = {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", script, str(tmp_path / "to")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | places, timeout=120)
    assert done.returncode == 0, done.stderr
    keys = {
        name: [step.key for item in load_split(split, out) for step in item.steps]
        for name, split in (("train", "train"), ("validation", "val"))
    }
    assert json.loads(done.stdout.splitlines()[-1]) == keys
    read = read_croissant(tmp_path / "to" / "croissant.json", tmp_path)
    assert read["errors"] == []
    assert len(read["records"]["annotations-train"]) == len(keys["train"])
    assert "speech" not in read["records"]


def test_ids_with_line_breaks_are_counted_and_left_out(out: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Odd(Story):
        @property
        def narrative(self) -> str:
            return "demo-odd"

    odd = make_set(tmp_path / "odd", [Story("a"), Odd("b\u2028c")])
    with annotation_files(odd) as files:
        text = {file.path: file.source.read_text() for file in files if file.path in ("ids.txt", "README.md")}
    assert text["ids.txt"] == "a\n"
    assert "1 videos have a line break in their id" in text["README.md"]


def test_the_cards_command_gives_the_configuration_back(out: Path) -> None:
    """The real pipeline's default configuration, changed here and there, through the card's own command line."""
    show = [sys.executable, "-m", "pipelines", "run", "--source", "demo", "--show-config", "--set"]
    changes = ["clips.min_s=3.5", "clips.fps=12.5", "captions.model=it's a $HOME", "demo.seed=4"]
    wanted = subprocess.run([*show, *changes], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "it's a $HOME" in wanted.stdout
    values = json.loads((out / "dataset.json").read_bytes())
    values["config"]["values"] = json.loads(wanted.stdout)
    (out / "dataset.json").write_text(json.dumps(values))
    with annotation_files(out) as files:
        card = next(file.source.read_text() for file in files if file.path == "README.md")
    found = re.search(r"^(python -m pipelines run .*?)^cookgen", card, re.M | re.S)
    assert found is not None
    command = shlex.split(found[1].replace("\\\n", " "))
    assert command[:9] == "python -m pipelines run --source demo --ids path/to/this/folder/ids.txt --out".split()
    again = subprocess.run(
        [sys.executable, *command[1:6], "--show-config", *command[command.index("--set") :]],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(wanted.stdout)


def test_a_hostile_configuration_stays_quoted(out: Path) -> None:
    values = json.loads((out / "dataset.json").read_bytes())
    values["config"]["values"] = {"source": "x; rm -rf ~", "clips": {"a": "$(reboot)\n```\n# heading"}}
    (out / "dataset.json").write_text(json.dumps(values))
    with annotation_files(out) as files:
        card = next(file.source.read_text() for file in files if file.path == "README.md")
    assert "--source 'x; rm -rf ~'" in card
    assert "\n```\n# heading" not in card


def test_the_hub_gets_the_card_the_rest_and_dataset_json_last(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the Hub: it records calls, and takes none that the real client would not take."""
    api = create_autospec(huggingface_hub.HfApi, instance=True)
    api.list_repo_files.return_value = [".gitattributes", "dataset.json"]
    folders: list[dict[str, bytes]] = []
    api.upload_folder.side_effect = lambda *, folder_path, **_: folders.append(digests(Path(folder_path)))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    files = set_files(out)
    assert publish(files, "hf://datasets/someone/recipes", say=lambda line: None) == len(files)
    calls = [name for name, _, _ in api.mock_calls]
    assert calls == ["create_repo", "list_repo_files", "delete_file", "upload_file", "upload_folder", "upload_file"]
    for call in api.mock_calls:
        assert (call.kwargs["repo_id"], call.kwargs["repo_type"]) == ("someone/recipes", "dataset")
    assert api.create_repo.call_args.kwargs["private"] is True
    first, last = (call.kwargs for call in api.upload_file.mock_calls)
    assert (first["path_in_repo"], last["path_in_repo"]) == ("README.md", "dataset.json")
    assert Path(last["path_or_fileobj"]).read_bytes() == (out / "dataset.json").read_bytes()
    assert folders == [{path: (out / path).read_bytes() for path in listed(out)[2:]}]
    api.list_repo_files.return_value = ["thesis.tex"]
    with pytest.raises(OutputError, match=r"thesis\.tex"):
        publish(files, "hf://datasets/someone/recipes", say=lambda line: None)


def test_a_hub_that_cannot_be_reached(out: Path) -> None:
    script = """
import sys
from cookgen.cli import main
sys.exit(main(["publish", sys.argv[1], "hf://datasets/someone/recipes", *sys.argv[2:]]))
"""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_x", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", script, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")  # a dry run asks nobody
    done = subprocess.run(
        [*command, "--yes"], capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: hf://datasets/someone/recipes: the Hub refused, or cannot be reached: ")
    assert done.stderr.count("\n") == 1


def test_hub_names() -> None:
    assert hub_repository("hf://datasets/a/b") == hub_repository("hf://datasets/a/b/") == "a/b"
