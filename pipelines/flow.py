"""The whole flow: sources -> videos, clips, speech, actions, captions, evidence, matches, checks -> shards."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

import cookgen
from cookgen.config import config_digest, to_values
from cookgen.dataset.tables import check_schema, read_table, table_path
from cookgen.errors import FormatError, InputError, ModelServerError, UnknownNameError, UsageError
from cookgen.files import canonical_json, digest, explained, file_sha256, write_atomic
from cookgen.records import TABLES, Action, Lineage, Manifest, Match, Narrative, Reason, Reject, SourceVideo, Video
from cookgen.runlog import Progress, Tally
from pipelines import inline
from pipelines.bucket import Bucket
from pipelines.profiles import Config
from pipelines.progress import CountedStore, FailuresConfig, Trace
from pipelines.report.page import report_page
from pipelines.request import ID_LISTS, Item, Request, list_items, list_source, without_missing
from pipelines.serve import serve_llm
from pipelines.sources import demo, howto100m, ledger
from pipelines.sources.coverage import write_coverage
from pipelines.sources.fetch import fetch_videos, fetched_folder, links_path
from pipelines.sources.places import FetchPlace, Missing, open_places
from pipelines.stage import Known, Places, Stage, VideoState, failure, key_of, lineage_of, pending, resume
from pipelines.stages import actions, captions, checks, clips, evidence, matches, shards, speech, videos
from pipelines.store import Store, claim, is_locked, locked, media_folder, require_space

STAGES: tuple[Stage, ...] = (
    videos.STAGE,
    clips.STAGE,
    speech.STAGE,
    actions.STAGE,
    captions.STAGE,
    evidence.STAGE,
    matches.STAGE,
    checks.STAGE,
)  # then shards.write_shards, which sees all videos at once

ENGINES = ("ray", "inline")
_MAX_ROUNDS = 3  # of the stages in one run


def stages_of(config: Config) -> tuple[Stage, ...]:
    """The stages with their part of the configuration."""
    stages = tuple(_configured(stage, getattr(config, stage.name)) for stage in STAGES)
    if config.server.kind == "vllm" and config.actions.endpoint is None:
        return tuple(replace(stage, model=_by_vllm) if stage.name == actions.NAME else stage for stage in stages)
    return stages


def _by_vllm(config: actions.ActionsConfig) -> str:
    """The same model's words may be others there."""
    return f"{actions.model_identity(config)}+vllm"


def _configured(stage: Stage, config: Any) -> Stage:
    on_gpu = getattr(config, "device", "cpu") != "cpu"
    python = getattr(config, "python", None)
    return replace(stage, config=config, needs=replace(stage.needs, gpus=1.0 if on_gpu else 0.0, python=python))


def _require_pythons(stages: tuple[Stage, ...], engine: str) -> None:
    """Raises UsageError where a stage's side environment is not there, or the engine cannot enter it."""
    for stage in stages:
        python = stage.needs.python
        if python is not None and engine == "inline":
            raise UsageError(
                f"{stage.name} runs in an environment of its own, which --engine inline cannot enter: use --engine ray"
            )
        if python is not None and not Path(python).is_file():
            raise UsageError(
                f"{stage.name} runs in an environment of its own, and {python} is not there; "
                f"run `make whisperx-env`, or name the folder with --set {stage.name}.environment=…"
            )


@dataclass(frozen=True)
class Plan:
    """What a run would do: for each stage, how many videos are kept and how many are to be done, why (reason ->
    videos), and how many seconds of work that is by what such videos took before (None where there is no before).
    Videos that a list names and that are not here (`num_missing`) are in no other count."""

    num_videos: int
    kept: dict[str, int]
    to_do: dict[str, int]
    num_missing: int = 0
    why: dict[str, dict[str, int]] = field(default_factory=dict)
    seconds: dict[str, float | None] = field(default_factory=dict)


def plan(request: Request) -> Plan:
    """What `run` would do, computing nothing. For the demo, videos that are not yet rendered count as to do."""
    config = request.config()
    stages = stages_of(config)
    if request.source == demo.NAME and not (request.videos_folder() / demo.MANIFEST).is_file():
        count = min(config.demo.num_videos, request.limit or config.demo.num_videos)
        return Plan(count, kept={stage.name: 0 for stage in stages}, to_do={stage.name: count for stage in stages})
    items = list_items(request, config)
    sources = [item for item in items if isinstance(item, SourceVideo)]
    sources, _ = videos.without_duplicates(sources, _places(request))
    with tempfile.TemporaryDirectory() as elsewhere:  # what a bucket holds must not be the first thing in a new OUT
        store = _store(request if request.out.exists() else replace(request, out=Path(elsewhere)))
        return _plan(sources, len(_missing(items)), stages, store)


def _plan(sources: Sequence[SourceVideo], num_missing: int, stages: tuple[Stage, ...], store: Store) -> Plan:
    states = [resume(source, stages, find=store.known) for source in sources]
    waiting = [set(pending(state, stages)) for state in states]
    kept = {stage.name: sum(stage.name in state.results for state in states) for stage in stages}
    to_do = {stage.name: sum(stage.name in names for names in waiting) for stage in stages}
    why: dict[str, dict[str, int]] = {}
    seconds: dict[str, float | None] = {}
    for stage in stages:
        if to_do[stage.name]:
            before = store.history(stage.name)
            reasons = Counter(
                _why(stage, state, stages, store, before)
                for state, names in zip(states, waiting, strict=True)
                if stage.name in names
            )
            why[stage.name] = dict(reasons.most_common())
            took = [taken for _, taken in before.values()]
            seconds[stage.name] = sum(took) / len(took) * to_do[stage.name] if took else None
    return Plan(len(states), kept, to_do, num_missing, why, seconds)


def _why(
    stage: Stage,
    state: VideoState,
    stages: tuple[Stage, ...],
    store: Store,
    before: Mapping[str, tuple[Lineage, float]],
) -> str:
    """Why this stage of a video is to be done, beside what it was done with before."""
    if not state.has(stage.reads, stages):
        makers = [other.name for other in stages if other.writes in stage.reads and other.name not in state.results]
        return f"after {' and '.join(makers)}"
    lineage = lineage_of(stage, state, stages)
    if store.failure(stage, key_of(stage, lineage, state.source)) is not None:
        return "failed before"
    if state.source.narrative not in before:
        return "new"
    old, _ = before[state.source.narrative]
    if old.version != lineage.version:
        return f"stale, version {old.version} -> {lineage.version}"
    if old.config != lineage.config:
        return f"stale, {_changes(store.config_values(old.config), to_values(stage.config, with_machinery=False))}"
    if old.model != lineage.model:
        parts = [str(model).split("+") for model in (old.model, lineage.model)]  # model+prompt-…
        was, is_ = ("+".join(part for part in mine if part not in other) for mine, other in (parts, parts[::-1]))
        return f"stale, {was or 'nothing'} -> {is_ or 'nothing'}"
    return "stale, what it reads changed" if old.inputs != lineage.inputs else "lost, or the file was touched"


def _changes(old: Mapping[str, Any] | None, new: Mapping[str, Any], prefix: str = "") -> str:
    """The settings that differ."""
    if old is None:
        return "configuration changed"
    lines = []
    for name in sorted(old.keys() | new.keys()):
        was, is_ = old.get(name), new.get(name)
        if isinstance(was, dict) and isinstance(is_, dict):
            lines += [_changes(was, is_, f"{prefix}{name}.")] if was != is_ else []
        elif json.loads(canonical_json(is_)) != was:
            short = " -> ".join(str(value) if len(str(value)) < 40 else "…" for value in (was, is_))
            lines.append(f"{prefix}{name} {short}" if short != "… -> …" else f"{prefix}{name} changed")
    return ", ".join(lines)


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    manifest: Manifest
    actions: Counter[str]  # how they came to be: manual, rewritten, verbatim, rejected

    @property
    def num_narratives(self) -> int:
        return sum(split.num_narratives for split in self.manifest.splits.values())


def run(
    request: Request,
    *,
    engine: str = "ray",
    address: str | None = None,
    retry: Collection[str] = (),
    verify_inputs: bool = False,
    from_matches: bool = False,
) -> Outcome:
    """Runs everything that is not yet done and writes the shard set. What was done before is kept, always.

    retry: outcomes of the link ledger whose videos are asked for again, and reasons of stages whose results are made
    again, although they are final. verify_inputs: read every video whole, to see whether it is what it was; without,
    its size and time are trusted. from_matches: only what needs no model, no network and no video: refused with an
    InputError, and nothing changed, where a video has yet to pass a stage before `matches`. Raises CookgenError for
    what the user can mend; the store keeps all that was done until then.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, ENGINES)
    if engine == "inline" and address is not None:
        raise UsageError(f"--engine inline runs without Ray: leave --ray {address} out, or use --engine ray")
    config = request.config()
    stages = stages_of(config)
    _require_pythons(stages, engine)
    # Bad input is said before OUT is touched; the demo's own videos are made inside OUT first.
    items = [] if request.source == demo.NAME else list_items(request, config)
    again = frozenset(retry) & set(Reason)
    places_to_ask = open_places(_missing(items), config.fetch)
    claim(request.out, request.source)
    with ExitStack() as stack:
        stack.enter_context(locked(request.out))
        if from_matches:
            items = list_items(request, config)
            _require_all_before_matches(request, items, stages)
        request.save()
        progress = stack.enter_context(Progress(request.out / ".runs", f"cookgen {request.source} -> {request.out}"))
        scratch = request.out / ".store" / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left there
        if request.source == demo.NAME and not from_matches:
            with explained(request.videos_folder()):
                demo.make_videos(request.videos_folder(), config.demo)
            items = list_items(request, config)
        elif request.source in ID_LISTS and not from_matches:
            if request.captions is not None and request.annotations is not None:
                progress.say(f"captions of the sample: {request.captions}")
                entries = howto100m.sample(request.annotations, config.howto100m)
                howto100m.write_captions(request.captions, entries, fetched_folder(request.out))
                items = list_items(request, config)
            items = _fetch(items, places_to_ask, request, config, progress, retry=frozenset(retry) - again)
        listing = list(without_missing(items, request, config))
        sources = [item for item in listing if isinstance(item, SourceVideo)]
        source_rejects = [item for item in listing if isinstance(item, Reject)]
        places, is_changed = _places(request), False
        if again or verify_inputs:
            store = _store(request)
            is_changed = _forget(store, sources, stages, places, reasons=again, verify=verify_inputs, say=progress.say)
        complete = request.out / ".store" / "complete.json"
        stamp = _stamp(listing, stages, config)
        manifest = None if is_changed else _complete_set(request.out, stamp)
        if manifest is not None:
            progress.say(f"nothing to do: {request.out} is complete for these {len(sources)} videos")
            return Outcome(manifest, Counter(json.loads(complete.read_bytes()).get("actions", {})))
        complete.unlink(missing_ok=True)
        store = _store(request)  # only now: a run with nothing to do reads none of it
        store.share()
        sources, duplicates = videos.without_duplicates(sources, places)
        source_rejects += duplicates
        todo = _pending(sources, stages, store)
        require_space(request.out, 64 * 2**20 + sum(source.num_bytes for source in todo))
        progress.say(f"{len(sources)} videos: {len(todo)} to do, {len(sources) - len(todo)} done before")
        if todo:
            for stage in stages:
                store.note_config(stage.config)
            with ExitStack() as serving:
                if config.actions.endpoint is not None and not from_matches:
                    _reach(config.actions.endpoint)
                elif any(_needs_llm(source, stages, store) for source in todo):
                    model, logs = config.actions.model, request.out / ".runs"
                    served = serve_llm(config.server, model=model, log_folder=logs, say=progress.say)
                    places = replace(places, endpoints={actions.NAME: serving.enter_context(served)})
                for _ in range(_MAX_ROUNDS):
                    _execute(todo, stages, store, places, progress, config.failures, engine=engine, address=address)
                    store = _store(request)
                    # What a lost node took along after it was counted as done; mostly nothing.
                    left = _pending(todo, stages, store)
                    todo = [source for source in left if not _has_failed(source, stages, store)]
                    if not todo:
                        break
            store.compact()
        states = _Finished(sources, stages, store)
        manifest = _write_set(request, config, stages, states, source_rejects, places)
        outcome = Outcome(manifest, _origins(request.out))
        if not _pending(sources, stages, store):
            write_atomic(complete, canonical_json({"stamp": stamp, "actions": outcome.actions}))
        return outcome


def _require_all_before_matches(request: Request, items: Sequence[Item], stages: tuple[Stage, ...]) -> None:
    sources = [item for item in items if isinstance(item, SourceVideo)]
    sources, _ = videos.without_duplicates(sources, _places(request))
    before, store = stages[: stages.index(next(stage for stage in stages if stage.writes is Match))], _store(request)
    waiting = [set(pending(resume(source, before, find=store.known), before)) for source in sources]
    if num_waiting := sum(map(bool, waiting)):
        counts = Counter(name for names in waiting for name in names)
        todo = ", ".join(f"{stage.name} {counts[stage.name]}" for stage in before if counts[stage.name])
        raise InputError(
            f"{request.out}: {num_waiting} of {len(sources)} videos have yet to pass stages before matches ({todo}), "
            "and rematch asks no model; finish the `run` first, with the same command"
        )


class _Finished(Sequence[VideoState]):
    """The videos with all that is kept of them, each read when it is asked for. A stage that failed is among the
    results: its reject says why."""

    def __init__(self, sources: Sequence[SourceVideo], stages: tuple[Stage, ...], store: Store) -> None:
        self._sources, self._stages, self._store = sources, stages, store

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: Any) -> Any:
        return VideoState(self._sources[index], _WhenAsked(lambda: self._results(self._sources[index])))

    def _results(self, source: SourceVideo) -> Mapping[str, Known]:
        state = self._store.state(source, self._stages)
        failed = _failed_stage(state, self._stages, self._store)
        if failed is not None:
            state = state.with_result(failure(failed[0], state, self._stages, failed[1]))
        return state.results


class _WhenAsked(Mapping[str, Known]):
    """A video's results, read when the first of them is asked for: who wants its name alone reads none."""

    def __init__(self, read: Callable[[], Mapping[str, Known]]) -> None:
        self._found = cache(read)

    def __getitem__(self, stage: str) -> Known:
        return self._found()[stage]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found())

    def __len__(self) -> int:
        return len(self._found())


def _failed_stage(state: VideoState, stages: tuple[Stage, ...], store: Store) -> tuple[Stage, str] | None:
    """The stage that a video could not pass, and what was said."""
    for stage in stages:
        if stage.name in pending(state, stages) and state.has(stage.reads, stages):
            why = store.failure(stage, key_of(stage, lineage_of(stage, state, stages), state.source))
            if why is not None:
                return stage, why
    return None


def _pending(sources: Iterable[SourceVideo], stages: tuple[Stage, ...], store: Store) -> list[SourceVideo]:
    return [source for source in sources if pending(resume(source, stages, find=store.known), stages)]


def _has_failed(source: SourceVideo, stages: tuple[Stage, ...], store: Store) -> bool:
    return _failed_stage(resume(source, stages, find=store.known), stages, store) is not None


def _forget(
    store: Store,
    sources: Sequence[SourceVideo],
    stages: tuple[Stage, ...],
    places: Places,
    *,
    reasons: frozenset[str],
    verify: bool,
    say: Callable[[str], None],
) -> bool:
    """Forgets the results with these reasons, and with `verify` those of videos whose bytes are not what they were.
    Returns whether there were any."""
    dropped = 0
    if reasons:
        dropped = len(store.drop(lambda kept: not reasons.isdisjoint(kept.reasons)))
        if Reason.INTERNAL_ERROR in reasons:
            store.drop_failures()
        say(f"{dropped} results are made again: {', '.join(sorted(reasons))}")
    if verify:
        first, changed = stages[0], set()
        for source in sources:
            result = store.get(first, key_of(first, lineage_of(first, VideoState(source), stages), source))
            for row in result.rows if result is not None else ():
                with contextlib.suppress(OSError):  # a file that cannot be read is the stage's business
                    if isinstance(row, Video) and file_sha256(places.source(source.path)) != row.sha256:
                        changed.add(result.key if result else "")
        dropped += len(store.drop(lambda kept: kept.key in changed))
        say(f"inputs verified: {len(changed)} of {len(sources)} videos are not what they were")
    return dropped > 0


@dataclass(frozen=True)
class Garbage:
    """What `gc` removed, or would remove."""

    results: int
    media: int
    num_bytes: int


def collect_garbage(request: Request, *, dry_run: bool = False) -> Garbage:
    """Removes what the last run's videos and configuration do not refer to: results, clips and keyframes, and what
    killed runs left. Where there is a bucket only files on this disk go: other sets may share the results and it.
    Raises OutputInUseError while a run goes on."""
    config = request.config()
    stages = stages_of(config)
    with locked(request.out):
        store = _store(request)
        sources = [item for item in list_items(request, config) if isinstance(item, SourceVideo)]
        states = (resume(source, stages, find=store.known) for source in sources)
        wanted = {(result.stage, result.key) for state in states for result in state.results.values()}
        may_go = [] if _bucket(request) else store.kept()
        garbage = {(kept.stage, kept.key) for kept in may_go} - wanted
        used = {medium.split()[0] for kept in store.kept() if (kept.stage, kept.key) in wanted for medium in kept.media}
        files = [path for path in store.media.rglob("*") if path.is_file() and path.name not in used]
        files += [path for path in (store.root / "scratch").rglob("*") if path.is_file()]
        found = Garbage(len(garbage), len(files), sum(path.stat().st_size for path in files))
        if not dry_run:
            store.drop(lambda kept: (kept.stage, kept.key) in garbage)
            for path in files:
                path.unlink()
            store.compact()
        return found


def _bucket(request: Request) -> Bucket | None:
    url = request.config().store.url
    return None if url is None else Bucket(url)


def _store(request: Request) -> Store:
    return Store(request.out, _bucket(request))


def _places(request: Request) -> Places:
    return Places(
        videos=request.videos_folder(),
        media=media_folder(request.out),
        scratch=request.out / ".store" / "scratch",
        fetched=request.fetched_folder(),
        bucket=_bucket(request),
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


def _needs_llm(source: SourceVideo, stages: tuple[Stage, ...], store: Store) -> bool:
    state = resume(source, stages, find=store.known)
    return actions.STAGE.name in pending(state, stages) and not source.segments


def _execute(
    todo: Sequence[SourceVideo],
    stages: tuple[Stage, ...],
    store: Store,
    places: Places,
    progress: Progress,
    failures: FailuresConfig,
    *,
    engine: str,
    address: str | None,
) -> None:
    """Takes the videos through the stages; what comes of it is in the store."""
    out = store.root.parent
    trace = Trace(out / ".runs")
    if engine == "inline":
        surveys = map(VideoState, todo)  # with nothing yet: inline.run asks for what is kept, which counts it
        counted = CountedStore(store, stages, surveys, failures=failures, trace=trace)
        try:
            for _ in inline.run(todo, stages, results=counted, places=places):
                progress.show(counted.tallies)
        finally:
            counted.flush()
        progress.show(counted.tallies, final=True)
        return
    from pipelines import engine as ray_engine  # only now: a run with nothing to do never imports Ray

    tallies: dict[str, Tally] = {}

    def show(newest: dict[str, Tally]) -> None:
        tallies.update(newest)
        progress.show(tallies)

    ray_engine.run(todo, stages, out=out, places=places, address=address, failures=failures, trace=trace, show=show)
    progress.show(tallies, final=True)


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
    """How far the last run on OUT is: `state` ("running", "complete" or "stopped"), a tally a stage, how many seconds
    it took so far (`seconds`) and about how many are left (`left_s`), and `links`: how many videos that were asked for
    have which outcome."""
    Request.load(out)
    newest: dict[str, Any] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (out / ".runs" / "progress.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # the last line may be half written
                event = json.loads(line)
                newest = event if event["event"] == "progress" else newest
    state = "running" if is_locked(out) else "complete" if _complete_set(out) else "stopped"
    return {
        "state": state,
        "stages": newest.get("stages", {}),
        "seconds": newest.get("seconds"),
        "left_s": newest.get("left_s"),
        "links": ledger.Ledger(links_path(out)).counts(),
    }


def report(request: Request) -> dict[str, Any]:
    """Writes OUT/report.html again from what is kept; returns how many videos passed each stage, and the reasons."""
    config = request.config()
    stages = stages_of(config)
    listing = list(list_source(request, config))
    store = _store(request)
    places = _places(request)
    sources, duplicates = videos.without_duplicates([i for i in listing if isinstance(i, SourceVideo)], places)
    states = _Finished(sources, stages, store)
    source_rejects = [*(item for item in listing if isinstance(item, Reject)), *duplicates]
    page = _page(request.out, config, states, source_rejects, places)
    with explained(request.out):
        write_atomic(request.out / "report.html", page)
    rejects = list(read_table(table_path(request.out, Reject), Reject))
    passed = Counter({stage.name: 0 for stage in stages})
    for source in sources:
        known = resume(source, stages, find=store.known)
        passed.update(name for name, result in known.results.items() if result.num_rows)
    return {
        "videos": len(listing),
        "passed": dict(sorted(passed.items())),
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
