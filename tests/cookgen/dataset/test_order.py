"""The law of the loader: whatever the ranks, workers, batch sizes and kills, an epoch deals every item exactly once."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cookgen.dataset.order import Dealing, epoch_order
from cookgen.errors import UnknownNameError, UsageError

sizes = st.integers(0, 60)
batch_sizes = st.integers(1, 7)
ranks = st.integers(1, 5)
seeds = st.integers(0, 2**40)


@given(sizes, seeds, st.integers(0, 50))
def test_an_order_is_a_permutation_and_a_function_of_seed_and_epoch(size: int, seed: int, epoch: int) -> None:
    order = epoch_order(size, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(size))
    assert (order == epoch_order(size, seed=seed, epoch=epoch)).all()


def test_orders_are_the_same_on_every_machine_and_mix_well() -> None:
    # Written down once: a checkpoint's position means nothing under another order.
    known = hashlib.sha256(epoch_order(1000, seed=7, epoch=3).astype("<i8").tobytes()).hexdigest()
    assert known == "160278cb88d645cb32d9c289e687b1a986c6d1a89154881b7488fc8858704447"
    orders = np.stack([epoch_order(50, seed=seed, epoch=epoch) for seed in range(4) for epoch in range(500)])
    assert len(np.unique(orders, axis=0)) == len(orders)
    assert abs(orders.mean(axis=0) - 24.5).max() < 2  # no place prefers an item: 6 standard deviations


@given(sizes, batch_sizes, ranks)
def test_short_deals_every_item_once_in_equal_steps(size: int, batch_size: int, num_ranks: int) -> None:
    dealing = Dealing(size, 0, batch_size, num_ranks, "short")
    dealt = [dealing.positions(step, rank) for rank in range(num_ranks) for step in range(dealing.num_steps)]
    assert sorted(position for positions in dealt for position in positions) == list(range(size))
    assert max(map(len, dealt), default=0) <= batch_size
    assert (dealing.num_dropped, dealing.num_repeated) == (0, 0)
    for step in range(dealing.num_steps):  # as even as can be
        lengths = [len(dealing.positions(step, rank)) for rank in range(num_ranks)]
        assert max(lengths) - min(lengths) <= 1


@given(sizes, batch_sizes, ranks)
def test_drop_and_repeat_give_full_batches_and_count(size: int, batch_size: int, num_ranks: int) -> None:
    for remainder in ("drop", "repeat"):
        dealing = Dealing(size, 0, batch_size, num_ranks, remainder)  # type: ignore[arg-type]
        dealt = Counter[int]()
        for step in range(dealing.num_steps):
            for rank in range(num_ranks):
                positions = dealing.positions(step, rank)
                assert len(positions) == batch_size
                dealt.update(position % size for position in positions)
        if remainder == "drop":
            assert sorted(dealt) == list(range(size - dealing.num_dropped))
            assert dealing.num_dropped < batch_size * num_ranks
            assert set(dealt.values()) <= {1}
        else:
            assert sorted(dealt) == list(range(size))
            assert dealt.total() == size + dealing.num_repeated


@given(sizes, st.data())
def test_kills_and_changes_of_ranks_and_batch_size_lose_and_repeat_nothing(size: int, data: st.DataObject) -> None:
    seen: list[int] = []
    position = 0
    for _ in range(data.draw(st.integers(0, 4))):  # lives of the job, each killed after some steps
        dealing = Dealing(size, position, data.draw(batch_sizes), data.draw(ranks), "short")
        steps = data.draw(st.integers(0, dealing.num_steps))
        for step in range(steps):
            for rank in range(dealing.num_ranks):
                seen += dealing.positions(step, rank)
        position = dealing.after(steps)
    dealing = Dealing(size, position, data.draw(batch_sizes), data.draw(ranks), "short")
    for step in range(dealing.num_steps):
        for rank in range(dealing.num_ranks):
            seen += dealing.positions(step, rank)
    assert sorted(seen) == list(range(size))
    assert dealing.after(dealing.num_steps) == size


@given(sizes, batch_sizes, ranks, st.data())
def test_resume_is_what_would_have_come(size: int, batch_size: int, num_ranks: int, data: st.DataObject) -> None:
    remainder = data.draw(st.sampled_from(["short", "drop", "repeat"]))
    whole = Dealing(size, 0, batch_size, num_ranks, remainder)
    done = data.draw(st.integers(0, whole.num_steps))
    rest = Dealing(size, whole.after(done), batch_size, num_ranks, remainder)
    assert rest.num_steps == whole.num_steps - done
    for rank in range(num_ranks):
        for step in range(rest.num_steps):
            assert list(rest.positions(step, rank)) == list(whole.positions(done + step, rank))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="batch_size 0: a whole number"):
        Dealing(3, 0, 0, 1, "short")
    with pytest.raises(UnknownNameError, match="unknown remainder 'shrot': did you mean 'short'"):
        Dealing(3, 0, 1, 1, "shrot")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="seed -1"):
        epoch_order(3, seed=-1, epoch=0)
