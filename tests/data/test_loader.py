"""Loaders give the order's batches: the same on any number of ranks, threads and restarts, or a named error."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from medcoss.config import DataConfig
from medcoss.contracts import CLS_ID, PAD_ID, SEP_ID, Kind, MedcossError, UsageError
from medcoss.data.batch import Batch
from medcoss.data.loader import Loader, choose_backend, embedding_batches, tokenizer_of
from medcoss.data.order import Order, Source
from medcoss.shards.reader import ShardSet

KINDS = (Kind.SEQUENCE, Kind.IMAGE, Kind.VOLUME)


def order_of(sets: list[ShardSet], *, replay: int = 0, batch: int = 8, epochs: float = 2, seed: int = 5) -> Order:
    sources = [
        Source(
            shard_set.manifest.name,
            shard_set.manifest.fingerprint,
            shard_set.split("train").shard_sizes,
            is_replay=number >= len(sets) - replay,
        )
        for number, shard_set in enumerate(sets)
    ]
    return Order(sources, global_batch=batch, epochs=epochs, seed=seed, shuffle_window=2)


def batches(sets: list[ShardSet], order: Order, *, workers: int = 2, backend: str = "cpu", **where: int) -> list[Batch]:
    data = DataConfig(backend=backend, workers=workers, prefetch=3)  # type: ignore[arg-type]
    with Loader(sets, order, data, seed=5, **where) as loader:
        return list(loader)


def equal(first: Batch, second: Batch) -> bool:
    valid = (first.valid is None and second.valid is None) or (
        first.valid is not None and second.valid is not None and torch.equal(first.valid, second.valid)
    )
    return (
        valid
        and torch.equal(first.inputs, second.inputs)
        and (first.keys, first.step, first.modality) == (second.keys, second.step, second.modality)
        and np.array_equal(first.positions, second.positions)
    )


@pytest.fixture
def sets(make_set) -> list[ShardSet]:
    return [make_set(kind, 20 + 6 * number) for number, kind in enumerate(KINDS)]


def test_batches_follow_the_order(sets: list[ShardSet]) -> None:
    order = order_of(sets, replay=2)
    got = batches(sets, order)
    assert [batch.step for batch in got] == list(range(order.total_steps))
    for batch in got:
        source = order.source_at(batch.step)
        keys = sets[source].split("train").keys
        assert batch.keys == tuple(keys[index] for index in order.indices(batch.step))
        assert (batch.kind, batch.is_replay) == (KINDS[source], source > 0)
        assert batch.positions.tolist() == list(range(8))
    own = Counter(key for batch in got[:] if not batch.is_replay for key in batch.keys)
    assert set(own.values()) == {2} and len(own) == 20
    text, image, volume = (next(batch for batch in got if batch.kind is kind) for kind in KINDS)
    assert image.inputs.shape == (8, 3, 32, 32) and image.inputs.dtype is torch.float32
    assert image.inputs.min() >= 0 and 0.7 < image.inputs.max() <= 1
    assert torch.equal(image.inputs[:, 0], image.inputs[:, 2])
    assert volume.inputs.shape == (8, 1, 8, 16, 16) and 0.3 < volume.inputs.abs().max() < 1
    assert text.valid is not None and text.inputs.dtype is torch.int64
    assert text.inputs.shape[1] == text.valid.sum(1).max() <= 24
    assert (text.inputs[:, 0] == CLS_ID).all() and (text.inputs[~text.valid] == PAD_ID).all()
    last = text.inputs.gather(1, text.valid.sum(1, keepdim=True) - 1)
    assert (last == SEP_ID).all() and text.valid[:, 0].all()


@pytest.mark.parametrize("workers", [1, 3])
def test_resuming_anywhere_gives_equal_batches(sets: list[ShardSet], workers: int) -> None:
    order = order_of(sets, replay=2)
    whole = batches(sets, order)
    for start in (0, 1, order.total_steps // 2, order.total_steps - 1):
        resumed = batches(sets, order, workers=workers, start_step=start)
        assert len(resumed) == order.total_steps - start
        assert all(equal(a, b) for a, b in zip(whole[start:], resumed, strict=True))


@pytest.mark.parametrize("world_size", [2, 4])
def test_world_sizes_share_the_same_global_batches(sets: list[ShardSet], world_size: int) -> None:
    order = order_of(sets, replay=2)
    whole = batches(sets, order)
    parts = [batches(sets, order, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, batch in enumerate(whole):
        pieces = [part[step] for part in parts]
        assert {piece.modality for piece in pieces} == {batch.modality}
        assert sum((piece.keys for piece in pieces), ()) == batch.keys
        assert np.array_equal(np.concatenate([piece.positions for piece in pieces]), batch.positions)
        for piece in pieces:
            rows = batch.inputs[torch.from_numpy(piece.positions)]
            if batch.valid is None:
                assert torch.equal(piece.inputs, rows)
            else:
                length = piece.inputs.shape[1]
                assert torch.equal(piece.inputs, rows[:, :length]) and (rows[:, length:] == PAD_ID).all()
                assert torch.equal(piece.valid, batch.valid[torch.from_numpy(piece.positions), :length])


def test_augmentation_differs_between_epochs_and_positions(make_set) -> None:
    one = make_set(Kind.IMAGE, 1)
    got = batches([one], order_of([one], batch=6, epochs=12))
    views = torch.cat([batch.inputs for batch in got])
    assert len({view.numpy().tobytes() for view in views}) == len(views) == 12


def test_a_corrupted_sample_is_named(make_set, tmp_path: Path) -> None:
    damaged = make_set(Kind.IMAGE, 12, shard_size=4)
    shard = tmp_path / "set-image" / "train-000001.tar"
    content = bytearray(shard.read_bytes())
    content[900] ^= 1
    shard.write_bytes(content)
    with pytest.raises(MedcossError, match=r"image-train-0000\d .*train-000001\.tar"):
        batches([damaged], order_of([damaged], batch=4))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("medcoss-loader")]


@pytest.mark.parametrize("backend", ["cpu", "dali"])
def test_an_undecodable_sample_is_named(make_set, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    images = make_set(Kind.IMAGE, 12, shard_size=4)
    split = images.split("train")
    intact = type(split).read
    monkeypatch.setattr(type(split), "read", lambda self, index: intact(self, index)[: 500 if index == 9 else None])
    with pytest.raises(MedcossError, match=r"image-train-00009 in train-000002\.tar does not decode"):
        batches([images], order_of([images], batch=4), backend=backend)


def test_closing_joins_threads_and_early_exit_is_clean(sets: list[ShardSet]) -> None:
    order = order_of(sets)
    loader = Loader(sets, order, DataConfig(backend="cpu", workers=2), seed=5)
    next(loader)
    loader.close()
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("medcoss-loader")]
    with pytest.raises(StopIteration):
        next(loader)


def test_prefetch_is_bounded_and_waiting_is_counted(make_set, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = make_set(Kind.VOLUME, 64)
    reads: list[int] = []
    intact = type(volumes.split("train")).read

    def counted(self: object, index: int) -> object:
        reads.append(index)
        return intact(self, index)  # type: ignore[arg-type]

    monkeypatch.setattr(type(volumes.split("train")), "read", counted)
    data = DataConfig(backend="cpu", workers=1, prefetch=2)
    with Loader([volumes], order_of([volumes], batch=4, epochs=4), data, seed=0) as loader:
        assert loader.wait_seconds == 0.0
        next(loader)
        waited = loader.wait_seconds
        assert waited > 0
    assert len(reads) <= 3 * 4


def test_wrong_use_is_refused(sets: list[ShardSet]) -> None:
    with pytest.raises(UsageError, match="2 shard sets for an order of 3"):
        Loader(sets[:2], order_of(sets), DataConfig(), seed=0)
    with pytest.raises(UsageError, match="cannot be shared by 3 ranks"):
        Loader(sets, order_of(sets), DataConfig(), seed=0, rank=0, world_size=3)
    assert choose_backend("cpu") == "cpu" and choose_backend("dali") == "dali"


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_batches_cover_the_split_in_order_without_augmentation(make_set, kind: Kind) -> None:
    shard_set = make_set(kind, 21)
    split, tokenizer = shard_set.split("train"), tokenizer_of(shard_set)
    data = DataConfig(backend="cpu", workers=2)

    def read(rank: int, world_size: int, size: int = 4) -> list[Batch]:
        return list(embedding_batches(split, shard_set.spec, size, rank, world_size, data, tokenizer=tokenizer))

    whole = read(0, 1)
    assert [key for batch in whole for key in batch.keys] == split.keys
    assert [len(batch) for batch in whole] == [4, 4, 4, 4, 4, 1]
    assert np.concatenate([batch.positions for batch in whole]).tolist() == list(range(21))
    assert [key for rank in range(3) for batch in read(rank, 3) for key in batch.keys] == split.keys
    if kind is Kind.VOLUME:
        stored = np.stack([split.read(index) for index in range(21)])
        assert torch.equal(torch.cat([batch.inputs for batch in whole])[:, 0], torch.from_numpy(stored / 1024).float())
    elif kind is Kind.IMAGE:
        assert torch.equal(read(0, 1, 21)[0].inputs, torch.cat([batch.inputs for batch in whole]))
    iterator = embedding_batches(split, shard_set.spec, 4, 0, 1, data, tokenizer=tokenizer)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("medcoss-embedding")]
