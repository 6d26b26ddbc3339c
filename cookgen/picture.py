"""A picture file as the keyframe that an encoder of features reads.

From anywhere: whatever the file is, it gives the upright RGB picture or an InputError.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cookgen.errors import InputError, ModelError, UsageError, reason_of
from cookgen.features import encoder_config

_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
_MIN_SIDE_PX = 16
_MAX_RATIO = 20  # of the sides: encoders resize the short one
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """The picture, uint8 [H, W, 3], RGB: upright as its EXIF says, transparency over white, of an animation the first.

    Raises InputError where it is no picture, is damaged, too large to be one, or no shape of a keyframe.
    """
    if not path.is_file():  # a pipe would never end
        raise InputError(f"{path}: there is no such file; give a picture, for example a JPEG or PNG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                short, long = sorted(image.size)
                if short < _MIN_SIDE_PX or long > _MAX_RATIO * short:
                    raise InputError(
                        f"{path}: {image.width}x{image.height} pixels; a keyframe's sides have at least {_MIN_SIDE_PX} "
                        f"pixels, and none is over {_MAX_RATIO} times as long as the other"
                    )
                return np.array(_rgb(ImageOps.exif_transpose(image)))
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a readable picture ({reason_of(error)}); give a JPEG or PNG") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError("32 bits a pixel: its white is not known")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def encode_picture(
    picture_HWC: NDArray[np.uint8],
    identity: str,
    *,
    config: Mapping[str, Any],
    encoder_model: str | None,
) -> NDArray[np.float32]:
    """The picture's features, as `cookgen features` gives them for a clip with this keyframe (rounded to float16).

    identity, config: the encoder's model@revision and what features.json says of it. encoder_model: what the model is
    called on this machine.
    Raises ModelError where the encoder here is not that one, UsageError for one that reads more than a keyframe.
    """
    settings = [f"{name}={value}" for name, value in config.items() if name not in ("kind", "version", "about")]
    try:
        encoder = encoder_config(str(config.get("kind")), model=encoder_model, settings=settings)
    except UsageError as error:
        raise UsageError(
            f"the picture must be encoded as the director's features are, by {identity}: {error}. Name that model with "
            "--encoder-model, or leave the picture out"
        ) from error
    found, wanted = (encoder.identity(), encoder.version), (identity, config.get("version"))
    if found != wanted:
        raise ModelError(
            f"the director's features are of {wanted[0]} (version {wanted[1]} of {encoder.kind}), but here is "
            f"{found[0]} (version {found[1]}): give that model its old place, or leave the picture out"
        )
    loaded = encoder.load()
    z = loaded.encode([loaded.prepare(_Clip(picture_HWC, encoder.kind))])[0]
    with np.errstate(over="ignore"):
        half: NDArray[np.float16] = z.astype(np.float16)
    if not np.isfinite(half).all():
        raise ModelError(f"{identity}: gives numbers for this picture that float16 cannot hold; give another picture")
    return half.astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Clip:
    """A lone picture where an encoder expects a clip; satisfies cookgen.perception.encoders.Step."""

    picture_HWC: NDArray[np.uint8]
    encoder: str

    def keyframe(self) -> NDArray[np.uint8]:
        return self.picture_HWC

    def frames(self, indices: Sequence[int], /, *, size_px: int | None = None) -> NDArray[np.uint8]:
        self._missing("frames")

    @property
    def sample(self) -> Any:
        self._missing("frames")

    @property
    def action(self) -> str:
        self._missing("texts")

    @property
    def caption(self) -> str:
        self._missing("texts")

    def _missing(self, what: str) -> NoReturn:
        raise UsageError(f"the director's features ({self.encoder}) are of a clip's {what}: a picture alone has none")
