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
from pipelines.stages.speech import SpeechConfig, WhisperXConfig
from pipelines.stages.videos import VideosConfig

_WHISPER = "Systran/faster-whisper-large-v3@edaa852ec7e145841d8ffdb056a99866b5f0a478"
_WAV2VEC2 = "facebook/wav2vec2-base-960h@22aad52d435eb6dbaf354bdad9b0da84ce7d6156"
_QWEN = "Qwen/Qwen2.5-7B-Instruct@a09a35458c702b33eeacc393d103063234e8bc28"
_LLAVA_NEXT = "llava-hf/llava-v1.6-mistral-7b-hf@52320fb52229c8d942b1dcb8b63b3dc8087bc83b"


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


def gpu(source: str) -> Config:
    """One machine with an NVIDIA GPU of 80 GB, which WhisperX, vLLM and LLaVA-NeXT share. Needs `make whisperx-env` and
    `make vllm-env`, and fetches about 35 GB of models from the hub once.

    Speech as WhisperX hears it by default, actions by HowToCaption's blocks of about 200 words.
    """
    config = embedded(source)
    return replace(
        config,
        speech=replace(
            config.speech,
            kind="whisperx",
            model=_WHISPER,
            device="cuda",
            compute_type="float16",
            whisperx=WhisperXConfig(batch_size=16, align_model=_WAV2VEC2),
        ),
        actions=replace(config.actions, model=_QWEN, window_words=200, requests_in_flight=16),
        server=replace(
            config.server,
            kind="vllm",
            context_tokens=8192,
            arguments=("--gpu-memory-utilization", "0.4"),  # the rest is for the two others
        ),
        captions=replace(config.captions, kind="llava_next", model=_LLAVA_NEXT, device="cuda"),
    )


def cluster(source: str) -> Config:
    """A Ray cluster (`--ray`): as `gpu`, with four servers on four GPUs of the driver's node. What no profile can know
    is where results are shared: `--set store.url=s3://…`."""
    config = gpu(source)
    return replace(
        config,
        actions=replace(config.actions, requests_in_flight=64),
        server=replace(config.server, replicas=4),
    )


PROFILES: Mapping[str, Callable[[str], Config]] = {"embedded": embedded, "gpu": gpu, "cluster": cluster}
