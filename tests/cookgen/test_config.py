"""Configuration: dotted names, coercion by type, a digest without machinery."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import pytest

from cookgen.config import apply_settings, config_digest, known_names, machinery, to_values
from cookgen.errors import UnknownNameError, UsageError


@dataclass(frozen=True)
class Clips:
    min_s: float = 2.0
    max_s: float = 30.0
    policy: Literal["shots", "segments"] = "shots"
    fps: float | None = None
    keep_audio: bool = True
    sizes: tuple[int, ...] = (448, 448)
    timeout_s: float = machinery(60.0)

    def __post_init__(self) -> None:
        if self.min_s > self.max_s:
            raise ValueError(f"min_s {self.min_s} is above max_s {self.max_s}")


@dataclass(frozen=True)
class Whole:
    clips: Clips = Clips()
    name: str = "demo"


@pytest.mark.parametrize(
    ("setting", "field", "value"),
    [
        ("clips.min_s=3", "min_s", 3.0),
        ("clips.policy=segments", "policy", "segments"),
        ("clips.fps=25", "fps", 25.0),
        ("clips.fps=none", "fps", None),
        ("clips.keep_audio=false", "keep_audio", False),
        ("clips.sizes=256,320", "sizes", (256, 320)),
    ],
)
def test_a_value_takes_the_type_of_its_field(setting: str, field: str, value: object) -> None:
    assert getattr(apply_settings(Whole(), [setting]).clips, field) == value


def test_a_string_may_hold_an_equals_sign() -> None:
    assert apply_settings(Whole(), ["name=a=b"]).name == "a=b"


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"clips\.polcy.*did you mean 'clips\.policy'"):
        apply_settings(Whole(), ["clips.polcy=shots"])


@pytest.mark.parametrize(
    "setting", ["clips.min_s=wide", "clips.policy=scenes", "clips.min_s", "clips.min_s=40", "clips.keep_audio=perhaps"]
)
def test_a_wrong_value_names_the_setting(setting: str) -> None:
    with pytest.raises(UsageError, match="--set " + setting.split("=")[0]):
        apply_settings(Whole(), [setting])


def test_a_group_is_no_value() -> None:
    with pytest.raises(UnknownNameError):
        apply_settings(Whole(), ["clips=3"])


def test_the_digest_sees_values_and_not_machinery() -> None:
    plain = Whole()
    assert config_digest(plain) == config_digest(replace(plain, clips=Clips(timeout_s=5.0)))
    assert config_digest(plain) != config_digest(replace(plain, clips=Clips(max_s=20.0)))
    assert "timeout_s" in to_values(plain)["clips"]
    assert set(known_names(plain)) >= {"clips.min_s", "clips.timeout_s", "name"}
