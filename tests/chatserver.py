"""A real HTTP server that speaks the OpenAI chat protocol and answers just as a test tells it to, faults included."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server does with one request; by default a chat completion with `text` in it."""

    text: str | None = None
    finish: str = "stop"
    status: int = 200
    body: bytes | None = None  # instead of a chat completion
    drop: bool = False  # close the connection without a word
    cut: int | None = None  # close it after so many bytes of the body
    hang: bool = False  # say nothing until the server ends
    dribble_s: float = 0.0  # a byte of the body at a time, with so much time between them


@dataclass
class ChatServer:
    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def chat_server(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[ChatServer]:
    """Serves on 127.0.0.1; `answer(request, number)` says what to do with the request of that number, from 0."""
    ended = threading.Event()
    lock = threading.Lock()
    at_once = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal at_once
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.requests)
                server.requests.append(request)
                at_once += 1
                server.most_at_once = max(server.most_at_once, at_once)
            try:
                reply = answer(request, number)
            finally:
                with lock:
                    at_once -= 1
            self._do(reply)

        def _do(self, reply: Reply) -> None:
            self.close_connection = True
            if reply.hang:
                ended.wait()
            if reply.hang or reply.drop:
                return
            body = reply.body
            if body is None:
                message = {"role": "assistant", "content": reply.text}
                choice = {"index": 0, "message": message, "finish_reason": reply.finish}
                usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
                body = json.dumps(
                    {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}
                ).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")  # or the client asks again where nobody listens any more
            self.end_headers()
            if reply.dribble_s:
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    if ended.wait(reply.dribble_s):
                        return
            self.wfile.write(body[: reply.cut])

        def log_message(self, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *args: object) -> None:  # a client that goes away is part of the tests
            pass

    listener = Quiet(("127.0.0.1", 0), Handler)
    server = ChatServer(f"http://127.0.0.1:{listener.server_address[1]}/v1")
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        ended.set()
        listener.shutdown()
        listener.server_close()
        thread.join()


# What a good model would say: a reader by rule, for tests of everything around it


VERBS = frozenset("grate mash boil slice whisk fry chop pour stir peel knead season".split())


def shown_window(request: dict[str, Any]) -> tuple[str, list[list[str]]]:
    """The window's name and, line by line, its words as they are to be cited, of a request of the windowed actions."""
    name, *lines = request["messages"][-1]["content"].splitlines()
    return name.removeprefix("window "), [[shown.rstrip(".,!?") for shown in line.split()] for line in lines]


def read_window(request: dict[str, Any]) -> dict[str, Any]:
    """The right answer to it, where each line that begins with one of VERBS is an action and all else is talk."""
    name, lines = shown_window(request)
    items = []
    for tags in lines:
        words = [tag.rpartition(":")[0] for tag in tags]
        text = " ".join(words) if words[0] in VERBS else "none"
        items.append({"first": tags[0], "last": tags[-1], "action": text})
    return {"window": name, "actions": items}


def read_utterance(request: dict[str, Any]) -> dict[str, Any]:
    """The same for a request of the actions by utterances."""
    words = [word.strip(".,!?").lower() for word in request["messages"][-1]["content"].split()]
    tags = request["response_format"]["json_schema"]["schema"]["anyOf"][1]["properties"]["first"]["enum"]
    if words[0] not in VERBS:
        return {"action": "none"}
    return {"action": " ".join(words), "first": tags[0], "last": tags[-1]}


def swapping(
    answer: Callable[[dict[str, Any]], Any], *, patience_s: float = 0.3
) -> Callable[[dict[str, Any], int], Reply]:
    """A server's answers where any two requests that wait at the same time get each other's."""
    lock = threading.Lock()
    waiting: list[tuple[threading.Event, list[Any], Any]] = []

    def swapped(request: dict[str, Any], number: int) -> Reply:
        own = answer(request)
        with lock:
            if waiting:
                met, theirs, said = waiting.pop()
                theirs.append(own)
                met.set()
                return Reply(json.dumps(said))
            met, mine = threading.Event(), []
            waiting.append((met, mine, own))
        if not met.wait(patience_s):
            with lock:
                if not met.is_set():
                    waiting.remove((met, mine, own))
                    return Reply(json.dumps(own))
        return Reply(json.dumps(mine[0]))

    return swapped
