"""Each profile names its models so that they always mean the same bytes, and other models have another digest."""

from __future__ import annotations

import re

import pytest

from cookgen.config import config_digest
from cookgen.modelstore import PINNED
from pipelines.flow import stages_of
from pipelines.profiles import PROFILES
from pipelines.request import SOURCES


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("source", SOURCES)
def test_every_model_is_one_revision(profile: str, source: str) -> None:
    config = PROFILES[profile](source)
    assert config.source == source
    named = [config.speech.model, config.speech.whisperx.align_model, config.actions.model, config.captions.model]
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name) or name in PINNED for name in named if name)
    assert len({stage.model(stage.config) for stage in stages_of(config)}) > 3  # asks no network


def test_profiles_are_different_where_it_matters() -> None:
    digests = {name: config_digest(profile("folder")) for name, profile in PROFILES.items()}
    assert digests["embedded"] != digests["gpu"]
    assert digests["gpu"] == digests["cluster"]  # the same models asked the same: more of them at once
