"""Which samples each step takes: a pure function of (sources, seed, step), the same on every rank and world size.

A source (a shard set's split) is read as an endless stream of permutations of itself; its k-th turn takes the k-th
`global_batch` samples of that stream, straddling two permutations where they meet. A permutation is a block shuffle:
the shards in random order, then the samples inside a window of neighbouring shards, so that a reader touches few shards
at a time. METHOD, section 3, says how many turns each source has; they are spread evenly over the stage.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medcoss.contracts import UsageError, derive_seed

_ROUNDING = 1e-9  # 0.1 epochs of 300 samples are 30 samples, whatever binary fractions say


@dataclass(frozen=True)
class Source:
    """One shard set's split as the order sees it: `shard_sizes` are samples a shard, in shard order.

    `fingerprint` (of the manifest) enters the shuffling, so that two sets of one shape are shuffled differently.
    """

    name: str
    fingerprint: str
    shard_sizes: tuple[int, ...]
    is_replay: bool = False

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(self.shard_sizes)


class Order:
    """The plan of a stage: which source and which of its samples each global step takes."""

    def __init__(
        self, sources: Sequence[Source], *, global_batch: int, epochs: float, seed: int, shuffle_window: int
    ) -> None:
        """Plan `epochs` passes over the sources that are no replay, and as many over the replayed ones among them.

        `global_batch` counts samples a step over all ranks, `shuffle_window` shards shuffled together. Raises
        `UsageError` if there is nothing but replay or if a source is empty.
        """
        for source in sources:
            if source.samples < 1:
                raise UsageError(f"shard set {source.name} has no training samples: check its split and its inputs")
        if all(source.is_replay for source in sources):
            raise UsageError("nothing to train on: a stage needs a shard set that is not a rehearsal buffer")
        if global_batch < 1 or epochs <= 0 or shuffle_window < 1:
            raise UsageError(f"global_batch {global_batch}, epochs {epochs}, shuffle_window {shuffle_window}: not > 0")
        self.sources = tuple(sources)
        self.global_batch = global_batch
        self.turns = tuple(_turns(source, global_batch, epochs) for source in self.sources)
        """Steps that each source gets in the whole stage."""
        self._source_of_step = spread(self.turns)
        self._turn_of_step = np.zeros(len(self._source_of_step), np.int64)
        for number, turns in enumerate(self.turns):
            self._turn_of_step[self._source_of_step == number] = np.arange(turns)
        self._streams = [_Stream(source, seed, shuffle_window) for source in self.sources]

    @property
    def total_steps(self) -> int:
        """Global steps of the stage, replay included."""
        return len(self._source_of_step)

    @property
    def steps_per_epoch(self) -> float:
        """Steps of the stage's own set(s) in one pass over them."""
        return sum(source.samples for source in self.sources if not source.is_replay) / self.global_batch

    def source_at(self, step: int) -> int:
        """Number (in `sources`) of the source that all ranks take at `step`."""
        return int(self._source_of_step[self._check(step)])

    def indices(self, step: int) -> NDArray[np.int64]:
        """(global_batch,) int64: the samples of `source_at(step)`, as indices in shard order."""
        first = int(self._turn_of_step[self._check(step)]) * self.global_batch
        return self._streams[self.source_at(step)].take(first, self.global_batch)

    def _check(self, step: int) -> int:
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} of a stage of {self.total_steps} steps")
        return step


def spread(turns: Sequence[int]) -> NDArray[np.int16]:
    """(sum(turns),) int16: source numbers, source s occurring turns[s] times, as evenly as whole steps allow.

    After any number p of steps, source s has had its due p * turns[s] / sum(turns) to within less than one turn
    (R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980): among the sources that are behind
    their due by enough, the one that must come soonest is taken.
    """
    total, count = sum(turns), len(turns)
    schedule = np.zeros(total, np.int16)
    if count == 1:
        return schedule
    slack = 2 * count - 2
    taken = [0] * count
    for step in range(total):
        best, soonest = -1, math.inf
        for source, due in enumerate(turns):
            behind = slack * (due * (step + 1) - taken[source] * total)
            deadline = ((slack - 1) * total - behind) / due if behind >= total else math.inf
            if deadline < soonest:
                best, soonest = source, deadline
        schedule[step] = best
        taken[best] += 1
    return schedule


def _turns(source: Source, global_batch: int, epochs: float) -> int:
    batches = epochs * source.samples / global_batch
    if source.is_replay:
        return max(1, math.floor(batches + 0.5))
    return max(1, math.ceil(batches - _ROUNDING))


class _Stream:
    """One source as an endless sequence of block-shuffled permutations, computed a window at a time."""

    def __init__(self, source: Source, seed: int, shuffle_window: int) -> None:
        self._sizes = np.asarray(source.shard_sizes, np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._samples = source.samples
        self._shuffle_window = shuffle_window
        self._seed = derive_seed(seed, "order", source.name, source.fingerprint)
        # Steps walk through windows in order: a few remembered ones serve every step, so memory stays that of a window.
        self._shards = functools.lru_cache(maxsize=4)(self._shuffle_shards)
        self._window = functools.lru_cache(maxsize=4)(self._shuffle_window_samples)

    def take(self, first: int, count: int) -> NDArray[np.int64]:
        """Samples number `first` to `first + count` of the stream."""
        parts = []
        while count > 0:
            epoch, offset = divmod(first, self._samples)
            ends = self._shards(epoch)[1]
            number = int(np.searchsorted(ends, offset, side="right"))
            window = self._window(epoch, number)
            begin = offset - (int(ends[number]) - len(window))
            parts.append(window[begin : begin + count])
            first += len(parts[-1])
            count -= len(parts[-1])
        return np.concatenate(parts)

    def _shuffle_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's order of shards, and where each of its windows ends, in samples."""
        shards = np.random.default_rng([self._seed, epoch]).permutation(len(self._sizes))
        ends = np.cumsum(self._sizes[shards])
        last = np.arange(len(shards)) % self._shuffle_window == self._shuffle_window - 1
        last[-1] = True
        return shards, ends[last]

    def _shuffle_window_samples(self, epoch: int, number: int) -> NDArray[np.int64]:
        """The samples of one window of shards in their order."""
        first = number * self._shuffle_window
        shards = self._shards(epoch)[0][first : first + self._shuffle_window]
        samples = np.concatenate([np.arange(self._sizes[shard]) + self._starts[shard] for shard in shards])
        return np.random.default_rng([self._seed, epoch, number + 1]).permutation(samples)
