"""What a stage is: a pure function and a description. No Ray here, no base class, no registry.

    def match_actions(clips, actions, *, config): ...            rows in, rows or rejects out
    STAGE = Stage(name="matches", reads=(Clip, Action), writes=Match, run=match_actions, ...)

The unit of work is one source video. `run` gets, for each record type in `reads`, that video's rows (the row itself
where the type has one row a video, a tuple of rows otherwise), `config=` the stage's own configuration and, for a
stage with `load`, `tool=` what `load(config, places)` returned once in this worker: a model, or access to files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

from cookgen.config import config_digest
from cookgen.errors import ModelError, ModelServerError, OutputError, UsageError
from cookgen.files import atomic_path, canonical_json, digest, file_sha256
from cookgen.records import Lineage, Reason, Record, Reject, SourceVideo
from pipelines.bucket import Bucket
from pipelines.ffmpeg import ChildKilledError

RETRY_PAUSES_S = (1.0, 4.0)  # before a stage is tried again on a video, where its failure can pass
_STUMBLES = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR)


def medium_path(media: Path, sha256: str, suffix: str) -> Path:
    """Where in the media folder the file with this digest lies; suffix ".mp4" or ".jpg"."""
    return media / sha256[:2] / f"{sha256}{suffix}"


def medium_name(sha256: str, suffix: str) -> str:
    """The same in a bucket."""
    return medium_path(Path("media"), sha256, suffix).as_posix()


@dataclass(frozen=True)
class Needs:
    """What one worker of a stage holds: CPU cores (fractions allowed) and GPUs; `workers` bounds how many there are.
    `python` is the interpreter of a side environment that they run in, the same path on every machine."""

    cpus: float = 1.0
    gpus: float = 0.0
    workers: int | None = None  # None: one for every four cores of the cluster
    python: str | None = None  # None: the pipeline's own


@dataclass(frozen=True)
class Places:
    """Where things are in this run. Never part of a digest. Picklable: it travels to every worker."""

    videos: Path  # folder that Video.path is relative to
    media: Path  # the store's media folder: {sha256[:2]}/{sha256}.mp4 and .jpg
    scratch: Path  # temporary files; emptied by the run
    fetched: Path | None = None  # what the run fetched itself, also relative to it
    bucket: Bucket | None = None  # where the media are kept as well
    # Stage name -> URLs of the servers that this run started for it, on the driver's machine.
    endpoints: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def source(self, path: str) -> Path:
        """Where a file of the source is: in the user's folder, else among what was fetched."""
        own = self.videos / path
        return own if self.fetched is None or own.exists() else self.fetched / path

    def medium(self, sha256: str, suffix: str) -> Path:
        """The clip or keyframe with this digest, brought from the bucket where only that has it; suffix ".mp4" or
        ".jpg". Where nothing has it the path leads nowhere."""
        path = medium_path(self.media, sha256, suffix)
        if self.bucket is not None and not path.exists():
            with contextlib.suppress(FileNotFoundError):
                self.bucket.get(medium_name(sha256, suffix), path, sha256=sha256)
        return path

    def keep(self, path: Path) -> str:
        """Copies a clip or keyframe into the media folder, and the bucket; returns its sha256, which names it."""
        sha256 = file_sha256(path)
        with atomic_path(medium_path(self.media, sha256, path.suffix)) as temporary:
            shutil.copyfile(path, temporary)
        if self.bucket is not None:
            self.bucket.put(path, medium_name(sha256, path.suffix))
        return sha256


@dataclass(frozen=True)
class Stage:
    """A stage's description; see the module's docstring."""

    name: str
    reads: tuple[type[Record], ...]
    writes: type[Record]
    run: Callable[..., Iterable[Record | Reject]]
    config: Any  # a frozen dataclass
    version: int  # raised when the meaning of the rows changes
    needs: Needs = Needs()
    load: Callable[[Any, Places], Any] | None = None
    model: Callable[[Any], str | None] = lambda config: None  # "id@revision" of what the rows depend on


@dataclass(frozen=True)
class Result:
    """What one stage said of one video, under its content key."""

    stage: str
    key: str
    narrative: str
    rows: tuple[Record, ...]
    rejects: tuple[Reject, ...]
    lineage: Lineage
    seconds: float  # wall time of the computation; tells nothing about the content
    tokens: tuple[int, int] = (0, 0)  # that language models read and wrote for it, as their servers count them

    @cached_property
    def content(self) -> str:
        """Digest of the rows, for the keys of the stages that read them."""
        return digest([row.content_digest() for row in self.rows])

    @property
    def stops_video(self) -> bool:
        """Whether a video-level reject is among the rejects."""
        return any(reject.is_video_level for reject in self.rejects)

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reason of each reject."""
        return tuple(reject.reason.value for reject in self.rejects)

    @property
    def is_failure(self) -> bool:
        """Whether the stage failed, which says nothing of the video: it is tried again."""
        return any(reject.reason is Reason.INTERNAL_ERROR for reject in self.rejects)

    def at(self, path: str) -> Result:
        """The result with rejects that name the file where it lies now: a path is in no key."""
        if all(reject.path == path for reject in self.rejects):
            return self
        return replace(self, rejects=tuple(reject.model_copy(update={"path": path}) for reject in self.rejects))

    def to_json(self) -> str:
        """Canonical JSON; Result.from_json reads it back."""
        return self._text

    @cached_property
    def _text(self) -> str:
        return canonical_json(
            {
                "stage": self.stage,
                "key": self.key,
                "narrative": self.narrative,
                "rows": [row.to_json() for row in self.rows],
                "rejects": [reject.to_json() for reject in self.rejects],
                "lineage": self.lineage.to_json(),
                "seconds": self.seconds,
                "content": self.content,
                "tokens": self.tokens,
            }
        )

    @staticmethod
    def from_json(text: str, stage: Stage) -> Result:
        """Reads what to_json wrote. Raises ValueError where the rows are not those of the stage's record."""
        values = json.loads(text)
        result = Result(
            stage=values["stage"],
            key=values["key"],
            narrative=values["narrative"],
            rows=tuple(stage.writes.model_validate(row) for row in values["rows"]),
            rejects=tuple(Reject.model_validate(reject) for reject in values["rejects"]),
            lineage=Lineage.model_validate(values["lineage"]),
            seconds=values["seconds"],
            tokens=tuple(values.get("tokens", (0, 0))),  # a store that was made before they were counted has none
        )
        vars(result)["_text"] = text  # to make it, or the content, again takes longer than all of the above
        if "content" in values:  # not in what was kept before it was written down
            vars(result)["content"] = values["content"]
        return result


@dataclass(frozen=True, slots=True)
class Kept:
    """What is known of a result in the store whose rows were not read: a run knows of very many.

    media: file name and size of each of its clips and keyframes, "ab….mp4 123".
    """

    stage: str
    key: str
    narrative: str
    content: str
    stops_video: bool
    num_rows: int
    reasons: tuple[str, ...]
    media: tuple[str, ...] = ()

    def at(self, path: str) -> Kept:
        return self


Known = Result | Kept


class Keeper(Protocol):
    """Where results are looked up and kept."""

    def get(self, stage: Stage, key: str) -> Result | None: ...
    def put(self, result: Result) -> None: ...


@dataclass(frozen=True)
class VideoState:
    """One video on its way through the stages: what its source said, and the results so far by stage name.

    To see what is still to be done it is enough to know of the results (Kept); stages get whole ones.
    """

    source: SourceVideo
    results: Mapping[str, Known] = field(default_factory=dict)

    @property
    def is_stopped(self) -> bool:
        return any(result.stops_video for result in self.results.values())

    def rows(self, record: type[Record], stages: Iterable[Stage]) -> Any:
        """The rows of a record type: the row itself for one-a-video records, else a tuple."""
        if record is SourceVideo:
            return self.source
        result = self._result(record, stages)
        assert isinstance(result, Result), f"{result.key}: only known of"
        rows = result.rows
        return rows[0] if record.PER_VIDEO == "one" else rows

    def has(self, records: Iterable[type[Record]], stages: Iterable[Stage]) -> bool:
        """Whether the rows of all these record types are there."""
        made = {stage.writes for stage in stages if stage.name in self.results}
        return all(record is SourceVideo or record in made for record in records)

    def content(self, record: type[Record], stages: Iterable[Stage]) -> str:
        """Digest of what `rows` returns."""
        return self.source.content_digest() if record is SourceVideo else self._result(record, stages).content

    def _result(self, record: type[Record], stages: Iterable[Stage]) -> Known:
        return next(self.results[stage.name] for stage in stages if stage.writes is record)

    @property
    def whole(self) -> dict[str, Result]:
        """The results, of which none is only known of."""
        assert all(isinstance(result, Result) for result in self.results.values()), self.source.narrative
        return {name: result for name, result in self.results.items() if isinstance(result, Result)}

    def with_result(self, result: Known) -> VideoState:
        """The state with one more result."""
        return replace(self, results={**self.results, result.stage: result.at(self.source.path)})

    def to_json(self) -> str:
        """JSON that VideoState.from_json reads back: how a video travels between processes."""
        results = {name: result.to_json() for name, result in self.whole.items()}
        return json.dumps({"source": self.source.to_json(), "results": results})

    @staticmethod
    def from_json(text: str, stages: Iterable[Stage]) -> VideoState:
        values = json.loads(text)
        return VideoState(
            source=SourceVideo.model_validate(values["source"]),
            results={
                stage.name: Result.from_json(values["results"][stage.name], stage)
                for stage in stages
                if stage.name in values["results"]
            },
        )


def lineage_of(stage: Stage, state: VideoState, stages: Iterable[Stage]) -> Lineage:
    """What the stage's result for this video depends on, all of it."""
    config, model = _identity(stage)
    inputs = [state.content(record, stages) for record in stage.reads]
    return Lineage(version=stage.version, config=config, model=model, inputs=digest([state.source.narrative, inputs]))


@lru_cache
def _identity(stage: Stage) -> tuple[str, str | None]:
    return config_digest(stage.config), stage.model(stage.config)


def key_of(stage: Stage, lineage: Lineage, source: SourceVideo) -> str:
    """The content key: same key, same result, never computed twice.

    For a stage that opens the source's file it also holds the file's time, which lineage, as the same bytes may lie
    elsewhere, does not.
    """
    file_time = {"mtime_ns": source.mtime_ns} if SourceVideo in stage.reads else {}
    return digest({"stage": stage.name, **lineage.to_json(), **file_time})


def resume(source: SourceVideo, stages: tuple[Stage, ...], *, find: Callable[[Stage, str], Known | None]) -> VideoState:
    """The video as far as its results are kept, computing nothing. What `pending` names is still to be done.

    find: Store.get for whole results, Store.known where it is enough to know of them.
    """
    state = VideoState(source)
    for stage in stages:
        if state.is_stopped:
            break
        if not state.has(stage.reads, stages):
            continue
        result = find(stage, key_of(stage, lineage_of(stage, state, stages), source))
        if result is not None:
            state = state.with_result(result)
    return state


def pending(state: VideoState, stages: tuple[Stage, ...]) -> list[str]:
    """Names of the stages that this video still has to pass."""
    return [] if state.is_stopped else [stage.name for stage in stages if stage.name not in state.results]


def advance(
    stage: Stage, state: VideoState, stages: tuple[Stage, ...], *, results: Keeper, tool: Callable[[], Any]
) -> VideoState:
    """The video after this stage: from what is kept, or computed now and kept. A stopped video passes untouched.

    `tool` is called only when something must be computed, so that no model is loaded for nothing.
    """
    if state.is_stopped or stage.name in state.results:
        return state
    lineage = lineage_of(stage, state, stages)
    key = key_of(stage, lineage, state.source)
    result = results.get(stage, key)
    if result is None:
        result = compute(stage, key, lineage, state, stages, tool=tool)
        results.put(result)
    return state.with_result(result)


def compute(
    stage: Stage,
    key: str,
    lineage: Lineage,
    state: VideoState,
    stages: tuple[Stage, ...],
    *,
    tool: Callable[[], Any],
) -> Result:
    """Runs the stage on one video.

    What can pass (a child that was killed, a network file system that stumbled) is tried again here, with growing
    pauses. What nobody foresaw becomes the reject internal_error of this video alone. Errors of the whole run pass
    through: a disk that is full, a model that is missing, a model server that is dead, a configuration that cannot be.
    """
    inputs = [state.rows(record, stages) for record in stage.reads]
    extra = {} if stage.load is None else {"tool": tool()}
    started = time.monotonic()
    read_before, written_before = _tokens(extra)
    rows: list[Record] = []
    rejects: list[Reject] = []
    for pause_s in (*RETRY_PAUSES_S, None):
        rows.clear()
        rejects.clear()
        try:
            for item in stage.run(*inputs, config=stage.config, **extra):
                (rejects if isinstance(item, Reject) else rows).append(item)  # type: ignore[arg-type]
            break
        except (OutputError, ModelError, ModelServerError, UsageError, MemoryError):
            raise
        except Exception as error:  # one video must not end the run of all the others
            number = error.errno if isinstance(error, OSError) else None
            if number in (errno.ENOSPC, errno.EDQUOT):
                where = getattr(error, "filename", None) or "OUT"
                raise OutputError(f"{where}: the disk is full. Free some space and run again") from error
            can_pass = isinstance(error, ChildKilledError) or number in _STUMBLES
            if pause_s is None or not can_pass:
                return failure(stage, state, stages, f"{type(error).__name__}: {error}")
            time.sleep(pause_s)
    for item in (*rows, *rejects):
        owner = getattr(item, "narrative", None)
        assert owner == state.source.narrative, (
            f"{stage.name}: a row of {owner} among those of {state.source.narrative}"
        )
    read, written = _tokens(extra)
    result = Result(
        stage=stage.name,
        key=key,
        narrative=state.source.narrative,
        rows=tuple(rows),
        rejects=tuple(rejects),
        lineage=lineage,
        seconds=time.monotonic() - started,
        tokens=(read - read_before, written - written_before),
    )
    # Read back from its JSON: a first run and a resumed one must see the same, rounded, numbers.
    return Result.from_json(result.to_json(), stage)


def _tokens(extra: Mapping[str, Any]) -> tuple[int, int]:
    """What the stage's tool has counted so far, where it is a language model's client. A worker takes one video at a
    time, so what is counted meanwhile is that video's."""
    tool = extra.get("tool")
    return getattr(tool, "prompt_tokens", 0), getattr(tool, "answer_tokens", 0)


def failure(stage: Stage, state: VideoState, stages: tuple[Stage, ...], detail: str) -> Result:
    """The result of a stage that failed: one reject internal_error. It is kept only after several attempts."""
    source, lineage = state.source, lineage_of(stage, state, stages)
    reject = Reject(
        narrative=source.narrative, path=source.path, stage=stage.name, reason=Reason.INTERNAL_ERROR, detail=detail
    )
    return Result(stage.name, key_of(stage, lineage, source), source.narrative, (), (reject,), lineage, seconds=0.0)
