"""Train, export, serve, caption: the loop in full, and the proof that what comes out of it has looked at the pictures.

A random LLaVA-NeXT learns rendered scenes; of scenes with other things it then names the right ones.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import pytest

from cookgen.captioner.tiny import write_tiny
from cookgen.perception.caption_models import Captioner
from cookgen.perception.caption_models.llava_next import LlavaNextCaptioner
from cookgen.records import Caption, Clip
from cookgen.train import main
from pipelines.stage import Places
from pipelines.stages.captions import CaptionsConfig, caption_clips, load
from tests.conftest import ROOT
from tests.cookgen.captioner.scenes import Scene, names_right, scenes, write_set

pytestmark = pytest.mark.full

NUM_HELD_OUT = 60
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
CHANCE = 0.2  # of naming two of six kinds right it is 1/15


@pytest.fixture(scope="module")
def held_out() -> list[Scene]:
    return scenes(NUM_HELD_OUT, seed=2, held_out=True)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [scene.caption for scene in scenes(100, seed=1)]
    return write_tiny(tmp_path_factory.mktemp("llava") / "tiny", texts)


@pytest.fixture(scope="module")
def trained(untrained: Path) -> Path:
    """The exported captioner, made by the commands that a user has."""
    folder = untrained.parent
    learned = write_set(folder / "train.jsonl", scenes(4000, seed=1))
    measured = write_set(folder / "valid.jsonl", scenes(20, seed=3))  # of things that are learned
    options = f"""captioner --model.name {untrained} --captions {learned} --valid-captions {measured}
        --out {folder / "run"} --model.lora-rank 0 --model.train-vision --model.sample-tokens 24
        --training.steps 600 --training.batch-size 16 --training.accumulation 1 --training.learning-rate 2e-3
        --training.warmup-steps 20 --training.weight-decay 0.01 --training.precision fp32
        --training.no-activation-checkpointing --training.num-workers 1 --training.validate-every 100
        --training.checkpoint-every 100 --training.trackers"""
    assert main(options.split()) == 0
    assert main(["export-captioner", str(folder / "run"), "--to", str(folder / "trained")]) == 0
    return folder / "trained"


def share_right(texts: Sequence[str], shown: Sequence[Scene]) -> float:
    return sum(names_right(text, scene) for text, scene in zip(texts, shown, strict=True)) / len(shown)


def captions(captioner: Captioner, shown: Sequence[Scene]) -> list[str]:
    return [captioner.caption(scene.picture()[None], key=f"scene-{n:03d}").strip() for n, scene in enumerate(shown)]


@pytest.mark.timeout(3600)
def test_it_names_what_is_there(trained: Path, untrained: Path, held_out: list[Scene]) -> None:
    said = captions(LlavaNextCaptioner.load(str(trained), max_tokens=24), held_out)
    others = held_out[7:] + held_out[:7]  # the same words and pictures, not those that belong together
    before = captions(LlavaNextCaptioner.load(str(untrained), max_tokens=24), held_out)
    right, shuffled, none = share_right(said, held_out), share_right(said, others), share_right(before, held_out)
    exact = sum(text == scene.caption for text, scene in zip(said, held_out, strict=True)) / len(held_out)
    print(f"right {right:.1%}, word for word {exact:.1%}; shuffled {shuffled:.1%}, untrained {none:.1%}")
    assert right >= 0.9
    assert shuffled <= CHANCE and none <= CHANCE


def stored_clip(places: Places, index: int, scene: Scene) -> Clip:
    """A clip of a second that shows the scene, in the media store."""
    path = places.scratch / "clip.mp4"
    picture = scene.picture()
    with av.open(path, "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(10), options={"bf": "0", "crf": "1"})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv444p"
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    target = places.medium(sha256, ".mp4")
    target.parent.mkdir(parents=True, exist_ok=True)
    path.replace(target)
    return Clip(
        narrative="demo-a",
        clip_index=index,
        start_s=float(index),
        end_s=index + 1.0,
        first_pts_s=float(index),
        last_pts_s=index + 0.9,
        num_frames=10,
        fps=10,
        width=picture.shape[1],
        height=picture.shape[0],
        has_audio=False,
        sha256=sha256,
        num_bytes=target.stat().st_size,
        keyframe_pts_s=index + 0.5,
        keyframe_sha256=sha256,
        keyframe_num_bytes=1,
    )


def stage_captions(config: CaptionsConfig, shown: Sequence[Scene], folder: Path) -> list[str]:
    """What the captions stage writes of clips of these scenes."""
    places = Places(videos=folder, media=folder / "media", scratch=folder)
    clips = tuple(stored_clip(places, index, scene) for index, scene in enumerate(shown))
    rows = list(caption_clips(clips, config=config, tool=load(config, places)))
    assert all(isinstance(row, Caption) for row in rows) and [row.clip_index for row in rows] == list(range(len(shown)))
    return [row.text for row in rows if isinstance(row, Caption)]


@pytest.mark.timeout(3600)
def test_the_captions_stage_runs_what_was_trained(trained: Path, held_out: list[Scene], tmp_path: Path) -> None:
    config = CaptionsConfig(kind="llava_next", model=str(trained), num_frames=1, max_tokens=24)
    assert share_right(stage_captions(config, held_out, tmp_path), held_out) >= 0.9


OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
VLLM_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@contextmanager
def served(command: Sequence[str], log: Path) -> Iterator[str]:
    """The address of a real OpenAI-compatible server that the command starts; without a network."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | OFFLINE | VLLM_ON_CPU | {"HF_HOME": str(log.parent / "hf")}
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            until = time.monotonic() + 600
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                        break
                except OSError:
                    assert process.poll() is None and time.monotonic() < until, log.read_text()
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with suppress(ProcessLookupError):  # it never came up
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def check_server(command: Sequence[str], model: Path, shown: Sequence[Scene], folder: Path) -> None:
    """The captions stage gets from a server what it gets from the same model in its own process."""
    log = folder / "server.log"
    with served(command, log) as url:
        config = CaptionsConfig(
            kind="endpoint", model=str(model), endpoint=url, grid=True, num_frames=1, max_tokens=24, num_tries=1
        )
        said = stage_captions(config, shown, folder)
    here = captions(LlavaNextCaptioner.load(str(model), max_tokens=24), shown)
    same = sum(text == other for text, other in zip(said, here, strict=True)) / len(shown)
    print(f"right {share_right(said, shown):.1%}, word for word as in this process {same:.1%}")
    assert share_right(said, shown) >= 0.9 and same >= 0.9, (said, here, log.read_text()[-3000:])  # it gets JPEGs


@pytest.mark.timeout(3600)
def test_vllm_serves_what_was_trained(trained: Path, held_out: list[Scene], tmp_path: Path) -> None:
    if not VLLM_PYTHON.exists():
        pytest.skip(f"no {VLLM_PYTHON}: make vllm-env makes it")
    start = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(trained), "--dtype", "float32"]
    start += ["--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "2"]
    check_server([str(VLLM_PYTHON), *start], trained, held_out[:20], tmp_path)
