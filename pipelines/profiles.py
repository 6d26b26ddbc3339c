"""Profiles: functions that return a full, frozen configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pipelines.bucket import StoreConfig
from pipelines.progress import FailuresConfig
from pipelines.serve import ServerConfig
from pipelines.sources.demo import DemoConfig
from pipelines.sources.howto100m import HowTo100MConfig
from pipelines.sources.places import FetchConfig
from pipelines.stages.actions import ActionsConfig
from pipelines.stages.captions import CaptionsConfig
from pipelines.stages.checks import ChecksConfig
from pipelines.stages.clips import ClipsConfig
from pipelines.stages.evidence import EvidenceConfig
from pipelines.stages.matches import MatchesConfig
from pipelines.stages.shards import ShardsConfig
from pipelines.stages.speech import SpeechConfig
from pipelines.stages.videos import VideosConfig


@dataclass(frozen=True)
class Config:
    """All that can be set, one field a stage under the stage's own name. `--set clips.max_s=20` sets one value."""

    source: str  # set by --source alone
    demo: DemoConfig = DemoConfig()
    howto100m: HowTo100MConfig = HowTo100MConfig()
    fetch: FetchConfig = FetchConfig()
    videos: VideosConfig = VideosConfig()
    clips: ClipsConfig = ClipsConfig()
    speech: SpeechConfig = SpeechConfig()
    actions: ActionsConfig = ActionsConfig()
    captions: CaptionsConfig = CaptionsConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    matches: MatchesConfig = MatchesConfig()
    checks: ChecksConfig = ChecksConfig()
    shards: ShardsConfig = ShardsConfig()
    server: ServerConfig = ServerConfig()
    store: StoreConfig = StoreConfig()
    failures: FailuresConfig = FailuresConfig()


def embedded(source: str) -> Config:
    """Runs anywhere, on the CPU, with models that install as packages. The stages' defaults are this profile's."""
    config = Config(source=source)
    if source == "youcook2":  # people have marked the steps: they are the clips
        config = replace(config, clips=replace(config.clips, policy="segments"))
    return config


PROFILES: Mapping[str, Callable[[str], Config]] = {"embedded": embedded}
