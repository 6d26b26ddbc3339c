"""What makes a clip of a caption and a keyframe: one small protocol, a baseline, and the pipelines of diffusers."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cookgen.errors import ModelError
from cookgen.modelstore import identity, resolve
from cookgen.perception.encoders import device_of, load_network
from cookgen.pretrained import LIBRARY_ERRORS, model_errors

STILL = "still"


class Generator(Protocol):
    """Makes clips that begin with their keyframe."""

    @property
    def identity(self) -> str:
        """What the clips hang on beside caption, keyframe and seed: the model, its revision, its settings."""
        ...

    def generate(
        self, caption: str, keyframe_HWC: NDArray[np.uint8], *, num_frames: int, seed: int
    ) -> NDArray[np.uint8]:
        """uint8 [num_frames, H', W', 3], RGB, in time order; the same arguments give the same clip.

        keyframe_HWC: uint8 [H, W, 3], RGB. Raises ModelError where the model cannot make the clip.
        """
        ...


@dataclass(frozen=True)
class Still:
    """The baseline that every generator must beat: the keyframe, unmoved."""

    identity: str = STILL

    def generate(
        self, caption: str, keyframe_HWC: NDArray[np.uint8], *, num_frames: int, seed: int
    ) -> NDArray[np.uint8]:
        """See Generator."""
        return np.repeat(keyframe_HWC[None], num_frames, axis=0)


@dataclass(frozen=True, eq=False)
class DiffusersImageToVideo:
    """An image-to-video pipeline of diffusers (Wan, CogVideoX, LTX …), in bfloat16 on a GPU, float32 on a CPU."""

    identity: str
    name: str
    pipeline: Any
    num_steps: int | None  # None: the pipeline's own
    guidance: float | None

    @staticmethod
    def load(
        model: str, *, num_steps: int | None = None, guidance: float | None = None, device: str = "auto"
    ) -> DiffusersImageToVideo:
        """model: a pipeline's folder, or organisation/name@<commit>. Code that lies in it is never run.

        Raises ModelError where it cannot be loaded, or does not make clips of a caption and a picture.
        """
        import torch

        path = resolve(model).path
        place = device_of(device)
        kind, parts = _pipeline_class(model, path)
        dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
        networks = {
            name: load_network(model, part.from_pretrained, path / name, dtype=dtype) for name, part in parts.items()
        }
        with model_errors(model):
            pipeline = kind.from_pretrained(path, dtype=dtype, local_files_only=True, **networks)
            pipeline.set_progress_bar_config(disable=True)
            pipeline = pipeline.to(place)
        settings = {"steps": num_steps, "guidance": guidance}
        given = "".join(f"+{name}={value:g}" for name, value in settings.items() if value is not None)
        return DiffusersImageToVideo(identity(model) + given, model, pipeline, num_steps, guidance)

    def generate(
        self, caption: str, keyframe_HWC: NDArray[np.uint8], *, num_frames: int, seed: int
    ) -> NDArray[np.uint8]:
        """See Generator. The clip has the keyframe's size.

        Video autoencoders take 4k + 1 frames, or 8k + 1: the next such number is asked for, and the rest left out.
        """
        import torch

        names = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
        step = next((getattr(self.pipeline, name) for name in names if hasattr(self.pipeline, name)), 1)
        height, width = keyframe_HWC.shape[:2]
        options: dict[str, Any] = {"num_inference_steps": self.num_steps, "guidance_scale": self.guidance}
        try:
            (frames,) = self.pipeline(
                image=Image.fromarray(keyframe_HWC),
                prompt=caption,
                height=height,
                width=width,
                num_frames=-(-(num_frames - 1) // step) * step + 1,
                generator=torch.Generator().manual_seed(seed),
                output_type="np",
                **{name: value for name, value in options.items() if value is not None},
            ).frames
        except LIBRARY_ERRORS as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{self.name}: makes no clip of a keyframe of {width}x{height} pixels: {reason}"
            ) from error
        if len(frames) < num_frames or not np.isfinite(frames).all():
            raise ModelError(f"{self.name}: gave {len(frames)} frames, not {num_frames} of finite numbers")
        clip_THWC: NDArray[np.uint8] = np.rint(np.clip(frames[:num_frames], 0, 1) * 255).astype(np.uint8)
        return clip_THWC


def load_generator(
    name: str, *, num_steps: int | None = None, guidance: float | None = None, device: str = "auto"
) -> Generator:
    """`still`, or the model of that name: see DiffusersImageToVideo.load."""
    if name == STILL:
        return Still()
    return DiffusersImageToVideo.load(name, num_steps=num_steps, guidance=guidance, device=device)


def _pipeline_class(model: str, path: Path) -> tuple[Any, dict[str, Any]]:
    """The diffusers class that model_index.json names, and by name the classes of its networks.

    Raises ModelError where it is no pipeline that makes clips of a caption and a picture.
    """
    import diffusers
    import torch

    with model_errors(model):
        index = json.loads((path / "model_index.json").read_bytes())
        found = index["_class_name"]
    kind: Any = getattr(diffusers, found, None) if isinstance(found, str) else None
    is_pipeline = inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline)
    takes = inspect.signature(kind.__call__).parameters if is_pipeline else ()
    if not {"image", "prompt", "num_frames", "generator", "output_type", "height", "width"} <= set(takes):
        raise ModelError(
            f"{model}: its _class_name is {found!r}; wanted: an image-to-video pipeline of diffusers with a prompt, "
            "such as WanImageToVideoPipeline"
        )
    # Loaded by the pipeline itself, a network's missing weights would be made up at random.
    parts = {}
    for name in inspect.signature(kind.__init__).parameters:
        library, part = entry if isinstance(entry := index.get(name), list) and len(entry) == 2 else (None, None)
        if library in ("diffusers", "transformers") and isinstance(part, str):
            part = getattr(import_module(library), part, None)
            if inspect.isclass(part) and issubclass(part, torch.nn.Module):
                parts[name] = part
    return kind, parts
