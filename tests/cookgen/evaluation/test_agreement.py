"""Kappa against scikit-learn and values computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from cookgen.cli import main
from cookgen.dataset.tables import table_path, write_table
from cookgen.evaluation.agreement import agreement_text, judge_agreement, weighted_kappa
from cookgen.records import Check
from tests.shardset import Story, make_set

TIERS = st.integers(1, 5)


@given(st.lists(st.tuples(TIERS, TIERS), min_size=1, max_size=40))
def test_parity_with_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    a, b = (list(side) for side in zip(*pairs, strict=True))
    ours = weighted_kappa(a, b)
    if len({*a, *b}) == 1:
        assert ours is None
        return
    expected = cohen_kappa_score(a, b, weights="quadratic", labels=[1, 2, 3, 4, 5])
    assert ours == pytest.approx(expected, abs=1e-9)
    assert weighted_kappa(b, a) == pytest.approx(expected, abs=1e-9)


def test_by_hand() -> None:
    assert weighted_kappa([1, 3, 5], [1, 3, 5]) == 1
    assert weighted_kappa([1, 5], [5, 1]) == -1
    # Far: 0 + 1 + 0 + 1 of 4; by chance, of 16 pairs: (1,1,2,2) with (1,2,2,3).
    assert weighted_kappa([1, 1, 2, 2], [1, 2, 2, 3]) == pytest.approx(1 - 4 * 2 / (2 * (0 + 1 + 1 + 4) + 2 * (1 + 1)))
    assert weighted_kappa([], []) is None
    assert weighted_kappa([3, 3], [3, 3]) is None


def test_chance_agreement_is_near_0() -> None:
    a, b = np.random.default_rng(0).integers(1, 6, (2, 4000)).tolist()
    assert abs(weighted_kappa(a, b) or 1) < 0.05


def check(clip: int, name: str, score: float, narrative: str = "demo-a") -> Check:
    return Check(narrative=narrative, clip_index=clip, check=name, score=score)


def test_agreement_of_a_set() -> None:
    tiers = {"x": [1, 3, 5, 4], "y": [1, 3, 5, 4], "z": [5, 3, 1, 2]}
    checks = [
        check(clip, f"caption_coverage_by_{judge}", tier)
        for judge, given_tiers in tiers.items()
        for clip, tier in enumerate(given_tiers)
    ]
    checks += [check(0, "caption_coverage", 2.3), check(0, "caption_repeated", 0), check(9, "clip_decodes", 1)]
    checks += [Check(narrative="demo-a", clip_index=None, check="matched_clip_share", score=1)]
    (row,) = judge_agreement(checks)
    assert (row.criterion, row.num_clips) == ("coverage", 4)
    assert row.means == {"x": 3.25, "y": 3.25, "z": 2.75}
    pairs = [weighted_kappa(tiers[one], tiers[other]) for one, other in ("xy", "xz", "yz")]
    assert pairs[0] == 1 and pairs[1] < 0
    assert row.kappa == pytest.approx(sum(pairs) / 3)
    assert "coverage: 4 clips; means: x 3.25, y 3.25, z 2.75; weighted kappa: -0" in agreement_text([row])


def test_only_clips_that_both_scored_count_and_the_same_clip_of_another_narrative_is_another() -> None:
    x = [
        check(0, "caption_coverage_by_x", 1),
        check(1, "caption_coverage_by_x", 5),
        check(2, "caption_coverage_by_x", 4),
    ]
    y = [check(0, "caption_coverage_by_y", 1), check(1, "caption_coverage_by_y", 5)]
    y += [check(2, "caption_coverage_by_y", 1, narrative="demo-b")]
    (row,) = judge_agreement(x + y)
    assert row.kappa == 1 and row.num_clips == 4


def test_one_judge_has_nobody_to_agree_with() -> None:
    (row,) = judge_agreement([check(0, "caption_hallucination_by_x", 2)])
    assert row.kappa is None
    assert "not defined" in agreement_text([row])
    assert judge_agreement([]) == [] and agreement_text([]) == ""


def test_stats_says_what_the_judges_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make_set(tmp_path / "set", [Story("a")])
    assert main(["stats", str(out)]) == 0
    assert "kappa" not in capsys.readouterr().out
    tiers = {"x": (1, 3, 5), "y": (1, 3, 4)}
    rows = [check(clip, f"caption_coverage_by_{judge}", tiers[judge][clip]) for judge in tiers for clip in range(3)]
    write_table(table_path(out, Check), Check, rows)
    assert main(["stats", str(out)]) == 0
    kappa = cohen_kappa_score(*tiers.values(), weights="quadratic", labels=[1, 2, 3, 4, 5])
    assert f"coverage: 3 clips; means: x 3.00, y 2.67; weighted kappa: {kappa:.3f}" in capsys.readouterr().out
    assert main(["stats", str(out), "--json"]) == 0
    (judges,) = json.loads(capsys.readouterr().out)["judges"]
    assert judges["criterion"] == "coverage" and judges["kappa"] == pytest.approx(kappa)
