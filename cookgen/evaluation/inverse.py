"""Inverse generation: is a caption good enough that a generator makes the clip again from it and the keyframe?

Every clip is generated from its caption and keyframe, and compared with the frames that the source shows from the
keyframe on. What was done of a clip is kept, so a killed run goes on where it was.
Source: VideoAuteur, section 3.2, "Annotation Quality Reverification".
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cookgen.dataset.scores import caption_sha256
from cookgen.errors import InputError, ModelError, ShapeError
from cookgen.evaluation.distance import DDOF, clip_t, frechet_distance
from cookgen.evaluation.generators import Generator
from cookgen.files import atomic_path, digest, explained
from cookgen.perception.caption_models import check_frames
from cookgen.perception.encoders import Step
from cookgen.perception.encoders.vae import window
from cookgen.records import Score
from cookgen.runlog import Tally

CLIP_T, FRECHET = "inverse_clip_t", "inverse_frechet"
_ROUNDING = 1e-3  # of a frame: the JSON's seconds are rounded


class Encoder(Protocol):
    """A joint image-text space; see cookgen.evaluation.image_text.ImageText."""

    @property
    def identity(self) -> str: ...
    @property
    def resize(self) -> str: ...
    def images(self, frames_THWC: NDArray[np.uint8], /) -> NDArray[np.float32]: ...
    def texts(self, texts: Sequence[str], /) -> NDArray[np.float32]: ...
    def is_cut(self, text: str, /) -> bool: ...


@dataclass(frozen=True)
class InverseConfig:
    """num_frames are generated, and compared with as many of the source, `fps` a second, from the keyframe on.

    Where the source clip ends before, only the frames until its end are compared.
    """

    num_frames: int = 49
    fps: float = 8.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_frames < 2:
            raise ValueError(f"num_frames is {self.num_frames}; a clip has at least 2 frames")
        if not self.fps > 0:
            raise ValueError(f"fps is {self.fps}; it must be above 0")


@dataclass(frozen=True)
class Inverse:
    """What was measured: numbers of the whole, of each clip, and how (all that the numbers hang on)."""

    values: dict[str, float]
    scores: tuple[Score, ...]
    protocol: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Features:
    """Embeddings of the frames of one generated clip, of its source's, and of its caption."""

    generated_TD: NDArray[np.float32]
    source_TD: NDArray[np.float32]
    caption_D: NDArray[np.float32]


def evaluate_inverse(
    steps: Sequence[Step],
    generator: Generator,
    encoder: Encoder,
    config: InverseConfig,
    *,
    kept: Path | None = None,
    show: Callable[[Tally], None] = lambda tally: None,
) -> Inverse:
    """Generates every clip again and scores it.

    values: `clip_t` of generated frames and caption, mean over clips; `frechet`, the distance between all generated and
    all source frames' image embeddings (which frames there are, not in which order: this is no FVD); `source_clip_t`
    of the source's own frames, what the generator could reach. scores: `inverse_clip_t` and, where two frames or more
    are compared, `inverse_frechet`, the same distance within one clip. kept: a folder of what was done of this.
    show: told how far it is after every clip.

    Raises InputError without clips, FormatError for a damaged clip, ModelError where generator or encoder fails,
    OutputError where `kept` cannot be written.
    """
    if not steps:
        raise InputError("no clips to generate again; name another split")
    how = {"generator": generator.identity, "encoder": encoder.identity, **asdict(config)}
    tally = Tally(total=len(steps))
    scores: list[Score] = []
    found: list[_Features] = []
    for step in steps:
        path = None if kept is None else kept / f"{_digest(step, how)}.npz"
        features = None if path is None else _read(path)
        if features is None:
            features = _features(step, generator, encoder, config)
            if path is not None:
                _write(path, features)
        else:
            tally.reused += 1
        found.append(features)
        scores += _scores(step, features)
        tally.done += 1
        show(tally)
    generated, source = (
        np.concatenate([getattr(item, side) for item in found]) for side in ("generated_TD", "source_TD")
    )
    values = {
        "clip_t": float(np.mean([clip_t(item.generated_TD, item.caption_D) for item in found])),
        "source_clip_t": float(np.mean([clip_t(item.source_TD, item.caption_D) for item in found])),
    }
    if len(generated) >= 2:
        values["frechet"] = frechet_distance(generated, source)
    protocol = {
        **how,
        "num_clips": len(steps),
        "num_frames_compared": len(generated),
        "num_captions_cut": sum(encoder.is_cut(step.caption) for step in steps),
        "resize": encoder.resize,
        "clip_t": "100 * mean cosine of frame and caption embeddings, mean over clips",
        "frechet": f"between all frames' image embeddings ({generated.shape[1]} wide, not normalised), ddof {DDOF}",
    }
    return Inverse(values, tuple(scores), protocol)


def inverse_text(values: Mapping[str, float], protocol: Mapping[str, Any]) -> str:
    """The numbers for people, and how they came to be."""
    lines = [f"CLIP-T of generated frames    {values['clip_t']:10.4f}"]
    lines.append(f"CLIP-T of the source's own    {values['source_clip_t']:10.4f}")
    if "frechet" in values:
        lines.append(f"Fréchet distance, all frames  {values['frechet']:10.4f}")
    return "\n".join([*lines, "", "protocol", *(f"  {name}: {value}" for name, value in protocol.items())])


def _features(step: Step, generator: Generator, encoder: Encoder, config: InverseConfig) -> _Features:
    key = _key(step)
    numbers = _compared(step, config)
    source_THWC = step.frames(numbers)
    seed = int(hashlib.sha256(f"{config.seed}:{key}".encode()).hexdigest()[:8], 16)  # whatever the order of clips
    generated_THWC = generator.generate(step.caption, step.keyframe(), num_frames=config.num_frames, seed=seed)
    try:
        check_frames(generated_THWC)
        if len(generated_THWC) != config.num_frames:
            raise ShapeError(f"{len(generated_THWC)} frames; asked for {config.num_frames}")
    except ShapeError as error:
        raise ModelError(f"{generator.identity}: of {key} it made {error}") from error
    generated_TD, source_TD = encoder.images(generated_THWC[: len(numbers)]), encoder.images(source_THWC)
    (caption_D,) = encoder.texts([step.caption])
    if not all(np.isfinite(array).all() for array in (generated_TD, source_TD, caption_D)):
        raise ModelError(f"{encoder.identity}: gives numbers for {key} that are not finite")
    return _Features(generated_TD, source_TD, caption_D)


def _compared(step: Step, config: InverseConfig) -> list[int]:
    """The window's frames without those that repeat the clip's last one because the clip has ended."""
    clip = step.sample.clip
    numbers = window(step, num_frames=config.num_frames, fps=config.fps)
    shown_s = (clip.num_frames - numbers[0] - _ROUNDING) / clip.fps  # of the clip, from the first of them on
    return [number for k, number in enumerate(numbers) if k / config.fps < shown_s]


def _scores(step: Step, features: _Features) -> Iterator[Score]:
    sample = step.sample
    values = {CLIP_T: clip_t(features.generated_TD, features.caption_D)}
    if len(features.source_TD) >= 2:
        values[FRECHET] = frechet_distance(features.generated_TD, features.source_TD)
    for name, value in values.items():
        yield Score(
            narrative=sample.narrative,
            clip_sha256=sample.clip.sha256,
            caption_sha256=caption_sha256(step.caption),
            check=name,
            score=value,
        )


def _key(step: Step) -> str:
    return f"{step.sample.narrative}-{step.sample.index:03d}"


def _digest(step: Step, how: dict[str, Any]) -> str:
    """Names what is kept of a clip; another caption, clip, generator, encoder or setting has another name."""
    sample = step.sample
    return digest([how, _key(step), sample.clip.sha256, sample.keyframe.pts_s, step.caption])[:32]


def _read(path: Path) -> _Features | None:
    """What is kept of a clip; None where nothing is, or what is there cannot be read."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            features = _Features(**{name: arrays[name] for name in ("generated_TD", "source_TD", "caption_D")})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return features


def _write(path: Path, features: _Features) -> None:
    with explained(path), atomic_path(path) as temporary:
        np.savez(temporary, **vars(features))
