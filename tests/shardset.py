"""A tiny shard set made from hand-written records and real media: what the tests of writing and reading share."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

from cookgen.dataset.tar import tar_member
from cookgen.files import canonical_json, digest, file_sha256, write_atomic
from cookgen.records import (
    FORMAT,
    Action,
    Caption,
    Check,
    Clip,
    Features,
    Lineage,
    Match,
    Reason,
    Record,
    Reject,
    SourceVideo,
    Video,
    Word,
)
from pipelines.stage import Places, Result, Stage, VideoState
from pipelines.stages.shards import ShardsConfig, write_shards

FPS = 10
SIDE = 64
NUM_FRAMES = 10


@dataclass(frozen=True)
class RunConfig:
    """Stands for the pipeline's own configuration, of which the shards stage is one field."""

    shards: ShardsConfig = ShardsConfig()


def _stage(name: str, writes: type[Record]) -> Stage:
    return Stage(name=name, reads=(SourceVideo,), writes=writes, run=lambda: (), config=RunConfig(), version=1)


STAGES = (
    _stage("videos", Video),
    _stage("clips", Clip),
    _stage("speech", Word),
    _stage("actions", Action),
    _stage("captions", Caption),
    _stage("matches", Match),
    _stage("checks", Check),
)
MODELS = {"speech": "whisper-tiny.en@1", "actions": "smollm2@1", "captions": "efficientnet-lite0@1"}


@cache
def frames(shade: int) -> np.ndarray:
    """uint8 [NUM_FRAMES, SIDE, SIDE, 3]: a bright square that moves over a plain ground."""
    images = np.full((NUM_FRAMES, SIDE, SIDE, 3), 16 + 8 * shade, dtype=np.uint8)
    for number in range(NUM_FRAMES):
        images[number, 8:24, 4 * number : 4 * number + 16] = (240, 200, 40 * shade % 255)
    return images


@cache
def mp4(
    shade: int = 0,
    *,
    has_audio: bool = False,
    edit_list: bool = False,
    faststart: bool = True,
    num_frames: int = NUM_FRAMES,
    starts_at_0: bool = True,
    pix_fmt: str = "yuv420p",
    codec: str = "libx264",
    sample_rate: int = 48_000,
) -> bytes:
    """A real clip of `num_frames` frames at FPS; with B-frames, so that `starts_at_0` has to be asked for."""
    flags = ("+faststart" if faststart else "") + ("" if edit_list or not starts_at_0 else "+negative_cts_offsets")
    options = {"use_editlist": str(int(edit_list))} | ({"movflags": flags} if flags else {})
    with (
        tempfile.NamedTemporaryFile(suffix=".mp4") as file,  # a path: faststart opens the file a second time
        av.open(file.name, "w", format="mp4", container_options=options) as container,
    ):
        options = {"threads": "1", "preset": "veryfast"}
        if codec == "libx264":  # on pictures so small its macroblock tree differs from process to process
            options["x264-params"] = "mbtree=0"
        video = container.add_stream(codec, rate=FPS, options=options)
        video.width = video.height = SIDE
        video.pix_fmt = pix_fmt
        audio = container.add_stream("aac", rate=sample_rate, layout="mono") if has_audio else None
        images = frames(shade)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(images[min(number, NUM_FRAMES - 1)], format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            tone = np.sin(np.arange(sample_rate) * 0.05).astype(np.float32)[None] * 0.2
            sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            sound.sample_rate = sample_rate
            sound.pts = 0
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
        container.close()
        return Path(file.name).read_bytes()


@cache
def jpg(shade: int = 0, *, side: int = SIDE, format: str = "JPEG") -> bytes:  # noqa: A002
    """The keyframe that belongs to mp4(shade)."""
    buffer = io.BytesIO()
    Image.fromarray(frames(shade)[4]).resize((side, side)).save(buffer, format)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Story:
    """What a made-up video is to hold. Clip and action i belong together but for those listed as lonely."""

    video_id: str
    num_clips: int = 3
    split: str = "train"
    source: str = "demo"
    manual: bool = False
    lonely_clips: frozenset[int] = frozenset()
    lonely_actions: frozenset[int] = frozenset()
    without_caption: frozenset[int] = frozenset()
    stops_at: str | None = None  # the stage that rejects the whole video
    stop_reason: Reason = Reason.NO_SHOTS
    title: str | None = None
    topic: str | None = None
    first_text: str = "Slice the onion"
    captions: tuple[str, ...] = ()  # by clip, in turn; "a pan, still" where there are none
    captioner: str = "tags:efficientnet-lite0"
    first_shade: int = 0  # another one for a split that is to share no clip with the others

    @property
    def narrative(self) -> str:
        return f"{self.source}-{self.video_id}"

    @property
    def path(self) -> str:
        return f"{self.video_id}.mp4"


@dataclass
class Media:
    """The media store of a test; also knows where."""

    folder: Path
    written: set[str] = field(default_factory=set)

    @property
    def places(self) -> Places:
        return Places(videos=self.folder / "videos", media=self.folder / "media", scratch=self.folder / "scratch")

    def put(self, content: bytes, suffix: str) -> str:
        name = sha256(content)
        if name not in self.written:
            write_atomic(self.places.medium(name, suffix), content)
            self.written.add(name)
        return name


def make_state(story: Story, media: Media) -> VideoState:
    """The video's state after its last stage."""
    rows, rejects = _rows(story, media)
    source = SourceVideo(
        narrative=story.narrative,
        source=story.source,
        video_id=story.video_id,
        path=story.path,
        num_bytes=9,
        mtime_ns=1,
    )
    state = VideoState(source)
    for stage in STAGES:
        stops = story.stops_at == stage.name
        if stops:
            refusal = Reject(
                narrative=story.narrative, path=story.path, stage=stage.name, reason=story.stop_reason, detail="made up"
            )
            rejects[stage.name] = (refusal,)
        lineage = Lineage(
            version=1, config=digest(stage.name), model=MODELS.get(stage.name), inputs=digest(repr(story))
        )
        result = Result(
            stage=stage.name,
            key=digest([stage.name, repr(story)]),
            narrative=story.narrative,
            rows=() if stops else rows[stage.name],
            rejects=rejects.get(stage.name, ()),
            lineage=lineage,
            seconds=0.5,
        )
        state = state.with_result(result)
        if stops:
            break
    return state


def _rows(story: Story, media: Media) -> tuple[dict[str, tuple[Record, ...]], dict[str, tuple[Reject, ...]]]:
    name = story.narrative
    video = Video(
        narrative=name,
        source=story.source,
        video_id=story.video_id,
        path=story.path,
        sha256=sha256(story.video_id.encode()),
        num_bytes=9,
        duration_s=5.0 * story.num_clips + 10,
        start_s=0.0,
        width=SIDE,
        height=SIDE,
        fps=FPS,
        video_stream=0,
        audio_stream=1,
        has_audio=True,
        split=story.split,
        title=story.title,
        topic=story.topic,
    )
    clips, words, actions, captions, matches, checks, refused = [], [], [], [], [], [], []
    for index in range(story.num_clips):
        shade = story.first_shade + index % 3
        has_audio = index % 3 == 1
        clip_bytes, image = mp4(shade, has_audio=has_audio), jpg(shade)
        start_s = 5.0 * index
        clip = Clip(
            narrative=name,
            clip_index=index,
            start_s=start_s,
            end_s=start_s + 1,
            first_pts_s=start_s,
            last_pts_s=start_s + 0.9,
            num_frames=NUM_FRAMES,
            fps=FPS,
            width=SIDE,
            height=SIDE,
            has_audio=has_audio,
            sha256=media.put(clip_bytes, ".mp4"),
            num_bytes=len(clip_bytes),
            keyframe_pts_s=start_s + 0.4,
            keyframe_sha256=media.put(image, ".jpg"),
            keyframe_num_bytes=len(image),
        )
        clips.append(clip)
        # By turns iou 0.6, allowed as such, and iou 0.4, allowed by the start.
        begin_s, end_s, iou = (0.25, 1.25, 0.6) if index % 2 == 0 else (0.5, 0.9, 0.4)
        text = story.first_text if index == 0 else f"Stir the pot {index} times"
        action = Action(
            narrative=name,
            action_index=index,
            text=text,
            start_s=start_s + begin_s,
            end_s=start_s + end_s,
            origin="manual" if story.manual else "asr",
            raw_text=text.lower(),
            word_first=None if story.manual else 2 * index,
            word_end=None if story.manual else 2 * index + 2,
        )
        actions.append(action)
        if not story.manual:
            words += [
                Word(
                    narrative=name,
                    word_id=2 * index + number,
                    text="stir",
                    start_s=start_s + begin_s + number * (end_s - begin_s) / 2,
                    end_s=start_s + begin_s + (number + 1) * (end_s - begin_s) / 2,
                    probability=0.9,
                )
                for number in range(2)
            ]
        if index in story.without_caption:
            refused.append(
                Reject(narrative=name, path=story.path, clip_index=index, stage="captions", reason=Reason.EMPTY_CAPTION)
            )
        else:
            text = story.captions[index % len(story.captions)] if story.captions else "a pan, still"
            captions.append(Caption(narrative=name, clip_index=index, text=text, origin=story.captioner))
        is_pair = index not in story.lonely_clips | story.lonely_actions
        matches.append(
            Match(
                narrative=name,
                clip_index=index,
                action_index=index,
                start_diff_s=begin_s,
                iou=iou,
                allowed=True,
                chosen=is_pair,
                rule="iou" if iou > 0.5 else "start_diff",
            )
        )
        checks.append(Check(narrative=name, clip_index=index, check="text_similarity", score=0.5))
    checks.append(Check(narrative=name, clip_index=None, check="repeated_text", score=0.0))
    rows: dict[str, tuple[Record, ...]] = {
        "videos": (video,),
        "clips": tuple(clips),
        "speech": tuple(words),
        "actions": tuple(actions),
        "captions": tuple(captions),
        "matches": tuple(matches),
        "checks": tuple(checks),
    }
    return rows, {"captions": tuple(refused)}


def make_states(stories: Sequence[Story], media: Media) -> list[VideoState]:
    return [make_state(story, media) for story in stories]


def make_set(out: Path, stories: Sequence[Story], *, target_shard_bytes: int = 2**28) -> Path:
    """A whole shard set of these stories, written by the shards stage; a small target makes many shards."""
    media = Media(out.parent / f"{out.name}.media")
    config = ShardsConfig(target_shard_bytes=target_shard_bytes)
    write_shards(
        make_states(stories, media),
        [],
        config=config,
        run_config=RunConfig(config),
        places=media.places,
        out=out,
        stages=STAGES,
    )
    return out


def feature_of(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """float16 of this shape, another one for each key."""
    seed = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def add_features(out: Path, name: str, shape: tuple[int, ...]) -> Path:
    """Sidecar shards beside every shard of the set, written with tarfile and numpy as the format says."""
    folder = out / "features" / name
    sha256s, of_shards = {}, {}
    for shard in sorted(out.glob("*/cookgen-*.tar")):
        path = shard.relative_to(out).as_posix()
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(shard) as source, tarfile.open(folder / path, "w", format=tarfile.PAX_FORMAT) as tar:
            for member in source.getnames():
                if member.endswith(".json"):
                    content = io.BytesIO()
                    np.save(content, feature_of(member.removesuffix(".json"), shape))
                    entry = tar_member(f"{member.removesuffix('.json')}.npy", len(content.getvalue()))
                    tar.addfile(entry, io.BytesIO(content.getvalue()))
        sha256s[path], of_shards[path] = file_sha256(folder / path), file_sha256(shard)
    features = Features(
        format=FORMAT,
        name=name,
        created_by="tests",
        model="none",
        revision="1",
        dtype="float16",
        shape=shape,
        config={},
        sha256s=sha256s,
        of_shards=of_shards,
    )
    write_atomic(folder / "features.json", canonical_json(features.to_json()))
    return folder
