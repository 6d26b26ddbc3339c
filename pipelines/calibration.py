"""Which thresholds match clips and actions best, beside steps that people marked in the same videos. No model.

The set's clips are cut at shots and its actions come from speech; people have marked steps [start, end) with a sentence
each (YouCook2's form). A match of clip and action is *right* where one marked step is both

    shown   more than half of the clip's time lies in the step
    told    action and sentence share at least half of the content words (recipe_words) of the one that has fewer

Precision is right matches over matches; recall is steps with a right match over steps; F1 is their harmonic mean. A
match outside of all marked steps is wrong. Steps that no overlapping pair of clip and action could be right for are out
of reach of every threshold: what was not heard or cut. The thresholds are those of cookgen/matching.py, applied to
every overlapping pair; among them those of the paper (VideoAuteur, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cookgen.dataset.tables import read_table, table_path
from cookgen.errors import InputError
from cookgen.matching import MAX_START_DIFF_S, MIN_IOU, SURE_IOU, Pair, Span, best_matching, overlap, rule_of
from cookgen.records import Action, Clip, Segment, Video
from pipelines.recipe_words import content_words

CRITERION = (
    "A match is right where one marked step is both shown (more than half of the clip's time lies in it) and told "
    "(action and sentence share at least half of the content words of the one that has fewer)."
)
START_DIFFS_S = (1.0, 2.0, 3.0, MAX_START_DIFF_S, 8.0, 13.0)
MIN_IOUS = (0.05, 0.1, 0.15, 0.2, MIN_IOU, 0.3, 0.4, 0.5)
SURE_IOUS = (0.3, 0.4, SURE_IOU, 0.6, 0.7, 1.0)  # no IoU is above 1: a pair needs near starts
_MIN_SHOWN, _MIN_TOLD = 0.5, 0.5
_RESAMPLES = 1000


class Thresholds(NamedTuple):
    """Those of the matching rule; see cookgen/matching.py."""

    max_start_diff_s: float = MAX_START_DIFF_S
    min_iou: float = MIN_IOU
    sure_iou: float = SURE_IOU

    @property
    def command(self) -> str:
        """The options of `rematch`."""
        return f"--start-diff {self.max_start_diff_s:g} --iou {self.min_iou:g} --sure-iou {self.sure_iou:g}"


PAPER = Thresholds()
GRID = tuple(Thresholds(*values) for values in product(START_DIFFS_S, MIN_IOUS, SURE_IOUS))


@dataclass(frozen=True)
class Point:
    """What thresholds come to. f1_range holds nine tenths of the F1 of resampled videos; beats_paper is the share of
    the resamples in which its F1 is above that of the paper's thresholds, one that is equal counting half."""

    thresholds: Thresholds
    num_matches: int
    num_right: int
    num_found: int  # steps with a right match
    precision: float
    recall: float
    f1: float
    f1_range: tuple[float, float]
    beats_paper: float


@dataclass(frozen=True)
class Calibration:
    """A point for each thresholds of the grid, in its order, and what they were measured on."""

    points: tuple[Point, ...]
    num_videos: int
    num_annotated: int  # videos in the annotations
    num_steps: int
    num_reachable: int  # steps that some overlapping pair is right for

    @property
    def paper(self) -> Point:
        return next(point for point in self.points if point.thresholds == PAPER)

    @property
    def best(self) -> Point:
        """The greatest F1; of several the nearest to the paper's thresholds, in steps of the grid."""
        return min(self.points, key=lambda point: (-point.f1, _distance(point.thresholds)))

    @property
    def frontier(self) -> list[Point]:
        """Points that no other beats in precision and recall at once, from the greatest recall down; one of each."""
        front: list[Point] = []
        for point in sorted(self.points, key=lambda p: (-p.recall, -p.precision, _distance(p.thresholds))):
            if point.num_matches and (not front or point.precision > front[-1].precision):
                front.append(point)
        return front

    @property
    def named(self) -> list[tuple[str, Point]]:
        """The points to look at: the paper's, the best, and the frontier where it is neither."""
        named = {self.best.thresholds: ("best F1", self.best), PAPER: ("the paper's", self.paper)}
        others = [("frontier", point) for point in self.frontier if point.thresholds not in named]
        return [*reversed(named.values()), *others]

    def to_values(self) -> dict[str, Any]:
        """Plain values for JSON."""

        def values(point: Point) -> dict[str, Any]:
            numbers = {name: value for name, value in vars(point).items() if name != "thresholds"}
            return {**point.thresholds._asdict(), **numbers}

        counts = {name: value for name, value in vars(self).items() if name != "points"}
        named = {"paper": values(self.paper), "best": values(self.best)}
        return {"criterion": CRITERION, **counts, **named, "grid": [values(point) for point in self.points]}


def _distance(thresholds: Thresholds) -> int:
    axes = zip((START_DIFFS_S, MIN_IOUS, SURE_IOUS), thresholds, PAPER, strict=True)
    return sum(abs(axis.index(one) - axis.index(other)) for axis, one, other in axes)


def calibrate(out: Path, steps: Mapping[str, Sequence[Segment]]) -> Calibration:
    """Measures the grid on the tables of the set in `out`. steps: video id -> what people marked in it.

    A video of the set is the marked one with its id, or with its id's last part (a folder's training/101/ID). Only
    videos with clips and actions count, and marked steps that have a length and say something.

    Raises InputError where the set has no such video, or where its actions are human annotations themselves.
    """
    ids = _annotated(out, steps)
    clips: dict[str, list[Clip]] = {name: [] for name in ids}
    actions: dict[str, list[Action]] = {name: [] for name in ids}
    for clip in read_table(table_path(out, Clip), Clip):
        if clip.narrative in ids:
            clips[clip.narrative].append(clip)
    for action in read_table(table_path(out, Action), Action):
        if action.narrative in ids:
            if action.origin == "manual":
                raise InputError(
                    f"{out}: the actions of {action.narrative} are human annotations, so its matches have nothing to "
                    "be measured by; make a set of the same files with --source folder, which listens to them and "
                    "cuts at shots, and give its OUT"
                )
            actions[action.narrative].append(action)
    videos = [_measure(clips[name], actions[name], steps[ids[name]]) for name in ids if clips[name] and actions[name]]
    if not any(video.num_steps for video in videos):
        raise InputError(f"{out}: no annotated video with clips, actions and marked steps; report.html says why")
    return _calibration(videos, num_annotated=len(steps))


def _annotated(out: Path, steps: Mapping[str, Sequence[Segment]]) -> dict[str, str]:
    """Narrative -> the id under which its steps are marked."""
    found: dict[str, str] = {}
    rows = list(read_table(table_path(out, Video), Video))
    for row in rows:
        for video_id in (row.video_id, PurePosixPath(row.video_id).name):
            if video_id in steps:
                if video_id in found.values():
                    raise InputError(f"{out}: two of its videos have the id {video_id!r}; leave one out of the set")
                found[row.narrative] = video_id
                break
    if not found:
        raise InputError(
            f"{out}: none of its {len(rows)} videos is among the {len(steps)} of the annotations; a video's id is its "
            "file's name without the suffix"
        )
    return found


@dataclass(frozen=True)
class _Measured:
    """A video: what each thresholds of the grid comes to, int [grid, (matches, right, found)]."""

    counts: NDArray[np.int64]
    num_steps: int
    num_reachable: int


def _measure(clips: Sequence[Clip], actions: Sequence[Action], marked: Sequence[Segment]) -> _Measured:
    """The grid on one video; its pairs are those of the stage `matches`."""
    seen = sorted((clip.start_s, clip.end_s, clip.clip_index) for clip in clips)
    told = sorted((row.start_s, row.end_s, row.action_index, content_words(row.text)) for row in actions)
    steps = [((row.start_s, row.end_s), content_words(row.text)) for row in marked]
    steps = [(span, words) for span, words in steps if span[0] < span[1] and words]
    ious: dict[Pair, float] = {}
    right: dict[Pair, set[int]] = {}  # the steps that the pair is right for
    for i, (start_s, end_s, _) in enumerate(seen):
        shown = [number for number, (span, _) in enumerate(steps) if _is_shown((start_s, end_s), span)]
        for j, (told_s, told_end_s, _, words) in enumerate(told):
            iou = overlap((start_s, end_s), (told_s, told_end_s))[1]
            if iou > 0:
                ious[i, j] = iou
                right[i, j] = {number for number in shown if _same_thing(words, steps[number][1])}
    counts, known = [], {}
    for thresholds in GRID:
        rule = thresholds._asdict()
        allowed = frozenset(pair for pair in ious if rule_of(seen[pair[0]][:2], told[pair[1]][:2], **rule))
        if allowed not in known:  # neighbours in the grid mostly allow the same
            chosen = best_matching({pair: ious[pair] for pair in allowed})
            found = set().union(*(right[pair] for pair in chosen))
            known[allowed] = (len(chosen), sum(bool(right[pair]) for pair in chosen), len(found))
        counts.append(known[allowed])
    return _Measured(np.array(counts), len(steps), len(set().union(*right.values())))


def _is_shown(clip: Span, step: Span) -> bool:
    return min(clip[1], step[1]) - max(clip[0], step[0]) > _MIN_SHOWN * (clip[1] - clip[0])


def _same_thing(words: frozenset[str], others: frozenset[str]) -> bool:
    return bool(words) and len(words & others) >= _MIN_TOLD * min(len(words), len(others))


def _calibration(videos: Sequence[_Measured], *, num_annotated: int) -> Calibration:
    counts_VGC = np.stack([video.counts for video in videos])
    steps_V = np.array([video.num_steps for video in videos])
    totals_GC, num_steps = counts_VGC.sum(axis=0), int(steps_V.sum())
    precision_G, recall_G, f1_G = _scores(totals_GC, np.array(num_steps))
    # Resampled videos, not matches: those of one video stand and fall together.
    weights_RV = np.random.default_rng(0).multinomial(len(videos), [1 / len(videos)] * len(videos), _RESAMPLES)
    resampled_RGC = np.tensordot(weights_RV.astype(np.float64), counts_VGC.astype(np.float64), axes=1)
    resampled_RG = _scores(resampled_RGC, (weights_RV @ steps_V)[:, None])[2]
    low_G, high_G = np.quantile(resampled_RG, (0.05, 0.95), axis=0)
    paper_R1 = resampled_RG[:, [GRID.index(PAPER)]]
    beats_G = ((resampled_RG > paper_R1) + 0.5 * (resampled_RG == paper_R1)).mean(axis=0)
    points = [
        Point(
            thresholds,
            num_matches=int(totals_GC[g, 0]),
            num_right=int(totals_GC[g, 1]),
            num_found=int(totals_GC[g, 2]),
            precision=float(precision_G[g]),
            recall=float(recall_G[g]),
            f1=float(f1_G[g]),
            f1_range=(float(low_G[g]), float(high_G[g])),
            beats_paper=float(beats_G[g]),
        )
        for g, thresholds in enumerate(GRID)
    ]
    reachable = sum(video.num_reachable for video in videos)
    return Calibration(tuple(points), len(videos), num_annotated, num_steps, reachable)


def _scores(counts: NDArray[Any], num_steps: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(precision, recall, F1) of counts [..., (matches, right, found)]; 0 where nothing was matched or marked."""
    matches, right, found = np.moveaxis(counts, -1, 0)
    precision, recall = right / np.maximum(matches, 1), found / np.maximum(num_steps, 1)
    total = precision + recall
    return precision, recall, 2 * precision * recall / np.where(total > 0, total, 1)


def table(found: Calibration) -> str:
    """The paper's thresholds, the best ones and the frontier, for a terminal."""
    return "\n".join(
        [
            f"{found.num_videos} of {found.num_annotated} annotated videos, {found.num_steps} marked steps, of which "
            f"{found.num_reachable} are within reach of any thresholds",
            CRITERION,
            f"{'':12} start_diff   iou  sure_iou  matches  precision  recall     F1  (5-95 %)",
            *(_line(name, point) for name, point in found.named),
            f"best F1 is above the paper's in {found.best.beats_paper:.0%} of {_RESAMPLES} resamples of the videos",
        ]
    )


def _line(name: str, point: Point) -> str:
    start_diff_s, iou, sure_iou = point.thresholds
    low, high = point.f1_range
    return (
        f"{name:12} {start_diff_s:>10g} {iou:>5g} {sure_iou:>9g} {point.num_matches:>8} {point.precision:>10.3f} "
        f"{point.recall:>7.3f} {point.f1:>6.3f}  ({low:.2f}-{high:.2f})"
    )
