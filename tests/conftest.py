"""What all tests share: where the real videos are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real videos, odd files and real annotations."""
    folder = os.environ.get("COOKGEN_TEST_DATA")
    if not folder:
        pytest.skip("COOKGEN_TEST_DATA is not set: it names the folder of real test videos")
    return Path(folder).resolve()
