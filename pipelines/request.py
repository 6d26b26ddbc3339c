"""What to run: the options of the command line, checked against each other, and the videos that they name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cookgen.config import apply_settings
from cookgen.errors import InputError, UnknownNameError, UsageError
from cookgen.files import narrative_name, write_atomic
from cookgen.records import Reason, Reject, SourceVideo
from pipelines.profiles import PROFILES, Config
from pipelines.sources import demo, folder, howto100m, youcook2
from pipelines.sources.coverage import explain
from pipelines.sources.fetch import fetched_folder
from pipelines.sources.places import Missing

SOURCES = (demo.NAME, folder.NAME, youcook2.NAME, howto100m.NAME)
ANNOTATIONS = {youcook2.NAME: "youcookii_annotations_trainval.json", howto100m.NAME: "HowTo100M_v1.csv"}
ID_LISTS = tuple(ANNOTATIONS)  # sources that name videos by id, which may be fetched
Item = SourceVideo | Reject | Missing


@dataclass(frozen=True)
class Request:
    """What to run: the options of `python -m pipelines run`, checked. Paths are absolute."""

    source: str
    out: Path
    videos: Path | None
    annotations: Path | None
    captions: Path | None
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

    def with_settings(self, *settings: str) -> Request:
        """The request with these settings in the place of what it said under their names."""
        names = {setting.partition("=")[0] for setting in settings}
        kept = (setting for setting in self.settings if setting.partition("=")[0] not in names)
        return replace(self, settings=(*kept, *settings))

    def videos_folder(self) -> Path:
        """The folder that videos' paths are relative to."""
        return self.videos or self.fetched_folder() or self.out / ".store" / "demo"

    def fetched_folder(self) -> Path | None:
        """The folder of what a run fetches itself, to which paths may be relative as well."""
        return fetched_folder(self.out) if self.source in ID_LISTS else None

    def save(self) -> None:
        """Remembers the request in OUT, for `plan`, `status` and `report`."""
        write_atomic(self.out / ".store" / "request.json", json.dumps(asdict(self), default=str, indent=1))

    @staticmethod
    def load(out: Path) -> Request:
        """The last request run on OUT, which may have been moved since. Raises InputError where there is none."""
        path = out / ".store" / "request.json"
        try:
            values = {"captions": None, **json.loads(path.read_bytes())}  # OUTs of before have none
            paths = {name: values[name] and Path(values[name]) for name in ("videos", "annotations", "captions", "ids")}
            return Request(**{**values, **paths, "out": out, "settings": tuple(values["settings"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{out}: no run has been started there; start one with `make shards OUT={out}`") from error


def request_of(
    *,
    source: str | None,
    out: Path,
    videos: Path | None = None,
    annotations: Path | None = None,
    captions: Path | None = None,
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
    if source == folder.NAME and not videos:
        raise UsageError(f"--source {source} needs --videos (VIDEOS=dir): the folder that holds the videos")
    if source in ID_LISTS and not annotations:
        raise UsageError(f"--source {source} needs --annotations (ANNOTATIONS=file): {ANNOTATIONS[source]}")
    if source not in ID_LISTS and annotations:
        raise UsageError(f"--annotations belongs to --source {' and '.join(ID_LISTS)}, not to {source}")
    if annotations and not annotations.is_file():
        raise InputError(f"{annotations}: no such file; ANNOTATIONS must name {ANNOTATIONS[source]}")
    if captions and source != howto100m.NAME:
        raise UsageError(f"--captions belongs to --source {howto100m.NAME}, not to {source}")
    if captions and not captions.is_file():
        raise InputError(f"{captions}: no such file; CAPTIONS must name raw_caption.json")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: must be at least 1")
    request = Request(
        source=source,
        out=out.absolute(),
        videos=videos and videos.absolute(),
        annotations=annotations and annotations.absolute(),
        captions=captions and captions.absolute(),
        profile=profile,
        settings=tuple(settings),
        limit=limit,
        ids=ids and ids.absolute(),
    )
    places = request.config().fetch.places
    if places and source not in ID_LISTS:
        raise UsageError(f"--set fetch.…: videos are fetched for {' and '.join(ID_LISTS)}, not for --source {source}")
    if source in ID_LISTS and not videos and not places:
        raise UsageError(
            f"--source {source} needs --videos (VIDEOS=dir): the folder that holds the videos; or a place to fetch "
            "them from: --set fetch.mirror=s3://…, fetch.archive=/… or fetch.ytdlp=true"
        )
    return request


def list_source(request: Request, config: Config) -> Iterator[SourceVideo | Reject]:
    """What the source holds, after --ids and --limit."""
    return without_missing(list_items(request, config), request, config)


def without_missing(items: Sequence[Item], request: Request, config: Config) -> Iterator[SourceVideo | Reject]:
    """The items, with a reject for each missing video that says what came of fetching it."""
    missing = [item for item in items if isinstance(item, Missing)]
    rejects = explain(missing, config.fetch, request.out, has_folder=request.videos is not None)
    for item in items:
        yield next(rejects) if isinstance(item, Missing) else item


def list_items(request: Request, config: Config) -> list[Item]:
    """What the source holds, after --ids and --limit, with what it names and has not.

    Raises InputError where none of an id list's videos is there and none can be fetched.
    """
    place = request.videos_folder()
    listing: Iterator[Item]
    if request.source == demo.NAME:
        listing = demo.list_videos(place, config.demo)
    elif request.source == folder.NAME:
        listing = folder.list_videos(place)
    else:
        assert request.annotations is not None
        fetched = request.fetched_folder()
        folders = [place for place in (request.videos, fetched) if place and (place != fetched or place.is_dir())]
        if request.source == youcook2.NAME:
            listing = youcook2.list_videos(folders, request.annotations)
        else:
            listing = howto100m.list_videos(
                folders,
                request.annotations,
                config.howto100m,
                captions_folder=fetched if request.captions else None,
            )
    items = list(listing)
    first = items[0] if items else None
    if isinstance(first, Missing) and not config.fetch.places and all(isinstance(item, Missing) for item in items):
        raise InputError(
            f"{place}: holds none of the {len(items)} videos of {request.annotations}; "
            f"name each file by its id, for example {first.video_id}.mp4"
        )
    if request.ids is not None:
        items = _only(items, request.source, request.ids)
    return list(_unique(items[: request.limit]))


def _unique(items: Iterable[Item]) -> Iterator[Item]:
    """The items with names of their own: what would take another's narrative is a reject."""
    taken: set[str] = set()
    for item in items:
        if isinstance(item, SourceVideo) and item.narrative in taken:
            detail = f"its narrative would be {item.narrative}, which is another file's; rename it"
            yield Reject(narrative=None, path=item.path, stage="source", reason=Reason.BAD_NAME, detail=detail)
            continue
        taken.add(item.narrative or "")
        yield item


def _only(items: list[Item], source: str, ids_file: Path) -> list[Item]:
    """The items with these ids; what is missing or a reject stays so."""
    try:
        wanted = set(ids_file.read_text(encoding="utf-8").splitlines()) - {""}
    except (OSError, ValueError) as error:
        raise InputError(f"--ids {ids_file}: cannot be read ({error}); it holds one video id a line") from error
    names = {narrative_name(source, video_id): video_id for video_id in wanted}

    def id_of(item: Item) -> str | None:
        return names.get(item.narrative or "") if isinstance(item, Reject) else item.video_id

    found = [item for item in items if id_of(item) in wanted]
    missing = sorted(wanted - {id_of(item) for item in found})
    if missing or not wanted:
        raise InputError(
            f"--ids {ids_file}: {len(missing)} of {len(wanted)} ids are not in the source, first {missing[:1]}; "
            "write one id a line, as in the column video_id of tables/videos.parquet"
        )
    return found
