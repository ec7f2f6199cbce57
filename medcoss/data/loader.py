"""Batches in the order's sequence, decoded ahead of the trainer by background threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medcoss.config import DataConfig
from medcoss.contracts import Kind, MedcossError, ModalitySpec, UsageError
from medcoss.data import dali
from medcoss.data.batch import Batch
from medcoss.data.cpu import CpuBackend
from medcoss.data.decode import Decoder, Undecodable, draws
from medcoss.data.order import Order
from medcoss.shards.reader import ShardSet, Split

TOKENIZER_FILE = "tokenizer.json"
"""The file of a sequence set that holds its tokenizer, in the format of the `tokenizers` library."""


class Backend(Protocol):
    """What turns stored payloads into tensors; `threads` batches may be decoded at once."""

    threads: int

    def decode(self, payloads: Sequence[Any], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor | None]:
        """`Batch.inputs` and `Batch.valid`; raises `Undecodable`."""

    def close(self) -> None:
        """Release threads and buffers."""


def choose_backend(name: Literal["auto", "cpu", "dali"]) -> Literal["cpu", "dali"]:
    """The backend that `data.backend` means on this machine.

    auto is DALI where a GPU can decode, else the CPU decoder: on CPUs alone it is as fast or faster
    (benchmarks/loader.py).
    """
    if name == "auto":
        return "dali" if torch.cuda.is_available() and dali.is_installed() else "cpu"
    return name


def make_backend(decoder: Decoder, data: DataConfig, batch_size: int) -> Backend:
    """The backend of `data` for one set's batches of at most `batch_size` samples; DALI takes a GPU if there is one."""
    if choose_backend(data.backend) == "cpu":
        return CpuBackend(decoder, threads=data.workers)
    device_id = torch.cuda.current_device() if torch.cuda.is_available() else None
    return dali.DaliBackend(decoder, batch_size=batch_size, threads=data.workers, device_id=device_id)


def tokenizer_of(shard_set: ShardSet) -> bytes | None:
    """Content of a sequence set's tokenizer.json; None for other kinds. Raises `MedcossError` if it is damaged."""
    return shard_set.file(TOKENIZER_FILE) if shard_set.spec.kind is Kind.SEQUENCE else None


class Loader:
    """An iterator over one rank's batches from `start_step` to the order's end.

    Step, world size and workers change nothing in what a global batch holds: `batch(step)` depends on the sets, the
    order and the seed. At most max(prefetch, workers) batches are held ahead. An error in a thread is raised by the
    `next` that would have given its batch, and names the sample. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        order: Order,
        data: DataConfig,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        split: str = "train",
        start_step: int = 0,
    ) -> None:
        """`sets` correspond to `order.sources`. Raises `UsageError` if they do not or if ranks cannot share a batch."""
        if len(sets) != len(order.sources):
            raise UsageError(f"{len(sets)} shard sets for an order of {len(order.sources)} sources")
        if order.global_batch % world_size or not 0 <= rank < world_size:
            raise UsageError(
                f"global batch {order.global_batch} cannot be shared by {world_size} ranks: choose a multiple of them"
            )
        share = order.global_batch // world_size
        self.wait_seconds = 0.0
        """Seconds that the consumer has waited in `next` so far."""
        self._positions = np.arange(rank * share, (rank + 1) * share, dtype=np.int64)
        self._order = order
        self._seed = seed
        self._readers = [_Reader(shard_set, split, data, share) for shard_set in sets]
        self._next_step = start_step
        self._pending: deque[Future[Batch]] = deque()
        threads = 1 if choose_backend(data.backend) == "dali" else data.workers
        self._depth = max(data.prefetch, threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="medcoss-loader")

    def batch(self, step: int) -> Batch:
        """This rank's part of global step `step`, made on the calling thread."""
        source = self._order.source_at(step)
        indices = self._order.indices(step)[self._positions]
        is_replay = self._order.sources[source].is_replay
        table = draws(self._seed, step, self._positions)
        return self._readers[source].read(indices, self._positions, step, is_replay, table)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        while len(self._pending) < self._depth and self._next_step < self._order.total_steps:
            self._pending.append(self._pool.submit(self.batch, self._next_step))
            self._next_step += 1
        if not self._pending:
            self.close()
            raise StopIteration
        begun = time.perf_counter()
        try:
            return self._pending.popleft().result()
        except BaseException:
            self.close()
            raise
        finally:
            self.wait_seconds += time.perf_counter() - begun

    def close(self) -> None:
        """Stop prefetching and join the threads; iteration is over. May be called twice."""
        self._next_step = self._order.total_steps
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for reader in self._readers:
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()


def embedding_batches(
    split: Split,
    spec: ModalitySpec,
    batch_size: int,
    rank: int,
    world_size: int,
    data: DataConfig,
    *,
    tokenizer: bytes | None = None,
) -> Iterator[Batch]:
    """Un-augmented batches of this rank's contiguous part of a split, in shard order; the last may be smaller.

    `positions` are indices in the split and `step` counts batches. `tokenizer` is a sequence set's tokenizer.json
    (`tokenizer_of`). Raises as `Loader`.
    """
    begin, end = (len(split) * number // world_size for number in (rank, rank + 1))
    backend = make_backend(Decoder(spec, tokenizer), data, batch_size)
    keys = split.keys
    pending: deque[Future[Batch]] = deque()

    def read(step: int, first: int) -> Batch:
        indices = np.arange(first, min(first + batch_size, end), dtype=np.int64)
        inputs, valid = _decode(backend, spec, split, indices, None)
        return Batch(spec.name, spec.kind, step, False, inputs, valid, tuple(keys[i] for i in indices), indices)

    try:
        with ThreadPoolExecutor(backend.threads, thread_name_prefix="medcoss-embedding") as pool:
            try:
                for step, first in enumerate(range(begin, end, batch_size)):
                    pending.append(pool.submit(read, step, first))
                    if len(pending) > max(data.prefetch, backend.threads):
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                # A consumer that stops early, or an error, must not wait for batches nobody will take.
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        backend.close()


class _Reader:
    """One shard set's split and its backend, both opened when the first batch is asked for."""

    def __init__(self, shard_set: ShardSet, split: str, data: DataConfig, batch_size: int) -> None:
        self._set = shard_set
        self._split_name = split
        self._data = data
        self._batch_size = batch_size
        self._lock = threading.Lock()
        self._opened: tuple[Split, list[str], Backend] | None = None

    def read(
        self,
        indices: NDArray[np.int64],
        positions: NDArray[np.int64],
        step: int,
        is_replay: bool,
        table: NDArray[np.float64],
    ) -> Batch:
        split, keys, backend = self._open()
        spec = self._set.spec
        inputs, valid = _decode(backend, spec, split, indices, table)
        names = tuple(keys[index] for index in indices)
        return Batch(spec.name, spec.kind, step, is_replay, inputs, valid, names, positions)

    def close(self) -> None:
        if self._opened is not None:
            self._opened[2].close()

    def _open(self) -> tuple[Split, list[str], Backend]:
        with self._lock:
            if self._opened is None:
                split = self._set.split(self._split_name)
                decoder = Decoder(self._set.spec, tokenizer_of(self._set))
                self._opened = (split, split.keys, make_backend(decoder, self._data, self._batch_size))
            return self._opened


def _decode(
    backend: Backend, spec: ModalitySpec, split: Split, indices: NDArray[np.int64], table: NDArray[np.float64] | None
) -> tuple[Tensor, Tensor | None]:
    payloads = [split.read(int(index)) for index in indices]
    try:
        return backend.decode(payloads, table)
    except Undecodable as error:
        index = int(indices[error.place])
        shard = int(np.searchsorted(np.cumsum(split.shard_sizes), index, side="right"))
        raise MedcossError(
            f"sample {split.keys[index]} in {split.shard_files[shard]} does not decode: {error.what}: "
            f"make the set {spec.name} again"
        ) from error
