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


@contextmanager
def chat_server(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[ChatServer]:
    """Serves on 127.0.0.1; `answer(request, number)` says what to do with the request of that number, from 0."""
    ended = threading.Event()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.requests)
                server.requests.append(request)
            self._do(answer(request, number))

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
