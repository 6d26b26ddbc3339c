"""What a director wrote, as a folder: storyboard.json, each step's z as z/000.npy, and index.html to look at.

The page asks nothing of anyone: its style and pictures are inside it, and its content security policy forbids the
browser anything else. Everything on it that came from outside is escaped. storyboard.json is written last: it is there
when all is. Shapes: S steps, C clips, N tokens an image, W width of z.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from cookgen.dataset.narrative import Narrative
from cookgen.dataset.sample import Step
from cookgen.dataset.split import load_split, read_manifest
from cookgen.director.sample import Sampling, Written, WrittenStep
from cookgen.director.weights import Encoded, LoadedDirector
from cookgen.errors import InputError, OutputError, UnknownNameError, UsageError
from cookgen.files import canonical_json, explained, write_atomic
from cookgen.records.features import encoder_of

FORMAT = "cookgen/storyboard/1"
_GENERATOR = f'<meta name="generator" content="{FORMAT}">'
_Z_FILE = re.compile(r"\d{3,}\.npy")
_FOLDER = Path(__file__).parent
_PICTURE_PX = 480


@dataclass(frozen=True, eq=False)
class Nearest:
    """The clip whose features are most like a step's z, by cosine: the mean over the tokens."""

    step: Step
    cosine: float


def write_storyboard(
    out: Path,
    written: Written,
    loaded: LoadedDirector,
    sampling: Sampling,
    *,
    nearest: Sequence[Nearest | None] | None = None,
    nearest_in: str = "",
    picture_HWC: NDArray[np.uint8] | None = None,
) -> None:
    """Writes the folder, in the place of an older storyboard.

    nearest: for each step what `nearest_keyframes` found in the set `nearest_in`. picture_HWC: the keyframe that was
    given for the first step, uint8 RGB. Raises OutputError as `check_out` does, and where it cannot be written.
    """
    check_out(out)
    z_files = [f"z/{index:03d}.npy" if step.z_NW is not None else None for index, step in enumerate(written.steps)]
    found = nearest or [None] * len(written.steps)
    values = {
        "format": FORMAT,
        "query": written.query,
        "stopped": written.stopped,
        "notes": list(written.notes),
        "checkpoint": {"step": loaded.step, "language_model": loaded.language_model},
        "features": _encoder(loaded.features),
        **asdict(sampling),
        "steps": [
            {
                "index": index,
                "action": step.texts.get("action"),
                "caption": step.texts.get("caption"),
                "z": z_file,
                "is_given": bool(step.given),
                "nearest": None if near is None else {"clip": near.step.key, "set": nearest_in, "cosine": near.cosine},
            }
            for index, (step, z_file, near) in enumerate(zip(written.steps, z_files, found, strict=True))
        ],
    }
    page = _page(values, written, found, nearest_in, picture_HWC)
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "storyboard.json").unlink(missing_ok=True)  # from here on the folder is not whole
        for z_file, step in zip(z_files, written.steps, strict=True):
            if z_file is not None:
                write_atomic(out / z_file, _npy(step))
        for old in (out / "z").glob("*.npy"):
            if f"z/{old.name}" not in z_files:
                old.unlink()
        write_atomic(out / "index.html", page)
        write_atomic(out / "storyboard.json", canonical_json(values))


def check_out(out: Path) -> None:
    """Raises OutputError where `out` is something else than a storyboard, an empty folder, or nothing yet."""
    with explained(out):
        if not out.exists() and not out.is_symlink():
            return
        names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        z_files = [path.name for path in (out / "z").iterdir()] if "z" in names else []
    is_ours = (
        names <= {"storyboard.json", "index.html", "z"}
        and not (out / "z").is_symlink()
        and all(_Z_FILE.fullmatch(name) or name.startswith(".tmp-") for name in z_files)
        and ("z" in names or _is_storyboard(out / "storyboard.json") or _is_page(out / "index.html"))
    )
    if names and not is_ours:
        raise OutputError(f"{out}: holds something else than a storyboard. Choose another --out, or empty it")


def open_keyframes(shards: str | Path, loaded: LoadedDirector) -> list[Narrative]:
    """The narratives of a shard set, all splits, whose features are of the space that the director writes in.

    Raises UsageError where the director has no z, InputError where the set has no features of this name, or of another
    encoder or size, or no narratives; as `load_split` does where it is no shard set.
    """
    features = loaded.features
    if features is None:
        raise UsageError("nearest: this director writes texts alone, there is no z to compare; leave it out")
    narratives: list[Narrative] = []
    for split in read_manifest(shards).splits:
        try:
            narratives += load_split(split, shards, features=(features.name,))
        except UnknownNameError as error:
            model = f" --model {features.encoder_model}" if features.encoder_model else ""
            raise InputError(
                f"{shards}: {error}. `cookgen features {shards} --encoder {features.config.get('kind')}{model} "
                f"--name {features.name}` makes them"
            ) from error
    if not narratives:
        raise InputError(f"{shards}: the set holds no clips; give one that does")
    found = narratives[0].reader.sidecars[features.name].features
    if encoder_of(found) != encoder_of(features):
        raise InputError(
            f"{shards}: its features {features.name!r} are of {found.model}@{found.revision} with "
            f"{canonical_json(found.config)}, the director's z of {features.model}@{features.revision} with "
            f"{canonical_json(features.config)}. Give a set with features of that encoder"
        )
    shape = loaded.director.num_tokens, len(loaded.director.mean_W)
    if math.prod(found.shape) != math.prod(shape) or found.shape[-1] != shape[-1]:
        raise InputError(
            f"{shards}: its features {features.name!r} are {list(found.shape)} a clip, the director's z {list(shape)}. "
            "Give a set with features of that size"
        )
    return narratives


def nearest_keyframes(steps: Sequence[WrittenStep], narratives: Sequence[Narrative], feature: str) -> list[Nearest]:
    """For each step's z the clip whose features of this name are nearest, of equally near ones the first."""
    z_SNW = _unit(np.stack([step.z_NW for step in steps if step.z_NW is not None]))
    cosines_S = np.full(len(z_SNW), -np.inf)
    places = [(0, 0)] * len(z_SNW)
    for number, narrative in enumerate(narratives):
        cosines_SC = _cosines(z_SNW, _unit(narrative.features[feature].reshape(-1, *z_SNW.shape[1:])))
        for index in np.flatnonzero(cosines_SC.max(1) > cosines_S):
            clip = int(cosines_SC[index].argmax())
            cosines_S[index], places[index] = cosines_SC[index, clip], (number, clip)
    return [
        Nearest(narratives[number].steps[clip], float(cosine))
        for (number, clip), cosine in zip(places, cosines_S, strict=True)
    ]


def _unit(z: NDArray[Any]) -> NDArray[np.float32]:
    """Each token at length 1; one without a direction, or not finite, becomes 0: like nothing."""
    z = np.nan_to_num(z.astype(np.float32), nan=0, posinf=0, neginf=0)
    unit: NDArray[np.float32] = z / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    return unit


def _cosines(a_SNW: NDArray[np.float32], b_CNW: NDArray[np.float32]) -> NDArray[np.float32]:
    """[S, C]: the mean over the tokens."""
    cosines_SC: NDArray[np.float32] = a_SNW.reshape(len(a_SNW), -1) @ b_CNW.reshape(len(b_CNW), -1).T / a_SNW.shape[1]
    return cosines_SC


def _encoder(features: Encoded | None) -> dict[str, Any] | None:
    if features is None:
        return None
    return {"name": features.name, "model": features.model, "revision": features.revision}


def _npy(step: WrittenStep) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(step.z_NW, "<f4"))
    return stream.getvalue()


def _is_storyboard(path: Path) -> bool:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.get("format") == FORMAT


def _is_page(path: Path) -> bool:
    """Whether it is the page of a storyboard whose writing ended before its storyboard.json."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return _GENERATOR.encode() in stream.read(1000)
    return False


def _page(
    values: dict[str, Any],
    written: Written,
    nearest: Sequence[Nearest | None],
    nearest_in: str,
    picture_HWC: NDArray[np.uint8] | None,
) -> str:
    pictures = [None if near is None else _picture(near.step.keyframe()) for near in nearest]
    if picture_HWC is not None:
        pictures[0] = _picture(picture_HWC)
    with_z = [step.z_NW for step in written.steps if step.z_NW is not None]
    cosines: list[list[float]] = []
    if with_z:
        unit_SNW = _unit(np.stack(with_z))
        all_SS = _cosines(unit_SNW, unit_SNW).round(2) + 0.0  # + 0.0: no -0.00
        cosines = [row[:place].tolist() for place, row in enumerate(all_SS)]
    style = (_FOLDER / "storyboard.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("storyboard.html").render(
        board=values,
        style=Markup(style),
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'",
        given=[step.given for step in written.steps],
        pictures=pictures,
        is_picture_given=picture_HWC is not None,
        nearest_in=nearest_in,
        cosines=cosines,
        shape=list(with_z[0].shape) if with_z else None,
    )


def _picture(picture_HWC: NDArray[np.uint8]) -> tuple[str, int, int]:
    """A small JPEG: base64, width, height."""
    image = Image.fromarray(picture_HWC)
    image.thumbnail((_PICTURE_PX, _PICTURE_PX))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=80, optimize=True)
    return base64.b64encode(content.getvalue()).decode(), image.width, image.height
