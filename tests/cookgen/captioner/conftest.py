"""What the tests of the captioner share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from cookgen.captioner.tiny import write_tiny
from tests.cookgen.captioner.scenes import scenes


@pytest.fixture(autouse=True)
def one_run_a_process() -> Iterator[None]:
    """accelerate remembers precision and device for the life of a process; each test is one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA-NeXT."""
    texts = [scene.caption for scene in scenes(50, seed=0)]
    return write_tiny(tmp_path_factory.mktemp("llava") / "tiny", texts)


@pytest.fixture(scope="session")
def tiny_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA-NeXT-Video."""
    return write_tiny(tmp_path_factory.mktemp("llava-video") / "tiny", video=True)
