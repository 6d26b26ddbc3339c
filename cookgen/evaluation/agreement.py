"""Do judges agree? Weighted kappa between those that scored the same clips."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from cookgen.perception.judges import CRITERIA, TIERS, check_name
from cookgen.records import Check


@dataclass(frozen=True)
class Agreement:
    """What all judges say on one criterion.

    means: judge -> mean tier. num_clips: clips that any judge scored. kappa: the mean over all pairs of judges of their
    weighted kappa over the clips that both scored; None with fewer than two judges, or where no pair has one.
    """

    criterion: str
    means: dict[str, float]
    num_clips: int
    kappa: float | None


def weighted_kappa(a: Sequence[int], b: Sequence[int], *, tiers: Sequence[int] = TIERS) -> float | None:
    """Cohen's kappa with quadratic weights: 1 full agreement, 0 that of chance, below 0 less than that.

    a, b: the tiers that two judges gave to the same things, in the same order. None where it is not defined: without
    things, or where both always give one and the same tier.
    Source: Cohen, Psychological Bulletin 70(4), 1968.
    """
    assert len(a) == len(b), f"{len(a)} and {len(b)} tiers"
    place = {tier: index for index, tier in enumerate(tiers)}
    counts = np.zeros((len(tiers), len(tiers)))
    for one, other in zip(a, b, strict=True):
        counts[place[one], place[other]] += 1
    far = np.square(np.subtract.outer(np.arange(len(tiers)), np.arange(len(tiers))))
    by_chance = (far * np.outer(counts.sum(1), counts.sum(0))).sum()
    return None if not by_chance else float(1 - len(a) * (far * counts).sum() / by_chance)


def judge_agreement(checks: Iterable[Check]) -> list[Agreement]:
    """How far the judges of a set agree, a row a criterion; none where no judge was asked. Other checks do not count.

    A score that is no tier, as no judge of ours gives it, counts as the nearest.
    """
    prefixes = {criterion: re.compile(re.escape(check_name(criterion, "")) + "(.+)") for criterion in CRITERIA}
    tiers: dict[str, dict[str, dict[tuple[str, int], int]]] = {criterion: {} for criterion in CRITERIA}
    for check in checks:
        for criterion, prefix in prefixes.items():
            match = prefix.fullmatch(check.check)
            if match is not None and check.clip_index is not None:
                tier = min(max(round(check.score), TIERS[0]), TIERS[-1])
                tiers[criterion].setdefault(match[1], {})[check.narrative, check.clip_index] = tier
    return [_agreement(criterion, by_judge) for criterion, by_judge in tiers.items() if by_judge]


def _agreement(criterion: str, by_judge: dict[str, dict[tuple[str, int], int]]) -> Agreement:
    kappas = []
    for one, other in combinations(sorted(by_judge), 2):
        both = sorted(by_judge[one].keys() & by_judge[other].keys())
        kappa = weighted_kappa([by_judge[one][clip] for clip in both], [by_judge[other][clip] for clip in both])
        kappas += [] if kappa is None else [kappa]
    return Agreement(
        criterion,
        means={judge: float(np.mean(list(given.values()))) for judge, given in sorted(by_judge.items())},
        num_clips=len(set().union(*by_judge.values())),
        kappa=float(np.mean(kappas)) if kappas else None,
    )


def agreement_text(rows: Sequence[Agreement]) -> str:
    """A line a criterion for people; "" without rows."""
    if not rows:
        return ""
    lines = ["Judges of the captions, 1 to 5 (coverage: higher is better, hallucination: lower)."]
    for row in rows:
        means = ", ".join(f"{judge} {mean:.2f}" for judge, mean in row.means.items())
        kappa = "not defined" if row.kappa is None else f"{row.kappa:.3f}"
        lines.append(f"  {row.criterion}: {row.num_clips:,} clips; means: {means}; weighted kappa: {kappa}")
    return "\n".join(lines)
