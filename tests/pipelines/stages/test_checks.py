"""The checks stage: pure numbers from rows and from the evidence, which real sentences give."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable

import pytest

from cookgen.config import apply_settings
from cookgen.errors import UsageError
from cookgen.perception.text_embedding import TextEmbedder, load_text_embedder
from cookgen.records import (
    CLIP_CHECKS,
    NARRATIVE_CHECKS,
    Action,
    Caption,
    Check,
    Clip,
    Evidence,
    Match,
    meaning_of,
)
from pipelines.stages.checks import STAGE
from tests.pipelines.stages.test_evidence import NARRATIVE, action, caption, clip

HEX = "0" * 64


@pytest.fixture(scope="module")
def embedder() -> TextEmbedder:
    return load_text_embedder("all-minilm-l6-v2")


def match(clip_index: int, action_index: int, *, chosen: bool = True) -> Match:
    return Match(
        narrative=NARRATIVE,
        clip_index=clip_index,
        action_index=action_index,
        start_diff_s=0,
        iou=0.6,
        allowed=chosen,
        chosen=chosen,
        rule="iou" if chosen else None,
    )


def evidence_of(embedder: TextEmbedder, actions: Iterable[Action], captions: Iterable[Caption]) -> list[Evidence]:
    scores = {"clip_decodes": 1.0, "talking_head": 0.25}
    rows = []
    for row in captions:
        meaning = meaning_of(embedder.embed([row.text])[0])
        rows.append(Evidence(narrative=NARRATIVE, clip_index=row.clip_index, meaning=meaning, scores=scores))
    for told in actions:
        meaning = meaning_of(embedder.embed([told.text])[0])
        rows.append(Evidence(narrative=NARRATIVE, action_index=told.action_index, meaning=meaning))
    return rows


def run(
    embedder: TextEmbedder,
    clips: list[Clip],
    actions: list[Action],
    captions: list[Caption],
    matches: list[Match],
) -> list[Check]:
    rows = evidence_of(embedder, actions, captions)
    return list(
        STAGE.run(tuple(clips), tuple(actions), tuple(captions), tuple(matches), tuple(rows), config=STAGE.config)
    )


def told(*texts: str) -> list[Action]:
    return [action(index, text, 5.0 * index) for index, text in enumerate(texts)]


def seen(*texts: str) -> list[Caption]:
    return [caption(index, text) for index, text in enumerate(texts)]


def cut(number: int) -> list[Clip]:
    return [clip(index, HEX) for index in range(number)]


def test_every_chosen_pair_is_scored_in_order(embedder: TextEmbedder) -> None:
    actions = told("Whisk the eggs", "Chop the onions", "whisk  the EGGS.", "x")
    captions = seen("A person whisks eggs", "A red car", "Eggs.", "?!")
    matches = [match(3, 3), match(0, 0), match(1, 1), match(2, 2), match(2, 1, chosen=False)]
    rows = run(embedder, cut(4), actions, captions, matches)
    assert [row.clip_index for row in rows] == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7 + [None] * 5
    assert all({row.check for row in rows if row.clip_index == index} == set(CLIP_CHECKS) for index in range(4))
    assert [row.check for row in rows if row.clip_index is None] == list(NARRATIVE_CHECKS)
    scores = {(row.clip_index, row.check): row.score for row in rows}
    alike, other = (scores[index, "caption_action_similarity"] for index in (0, 1))
    assert -1 <= other < 0.3 < 0.5 < alike <= 1
    assert [scores[index, "action_repeated"] for index in range(4)] == pytest.approx([1 / 3, 0, 1 / 3, 0])
    assert [scores[index, "caption_repeated"] for index in range(4)] == [0, 0, 0, 0]
    assert [scores[index, "empty_text"] for index in range(4)] == [0, 0, 0, 1]
    assert [scores[index, "clip_decodes"] for index in range(4)] == [1, 1, 1, 1]
    assert [scores[index, "talking_head"] for index in range(4)] == [0.25] * 4
    assert scores[0, "nearest_action"] == scores[2, "nearest_action"] > 0.9 > scores[1, "nearest_action"]
    assert scores[None, "repeated_steps"] == 0.25
    assert scores[None, "matched_clip_share"] == 1 and scores[None, "matched_action_share"] == 1
    assert scores[None, "ingredient_continuity"] == 0.5  # the onions are new, the eggs go on
    shuffled = run(embedder, cut(4)[::-1], actions[::-1], captions[::-1], matches[::-1])
    assert [row.to_json() for row in shuffled] == [row.to_json() for row in rows]


def test_a_step_said_again_in_other_words_is_a_repeat(embedder: TextEmbedder) -> None:
    captions = seen("a pan", "a bowl", "a pot")
    chosen = [match(index, index) for index in range(3)]
    same = run(embedder, cut(3), told("Add the chopped onions", "Whisk eggs", "Add chopped onions"), captions, chosen)
    other = run(embedder, cut(3), told("Add the chopped onions", "Whisk eggs", "Serve with rice"), captions, chosen)
    score = {
        number: {(row.clip_index, row.check): row.score for row in rows} for number, rows in enumerate((same, other))
    }
    assert score[0][None, "repeated_steps"] == pytest.approx(1 / 3) and score[1][None, "repeated_steps"] == 0
    assert score[0][0, "action_repeated"] == 0  # not in the same words
    assert score[0][0, "nearest_action"] > 0.9 > 0.6 > score[1][0, "nearest_action"]


def test_the_order_is_that_of_what_is_seen(embedder: TextEmbedder) -> None:
    actions = told("Chop the onions", "Whisk the eggs", "Pour milk into the pot", "Bake the bread")
    captions = ["a knife cuts an onion", "eggs are whisked in a bowl", "milk flows into a pot", "bread in an oven"]
    chosen = [match(index, index) for index in range(4)]

    def order(texts: list[str]) -> float:
        (score,) = (r.score for r in run(embedder, cut(4), actions, seen(*texts), chosen) if r.check == "step_order")
        return score

    assert order(captions) == 1
    assert order(captions[::-1]) == 0
    assert order([captions[0], captions[2], captions[1], captions[3]]) == pytest.approx(5 / 6)


def test_shares_count_what_was_not_matched(embedder: TextEmbedder) -> None:
    captions = seen(*["a pot"] * 4)
    rows = run(embedder, cut(4), told("stir", "fry"), captions, [match(2, 1), match(0, 0, chosen=False)])
    scores = {row.check: row.score for row in rows}
    assert scores["matched_clip_share"] == 0.25 and scores["matched_action_share"] == 0.5
    assert scores["caption_repeated"] == 0  # one step has no others, nor an order
    assert not {"nearest_action", "repeated_steps", "step_order", "ingredient_continuity"} & scores.keys()


def test_nothing_is_said_where_nothing_is_matched(embedder: TextEmbedder) -> None:
    assert run(embedder, cut(1), told("stir"), seen("a pot"), [match(0, 0, chosen=False)]) == []
    assert run(embedder, cut(1), told("stir"), [], [match(0, 0)]) == []  # a clip without a caption becomes no step
    assert run(embedder, [], [], [], []) == []


def test_no_model_is_needed() -> None:
    assert STAGE.load is None and STAGE.model(STAGE.config) is None
    code = "import sys, pipelines.stages.checks, pipelines.stages.matches; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_a_bound_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match=r"same_step is 1\.5"):
        apply_settings(STAGE.config, ["same_step=1.5"])
