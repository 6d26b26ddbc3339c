"""The client of a language model server, against a real HTTP server that misbehaves in every way we know."""

from __future__ import annotations

import json
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from cookgen.errors import ModelServerError
from cookgen.perception.llm import MAX_REPLY_BYTES, ChatModel, UnusableAnswerError
from tests.chatserver import ChatServer, Reply, chat_server

SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 5}},
    "required": ["n"],
    "additionalProperties": False,
}
ASK = [{"role": "user", "content": "a number, please"}]


def model(*servers: ChatServer | str, timeout_s: float = 5, patience_s: float = 5) -> ChatModel:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    return ChatModel(urls, "tiny", timeout_s=timeout_s, patience_s=patience_s)


def ask(chat: ChatModel) -> dict[str, Any]:
    return chat.complete(ASK, json_schema=SCHEMA, max_tokens=9)


def test_what_is_asked_and_what_comes_back() -> None:
    with chat_server(lambda request, number: Reply('{"n": 3}')) as server:
        chat = model(server)
        assert ask(chat) == {"n": 3}
        assert ask(chat) == {"n": 3}
    request = server.requests[0]
    assert request == server.requests[1]
    assert request["model"] == "tiny"
    assert request["messages"] == ASK
    assert (request["temperature"], request["max_tokens"]) == (0, 9)
    assert request["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (chat.prompt_tokens, chat.answer_tokens) == (14, 6)


@pytest.mark.parametrize(
    "fault",
    [
        Reply(status=500, body=b"boom"),
        Reply(status=503, body=b'{"error": {"message": "Loading model"}}'),
        Reply(status=429, body=b"{}"),
        Reply(drop=True),
        Reply('{"n": 2}', cut=20),
    ],
    ids=["500", "503", "429", "dropped", "cut in the middle"],
)
def test_a_fault_that_passes_is_asked_again(fault: Reply) -> None:
    with chat_server(lambda request, number: fault if number < 2 else Reply('{"n": 2}')) as server:
        assert ask(model(server)) == {"n": 2}
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]


@pytest.mark.parametrize("fault", [Reply(hang=True), Reply('{"n": 2}', dribble_s=0.05)], ids=["hangs", "dribbles"])
def test_a_server_that_does_not_finish_in_time_is_asked_again(fault: Reply) -> None:
    with chat_server(lambda request, number: fault if number < 1 else Reply('{"n": 2}')) as server:
        assert ask(model(server, timeout_s=0.5)) == {"n": 2}
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (Reply('{"n": 9}'), "breaks the schema"),
        (Reply('{"n": 1, "m": 1}'), "breaks the schema"),
        (Reply('{"n": NaN}'), "not JSON"),
        (Reply("[1]"), "breaks the schema"),
        (Reply("I would say 3."), "not JSON"),
        (Reply(""), "not JSON"),
        (Reply("[" * 100_000), "not JSON"),
        (Reply('{"n": 3}', finish="length"), "cut off after 9 tokens"),
        (Reply(None), "no text"),
        (Reply(body=b"<html>hello</html>"), "not a chat completion"),
        (Reply(body=b"\xff\xfe\x00"), "not a chat completion"),
        (Reply(body=b'{"choices": []}'), "not a chat completion"),
        (Reply(body=b'{"choices": {"0": 1}}'), "not a chat completion"),
        (Reply(body=b"[]"), "not a chat completion"),
        (Reply("\ud800"), "not JSON"),
        (Reply(body=b"x" * (MAX_REPLY_BYTES + 1)), "bytes"),
    ],
)
def test_an_answer_that_cannot_be_used_is_said_so_at_once(reply: Reply, says: str) -> None:
    with chat_server(lambda request, number: reply) as server, pytest.raises(UnusableAnswerError, match=says) as caught:
        ask(model(server))
    assert len(server.requests) == 1
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_patience_ends_with_the_url_the_last_error_and_a_remedy() -> None:
    with chat_server(lambda request, number: Reply(status=500, body=b"out of memory")) as server:
        started = time.monotonic()
        with pytest.raises(ModelServerError) as caught:
            ask(model(server, patience_s=0.5))
        assert time.monotonic() - started < 5
    assert server.url in str(caught.value)
    assert "HTTP 500" in str(caught.value)
    assert "actions.endpoint" in str(caught.value)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), ModelServerError)
    assert len(server.requests) > 1


def test_nobody_at_the_port_is_the_servers_trouble() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, never listening
        with pytest.raises(ModelServerError, match="has failed for"):
            ask(model(f"http://127.0.0.1:{reserved.getsockname()[1]}/v1", patience_s=0.3))


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_asked_again(status: int) -> None:
    reply = Reply(status=status, body=b'{"error": {"message": "no such model"}}')
    with chat_server(lambda request, number: reply) as server, pytest.raises(ModelServerError, match=f"HTTP {status}"):
        ask(model(server))
    assert len(server.requests) == 1


def test_a_proxy_in_the_environment_is_not_asked_for_a_server_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with chat_server(lambda request, number: Reply('{"n": 3}')) as server:
        assert ask(model(server, patience_s=0)) == {"n": 3}


# Several servers of one model


@contextmanager
def closed_port() -> Iterator[str]:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # bound, never listening
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}/v1"


def test_servers_are_asked_by_turns() -> None:
    with (
        chat_server(lambda request, number: Reply('{"n": 1}')) as one,
        chat_server(lambda request, number: Reply('{"n": 2}')) as two,
    ):
        chat = model(one, two)
        assert [ask(chat)["n"] for _ in range(4)] == [1, 2, 1, 2]
    assert (chat.prompt_tokens, chat.answer_tokens) == (4 * 7, 4 * 3)


def test_where_one_server_fails_another_is_asked_and_it_is_left_alone_for_a_while() -> None:
    with (
        chat_server(lambda request, number: Reply(status=500, body=b"boom")) as broken,
        chat_server(lambda request, number: Reply('{"n": 2}')) as well,
    ):
        chat = model(broken, well, patience_s=0)  # no patience is needed where one server is well
        assert [ask(chat)["n"] for _ in range(5)] == [2] * 5
    assert len(broken.requests) == 1
    assert len(well.requests) == 5


def test_a_server_that_hangs_holds_up_one_request_alone() -> None:
    with (
        chat_server(lambda request, number: Reply(hang=True)) as hung,
        chat_server(lambda request, number: Reply('{"n": 2}')) as well,
    ):
        chat = model(hung, well, timeout_s=2, patience_s=0)
        assert [ask(chat)["n"] for _ in range(6)] == [2] * 6
    assert len(hung.requests) == 1


def test_patience_counts_only_when_all_servers_fail_and_names_them() -> None:
    answers = iter([Reply(status=503, body=b"loading")] * 3 + [Reply('{"n": 4}')] * 9)
    with chat_server(lambda request, number: next(answers)) as slow, closed_port() as dead:
        assert ask(model(dead, slow)) == {"n": 4}
        assert len(slow.requests) == 4
        with pytest.raises(ModelServerError, match="have failed for") as caught, closed_port() as other:
            ask(model(dead, other, patience_s=0.3))
    assert dead in str(caught.value)
    assert other in str(caught.value)


def test_a_url_is_not_taken_for_a_sequence_of_urls() -> None:
    for urls in ("http://127.0.0.1:1/v1", ()):
        with pytest.raises(AssertionError, match="urls"):
            ChatModel(urls, "tiny")


def test_many_threads_may_ask_at_once() -> None:
    together = threading.Barrier(8)

    def answer(request: dict[str, Any], number: int) -> Reply:
        together.wait(60)  # eight at a time, or none gets an answer
        return Reply(json.dumps({"n": int(request["messages"][0]["content"]) % 5}))

    with chat_server(answer) as server:
        chat = model(server, timeout_s=60, patience_s=0)
        with ThreadPoolExecutor(8) as pool:
            said = list(
                pool.map(
                    lambda number: chat.complete(
                        [{"role": "user", "content": str(number)}], json_schema=SCHEMA, max_tokens=9
                    )["n"],
                    range(64),
                )
            )
    assert said == [number % 5 for number in range(64)]
    assert (chat.prompt_tokens, chat.answer_tokens) == (64 * 7, 64 * 3)
