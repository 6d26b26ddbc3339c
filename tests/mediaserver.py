"""A real HTTP server that hands out videos just as a test tells it to, faults included."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Reply:
    """What the server does with one request; by default it gives `body`, or the part of it that a Range asks for."""

    body: bytes = b""
    status: int = 200
    kind: str = "video/mp4"
    headers: tuple[tuple[str, str], ...] = ()  # more of them: Retry-After, Location, ETag
    cut: int | None = None  # close the connection after so many bytes of the body
    reset: bool = False  # ... and the rude way, by a TCP reset; with cut=None instead of any answer
    pause_s: float = 0.0  # between blocks of the body
    block_bytes: int = 1 << 16
    ranges: bool = True
    has_length: bool = True


@dataclass(frozen=True)
class Asked:
    """A request as it came: the path with its query, the first byte wanted, and headers by lower-case name."""

    path: str
    first_byte: int | None
    headers: dict[str, str]


@dataclass
class MediaServer:
    url: str
    asked: list[Asked] = field(default_factory=list)

    def paths(self) -> list[str]:
        """The paths that were asked for, in order."""
        return [asked.path for asked in self.asked]


@contextmanager
def media_server(answer: Callable[[str, int], Reply]) -> Iterator[MediaServer]:
    """Serves on 127.0.0.1; `answer(path, number)` says what to do with the request of that number for that path."""
    ended = threading.Event()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first = int(wanted[1]) if wanted else None
            with lock:
                number = server.paths().count(self.path)
                server.asked.append(Asked(self.path, first, {k.lower(): v for k, v in self.headers.items()}))
            reply = answer(self.path, number)
            if reply.reset and reply.cut is None:
                return self._reset()
            body, status, headers = reply.body, reply.status, list(reply.headers)
            if first is not None and reply.ranges and status == 200:
                last = min(int(wanted[2]), len(body) - 1) if wanted and wanted[2] else len(body) - 1
                status = 206 if first < len(body) else 416
                headers += [
                    ("Content-Range", f"bytes {first}-{last}/{len(body)}" if status == 206 else f"bytes */{len(body)}")
                ]
                body = body[first : last + 1] if status == 206 else b""
            self.send_response(status)
            self.send_header("Content-Type", reply.kind)
            if reply.has_length:
                self.send_header("Content-Length", str(len(body)))
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            for at in range(0, len(body[: reply.cut]), reply.block_bytes):
                self.wfile.write(body[: reply.cut][at : at + reply.block_bytes])
                if reply.pause_s and ended.wait(reply.pause_s):
                    return None
            return self._reset() if reply.reset else None

        def _reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

        def log_message(self, *args: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *args: object) -> None:  # a client that goes away is part of the tests
            pass

    listener = Quiet(("127.0.0.1", 0), Handler)
    server = MediaServer(f"http://127.0.0.1:{listener.server_address[1]}")
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        ended.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
