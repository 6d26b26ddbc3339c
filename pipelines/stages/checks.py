"""checks: cheap scores of what was matched. Numbers only; `shards.require`, or who trains on the set, decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cookgen.records import Action, Caption, Check, Clip, Evidence, Match
from pipelines.coherence import ingredient_continuity, nearest_action, repeated_steps, step_order
from pipelines.stage import Needs, Stage


@dataclass(frozen=True)
class ChecksConfig:
    """same_step: two actions with a cosine of at least this say the same (`repeated_steps`)."""

    same_step: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.same_step <= 1:
            raise ValueError(f"same_step is {self.same_step}; it must lie in [0, 1]")


def check_narrative(
    clips: Sequence[Clip],
    actions: Sequence[Action],
    captions: Sequence[Caption],
    matches: Sequence[Match],
    evidence: Sequence[Evidence],
    *,
    config: ChecksConfig,
) -> Iterator[Check]:
    """Scores of each chosen pair with a caption, by clip, then of the narrative; nothing where there is none.

    What they are stands in CLIP_CHECKS and NARRATIVE_CHECKS (cookgen/records/check.py), in that order but for those of
    the evidence, which come last. What would say nothing (the order of a single step) is left out.
    """
    start_of = {clip.clip_index: (clip.start_s, clip.end_s, clip.clip_index) for clip in clips}
    action_of = {action.action_index: action.text for action in actions}
    caption_of = {caption.clip_index: caption.text for caption in captions}
    seen = {row.clip_index: row for row in evidence if row.clip_index is not None}
    told = {row.action_index: row for row in evidence if row.action_index is not None}
    steps = [match for match in matches if match.chosen and match.clip_index in caption_of]
    if not steps:
        return
    steps.sort(key=lambda match: start_of[match.clip_index])
    pairs = [(action_of[step.action_index], caption_of[step.clip_index]) for step in steps]
    actions_SW = np.stack([told[step.action_index].vector for step in steps])
    captions_SW = np.stack([seen[step.clip_index].vector for step in steps])
    nearest = nearest_action(actions_SW)
    num_with_action = Counter(_normalised(action) for action, _ in pairs)
    num_with_caption = Counter(_normalised(caption) for _, caption in pairs)
    num_others = max(1, len(steps) - 1)
    rows = []
    for index, (step, (action, caption)) in enumerate(zip(steps, pairs, strict=True)):
        scores = {
            "caption_action_similarity": min(1.0, max(-1.0, float(captions_SW[index] @ actions_SW[index]))),
            "caption_repeated": (num_with_caption[_normalised(caption)] - 1) / num_others,
            "action_repeated": (num_with_action[_normalised(action)] - 1) / num_others,
            **({"nearest_action": nearest[index]} if nearest else {}),
            "empty_text": float(not (_has_letter(action) and _has_letter(caption))),
            **seen[step.clip_index].scores,
        }
        for name, score in scores.items():
            rows.append(Check(narrative=step.narrative, clip_index=step.clip_index, check=name, score=score))
    yield from sorted(rows, key=lambda row: row.clip_index or 0)
    shares = {
        "matched_clip_share": len(steps) / len(clips),
        "matched_action_share": len(steps) / len(actions),
        "repeated_steps": repeated_steps(actions_SW, same=config.same_step),
        "step_order": step_order(actions_SW, captions_SW),
        "ingredient_continuity": ingredient_continuity([action for action, _ in pairs]),
    }
    for name, share in shares.items():
        if share is not None:
            yield Check(narrative=steps[0].narrative, clip_index=None, check=name, score=share)


def _normalised(text: str) -> str:
    """Lower case, letters and digits only: what reads the same is the same."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def _has_letter(text: str) -> bool:
    return any(c.isalpha() for c in text)


STAGE = Stage(
    name="checks",
    reads=(Clip, Action, Caption, Match, Evidence),
    writes=Check,
    run=check_narrative,
    config=ChecksConfig(),
    version=2,  # 2: from the evidence; nearest_action, repeated_steps, step_order, ingredient_continuity, talking_head
    needs=Needs(cpus=0.25),
)
