"""matches: which action is told while which clip is seen.

Every overlapping pair is kept with its numbers, so that other thresholds can be tried without running a model again;
the best matching among the allowed ones is marked. The rule itself is cookgen/matching.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from cookgen.matching import MAX_START_DIFF_S, MIN_IOU, SURE_IOU, best_matching, overlap, rule_of
from cookgen.records import Action, Clip, Match
from pipelines.stage import Stage


@dataclass(frozen=True)
class MatchesConfig:
    """The thresholds of the matching rule; all comparisons with them are strict.

    A pair is allowed by `iou > sure_iou`, or by starts less than `max_start_diff_s` apart, a clip that ends after the
    action, and `iou > min_iou`. Source: VideoAuteur, section 3.2.
    """

    max_start_diff_s: float = MAX_START_DIFF_S
    min_iou: float = MIN_IOU
    sure_iou: float = SURE_IOU

    def __post_init__(self) -> None:
        if not self.max_start_diff_s >= 0:
            raise ValueError(f"max_start_diff_s is {self.max_start_diff_s}; it must be at least 0 seconds")
        for name, value in (("min_iou", self.min_iou), ("sure_iou", self.sure_iou)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must lie in [0, 1], as every IoU does")


def match_actions(clips: tuple[Clip, ...], actions: tuple[Action, ...], *, config: MatchesConfig) -> Iterator[Match]:
    """All pairs of one video with iou > 0, in (clip_index, action_index) order; the order of the rows given is nothing.

    A clip's span is [start_s, end_s) as it was asked for. `chosen` marks the best matching among the allowed pairs
    (see best_matching), whose ties are broken in the order of (start, end, index) of clips and actions.
    """
    clips = tuple(sorted(clips, key=lambda clip: (clip.start_s, clip.end_s, clip.clip_index)))
    actions = tuple(sorted(actions, key=lambda action: (action.start_s, action.end_s, action.action_index)))
    starts = [action.start_s for action in actions]
    latest_ends = list(accumulate((action.end_s for action in actions), max))
    # The numbers are those of the rule, unrounded; only the stored rows are rounded to 1e-6, as all canonical JSON is.
    measured = {}
    for i, clip in enumerate(clips):
        span = (clip.start_s, clip.end_s)
        for j in range(bisect_right(latest_ends, clip.start_s), bisect_left(starts, clip.end_s)):
            told = (actions[j].start_s, actions[j].end_s)
            start_diff_s, iou = overlap(span, told)
            if iou > 0:
                rule = rule_of(
                    span,
                    told,
                    max_start_diff_s=config.max_start_diff_s,
                    min_iou=config.min_iou,
                    sure_iou=config.sure_iou,
                )
                measured[i, j] = (start_diff_s, iou, rule)
    chosen = set(best_matching({pair: iou for pair, (_, iou, rule) in measured.items() if rule}))
    for i, j in sorted(measured, key=lambda pair: (clips[pair[0]].clip_index, actions[pair[1]].action_index)):
        start_diff_s, iou, rule = measured[i, j]
        yield Match(
            narrative=clips[i].narrative,
            clip_index=clips[i].clip_index,
            action_index=actions[j].action_index,
            start_diff_s=start_diff_s,
            iou=iou,
            allowed=rule is not None,
            chosen=(i, j) in chosen,
            rule=rule,
        )


STAGE = Stage(name="matches", reads=(Clip, Action), writes=Match, run=match_actions, config=MatchesConfig(), version=1)
