"""evidence: what the checks weigh, measured before anything is matched, so that other thresholds need no model.

A clip and an action that do not overlap can be no step whatever the thresholds are. All others are measured here: what
their texts mean, whether the clip decodes, whether somebody only talks in it, what judges say of the caption, and what
`cookgen eval` measured on an earlier set that had the very same clip and caption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cookgen.config import machinery
from cookgen.dataset.decode import read_frames
from cookgen.dataset.frames import frame_numbers
from cookgen.dataset.scores import caption_sha256, scores_identity, scores_of
from cookgen.errors import FormatError
from cookgen.matching import overlap
from cookgen.modelstore import identity
from cookgen.perception.faces import SIDE, face_detector, has_face
from cookgen.perception.judges import Judge, JudgesConfig, ask_judges, judges_identity, load_judges
from cookgen.perception.text_embedding import TextEmbedder, load_text_embedder
from cookgen.records import Action, Caption, Clip, Evidence, Reason, Reject, meaning_of
from pipelines.probe import open_container
from pipelines.stage import Needs, Places, Stage

NUM_LOOKS = 4  # frames of a clip in which a face is looked for: those in the middle of its quarters


@dataclass(frozen=True)
class EvidenceConfig:
    """The sentence encoder that says what action and caption mean, and who else is asked."""

    model: str = "all-minilm-l6-v2"  # a reference of the model store, in transformers' form
    judges: JudgesConfig = JudgesConfig()
    scores: str | None = machinery(None)  # a file of `cookgen eval`; its content is part of the stage's model

    def __post_init__(self) -> None:
        if self.scores is not None and not Path(self.scores).is_absolute():
            raise ValueError(f"scores is {self.scores}; write the whole path: workers may run in other folders")


@dataclass(frozen=True)
class Tool:
    """Where the clips are, and an encoder that is loaded when the first narrative needs it."""

    places: Places
    config: EvidenceConfig

    @cached_property
    def embedder(self) -> TextEmbedder:
        return load_text_embedder(self.config.model)

    @cached_property
    def judges(self) -> tuple[Judge, ...]:
        return load_judges(self.config.judges)


def gather_evidence(
    clips: Sequence[Clip], actions: Sequence[Action], captions: Sequence[Caption], *, config: EvidenceConfig, tool: Tool
) -> Iterator[Evidence | Reject]:
    """A row for each clip with a caption that overlaps an action, then for each such action, by their index.

    A clip's scores: `clip_decodes` (share of its frames that decode, 0 to 1) and `talking_head` (share of NUM_LOOKS
    frames with a face, see has_face; a frame that does not decode shows none); with judges, `caption_coverage` and
    `caption_hallucination` of each and on average (1 to 5), or a reject that says which judge gave none; with a file of
    scores, what that says. Raises ModelServerError where a judge cannot be reached.
    """
    text_of = {caption.clip_index: caption.text for caption in captions}
    pairs = [
        (clip, action)
        for clip in clips
        if clip.clip_index in text_of
        for action in actions
        if overlap((clip.start_s, clip.end_s), (action.start_s, action.end_s))[1] > 0
    ]
    seen = sorted({clip.clip_index: clip for clip, _ in pairs}.items())
    told = sorted({action.action_index: action for _, action in pairs}.items())
    texts = [text_of[index] for index, _ in seen] + [action.text for _, action in told]
    meanings = [meaning_of(vector) for vector in tool.embedder.embed(texts)] if texts else []
    captioned = [(clip, text_of[index]) for index, clip in seen]
    found = zip(
        captioned, meanings, _judged(captioned, config.judges, tool), _measured(captioned, config), strict=False
    )
    for (clip, _), meaning, (judged, faults), measured in found:
        decodes, talks = watch(tool.places.medium(clip.sha256, ".mp4"), clip.num_frames)
        scores = {"clip_decodes": decodes, "talking_head": talks} | judged | measured
        yield Evidence(narrative=clip.narrative, clip_index=clip.clip_index, meaning=meaning, scores=scores)
        for reason, detail in faults:
            index, stage = clip.clip_index, "evidence"
            yield Reject(narrative=clip.narrative, path="", clip_index=index, stage=stage, reason=reason, detail=detail)
    for (index, action), meaning in zip(told, meanings[len(seen) :], strict=True):
        yield Evidence(narrative=action.narrative, action_index=index, meaning=meaning)


def _judged(
    captioned: Sequence[tuple[Clip, str]], config: JudgesConfig, tool: Tool
) -> Iterator[tuple[dict[str, float], list[tuple[Reason, str]]]]:
    """Of each clip: the judges' scores of its caption, and why there are none."""

    def ask(shown: tuple[Clip, str]) -> tuple[dict[str, float], list[tuple[Reason, str]]]:
        clip, caption = shown
        path = tool.places.medium(clip.sha256, ".mp4")
        try:
            frames_THWC = read_frames(path, frame_numbers(clip.num_frames, config.num_frames), num_threads=1)
        except (FormatError, IndexError) as error:
            return {}, [(Reason.DECODE_ERROR, f"not shown to the judges: {error}")]
        verdict = ask_judges(tool.judges, frames_THWC, caption)
        why = [f"no score by the judge {judge}: {problem}" for judge, problem in verdict.faults.items()]
        return verdict.scores, [(Reason.UNUSABLE_ANSWER, detail) for detail in why]

    if not config.models:
        yield from [({}, [])] * len(captioned)
        return
    with ThreadPoolExecutor(config.num_in_flight) as pool:
        yield from pool.map(ask, captioned)


def _measured(captioned: Sequence[tuple[Clip, str]], config: EvidenceConfig) -> Iterator[dict[str, float]]:
    """Of each clip: what the file of scores says of it and its caption."""
    found = scores_of(Path(config.scores), captioned[0][0].narrative) if config.scores and captioned else []
    for clip, caption in captioned:
        shown = clip.sha256, caption_sha256(caption)
        yield {score.check: score.score for score in found if (score.clip_sha256, score.caption_sha256) == shown}


def watch(path: Path, num_frames: int) -> tuple[float, float]:
    """(share of the frames that decode, share of NUM_LOOKS frames with a face) of a file's first video stream.

    Both 0 for a file that is no video. Raises FileNotFoundError: a clip that is not in the store is the store's
    trouble, not the clip's.
    """
    import av

    looks = {int((number + 0.5) * num_frames / NUM_LOOKS) for number in range(NUM_LOOKS)}
    decoded = with_face = 0
    try:
        with open_container(path) as container:
            for packet in container.demux(container.streams.video[0]) if container.streams.video else ():
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    continue  # this packet's frames are missing from the count
                for frame in frames:
                    if decoded in looks:
                        grey_HW = frame.to_ndarray(width=SIDE, height=SIDE, format="gray")
                        with_face += has_face(grey_HW.astype(np.uint8, copy=False))
                    decoded += 1
    except FileNotFoundError:
        raise
    except av.FFmpegError:
        pass  # what was read until then counts
    return min(1.0, decoded / num_frames), with_face / len(looks)


def load(config: EvidenceConfig, places: Places) -> Tool:
    """The stage's tool; the model itself is loaded when a narrative needs it."""
    return Tool(places, config)


def model_identity(config: EvidenceConfig) -> str:
    """What the rows depend on beside the configuration: the models, the judges' prompt, the file of scores."""
    scores = "" if config.scores is None else f"+scores-{scores_identity(Path(config.scores))}"
    return f"{identity(config.model)}+{face_detector()}{judges_identity(config.judges)}{scores}"


STAGE = Stage(
    name="evidence",
    reads=(Clip, Action, Caption),
    writes=Evidence,
    run=gather_evidence,
    config=EvidenceConfig(),
    version=1,
    needs=Needs(cpus=1),
    load=load,
    model=model_identity,
)
