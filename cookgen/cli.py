"""The command line of the installed package: `cookgen COMMAND OUT …`, one function a command; `cookgen --version`.

Exit status: 0 done, 1 problems were found, 2 a usage or input error (one line, no traceback).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from numpy.typing import NDArray

from cookgen import __version__
from cookgen.commands import printable, run_command
from cookgen.dataset.croissant import croissant_of
from cookgen.dataset.export import export as export_set
from cookgen.dataset.inspect import inspect as inspect_key
from cookgen.dataset.publish import annotation_files, plan_text, set_files
from cookgen.dataset.publish import publish as publish_files
from cookgen.dataset.summary import card_of, read_statistics, statistics_text, statistics_values
from cookgen.dataset.tables import read_table, table_path
from cookgen.dataset.validate import validate as validate_set
from cookgen.errors import ModelError, UsageError
from cookgen.evaluation.agreement import agreement_text, judge_agreement
from cookgen.features import compute_features, encoder_config, plan_features
from cookgen.files import canonical_json, explained, write_atomic
from cookgen.records import Check
from cookgen.runlog import Progress, Tally

Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
Json = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(name="json")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def features(
    out: Out,
    *,
    encoder: str,
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None,
    name: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE …")] = (),
    overwrite: Flag = False,
    dry_run: Flag = False,
) -> int:
    """Compute features of every clip into sidecar shards, for load_split(…, features=(NAME,)).

    Run again, it goes on where it was stopped, and computes only for shards that have changed.

    Args:
        out: the folder that holds the set's dataset.json
        encoder: clip (CLIP, SigLIP), qwen_vl (Qwen2-VL, Qwen2.5-VL), vae, video_vae, text, or conse: a stand-in for a
            joint image-text space, not CLIP, which needs no model hub
        model: a folder, or a repository of the hub at a commit: organisation/name@<40 hex digits>
        name: the folder under OUT/features, by default the encoder
        settings: the encoder's settings. clip: tokens=patch or pooled. qwen_vl: num_tokens=256 or 64. vae: size_px.
            video_vae: num_frames, fps, size_px. text: field=action, caption or both. All: batch_size, num_workers.
            clip, qwen_vl, vae, video_vae: device=auto, cpu or cuda
        overwrite: replace features of this name that another encoder, model or setting made
        dry_run: say what would be computed, and do nothing
    """
    config = encoder_config(encoder, model=model, settings=settings)
    plan = plan_features(out, config, name=name, overwrite=overwrite)
    name, note = plan.name, plan.note
    values = {setting: value for setting, value in note.config.items() if setting not in ("about", "kind", "version")}
    to_do, kept = (sum(shard.num_clips for shard in shards) for shards in (plan.to_do, plan.kept))
    _say(f"{name}: {config.about}")
    _say(f"{name}: {note.model}@{note.revision}{f', {canonical_json(values)}' if values else ''}")
    _say(f"{name}: {to_do - note.num_clips} clips to compute in {len(plan.to_do)} shards, {kept + note.num_clips} kept")
    if dry_run:
        return 0
    if not plan.is_complete:
        with explained(out):
            progress = Progress(plan.run_folder, f"cookgen features {name}", unit="clip")
        tally = Tally()

        def show(now: Tally) -> None:
            nonlocal tally
            tally = now
            progress.show({name: tally})

        with progress:
            compute_features(out, config, name=name, overwrite=overwrite, show=show)
            progress.show({name: tally}, final=True)
        with explained(out):
            write_atomic(out / "README.md", card_of(out))  # the card names the features that a set has
    _say(f"{name}: complete in {plan.folder}; load_split(…, features=({name!r},)) joins it")
    return 0


def validate(out: Out, *, as_json: Json = False) -> int:
    """Check a shard set against the format cookgen/1 and name what is wrong; exit status 1 if anything is.

    Args:
        out: the folder that holds the set's dataset.json
        as_json: print a JSON array of {where, rule, found, is_warning} instead of lines
    """
    found = validate_set(out)
    num_problems = sum(not problem.is_warning for problem in found)
    if as_json:
        _say(json.dumps([asdict(problem) for problem in found], indent=2))
    else:
        for problem in found:
            _say(str(problem))
        num_warnings = len(found) - num_problems
        warnings = f", {num_warnings} warning{'' if num_warnings == 1 else 's'}" if num_warnings else ""
        _say(f"{out}: {num_problems or 'no'} problem{'' if num_problems == 1 else 's'}{warnings}")
    return 1 if num_problems else 0


def card(out: Out, *, croissant: Flag = False) -> int:
    """Print the dataset card (README.md) of a shard set as it is now, with the feature sidecars that it has.

    Args:
        out: the folder that holds the set's dataset.json
        croissant: print Croissant metadata (JSON-LD) instead
    """
    _say(json.dumps(croissant_of(out), indent=2) if croissant else card_of(out).rstrip("\n"))
    return 0


def stats(out: Out, *, as_json: Json = False) -> int:
    """Print the columns of VideoAuteur's Tables 1 and 2 beside the published values, and histograms of lengths.

    Where judges have scored the captions, also what they say on average and how far they agree.

    Args:
        out: the folder that holds the set's dataset.json
        as_json: print one JSON object instead
    """
    found = read_statistics(out)
    checks = table_path(out, Check)
    agreement = judge_agreement(read_table(checks, Check)) if checks.is_file() else []
    if as_json:
        judges = [asdict(row) for row in agreement]
        _say(json.dumps({**statistics_values(found), "judges": judges}, indent=2))
    else:
        _say("\n\n".join([statistics_text(found), *([agreement_text(agreement)] if agreement else [])]))
    return 0


def inspect(
    out: Out,
    key: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="KEY")],
    *,
    save: Path | None = None,
) -> int:
    """Print all that a shard set says of a narrative or a clip, or why a video was rejected.

    Args:
        out: the folder that holds the set's dataset.json
        key: a narrative, a clip (narrative-000), or a rejected video's narrative or path
        save: a folder for the clips' mp4, jpg and json
    """
    _say(inspect_key(out, key, save=save))
    return 0


def export(out: Out, *, to: Path, format: Literal["parquet", "seed-story"]) -> int:  # noqa: A002
    """Write the annotations in another tool's form.

    Args:
        out: the folder that holds the set's dataset.json
        to: an empty folder, or one that holds the same export of the same set
        format: parquet (a flat row a clip) or seed-story (SEED-Story's JSONL, with the keyframes)
    """
    for path in export_set(out, to, format=format):
        _say(str(path))
    return 0


def publish(
    out: Out,
    to: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TO")],
    *,
    yes: Flag = False,
    annotations_only: Flag = False,
) -> int:
    """Copy a shard set to a folder, a URL or the Hub; without --yes only say what would be copied.

    Args:
        out: the folder that holds the set's dataset.json
        to: a folder, a URL that fsspec knows (s3://bucket/name), or hf://datasets/USER/NAME
        yes: do it
        annotations_only: ids and annotations, from which the set can be rebuilt: no video, keyframes, speech, features
    """
    with annotation_files(out) if annotations_only else nullcontext(set_files(out)) as files:
        _say(plan_text(files, to))
        if not yes:
            _say("nothing was copied; add --yes to do it")
            return 0
        num_copied = publish_files(files, to, say=_say)
    _say(f"done: {num_copied} of {len(files)} files copied")
    return 0


def direct(
    query: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="QUERY")],
    *,
    checkpoint: Path,
    out: Path = Path("storyboard"),
    steps: int = 8,
    image: Path | None = None,
    action: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    caption: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None,
    references: tuple[Path, ...] = (),
    encoder_model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None,
    temperature: float = 0.0,
    z_temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    max_tokens: int = 128,
    nearest: Annotated[str | None, tyro.conf.arg(metavar="SHARDS")] = None,
) -> int:
    """Let a director write a narrative: a storyboard of actions, captions and visual embeddings z.

    The same command gives the same storyboard.

    Args:
        query: what to show, for example "How to make a pepperoni pizza?"
        checkpoint: a run of cookgen-train director (its best checkpoint), or one of its checkpoints/step-…
        out: a new or empty folder, or an older storyboard, which is replaced
        steps: the most; the director stops earlier by itself
        image: the first step's keyframe, encoded as the director's features are
        references: pictures to be like, for directors trained with reference_rate
        encoder_model: what encodes image and references, where the director's training was not told it
        action: the first step's action
        caption: the first step's caption
        temperature: of words; 0 takes the likeliest word each time; otherwise 0.01 to 100
        z_temperature: of the z of a director with a mixture head; 0 takes its likeliest component's mean
        top_p: draw from the likeliest words that have this probability together
        seed: of what is drawn; with temperatures 0 nothing is
        max_tokens: of an action or a caption; a longer one is ended
        nearest: show each step with the keyframe of this shard set whose features are nearest to z
    """
    try:
        import torch

        from cookgen.director.sample import Given, Sampling, WrittenStep, check_query, write_narrative
        from cookgen.director.storyboard import check_out, nearest_keyframes, open_keyframes, write_storyboard
        from cookgen.director.weights import load_director
    except ModuleNotFoundError as error:
        raise UsageError(f"cookgen direct: {error}; install cookgen[train]") from error
    from cookgen.perception.threads import one_thread
    from cookgen.picture import encode_picture, read_picture

    sampling = Sampling(temperature, top_p, seed, num_steps=steps, max_tokens=max_tokens, z_temperature=z_temperature)
    check_query(query)
    check_out(out)
    pictures = [read_picture(path) for path in (*(() if image is None else (image,)), *references)]
    loaded = load_director(checkpoint)
    found, director = loaded.features, loaded.director
    narratives = None if nearest is None else open_keyframes(nearest, loaded)
    if pictures and found is None:
        raise UsageError("--image, --references: this director writes texts alone, it cannot be shown a picture")

    def encode(picture_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert found is not None
        identity = f"{found.model}@{found.revision}"
        model = encoder_model or found.encoder_model
        z = encode_picture(picture_HWC, identity, config=found.config, encoder_model=model)
        return z.reshape(-1, len(director.mean_W))

    z = [encode(picture_HWC) for picture_HWC in pictures]
    first = None if image is None else pictures[0]
    given = Given(action, caption, None if first is None else z[0], z[len(z) - len(references) :])

    def show(step: WrittenStep) -> None:
        _say(f"- {' | '.join(text or '(no words)' for text in step.texts.values())}")

    try:
        director.to("cuda" if torch.cuda.is_available() else "cpu")
    except torch.OutOfMemoryError as error:
        raise ModelError(
            "the director does not fit into the GPU's memory; hide the GPU: CUDA_VISIBLE_DEVICES="
        ) from error
    with one_thread():  # sums in one order: the same seed gives the same words
        written = write_narrative(loaded, query, sampling, given=given, show=show)
    near = None
    if found is not None and narratives is not None:
        near = nearest_keyframes(written.steps, narratives, found.name)
    write_storyboard(out, written, loaded, sampling, nearest=near, nearest_in=nearest or "", picture_HWC=first)
    for note in written.notes:
        _say(f"note: {note}")
    _say(f"{len(written.steps)} steps, ended by {written.stopped}: {out / 'index.html'}")
    return 0


def inverse(
    out: Out,
    *,
    encoder: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    to: Path,
    generator: Annotated[str, tyro.conf.arg(metavar="still|MODEL")] = "still",
    split: Annotated[str, tyro.conf.arg(metavar="SPLIT")] = "val",
    limit: int | None = None,
    num_frames: int = 49,
    fps: float = 8.0,
    seed: int = 0,
    num_steps: int | None = None,
    guidance: float | None = None,
    device: Annotated[str, tyro.conf.arg(metavar="auto|cpu|cuda")] = "auto",
    as_json: Json = False,
) -> int:
    """Generate clips again from caption and keyframe, and score them: CLIP-T, Fréchet distance to the source's frames.

    Run again, it goes on where it was stopped. Writes TO/inverse.json and TO/scores.parquet; a run with
    `--set evidence.scores=/path/TO/scores.parquet` takes the scores up as checks of the same clips and captions.

    Args:
        out: the folder that holds the set's dataset.json
        encoder: CLIP or SigLIP: a folder, or a repository of the hub at a commit: organisation/name@<40 hex digits>
        to: a folder for the scores
        generator: still (the keyframe, unmoved: a baseline), or an image-to-video pipeline of diffusers: a folder, or
            a repository of the hub at a commit
        split: whose clips
        limit: only so many clips, the split's first
        num_frames: how many are generated of each clip
        fps: how many a second
        seed: of what the generator draws
        num_steps: denoising steps; by default the pipeline's own
        guidance: classifier-free guidance; by default the pipeline's own
        device: of generator and encoder
        as_json: print the JSON instead of lines
    """
    from cookgen.dataset.scores import write_scores
    from cookgen.dataset.split import load_split
    from cookgen.evaluation.inverse import InverseConfig, evaluate_inverse, inverse_text

    try:
        from cookgen.evaluation.generators import load_generator
        from cookgen.evaluation.image_text import ImageText

        config = InverseConfig(num_frames, fps, seed)
        if limit is not None and limit < 1:
            raise ValueError(f"limit is {limit}; at least 1")
        steps = [step for narrative in load_split(split, out) for step in narrative.steps][:limit]
        loaded = ImageText.load(encoder, device=device)
        maker = load_generator(generator, num_steps=num_steps, guidance=guidance, device=device)
    except ModuleNotFoundError as error:
        raise UsageError(f"cookgen eval: {error}; install cookgen[features]") from error
    except ValueError as error:
        raise UsageError(f"cookgen eval inverse: {error}") from error
    run_folder = to / ".runs"
    with explained(to):
        progress = Progress(run_folder, "cookgen eval inverse", unit="clip")
    with progress:

        def show(tally: Tally) -> None:
            progress.show({"inverse": tally}, final=tally.done == tally.total)

        found = evaluate_inverse(steps, maker, loaded, config, kept=run_folder / "clips", show=show)
    values = {"values": found.values, "protocol": {"set": str(out), "split": split, **found.protocol}}
    with explained(to):
        write_scores(to / "scores.parquet", found.scores)
        write_atomic(to / "inverse.json", canonical_json(values))
    _say(json.dumps(values, indent=2) if as_json else inverse_text(found.values, values["protocol"]))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["eval"]:
        arguments = [" ".join(arguments[:2]), *arguments[2:]]  # a group of commands, each with options of its own
    if arguments == ["--version"]:
        _say(f"cookgen {__version__}")
        return 0
    commands: dict[str, Callable[..., int]] = {
        "features": features,
        "validate": validate,
        "card": card,
        "stats": stats,
        "inspect": inspect,
        "export": export,
        "publish": publish,
        "direct": direct,
        "eval inverse": inverse,
    }
    what = "Works with cookgen/1 shard sets. `cookgen --version` prints the version."
    return run_command(commands, arguments, prog="cookgen", description=what)


def _say(text: str) -> None:
    """Prints text of which parts may come out of a set."""
    sys.stdout.write(printable(text, keep="\n") + "\n")
    sys.stdout.flush()
