"""Writing a shard set: its splits one by one, the manifest last. Without a manifest a folder is no shard set."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from medcoss import atomic
from medcoss.contracts import SPLITS, Kind, MedcossError, ModalitySpec, UsageError, check_key, check_name
from medcoss.shards import manifest as manifests
from medcoss.shards import tar, zarr
from medcoss.shards.manifest import MANIFEST, Manifest, SplitEntry
from medcoss.shards.sample import Sample

__all__ = ["Sample", "write_manifest", "write_split"]

_CREATORS = ("medcoss", "numpy", "numcodecs", "zarr")


def write_split(
    directory: Path, spec: ModalitySpec, split: str, samples: Iterable[Sample], count: int, shard_size: int
) -> tuple[SplitEntry, dict[str, str]]:
    """Write the shards of one split; returns its manifest entry and the SHA-256 of the other files made.

    `samples` must be `count` samples in strictly ascending order of key. What an interrupted run left of this split is
    removed first. The same samples give the same bytes. After an exception nothing of the split is left.
    Raises `MedcossError` for samples out of order, of another number or of the wrong form, `UsageError` for keys or
    names that are not allowed and for a folder that already holds a finished set.
    """
    check_name(split)
    if shard_size < 1 or count < 0:
        raise UsageError(f"shard size {shard_size} and {count} samples: expected at least 1 and 0")
    if (directory / MANIFEST).exists():
        raise UsageError(f"{directory} holds a finished shard set: choose another folder")
    directory.mkdir(parents=True, exist_ok=True)
    _remove(directory, split)
    subjects: set[str] = set()
    checked = _checked(samples, count, subjects)
    try:
        if spec.kind is Kind.VOLUME:
            shards, files = zarr.write(directory, spec, split, checked, count, shard_size)
        else:
            shards, files = tar.write(directory, spec, split, checked, shard_size)
        for _ in checked:
            pass  # a surplus sample is found only by asking for it
    except BaseException:
        _remove(directory, split)
        raise
    return SplitEntry(count, len(subjects), shards), files


def write_manifest(
    directory: Path,
    *,
    spec: ModalitySpec,
    splits: dict[str, SplitEntry],
    files: dict[str, str],
    settings: dict[str, Any],
    inputs: dict[str, int],
    salt_id: str,
    parent: dict[str, Any] | None = None,
) -> Manifest:
    """Commit a shard set: write its manifest, atomically, after everything it names is in place."""
    order = [*(name for name in SPLITS if name in splits), *sorted(set(splits) - set(SPLITS))]
    manifest = Manifest(
        schema_version=manifests.SCHEMA_VERSION,
        name=spec.name,
        kind=spec.kind,
        spec=spec,
        splits={name: splits[name] for name in order},
        files=dict(sorted(files.items())),
        settings=settings,
        settings_hash=manifests.hash_settings(settings),
        inputs=inputs,
        salt_id=salt_id,
        parent=parent,
        created_by={"python": ".".join(map(str, sys.version_info[:3]))} | {n: metadata.version(n) for n in _CREATORS},
        fingerprint="",
    )
    # Through JSON and back: what is hashed now is what a reader will hash (tuples become lists, for one).
    manifest = Manifest.from_json(manifests.plain_json(manifest.to_json()))
    manifest = replace(manifest, fingerprint=manifest.computed_fingerprint())
    atomic.write_bytes(directory / MANIFEST, manifests.readable_json(manifest.to_json()))
    return manifest


def _checked(samples: Iterable[Sample], count: int, subjects: set[str]) -> Iterator[Sample]:
    previous = ""
    number = 0
    for sample in samples:
        if check_key(sample.key) <= previous:
            raise MedcossError(f"sample {sample.key} comes after {previous}: keys must be unique and ascending")
        if number == count:
            raise MedcossError(f"sample {sample.key} is one more than the announced {count}: the input changed")
        previous = sample.key
        number += 1
        subjects.add(sample.subject)
        yield sample
    if number < count:
        raise MedcossError(f"{number} samples came, {count} were announced: the input changed while it was read")


def _remove(directory: Path, split: str) -> None:
    for pattern in (f"{split}-??????.*", f"{zarr.group_name(split)}"):
        for path in directory.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
