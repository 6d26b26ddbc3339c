"""The whole flow: sources -> videos -> clips -> speech -> actions -> captions -> matches -> checks -> shards."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

import cookgen
from cookgen.config import config_digest
from cookgen.dataset.tables import check_schema, read_table, table_path
from cookgen.errors import FormatError, ModelServerError, UnknownNameError, UsageError
from cookgen.files import canonical_json, digest, explained, write_atomic
from cookgen.records import TABLES, Action, Manifest, Narrative, Reject, SourceVideo
from cookgen.runlog import Progress, Tally
from pipelines import inline
from pipelines.profiles import Config
from pipelines.progress import CountedStore
from pipelines.report.page import report_page
from pipelines.request import ID_LISTS, Item, Request, list_items, list_source, without_missing
from pipelines.serve import serve_llm
from pipelines.sources import demo, howto100m, ledger
from pipelines.sources.coverage import write_coverage
from pipelines.sources.fetch import fetch_videos, fetched_folder, links_path
from pipelines.sources.places import FetchPlace, Missing, open_places
from pipelines.stage import Places, Stage, VideoState, pending, resume
from pipelines.stages import actions, captions, checks, clips, matches, shards, speech, videos
from pipelines.store import Store, claim, is_locked, locked, require_space

STAGES: tuple[Stage, ...] = (
    videos.STAGE,
    clips.STAGE,
    speech.STAGE,
    actions.STAGE,
    captions.STAGE,
    matches.STAGE,
    checks.STAGE,
)  # then shards.write_shards, which sees all videos at once

ENGINES = ("ray", "inline")


def stages_of(config: Config) -> tuple[Stage, ...]:
    """The stages with their part of the configuration."""
    return tuple(_configured(stage, getattr(config, stage.name)) for stage in STAGES)


def _configured(stage: Stage, config: Any) -> Stage:
    on_gpu = getattr(config, "device", "cpu") != "cpu"
    return replace(stage, config=config, needs=replace(stage.needs, gpus=1.0 if on_gpu else 0.0))


@dataclass(frozen=True)
class Plan:
    """What a run would do: for each stage, how many videos are kept and how many are to be done. Videos that a list
    names and that are not here (`num_missing`) are in no other count."""

    num_videos: int
    kept: dict[str, int]
    to_do: dict[str, int]
    num_missing: int = 0

    @staticmethod
    def of(states: Sequence[VideoState], stages: tuple[Stage, ...], *, num_missing: int = 0) -> Plan:
        waiting = [pending(state, stages) for state in states]
        return Plan(
            num_videos=len(states),
            kept={stage.name: sum(stage.name in state.results for state in states) for stage in stages},
            to_do={stage.name: sum(stage.name in names for names in waiting) for stage in stages},
            num_missing=num_missing,
        )


def plan(request: Request) -> Plan:
    """What `run` would do, computing nothing. For the demo, videos that are not yet rendered count as to do."""
    config = request.config()
    stages = stages_of(config)
    if request.source == demo.NAME and not (request.videos_folder() / demo.MANIFEST).is_file():
        count = min(config.demo.num_videos, request.limit or config.demo.num_videos)
        return Plan(count, kept={stage.name: 0 for stage in stages}, to_do={stage.name: count for stage in stages})
    items = list_items(request, config)
    store = Store(request.out)
    sources = [item for item in items if isinstance(item, SourceVideo)]
    sources, _ = videos.without_duplicates(sources, _places(request, store))
    states = [resume(source, stages, results=store) for source in sources]
    return Plan.of(states, stages, num_missing=len(_missing(items)))


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    manifest: Manifest
    actions: Counter[str]  # how they came to be: manual, rewritten, verbatim, rejected

    @property
    def num_narratives(self) -> int:
        return sum(split.num_narratives for split in self.manifest.splits.values())


def run(request: Request, *, engine: str = "ray", address: str | None = None, retry: Collection[str] = ()) -> Outcome:
    """Runs everything that is not yet done and writes the shard set. What was done before is kept, always.

    `retry` names outcomes of the link ledger whose videos are asked for again, although that is final. Raises
    CookgenError for what the user can mend; the store keeps all that was done until then.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if engine == "inline" and address is not None:
        raise UsageError(f"--engine inline runs without Ray: leave --ray {address} out, or use --engine ray")
    config = request.config()
    stages = stages_of(config)
    # Bad input is said before OUT is touched; the demo's own videos are made inside OUT first.
    items = [] if request.source == demo.NAME else list_items(request, config)
    places_to_ask = open_places(_missing(items), config.fetch)
    claim(request.out, request.source)
    with ExitStack() as stack:
        stack.enter_context(locked(request.out))
        request.save()
        progress = stack.enter_context(Progress(request.out / ".runs", f"cookgen {request.source} -> {request.out}"))
        scratch = request.out / ".store" / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left there
        if request.source == demo.NAME:
            with explained(request.videos_folder()):
                demo.make_videos(request.videos_folder(), config.demo)
            items = list_items(request, config)
        elif request.source in ID_LISTS:
            if request.captions is not None and request.annotations is not None:
                progress.say(f"captions of the sample: {request.captions}")
                entries = howto100m.sample(request.annotations, config.howto100m)
                howto100m.write_captions(request.captions, entries, fetched_folder(request.out))
                items = list_items(request, config)
            items = _fetch(items, places_to_ask, request, config, progress, retry=retry)
        listing = list(without_missing(items, request, config))
        sources = [item for item in listing if isinstance(item, SourceVideo)]
        source_rejects = [item for item in listing if isinstance(item, Reject)]
        stamp = _stamp(listing, stages, config)
        manifest = _complete_set(request.out, stamp)
        if manifest is not None:
            progress.say(f"nothing to do: {request.out} is complete for these {len(sources)} videos")
            return Outcome(manifest, _origins(request.out))
        complete = request.out / ".store" / "complete.json"
        complete.unlink(missing_ok=True)
        store = Store(request.out)
        places = _places(request, store)
        sources, duplicates = videos.without_duplicates(sources, places)
        source_rejects += duplicates
        states = [resume(source, stages, results=store) for source in sources]
        todo = [state for state in states if pending(state, stages)]
        require_space(request.out, 64 * 2**20 + sum(state.source.num_bytes for state in todo))
        progress.say(f"{len(sources)} videos: {len(todo)} to do, {len(sources) - len(todo)} done before")
        if todo:
            if config.actions.endpoint is not None:
                _reach(config.actions.endpoint)
            elif any(_needs_llm(state, stages) for state in todo):
                url = stack.enter_context(
                    serve_llm(config.server, model=config.actions.model, log_folder=request.out / ".runs")
                )
                places = replace(places, endpoints={actions.NAME: url})
            done = _execute(todo, stages, store, places, progress, engine=engine, address=address)
            by_name = {state.source.narrative: state for state in done}
            states = [by_name.get(state.source.narrative, state) for state in states]
            Store(request.out).compact()
        manifest = _write_set(request, config, stages, states, source_rejects, places)
        if all(result.is_final for state in states for result in state.results.values()):
            write_atomic(complete, canonical_json({"stamp": stamp}))
        return Outcome(manifest, _origins(request.out))


def _places(request: Request, store: Store) -> Places:
    return Places(
        videos=request.videos_folder(),
        media=store.media,
        scratch=request.out / ".store" / "scratch",
        fetched=request.fetched_folder(),
    )


def _missing(items: Sequence[Item]) -> list[Missing]:
    return [item for item in items if isinstance(item, Missing)]


def _fetch(
    items: list[Item],
    places: Sequence[FetchPlace],
    request: Request,
    config: Config,
    progress: Progress,
    *,
    retry: Collection[str],
) -> list[Item]:
    """Fetches what is missing, and says how much of the list is here then; returns the list as it is then."""
    outcomes = frozenset(ledger.Outcome(name) for name in retry)
    missing = _missing(items)
    skipped = fetch_videos(places, missing, config.fetch, request.out, retry=outcomes, show=progress.show)
    if missing and places:
        items = list_items(request, config)
    found = write_coverage(_missing(items), len(items), request.out, skipped)
    progress.say(f"rebuild from ids: {found['alive']} of {found['ids']} alive")
    return items


def _reach(endpoint: str) -> None:
    """Raises ModelServerError at once where nobody listens: better than after minutes of patience."""
    place = urlsplit(endpoint)
    try:
        port = place.port or (443 if place.scheme == "https" else 80)
        socket.create_connection((place.hostname or "", port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ModelServerError(
            f"actions.endpoint={endpoint}: nobody listens there ({error}); start the server"
        ) from error


def _needs_llm(state: VideoState, stages: tuple[Stage, ...]) -> bool:
    return actions.STAGE.name in pending(state, stages) and not state.source.segments


def _execute(
    todo: Sequence[VideoState],
    stages: tuple[Stage, ...],
    store: Store,
    places: Places,
    progress: Progress,
    *,
    engine: str,
    address: str | None,
) -> list[VideoState]:
    if engine == "inline":
        counted = CountedStore(store, stages, todo)
        done = []
        try:
            for state in inline.run(todo, stages, results=counted, places=places):
                done.append(state)
                progress.show(counted.tallies)
        finally:
            store.flush()
        progress.show(counted.tallies, final=True)
        return done
    from pipelines import engine as ray_engine  # only now: a run with nothing to do never imports Ray

    tallies: dict[str, Tally] = {}

    def show(newest: dict[str, Tally]) -> None:
        tallies.update(newest)
        progress.show(tallies)

    done = ray_engine.run(todo, stages, out=store.root.parent, places=places, address=address, show=show)
    progress.show(tallies, final=True)
    return done


def _origins(out: Path) -> Counter[str]:
    rejects = read_table(table_path(out, Reject), Reject)
    return actions.origins(read_table(table_path(out, Action), Action), rejects)


def _stamp(listing: Sequence[SourceVideo | Reject], stages: tuple[Stage, ...], config: Config) -> str:
    """Digest of everything that a finished set hangs on; cheap, no video is opened."""
    return digest(
        {
            "cookgen": cookgen.__version__,
            "config": config_digest(config),
            "stages": {stage.name: [stage.version, stage.model(stage.config)] for stage in stages},
            "source": [item.to_json() for item in listing],
        }
    )


def _complete_set(out: Path, stamp: str | None = None) -> Manifest | None:
    """The manifest of the set that stands in OUT, if it is whole and, with a stamp, made from just this; else None."""
    try:
        found = json.loads((out / ".store" / "complete.json").read_bytes())["stamp"]
        if stamp not in (None, found):
            return None
        manifest = Manifest.model_validate_json((out / "dataset.json").read_bytes())
        shards_of = [shard for split in manifest.splits.values() for shard in split.shards]
        if any((out / shard.path).stat().st_size != shard.num_bytes for shard in shards_of):
            return None
        for table in TABLES:
            check_schema(table_path(out, table), pq.read_schema(table_path(out, table)), table)
        return manifest if all((out / name).is_file() for name in ("README.md", "report.html")) else None
    except (OSError, ValueError, KeyError, TypeError, FormatError):
        return None


def _write_set(
    request: Request,
    config: Config,
    stages: tuple[Stage, ...],
    states: Sequence[VideoState],
    source_rejects: Sequence[Reject],
    places: Places,
) -> Manifest:
    """The shards, tables, card, report and, last, the manifest."""

    def page(path: Path) -> None:
        path.write_text(_page(request.out, config, states, source_rejects, places), encoding="utf-8")

    with explained(request.out):
        return shards.write_shards(
            states,
            source_rejects,
            config=config.shards,
            run_config=config,
            places=places,
            out=request.out,
            stages=stages,
            report=page,
        )


def status(out: Path) -> dict[str, Any]:
    """How far the last run on OUT is: `state` ("running", "complete" or "stopped"), a tally a stage, and `links`: how
    many videos that were asked for have which outcome."""
    Request.load(out)
    newest: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (out / ".runs" / "progress.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the last line may be half written
                event = json.loads(line)
                newest = event["stages"] if event["event"] == "progress" else newest
    state = "running" if is_locked(out) else "complete" if _complete_set(out) else "stopped"
    return {"state": state, "stages": newest, "links": ledger.Ledger(links_path(out)).counts()}


def report(request: Request) -> dict[str, Any]:
    """Writes OUT/report.html again from what is kept; returns how many videos passed each stage, and the reasons."""
    config = request.config()
    stages = stages_of(config)
    listing = list(list_source(request, config))
    store = Store(request.out)
    places = _places(request, store)
    sources, duplicates = videos.without_duplicates([i for i in listing if isinstance(i, SourceVideo)], places)
    states = [resume(source, stages, results=store) for source in sources]
    source_rejects = [*(item for item in listing if isinstance(item, Reject)), *duplicates]
    page = _page(request.out, config, states, source_rejects, places)
    with explained(request.out):
        write_atomic(request.out / "report.html", page)
    rejects = list(read_table(table_path(request.out, Reject), Reject))
    return {
        "videos": len(listing),
        "passed": {
            stage.name: sum(bool(state.results[stage.name].rows) for state in states if stage.name in state.results)
            for stage in stages
        },
        "narratives": len(list(read_table(table_path(request.out, Narrative), Narrative))),
        "rejected_videos": dict(Counter(reject.reason.value for reject in rejects if reject.is_video_level)),
    }


def _page(
    out: Path, config: Config, states: Sequence[VideoState], source_rejects: Sequence[Reject], places: Places
) -> str:
    return report_page(
        states,
        source_rejects,
        narratives=list(read_table(table_path(out, Narrative), Narrative)),
        rejects=list(read_table(table_path(out, Reject), Reject)),
        run={
            "name": config.source,
            "source": config.source,
            "created_by": f"cookgen {cookgen.__version__}",
            "config": config_digest(config),
        },
        media=lambda sha256: places.medium(sha256, ".jpg"),
    )
