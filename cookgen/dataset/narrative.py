"""A narrative: one source video as an ordered sequence of steps; and a window, a few consecutive ones of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cookgen.dataset.sample import Reader, Step, read_steps
from cookgen.dataset.sidecar import FeatureArrays
from cookgen.records import Narrative as Row


@dataclass(frozen=True, repr=False)
class Narrative:
    """One source video as an ordered sequence of steps.

    Its name, split and number of steps come from the set's index; the rest is read from the shard when first asked for.
    Narratives pickle and may be used from many threads.
    """

    row: Row  # of the narratives table
    reader: Reader

    @property
    def name(self) -> str:
        """`{source}-{video_id}`, unique in the set."""
        return self.row.narrative

    @property
    def num_steps(self) -> int:
        """How many steps the narrative has; at least one."""
        return self.row.num_steps

    @property
    def split(self) -> str:
        """The split that the narrative is in."""
        return self.row.split

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps in the order of time. Raises FormatError where the shard is missing or damaged."""
        known: tuple[Step, ...] | None = self.__dict__.get("_steps")  # cached_property has one lock for all instances
        if known is None:
            known = self.__dict__["_steps"] = read_steps(self.reader, self.row)
        return known

    @property
    def features(self) -> Mapping[str, NDArray[np.float16]]:
        """What load_split(features=…) named, for all steps at once: float16 [num_steps, *shape of the encoder]."""
        return FeatureArrays(self.reader.sidecars, self.row, 0, self.num_steps)

    @property
    def title(self) -> str | None:
        """The source's title of the video, None where it has none."""
        return self.steps[0].sample.video.title

    @property
    def topic(self) -> str | None:
        """What the video is about, for example the dish; None where the source does not say."""
        return self.steps[0].sample.video.topic

    @property
    def source(self) -> str:
        """The kind of source that the video came from, for example "youcook2"."""
        return self.steps[0].sample.video.source

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"Narrative({self.name!r}, {self.num_steps} steps)"


@dataclass(frozen=True, repr=False)
class Window:
    """Consecutive steps of one narrative: [first, first + num_steps). Pickles; may be used from many threads."""

    narrative: Narrative
    first: int
    num_steps: int

    @property
    def name(self) -> str:
        """`{narrative}[{first}:{end}]`, unique in the set."""
        return f"{self.narrative.name}[{self.first}:{self.first + self.num_steps}]"

    @property
    def steps(self) -> tuple[Step, ...]:
        """The window's steps in the order of time. Raises FormatError where the shard is missing or damaged."""
        return self.narrative.steps[self.first : self.first + self.num_steps]

    @property
    def features(self) -> Mapping[str, NDArray[np.float16]]:
        """What load_split(features=…) named, for the window's steps: float16 [num_steps, *shape of the encoder]."""
        return FeatureArrays(self.narrative.reader.sidecars, self.narrative.row, self.first, self.num_steps)

    def __repr__(self) -> str:
        return f"Window({self.name!r})"
