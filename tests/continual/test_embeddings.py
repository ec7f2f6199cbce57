"""Embeddings are taken in evaluation mode, without augmentation, and survive a file (METHOD, section 7.9)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from medcoss.config import DataConfig, ModelConfig
from medcoss.continual.embeddings import EmbeddingTable, embed_split
from medcoss.contracts import Kind, MedcossError, UsageError
from medcoss.model.architecture import resolve
from medcoss.model.vit import Encoder
from medcoss.shards.reader import ShardSet

DATA = DataConfig(backend="cpu", workers=2)


def encoder_of(shard_set: ShardSet, drop_path: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    config = ModelConfig(preset="vit_tiny", drop_path=drop_path, layer_scale=0.1, patch_2d=8, patch_3d=(8, 8, 8))
    return Encoder(resolve(config, [shard_set.spec]))


@pytest.mark.parametrize("kind", list(Kind))
def test_ranks_and_batch_sizes_embed_alike(make_set, kind: Kind) -> None:
    shard_set = make_set(kind, 23)
    encoder = encoder_of(shard_set)
    whole = embed_split(encoder, shard_set, "train", data=DATA, batch_size=8, model_fingerprint="abc")
    assert list(whole.keys) == shard_set.split("train").keys
    assert whole.vectors.shape == (23, 192) and whole.vectors.dtype == np.float32
    assert whole.manifest_fingerprint == shard_set.manifest.fingerprint
    parts = [
        embed_split(
            encoder, shard_set, "train", data=DATA, batch_size=5, rank=rank, world_size=3, model_fingerprint="abc"
        )
        for rank in range(3)
    ]
    joined = EmbeddingTable.join(parts)
    assert joined.keys == whole.keys
    # Other batch sizes add up in another order, nothing more: paddings and neighbours do not enter.
    assert np.abs(joined.vectors - whole.vectors).max() < 1e-4
    assert whole.vectors.std(axis=0).mean() > 1e-3
    with pytest.raises(UsageError, match="different models"):
        EmbeddingTable.join([parts[0], embed_split(encoder, shard_set, "test", data=DATA, batch_size=5)])


def test_drop_path_is_off_and_the_mode_is_given_back(make_set) -> None:
    images = make_set(Kind.IMAGE, 12)
    encoder = encoder_of(images, drop_path=0.5).train()
    first, second = (embed_split(encoder, images, "train", data=DATA, batch_size=6).vectors for _ in range(2))
    assert np.array_equal(first, second)
    assert encoder.training
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_a_table_survives_its_file_and_is_mapped(make_set, tmp_path: Path) -> None:
    images = make_set(Kind.IMAGE, 12)
    table = embed_split(encoder_of(images), images, "train", data=DATA, batch_size=6, model_fingerprint="abc")
    path = tmp_path / "deep" / "table.safetensors"
    table.save(path)
    again = EmbeddingTable.open(path)
    assert isinstance(again.vectors, np.memmap)
    assert np.array_equal(again.vectors, table.vectors) and again.keys == table.keys
    assert (again.model_fingerprint, again.manifest_fingerprint) == ("abc", images.manifest.fingerprint)
    with safe_open(path, framework="np") as file:
        assert np.array_equal(file.get_tensor("vectors"), table.vectors)
    first = path.read_bytes()
    table.save(path)
    assert path.read_bytes() == first
    empty = embed_split(encoder_of(images), images, "val", data=DATA, batch_size=6)
    empty.save(path)
    assert EmbeddingTable.open(path).vectors.shape == (0, 192) and EmbeddingTable.open(path).keys == ()


@pytest.mark.parametrize("content", [b"", b"no table at all", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "table.safetensors"
    with pytest.raises(UsageError, match="No such file"):
        EmbeddingTable.open(path)
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a table of embeddings"):
        EmbeddingTable.open(path)


def test_a_diverged_encoder_is_named_with_its_first_sample(make_set) -> None:
    images = make_set(Kind.IMAGE, 6)
    encoder = encoder_of(images)
    with torch.no_grad():
        encoder.cls.fill_(float("nan"))
    with pytest.raises(MedcossError, match="image-train-00000 embeds to non-finite"):
        embed_split(encoder, images, "train", data=DATA, batch_size=6)
