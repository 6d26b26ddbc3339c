"""What configurations can be, and which contradict themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cookgen.config import apply_settings, config_digest
from cookgen.director.config import (
    DirectorConfig,
    HeadConfig,
    LanguageModelConfig,
    RegularizationConfig,
    SequenceConfig,
)
from cookgen.errors import UnknownNameError, UsageError

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (LanguageModelConfig, {"lora_rank": -1}),
        (LanguageModelConfig, {"lora_alpha": 0}),
        (LanguageModelConfig, {"lora_dropout": 1.0}),
        (LanguageModelConfig, {"lora_dropout": NAN}),
        (LanguageModelConfig, {"random": True}),
        (HeadConfig, {"alpha": -1}),
        (HeadConfig, {"alpha": 0, "beta": 0}),
        (HeadConfig, {"alpha": NAN}),
        (HeadConfig, {"beta": INFINITY}),
        (HeadConfig, {"components": 0}),
        (SequenceConfig, {"max_length": 15}),
        (SequenceConfig, {"random_length": True}),
        *((RegularizationConfig, {name: 1.0}) for name in ("history_mix", "dropout", "mask_rate", "reverse_rate")),
        (RegularizationConfig, {"reference_rate": NAN}),
        (RegularizationConfig, {"mask_rate": -0.1}),
        (RegularizationConfig, {"num_references": 0}),
        (DirectorConfig, {"text_weight": -1}),
        (DirectorConfig, {"text_weight": NAN}),
        (
            DirectorConfig,
            {
                "sequence": SequenceConfig(task="action-caption"),
                "regularization": RegularizationConfig(history_mix=0.5),
            },
        ),
        (
            DirectorConfig,
            {
                "head": HeadConfig(readout="next_token"),
                "regularization": RegularizationConfig(history_mix=0.5),
            },
        ),
        (
            DirectorConfig,
            {"head": HeadConfig(readout="next_token"), "sequence": SequenceConfig(supervision="last")},
        ),
    ],
)
def test_what_cannot_be_names_the_field(kind: Any, values: dict[str, Any]) -> None:
    name = next(iter(values))
    with pytest.raises(ValueError, match=name if isinstance(values[name], int | float) else "history_mix|next_token"):
        kind(**values)


def test_the_papers_rows_can_be_configured() -> None:
    for alpha, beta in ((0, 1), (1, 0), (1, 1)):  # Table 5
        HeadConfig(alpha=alpha, beta=beta)
    fields = {task: SequenceConfig(task=task).fields for task in ("action-visual", "caption-visual", "action-caption")}
    assert fields == {  # Table 6, and the language-centric director
        "action-visual": ("action",),
        "caption-visual": ("caption",),
        "action-caption": ("action", "caption"),
    }
    assert SequenceConfig().fields == ("action", "caption")
    assert not SequenceConfig(task="action-caption").has_visual
    assert all(SequenceConfig(task=task).has_visual for task in ("action-visual", "caption-visual"))
    DirectorConfig(head=HeadConfig(kind="mixture", readout="next_token"))  # MovieDreamer


def test_settings_reach_every_field_and_contradictions_are_the_users() -> None:
    config = apply_settings(DirectorConfig(), ["sequence.supervision=last", "sequence.random_length=true"])
    assert config.sequence.random_length
    with pytest.raises(UsageError, match="random_length"):
        apply_settings(DirectorConfig(), ["sequence.random_length=true"])
    with pytest.raises(UnknownNameError, match=r"head\.alpha"):
        apply_settings(DirectorConfig(), ["head.alpah=1"])


@pytest.mark.parametrize(
    ("message", "settings"),
    [
        ("history_mix.*action-caption", ["sequence.task=action-caption", "regularization.history_mix=0.1"]),
        ("reference_rate.*action-caption", ["sequence.task=action-caption", "regularization.reference_rate=0.1"]),
        ("text_weight=0.*action-caption", ["sequence.task=action-caption", "text_weight=0"]),
        ("history_mix.*supervision", ["sequence.supervision=last", "regularization.history_mix=0.1"]),
    ],
)
def test_switches_that_would_do_nothing_are_refused(message: str, settings: list[str]) -> None:
    with pytest.raises(UsageError, match=message):
        apply_settings(DirectorConfig(), settings)


def test_where_attention_is_computed_does_not_change_what_comes_out() -> None:
    plain = DirectorConfig()
    flex = replace(plain, language_model=LanguageModelConfig(attention="flex_attention"))
    assert config_digest(flex) == config_digest(plain)
    assert config_digest(replace(plain, text_weight=2)) != config_digest(plain)


def test_validation_draws_nothing() -> None:
    config = DirectorConfig(
        sequence=SequenceConfig(supervision="last", random_length=True, max_length=99),
        regularization=RegularizationConfig(0.0, 0.1, 0.1, 0.1, 0.1),
    ).without_randomness()
    assert config == DirectorConfig(sequence=SequenceConfig(supervision="last", max_length=99))
