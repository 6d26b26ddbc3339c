"""A finished set as a whole: counted from its clips, beside the published values; its card as it is now."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookgen.dataset.statistics import Statistics
from cookgen.dataset.summary import _bars, card_of, read_statistics, statistics_text, statistics_values
from cookgen.errors import FormatError, InputError
from tests.shardset import Story, add_features, make_set

STORIES = (Story("a", num_clips=2), Story("b", num_clips=8, source="folder"), Story("c", num_clips=3, split="val"))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("statistics") / "set", STORIES, target_shard_bytes=40_000)


def test_all_splits_are_counted_as_the_pipeline_counted_them(out: Path) -> None:
    statistics = read_statistics(out)
    manifest = json.loads((out / "dataset.json").read_bytes())
    assert statistics.splits == ["train", "val"]
    assert statistics.to_values(statistics.splits) == manifest["statistics"]


def test_lengths_agree_with_the_tables(out: Path) -> None:
    lengths = read_statistics(out).lengths
    narratives = pq.read_table(out / "tables" / "narratives.parquet").column("num_steps").to_pylist()
    assert lengths["steps"] == Counter(narratives) == {2: 1, 8: 1, 3: 1}
    assert lengths["clip_s"] == {1: 13}
    # "Slice the onion" + "a pan, still", then "Stir the pot n times" + "a pan, still"
    assert lengths["words"] == {6 + 8 * (steps - 1): 1 for steps in (2, 8, 3)}


def test_the_text_stands_beside_the_published_values(out: Path) -> None:
    text = statistics_text(read_statistics(out))
    assert max(map(len, text.splitlines())) <= 100
    rows = {line[:22].strip(): line[22:].split() for line in text.splitlines()}
    assert rows["HowTo100M (subset)"] == ["30039", "/", "933", "~183K", "9.5", "s", "5.9"]
    assert rows["this set: demo"] == ["1", "/", "1", "5", "1.0", "s", "2.5"]
    assert rows["this set: in all"] == ["2", "/", "1", "13", "1.0", "s", "4.3"]
    assert any(line.split() == ["CookGen", "Video", "Real", "world", "39M", "763.8"] for line in text.splitlines())
    assert any(line.startswith("this set  ") and line.split()[-2:] == ["130", "32.7"] for line in text.splitlines())


def test_values_are_json(out: Path) -> None:
    values = json.loads(json.dumps(statistics_values(read_statistics(out))))
    assert sorted(values) == ["lengths", "published", "sources", "total"]
    assert values["lengths"]["steps"] == [[2, 1], [3, 1], [8, 1]]
    assert values["published"]["table_1"][0]["clips a video"] == "7.7"


def test_an_empty_set_has_a_text() -> None:
    text = statistics_text(Statistics())
    assert "this set: in all" in text
    assert text.count("(none)") == 3


def test_a_source_with_a_long_or_odd_name_keeps_the_layout(tmp_path: Path) -> None:
    out = make_set(tmp_path / "set", [Story("a", source="s" * 90)])
    assert max(map(len, statistics_text(read_statistics(out)).splitlines())) <= 100


@given(st.dictionaries(st.integers(-3, 10**12), st.integers(1, 10**6), min_size=1, max_size=40))
def test_bars_count_everything_once_in_few_lines(counts: dict[int, int]) -> None:
    lines = _bars(Counter(counts)).splitlines()
    assert len(lines) <= 13
    assert sum(int(line.split()[-1].replace(",", "")) for line in lines) == sum(counts.values())
    assert max(line.count("█") for line in lines) == 60
    assert all(("█" in line) == (line.split()[-1] != "0") for line in lines)


def test_a_damaged_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dataset\.json"):
        read_statistics(tmp_path)
    out = make_set(tmp_path / "set", [Story("a")])
    shard = out / "train" / "cookgen-train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:700])
    with pytest.raises(FormatError, match=r"cookgen-train-000000\.tar"):
        read_statistics(out)


def test_the_card_of_a_set_as_it_is(tmp_path: Path) -> None:
    out = make_set(tmp_path / "set", [Story("a"), Story("b", split="val")])
    assert card_of(out) == (out / "README.md").read_text()
    (out / "features" / "unfinished").mkdir(parents=True)
    add_features(out, "clip", (4, 3))
    text = card_of(out)
    assert "- `clip`: float16 [4, 3], by " in text
    assert "unfinished" not in text
    (out / "features" / "clip").rename(out / "features" / "renamed")
    assert "## Features" not in card_of(out)  # load_split would not join them
