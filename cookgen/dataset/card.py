"""The dataset card of a shard set: README.md, whose front matter makes `datasets.load_dataset(OUT)` work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal, get_args, get_origin

import yaml  # type: ignore[import-untyped,unused-ignore]
from pydantic import BaseModel

from cookgen.dataset.statistics import Statistics
from cookgen.dataset.tables import without_none
from cookgen.records import FORMAT, Features, Sample, Split

_DTYPES: dict[type, str] = {str: "string", int: "int64", float: "float64", bool: "bool"}
_STAND_IN = "tags"  # captioners whose id starts so are no vision-language models
_OTHER = "other"
# The Hub's identifiers that are licences of works. Source: huggingface.co/docs/hub/repositories-licenses
_HUB_LICENCES = frozenset(
    """apache-2.0 mit unlicense pddl odbl odc-by cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 gfdl
    cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0""".split()
)


def data_files(splits: Mapping[str, Split]) -> list[dict[str, str]]:
    """The `data_files` of the card's one configuration: a pattern for each split that has shards."""
    # The hub's word for val is validation, unless the source has a split of that very name.
    names = {"val": "validation"} if "validation" not in splits else {}
    return [
        {"split": names.get(split, split), "path": f"{split}/*.tar"} for split in sorted(splits) if splits[split].shards
    ]


def hub_licence(licences: Iterable[str | None]) -> str:
    """The Hub's identifier of the licence that all videos state; "other" where they differ, or it is none of those."""
    named = {"-".join((licence or _OTHER).lower().split()) for licence in licences}
    identifier = {"cc0": "cc0-1.0"}.get(name := named.pop(), name) if len(named) == 1 else _OTHER
    return identifier if identifier in _HUB_LICENCES else _OTHER


def card_text(
    name: str, splits: Mapping[str, Split], statistics: Statistics, *, features: Sequence[Features] = ()
) -> str:
    """The whole README.md of a set: YAML front matter, who wrote the text, statistics, licence, how to load."""
    sections = [
        f"# {_plain(name)}",
        f"Long narrative videos in the format {FORMAT}: one sample is one clip of a video with the action that is done"
        " and a caption of what is seen; consecutive samples of one narrative are the steps of one video, in order.",
        authors_section(statistics),
        statistics_section(splits, statistics),
        *([_features_section(features)] if features else []),
        licence_section(statistics),
        _LOADING,
    ]
    return front_matter(_front_values(name, splits, statistics)) + "\n\n".join(sections) + "\n"


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML block at the head of a card."""
    return f"---\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120)}---\n\n"


def common_values(name: str, splits: Mapping[str, Split], statistics: Statistics) -> dict[str, Any]:
    """What the front matter says of a set in whatever form it is handed on."""
    return {
        "pretty_name": name,
        "license": hub_licence(statistics.licences),
        "language": ["en"],
        "task_categories": ["text-to-video", "video-text-to-text"],
        "tags": ["video", "cooking", "narrative"],
        "size_categories": [_size_category(sum(split.num_clips for split in splits.values()))],
    }


def _front_values(name: str, splits: Mapping[str, Split], statistics: Statistics) -> dict[str, Any]:
    front = common_values(name, splits, statistics)
    front["tags"].insert(0, "webdataset")
    files = data_files(splits)
    if files:
        front["configs"] = [{"config_name": "default", "data_files": files}]
        # Written out, for a reader that guesses from the first few samples meets nulls where others have text.
        front["dataset_info"] = {
            "features": [
                _feature("json", Sample, statistics),
                {"name": "mp4", "dtype": "video"},
                {"name": "jpg", "dtype": "image"},
                {"name": "__key__", "dtype": "string"},
                {"name": "__url__", "dtype": "string"},
            ]
        }
    return front


def _feature(name: str, hint: Any, statistics: Statistics) -> dict[str, Any]:
    inner, _ = without_none(hint)
    if inner in _DTYPES:
        return {"name": name, "dtype": _DTYPES[inner]}
    if get_origin(inner) is Literal or (isinstance(inner, type) and issubclass(inner, StrEnum)):
        return {"name": name, "dtype": "string"}
    if get_origin(inner) is tuple:
        return {"name": name, "list": _DTYPES[without_none(get_args(inner)[0])[0]]}
    if get_origin(inner) is dict:  # open keys: those that this set has
        keys = {"checks": statistics.checks, "lineage": statistics.stages}[name]
        return {"name": name, "struct": [_feature(key, get_args(inner)[1], statistics) for key in sorted(keys)]}
    assert issubclass(inner, BaseModel), f"no feature type for {inner}"
    parts = [_feature(part, info.annotation, statistics) for part, info in inner.model_fields.items()]
    return {"name": name, "struct": [part for part in parts if part.get("struct", True)]}  # no empty structs


def _size_category(num_clips: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((word for bound, word in bounds if num_clips < bound), "1M<n<10M")


def authors_section(statistics: Statistics) -> str:
    """The card's section on who wrote the text of a set: people, and which models."""
    lines = ["## Who wrote the text", ""]
    captioners = sorted(statistics.captioners)
    lines.append(f"- Captions: written by {_listed(captioners)}.")
    if any(origin.startswith(_STAND_IN) for origin in captioners):
        lines.append(
            f"  **The captioner `{_STAND_IN}` is a stand-in, not a vision-language model**: it words what an image"
            " classifier's labels and the measured motion show. Expect wrong objects; do not train a captioner on it."
        )
    if "manual" in statistics.action_origins:
        lines.append("- Actions with origin `manual`: people, in the source's annotations.")
    if "asr" in statistics.action_origins:
        speech, actions = (sorted(statistics.models.get(stage, ())) for stage in ("speech", "actions"))
        recogniser = f"the speech recogniser {_listed(speech)}, or from " if speech else ""
        lines.append(
            f"- Actions with origin `asr`: a language model, {_listed(actions)}, from what is said. The words come from"
            f" {recogniser}the source's own captions{' where it has them' if speech else ''}."
        )
    for stage in sorted(statistics.models.keys() - {"speech", "actions"}):
        lines.append(f"- Model of the stage `{stage}`: {_listed(sorted(statistics.models[stage]))}.")
    lines.append("")
    lines.append(
        "Text written by models was not checked by people. `lineage` in each sample names versions and digests."
    )
    return "\n".join(lines)


def statistics_section(splits: Mapping[str, Split], statistics: Statistics) -> str:
    """The card's section of the paper's columns, a row a source."""
    names = sorted(splits)
    values = statistics.to_values(names)
    columns = ["source", *(f"videos, {name}" for name in names)]
    columns += ["clips", "mean clip (s)", "clips a video", "frames", "words a video"]
    rows = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    for source, counts in [*values["sources"].items(), ("all", values["total"])]:
        rows.append(
            [
                _plain(source),
                *(f"{counts['num_videos'][name]:,}" for name in names),
                f"{counts['num_clips']:,}",
                f"{counts['mean_clip_s']:.2f}",
                f"{counts['mean_clips_per_video']:.2f}",
                f"{counts['num_frames']:,}",
                f"{counts['mean_words_per_video']:.1f}",
            ]
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return (
        f"## Statistics\n\n{table}\n\n"
        "Words are those of actions and captions. What did not pass, and why, is in `tables/rejects.parquet`."
    )


def _features_section(features: Sequence[Features]) -> str:
    lines = ["## Features", "", "Arrays aligned with the clips, read with `load_split(..., features=(name,))`:", ""]
    for item in features:
        shape = ", ".join(map(str, item.shape))
        lines.append(
            f"- `{item.name}`: {item.dtype} [{shape}], by {_listed([item.model])} at {_listed([item.revision])}"
        )
    return "\n".join(lines)


def licence_section(statistics: Statistics) -> str:
    """The card's section on whose the videos are."""
    stated = sorted(licence for licence in statistics.licences if licence)
    lines = ["## Licence", "", "The clips keep the licences of the videos that they were cut from (`video.licence`)."]
    if stated:
        lines.append(f"Stated by the source: {_listed(stated[:20])}{' and others' if len(stated) > 20 else ''}.")
    if None in statistics.licences or "" in statistics.licences:
        lines.append("For some or all videos the source states none: find out before you share them.")
    return "\n".join(lines)


_LOADING = """## Loading

```python
from cookgen import load_split

for narrative in load_split("train", "path/to/this/folder"):
    for step in narrative.steps:
        print(step.action, step.caption, step.frames().shape)
```

`webdataset.WebDataset("train/cookgen-train-000000.tar")` reads the shards as they are. So does
`datasets.load_dataset("path/to/this/folder")`; without a video decoder, cast the column first:
`.cast_column("mp4", datasets.Video(decode=False))`. `cookgen validate path/to/this/folder` checks the set."""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{_plain(name)}`" for name in names) or "(none)"


def _plain(text: str) -> str:
    """One line without the characters that Markdown, HTML or a terminal would read as markup."""
    return "".join(mark for mark in " ".join(text.split()) if mark.isprintable() and mark not in "`|<>")
