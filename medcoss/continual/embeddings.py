"""One vector a sample, from a frozen encoder: what the rehearsal buffer is chosen by and what probes classify."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from safetensors.numpy import save_file

from medcoss.atomic import atomic_file
from medcoss.config import DataConfig
from medcoss.contracts import MedcossError, UsageError
from medcoss.data.loader import embedding_batches, tokenizer_of
from medcoss.model.vit import Encoder
from medcoss.shards.reader import ShardSet


@dataclass(frozen=True)
class EmbeddingTable:
    """Keys and vectors (N, width) float32, row by row, stamped with the model and the set they come from.

    `model_fingerprint` is the model file's SHA-256, empty for an encoder that was never saved. A table that was opened
    from a file maps it into memory instead of reading it.
    """

    keys: tuple[str, ...]
    vectors: Float32[np.ndarray, "N width"]
    model_fingerprint: str
    manifest_fingerprint: str

    def save(self, path: Path) -> None:
        """Write one safetensors file with tensors `vectors` and `keys` (UTF-8, a line a key), atomically."""
        names = np.frombuffer("\n".join(self.keys).encode(), np.uint8)
        stamps = {"model_fingerprint": self.model_fingerprint, "manifest_fingerprint": self.manifest_fingerprint}
        tensors = {"keys": names, "vectors": np.ascontiguousarray(self.vectors)}
        with atomic_file(path) as temporary:
            # One metadata entry: the order of several would differ from run to run, and with it the file's bytes.
            save_file(tensors, temporary, metadata={"embeddings": json.dumps(stamps, sort_keys=True)})

    @classmethod
    def open(cls, path: Path) -> EmbeddingTable:
        """Map a saved table. Raises `UsageError` if there is none at `path` or it is no table of embeddings."""
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, path.stat().st_size)))
            stamps = json.loads(header["__metadata__"]["embeddings"])
            arrays = {name: _map(path, 8 + length, header[name]) for name in ("keys", "vectors")}
            keys = tuple(arrays["keys"].tobytes().decode().split("\n")) if len(arrays["vectors"]) else ()
            table = cls(keys, arrays["vectors"], stamps["model_fingerprint"], stamps["manifest_fingerprint"])
        except OSError as error:
            raise UsageError(f"embeddings {path}: {error.strerror}: give a file of `medcoss embed`") from error
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise UsageError(f"embeddings {path}: not a table of embeddings ({error}): make it again") from error
        if len(table.keys) != len(table.vectors):
            raise UsageError(
                f"embeddings {path}: {len(table.keys)} keys for {len(table.vectors)} vectors: make it again"
            )
        return table

    @classmethod
    def join(cls, tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
        """One table of the rows of `tables` in turn. Raises `UsageError` if they are of different models or sets."""
        first = tables[0]
        for table in tables:
            if (table.model_fingerprint, table.manifest_fingerprint) != (
                first.model_fingerprint,
                first.manifest_fingerprint,
            ):
                raise UsageError("embeddings of different models or shard sets cannot be joined")
        keys = tuple(key for table in tables for key in table.keys)
        vectors = np.concatenate([table.vectors for table in tables])
        return cls(keys, vectors, first.model_fingerprint, first.manifest_fingerprint)


def embed_split(
    encoder: Encoder,
    shard_set: ShardSet,
    split: str,
    *,
    data: DataConfig,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    model_fingerprint: str = "",
) -> EmbeddingTable:
    """Embed this rank's part of a split: evaluation mode, nothing masked or augmented, mean over real output tokens.

    Runs where the encoder's weights are; the parts of all ranks, joined in order, are the whole split. Raises
    `MedcossError` naming the sample whose vector is not finite, and what reading raises.
    """
    spec, part = shard_set.spec, shard_set.split(split)
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    keys: list[str] = []
    vectors: list[NDArray[np.float32]] = [np.empty((0, encoder.architecture.width), np.float32)]
    try:
        with torch.inference_mode():
            tokenizer = tokenizer_of(shard_set)
            for batch in embedding_batches(part, spec, batch_size, rank, world_size, data, tokenizer=tokenizer):
                valid = None if batch.valid is None else batch.valid.to(device)
                found = encoder.embed(batch.inputs.to(device), spec.kind, valid).float().cpu().numpy()
                finite = np.isfinite(found).all(axis=1)
                if not finite.all():
                    key = batch.keys[int(np.argmin(finite))]
                    raise MedcossError(f"sample {key} embeds to non-finite numbers: training diverged, lower the rate")
                keys += batch.keys
                vectors.append(found)
    finally:
        encoder.train(was_training)
    return EmbeddingTable(tuple(keys), np.concatenate(vectors), model_fingerprint, shard_set.manifest.fingerprint)


def _map(path: Path, offset: int, entry: dict[str, object]) -> NDArray[np.generic]:
    """A tensor of a safetensors file as a read-only memory map."""
    dtype = {"F32": np.float32, "U8": np.uint8}[str(entry["dtype"])]
    shape = tuple(json.loads(str(entry["shape"])))
    begin, end = json.loads(str(entry["data_offsets"]))
    if begin == end:  # an empty range cannot be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset + begin, shape)
