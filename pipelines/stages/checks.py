"""checks: cheap scores of what was matched. Numbers only; whoever trains on the set decides what is too low."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cookgen.config import machinery
from cookgen.dataset.decode import read_frames
from cookgen.dataset.scores import caption_sha256, scores_identity, scores_of
from cookgen.errors import FormatError
from cookgen.modelstore import identity
from cookgen.perception.judges import Judge, JudgesConfig, Verdict, ask_judges, judges_identity, load_judges
from cookgen.perception.text_embedding import TextEmbedder, load_text_embedder
from cookgen.records import Action, Caption, Check, Clip, Match, Reason, Reject
from pipelines.probe import open_container
from pipelines.stage import Needs, Places, Stage
from pipelines.stages.captions import frame_numbers


@dataclass(frozen=True)
class ChecksConfig:
    """The sentence encoder that says how alike action and caption are, and who else is asked."""

    model: str = "all-minilm-l6-v2"  # a reference of the model store, in transformers' form
    judges: JudgesConfig = JudgesConfig()
    scores: str | None = machinery(None)  # a file of `cookgen eval`; its content is part of the stage's model

    def __post_init__(self) -> None:
        if self.scores is not None and not Path(self.scores).is_absolute():
            raise ValueError(f"checks.scores is {self.scores}; write the whole path: workers may run in other folders")


@dataclass(frozen=True)
class Checker:
    """The stage's tool: where the clips are, and an encoder that is loaded when the first narrative needs it."""

    places: Places
    config: ChecksConfig

    @cached_property
    def embedder(self) -> TextEmbedder:
        return load_text_embedder(self.config.model)

    @cached_property
    def judges(self) -> tuple[Judge, ...]:
        return load_judges(self.config.judges)


def check_narrative(
    clips: Sequence[Clip],
    actions: Sequence[Action],
    captions: Sequence[Caption],
    matches: Sequence[Match],
    *,
    config: ChecksConfig,
    tool: Checker,
) -> Iterator[Check | Reject]:
    """Scores of each chosen pair with a caption, by clip, then of the narrative; nothing where there is none.

    A clip: `caption_action_similarity` (cosine, -1 to 1), `caption_repeated` and `action_repeated` (share of the
    narrative's other steps with the same words, 0 to 1), `empty_text` (1 if action or caption has no letter, else 0),
    `clip_decodes` (share of its frames that decode). The narrative: `matched_clip_share`, `matched_action_share`.
    With judges, a clip also has `caption_coverage` and `caption_hallucination` of each and on average (1 to 5), or a
    reject that says which judge gave none; with a file of scores, what that says of just this clip and caption.
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
    yield from _judged(steps, clip_of, caption_of, config.judges, tool)
    yield from _measured(steps, clip_of, caption_of, config.scores)
    shares = {"matched_clip_share": len(steps) / len(clips), "matched_action_share": len(steps) / len(actions)}
    for name, score in shares.items():
        yield Check(narrative=steps[0].narrative, clip_index=None, check=name, score=score)


def _judged(
    steps: Sequence[Match],
    clip_of: Mapping[int, Clip],
    caption_of: Mapping[int, Caption],
    config: JudgesConfig,
    tool: Checker,
) -> Iterator[Check | Reject]:
    """What the judges say, by clip. Raises ModelServerError where one of them cannot be reached."""
    judges = tool.judges
    if not judges:
        return

    def ask(step: Match) -> Verdict | FormatError | IndexError:
        clip = clip_of[step.clip_index]
        path = tool.places.medium(clip.sha256, ".mp4")
        try:
            frames_THWC = read_frames(path, frame_numbers(clip.num_frames, config.num_frames), num_threads=1)
        except (FormatError, IndexError) as error:
            return error
        return ask_judges(judges, frames_THWC, caption_of[step.clip_index].text)

    def unjudged(step: Match, reason: Reason, detail: str) -> Reject:
        return Reject(
            narrative=step.narrative,
            path="",
            clip_index=step.clip_index,
            stage="checks",
            reason=reason,
            detail=detail,
        )

    with ThreadPoolExecutor(config.num_in_flight) as pool:
        for step, verdict in zip(steps, pool.map(ask, steps), strict=True):
            if not isinstance(verdict, Verdict):
                yield unjudged(step, Reason.DECODE_ERROR, f"not shown to the judges: {verdict}")
                continue
            for name, score in verdict.scores.items():
                yield Check(narrative=step.narrative, clip_index=step.clip_index, check=name, score=score)
            for judge, problem in verdict.faults.items():
                yield unjudged(step, Reason.UNUSABLE_ANSWER, f"no score by the judge {judge}: {problem}")


def _measured(
    steps: Sequence[Match], clip_of: Mapping[int, Clip], caption_of: Mapping[int, Caption], scores: str | None
) -> Iterator[Check]:
    """What `cookgen eval` measured on an earlier set that had the very same clips and captions."""
    found = [] if scores is None else scores_of(Path(scores), steps[0].narrative)
    for step in steps:
        shown = clip_of[step.clip_index].sha256, caption_sha256(caption_of[step.clip_index].text)
        for score in found:
            if (score.clip_sha256, score.caption_sha256) == shown:
                yield Check(narrative=step.narrative, clip_index=step.clip_index, check=score.check, score=score.score)


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


def model_identity(config: ChecksConfig) -> str:
    """What the scores depend on beside the configuration: the models, the judges' prompt, the file of scores."""
    scores = "" if config.scores is None else f"+scores-{scores_identity(Path(config.scores))}"
    return identity(config.model) + judges_identity(config.judges) + scores


STAGE = Stage(
    name="checks",
    reads=(Clip, Action, Caption, Match),
    writes=Check,
    run=check_narrative,
    config=ChecksConfig(),
    version=1,
    needs=Needs(cpus=1),
    load=load,
    model=model_identity,
)
