"""The dataset card: front matter that other readers follow, and plain words about who wrote the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cookgen.dataset.card import card_text, data_files, hub_licence
from cookgen.dataset.statistics import Statistics
from cookgen.records import Manifest, Sample, Shard, Split
from pipelines.stages.shards import ShardsConfig, Step, steps_of, write_shards
from tests.shardset import STAGES, Media, RunConfig, Story, make_state, make_states

SHARD = Shard(path="x", sha256="0" * 64, num_bytes=1, num_narratives=1, num_clips=1)
EMPTY = Split(num_narratives=0, num_clips=0, shards=())
ONE = Split(num_narratives=1, num_clips=1, shards=(SHARD,))


def front_matter(text: str) -> Any:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Media:
    return Media(tmp_path_factory.mktemp("media"))


def samples(story: Story, media: Media) -> list[Sample]:
    steps = steps_of(make_state(story, media), STAGES, ShardsConfig())
    assert isinstance(steps, tuple) and all(isinstance(step, Step) for step in steps)
    return [step.sample for step in steps]


def card(media: Media, *stories: Story) -> str:
    statistics = Statistics()
    for story in stories:
        for sample in samples(story, media):
            statistics.add(sample)
    return card_text("cookgen-demo", {"train": ONE, "val": EMPTY}, statistics)


def test_only_splits_with_shards_are_in_the_configs() -> None:
    assert data_files({"train": EMPTY, "val": EMPTY}) == []
    assert data_files({"val": ONE, "train": EMPTY}) == [{"split": "validation", "path": "val/*.tar"}]
    assert data_files({"val": ONE, "train": ONE, "testing": ONE}) == [
        {"split": "testing", "path": "testing/*.tar"},
        {"split": "train", "path": "train/*.tar"},
        {"split": "validation", "path": "val/*.tar"},
    ]


def test_a_split_named_validation_keeps_its_name() -> None:
    names = [entry["split"] for entry in data_files({"val": ONE, "validation": ONE, "train": EMPTY})]
    assert names == ["val", "validation"]


def test_the_stand_in_captioner_is_called_one(media: Media) -> None:
    said = "stand-in, not a vision-language model"
    assert said in card(media, Story("a", captioner="tags:efficientnet-lite0"))
    assert said not in card(media, Story("a", captioner="llava-next:7b"))


def test_who_wrote_the_text(media: Media) -> None:
    text = card(media, Story("a"))
    assert "`smollm2@1`" in text and "`whisper-tiny.en@1`" in text and "`tags:efficientnet-lite0`" in text
    assert "people, in the source's annotations" not in text
    text = card(media, Story("a", manual=True))
    assert "people, in the source's annotations" in text
    assert "a language model, `smollm2@1`" not in text


def test_text_from_sources_stays_text(media: Media) -> None:
    text = card(media, Story("a", captioner="x`|<script>\n# Not a heading"))
    assert "<script" not in text
    assert "\n# Not a heading" not in text


def test_features_have_the_open_keys_of_the_set_and_no_empty_structs(media: Media) -> None:
    features = front_matter(card(media, Story("a")))["dataset_info"]["features"]
    parts = {part["name"]: part for part in features[0]["struct"]}
    assert list(parts) == list(Sample.model_fields)
    assert parts["checks"]["struct"] == [{"name": "text_similarity", "dtype": "float64"}]
    assert {part["name"] for part in parts["lineage"]["struct"]} == {stage.name for stage in STAGES}
    statistics = Statistics()
    sample = samples(Story("a"), media)[0]
    statistics.add(sample.model_copy(update={"checks": {}}))
    bare = front_matter(card_text("x", {"train": ONE}, statistics))["dataset_info"]["features"]
    assert "checks" not in {part["name"] for part in bare[0]["struct"]}


def test_statistics_count_words_videos_and_seconds(media: Media) -> None:
    statistics = Statistics()
    for story in (Story("a", num_clips=2), Story("b", num_clips=4, split="val")):
        for sample in samples(story, media):
            statistics.add(sample)
    total = statistics.to_values(["train", "val"])["total"]
    # "Slice the onion" + "a pan, still", then "Stir the pot n times" + "a pan, still"
    words = 2 * (3 + 3) + 4 * (5 + 3)
    assert total == {
        "num_videos": {"train": 1, "val": 1},
        "num_clips": 6,
        "num_frames": 60,
        "mean_clip_s": 1.0,
        "mean_clips_per_video": 3.0,
        "mean_words_per_video": words / 2,
    }
    assert Statistics().to_values(["train"])["total"]["mean_clip_s"] == 0.0


def test_the_card_of_a_written_set(media: Media, tmp_path: Path) -> None:
    config = ShardsConfig()
    manifest: Manifest = write_shards(
        make_states([Story("a"), Story("b", split="val")], media),
        [],
        config=config,
        run_config=RunConfig(config),
        places=media.places,
        out=tmp_path,
        stages=STAGES,
    )
    text = (tmp_path / "README.md").read_text()
    assert front_matter(text)["configs"] == [{"config_name": "default", "data_files": data_files(manifest.splits)}]
    assert front_matter(text)["size_categories"] == ["n<1K"]
    assert "| demo | 1 | 1 | 6 | 1.00 | 3.00 | 60 |" in text


@pytest.mark.parametrize(
    ("licences", "identifier"),
    [
        ({"CC0-1.0"}, "cc0-1.0"),
        ({"CC0"}, "cc0-1.0"),
        ({"Apache-2.0"}, "apache-2.0"),
        ({"CC BY 4.0", "cc-by-4.0"}, "cc-by-4.0"),
        ({"CC0-1.0", "CC-BY-4.0"}, "other"),
        ({"CC0-1.0", None}, "other"),
        ({None}, "other"),
        ({""}, "other"),
        ({"YouTube\nlicense: mit"}, "other"),
        (set(), "other"),
    ],
)
def test_a_licence_is_named_where_all_videos_state_it(licences: set[str | None], identifier: str) -> None:
    assert hub_licence(licences) == identifier


def test_names_from_hostile_sets_are_no_markup() -> None:
    text = card_text("x\x1b[31m\n# <b>|", {"train": ONE}, Statistics())
    assert "\x1b" not in text
    assert "# x[31m # b\n" in text
    assert front_matter(text)["pretty_name"] == "x\x1b[31m\n# <b>|"
