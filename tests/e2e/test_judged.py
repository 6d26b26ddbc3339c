"""A set with judges, and the next one with the scores of inverse generation, by the commands that a user types."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cookgen.cli import main
from cookgen.dataset.tables import read_table, table_path
from cookgen.records import Check, Score
from tests.chatserver import Reply, chat_server
from tests.cookgen.evaluation import tiny

Run = Callable[..., Any]


def judge(strictness: int) -> Callable[[dict[str, Any], int], Reply]:
    """The redder the pictures on average, the better the caption; each strictness has its own steps."""

    def answer(request: dict[str, Any], number: int) -> Reply:
        means = []
        for part in request["messages"][0]["content"][:-1]:
            with Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2]))) as image:
                means.append(np.asarray(image, np.float64)[..., 0].mean())
        tier = 1 + round(np.mean(means) * 17 + strictness) % 5
        return Reply(json.dumps({"coverage": tier, "hallucination": 6 - tier}))

    return answer


def checks_of(out: Path) -> dict[str, list[Check]]:
    found: dict[str, list[Check]] = {}
    for row in read_table(table_path(out, Check), Check):
        found.setdefault(row.check, []).append(row)
    return found


@pytest.mark.full
def test_judges_and_scores_in_a_set(
    tmp_path: Path, pipelines: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out, checkpoint = tmp_path / "out", tmp_path / "clip"
    tiny.image_text(checkpoint)
    with chat_server(judge(0)) as one, chat_server(judge(1)) as other:
        run = ["run", "--source", "demo", "--engine", "inline", "--out", out, "--set", "demo.num_videos=2"]
        run += ["evidence.judges.models=One-7B,Other-7B", f"evidence.judges.endpoints={one.url},{other.url}"]
        pipelines(*run)
        first = checks_of(out)
        num_steps = len(first["caption_repeated"])
        assert num_steps >= 2 and len(one.requests) == len(other.requests) == num_steps
        for criterion in ("coverage", "hallucination"):
            for of in ("", "_by_one_7b", "_by_other_7b"):
                assert len(first[f"caption_{criterion}{of}"]) == num_steps
        assert main(["stats", str(out)]) == 0
        assert "weighted kappa: " in capsys.readouterr().out
        assert main(["validate", str(out)]) == 0

        options = ["--encoder", str(checkpoint), "--to", str(tmp_path / "to"), "--num-frames", "5", "--device", "cpu"]
        assert main(["eval", "inverse", str(out), "--split", "train", *options]) == 0
        scores = list(read_table(tmp_path / "to" / "scores.parquet", Score))
        assert scores
        pipelines(*run, f"evidence.scores={tmp_path / 'to' / 'scores.parquet'}")
    second = checks_of(out)
    assert sorted(row.score for row in second["inverse_clip_t"]) == pytest.approx(
        sorted(score.score for score in scores if score.check == "inverse_clip_t"), abs=1e-6
    )
    assert {name: rows for name, rows in second.items() if not name.startswith("inverse_")} == first
    assert main(["validate", str(out)]) == 0
