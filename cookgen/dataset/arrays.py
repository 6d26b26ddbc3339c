"""A clip, narrative or window as plain values: text, times, and NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from cookgen.dataset.narrative import Narrative, Window
from cookgen.dataset.sample import Step


def as_arrays(item: Step | Narrative | Window) -> dict[str, Any]:
    """What a split was opened for, read now; the default of `Split.torch`.

    A clip: key, action, caption (str), start_s, end_s (float64), frames (uint8 [T, H, W, 3], where load_split has
    `frames`), features ({name: float16 [*shape]}, where it has `features`).
    A narrative or window of S steps: name, num_steps, and the same as lists and arrays with a first axis S; `frames` is
    a list where clips have different numbers of frames.
    """
    steps = (item,) if isinstance(item, Step) else item.steps
    values: dict[str, Any] = {
        "action": [step.action for step in steps],
        "caption": [step.caption for step in steps],
        "start_s": np.array([step.start_s for step in steps]),
        "end_s": np.array([step.end_s for step in steps]),
    }
    reader = steps[0].reader
    if reader.frame_rule is not None:
        values["frames"] = [step.frames() for step in steps]
    if isinstance(item, Step):
        values = {"key": item.key, **{name: of_steps[0] for name, of_steps in values.items()}}
    else:
        values = {"name": item.name, "num_steps": np.int64(len(steps)), **values}
        if "frames" in values and len({frames.shape for frames in values["frames"]}) == 1:
            values["frames"] = np.stack(values["frames"])
    if reader.sidecars:
        values["features"] = dict(item.features)
    return values
