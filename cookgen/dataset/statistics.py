"""What a shard set holds, counted while its samples pass by: the columns of the paper's Tables 1 and 2, and lengths."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from cookgen.records import Sample

_SPLITS = ("train", "val")


@dataclass
class _Count:
    num_videos: Counter[str] = field(default_factory=Counter)
    num_clips: int = 0
    num_frames: int = 0
    clip_s: Fraction = Fraction(0)  # exact: the same in any order
    num_words: int = 0

    def add(self, sample: Sample) -> None:
        self.num_videos[sample.split] += sample.index == 0
        self.num_clips += 1
        self.num_frames += sample.clip.num_frames
        self.clip_s += Fraction(round(sample.clip.end_s - sample.clip.start_s, 6))
        self.num_words += num_words(sample)

    def to_values(self, splits: list[str]) -> dict[str, Any]:
        videos = self.num_videos.total()
        return {
            "num_videos": {split: self.num_videos[split] for split in splits},
            "num_clips": self.num_clips,
            "num_frames": self.num_frames,
            "mean_clip_s": round(float(self.clip_s / self.num_clips), 6) if self.num_clips else 0.0,
            "mean_clips_per_video": round(self.num_clips / videos, 6) if videos else 0.0,
            "mean_words_per_video": round(self.num_words / videos, 6) if videos else 0.0,
        }


class Statistics:
    """Running counts over samples, in total and by source, with who wrote the text.

    Seconds are the clips' spans; words are those of actions and captions, split at blanks.
    Source of the columns: VideoAuteur, Tables 1 and 2.
    """

    def __init__(self) -> None:
        self._total = _Count()
        self._sources: dict[str, _Count] = {}
        self.captioners: set[str] = set()
        self.action_origins: set[str] = set()
        self.licences: set[str | None] = set()
        self.models: dict[str, set[str]] = {}  # stage -> the models that its results came from
        self.checks: set[str] = set()
        self.stages: set[str] = set()
        # Whole seconds a clip, steps a narrative, words a narrative -> how many have so many.
        self.lengths: dict[str, Counter[int]] = {name: Counter() for name in ("clip_s", "steps", "words")}
        self._words = 0  # of the narrative that is passing by

    def add(self, sample: Sample) -> None:
        """Counts one clip. The clips of a narrative come one after the other."""
        for count in (self._total, self._sources.setdefault(sample.video.source, _Count())):
            count.add(sample)
        self.captioners.add(sample.caption.origin)
        self.action_origins.add(sample.action.origin)
        self.licences.add(sample.video.licence)
        self.checks.update(sample.checks)
        for stage, lineage in sample.lineage.items():
            self.stages.add(stage)
            if lineage.model is not None:
                self.models.setdefault(stage, set()).add(lineage.model)
        self._words = (self._words if sample.index else 0) + num_words(sample)
        self.lengths["clip_s"][math.floor(sample.clip.end_s - sample.clip.start_s)] += 1
        if sample.index == sample.num_steps - 1:
            self.lengths["steps"][sample.num_steps] += 1
            self.lengths["words"][self._words] += 1

    @property
    def splits(self) -> list[str]:
        """train, val, and whatever other splits there are clips of."""
        return [*_SPLITS, *sorted(self._total.num_videos.keys() - set(_SPLITS))]

    def to_values(self, splits: list[str]) -> dict[str, Any]:
        """The manifest's `statistics`: {"total": columns, "sources": {source: columns}}."""
        return {
            "total": self._total.to_values(splits),
            "sources": {name: count.to_values(splits) for name, count in sorted(self._sources.items())},
        }


def num_words(sample: Sample) -> int:
    """The words of a clip's action and caption, split at blanks."""
    return len(sample.action.text.split()) + len(sample.caption.text.split())
