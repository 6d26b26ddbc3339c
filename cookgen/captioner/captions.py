"""Caption sets: clips with captions to learn, from JSON Lines and from shard sets, as one sequence.

A set in JSON Lines is a text file, UTF-8, an object a line. VideoAuteur's set, captions that GPT-4o wrote, has its
place here: as such a file.

    {"video": "clips/pizza-003.mp4", "caption": "Two hands press a ball of dough flat …"}
    {"frames": ["f/1.jpg", "f/2.jpg"], "caption": "…"}
    {"image": "dough.png", "prompt": "What lies on the board?", "caption": "…"}

    image     a picture                                     } exactly one of these; a path is relative to the
    frames    pictures of one clip, in the order of time    } file's own folder, or absolute
    video     an MP4 file
    caption   the text to learn
    prompt    what is asked; left out, it is what the captions stage asks (cookgen.perception.caption_models.PROMPT)

Of a video, of frames and of a shard's clip those are shown that the captions stage would show: num_frames of them,
evenly spaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cookgen.dataset.decode import count_frames, read_frames
from cookgen.dataset.frames import frame_numbers
from cookgen.dataset.sample import Step
from cookgen.dataset.split import Split
from cookgen.errors import InputError
from cookgen.picture import read_picture
from cookgen.records import faults

MAX_FRAMES = 1024  # of one line
_MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Example:
    """A clip and what is to be said of it. name: for messages, "captions.jsonl:12" or a clip's key."""

    name: str
    frames_THWC: NDArray[np.uint8]
    prompt: str | None
    caption: str


class Line(BaseModel):
    """One line of a set in JSON Lines."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image: str | None = None
    frames: list[str] | None = Field(None, min_length=1, max_length=MAX_FRAMES)
    video: str | None = None
    prompt: str | None = None
    caption: str

    @model_validator(mode="after")
    def _check(self) -> Line:
        given = [name for name in ("image", "frames", "video") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of image, frames and video says what is seen, here {given or 'none'}")
        for name in ("caption", "prompt"):
            if getattr(self, name) is not None and not getattr(self, name).strip():
                raise ValueError(f"the {name} is empty")
        return self

    @property
    def paths(self) -> list[str]:
        """The files that it names."""
        return self.frames or [self.image or self.video or ""]


class Source(Protocol):
    """Examples by number."""

    def __len__(self) -> int: ...
    def name_of(self, index: int, /) -> str: ...
    def example(self, index: int, /) -> Example: ...


@dataclass(frozen=True, eq=False)
class JsonLines:
    """A set in JSON Lines. Lines are read when they are asked for: a set of millions takes 8 bytes of memory each."""

    path: Path
    num_frames: int
    starts: NDArray[np.int64]  # of each line, and the file's end

    @staticmethod
    def open(path: Path, *, num_frames: int) -> JsonLines:
        """Every line is looked at, and that the files are there which it names; none of them is opened.

        Raises InputError naming the file and the line.
        """
        starts = [0]
        try:
            with path.open("rb") as stream:
                while content := stream.readline(_MAX_LINE_BYTES + 1):
                    number = len(starts)
                    for name in _line(path, number, content).paths:
                        if not _is_file(path.parent / name):
                            raise InputError(
                                f"{path}:{number}: {name[:200]!r} is no file in {path.parent}; give a path that is "
                                "relative to that folder, or absolute"
                            )
                    starts.append(starts[-1] + len(content))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error}); give --captions a file in JSON Lines") from error
        if len(starts) == 1:
            raise InputError(f"{path}: is empty; a caption set has a JSON object a line, see README, The captioner")
        return JsonLines(path, num_frames, np.array(starts, np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def name_of(self, index: int) -> str:
        """The file and the number of the line, from 1."""
        return f"{self.path}:{index + 1}"

    def example(self, index: int) -> Example:
        """Reads a line and its pictures. Raises InputError naming file and line."""
        start, end = self.starts[index : index + 2].tolist()
        try:
            with self.path.open("rb") as stream:
                stream.seek(start)
                line = _line(self.path, index + 1, stream.read(end - start))
            frames_THWC = self._frames(line)
        except (InputError, OSError) as error:
            reason = str(error).removeprefix(f"{self.name_of(index)}: ")
            raise InputError(f"{self.name_of(index)}: {reason}") from error
        return Example(self.name_of(index), frames_THWC, line.prompt, line.caption)

    def _frames(self, line: Line) -> NDArray[np.uint8]:
        folder = self.path.parent
        if line.video is not None:
            video = folder / line.video
            return read_frames(video, frame_numbers(count_frames(video), self.num_frames))
        names = [line.paths[number] for number in frame_numbers(len(line.paths), self.num_frames)]
        pictures = [read_picture(folder / name) for name in names]
        if len(sizes := {picture.shape for picture in pictures}) > 1:
            (height, width, _), (other_height, other_width, _), *_ = sorted(sizes)
            raise InputError(
                f"its frames are of different sizes, {width}x{height} and {other_width}x{other_height} pixels; "
                "the frames of one clip have one size"
            )
        return np.stack(pictures)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no path at all: longer than any
        return False


def _line(path: Path, number: int, content: bytes) -> Line:
    if len(content) > _MAX_LINE_BYTES:
        raise InputError(f"{path}:{number}: is longer than {_MAX_LINE_BYTES} bytes; is this a file in JSON Lines?")
    try:
        return Line.model_validate_json(content)
    except ValidationError as error:
        raise InputError(f"{path}:{number}: {faults(error)[0]}; see README, The captioner") from None


@dataclass(frozen=True, eq=False)
class Clips:
    """The clips of a shard set's split, with the captions that they have."""

    split: Split[Step]
    num_frames: int

    def __len__(self) -> int:
        return len(self.split)

    def name_of(self, index: int) -> str:
        """The clip's key."""
        return self.split.name_of(index)

    def example(self, index: int) -> Example:
        """Reads the clip. Raises FormatError where it is damaged."""
        step = self.split[index]
        frames_THWC = step.frames(frame_numbers(step.num_frames, self.num_frames))
        return Example(step.key, frames_THWC, None, step.caption)


@dataclass(frozen=True, eq=False)
class CaptionSet:
    """Several sources as one sequence, which a loader can read. Pickles."""

    name: str
    sources: tuple[Source, ...]
    seed: int | None = None
    function: Callable[[Example], Any] | None = None

    @property
    def is_mapped(self) -> bool:
        """Whether items are what a function made of the examples."""
        return self.function is not None

    def unshuffled(self) -> CaptionSet:
        """In the sources' order."""
        return replace(self, seed=None)

    def map(self, function: Callable[[Example], Any]) -> CaptionSet:
        """The set whose items are `function(example)`."""
        return replace(self, function=function)

    def name_of(self, index: int) -> str:
        """What the example is called."""
        source, own = self._place(index)
        return source.name_of(own)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, index: int) -> Any:
        source, own = self._place(index)
        example = source.example(own)
        return example if self.function is None else self.function(example)

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def _place(self, index: int) -> tuple[Source, int]:
        ends: Sequence[int] = list(accumulate(map(len, self.sources)))
        for source, end in zip(self.sources, ends, strict=True):
            if index < end:
                return source, index - end + len(source)
        raise IndexError(f"example {index} of {len(self)}")
