"""Latents of image and video autoencoders, run by diffusers.

Always the mode of the posterior, never a sample, so that the same clip has the same latents; scaled as the diffusion
models that use them want it: (z - mean) / std * scaling_factor, each where the checkpoint's configuration has it
(shift_factor is a mean). Pictures are [-1, 1].
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cookgen.config import machinery
from cookgen.errors import ModelError, ShapeError
from cookgen.modelstore import identity, resolve
from cookgen.perception.encoders import Step, device_of, inference, load_network, stacked, to_numpy
from cookgen.pretrained import model_errors

IMAGE = ("AutoencoderKL",)
VIDEO = ("AutoencoderKLWan", "AutoencoderKLCogVideoX", "AutoencoderKLHunyuanVideo")
_ROUNDING = 1e-3  # of a frame: the JSON's seconds are rounded


@dataclass(frozen=True)
class VaeConfig:
    """[C, H/f, W/f] with the checkpoint's factor f, mostly 8. size_px: the picture's short side; none: as it is."""

    kind: ClassVar[str] = "vae"
    version: ClassVar[int] = 1
    about: ClassVar[str] = "latents of the keyframe: the posterior's mode, (z - mean) / std * scaling_factor"

    model: str
    size_px: int | None = None
    device: str = machinery("auto")
    batch_size: int = machinery(8)
    num_workers: int = machinery(2)

    def identity(self) -> str:
        return identity(self.model)

    def load(self) -> VaeEncoder:
        network = _load(self.model, IMAGE, self.kind)
        device = device_of(self.device)
        return VaeEncoder(network.to(device), device, self.size_px)


@dataclass(frozen=True, eq=False)
class VaeEncoder:
    """A loaded AutoencoderKL."""

    network: Any
    device: Any
    size_px: int | None

    def prepare(self, step: Step) -> NDArray[np.uint8]:
        """The keyframe, uint8 [H, W, 3]."""
        picture_HWC = step.keyframe()
        if self.size_px is None:
            return picture_HWC
        height, width = (round(side * self.size_px / min(picture_HWC.shape[:2])) for side in picture_HWC.shape[:2])
        return np.asarray(Image.fromarray(picture_HWC).resize((width, height), Image.Resampling.BICUBIC))

    def encode(self, inputs: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """float32 [N, C, H/f, W/f]."""
        pictures_NHWC = stacked(inputs).to(self.device)
        _check_size(pictures_NHWC.shape[1:3], 2 ** (len(self.network.config["block_out_channels"]) - 1))
        return _latents(self.network, pictures_NHWC.permute(0, 3, 1, 2))


@dataclass(frozen=True)
class VideoVaeConfig:
    """[C, 1 + (num_frames - 1)/4, H/f, W/f] with the checkpoint's factor f, mostly 8.

    num_frames frames, 4k + 1 of them, `fps` a second, from the keyframe on; the clip's last frame is repeated where the
    clip ends before. size_px: the frames' short side; none: as they are.
    """

    kind: ClassVar[str] = "video_vae"
    version: ClassVar[int] = 1
    about: ClassVar[str] = (
        "latents of the window that starts at the keyframe, its last frame repeated where the clip ends: "
        "the posterior's mode, (z - mean) / std * scaling_factor"
    )

    model: str
    num_frames: int = 49
    fps: float = 8.0
    size_px: int | None = None
    device: str = machinery("auto")
    batch_size: int = machinery(1)
    num_workers: int = machinery(2)

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.num_frames % 4 != 1:
            raise ValueError(f"num_frames={self.num_frames}: video autoencoders take 4k + 1 frames, for example 49")
        if not self.fps > 0:
            raise ValueError(f"fps={self.fps}: must be above 0")

    def identity(self) -> str:
        return identity(self.model)

    def load(self) -> VideoVaeEncoder:
        network = _load(self.model, VIDEO, self.kind)
        device = device_of(self.device)
        return VideoVaeEncoder(network.to(device), device, self.num_frames, self.fps, self.size_px)


@dataclass(frozen=True, eq=False)
class VideoVaeEncoder:
    """A loaded video autoencoder."""

    network: Any
    device: Any
    num_frames: int
    fps: float
    size_px: int | None

    def prepare(self, step: Step) -> NDArray[np.uint8]:
        """The window's frames, uint8 [T, H, W, 3]."""
        return step.frames(window(step, num_frames=self.num_frames, fps=self.fps), size_px=self.size_px)

    def encode(self, inputs: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """float32 [N, C, T', H/f, W/f]."""
        frames_NTHWC = stacked(inputs).to(self.device)
        config = self.network.config
        _check_size(frames_NTHWC.shape[2:4], config.get("scale_factor_spatial") or 8)
        return _latents(self.network, frames_NTHWC.permute(0, 4, 1, 2, 3))


def window(step: Step, *, num_frames: int, fps: float) -> list[int]:
    """The numbers of the clip's frames that are shown at keyframe + k/fps, the last one for all times after the clip.

    The first is the first frame of the clip at or after the keyframe's time.
    """
    clip, keyframe_s = step.sample.clip, step.sample.keyframe.pts_s
    first = max(0, math.ceil((keyframe_s - clip.first_pts_s) * clip.fps - _ROUNDING))
    numbers = (first + math.floor(k * clip.fps / fps + _ROUNDING) for k in range(num_frames))
    return [min(number, clip.num_frames - 1) for number in numbers]


def _load(name: str, classes: Sequence[str], encoder: str) -> Any:
    import diffusers
    import torch

    path = resolve(name).path
    if not (path / "config.json").is_file() and (path / "vae" / "config.json").is_file():
        path = path / "vae"  # a whole diffusion pipeline
    with model_errors(name):
        found = json.loads((path / "config.json").read_bytes()).get("_class_name")
    if found not in classes:
        raise ModelError(f"{name}: its _class_name is {found!r}; {encoder} runs {', '.join(classes)}")
    load = getattr(diffusers, found).from_pretrained
    return load_network(name, load, path, torch_dtype=torch.float32, low_cpu_mem_usage=False)


def _check_size(size: Sequence[int], factor: int) -> None:
    height, width = size
    if height % factor or width % factor:
        raise ShapeError(f"pictures of {width}x{height} pixels: their sides must be multiples of {factor}; set size_px")


def _latents(network: Any, pictures: Any) -> NDArray[np.float32]:
    """pictures: uint8 tensor [N, 3, …, H, W]."""
    import torch

    with inference():
        z = network.encode(pictures.float() / 127.5 - 1).latent_dist.mode()
        config = network.config

        def channels(values: Any) -> Any:
            tensor = torch.tensor(values, dtype=z.dtype, device=z.device)
            return tensor.reshape(-1, *[1] * (z.ndim - 2))

        mean = config.get("latents_mean") or config.get("shift_factor") or 0.0
        z = (z - channels(mean)) / channels(config.get("latents_std") or 1.0)
        return to_numpy(z * (config.get("scaling_factor") or 1.0))
