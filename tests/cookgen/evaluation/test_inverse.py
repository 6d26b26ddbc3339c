"""`cookgen eval inverse` on a tiny set: what it measures, its controls, and the way of its scores into the next set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cookgen import load_split
from cookgen.cli import main
from cookgen.dataset.sample import Step
from cookgen.dataset.scores import write_scores
from cookgen.dataset.tables import read_table, table_path
from cookgen.dataset.validate import validate
from cookgen.errors import InputError, ModelError
from cookgen.evaluation.distance import clip_t, frechet_distance
from cookgen.evaluation.generators import Still
from cookgen.evaluation.image_text import ImageText
from cookgen.evaluation.inverse import Inverse, InverseConfig, evaluate_inverse
from cookgen.perception.encoders.vae import window
from cookgen.records import Action, Caption, Check, Clip, Match, Score
from cookgen.runlog import Tally
from pipelines.stages.checks import STAGE as CHECKS
from pipelines.stages.evidence import STAGE as EVIDENCE
from pipelines.stages.evidence import EvidenceConfig, load
from pipelines.stages.shards import ShardsConfig, write_shards
from tests.cookgen.evaluation import tiny
from tests.shardset import STAGES, Media, RunConfig, Story, make_set, make_state

CAPTIONS = ("hands slice the onion", "a red pot", "the hand whisks")
STORIES = [Story(name, captions=CAPTIONS, first_shade=shade) for name, shade in (("a", 0), ("b", 3))]
CONFIG = InverseConfig(num_frames=5, fps=10)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 10 frames, 10 a second, in which a square moves; the keyframe is frame 4."""
    return make_set(tmp_path_factory.mktemp("set") / "out", STORIES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    tiny.image_text(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> ImageText:
    return ImageText.load(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def steps(out: Path) -> list[Step]:
    return [step for narrative in load_split("train", out) for step in narrative.steps]


@dataclass
class Recall:
    """The control that nobody can beat: it looks the source up by the keyframe. Counts what it made."""

    steps: Sequence[Step]
    identity: str = "recall"
    seeds: list[int] = field(default_factory=list)

    def generate(self, caption: str, keyframe_HWC: np.ndarray, *, num_frames: int, seed: int) -> np.ndarray:
        self.seeds.append(seed)
        step = next(step for step in self.steps if (step.keyframe() == keyframe_HWC).all())
        return step.frames(window(step, num_frames=num_frames, fps=CONFIG.fps))


@dataclass(frozen=True)
class Told:
    """A step with another caption."""

    step: Step
    caption: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)


def by_check(found: Inverse, check: str) -> list[float]:
    return [score.score for score in found.scores if score.check == check]


def test_the_source_is_at_no_distance_from_itself_and_a_still_is(steps: list[Step], encoder: ImageText) -> None:
    source = evaluate_inverse(steps, Recall(steps), encoder, CONFIG)
    still = evaluate_inverse(steps, Still(), encoder, CONFIG)
    scale = float(np.square(encoder.images(steps[0].frames())).sum(axis=1).mean())
    assert source.values["frechet"] == pytest.approx(0, abs=1e-9 * scale)
    assert max(by_check(source, "inverse_frechet")) == pytest.approx(0, abs=1e-9 * scale)
    assert still.values["frechet"] > 1e-4 * scale
    assert min(by_check(still, "inverse_frechet")) > 1e-4 * scale
    assert source.values["clip_t"] == pytest.approx(source.values["source_clip_t"], abs=1e-9)
    assert still.values["source_clip_t"] == source.values["source_clip_t"] != still.values["clip_t"]


def test_numbers_are_those_of_the_pure_functions(steps: list[Step], encoder: ImageText) -> None:
    found = evaluate_inverse(steps, Still(), encoder, CONFIG)
    generated, sources, texts = [], [], encoder.texts([step.caption for step in steps])
    for step in steps:
        generated.append(encoder.images(np.repeat(step.keyframe()[None], 5, axis=0)))
        sources.append(encoder.images(step.frames([4, 5, 6, 7, 8])))
    each = [clip_t(images, text) for images, text in zip(generated, texts, strict=True)]
    assert by_check(found, "inverse_clip_t") == pytest.approx(each, rel=1e-5)
    assert found.values["clip_t"] == pytest.approx(np.mean(each), rel=1e-5)
    distance = frechet_distance(np.concatenate(generated), np.concatenate(sources))
    assert found.values["frechet"] == pytest.approx(distance, rel=1e-4)
    assert found.protocol["num_frames_compared"] == 5 * len(steps)


def test_shuffled_captions_change_clip_t_and_not_the_distance(steps: list[Step], encoder: ImageText) -> None:
    own = evaluate_inverse(steps, Still(), encoder, CONFIG)
    captions = [step.caption for step in steps]
    other: Any = [Told(step, caption) for step, caption in zip(steps, captions[1:] + captions[:1], strict=True)]
    shuffled = evaluate_inverse(other, Still(), encoder, CONFIG)
    assert abs(shuffled.values["clip_t"] - own.values["clip_t"]) < abs(own.values["clip_t"])  # the same sums in all
    pairs = zip(by_check(shuffled, "inverse_clip_t"), by_check(own, "inverse_clip_t"), strict=True)
    assert all(abs(one - another) > 1e-3 for one, another in pairs)
    assert shuffled.values["frechet"] == own.values["frechet"]
    assert {score.caption_sha256 for score in shuffled.scores} == {score.caption_sha256 for score in own.scores}


def test_only_frames_that_the_source_has_are_compared(steps: list[Step], encoder: ImageText) -> None:
    found = evaluate_inverse(steps, Recall(steps), encoder, InverseConfig(num_frames=40, fps=10))
    assert found.protocol["num_frames_compared"] == 6 * len(steps)  # 4 to 9
    few = evaluate_inverse(steps, Recall(steps), encoder, InverseConfig(num_frames=4, fps=1))
    assert few.protocol["num_frames_compared"] == len(steps)
    assert "frechet" in few.values and by_check(few, "inverse_frechet") == []  # one frame has no covariance


def test_a_stopped_run_goes_on_and_another_caption_is_done_again(
    steps: list[Step], encoder: ImageText, tmp_path: Path
) -> None:
    whole = evaluate_inverse(steps, Recall(steps), encoder, CONFIG)

    class StoppedError(Exception):
        pass

    def stop(tally: Tally) -> None:
        if tally.done == 4:
            raise StoppedError

    first, second, third = Recall(steps), Recall(steps), Recall(steps)
    with pytest.raises(StoppedError):
        evaluate_inverse(steps, first, encoder, CONFIG, kept=tmp_path, show=stop)
    files = sorted(tmp_path.iterdir())
    assert len(files) == len(first.seeds) == 4
    files[0].write_bytes(files[0].read_bytes()[:-9])  # a damaged one is made again
    found = evaluate_inverse(steps, second, encoder, CONFIG, kept=tmp_path)
    assert found == whole
    assert len(second.seeds) == len(steps) - 4 + 1
    told: Any = [Told(steps[0], "a blue bowl"), *steps[1:]]
    evaluate_inverse(told, third, encoder, CONFIG, kept=tmp_path)
    assert third.seeds == [first.seeds[0]]


def test_seeds_hang_on_the_clip_and_not_on_the_order(steps: list[Step], encoder: ImageText) -> None:
    forth, back, other = Recall(steps), Recall(steps), Recall(steps)
    evaluate_inverse(steps, forth, encoder, CONFIG)
    evaluate_inverse(steps[::-1], back, encoder, CONFIG)
    evaluate_inverse(steps, other, encoder, replace(CONFIG, seed=1))
    assert forth.seeds == back.seeds[::-1] and len(set(forth.seeds)) == len(steps)
    assert set(forth.seeds).isdisjoint(other.seeds)


@dataclass(frozen=True)
class Broken:
    frames: np.ndarray
    identity: str = "broken"

    def generate(self, caption: str, keyframe_HWC: np.ndarray, *, num_frames: int, seed: int) -> np.ndarray:
        return self.frames


@pytest.mark.parametrize("shape", [(4, 64, 64, 3), (5, 64, 64, 1), (5, 64, 64), (0, 64, 64, 3)])
def test_a_generator_that_makes_something_else(shape: tuple[int, ...], steps: list[Step], encoder: ImageText) -> None:
    with pytest.raises(ModelError, match="broken: of demo-a-000 it made"):
        evaluate_inverse(steps, Broken(np.zeros(shape, np.uint8)), encoder, CONFIG)


def test_no_clips(encoder: ImageText) -> None:
    with pytest.raises(InputError, match="no clips"):
        evaluate_inverse([], Still(), encoder, CONFIG)


# ----------------------------------------------------------------------------------------------------- the command


def evaluate(out: Path, checkpoint: Path, to: Path, *more: str) -> int:
    options = ["--encoder", str(checkpoint), "--to", str(to), "--device", "cpu", "--num-frames", "5", "--fps", "10"]
    return main(["eval", "inverse", str(out), *options, *more])


def test_the_command(out: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(out, checkpoint, tmp_path / "to", "--split", "train", "--limit", "4", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["protocol"]["generator"] == "still" and said["protocol"]["num_clips"] == 4
    assert said["protocol"]["encoder"].startswith(f"{checkpoint.name}@")
    assert {"resize", "frechet", "clip_t", "num_frames", "fps", "seed", "split"} <= said["protocol"].keys()
    assert "ddof 1" in said["protocol"]["frechet"]
    kept = json.loads((tmp_path / "to" / "inverse.json").read_text())
    assert kept["protocol"] == said["protocol"] and kept["values"]["clip_t"] == pytest.approx(said["values"]["clip_t"])
    assert len(list(read_table(tmp_path / "to" / "scores.parquet", Score))) == 8
    assert evaluate(out, checkpoint, tmp_path / "to", "--split", "train", "--limit", "4") == 0
    text = capsys.readouterr().out
    assert "CLIP-T of generated frames" in text and "protocol" in text and "ddof 1" in text


def test_the_command_with_a_pipeline_of_diffusers(out: Path, checkpoint: Path, tmp_path: Path) -> None:
    options = ["--split", "train", "--limit", "2", "--generator", str(tiny.ltx(tmp_path / "ltx")), "--num-steps", "1"]
    assert evaluate(out, checkpoint, tmp_path / "to", *options) == 0
    values = json.loads((tmp_path / "to" / "inverse.json").read_text())
    assert values["protocol"]["generator"].startswith("ltx@") and values["values"]["frechet"] > 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--split", "test"], "split 'test' is not in"),
        (["--split", "val"], "no clips to generate again"),
        (["--split", "train", "--limit", "0"], "limit is 0"),
        (["--split", "train", "--num-frames", "1"], "num_frames is 1"),
        (["--split", "train", "--generator", "nothing"], "nothing"),
        (["--split", "train", "--encoder", "nothing"], "nothing"),
        (["--split", "train", "--device", "tpu"], "device=tpu"),
    ],
)
def test_bad_usage_is_one_line(
    more: list[str], says: str, out: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(out, checkpoint, tmp_path / "to", *more) == 2
    said = capsys.readouterr().err.splitlines()
    assert says in said[-1] and said[-1].startswith("error: ")


def test_the_group_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["eval"], ["eval", "nonsense"], ["eval", "inverse"]):
        assert main(arguments) == 2
    assert main(["--help"]) == 0
    assert "eval inverse" in capsys.readouterr().out


# --------------------------------------------------------------------------------------- into the next set's checks


def test_the_scores_join_the_next_sets_checks(out: Path, checkpoint: Path, tmp_path: Path) -> None:
    assert evaluate(out, checkpoint, tmp_path / "to", "--split", "train") == 0
    scores = tmp_path / "to" / "scores.parquet"
    config = EvidenceConfig(scores=str(scores))
    tool = load(config, Media(tmp_path / "media").places)
    media = Media(tmp_path / "media")
    changed = replace(STORIES[0], captions=("another", *CAPTIONS[1:]))
    states = []
    for story in (changed, *STORIES[1:]):
        state = make_state(story, media)
        rows = [state.rows(record, STAGES) for record in (Clip, Action, Caption)]
        evidence = tuple(EVIDENCE.run(*rows, config=config, tool=tool))
        found = tuple(CHECKS.run(*rows, state.rows(Match, STAGES), evidence, config=CHECKS.config))
        checks = next(item for item in STAGES if item.writes is Check)
        states.append(state.with_result(replace(state.whole[checks.name], rows=found)))
    write_shards(
        states,
        [],
        config=ShardsConfig(),
        run_config=RunConfig(),
        places=media.places,
        out=tmp_path / "next",
        stages=STAGES,
    )
    assert [problem for problem in validate(tmp_path / "next") if not problem.is_warning] == []
    measured = {(row.narrative, row.clip_sha256, row.check): row.score for row in read_table(scores, Score)}
    joined = 0
    for narrative in load_split("train", tmp_path / "next"):
        for step in narrative.steps:
            sample = step.sample
            mine = {name: value for name, value in sample.checks.items() if name.startswith("inverse_")}
            if step.caption == "another":  # scored with other words: it has none
                assert mine == {}
                continue
            joined += 1
            assert mine == {
                name: pytest.approx(measured[sample.narrative, sample.clip.sha256, name], abs=1e-6)
                for name in ("inverse_clip_t", "inverse_frechet")
            }
    assert joined == 5
    table = [row for row in read_table(table_path(tmp_path / "next", Check), Check) if row.check == "inverse_clip_t"]
    assert len(table) == 5


def test_the_order_of_scores_in_the_file_is_its_own(steps: list[Step], encoder: ImageText, tmp_path: Path) -> None:
    scores = evaluate_inverse(steps[:3], Still(), encoder, CONFIG).scores
    for name, rows in (("one", scores), ("other", scores[::-1])):
        write_scores(tmp_path / name, rows)

    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
