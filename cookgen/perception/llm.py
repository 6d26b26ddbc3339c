"""Language models behind an OpenAI-compatible HTTP endpoint: one question, one answer that keeps to a JSON schema.

    model = ChatModel(["http://127.0.0.1:8000/v1"], model="Qwen/Qwen2.5-7B-Instruct")
    answer = model.complete(messages, json_schema=schema, max_tokens=100)

The server is asked to keep to the schema, and is not trusted to: what it says is checked here, word for word. Of
several servers of one model the next is asked where one fails. When all fail they are asked again for a while
(ModelServerError after that: it ends the run); an answer that cannot be used is UnusableAnswerError: it says nothing
about the next question. Many threads may ask at once.
"""

from __future__ import annotations

import ipaddress
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cookgen.errors import ModelServerError

MAX_REPLY_BYTES = 1_000_000
REST_S = 30.0  # so long a server that failed is asked after all others
_RETRIED = frozenset({408, 409, 425, 429})  # and every 5xx


class UnusableAnswerError(Exception):
    """The model answered, but not in a way that can be used: cut off, no JSON, or not what the schema allows."""


class _ServerTroubleError(Exception):
    """A failure of the server that may pass."""


@dataclass
class _Server:
    """One endpoint of the model."""

    url: str
    client: Any
    rests_until: float = 0.0  # time.monotonic(); until then it is asked last


class ChatModel:
    """A model at one or several endpoints. Temperature 0, one seed: what varies between equal requests is the servers'
    doing.

    `urls` are bases that end in /v1, of servers that all know the model by the same name; they are asked by turns. The
    key, where one is needed, is read from OPENAI_API_KEY. `timeout_s` bounds one attempt as a whole, `patience_s` the
    time from when all servers have failed a request to giving up. `prompt_tokens` and `answer_tokens` count what the
    servers say they have read and written, for answers that were of no use as well.
    """

    def __init__(self, urls: Sequence[str], model: str, *, timeout_s: float = 120.0, patience_s: float = 300.0) -> None:
        assert urls and not isinstance(urls, str), f"urls is {urls!r}; it is a sequence of base URLs"
        self.urls, self.model = tuple(urls), model
        self.timeout_s, self.patience_s = timeout_s, patience_s
        self.prompt_tokens = self.answer_tokens = 0
        self._servers = [_Server(url, _client(url, timeout_s)) for url in self.urls]
        self._turn = 0
        self._lock = threading.Lock()  # of the counters, the turn and the servers' rests
        for server in self._servers:
            weakref.finalize(self, server.client.close)  # its kept-alive connections end with it

    def complete(
        self, messages: Sequence[Mapping[str, Any]], *, json_schema: Mapping[str, Any], max_tokens: int
    ) -> dict[str, Any]:
        """The model's answer to `messages` ({"role", "content"} each): a JSON object that keeps to `json_schema`.

        Raises UnusableAnswerError where the answer is cut off (`max_tokens`), is not JSON or breaks the schema,
        ModelServerError where the server cannot be reached, keeps failing for `patience_s`, or refuses the request.
        """
        reply = self._with_patience(lambda server: self._ask(server, messages, json_schema, max_tokens))
        text, is_whole = self._read(reply)
        if not is_whole:
            raise UnusableAnswerError(f"cut off after {max_tokens} tokens: {_shown(text)}")
        return _checked(text, json_schema)

    def _with_patience(self, attempt: Callable[[_Server], bytes]) -> bytes:
        all_failed_at: float | None = None
        pause_s = 0.1
        while True:
            for server in self._in_turn():
                try:
                    return attempt(server)
                except _ServerTroubleError as error:
                    trouble = error
                    with self._lock:
                        server.rests_until = time.monotonic() + REST_S
            now = time.monotonic()
            all_failed_at = now if all_failed_at is None else all_failed_at
            if now + pause_s - all_failed_at > self.patience_s:
                where = f"server at {self.urls[0]} has" if len(self.urls) == 1 else f"servers at {self.urls} have"
                raise ModelServerError(
                    f"the language model {where} failed for {now - all_failed_at:.0f} s; "
                    f"last: {trouble}. Start it, or set actions.endpoint (of a judge: evidence.judges.endpoints) to "
                    "one that runs; what was done is kept."
                ) from trouble
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 5.0)

    def _in_turn(self) -> list[_Server]:
        """All servers, in the order in which to ask them: each request begins with the next, and those that failed
        lately come last, so that one that hangs holds up few."""
        with self._lock:
            turn = self._turn % len(self._servers)
            self._turn += 1
            now = time.monotonic()
            return sorted(self._servers[turn:] + self._servers[:turn], key=lambda server: now < server.rests_until)

    def _ask(
        self, server: _Server, messages: Sequence[Mapping[str, Any]], json_schema: Mapping[str, Any], max_tokens: int
    ) -> bytes:
        import openai

        deadline = time.monotonic() + self.timeout_s
        try:
            with server.client.chat.completions.with_streaming_response.create(
                model=self.model,
                messages=[dict(message) for message in messages],
                temperature=0,
                seed=0,
                max_tokens=max_tokens,
                response_format={
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": dict(json_schema), "strict": True},
                },
            ) as response:
                return _within(response.iter_bytes(), deadline)
        except openai.APIStatusError as error:
            code = error.status_code
            said = f"HTTP {code}: {_shown(error.message)}"
            if code in _RETRIED or code >= 500:
                raise _ServerTroubleError(said) from error
            raise ModelServerError(
                f"the language model server at {server.url} refuses the request for model {self.model!r} with {said}. "
                "Check the model's name, the key in OPENAI_API_KEY, and that the server knows json_schema answers."
            ) from error
        except openai.APIConnectionError as error:  # time-outs among them
            cause = error.__cause__ or error
            raise _ServerTroubleError(f"{type(cause).__name__}: {_shown(str(cause) or str(error))}") from error
        except openai.OpenAIError as error:
            raise ModelServerError(f"the language model server at {server.url}: {error}") from error

    def _read(self, reply: bytes) -> tuple[str, bool]:
        """The text of a reply, and whether it is whole."""
        try:
            body = json.loads(reply)
            choice = body["choices"][0]
            text = choice["message"]["content"]
            is_whole = choice.get("finish_reason") != "length"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise UnusableAnswerError(f"not a chat completion: {_shown(reply.decode(errors='replace'))}") from error
        if not isinstance(text, str):
            raise UnusableAnswerError(f"no text in the answer: {_shown(repr(text))}")
        self._count(body.get("usage"))
        return text, is_whole

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        with self._lock:
            self.prompt_tokens += read if isinstance(read, int) and read > 0 else 0
            self.answer_tokens += written if isinstance(written, int) and written > 0 else 0


def _client(url: str, timeout_s: float) -> Any:  # Any: its types know OpenAI's own models only
    import openai

    return openai.OpenAI(
        base_url=url,
        api_key=os.environ.get("OPENAI_API_KEY") or "none",
        timeout=timeout_s,
        max_retries=0,
        # The environment's proxies are for the world outside, never for a server on this machine.
        http_client=openai.DefaultHttpxClient(trust_env=not _is_loopback(url)),
    )


def _within(chunks: Iterator[bytes], deadline: float) -> bytes:
    """All the bytes. The library's time-outs are between two reads: a server that dribbles would never meet them."""
    reply = bytearray()
    while True:
        try:
            chunk = next(chunks, None)
        except Exception as error:  # the HTTP library's own classes, not the client's; all mean a broken connection
            raise _ServerTroubleError(f"{type(error).__name__}: {_shown(str(error))}") from error
        if chunk is None:
            return bytes(reply)
        reply += chunk
        if time.monotonic() > deadline:
            raise _ServerTroubleError("the answer was not complete in time")
        if len(reply) > MAX_REPLY_BYTES:
            raise UnusableAnswerError(f"a reply of more than {MAX_REPLY_BYTES} bytes")


def _checked(text: str, json_schema: Mapping[str, Any]) -> dict[str, Any]:
    import jsonschema

    try:
        text.encode()  # a lone surrogate is JSON, but no text
        answer = json.loads(text, parse_constant=_refuse)
        jsonschema.Draft202012Validator(json_schema).validate(answer)
    except jsonschema.ValidationError as error:
        raise UnusableAnswerError(f"breaks the schema ({_shown(error.message)}): {_shown(text)}") from error
    except (ValueError, RecursionError) as error:
        raise UnusableAnswerError(f"not JSON: {_shown(text)}") from error
    if not isinstance(answer, dict):
        raise UnusableAnswerError(f"not a JSON object: {_shown(text)}")
    return answer


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _shown(text: str, most: int = 200) -> str:
    """One short, printable line of what a server said."""
    line = " ".join(text.encode(errors="replace").decode().split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= most else line[: most - 1] + "…"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
