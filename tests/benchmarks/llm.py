"""`make bench-llm`: answer tokens a second of the actions stage over those of a bare client on the same server.

The stage takes the speech of a long video, composed of the demo's recipes, through `write_actions`. The very requests
that it sends are recorded once; then openai.AsyncOpenAI sends the same ones, `--in-flight` at a time, and checks
nothing. By turns on warm servers; the ratio is the median over rounds. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import openai

from cookgen.records import Action, Video, Word
from pipelines.serve import ServerConfig, serve_llm
from pipelines.sources.demo.script import compose
from pipelines.stage import Places
from pipelines.stages.actions import ActionsConfig, load_model, write_actions
from tests.chatserver import Reply, chat_server
from tests.pipelines.stages.test_actions import make_video
from tests.pipelines.stages.test_actions import say as spoken


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def speech(num_sentences: int) -> tuple[Video, tuple[Word, ...]]:
    """A video without pictures, and its words."""
    recipes = (compose(0, index, min_steps=5, max_steps=9) for index in range(num_sentences))
    sentences = [shot.sentence for recipe in recipes for shot in recipe.shots][:num_sentences]
    return make_video(), spoken(*sentences)


def places(urls: Sequence[str]) -> Places:
    return Places(videos=Path(), media=Path(), scratch=Path(), endpoints={"actions": tuple(urls)})


def recorded(video: Video, words: tuple[Word, ...], config: ActionsConfig) -> list[dict[str, Any]]:
    """The requests that the stage sends for these words."""
    with chat_server(lambda request, number: Reply('{"action": "none"}')) as server:
        list(write_actions(video, words, config=config, tool=load_model(config, places([server.url]))))
    return server.requests


async def ask_all(urls: Sequence[str], requests: Sequence[dict[str, Any]], in_flight: int) -> int:
    """Sends them, and returns how many tokens came back."""
    room = asyncio.Semaphore(in_flight)

    async def ask(client: openai.AsyncOpenAI, request: dict[str, Any]) -> int:
        async with room:
            reply = await client.chat.completions.create(**request)
        assert reply.usage is not None
        return int(reply.usage.completion_tokens)

    clients = [
        openai.AsyncOpenAI(
            base_url=url, api_key="none", timeout=600, http_client=openai.DefaultAsyncHttpxClient(trust_env=False)
        )
        for url in urls
    ]
    tokens = await asyncio.gather(*map(ask, cycle(clients), requests))
    for client in clients:
        await client.close()
    return sum(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["llama.cpp", "vllm"], default="llama.cpp")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    say(cores=os.cpu_count(), machine=platform.machine(), python=platform.python_version(), **vars(options))

    config = ActionsConfig(requests_in_flight=options.in_flight)
    video, words = speech(options.sentences)
    requests = recorded(video, words, config)
    server = ServerConfig(kind=options.kind, replicas=options.replicas)
    with (
        tempfile.TemporaryDirectory() as folder,
        serve_llm(
            server, model=config.model, log_folder=Path(folder), say=lambda said, **values: say(server=said)
        ) as urls,
    ):
        asyncio.run(
            ask_all(urls, requests, options.in_flight)
        )  # warm: what servers keep of prompts, they keep for both
        ratios = []
        for number in range(options.rounds):
            tool = load_model(config, places(urls))
            assert tool is not None
            began = time.monotonic()
            rows = list(write_actions(video, words, config=config, tool=tool))
            stage = tool.answer_tokens / (time.monotonic() - began)
            began = time.monotonic()
            bare = asyncio.run(ask_all(urls, requests, options.in_flight)) / (time.monotonic() - began)
            ratios.append(stage / bare)
            say(
                round=number,
                requests=len(requests),
                actions=sum(isinstance(row, Action) for row in rows),
                stage_tokens_s=round(stage, 1),
                bare_tokens_s=round(bare, 1),
                ratio=round(stage / bare, 3),
            )
        say(ratio=round(statistics.median(ratios), 3), bar=0.9)


if __name__ == "__main__":
    main()
