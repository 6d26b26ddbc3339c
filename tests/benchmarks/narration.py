"""`make bench-narration`: how well speech and actions are found, where it is known what was said and done. JSON lines.

The demo's narrated kitchens, and the narrated pizza video where COOKGEN_TEST_DATA names the folder that holds it, go
through the stages videos, speech and actions. Word errors compare the whole transcript. A hit is a true action and a
found one with an IoU above 0.3 and a cosine of their sentence embeddings above 0.6, one-to-one in time's order
(`cookgen.evaluation.narration`). The kitchens' true actions are imperatives, each spoken in a sentence of its own, with
its span; the pizza's are its sentences. Precision, recall and F1 count the actions of all videos of a group together.

The few-shot prompts were written while looking at other sentences and, for the utterances, at the pizza video.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import tyro

from cookgen.evaluation.narration import action_scores, word_errors
from cookgen.matching import Span
from cookgen.perception.text_embedding import TextEmbedder, load_text_embedder
from cookgen.records import Action, Reject, SourceVideo, Word
from pipelines import inline
from pipelines.serve import ServerConfig, serve_llm
from pipelines.sources import demo, folder
from pipelines.stage import Places, VideoState
from pipelines.stages import actions, evidence, speech, videos
from pipelines.store import Store

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Truth:
    """What is said in a video, and what it tells to do, when."""

    source: SourceVideo
    text: str
    actions: tuple[str, ...]
    spans: tuple[Span, ...]


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def kitchens(where: Path, num_videos: int) -> list[Truth]:
    config = demo.DemoConfig(num_videos=num_videos)
    demo.make_videos(where, config)
    found = []
    for source in demo.list_videos(where, config):
        truth = json.loads((where / source.path).with_suffix(".gt.json").read_text())
        told = truth["actions"]
        if isinstance(source, SourceVideo) and told:
            spans = tuple((action["start_s"], action["end_s"]) for action in told)
            said = " ".join(word["text"] for word in truth["words"])
            found.append(Truth(source, said, tuple(action["text"] for action in told), spans))
    return found


def real(where: Path) -> list[Truth]:
    found = []
    for source in folder.list_videos(where):
        path = (where / source.path).with_suffix(".gt.json")
        if isinstance(source, SourceVideo) and path.exists():
            told = json.loads(path.read_text())["asr"]
            texts = tuple(action["text"] for action in told)
            spans = tuple((float(action["start"]), float(action["end"])) for action in told)
            found.append(Truth(source, " ".join(texts), texts, spans))
    return found


def measure(
    group: str,
    truths: list[Truth],
    config: actions.ActionsConfig,
    places: Places,
    embedder: TextEmbedder,
    *,
    show: bool,
) -> None:
    stages = (videos.STAGE, speech.STAGE, replace(actions.STAGE, config=config))
    with tempfile.TemporaryDirectory() as out:
        began = time.monotonic()
        states = list(inline.run([truth.source for truth in truths], stages, results=Store(Path(out)), places=places))
        wall_s = time.monotonic() - began
    heard = [" ".join(row.text for row in rows(state, "speech", Word)) for state in states]
    errors = reduce(add, (word_errors(truth.text, said) for truth, said in zip(truths, heard, strict=True)))
    taken = [rows(state, actions.NAME, Action) for state in states]
    scores = reduce(
        add,
        (
            action_scores(
                truth.spans,
                [(row.start_s, row.end_s) for row in found],
                embedder.embed(truth.actions) @ embedder.embed([row.text for row in found]).T,
            )
            for truth, found in zip(truths, taken, strict=True)
        ),
    )
    if show:
        for truth, found in zip(truths, taken, strict=True):
            say(video=truth.source.path, found=[(row.start_s, row.end_s, row.text, row.raw_text) for row in found])
    results = [state.whole[actions.NAME] for state in states if actions.NAME in state.results]
    rejects = [reject for result in results for reject in result.rejects]
    if show:
        say(rejects=[(reject.narrative, reject.reason.value, reject.detail) for reject in rejects])
    say(
        bench="narration",
        videos=f"{len(truths)} {group}",
        speech=speech.STAGE.config.model,
        word_error_rate=round(errors.rate, 4),
        words=errors.num_words,
        model=config.model,
        requests="utterances" if config.window_words is None else f"windows of {config.window_words} words",
        precision=round(scores.precision, 3),
        recall=round(scores.recall, 3),
        f1=round(scores.f1, 3),
        true=scores.num_true,
        found=scores.num_found,
        hits=scores.num_hits,
        rejects=counted(rejects),
        tokens=[sum(result.tokens[side] for result in results) for side in (0, 1)],
        actions_s=round(sum(result.seconds for result in results), 1),
        wall_s=round(wall_s, 1),
    )


def rows(state: VideoState, stage: str, kind: type[Any]) -> list[Any]:
    return [row for row in state.whole[stage].rows if isinstance(row, kind)] if stage in state.results else []


def counted(rejects: list[Reject]) -> dict[str, int]:
    reasons = sorted(reject.reason.value for reject in rejects)
    return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def main(
    *,
    model: str = actions.ActionsConfig().model,
    endpoint: str | None = None,
    window_words: int | None = None,
    requests_in_flight: int = 1,
    threads: int = 1,
    num_kitchens: int = 12,
    kitchens_folder: Path | None = None,
    show: bool = False,
) -> None:
    """
    Args:
        model: A .gguf file or a packaged model that is served here, or the name that the endpoint knows it by.
        endpoint: OpenAI-compatible base URL of a server that runs.
        window_words: Ask by windows of so many words; else by utterances.
        requests_in_flight: How many requests at a time.
        threads: Of the server that is started here.
        num_kitchens: How many kitchens to render, of which two tell nothing; 0: none.
        kitchens_folder: Where they are, or are made.
        show: Print every action and reject as well.
    """
    say(
        commit=subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip(),
        cores=os.cpu_count(),
        machine=platform.machine(),
    )
    config = actions.ActionsConfig(
        model=model,
        endpoint=endpoint,
        window_words=window_words,
        requests_in_flight=requests_in_flight,
        timeout_s=1800.0,  # a window and a model of billions of parameters on one core
    )
    embedder = load_text_embedder(evidence.EvidenceConfig().model)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        where = kitchens_folder or scratch / "kitchens"
        groups = [("rendered kitchens", where, kitchens(where, num_kitchens))] if num_kitchens else []
        if data := os.environ.get("COOKGEN_TEST_DATA"):
            groups.append(("real, narrated by a synthetic voice", Path(data) / "videos", real(Path(data) / "videos")))
        urls: tuple[str, ...] = ()
        if endpoint is None:
            server = ServerConfig(context_tokens=8192, threads=threads)
            urls = (stack.enter_context(serve_llm(server, model=model, log_folder=scratch)),)
        for name, videos_folder, truths in groups:
            places = Places(videos=videos_folder, media=scratch, scratch=scratch, endpoints={actions.NAME: urls})
            measure(name, truths, config, places, embedder, show=show)


if __name__ == "__main__":
    tyro.cli(main)
