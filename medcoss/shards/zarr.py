"""Volume shards: a Zarr v3 group with one sharded array, one inner chunk a sample, plus keys and records.

Shard objects are written and read here, byte by byte after the Zarr sharding specification, rather than through
zarr-python: that keeps one sample in memory instead of a shard, gives the same bytes on every run, and reads a sample
with one read and its checksum. What is written is plain Zarr and stock `zarr` reads it; `zarr.json`, keys and records
are written by it.
"""

from __future__ import annotations

import json
import math
import struct
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import google_crc32c
import numpy as np

from medcoss import atomic
from medcoss.contracts import MedcossError, ModalitySpec, UsageError
from medcoss.shards.files import Files, HashedFile, checked_bytes, sha256_file
from medcoss.shards.manifest import ShardFile, SplitEntry
from medcoss.shards.sample import Sample

if TYPE_CHECKING:
    from zarr.abc.codec import BytesBytesCodec

_CRC_BYTES = 4
_ABSENT = (1 << 64) - 1
"""Offset and size of a chunk that a shard does not hold (the last shard is rarely full)."""
_LEVEL = 1
_MAX_BLOCK_BYTES = 2 << 20
"""A sample of usual size is one block of Blosc's. Smaller blocks, and higher levels of Zstandard on shuffled data, take
twice to three times the time to write and a third more to read, and come out larger (docs/performance.md).
"""
_BLOSC_HEADER = struct.Struct("<3xBI4xI")
"""Bytes an element, bytes before and after compression: what a Blosc chunk says of itself."""

_STRINGS_A_CHUNK = 1 << 14
"""Keys or records in one file: they are read as a whole, so few files are better."""


def group_name(split: str) -> str:
    """Folder of a split's Zarr group."""
    return f"{split}.zarr"


def begin(directory: Path, spec: ModalitySpec, split: str, count: int, shard_size: int) -> None:
    """Create a split's group and its array of `count` volumes, `shard_size` to a shard object.

    Raises `UsageError` for a spec that is no one-channel Zarr volume.
    """
    import zarr

    if spec.fields[0].encoding != "zarr" or spec.geometry.shape[0] != 1:
        raise UsageError(f"{spec.name}: volumes are stored as one channel in encoding zarr")
    dtype, shape = stored_as(spec)
    zarr.create_group(directory / group_name(split), zarr_format=3, overwrite=True).create_array(
        "volume",
        shape=(count, *shape),
        dtype=dtype,
        chunks=(1, *shape),
        shards=(shard_size, *shape),
        compressors=_codecs(dtype, shape),
        dimension_names=("sample", "z", "y", "x"),
    )


def write_shard(
    directory: Path, spec: ModalitySpec, split: str, number: int, samples: Iterable[Sample], shard_size: int
) -> ShardFile:
    """Write one shard object: the compressed chunks, then the index of their offsets and sizes, then its CRC32C.

    Raises `MedcossError` for a volume of another shape or dtype than the spec's.
    """
    name = f"{group_name(split)}/volume/c/{number}/0/0/0"
    index = np.full((shard_size, 2), _ABSENT, dtype="<u8")
    with atomic.atomic_file(directory / name) as temporary, HashedFile(temporary) as shard:
        written = 0
        for place, sample in enumerate(samples):
            chunk = _with_crc(_chunk(sample, spec))
            index[place] = shard.bytes, len(chunk)
            shard.write(chunk)
            written = place + 1
        shard.write(_with_crc(index.tobytes()))
        return ShardFile(name, written, shard.bytes, shard.sha256)


def end(
    directory: Path, split: str, keys: Sequence[str], records: Sequence[str], shards: Iterable[ShardFile]
) -> dict[str, str]:
    """Write the keys and records (JSON) of all samples; returns the SHA-256 of each file but the shard objects."""
    group = directory / group_name(split)
    _write_strings(group, key=keys, meta=records)
    listed = {shard.file for shard in shards}
    names = {path.relative_to(directory).as_posix(): path for path in sorted(group.rglob("*")) if path.is_file()}
    return {name: sha256_file(path) for name, path in names.items() if name not in listed}


def stored_as(spec: ModalitySpec) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Dtype and shape (D, H, W) of the spec's stored volumes."""
    return np.dtype(spec.fields[0].dtype), spec.geometry.shape[1:]


def compress(volume: np.ndarray[Any, Any]) -> bytes:
    """A volume (D, H, W) as the chunk that a shard object holds of it, without its CRC32C."""
    from numcodecs import blosc

    # Threads inside Blosc finish blocks in any order: the same input would give other bytes.
    blosc.use_threads = False
    little = np.ascontiguousarray(volume, dtype=volume.dtype.newbyteorder("<"))
    shuffle = blosc.SHUFFLE if _shuffle(volume.dtype) == "shuffle" else blosc.BITSHUFFLE
    return bytes(blosc.compress(little, b"zstd", _LEVEL, shuffle, _block(volume.dtype, volume.shape)))


def decompress(chunk: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The volume (D, H, W) that `compress` was given, writable. `chunk` must be sound."""
    from numcodecs import blosc

    volume = np.empty(shape, dtype=dtype)
    blosc.decompress(chunk, volume)
    return volume


def _codecs(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[BytesBytesCodec, ...]:
    from zarr.codecs import BloscCodec, Crc32cCodec

    blosc = BloscCodec(
        typesize=dtype.itemsize, cname="zstd", clevel=_LEVEL, shuffle=_shuffle(dtype), blocksize=_block(dtype, shape)
    )
    return blosc, Crc32cCodec()


def _shuffle(dtype: np.dtype[Any]) -> Literal["shuffle", "bitshuffle"]:
    """Few of an integer's bits change from voxel to voxel; a float's mantissa is noise, whose bytes are best kept."""
    return "shuffle" if dtype.kind == "f" else "bitshuffle"


def _block(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return min(math.prod(shape) * dtype.itemsize, _MAX_BLOCK_BYTES)


def _write_strings(group: Path, **columns: Sequence[str]) -> None:
    import zarr

    opened = zarr.open_group(group, mode="r+")
    for name, values in columns.items():
        chunk = min(len(values), _STRINGS_A_CHUNK)
        array = opened.create_array(name, shape=(len(values),), dtype=str, chunks=(chunk,), dimension_names=("sample",))
        array[:] = np.array(values, dtype=np.dtypes.StringDType())


def _chunk(sample: Sample, spec: ModalitySpec) -> bytes:
    dtype, shape = stored_as(spec)
    data = sample.data
    if isinstance(data, bytes):
        size = math.prod(shape) * dtype.itemsize
        if len(data) < _BLOSC_HEADER.size or _BLOSC_HEADER.unpack_from(data) != (dtype.itemsize, size, len(data)):
            raise MedcossError(f"sample {sample.key}: expected a compressed volume {dtype} {shape}")
        return data
    if data.shape != shape or data.dtype != dtype:
        raise MedcossError(f"sample {sample.key}: expected a volume {dtype} {shape}, got {data.dtype} {data.shape}")
    return compress(data)


def _with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", google_crc32c.value(data))


def _without_crc(data: bytes) -> bytes | None:
    """`data` without its trailing CRC32C, or None if that does not match."""
    content, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    return content if struct.pack("<I", google_crc32c.value(content)) == crc else None


class ZarrShards:
    """Random access to a split's samples in shard order. Thread-safe."""

    def __init__(
        self, directory: Path, split: str, entry: SplitEntry, files: dict[str, str], spec: ModalitySpec
    ) -> None:
        self._directory = directory
        self._group = group_name(split)
        self._shards = entry.shards
        self._sha256 = files
        self._spec = spec
        self._dtype, self._shape = stored_as(spec)
        self._ends = list(accumulate(shard.samples for shard in entry.shards))
        self._indexes: dict[int, np.ndarray[Any, np.dtype[np.uint64]]] = {}
        self._strings: dict[str, list[str]] = {}
        self._files = Files(directory)
        self._lock = threading.Lock()
        self._shard_size = self._check_layout() if entry.shards else 0

    def keys(self) -> list[str]:
        """All keys, in shard order."""
        return list(self._column("key"))

    def read(self, index: int) -> np.ndarray[Any, Any]:
        """Volume `index` (D, H, W) in the stored dtype, writable.

        Raises `MedcossError` naming sample and shard if it is damaged.
        """
        number = bisect_right(self._ends, index)
        name = self._shards[number].file
        place = index - self._ends[number] + self._shards[number].samples
        offset, size = (int(value) for value in self._index(number)[place])
        content = _without_crc(self._files.read(name, offset, size)) if size != _ABSENT else None
        if content is None:
            key = self._column("key")[index]
            raise MedcossError(
                f"sample {key} in {self._directory / name} is damaged (CRC32C differs): restore the shard"
            )
        return decompress(content, self._dtype, self._shape)

    def record(self, index: int) -> dict[str, Any]:
        """Key, subject, labels and geometry of sample `index`."""
        return dict(json.loads(self._column("meta")[index]))

    def damaged_members(self, number: int) -> list[str]:
        """Keys of the samples of shard `number` that do not match their CRC32C."""
        damaged: list[str] = []
        for index in range(self._ends[number] - self._shards[number].samples, self._ends[number]):
            try:
                self.read(index)
            except MedcossError:
                damaged.append(self._column("key")[index])
        return damaged

    def layout_problems(self, number: int) -> list[str]:
        """Where the index of shard `number` is not that of chunks without gaps, one a sample."""
        shard, index = self._shards[number], self._index(number)
        end = 0
        for place, (offset, size) in enumerate(index.tolist()):
            if place >= shard.samples:
                if (offset, size) != (_ABSENT, _ABSENT):
                    return [f"its index has a chunk for place {place}, which holds no sample"]
            elif offset != end:
                return [f"the chunk of sample {place} starts at byte {offset}, not {end}"]
            else:
                end += size
        extra = shard.bytes - end - 16 * self._shard_size - _CRC_BYTES
        return [f"has {extra} bytes that belong to no sample"] if extra else []

    def _index(self, number: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
        with self._lock:
            if number not in self._indexes:
                name = self._shards[number].file
                size = 16 * self._shard_size + _CRC_BYTES
                content = _without_crc(self._files.read(name, -size, size))
                if content is None:
                    raise MedcossError(f"shard {self._directory / name}: its index is damaged: restore the shard")
                self._indexes[number] = np.frombuffer(content, dtype="<u8").reshape(-1, 2)
            return self._indexes[number]

    def _column(self, name: str) -> list[str]:
        """The strings of array `name`, whose files are checked against the manifest first."""
        with self._lock:
            if name not in self._strings:
                import zarr

                for file in (file for file in self._sha256 if file.startswith(f"{self._group}/{name}/")):
                    checked_bytes(self._directory, file, self._sha256)
                array = zarr.open_array(self._directory / self._group / name, mode="r")
                values = [str(value) for value in np.asarray(array[:]).tolist()]
                if len(values) != self._ends[-1]:
                    raise MedcossError(f"{self._directory / self._group / name} does not hold one entry a sample")
                self._strings[name] = values
            return self._strings[name]

    def _check_layout(self) -> int:
        """Samples a full shard holds, after making sure that the array is stored as `write` stores it."""
        name = f"{self._group}/volume/zarr.json"
        metadata = json.loads(checked_bytes(self._directory, name, self._sha256))
        sharding = metadata["codecs"][0]
        inner = [codec["name"] for codec in sharding.get("configuration", {}).get("codecs", [])]
        expected = [self._ends[-1], *self._shape]
        if (
            metadata["shape"] != expected
            or sharding["name"] != "sharding_indexed"
            or inner != ["bytes", "blosc", "crc32c"]
        ):
            raise UsageError(f"{self._directory / name}: not the layout of a medcoss volume set: make the set again")
        return int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
