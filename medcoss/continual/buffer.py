"""A stage's rehearsal buffer: the samples that represent its set, written as a self-contained shard set."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from medcoss.atomic import TEMPORARY_SUFFIX, atomic_directory, write_bytes
from medcoss.config import DataConfig
from medcoss.continual.embeddings import EmbeddingTable, embed_split
from medcoss.continual.select import Selection, select
from medcoss.contracts import UsageError
from medcoss.data.loader import TOKENIZER_FILE
from medcoss.model.weights import fingerprint, load_encoder
from medcoss.shards.manifest import Manifest, read_manifest
from medcoss.shards.reader import ShardSet
from medcoss.shards.writer import write_manifest, write_split

SPLIT = "train"


def build_buffer(
    shard_set: ShardSet,
    model_path: Path,
    out: Path,
    *,
    ratio: float,
    centers: float,
    policy: Literal["kmeans", "random"],
    seed: int,
    data: DataConfig,
    batch_size: int = 64,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
) -> Manifest:
    """Choose round(ratio * N) train samples of `shard_set` by the model at `model_path` and write them to folder `out`.

    All ranks call it: each embeds its part, rank 0 selects and writes; `barrier` makes the ranks wait for each other. A
    finished buffer of the same set, model and settings is left as it is; a killed build leaves nothing at `out`. Its
    manifest's `parent` says what it was chosen from, how, and how many samples had to be filled in. Raises `UsageError`
    for a ratio that keeps nothing and for another buffer at `out`.
    """
    settings = {"policy": policy, "ratio": ratio, "centers": centers, "seed": seed}
    model = fingerprint(model_path)
    parent = {"fingerprint": shard_set.manifest.fingerprint, "model_sha256": model, **settings}
    count = len(shard_set.split(SPLIT))
    if ratio <= 0 or count == 0:
        raise UsageError(f"a buffer of {ratio} x {count} samples of {shard_set.directory} is empty: raise the ratio")
    exists = out.exists()
    barrier()  # no rank may look for `out` after another has begun to make it
    if exists:
        return _same_buffer(out, parent)
    scratch = out.with_name(f"{out.name}.embeddings{TEMPORARY_SUFFIX}")
    vectors = np.empty((count, 0), np.float32)
    if policy == "kmeans":
        table = _embed(shard_set, model_path, model, data, batch_size, rank, world_size)
        if world_size > 1:
            table.save(scratch / f"{rank}-of-{world_size}.safetensors")
            barrier()
        if rank == 0 and world_size > 1:
            parts = [scratch / f"{other}-of-{world_size}.safetensors" for other in range(world_size)]
            table = EmbeddingTable.join([EmbeddingTable.open(part) for part in parts])
        vectors = table.vectors
    if rank == 0:
        n, n_clusters = max(1, round(ratio * count)), max(1, min(count, round(centers * count)))
        chosen = select(vectors, n=n, n_clusters=n_clusters, policy=policy, seed=seed)
        _write(shard_set, chosen, out, parent, settings)
        shutil.rmtree(scratch, ignore_errors=True)
    barrier()
    return read_manifest(out)


def _embed(
    shard_set: ShardSet, model_path: Path, model: str, data: DataConfig, batch_size: int, rank: int, world_size: int
) -> EmbeddingTable:
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return embed_split(
        load_encoder(model_path).to(device),
        shard_set,
        SPLIT,
        data=data,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        model_fingerprint=model,
    )


def _same_buffer(out: Path, parent: dict[str, Any]) -> Manifest:
    manifest = read_manifest(out)
    for name, value in parent.items():
        found = (manifest.parent or {}).get(name)
        if found != value:
            raise UsageError(f"{out} is a buffer with another {name} ({found}, not {value}): delete it to build anew")
    return manifest


def _write(shard_set: ShardSet, chosen: Selection, out: Path, parent: dict[str, Any], settings: dict[str, Any]) -> None:
    source, manifest = shard_set.split(SPLIT), shard_set.manifest
    count = len(chosen.indices)
    with atomic_directory(out) as folder:
        samples = (source[int(index)] for index in chosen.indices)
        entry, files = write_split(folder, shard_set.spec, SPLIT, samples, count, max(source.shard_sizes))
        if TOKENIZER_FILE in manifest.files:
            write_bytes(folder / TOKENIZER_FILE, shard_set.file(TOKENIZER_FILE))
            files[TOKENIZER_FILE] = manifest.files[TOKENIZER_FILE]
        write_manifest(
            folder,
            spec=shard_set.spec,
            splits={SPLIT: entry},
            files=files,
            settings=settings,
            inputs={"read": len(source), "written": count, "skipped": len(source) - count, "failed": 0},
            salt_id=manifest.salt_id,
            parent={**parent, "filled": chosen.filled},
        )
