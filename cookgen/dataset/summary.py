"""A finished shard set as a whole: its counts beside the published ones, and its card as it should be now.

Apart from card.py and statistics.py, which the pipeline writes sets with: these functions read one again.
"""

from __future__ import annotations

import contextlib
import itertools
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cookgen.dataset.card import card_text
from cookgen.dataset.location import locate
from cookgen.dataset.sidecar import feature_names, open_sidecar
from cookgen.dataset.split import load_split, read_manifest
from cookgen.dataset.statistics import Statistics
from cookgen.errors import FormatError

# VideoAuteur (arXiv 2501.06173), Table 1: source, videos (train / val), clips, clip length, clips a video.
PUBLISHED_SOURCES = (
    ("YouCook2", "1333 / 457", "~10K", "19.6 s", "7.7"),
    ("HowTo100M (subset)", "30039 / 933", "~183K", "9.5 s", "5.9"),
)
# Table 2: data set, modality, type, images (frames), words a narrative.
PUBLISHED_SETS = (
    ("Flintstones", "Image", "Comic", "122k", "86"),
    ("Pororo", "Image", "Comic", "74k", "74"),
    ("StorySalon", "Image", "Comic", "160k", "106"),
    ("StoryStream", "Image", "Comic", "258k", "146"),
    ("VIST", "Image", "Real world", "210K", "~70"),
    ("CookGen", "Video", "Real world", "39M", "763.8"),
)
_COLUMNS_1 = ("source", "videos (train / val)", "clips", "clip length", "clips a video")
_COLUMNS_2 = ("data set", "modality", "type", "images", "text length")
_RENDERED = "demo"  # the one source whose videos were never filmed


def card_of(out: Path) -> str:
    """The card of the set in `out`, with those of its features that load_split would join.

    Reads the JSON of every clip. Raises as load_split does.
    """
    location = locate(out)
    manifest = read_manifest(location)
    features = []
    for name in feature_names(out):
        with contextlib.suppress(FormatError):  # of another encoder, say, that is yet to be run again
            features.append(open_sidecar(location, name, manifest).features)
    return card_text(manifest.name, manifest.splits, read_statistics(out), features=features)


def read_statistics(out: Path) -> Statistics:
    """Counts the clips of all splits of the set in `out`, from their JSON. Raises as load_split does."""
    statistics = Statistics()
    for split in sorted(read_manifest(out).splits):
        for narrative in load_split(split, out):
            for step in narrative.steps:
                statistics.add(step.sample)
    return statistics


def statistics_values(statistics: Statistics) -> dict[str, Any]:
    """All of it as plain JSON values: columns in total and by source, [length, how many] pairs, published tables."""
    return {
        **statistics.to_values(statistics.splits),
        "lengths": {name: sorted(counts.items()) for name, counts in statistics.lengths.items()},
        "published": {
            "table_1": [dict(zip(_COLUMNS_1, row, strict=True)) for row in PUBLISHED_SOURCES],
            "table_2": [dict(zip(_COLUMNS_2, row, strict=True)) for row in PUBLISHED_SETS],
        },
    }


def statistics_text(statistics: Statistics) -> str:
    """The paper's Tables 1 and 2 with this set among the published values, and its lengths as bars; 100 columns."""
    values = statistics.to_values(statistics.splits)
    rows = [(f"this set: {source}", counts) for source, counts in values["sources"].items()]
    if len(rows) != 1:
        rows.append(("this set: in all", values["total"]))
    columns_1 = (_COLUMNS_1[0], f"videos ({' / '.join(statistics.splits)})", *_COLUMNS_1[2:])
    kinds = sorted({"Rendered" if source == _RENDERED else "Real world" for source in values["sources"]})
    total = values["total"]
    words = f"{total['mean_words_per_video']:.1f}"
    row_2 = ("this set", "Video", ", ".join(kinds), f"{total['num_frames']:,}", words)
    sections = [
        "Table 1. Sources. Clip length is the mean span.",
        _table([columns_1, *PUBLISHED_SOURCES, *(_row_1(title, counts) for title, counts in rows)]),
        "Table 2. Narrative data sets. Images are frames of clips; text length is words a narrative.",
        _table([_COLUMNS_2, *PUBLISHED_SETS, row_2]),
        "Published values: VideoAuteur, arXiv 2501.06173.",
    ]
    titles = {"clip_s": "Clips by seconds", "steps": "Narratives by steps", "words": "Narratives by words"}
    for key, title in titles.items():
        sections.append(f"{title}\n{_bars(statistics.lengths[key])}")
    return "\n\n".join(sections)


def _row_1(title: str, counts: dict[str, Any]) -> tuple[str, ...]:
    return (
        title,
        " / ".join(f"{count:,}" for count in counts["num_videos"].values()),
        f"{counts['num_clips']:,}",
        f"{counts['mean_clip_s']:.1f} s",
        f"{counts['mean_clips_per_video']:.1f}",
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a rule; the first is cut to 40 characters."""
    cells = [[textwrap.shorten(cell, 40, placeholder="…") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _bars(counts: Counter[int]) -> str:
    """A line for each of at most 13 bins of one round width; the longest bar is 60 characters."""
    if not counts:
        return "  (none)"
    low, high = min(counts), max(counts)
    sizes = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
    size = next(size for size in sizes if high // size - low // size <= 12)
    bins = Counter(dict.fromkeys(range(low // size, high // size + 1), 0))
    for value, count in counts.items():
        bins[value // size] += count
    longest = max(bins.values())
    label = str if size == 1 else lambda first: f"{first} - {first + size - 1}"
    width = max(len(label(place * size)) for place in bins)
    return "\n".join(
        f"  {label(place * size):>{width}}  {'█' * -(-count * 60 // longest)} {count:,}"
        for place, count in sorted(bins.items())
    )
