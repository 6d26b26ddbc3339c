"""evidence: what the checks weigh, measured before anything is matched, so that other thresholds need no model.

A clip and an action that do not overlap can be no step whatever the thresholds are. All others are measured here: what
their texts mean, whether the clip decodes, whether somebody only talks in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from cookgen.matching import overlap
from cookgen.modelstore import identity
from cookgen.perception.faces import SIDE, face_detector, has_face
from cookgen.perception.text_embedding import TextEmbedder, load_text_embedder
from cookgen.records import Action, Caption, Clip, Evidence, meaning_of
from pipelines.probe import open_container
from pipelines.stage import Needs, Places, Stage

NUM_LOOKS = 4  # frames of a clip in which a face is looked for: those in the middle of its quarters


@dataclass(frozen=True)
class EvidenceConfig:
    """The sentence encoder that says what action and caption mean."""

    model: str = "all-minilm-l6-v2"  # a reference of the model store, in transformers' form


@dataclass(frozen=True)
class Tool:
    """Where the clips are, and an encoder that is loaded when the first narrative needs it."""

    places: Places
    config: EvidenceConfig

    @cached_property
    def embedder(self) -> TextEmbedder:
        return load_text_embedder(self.config.model)


def gather_evidence(
    clips: Sequence[Clip], actions: Sequence[Action], captions: Sequence[Caption], *, config: EvidenceConfig, tool: Tool
) -> Iterator[Evidence]:
    """A row for each clip with a caption that overlaps an action, then for each such action, by their index.

    A clip's scores: `clip_decodes` (share of its frames that decode, 0 to 1) and `talking_head` (share of NUM_LOOKS
    frames with a face, see has_face; a frame that does not decode shows none).
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
    for (index, clip), meaning in zip(seen, meanings, strict=False):
        decodes, talks = watch(tool.places.medium(clip.sha256, ".mp4"), clip.num_frames)
        scores = {"clip_decodes": decodes, "talking_head": talks}
        yield Evidence(narrative=clip.narrative, clip_index=index, meaning=meaning, scores=scores)
    for (index, action), meaning in zip(told, meanings[len(seen) :], strict=True):
        yield Evidence(narrative=action.narrative, action_index=index, meaning=meaning)


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


STAGE = Stage(
    name="evidence",
    reads=(Clip, Action, Caption),
    writes=Evidence,
    run=gather_evidence,
    config=EvidenceConfig(),
    version=1,
    needs=Needs(cpus=1),
    load=load,
    model=lambda config: f"{identity(config.model)}+{face_detector()}",
)
