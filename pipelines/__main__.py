"""The pipeline's command line: `python -m pipelines run|plan|status|report|retry|rematch|calibrate|gc|cut|probe`.

Exit codes: 0 done; 1 finished, but with nothing usable; 2 usage or input error, said in one line; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction, arg

from cookgen.commands import run_command
from cookgen.config import to_values
from cookgen.errors import UnknownNameError, UsageError
from cookgen.files import explained, write_atomic
from cookgen.records import Reason
from pipelines import calibration, flow
from pipelines.cut import cut, probe
from pipelines.report.calibration import calibration_page
from pipelines.request import Request, request_of
from pipelines.sources import youcook2
from pipelines.sources.ledger import Outcome


def run(
    *,
    source: str | None = None,
    videos: Path | None = None,
    annotations: Path | None = None,
    captions: Path | None = None,
    out: Path = Path("shards"),
    profile: str = "embedded",
    ray: str | None = None,
    engine: str = "ray",
    settings: Annotated[tuple[str, ...], arg(name="set", metavar="NAME=VALUE …")] = (),
    limit: int | None = None,
    ids: Path | None = None,
    verify_inputs: bool = False,
    dry_run: bool = False,
    show_config: bool = False,
) -> int:
    """Makes (or completes) a shard set.

    Args:
        source: demo, folder, youcook2 or howto100m; folder where only --videos is given, else demo.
        videos: The folder that holds the videos; youcook2 and howto100m can also fetch them: fetch.… in --show-config.
        annotations: YouCook2's annotation JSON, or HowTo100M's CSV.
        captions: HowTo100M's raw_caption.json; without it videos are listened to.
        out: The folder of the shard set.
        profile: Which set of models and sizes: embedded, gpu or cluster.
        ray: Address of a Ray cluster; this machine alone without it.
        engine: ray, or inline for a plain loop without Ray.
        settings: Values by dotted name, for example clips.max_s=20; --show-config lists them all.
        limit: Only the first N videos of the source.
        ids: A file with one video id a line: only these.
        verify_inputs: Read every video to see whether it is what it was; else its size and time are trusted.
        dry_run: Say what would be done, and do nothing.
        show_config: Print the resolved configuration, and do nothing.
    """
    request = request_of(
        source=source,
        out=out,
        videos=videos,
        annotations=annotations,
        captions=captions,
        profile=profile,
        settings=settings,
        limit=limit,
        ids=ids,
    )
    if show_config:
        _say(json.dumps(to_values(request.config()), indent=2))
        return 0
    if dry_run:
        _say(_plan_text(flow.plan(request)))
        return 0
    return _say_outcome(out, flow.run(request, engine=engine, address=ray, verify_inputs=verify_inputs))


def retry(
    *,
    reason: Annotated[tuple[str, ...], UseAppendAction] = (),
    out: Path = Path("shards"),
    ray: str | None = None,
    engine: str = "ray",
) -> int:
    """Runs the last `run` on OUT again, and tries anew what ended in one of these ways, although that was final.

    What was blocked, rate-limited or lost to the network, and a stage that failed fewer than three times, every run
    tries again by itself. What comes of a video is the same again unless what it hangs on has changed.

    Args:
        reason: Of a link: removed, private, region or corrupt. Of a stage, as in tables/rejects.parquet: decode_error,
            internal_error …. May be given again and again.
        out: The folder of the shard set.
        ray: Address of a Ray cluster; this machine alone without it.
        engine: ray, or inline for a plain loop without Ray.
    """
    links = [outcome.value for outcome in Outcome if outcome is not Outcome.OK]
    known = [*links, *(reason.value for reason in Reason)]
    for name in reason:
        if name not in known:
            raise UnknownNameError("reason", name, known)
    if not reason:
        raise UsageError(f"retry needs --reason: {', '.join(links)}, or a reason in tables/rejects.parquet")
    request = Request.load(out.absolute())
    if not request.config().fetch.places and set(reason) & set(links):
        raise UsageError(f"retry: the last run on {out} fetched no videos; see fetch.… in --show-config")
    return _say_outcome(out, flow.run(request, engine=engine, address=ray, retry=reason))


def rematch(
    *,
    iou: float | None = None,
    sure_iou: float | None = None,
    start_diff: float | None = None,
    out: Path = Path("shards"),
    ray: str | None = None,
    engine: str = "ray",
) -> int:
    """Matches the clips and actions of the last `run` on OUT again with other thresholds, and writes the set anew.

    No model is loaded or asked, and no video is opened: clips, actions, captions and what the checks weigh are kept.
    The thresholds become settings of OUT, which `plan`, `status` and `report` know; give them to a later `run`, too.

    Args:
        iou: matches.min_iou: an IoU above this is enough where starts are near and the clip ends after the action.
        sure_iou: matches.sure_iou: an IoU above this is enough by itself.
        start_diff: matches.max_start_diff_s: starts less than this many seconds apart are near.
        out: The folder of the shard set.
        ray: Address of a Ray cluster; this machine alone without it.
        engine: ray, or inline for a plain loop without Ray.
    """
    thresholds = {"min_iou": iou, "sure_iou": sure_iou, "max_start_diff_s": start_diff}
    settings = [f"matches.{name}={value}" for name, value in thresholds.items() if value is not None]
    if not settings:
        raise UsageError("rematch needs at least one of --iou, --sure-iou and --start-diff; `calibrate` compares them")
    request = Request.load(out.absolute()).with_settings(*settings)
    return _say_outcome(out, flow.run(request, engine=engine, address=ray, from_matches=True))


def calibrate(
    *, annotations: Path, out: Path = Path("shards"), as_json: Annotated[bool, arg(name="json")] = False
) -> int:
    """Says how right the matches of a set are beside steps that people marked, for a grid of thresholds.

    For a set whose clips were cut at shots and whose actions were spoken. Writes a page with the same, too:
    OUT/.runs/calibration.html. What counts as right stands there, and in pipelines/calibration.py.

    Args:
        annotations: Steps of the same videos in YouCook2's form; a video is found by its id, the name of its file.
        out: The folder of the shard set; its tables are enough.
        as_json: Print every setting of the grid as JSON.
    """
    found = calibration.calibrate(out, youcook2.segments(annotations))
    page = out / ".runs" / "calibration.html"
    with explained(page.parent):
        write_atomic(page, calibration_page(found, name=out.absolute().name, annotations=annotations.name))
    _say(json.dumps(found.to_values()) if as_json else f"{calibration.table(found)}\npage: {page}")
    return 0


def gc(*, out: Path = Path("shards"), dry_run: bool = False) -> int:
    """Removes what the last `run` on OUT does not need: results and clips of other settings, and of videos that the
    source has no more. What is in a store.url stays, and so do the results that come from there.

    Args:
        out: The folder of the shard set.
        dry_run: Say what would go, and remove nothing.
    """
    found = flow.collect_garbage(Request.load(out.absolute()), dry_run=dry_run)
    would = "would go" if dry_run else "removed"
    _say(f"{out}: {found.results} results and {found.media} files ({found.num_bytes / 2**20:.1f} MiB) {would}")
    return 0


def _say_outcome(out: Path, outcome: flow.Outcome) -> int:
    for name, split in outcome.manifest.splits.items():
        _say(f"{name}: {split.num_narratives} narratives, {split.num_clips} clips, {len(split.shards)} shards")
    if total := outcome.actions.total():
        shares = ", ".join(f"{count / total:.0%} {kind}" for kind, count in outcome.actions.items() if count)
        _say(f"actions: {shares} of {total}")
    if not outcome.num_narratives:
        _say(f"{out}: no narrative came out; tables/rejects.parquet and report.html say why for each video")
        return 1
    _say(f"report: {out / 'report.html'}   check: cookgen validate {out}")
    return 0


def plan(*, out: Path = Path("shards"), as_json: Annotated[bool, arg(name="json")] = False) -> int:
    """Says what the last `run` on OUT would still do, and does nothing.

    Args:
        out: The folder of the shard set.
        as_json: Print JSON.
    """
    found = flow.plan(Request.load(out.absolute()))
    _say(json.dumps(asdict(found)) if as_json else _plan_text(found))
    return 0


def status(*, out: Path = Path("shards"), as_json: Annotated[bool, arg(name="json")] = False) -> int:
    """Says how far the run on OUT is; may be asked while it goes on.

    Args:
        out: The folder of the shard set.
        as_json: Print JSON.
    """
    found = flow.status(out.absolute())
    if as_json:
        _say(json.dumps(found))
        return 0
    left = f", about {found['left_s']:.0f} s left" if found["state"] == "running" and found["left_s"] else ""
    _say(f"{out}: {found['state']}{left}")
    for name, tally in found["stages"].items():
        rejects = "  ".join(f"{reason} {count}" for reason, count in sorted(tally["rejects"].items()))
        made = tally["done"] - tally["reused"]
        rate = f"{tally['seconds'] / made:.2f} s/video" if made else ""
        if made and found["seconds"]:
            rate += f", {tally['seconds'] / found['seconds']:.1f} at work on average"
        if read := tally.get("prompt_tokens"):
            rate += f", {read} tokens read and {tally['answer_tokens']} written"
        _say(f"  {name:9} {tally['done']}/{tally['total']} videos  {tally['rows']} rows  {rate}  {rejects}".rstrip())
    if found["links"]:
        _say("  links     " + "  ".join(f"{outcome} {count}" for outcome, count in sorted(found["links"].items())))
    return 0


def report(*, out: Path = Path("shards"), as_json: Annotated[bool, arg(name="json")] = False) -> int:
    """Writes OUT/report.html again from what is kept, and says what became of the videos.

    Args:
        out: The folder of the shard set.
        as_json: Print the funnel as JSON.
    """
    found = flow.report(Request.load(out.absolute()))
    _say(json.dumps(found) if as_json else f"report: {out / 'report.html'}")
    return 0


def _plan_text(found: flow.Plan) -> str:
    missing = f", {found.num_missing} missing" if found.num_missing else ""
    lines = [f"{found.num_videos} videos{missing}"]
    for name, kept in found.kept.items():
        why = "; ".join(f"{reason}: {count}" for reason, count in found.why.get(name, {}).items())
        lines.append(f"  {name:9} {kept} kept, {found.to_do[name]} to do{f' ({why})' if why else ''}")
    known = [seconds for seconds in found.seconds.values() if seconds is not None]
    if known:
        unknown = [name for name, seconds in found.seconds.items() if seconds is None]
        but = f", without {', '.join(unknown)}" if unknown else ""
        lines.append(f"about {sum(known):.0f} s of work by what such videos took before{but}, shared by all workers")
    return "\n".join(lines)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill cleans up as Ctrl-C does
    return run_command(
        {
            "run": run,
            "plan": plan,
            "status": status,
            "report": report,
            "retry": retry,
            "rematch": rematch,
            "calibrate": calibrate,
            "gc": gc,
            "cut": cut,
            "probe": probe,
        },
        sys.argv[1:] if args is None else args,
        prog="python -m pipelines",
        description="Turns cooking videos into cookgen/1 shards.",
    )


if __name__ == "__main__":
    exit_code = main()
    if exit_code in (2, 130):  # Ray's threads may still be on their way; everything of ours has been closed
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
