"""What to run: the options of the command line, checked against each other, and the videos that they name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cookgen.config import apply_settings
from cookgen.errors import InputError, UnknownNameError, UsageError
from cookgen.files import narrative_name, write_atomic
from cookgen.records import Reason, Reject, SourceVideo
from pipelines.profiles import PROFILES, Config
from pipelines.sources import demo, folder, youcook2

SOURCES = (demo.NAME, folder.NAME, youcook2.NAME)


@dataclass(frozen=True)
class Request:
    """What to run: the options of `python -m pipelines run`, checked. Paths are absolute."""

    source: str
    out: Path
    videos: Path | None
    annotations: Path | None
    profile: str
    settings: tuple[str, ...]
    limit: int | None
    ids: Path | None

    def config(self) -> Config:
        """The resolved configuration."""
        config = apply_settings(PROFILES[self.profile](self.source), list(self.settings))
        if config.source != self.source:
            raise UsageError(f"--set source={config.source}: the source is named by --source, not by --set")
        return config

    def videos_folder(self) -> Path:
        """The folder that videos' paths are relative to."""
        return self.videos or self.out / ".store" / "demo"

    def save(self) -> None:
        """Remembers the request in OUT, for `plan`, `status` and `report`."""
        write_atomic(self.out / ".store" / "request.json", json.dumps(asdict(self), default=str, indent=1))

    @staticmethod
    def load(out: Path) -> Request:
        """The last request run on OUT. Raises InputError where there is none."""
        path = out / ".store" / "request.json"
        try:
            values = json.loads(path.read_bytes())
            paths = {name: values[name] and Path(values[name]) for name in ("out", "videos", "annotations", "ids")}
            return Request(**{**values, **paths, "settings": tuple(values["settings"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{out}: no run has been started there; start one with `make shards OUT={out}`") from error


def request_of(
    *,
    source: str | None,
    out: Path,
    videos: Path | None = None,
    annotations: Path | None = None,
    profile: str = "embedded",
    settings: Sequence[str] = (),
    limit: int | None = None,
    ids: Path | None = None,
) -> Request:
    """Checks the options against each other. Raises UsageError naming the option, the rule and the remedy."""
    source = source or ("folder" if videos else "demo")
    if source not in SOURCES:
        raise UnknownNameError("source", source, SOURCES)
    if profile not in PROFILES:
        raise UnknownNameError("profile", profile, PROFILES)
    if source == demo.NAME and videos:
        raise UsageError("--source demo makes its own videos: leave --videos out, or use --source folder")
    if source != demo.NAME and not videos:
        raise UsageError(f"--source {source} needs --videos (VIDEOS=dir): the folder that holds the videos")
    if source == youcook2.NAME and not annotations:
        raise UsageError(
            "--source youcook2 needs --annotations (ANNOTATIONS=file): youcookii_annotations_trainval.json"
        )
    if source != youcook2.NAME and annotations:
        raise UsageError(f"--annotations belongs to --source youcook2, not to {source}")
    if source == youcook2.NAME and annotations and not annotations.is_file():
        raise InputError(f"{annotations}: no such file; ANNOTATIONS must name youcookii_annotations_trainval.json")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")
    return Request(
        source=source,
        out=out.absolute(),
        videos=videos and videos.absolute(),
        annotations=annotations and annotations.absolute(),
        profile=profile,
        settings=tuple(settings),
        limit=limit,
        ids=ids and ids.absolute(),
    )


def list_source(request: Request, config: Config) -> Iterator[SourceVideo | Reject]:
    """What the source holds, after --ids and --limit."""
    place = request.videos_folder()
    listing: Iterator[SourceVideo | Reject]
    if request.source == demo.NAME:
        listing = demo.list_videos(place, config.demo)
    elif request.source == folder.NAME:
        listing = folder.list_videos(place)
    else:
        assert request.annotations is not None
        listing = youcook2.list_videos(place, request.annotations)
    items = list(listing)
    if request.ids is not None:
        items = _only(items, request.source, request.ids)
    yield from _unique(items[: request.limit])


def _unique(items: Iterable[SourceVideo | Reject]) -> Iterator[SourceVideo | Reject]:
    """The items with names of their own: what would take another's narrative is a reject."""
    taken: set[str] = set()
    for item in items:
        if isinstance(item, SourceVideo) and item.narrative in taken:
            detail = f"its narrative would be {item.narrative}, which is another file's; rename it"
            yield Reject(narrative=None, path=item.path, stage="source", reason=Reason.BAD_NAME, detail=detail)
            continue
        taken.add(item.narrative or "")
        yield item


def _only(items: list[SourceVideo | Reject], source: str, ids_file: Path) -> list[SourceVideo | Reject]:
    """The items with these ids; an annotated video without a file stays the reject that it is."""
    try:
        wanted = set(ids_file.read_text(encoding="utf-8").splitlines()) - {""}
    except (OSError, ValueError) as error:
        raise InputError(f"--ids {ids_file}: cannot be read ({error}); it holds one video id a line") from error
    names = {narrative_name(source, video_id): video_id for video_id in wanted}

    def id_of(item: SourceVideo | Reject) -> str | None:
        return item.video_id if isinstance(item, SourceVideo) else names.get(item.narrative or "")

    found = [item for item in items if id_of(item) in wanted]
    missing = sorted(wanted - {id_of(item) for item in found})
    if missing or not wanted:
        raise InputError(
            f"--ids {ids_file}: {len(missing)} of {len(wanted)} ids are not in the source, first {missing[:1]}; "
            "write one id a line, as in the column video_id of tables/videos.parquet"
        )
    return found
