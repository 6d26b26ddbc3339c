"""A vision-language model behind an OpenAI-compatible endpoint: `vllm serve`, a llama.cpp server, or any URL."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cookgen.errors import ModelServerError
from cookgen.perception.caption_models import GRID_PROMPT, PROMPT, check_frames, frame_grid, whole_sentences

# What a server returns that carries our request id (vLLM does, in the answer's id) must name the clip that we asked
# about. The marks tell our ids from those that other servers make up.
_ID_START, _ID_END = "cookgen:", ";"
_MAX_ANSWER_BYTES = 1 << 20  # a server that never stops talking must not fill the memory
_MAX_WAIT_S = 30.0


@dataclass(frozen=True)
class EndpointCaptioner:
    """Sends a clip's frames as JPEGs in one chat message; greedy (temperature 0, seed 0).

    url: the endpoint's base, ending in /v1. model: the name it serves. timeout_s: for one whole answer. num_tries: an
    unreachable, overloaded or failing server is asked again after 1, 2, 4 ... seconds. The API key, where one is
    needed, is read from OPENAI_API_KEY. grid: the frames go as one picture, as LLaVA-NeXT is tuned to have them.
    """

    url: str
    model: str
    max_tokens: int
    timeout_s: float
    num_tries: int
    first_wait_s: float = 1.0
    grid: bool = False

    @property
    def origin(self) -> str:
        return f"endpoint:{self.model}"

    def caption(self, frames_THWC: NDArray[np.uint8], *, key: str) -> str:
        """See Captioner; an answer cut off at max_tokens is cut back to its last whole sentence.

        Raises ModelServerError for a server that cannot be reached, keeps failing, refuses the request, answers with
        something that is no chat completion, or answers for another clip.
        """
        check_frames(frames_THWC)
        shown = [frame_grid(frames_THWC)] if self.grid else list(frames_THWC)
        pictures = [{"type": "image_url", "image_url": {"url": data_url(picture)}} for picture in shown]
        prompt = GRID_PROMPT + PROMPT if self.grid else PROMPT
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": prompt}]}],
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            "seed": 0,
        }
        wait_s, problem = self.first_wait_s, ""
        for tried in range(self.num_tries):
            if tried:
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, _MAX_WAIT_S)
            try:
                return self._ask(body, key)
            except _TryAgainError as error:
                problem = str(error)
        raise ModelServerError(
            f"{self.url}: no caption for {key} in {self.num_tries} tries; the last: {problem}. "
            "Check that the server runs and serves a vision-language model, then run again: what is done is kept"
        )

    def _ask(self, body: dict[str, Any], key: str) -> str:
        import httpx2
        import openai

        client = openai.OpenAI(
            base_url=self.url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            timeout=self.timeout_s,
            max_retries=0,  # the loop above also tries again after a broken body
        )
        until = time.monotonic() + self.timeout_s
        try:
            # Read by hand, because the client would wait for, and hold, whatever length of answer a server sends.
            with (
                client,
                client.chat.completions.with_streaming_response.create(
                    **body, extra_headers={"X-Request-Id": f"{_ID_START}{key}{_ID_END}"}
                ) as response,
            ):
                content = bytearray()
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > _MAX_ANSWER_BYTES:
                        raise _TryAgainError(f"an answer of more than {_MAX_ANSWER_BYTES} bytes")
                    if time.monotonic() > until:
                        raise _TryAgainError(f"the answer took more than {self.timeout_s:g} s")
                returned_id = response.headers.get("X-Request-Id", "")
        except openai.APIStatusError as error:
            problem = f"HTTP {error.status_code}: {_first_line(error)}"
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                raise _TryAgainError(problem) from error
            raise ModelServerError(
                f"{self.url}: refuses the request for {key} ({problem}); check --set captions.model={self.model}, "
                "OPENAI_API_KEY, and that the model takes pictures"
            ) from error
        except (openai.APIError, httpx2.HTTPError) as error:
            raise _TryAgainError(f"{type(error).__name__}: {_first_line(error)}") from error
        return _text(bytes(content), key, returned_id)


class _TryAgainError(Exception):
    """The server may do better next time."""


def _text(content: bytes, key: str, returned_id: str) -> str:
    """The caption in a chat completion's bytes, checked to be the answer for `key` wherever the server says whose."""
    try:
        answer = json.loads(content)
        choice = answer["choices"][0]
        text = choice["message"].get("content") or ""
        if not isinstance(text, str):
            raise TypeError(f"the content is a {type(text).__name__}")
        is_cut_off = choice.get("finish_reason") == "length"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _TryAgainError(f"an answer that is no chat completion ({type(error).__name__}: {error})") from error
    for value in (str(answer.get("id")), returned_id):
        _, is_ours, rest = value.partition(_ID_START)
        if is_ours and rest.partition(_ID_END)[0] != key:
            raise ModelServerError(f"asked for {key}, the server answered for {rest.partition(_ID_END)[0]!r}")
    return whole_sentences(text) if is_cut_off else text


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def data_url(frame_HWC: NDArray[np.uint8]) -> str:
    """The frame, uint8 [H, W, 3], as the JPEG that a chat message carries."""
    buffer = io.BytesIO()
    Image.fromarray(frame_HWC).save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
