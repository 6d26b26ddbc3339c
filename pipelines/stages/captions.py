"""captions: what is seen in each clip, in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cookgen.config import machinery
from cookgen.dataset.decode import read_frames
from cookgen.dataset.frames import frame_numbers
from cookgen.errors import UsageError
from cookgen.files import digest
from cookgen.perception.caption_models import GRID_PROMPT, PROMPT, Captioner, whole_sentences
from cookgen.perception.caption_models.endpoint import EndpointCaptioner
from cookgen.perception.caption_models.llava_next import LlavaNextCaptioner
from cookgen.perception.caption_models.tags import TagsCaptioner
from cookgen.records import Caption, Clip, Reason, Reject
from pipelines.stage import Needs, Places, Stage

MAX_CHARS = 2000  # a caption is a few sentences; a model that rambles is cut at the end of a sentence


@dataclass(frozen=True)
class CaptionsConfig:
    """Which captioner looks at how many frames.

    kind "tags" needs nothing else. "endpoint" needs `model`, the name that the server gives it, and its URL, ending in
    /v1. "llava_next" needs `model`, a folder or a hub repository at a commit. num_frames are evenly spaced over the
    clip; with grid an endpoint gets them as one picture, as llava_next does by itself and a LLaVA-NeXT that
    `cookgen-train captioner` tuned expects it. max_tokens bounds a language model's answer.
    """

    kind: Literal["tags", "endpoint", "llava_next"] = "tags"
    model: str = ""
    num_frames: int = 8
    grid: bool = False
    max_tokens: int = 256
    device: Literal["cpu", "cuda"] = "cpu"  # of llava_next; its precision follows: float32 or bfloat16
    endpoint: str | None = machinery(None)
    timeout_s: float = machinery(120.0)
    num_tries: int = machinery(5)

    def __post_init__(self) -> None:
        for name, value in (
            ("num_frames", self.num_frames),
            ("max_tokens", self.max_tokens),
            ("num_tries", self.num_tries),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.grid and self.kind != "endpoint":
            raise ValueError(f"grid goes with kind=endpoint; kind={self.kind} knows by itself how frames are shown")
        if not self.timeout_s > 0:
            raise ValueError(f"timeout_s is {self.timeout_s}; it must be more than 0 seconds")


@dataclass(frozen=True)
class Tool:
    """What one worker holds: the captioner, and where the clips are."""

    captioner: Captioner
    places: Places


def load(config: CaptionsConfig, places: Places) -> Tool:
    """The captioner that the configuration names. Raises UsageError for one that is not named whole."""
    _require_model(config)
    captioner: Captioner
    if config.kind == "endpoint":
        if not config.endpoint:
            raise UsageError(
                "captions.kind=endpoint needs the server's address: --set captions.endpoint=http://127.0.0.1:8000/v1"
            )
        captioner = EndpointCaptioner(
            url=config.endpoint,
            model=config.model,
            max_tokens=config.max_tokens,
            timeout_s=config.timeout_s,
            num_tries=config.num_tries,
            grid=config.grid,
        )
    elif config.kind == "llava_next":
        captioner = LlavaNextCaptioner.load(config.model, max_tokens=config.max_tokens, device=config.device)
    else:
        captioner = TagsCaptioner.load()
    return Tool(captioner, places)


def identity(config: CaptionsConfig) -> str:
    """ "id@revision" of all that the captions depend on besides the configuration: the model, and its prompt's digest.

    What an endpoint serves under a name is the operator's word. Raises as the model store does.
    """
    _require_model(config)
    if config.kind == "endpoint":
        prompt = [GRID_PROMPT, PROMPT] if config.grid else PROMPT
        return f"{config.model}@endpoint+prompt@{digest(prompt)[:12]}"
    if config.kind == "llava_next":
        return f"{LlavaNextCaptioner.identity(config.model)}+prompt@{digest([GRID_PROMPT, PROMPT])[:12]}"
    return TagsCaptioner.identity()


def _require_model(config: CaptionsConfig) -> None:
    if config.kind != "tags" and not config.model:
        raise UsageError(f"captions.kind={config.kind} needs a model: --set captions.model=NAME")
    if config.kind == "tags" and config.model:
        raise UsageError(
            f"captions.model={config.model} has no use with captions.kind=tags, whose classifier is fixed; "
            "add --set captions.kind=endpoint or captions.kind=llava_next"
        )


def caption_clips(clips: tuple[Clip, ...], *, config: CaptionsConfig, tool: Tool) -> Iterator[Caption | Reject]:
    """A caption for each clip, in the order given; a clip of which the model says nothing is a reject."""
    for clip in clips:
        path = tool.places.medium(clip.sha256, ".mp4")
        frames_THWC = read_frames(path, frame_numbers(clip.num_frames, config.num_frames), num_threads=1)
        text = tidy(tool.captioner.caption(frames_THWC, key=f"{clip.narrative}-{clip.clip_index:03d}"))
        if text:
            yield Caption(narrative=clip.narrative, clip_index=clip.clip_index, text=text, origin=tool.captioner.origin)
        else:
            yield Reject(
                narrative=clip.narrative,
                path="",
                clip_index=clip.clip_index,
                stage="captions",
                reason=Reason.EMPTY_CAPTION,
                detail=f"{tool.captioner.origin} said nothing",
            )


def tidy(text: str) -> str:
    """One line of printable text with single blanks, at most 2000 characters, cut after a whole sentence."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= MAX_CHARS else whole_sentences(line, MAX_CHARS)


STAGE = Stage(
    name="captions",
    reads=(Clip,),
    writes=Caption,
    run=caption_clips,
    config=CaptionsConfig(),
    needs=Needs(cpus=1),
    version=1,
    load=load,
    model=identity,
)
