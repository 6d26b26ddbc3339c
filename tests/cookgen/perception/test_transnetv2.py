"""TransNetV2: the package's own answers, from any flow of frames, and nothing done to the rest of the process."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cookgen import modelstore
from cookgen.errors import ModelError
from cookgen.modelstore import PINNED, PinnedModel
from cookgen.perception.transnetv2 import TransNet


@pytest.fixture(scope="module")
def network() -> TransNet:
    return TransNet.load()


def frames(count: int) -> np.ndarray:
    """uint8 RGB [count, 27, 48, 3]: another picture every 37 frames, in slow motion between."""
    rng = np.random.default_rng(3)
    pictures = rng.integers(0, 255, (count // 37 + 1, 9, 16, 3), dtype=np.uint8).repeat(3, axis=1).repeat(3, axis=2)
    return np.stack([np.roll(pictures[n // 37], n // 9, axis=1) for n in range(count)])


@pytest.mark.parametrize("count", [1, 50, 101])
def test_it_says_what_the_package_says(network: TransNet, count: int) -> None:
    import torch

    rgb = frames(count)
    with torch.inference_mode():
        theirs = network.network.predict_frames(torch.from_numpy(rgb), quiet=True)[0].numpy()
    ours = network.probabilities(frame[..., ::-1] for frame in rgb)
    assert len(ours) == count
    assert np.abs(np.array(ours) - theirs).max() < 1e-6
    if count > 40:
        assert ours[36] > 0.5 > max(ours[:30])  # not a comparison of two constants


def test_no_frames_have_no_probabilities(network: TransNet) -> None:
    assert network.probabilities([]) == []


def test_the_same_frames_give_the_same_bits(network: TransNet) -> None:
    bgr = frames(10)[..., ::-1]
    assert network.probabilities(bgr) == network.probabilities(iter(list(bgr)))


def test_larger_frames_are_made_small(network: TransNet) -> None:
    bgr = frames(60)[..., ::-1].repeat(6, axis=1).repeat(6, axis=2)
    assert np.argmax(network.probabilities(bgr)) == 36


def test_loading_changes_nothing_else_in_the_process() -> None:
    import torch

    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    TransNet.load()
    assert not torch.are_deterministic_algorithms_enabled()
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert before[1:] == after[1:]
    assert after[0].numel()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = PINNED["transnetv2"]
    wrong = PinnedModel(real.package, real.distribution, real.version, real.location, {real.location: "0" * 64})
    monkeypatch.setattr(modelstore, "PINNED", {"transnetv2": wrong})
    with pytest.raises(ModelError, match="pinned is 0000"):
        TransNet.load()
