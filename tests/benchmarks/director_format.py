"""`python tests/benchmarks/director_format.py RUN SHARDS`: how well a trained director keeps to the step format.

`cookgen direct` allows only words and marks that the format has at their place. Here the same narratives are written,
one for each query of the split, and counted is how often the likeliest of all words and marks was an allowed one.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import tyro

from cookgen import load_split
from cookgen.director.inputs import query_text
from cookgen.director.sample import Sampling, _Writer, write_narrative
from cookgen.director.weights import load_director


def main(run: tyro.conf.Positional[Path], shards: tyro.conf.Positional[Path], split: str = "val") -> None:
    """Writes a narrative for each query of the split.

    Args:
        run: of cookgen-train director
        shards: the set
        split: whose queries
    """
    loaded = load_director(run)
    free: list[tuple[bool, bool]] = []  # whether the free choice was allowed, whether a mark was chosen
    draw = _Writer._draw

    def counted(self: _Writer, allowed_V: torch.Tensor) -> int:
        chosen = draw(self, allowed_V)
        is_mark = chosen >= loaded.director.vocabulary.num_words
        free.append((bool(allowed_V[self._stream.logits().argmax()]), is_mark))
        return chosen

    _Writer._draw = counted  # type: ignore[method-assign]
    whole, narratives = 0, list(load_split(split, shards))
    for narrative in narratives:
        free_before = len(free)
        written = write_narrative(loaded, query_text(narrative), Sampling(num_steps=12))
        whole += all(is_allowed for is_allowed, _ in free[free_before:])
        steps = [step.texts for step in written.steps]
        print(json.dumps({"query": written.query, "true_steps": narrative.num_steps, "stopped": written.stopped}))
        print(json.dumps(steps, ensure_ascii=False))
    marks = [is_allowed for is_allowed, is_mark in free if is_mark]
    print(
        json.dumps(
            {
                "bench": "step format",
                "narratives": len(narratives),
                "in_format_by_themselves": whole,
                "choices": len(free),
                "allowed": round(sum(is_allowed for is_allowed, _ in free) / len(free), 5),
                "marks": len(marks),
                "marks_allowed": round(sum(marks) / len(marks), 5),
                "step": loaded.step,
            }
        )
    )


if __name__ == "__main__":
    tyro.cli(main)
