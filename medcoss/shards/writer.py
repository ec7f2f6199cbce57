"""Writing a shard set: its splits one by one, the manifest last. Without a manifest a folder is no shard set."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

from medcoss import atomic
from medcoss.contracts import SPLITS, Kind, MedcossError, ModalitySpec, UsageError, check_key, check_name
from medcoss.shards import manifest as manifests
from medcoss.shards import tar, zarr
from medcoss.shards.manifest import MANIFEST, Manifest, ShardFile, SplitEntry
from medcoss.shards.sample import Sample

__all__ = ["Sample", "SplitWriter", "WrittenShard", "write_manifest", "write_shard", "write_split"]

_CREATORS = ("medcoss", "numpy", "numcodecs", "zarr")


@dataclass(frozen=True)
class WrittenShard:
    """A shard, and the SHA-256 of the files beside it."""

    shard: ShardFile
    files: dict[str, str]


def write_split(
    directory: Path, spec: ModalitySpec, split: str, samples: Iterable[Sample], count: int, shard_size: int
) -> tuple[SplitEntry, dict[str, str]]:
    """Write the shards of one split; returns its manifest entry and the SHA-256 of the other files made.

    `samples` must be `count` samples in strictly ascending order of key. What an interrupted run left of this split is
    removed first. The same samples give the same bytes. After an exception nothing of the split is left.
    Raises `MedcossError` for samples out of order, of another number or of the wrong form, `UsageError` for keys or
    names that are not allowed and for a folder that already holds a finished set.
    """
    with SplitWriter(directory, spec, split, count, shard_size) as writer:
        noted = writer.noted(samples)
        shards = [
            write_shard(directory, spec, split, number, writer.shard_size, islice(noted, writer.shard_size))
            for number in range(writer.shards)
        ]
        for _ in noted:
            pass  # a surplus sample is found only by asking for it
        return writer.close(shards)


def write_shard(
    directory: Path, spec: ModalitySpec, split: str, number: int, shard_size: int, samples: Iterable[Sample]
) -> WrittenShard:
    """Write shard `number` of a split that a `SplitWriter` has begun; another process may do so.

    `samples` are those from `number * shard_size` on; volumes may come compressed (`compress_volume`).
    """
    if spec.kind is Kind.VOLUME:
        return WrittenShard(zarr.write_shard(directory, spec, split, number, samples, shard_size), {})
    return WrittenShard(*tar.write_shard(directory, spec, split, number, samples))


class SplitWriter:
    """A split whose shards are written one by one, in any order: it is told of each sample in the order of keys.

    Use it in a `with` block: an exception inside, or one without `close`, leaves nothing of the split behind.
    """

    def __init__(self, directory: Path, spec: ModalitySpec, split: str, count: int, shard_size: int) -> None:
        check_name(split)
        if shard_size < 1 or count < 0:
            raise UsageError(f"shard size {shard_size} and {count} samples: expected at least 1 and 0")
        if (directory / MANIFEST).exists():
            raise UsageError(f"{directory} holds a finished shard set: choose another folder")
        self.shard_size = max(1, min(shard_size, count))
        self.shards = math.ceil(count / self.shard_size)
        self._directory, self._spec, self._split, self._count = directory, spec, split, count
        self._volumes = spec.kind is Kind.VOLUME
        self._noted = 0
        self._last_key = ""
        self._subjects: set[str] = set()
        self._keys: list[str] = []
        self._records: list[str] = []
        self._closed = False
        directory.mkdir(parents=True, exist_ok=True)
        _remove(directory, split)
        if not self._volumes:
            tar.check(spec)
        elif count:
            zarr.begin(directory, spec, split, count, self.shard_size)

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if not self._closed:
            _remove(self._directory, self._split)

    def note(self, sample: Sample) -> None:
        """Take notice of the next sample; its data is not looked at."""
        if check_key(sample.key) <= self._last_key:
            raise MedcossError(f"sample {sample.key} comes after {self._last_key}: keys must be unique and ascending")
        if self._noted == self._count:
            raise MedcossError(f"sample {sample.key} is one more than the announced {self._count}: the input changed")
        self._last_key = sample.key
        self._noted += 1
        self._subjects.add(sample.subject)
        if self._volumes:
            self._keys.append(sample.key)
            self._records.append(sample.record_json())

    def noted(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The samples as they are, each noted on its way."""
        for sample in samples:
            self.note(sample)
            yield sample

    def close(self, written: Sequence[WrittenShard]) -> tuple[SplitEntry, dict[str, str]]:
        """Write what tells of the whole split; `written` are all shards in order. Returns what `write_split` does."""
        if self._noted < self._count:
            raise MedcossError(
                f"{self._noted} samples came, {self._count} were announced: the input changed while it was read"
            )
        shards = tuple(one.shard for one in written)
        files = {name: digest for one in written for name, digest in one.files.items()}
        if self._volumes and self._count:
            files |= zarr.end(self._directory, self._split, self._keys, self._records, shards)
        self._closed = True
        return SplitEntry(self._count, len(self._subjects), shards), files


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


def _remove(directory: Path, split: str) -> None:
    for pattern in (f"{split}-??????.*", f"{zarr.group_name(split)}"):
        for path in directory.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
