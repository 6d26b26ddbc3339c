"""checks: cheap scores of what was matched. Numbers only; whoever trains on the set decides what is too low."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cookgen.modelstore import identity
from cookgen.perception.text_embedding import TextEmbedder, load_text_embedder
from cookgen.records import Action, Caption, Check, Clip, Match
from pipelines.probe import open_container
from pipelines.stage import Needs, Places, Stage


@dataclass(frozen=True)
class ChecksConfig:
    """The sentence encoder that says how alike action and caption are."""

    model: str = "all-minilm-l6-v2"  # a reference of the model store, in transformers' form


@dataclass(frozen=True)
class Checker:
    """The stage's tool: where the clips are, and an encoder that is loaded when the first narrative needs it."""

    places: Places
    config: ChecksConfig

    @cached_property
    def embedder(self) -> TextEmbedder:
        return load_text_embedder(self.config.model)


def check_narrative(
    clips: Sequence[Clip],
    actions: Sequence[Action],
    captions: Sequence[Caption],
    matches: Sequence[Match],
    *,
    config: ChecksConfig,
    tool: Checker,
) -> Iterator[Check]:
    """Scores of each chosen pair with a caption, by clip, then of the narrative; nothing where there is none.

    A clip: `caption_action_similarity` (cosine, -1 to 1), `caption_repeated` and `action_repeated` (share of the
    narrative's other steps with the same words, 0 to 1), `empty_text` (1 if action or caption has no letter, else 0),
    `clip_decodes` (share of its frames that decode). The narrative: `matched_clip_share`, `matched_action_share`.
    """
    clip_of = {clip.clip_index: clip for clip in clips}
    action_of = {action.action_index: action for action in actions}
    caption_of = {caption.clip_index: caption for caption in captions}
    steps = [match for match in matches if match.chosen and match.clip_index in caption_of]
    steps.sort(key=lambda match: match.clip_index)
    if not steps:
        return
    pairs = [(action_of[step.action_index].text, caption_of[step.clip_index].text) for step in steps]
    vectors = tool.embedder.embed([text for pair in pairs for text in pair])
    num_with_action = Counter(_normalised(action) for action, _ in pairs)
    num_with_caption = Counter(_normalised(caption) for _, caption in pairs)
    num_others = max(1, len(steps) - 1)
    for index, (step, (action, caption)) in enumerate(zip(steps, pairs, strict=True)):
        clip = clip_of[step.clip_index]
        scores = {
            "caption_action_similarity": min(1.0, max(-1.0, float(vectors[2 * index] @ vectors[2 * index + 1]))),
            "caption_repeated": (num_with_caption[_normalised(caption)] - 1) / num_others,
            "action_repeated": (num_with_action[_normalised(action)] - 1) / num_others,
            "empty_text": float(not (_has_letter(action) and _has_letter(caption))),
            "clip_decodes": min(1.0, num_decoded_frames(tool.places.medium(clip.sha256, ".mp4")) / clip.num_frames),
        }
        for name, score in scores.items():
            yield Check(narrative=step.narrative, clip_index=step.clip_index, check=name, score=score)
    shares = {"matched_clip_share": len(steps) / len(clips), "matched_action_share": len(steps) / len(actions)}
    for name, score in shares.items():
        yield Check(narrative=steps[0].narrative, clip_index=None, check=name, score=score)


def num_decoded_frames(path: Path) -> int:
    """How many frames of the file's first video stream decode; 0 for a file that is no video.

    Raises FileNotFoundError: a clip that is not in the store is the store's trouble, not the clip's.
    """
    import av

    count = 0
    try:
        with open_container(path) as container:
            if not container.streams.video:
                return 0
            for packet in container.demux(container.streams.video[0]):
                try:
                    count += len(packet.decode())
                except av.FFmpegError:
                    continue  # this packet's frames are missing from the count
    except FileNotFoundError:
        raise
    except av.FFmpegError:
        return count
    return count


def _normalised(text: str) -> str:
    """Lower case, letters and digits only: what reads the same is the same."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def _has_letter(text: str) -> bool:
    return any(c.isalpha() for c in text)


def load(config: ChecksConfig, places: Places) -> Checker:
    """The stage's tool; the model itself is loaded when a narrative needs it."""
    return Checker(places, config)


STAGE = Stage(
    name="checks",
    reads=(Clip, Action, Caption, Match),
    writes=Check,
    run=check_narrative,
    config=ChecksConfig(),
    version=1,
    needs=Needs(cpus=1),
    load=load,
    model=lambda config: identity(config.model),
)
