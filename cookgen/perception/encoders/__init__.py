"""Encoders: frozen models that turn a clip's picture, frames or words into one array, behind one small protocol.

clip        CLIP and SigLIP vision towers, of the keyframe
qwen_vl     the vision towers of Qwen2-VL and Qwen2.5-VL, of the keyframe
conse       a stand-in for a joint image-text space, for machines without CLIP
vae         an image autoencoder's latents of the keyframe
video_vae   a video autoencoder's latents of the window that starts at the keyframe
text        sentence embeddings of action and caption
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from cookgen.errors import ModelError, ShapeError, UsageError
from cookgen.perception.threads import one_thread
from cookgen.pretrained import model_errors
from cookgen.records import Sample


class Step(Protocol):
    """What an encoder may ask of a clip."""

    @property
    def sample(self) -> Sample: ...
    @property
    def action(self) -> str: ...
    @property
    def caption(self) -> str: ...
    def keyframe(self) -> NDArray[np.uint8]:
        """uint8 [H, W, 3], RGB."""
        ...

    def frames(self, indices: Sequence[int], /, *, size_px: int | None = None) -> NDArray[np.uint8]:
        """uint8 [T, H, W, 3], RGB; size_px: the short side."""
        ...


class Encoder(Protocol):
    """A loaded model. `prepare` runs in loader workers, without the network; `encode` where the network is."""

    def prepare(self, step: Step, /) -> Any:
        """What the network needs of one clip; small and picklable."""
        ...

    def encode(self, inputs: Sequence[Any], /) -> NDArray[np.float32]:
        """float32 [N, *shape] of N prepared clips; the shape is the same for every clip."""
        ...


class EncoderConfig(Protocol):
    """A frozen dataclass: what to compute, and (machinery) where and how fast."""

    kind: ClassVar[str]
    version: ClassVar[int]  # raised when the same settings come to mean other arrays
    about: ClassVar[str]  # what the arrays are, for whoever reads features.json

    @property
    def batch_size(self) -> int: ...
    @property
    def num_workers(self) -> int: ...
    def identity(self) -> str:
        """ "id@revision" of the model; nothing is loaded."""
        ...

    def load(self) -> Encoder:
        """Raises ModelError where the model is not there or is not of this family."""
        ...


def device_of(name: str) -> Any:
    """The torch device: "auto" is CUDA where there is one, else the CPU. Raises UsageError for one that cannot be."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch that was built without CUDA
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"device={name}: {reason}; give auto, cpu, or cuda on a machine that has it") from error


@contextmanager
def inference() -> Iterator[None]:
    """No gradients; sums and convolutions in one order, so that the same input gives the same bits."""
    import torch

    with one_thread(), torch.inference_mode(), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        yield


def stacked(inputs: Sequence[NDArray[Any]]) -> Any:
    """The batch as one torch tensor [N, …]. Raises ShapeError where the clips differ in size."""
    import torch

    if len(shapes := {item.shape for item in inputs}) > 1:
        raise ShapeError(f"clips of several sizes, {sorted(shapes)}: features have one shape for the whole set")
    return torch.from_numpy(np.stack(inputs))


def to_numpy(tensor: Any) -> NDArray[np.float32]:
    """A result of the network, on whatever device, as float32."""
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array


def load_config(name: str, path: Path, kinds: Sequence[str], encoder: str) -> Any:
    """The transformers configuration of a checkpoint. Raises ModelError unless its model_type is one of `kinds`."""
    from transformers import AutoConfig

    with model_errors(name):
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    if config.model_type not in kinds:
        raise ModelError(f"{name}: its model_type is {config.model_type!r}; {encoder} runs {', '.join(kinds)}")
    return config


def load_network(name: str, load: Callable[..., tuple[Any, dict[str, Any]]], *args: Any, **options: Any) -> Any:
    """A network in eval mode, by the library's `from_pretrained`, in float32, from safetensors only.

    Raises ModelError where the files cannot be read, or lack weights that the network needs: the libraries would make
    those up at random.
    """
    with model_errors(name):
        network, info = load(*args, **options, local_files_only=True, use_safetensors=True, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{name}: {len(missing)} weights of {type(network).__name__} are not in its files ({missing[0]}, …): "
            "the checkpoint is not whole, or of another kind"
        )
    return network.eval()
