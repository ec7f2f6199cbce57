"""Reading a shard set: random access by position in shard order, every byte checked on every read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medcoss.contracts import Kind, ModalitySpec, UsageError
from medcoss.shards.files import checked_bytes
from medcoss.shards.manifest import Manifest, SplitEntry, read_manifest
from medcoss.shards.sample import Sample
from medcoss.shards.tar import TarShards
from medcoss.shards.zarr import ZarrShards


class Split:
    """The samples of one split. Position i counts through the shards in order. Reading is thread-safe."""

    def __init__(self, name: str, directory: Path, manifest: Manifest) -> None:
        self.name = name
        self._entry: SplitEntry = manifest.splits[name]
        self._shards: TarShards | ZarrShards
        if manifest.kind is Kind.VOLUME:
            self._shards = ZarrShards(directory, name, self._entry, manifest.files, manifest.spec)
        else:
            self._shards = TarShards(directory, self._entry, manifest.files, manifest.spec)

    def __len__(self) -> int:
        return self._entry.samples

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """Samples in each shard."""
        return tuple(shard.samples for shard in self._entry.shards)

    @property
    def shard_files(self) -> tuple[str, ...]:
        """Path of each shard below the set's folder."""
        return tuple(shard.file for shard in self._entry.shards)

    @cached_property
    def keys(self) -> list[str]:
        """All keys in shard order, read when first asked for."""
        return self._shards.keys() if len(self) else []

    def read(self, index: int) -> bytes | np.ndarray[Any, Any]:
        """Sample `index` as stored: encoded bytes, or a volume (D, H, W) in the stored dtype.

        Raises `IndexError` for an index outside [0, len), `MedcossError` naming sample and shard for damaged content.
        """
        return self._shards.read(self._position(index))

    def record(self, index: int) -> dict[str, Any]:
        """`key`, `subject`, `labels` and `geometry` of sample `index`; same errors as `read`."""
        return self._shards.record(self._position(index))

    def __getitem__(self, index: int) -> Sample:
        record = self.record(index)
        return Sample(record["key"], self.read(index), record["subject"], record["labels"], record["geometry"])

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def damaged_samples(self, shard: int) -> list[str]:
        """What in shard number `shard` does not match its CRC32C, by name."""
        return self._shards.damaged_members(shard)

    def layout_problems(self, shard: int) -> list[str]:
        """What in shard number `shard` contradicts its index, its sidecar or the format, a sentence each."""
        return self._shards.layout_problems(shard)

    def _position(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of split {self.name}, which has {len(self)}")
        return int(index)


class ShardSet:
    """A finished shard set; `len`, indexing and iteration go over its train split."""

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory = directory
        self.manifest = manifest
        self._splits: dict[str, Split] = {}

    @classmethod
    def open(cls, path: Path | str) -> ShardSet:
        """Open the set in folder `path`. Raises `UsageError` if none is finished there or its manifest was altered."""
        return cls(Path(path), read_manifest(Path(path)))

    @property
    def spec(self) -> ModalitySpec:
        """The modality's description."""
        return self.manifest.spec

    def split(self, name: str) -> Split:
        """The split called `name`. Raises `UsageError` if the set has none of that name."""
        if name not in self.manifest.splits:
            raise UsageError(f"{self.directory} has no split {name!r}: it has {', '.join(self.manifest.splits)}")
        if name not in self._splits:
            self._splits[name] = Split(name, self.directory, self.manifest)
        return self._splits[name]

    def file(self, name: str) -> bytes:
        """Content of a file the manifest lists (a tokenizer, an index), checked by SHA-256.

        Raises `UsageError` if it is not listed, `MedcossError` if it is missing or damaged.
        """
        return checked_bytes(self.directory, name, self.manifest.files)

    def __len__(self) -> int:
        return len(self.split("train"))

    def __getitem__(self, index: int) -> Sample:
        return self.split("train")[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.split("train"))
