"""The order is pure, fair and complete (METHOD, sections 3 and 7.4)."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcoss.contracts import UsageError
from medcoss.data.order import Order, Source, spread

SIZES = st.lists(st.integers(0, 13), min_size=1, max_size=9).filter(lambda sizes: sum(sizes) > 0)


def order_of(*sizes: tuple[int, ...], replay: int = 0, batch: int = 4, epochs: float = 3, seed: int = 0) -> Order:
    """An order over sources of these shard sizes, the last `replay` of them buffers."""
    sources = [
        Source(f"set{number}", f"print{number}", shards, is_replay=number >= len(sizes) - replay)
        for number, shards in enumerate(sizes)
    ]
    return Order(sources, global_batch=batch, epochs=epochs, seed=seed, shuffle_window=3)


def stream(order: Order, source: int) -> np.ndarray:
    """All samples that one source gives, in order."""
    steps = [step for step in range(order.total_steps) if order.source_at(step) == source]
    return np.concatenate([order.indices(step) for step in steps])


@given(sizes=SIZES, batch=st.integers(1, 40), epochs=st.integers(1, 4), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_sample_comes_exactly_once_an_epoch(sizes: list[int], batch: int, epochs: int, seed: int) -> None:
    order = order_of(tuple(sizes), batch=batch, epochs=epochs, seed=seed)
    samples = sum(sizes)
    assert order.total_steps == math.ceil(epochs * samples / batch)
    assert order.steps_per_epoch == samples / batch
    seen = stream(order, 0)
    assert len(seen) == order.total_steps * batch
    for epoch in range(len(seen) // samples):
        assert sorted(seen[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


@given(
    current=st.integers(20, 400),
    buffers=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    batch=st.integers(1, 48),
    epochs=st.sampled_from([0.3, 1.0, 2.5, 7.0]),
)
@settings(max_examples=60, deadline=None)
def test_replay_is_as_much_as_due_and_evenly_spread(
    current: int, buffers: list[int], batch: int, epochs: float
) -> None:
    order = order_of((current,), *[(size,) for size in buffers], replay=len(buffers), batch=batch, epochs=epochs)
    schedule = np.array([order.source_at(step) for step in range(order.total_steps)])
    assert (schedule == 0).sum() == math.ceil(epochs * current / batch - 1e-9)
    for number, size in enumerate(buffers, start=1):
        turns = int((schedule == number).sum())
        assert turns == max(1, math.floor(epochs * size / batch + 0.5))
        assert abs(turns - epochs * size / batch) <= 1
        due = np.arange(1, len(schedule) + 1) * turns / len(schedule)
        assert np.abs(np.cumsum(schedule == number) - due).max() < 1


@given(turns=st.lists(st.integers(1, 200), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_spread_keeps_every_source_within_one_turn_of_its_due(turns: list[int]) -> None:
    schedule = spread(turns)
    due = np.arange(1, sum(turns) + 1)[:, None] * np.array(turns) / sum(turns)
    counts = np.cumsum(schedule[:, None] == np.arange(len(turns)), axis=0)
    assert counts[-1].tolist() == turns
    assert np.abs(counts - due).max() < 1


def test_a_buffer_smaller_than_a_batch_cycles_fairly() -> None:
    order = order_of((64,), (3,), replay=1, batch=8, epochs=8)
    steps = [step for step in range(order.total_steps) if order.source_at(step) == 1]
    assert len(steps) == 3  # 8 epochs x 3 samples / 8 a batch
    for step in steps:
        assert sorted(Counter(order.indices(step).tolist()).values()) in ([2, 3, 3], [2, 2, 4])
    assert Counter(stream(order, 1).tolist()) == {0: 8, 1: 8, 2: 8}


def test_the_order_is_pure_and_independent_of_access_pattern() -> None:
    first, second = (order_of((7, 5, 9, 4, 8), (6,), replay=1, batch=5, epochs=6, seed=3) for _ in range(2))
    forward = [first.indices(step) for step in range(first.total_steps)]
    for step in np.random.default_rng(0).permutation(second.total_steps):
        assert np.array_equal(second.indices(step), forward[step])
        assert second.source_at(step) == first.source_at(step)


def test_the_seed_and_the_set_change_the_order_but_not_the_schedule() -> None:
    base, other = order_of((40,), seed=1), order_of((40,), seed=2)
    assert base.total_steps == other.total_steps
    assert not np.array_equal(stream(base, 0), stream(other, 0))
    renamed = Order([Source("set0", "other", (40,))], global_batch=4, epochs=3, seed=1, shuffle_window=3)
    assert not np.array_equal(stream(base, 0), stream(renamed, 0))
    epochs = stream(base, 0).reshape(3, 40)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_window_of_shards_bounds_what_is_read_together() -> None:
    order = Order([Source("set", "print", (100,) * 20)], global_batch=50, epochs=1, seed=0, shuffle_window=3)
    shards = stream(order, 0) // 100
    windows = [set(shards[begin : begin + 300].tolist()) for begin in range(0, 2000, 300)]
    assert [len(window) for window in windows] == [3] * 6 + [2]
    assert sorted(shard for window in windows for shard in window) == list(range(20))
    assert windows[0] != {0, 1, 2} or windows[1] != {3, 4, 5}


def test_joint_training_has_several_current_sets() -> None:
    order = order_of((30,), (50,), batch=10, epochs=2)
    schedule = [order.source_at(step) for step in range(order.total_steps)]
    assert (schedule.count(0), schedule.count(1), order.steps_per_epoch) == (6, 10, 8.0)


def test_a_paper_sized_order_is_cheap() -> None:
    order = order_of((1000,) * 125, (6250,), (3000,), replay=2, batch=512, epochs=300)
    assert order.total_steps == 73243 + 3662 + 1758
    assert len(set(order.indices(order.total_steps - 1).tolist())) > 400


def test_wrong_sources_and_steps_are_refused() -> None:
    with pytest.raises(UsageError, match="set1 has no training samples"):
        order_of((5,), (0,))
    with pytest.raises(UsageError, match="nothing to train on"):
        order_of((5,), replay=1)
    with pytest.raises(IndexError):
        order_of((5,)).indices(100)
