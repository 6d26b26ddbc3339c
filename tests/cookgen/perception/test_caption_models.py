"""The captioners: real classifier, a real HTTP server, real (tiny, random) LLaVA-NeXT checkpoints."""

from __future__ import annotations

import base64
import io
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cookgen.captioner.tiny import write_tiny
from cookgen.errors import ModelError, ModelServerError, ShapeError
from cookgen.perception.caption_models import GRID_PROMPT, PROMPT, frame_grid, whole_sentences
from cookgen.perception.caption_models.endpoint import EndpointCaptioner
from cookgen.perception.caption_models.llava_next import LlavaNextCaptioner, load_network
from cookgen.perception.caption_models.tags import TagsCaptioner


def plain(*colours: tuple[int, int, int], side: int = 64) -> np.ndarray:
    return np.stack([np.full((side, side, 3), colour, np.uint8) for colour in colours])


# ---------------------------------------------------------------------------------------------------------------- tags


@pytest.fixture(scope="module")
def tags() -> TagsCaptioner:
    return TagsCaptioner.load()


def photo(path: Path, side: int = 448) -> np.ndarray:
    with Image.open(path) as image:
        width, height = image.size
        short = min(width, height)
        box = ((width - short) / 2, (height - short) / 2, (width + short) / 2, (height + short) / 2)
        return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC, box=box))


def test_tags_name_what_is_in_a_photograph(tags: TagsCaptioner, data: Path) -> None:
    frame = photo(data / "images" / "inversecooking_1.jpg")
    text = tags.caption(np.stack([frame] * 4), key="a-000")
    assert text.startswith("The image classifier says carbonara (")
    assert "nothing moves" in text


def test_tags_say_where_something_moves_and_how_sure_the_classifier_is(tags: TagsCaptioner) -> None:
    frames = plain(*[(120, 90, 60)] * 8, side=160)
    for number, frame in enumerate(frames):
        at = 10 + 4 * number
        frame[at : at + 30, 10:40] = (250, 250, 250)
    text = tags.caption(frames, key="a-000")
    assert "steady camera" in text and "motion" in text and "left" in text
    assert "brown" in text and "warm" in text.lower()
    blank = tags.caption(plain((128, 128, 128), (128, 128, 128)), key="a-000")
    probability = tags.labeller.probabilities(plain((128, 128, 128)))[0].max()
    assert ("unsure" in blank) == (probability < 0.25)


def test_tags_follow_the_pixels_and_nothing_else(tags: TagsCaptioner) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 90, 70, 3), np.uint8)
    text = tags.caption(frames, key="a-000")
    assert text == tags.caption(frames.copy(), key="b-001") == TagsCaptioner.load().caption(frames, key="c")
    assert text != tags.caption(plain((200, 30, 30)), key="a-000")
    assert "single frame" in tags.caption(frames[:1], key="a-000")
    assert text == " ".join(text.split()) and text.endswith(".") and len(text) < 400


def test_frames_of_another_shape_are_refused(tags: TagsCaptioner) -> None:
    for bad in (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32)):
        with pytest.raises(ShapeError, match="uint8"):
            tags.caption(bad, key="a-000")


# ------------------------------------------------------------------------------------------------------------ endpoint

Answer = tuple[int, dict[str, str], bytes]


class Server:
    """A vision endpoint: decodes the pictures it gets and says their mean colours, unless told to misbehave."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.misbehave: list[Callable[[BaseHTTPRequestHandler], Answer | None]] = []
        self.text: Callable[[list[np.ndarray]], str | None] = self.colours
        self.finish_reason = "stop"
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.requests.append({"path": self.path, "headers": self.headers, "body": body})
                if server.misbehave:
                    answer = server.misbehave.pop(0)(self)
                else:
                    answer = server.answer(body, self.headers["X-Request-Id"])
                if answer is not None:
                    status, headers, content = answer
                    self.send_response(status)
                    for name, value in {"Content-Type": "application/json", **headers}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)

            def log_message(self, *args: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:  # a client that gave up
                pass

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @staticmethod
    def pictures(body: dict[str, Any]) -> list[np.ndarray]:
        urls = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
        assert all(url.startswith("data:image/jpeg;base64,") for url in urls)
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]

    @staticmethod
    def colours(pictures: list[np.ndarray]) -> str:
        return "A pan. " + " then ".join(str([round(float(c)) for c in p.mean((0, 1))]) for p in pictures)

    def answer(self, body: dict[str, Any], request_id: str) -> Answer:
        message = {"role": "assistant", "content": self.text(self.pictures(body))}
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason}
        return 200, {}, json.dumps({"id": f"chatcmpl-{request_id}", "choices": [choice]}).encode()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def endpoint(server: Server, **changes: Any) -> EndpointCaptioner:
    values: dict[str, Any] = {"max_tokens": 64, "timeout_s": 5.0, "num_tries": 3, "first_wait_s": 0.01} | changes
    return EndpointCaptioner(url=server.url, model="tiny-vlm", **values)


def test_the_server_sees_the_frames_of_this_clip_in_their_order(server: Server) -> None:
    captioner = pickle.loads(pickle.dumps(endpoint(server)))
    frames = plain((200, 30, 30), (30, 200, 30), (30, 30, 200))
    text = captioner.caption(frames, key="demo-a-003")
    seen = [json.loads(part) for part in text.removeprefix("A pan. ").split(" then ")]
    assert np.abs(np.array(seen) - frames.mean((1, 2))).max() <= 2
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert "demo-a-003" in request["headers"]["X-Request-Id"]
    body = request["body"]
    assert body["messages"][0]["content"][-1] == {"type": "text", "text": PROMPT}
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == ("tiny-vlm", 0, 0, 64)
    assert captioner.origin == "endpoint:tiny-vlm"


def test_a_server_of_llava_next_gets_one_picture_with_all_frames(server: Server) -> None:
    frames = plain((200, 30, 30), (30, 200, 30), (30, 30, 200))
    endpoint(server, grid=True).caption(frames, key="demo-a-003")
    (request,) = server.requests
    (picture,) = server.pictures(request["body"])
    assert np.abs(picture.astype(int) - frame_grid(frames)).mean() <= 2
    text = {"type": "text", "text": GRID_PROMPT + PROMPT}
    assert request["body"]["messages"][0]["content"][-1] == text


def status(code: int, content: bytes = b'{"error": {"message": "no such model"}}') -> Callable[..., Answer]:
    return lambda handler: (code, {}, content)


def hang(handler: BaseHTTPRequestHandler) -> None:
    time.sleep(1.5)


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Never silent for long, never done."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.close()


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')


def flood(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(64):
        handler.wfile.write(b" " * 65536)


MISHAPS = {
    "500": status(500),
    "503 with HTML": status(503, b"<html>starting</html>"),
    "429": status(429),
    "hang": hang,
    "drip": drip,
    "hang up": hang_up,
    "cut short": cut_short,
    "flood": flood,
    "no JSON": status(200, b"<html>login</html>"),
    "no choices": status(200, b'{"choices": []}'),
    "a list": status(200, b"[]"),
    "not UTF-8": status(200, b"\xff\xfe\xfa"),
    "text that is no text": status(200, b'{"choices": [{"message": {"content": 7}}]}'),
    "deeply nested": status(200, b"[" * 100_000),
}


@pytest.mark.parametrize("mishap", MISHAPS.values(), ids=MISHAPS)
def test_a_mishap_is_tried_again(server: Server, mishap: Callable[..., Answer | None]) -> None:
    server.misbehave = [mishap]
    assert endpoint(server, timeout_s=0.5).caption(plain((9, 9, 9)), key="a-000").startswith("A pan. [9, 9, 9]")
    assert len(server.requests) == 2


def test_a_server_that_keeps_failing_is_named(server: Server) -> None:
    server.misbehave = [status(500)] * 9
    with pytest.raises(ModelServerError, match=r"127\.0\.0\.1.*a-000.*3 tries.*HTTP 500.*run again"):
        endpoint(server).caption(plain((9, 9, 9)), key="a-000")
    assert len(server.requests) == 3


def test_a_server_that_is_not_there_is_named() -> None:
    captioner = EndpointCaptioner("http://127.0.0.1:9/v1", "m", 8, timeout_s=1, num_tries=2, first_wait_s=0.01)
    with pytest.raises(ModelServerError, match="2 tries"):
        captioner.caption(plain((9, 9, 9)), key="a-000")


@pytest.mark.parametrize("code", [400, 401, 404])
def test_a_refusal_is_not_tried_again(server: Server, code: int) -> None:
    server.misbehave = [status(code)]
    with pytest.raises(ModelServerError, match=f"HTTP {code}.*no such model.*captions.model=tiny-vlm"):
        endpoint(server).caption(plain((9, 9, 9)), key="a-000")
    assert len(server.requests) == 1


@pytest.mark.parametrize("where", ["body", "header"])
def test_the_answer_for_another_clip_is_refused(server: Server, where: str) -> None:
    swapped = "cookgen:demo-a-004;"
    choices = [{"message": {"content": "A pot."}}]
    body = {"id": f"chatcmpl-{swapped}" if where == "body" else "x", "choices": choices}
    headers = {"X-Request-Id": swapped} if where == "header" else {}
    server.misbehave = [lambda handler: (200, headers, json.dumps(body).encode())]
    with pytest.raises(ModelServerError, match=r"asked for demo-a-003.*demo-a-004"):
        endpoint(server).caption(plain((9, 9, 9)), key="demo-a-003")


def test_ids_that_servers_make_up_are_nobodys(server: Server) -> None:
    body = json.dumps({"id": "chatcmpl-81f2", "choices": [{"message": {"content": "A pot."}}]}).encode()
    server.misbehave = [lambda handler: (200, {"X-Request-Id": "req_99"}, body)]
    assert endpoint(server).caption(plain((9, 9, 9)), key="a-000") == "A pot."


@pytest.mark.parametrize("said", ["", None])
def test_saying_nothing_is_no_error(server: Server, said: str | None) -> None:
    server.text = lambda pictures: said
    assert endpoint(server).caption(plain((9, 9, 9)), key="a-000") == ""


def test_an_answer_cut_off_by_its_length_ends_with_a_sentence(server: Server) -> None:
    server.text = lambda pictures: "A hand stirs 1.5 l of soup. The spoon is made of wo"
    assert endpoint(server).caption(plain((9, 9, 9)), key="a-000").endswith("made of wo")
    server.finish_reason = "length"
    assert endpoint(server).caption(plain((9, 9, 9)), key="a-000") == "A hand stirs 1.5 l of soup."


@given(st.text(alphabet="ab .!?\"'\n", max_size=60), st.integers(1, 60))
def test_whole_sentences_is_a_beginning_of_the_text(text: str, most: int) -> None:
    part = whole_sentences(text, most)
    assert text.startswith(part) and len(part) <= most
    assert part or not text.strip()


def test_whole_sentences() -> None:
    assert whole_sentences('He says "stir." Then he') == 'He says "stir."'
    assert whole_sentences("one two three", 8) == "one two"
    assert whole_sentences("One. Two three.", 8) == "One."
    assert whole_sentences("no end at all") == "no end at all"


# ---------------------------------------------------------------------------------------------------------- llava_next


def save_checkpoint(folder: Path, *, video: bool, template: bool = True) -> Path:
    """A tiny LLaVA-NeXT whose every frame shows in what it says."""
    import torch

    network = load_network(str(write_tiny(folder, video=video)), dtype="auto")
    with torch.no_grad():  # random weights of the usual size would drown the pictures in the long prompt
        for weight in network.parameters():
            weight.normal_(0, 0.3)
    network.generation_config.do_sample = True  # what a checkpoint wishes must not matter
    network.generation_config.temperature = 2.0
    network.save_pretrained(folder)
    if not template:
        (folder / "chat_template.jinja").unlink()
    return folder


@pytest.fixture(scope="module", params=["picture", "video"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("llava") / f"tiny-{request.param}", video=request.param == "video")


def test_llava_next_writes_a_text_that_depends_on_the_frames(checkpoint: Path) -> None:
    captioner = LlavaNextCaptioner.load(str(checkpoint), max_tokens=12)
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (4, 56, 56, 3), np.uint8), plain(*[(250, 20, 20)] * 4), plain(*[(20, 20, 20)] * 4)]
    texts = [captioner.caption(clip, key="a-000") for clip in clips]
    assert all(isinstance(text, str) and text for text in texts)
    assert len(set(texts)) > 1
    assert captioner.caption(clips[0], key="b-001") == texts[0]
    again = LlavaNextCaptioner.load(str(checkpoint), max_tokens=12)
    assert [again.caption(clip, key="a-000") for clip in clips] == texts
    assert captioner.origin == f"llava_next:{checkpoint.name}"
    assert LlavaNextCaptioner.identity(str(checkpoint)).startswith(f"{checkpoint.name}@")


def test_llava_next_sees_the_order_of_the_frames(checkpoint: Path) -> None:
    captioner = LlavaNextCaptioner.load(str(checkpoint), max_tokens=24)
    frames = np.random.default_rng(1).integers(0, 256, (4, 28, 28, 3), np.uint8)
    frames[2:] //= 8
    assert captioner.caption(frames, key="a-000") != captioner.caption(frames[::-1].copy(), key="a-000")


def test_llava_next_without_a_chat_template(tmp_path: Path) -> None:
    captioner = LlavaNextCaptioner.load(str(save_checkpoint(tmp_path / "m", video=False, template=False)), max_tokens=4)
    assert captioner.caption(plain((1, 2, 3)), key="a-000")


def test_a_checkpoint_of_another_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"'llama'.*llava_next"):
        LlavaNextCaptioner.load(str(tmp_path), max_tokens=4)
    (tmp_path / "config.json").write_text('{"model_type": "llava_next"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        LlavaNextCaptioner.load(str(tmp_path), max_tokens=4)


def test_the_grid_is_read_row_by_row() -> None:
    frames = plain((1, 1, 1), (2, 2, 2), (3, 3, 3), side=2)
    assert frame_grid(frames)[..., 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 0, 0], [3, 3, 0, 0]]
    assert frame_grid(frames[:1]).shape == (2, 2, 3)
