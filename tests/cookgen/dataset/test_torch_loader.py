"""The loader on real shards: exactly once, exact resume, damage by policy; with real workers and real ranks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cookgen import load_split
from cookgen.dataset.torch_loader import Loader
from cookgen.errors import FormatError, InputError, UnknownNameError, UsageError
from tests.shardset import NUM_FRAMES, SIDE, Story, add_features, feature_of, make_set

STORIES = [Story(f"v{number:02d}", num_clips=2 + number % 4) for number in range(11)]
NUM_CLIPS = sum(story.num_clips for story in STORIES)
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", params=["one shard", "many shards"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loader") / "set"
    make_set(out, STORIES, target_shard_bytes=2**28 if request.param == "one shard" else 60_000)
    add_features(out, "tiny", (2, 3))
    num_shards = len(list(out.glob("train/*.tar")))
    assert num_shards == 1 if request.param == "one shard" else num_shards > 4
    return out


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("many") / "set", STORIES, target_shard_bytes=60_000)


def keys(batches: list[dict[str, Any]]) -> list[str]:
    return [key for batch in batches for key in batch["key"]]


def names_only(split: Any, **options: Any) -> Loader:
    """A loader whose items cost nothing: their keys."""
    return split.map(_key).torch(collate=list, **options)  # type: ignore[no-any-return]


def _key(step: Any) -> str:
    return step.key  # type: ignore[no-any-return]


def test_a_batch_of_clips(made: Path) -> None:
    clips = load_split("train", made, unit="clip", frames=4, features=("tiny",))
    (batch,) = list(clips[:3].torch(batch_size=3))
    assert batch["key"] == [clip.key for clip in clips[:3]]
    assert batch["action"] == [clip.action for clip in clips[:3]]
    assert batch["frames"].dtype == torch.uint8
    assert batch["frames"].shape == (3, 4, SIDE, SIDE, 3)
    assert (batch["frames"][1].numpy() == clips[1].frames(num_frames=4)).all()
    assert batch["features"]["tiny"].dtype == torch.float16
    for row, key in zip(batch["features"]["tiny"].numpy(), batch["key"], strict=True):
        assert (row == feature_of(key, (2, 3))).all()
    assert batch["start_s"].tolist() == [clip.start_s for clip in clips[:3]]


def test_a_batch_of_narratives_is_padded_to_the_longest(made: Path) -> None:
    narratives = load_split("train", made, frames=2, features=("tiny",))[:4]
    (batch,) = list(narratives.torch(batch_size=4))
    longest = max(narrative.num_steps for narrative in narratives)
    assert batch["name"] == [narrative.name for narrative in narratives]
    assert batch["num_steps"].tolist() == [narrative.num_steps for narrative in narratives]
    assert batch["frames"].shape == (4, longest, 2, SIDE, SIDE, 3)
    assert batch["features"]["tiny"].shape == (4, longest, 2, 3)
    for place, narrative in enumerate(narratives):
        assert batch["action"][place] == [step.action for step in narrative.steps]
        assert (batch["features"]["tiny"][place, : narrative.num_steps].numpy() == narrative.features["tiny"]).all()
        assert not batch["frames"][place, narrative.num_steps :].any()


def test_without_frames_nothing_is_decoded(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cookgen.dataset.sample.read_frames", lambda *_, **__: pytest.fail("decoded"))
    for batch in load_split("train", made, unit="window", window=3).torch(batch_size=2):
        assert "frames" not in batch


def test_own_functions_and_own_batches(made: Path) -> None:
    clips = load_split("train", made, unit="clip").map(lambda step: {"mean": step.keyframe().mean(), "key": step.key})
    (batch, *_) = list(clips.torch(batch_size=4))
    assert batch["mean"].dtype == torch.float64  # torch's default_collate
    assert len(batch["key"]) == 4
    (batch, *_) = list(clips.torch(batch_size=4, collate=lambda items: [item["key"] for item in items]))
    assert batch == [clip["key"] for clip in clips[:4]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The stories in shards of about so many bytes: from one shard a narrative to one for all."""

    @cache
    def make(target_shard_bytes: int) -> Path:
        out = tmp_path_factory.mktemp("packed") / "set"
        return make_set(out, STORIES, target_shard_bytes=target_shard_bytes)

    return make


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@settings(max_examples=20, deadline=None)
@given(
    st.integers(8_000, 300_000),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(1, 4),
    st.integers(0, 5),
    st.integers(0, 2),
    st.integers(0, 4),
)
def test_exactly_once_and_resume_equals_never_stopped(
    packed: Callable[[int], Path],
    shard_bytes: int,
    batch_size: int,
    num_workers: int,
    num_ranks: int,
    seed: int,
    epoch: int,
    killed_after: int,
) -> None:
    clips = load_split("train", packed(shard_bytes), unit="clip", shuffle=True, seed=seed)
    options: dict[str, Any] = {"batch_size": batch_size, "num_ranks": num_ranks}
    fresh = {"epoch": epoch, "position": 0, **_identity(clips)}
    epochs, states = [], []
    for rank in range(num_ranks):
        loader = names_only(clips, rank=rank, num_workers=num_workers, **options)
        loader.load_state_dict(fresh)
        batches = []
        for batch in loader:
            batches.append(batch)
            if len(batches) == killed_after:
                states.append(loader.state_dict())
        epochs.append(batches)
        assert len(batches) == len(loader)
    seen = [key for batches in epochs for batch in batches for key in batch]
    assert sorted(seen) == sorted(clip.key for clip in clips.unshuffled())
    if states:
        assert all(state == states[0] for state in states)  # any rank's state is everybody's
        for rank in range(num_ranks):
            loader = names_only(clips, rank=rank, num_workers=(num_workers + 1) % 3, **options)
            loader.load_state_dict(states[0])
            assert list(loader) == epochs[rank][killed_after:]
        rest = []  # and with other ranks and batches what was not seen before comes once
        for rank in range(num_ranks + 1):
            loader = names_only(clips, rank=rank, num_ranks=num_ranks + 1, batch_size=batch_size + 1)
            loader.load_state_dict(states[0])
            rest += [key for batch in loader for key in batch]
        before = [key for batches in epochs for batch in batches[:killed_after] for key in batch]
        assert sorted(before + rest) == sorted(seen)


def _identity(clips: Any) -> dict[str, Any]:
    state = names_only(clips, batch_size=1).state_dict()
    return {name: state[name] for name in ("seed", "items")}


def test_fewer_shards_than_workers(packed: Callable[[int], Path]) -> None:
    out = packed(2**28)
    assert len(list(out.glob("train/*.tar"))) == 1
    clips = load_split("train", out, unit="clip", frames=1)
    assert keys(list(clips.torch(batch_size=3, num_workers=2))) == [clip.key for clip in clips]


def test_epochs_follow_one_another_and_differ(many: Path) -> None:
    clips = load_split("train", many, unit="clip", shuffle=True, seed=1)
    loader = names_only(clips, batch_size=5)
    first, second = [[key for batch in loader for key in batch] for _ in range(2)]
    assert first != second
    assert sorted(first) == sorted(second)
    assert [clip.key for clip in clips] == first  # the split's own order is that of epoch 0
    assert [clip.key for clip in clips.epoch(1)] == second
    again = names_only(clips, batch_size=3)  # a state that was taken between two epochs
    again.load_state_dict(loader.state_dict())
    assert [key for batch in again for key in batch] == [clip.key for clip in clips.epoch(2)]
    assert (loader.counts.batches, loader.counts.samples) == (2 * len(loader), 2 * NUM_CLIPS)


def test_an_epoch_that_was_left_begins_anew(many: Path) -> None:
    loader = names_only(load_split("train", many, unit="clip", shuffle=True), batch_size=2)
    first = next(iter(loader))
    assert next(iter(loader)) == first


def test_ranks_without_items_get_batches_without_rows(many: Path) -> None:
    clips = load_split("train", many, unit="clip", frames=2)[:5]
    loaders = [clips.torch(batch_size=2, rank=rank, num_ranks=4) for rank in range(4)]
    epochs = [list(loader) for loader in loaders]
    assert [len(batches) for batches in epochs] == [1] * 4
    assert sorted(keys([batch for batches in epochs for batch in batches])) == [clip.key for clip in clips]
    clips = clips[:3]
    empty = list(clips.torch(batch_size=2, rank=3, num_ranks=4))
    assert [batch["key"] for batch in empty] == [[]]
    assert empty[0]["frames"].shape == (0, 2, SIDE, SIDE, 3)
    assert empty[0]["start_s"].shape == (0,)


@pytest.mark.parametrize(("remainder", "counts"), [("drop", (3, 0)), ("repeat", (0, 1)), ("short", (0, 0))])
def test_what_is_dropped_or_repeated_is_counted(many: Path, remainder: Any, counts: tuple[int, int]) -> None:
    clips = load_split("train", many, unit="clip")[:11]
    loaders = [names_only(clips, batch_size=2, rank=rank, num_ranks=2, remainder=remainder) for rank in range(2)]
    seen = Counter(key for loader in loaders for batch in loader for key in batch)
    assert len({len(loader) for loader in loaders}) == 1
    dropped, repeated = counts
    assert {loader.counts.dropped for loader in loaders} == {dropped}
    assert sum(loader.counts.repeated for loader in loaders) == repeated
    assert seen.total() == 11 - dropped + repeated


def test_every_repetition_is_counted_also_where_a_step_is_larger_than_the_split(many: Path) -> None:
    loader = names_only(load_split("train", many, unit="clip")[:3], batch_size=50, remainder="repeat")
    (batch,) = list(loader)
    assert (len(batch), loader.counts.repeated) == (50, 47)


class Pair(NamedTuple):
    keys: list[str]
    number: int


def test_batches_without_rows_of_every_kind(many: Path) -> None:
    clips = load_split("train", many, unit="clip")[:4].map(_key)
    options: dict[str, Any] = {"batch_size": 1, "rank": 2, "num_ranks": 3}
    for collate, empty in (
        (lambda keys: {"keys": keys, "n": len(keys), "mean": torch.tensor(1.0)}, {"keys": [], "n": 1, "mean": 1.0}),
        (lambda keys: Pair(keys, 3), Pair([], 3)),
        (lambda keys: (keys, torch.ones(len(keys), 2).tolist()), ([], [])),
    ):
        assert list(clips.torch(collate=collate, **options))[-1] == empty
    for rank in range(3):  # on every rank, before anything was trained on
        with pytest.raises(UsageError, match=r"a set has no rows to leave out.*remainder='drop'"):
            next(iter(clips.torch(collate=set, **{**options, "rank": rank})))
    assert [list(batch) for batch in clips.torch(collate=set, remainder="drop", **options)] == [[clips[2]]]


def _noisy(step: Any) -> tuple[str, float]:
    assert step.action  # read, so that it can fail
    return step.key, float(torch.rand(()))


def _noisy_batch(items: list[Any]) -> tuple[tuple[Any, ...], float]:
    return tuple(items), float(torch.rand(()))


def noise(
    root: Path,
    *,
    epoch: int = 0,
    position: int = 0,
    num_ranks: int = 1,
    shuffle: bool = True,
    seed: int = 0,
    **options: Any,
) -> tuple[dict[str, float], dict[tuple[str, ...], float]]:
    """What all ranks draw in the rest of an epoch: for each item, by its key; and for each batch, by its keys."""
    clips = load_split("train", root, unit="clip", shuffle=shuffle, seed=seed).map(_noisy)
    of_items: dict[str, float] = {}
    of_batches: dict[tuple[str, ...], float] = {}
    for rank in range(num_ranks):
        loader = clips.torch(
            collate=_noisy_batch, rank=rank, num_ranks=num_ranks, **{"batch_size": 4, "remainder": "drop", **options}
        )
        loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "position": position})
        for items, drawn in loader:
            of_items |= dict(items)
            of_batches[tuple(key for key, _ in items)] = drawn
    return of_items, of_batches


def is_part(some: dict[Any, float], whole: dict[Any, float]) -> bool:
    return bool(some) and some.items() <= whole.items()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_numbers_hang_on_seed_epoch_and_place_alone(many: Path, num_workers: int) -> None:
    items, batches = noise(many, remainder="short")
    assert noise(many, remainder="short", num_workers=num_workers) == (items, batches)
    resumed, resumed_batches = noise(many, position=12, num_workers=num_workers)
    assert is_part(resumed, items)
    assert is_part(resumed_batches, batches)
    same: list[dict[str, Any]] = [{"num_ranks": 2}, {"num_ranks": 3, "batch_size": 1}, {"shuffle": False}]
    for options in same:
        assert is_part(noise(many, num_workers=num_workers, **options)[0], items)
    different: list[dict[str, Any]] = [{"epoch": 1}, {"seed": 1}]
    for options in different:
        others, other_batches = noise(many, num_workers=num_workers, **options)
        assert len({*items.values(), *others.values()}) == len(items) + len(others)
        assert not {*batches.values()} & {*other_batches.values()}
    by_two = noise(many, num_ranks=2, num_workers=num_workers)[1]
    assert len({*by_two.values()}) == len(by_two)
    quiet = load_split("train", many, unit="clip", shuffle=True).map(_key)  # whatever its items draw
    loader = quiet.torch(batch_size=4, num_workers=num_workers, collate=_noisy_batch)
    assert [drawn for _, drawn in loader] == [*batches.values()]
    in_order, in_order_batches = noise(many, shuffle=False)  # where an item's index is its position
    assert not {*in_order.values()} & {*in_order_batches.values()}


def test_without_the_seeds_random_numbers_hang_on_the_batches(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "default_generator", torch.Generator())  # what the loader seeds draws nothing
    assert not is_part(noise(many, batch_size=3)[0], noise(many)[0])


def test_an_item_that_cannot_be_read_shifts_no_random_numbers(damaged: tuple[Path, str, str], many: Path) -> None:
    items, _ = noise(damaged[0], on_error="skip", remainder="short")
    assert len(items) < NUM_CLIPS
    assert is_part(items, noise(many, remainder="short")[0])


def test_a_state_of_something_else_is_refused(many: Path) -> None:
    clips = load_split("train", many, unit="clip", shuffle=True, seed=1)
    state = names_only(clips, batch_size=1).state_dict()
    with pytest.raises(UsageError, match="the seed of the shuffling was 1 when it was saved and is 2 now"):
        names_only(load_split("train", many, unit="clip", shuffle=True, seed=2), batch_size=1).load_state_dict(state)
    with pytest.raises(UsageError, match="the digest of the split's items"):
        names_only(clips.select(lambda step: step.index == 0), batch_size=1).load_state_dict(state)
    with pytest.raises(UsageError, match=r"position 99 of"):
        names_only(clips, batch_size=1).load_state_dict({**state, "position": 99})


def test_options_that_cannot_be(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = load_split("train", many, unit="clip")
    with pytest.raises(UsageError, match="batch_size 0: a whole number"):
        clips.torch(batch_size=0)
    with pytest.raises(UsageError, match="rank 2 of 2"):
        clips.torch(rank=2, num_ranks=2)
    with pytest.raises(UsageError, match="give both or neither"):
        clips.torch(rank=2)
    with pytest.raises(UnknownNameError, match="did you mean 'skip'"):
        clips.torch(on_error="skipp")  # type: ignore[arg-type]
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UsageError, match="WORLD_SIZE='many'"):
        clips.torch()


def test_ranks_of_torchrun_are_found(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    loader = load_split("train", many, unit="clip").torch()
    assert (loader.rank, loader.num_ranks) == (1, 3)


@pytest.fixture
def damaged(many: Path, tmp_path: Path) -> tuple[Path, str, str]:
    """A set with one damaged clip, and a shard that is missing: (set, the clip's key, the shard)."""
    out = Path(shutil.copytree(many, tmp_path / "set"))
    clips = load_split("train", out, unit="clip")
    clip = clips[0]
    member = clip.members["mp4"]
    shards = sorted({step.row.shard for step in clips} - {clip.row.shard})
    with member.shard.open("r+b") as stream:
        stream.seek(member.offset + member.num_bytes // 2)
        stream.write(b"\0" * 64)
    (out / shards[0]).unlink()
    return out, clip.key, shards[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_is_raised_by_name(damaged: tuple[Path, str, str], num_workers: int) -> None:
    out, key, _ = damaged
    with pytest.raises(FormatError, match=rf"{key}\.mp4: its sha256 is not the one in the JSON") as caught:
        list(load_split("train", out, unit="clip", frames=2).torch(batch_size=4, num_workers=num_workers))
    assert "Traceback" not in str(caught.value)  # the error itself, not the text of a worker


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damage_is_skipped_named_and_counted(
    damaged: tuple[Path, str, str], num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    out, key, shard = damaged
    clips = load_split("train", out, unit="clip", frames=2)
    lost = {clips.name_of(place) for place in range(len(clips)) if clips._item(place)[0][0].shard == shard} | {key}
    loader = clips.torch(batch_size=4, num_workers=num_workers, on_error="skip")
    batches = list(loader)
    assert len(batches) == len(loader) == -(-NUM_CLIPS // 4)
    seen = Counter(keys(batches))
    assert set(seen) == {clips.name_of(place) for place in range(len(clips))} - lost
    assert set(loader.counts.skipped) == lost
    assert seen.total() == NUM_CLIPS - len(lost) + loader.counts.repeated
    assert f"skipped {key}" in caplog.text
    assert "missing" in caplog.text or "No such file" in caplog.text


def test_a_batch_that_cannot_be_read_is_replaced_so_that_steps_stay_equal(damaged: tuple[Path, str, str]) -> None:
    out, _, _ = damaged
    clips = load_split("train", out, unit="clip", frames=2)
    loader = clips.torch(batch_size=1, on_error="skip")
    batches = list(loader)
    assert len(batches) == NUM_CLIPS
    assert all(len(batch["key"]) == 1 for batch in batches)
    assert loader.counts.repeated == len(loader.counts.skipped) > 0
    for path in out.glob("train/*.tar"):
        path.unlink()
    with pytest.raises(InputError, match=f"none of its {NUM_CLIPS} items can be read"):
        list(load_split("train", out, unit="clip").torch(on_error="skip"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_global_random_numbers_are_left_alone(many: Path, damaged: tuple[Path, str, str], num_workers: int) -> None:
    before = torch.get_rng_state()
    noise(many, num_workers=num_workers)
    with pytest.raises(FormatError):
        noise(damaged[0], num_workers=num_workers)
    assert (torch.get_rng_state() == before).all()
    _noisy_batch([])
    assert (torch.get_rng_state() != before).any()


def test_two_real_ranks_end_their_epochs_together(many: Path, tmp_path: Path) -> None:
    """torch.distributed over gloo: a collective at every step hangs if one rank has fewer steps."""
    program = (
        "import os, sys, torch, torch.distributed as dist\n"
        "from cookgen import load_split\n"
        f"dist.init_process_group('gloo', init_method='file://{tmp_path}/meet', rank=int(sys.argv[1]), world_size=2)\n"
        f"loader = load_split('train', {str(many)!r}, unit='clip', shuffle=True).torch(batch_size=4, num_workers=1)\n"
        "seen = torch.zeros(1, dtype=torch.int64)\n"
        "for epoch in range(2):\n"
        "    for batch in loader:\n"
        "        count = torch.tensor([len(batch['key'])])\n"
        "        dist.all_reduce(count)\n"
        "        seen += count\n"
        "sys.stdout.write(f'rank {loader.rank} of {loader.num_ranks} saw {int(seen)}')\n"
        "dist.destroy_process_group()\n"
    )
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank)], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for rank, process in enumerate(ranks):
            said, error = process.communicate(timeout=120)
            assert process.returncode == 0, error[-2000:]
            assert said == f"rank {rank} of 2 saw {2 * NUM_CLIPS}"
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def test_frames_of_different_numbers_are_lists(many: Path) -> None:
    from cookgen.dataset.frames import FrameRule

    (batch, *_) = load_split("train", many, unit="clip", frames=FrameRule(every=3, size_px=32)).torch(batch_size=2)
    assert batch["frames"].shape == (2, -(-NUM_FRAMES // 3), 32, 32, 3)


def test_items_are_numpy_until_torch_is_asked_for(many: Path) -> None:
    step = load_split("train", many, unit="clip", frames=2)[0]
    assert isinstance(step.frames(), np.ndarray)
