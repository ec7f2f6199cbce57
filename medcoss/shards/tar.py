"""Sequence and image shards: WebDataset tars with a DALI index and a sidecar of offsets and CRC32C per member.

Reading goes by the sidecar's offsets: no archive is ever extracted, so no member name can reach the file system.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import threading
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import google_crc32c

from medcoss import atomic
from medcoss.contracts import MedcossError, ModalitySpec, UsageError
from medcoss.shards.files import Files, HashedFile, checked_bytes
from medcoss.shards.manifest import ShardFile, SplitEntry
from medcoss.shards.sample import Sample

EXTENSIONS = {"utf8": "txt", "jpeg": "jpg", "png": "png"}
_RECORD_EXTENSION = "json"
_BLOCK = 512
_LONGEST_NAME = 100
_LARGEST_MEMBER = 8**11 - 1
_HEADER = "key,extension,offset,size,crc32c"


@dataclass(frozen=True)
class Member:
    """Where a member's content lies in its tar, and its CRC32C."""

    offset: int
    size: int
    crc32c: int


def shard_name(split: str, index: int) -> str:
    """File name of a split's shard number `index`."""
    return f"{split}-{index:06d}.tar"


def index_name(shard: str) -> str:
    """Name of a shard's DALI index."""
    return shard.removesuffix(".tar") + ".idx"


def sidecar_name(shard: str) -> str:
    """Name of a shard's sidecar of members."""
    return shard.removesuffix(".tar") + ".members.csv"


def check(spec: ModalitySpec) -> str:
    """The extension of the spec's members. Raises `UsageError` for an encoding that is no tar member's."""
    encoding = spec.fields[0].encoding
    if encoding not in EXTENSIONS:
        raise UsageError(f"{spec.name}: encoding {encoding!r} is unknown: expected one of {', '.join(EXTENSIONS)}")
    return EXTENSIONS[encoding]


def write_shard(
    directory: Path, spec: ModalitySpec, split: str, number: int, samples: Iterable[Sample]
) -> tuple[ShardFile, dict[str, str]]:
    """Write one tar, its index and its sidecar; returns the shard and the other files' SHA-256.

    Raises `MedcossError` for data that is not bytes and keys that are too long.
    """
    name, extension = shard_name(split, number), check(spec)
    index: list[str] = []
    sidecar: list[str] = [_HEADER]
    with atomic.atomic_file(directory / name) as temporary, HashedFile(temporary) as tar:
        for sample in samples:
            if not isinstance(sample.data, bytes):
                raise MedcossError(f"sample {sample.key}: expected encoded bytes, got {type(sample.data).__name__}")
            entries: list[str] = []
            for suffix, content in ((extension, sample.data), (_RECORD_EXTENSION, sample.record_json().encode())):
                member = f"{sample.key}.{suffix}"
                place, size = tar.bytes + _BLOCK, len(content)
                tar.write(b"".join((_header(member, size), content, bytes(-size % _BLOCK))))
                entries.append(f"{suffix} {place} {size} {member}")
                sidecar.append(f"{sample.key},{suffix},{place},{size},{google_crc32c.value(content):08x}")
            index.append(" ".join(entries))
        tar.write(bytes(2 * _BLOCK))
        shard = ShardFile(name, len(index), tar.bytes, tar.sha256)
    contents = {
        index_name(name): "\n".join([f"v1.2 {len(index)}", *index, ""]).encode(),
        sidecar_name(name): "\n".join([*sidecar, ""]).encode(),
    }
    for file, content in contents.items():
        atomic.write_bytes(directory / file, content)
    return shard, {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}


def _header(name: str, size: int) -> bytes:
    """A POSIX ustar header that holds nothing of the machine: no time, no owner."""
    encoded = name.encode()
    if len(encoded) > _LONGEST_NAME:
        raise MedcossError(f"sample key {name[:40]}… is too long for a tar member: at most 95 characters")
    if size > _LARGEST_MEMBER:
        raise MedcossError(f"sample {name[:40]}… has {size} bytes: a tar member holds at most {_LARGEST_MEMBER}")
    before, between, after = _TEMPLATE
    start = b"".join((encoded.ljust(_LONGEST_NAME, b"\0"), before, b"%011o\0" % size, between))
    # The checksum counts its own eight bytes as blanks.
    total = sum(start) + sum(after) + 8 * ord(" ")
    return b"".join((start, b"%06o\0 " % total, after))


def _template() -> tuple[bytes, bytes, bytes]:
    """The parts of a header between its name, size and checksum; the standard library's takes ten times as long."""
    member = tarfile.TarInfo()
    member.mode, member.mtime = 0o644, 0
    header = member.tobuf(tarfile.USTAR_FORMAT)
    return header[_LONGEST_NAME:124], header[136:148], header[156:]


_TEMPLATE = _template()


class TarShards:
    """Random access to a split's samples in shard order. Thread-safe."""

    def __init__(self, directory: Path, entry: SplitEntry, files: dict[str, str], spec: ModalitySpec) -> None:
        self._directory = directory
        self._shards = entry.shards
        self._sha256 = files
        self._extension = EXTENSIONS[spec.fields[0].encoding]
        self._ends = list(accumulate(shard.samples for shard in entry.shards))
        self._members: dict[int, tuple[list[str], dict[tuple[str, str], Member]]] = {}
        self._files = Files(directory)
        self._lock = threading.Lock()

    def keys(self) -> list[str]:
        """All keys, in shard order; reads every sidecar once."""
        return [key for number in range(len(self._shards)) for key in self._sidecar(number)[0]]

    def read(self, index: int) -> bytes:
        """The encoded content of sample `index`. Raises `MedcossError` naming sample and shard if it is damaged."""
        return self._read(index, self._extension)[1]

    def record(self, index: int) -> dict[str, Any]:
        """Key, subject, labels and geometry of sample `index`; same errors as `read`."""
        key, content = self._read(index, _RECORD_EXTENSION)
        record = json.loads(content)
        if record["key"] != key:
            raise MedcossError(f"sample {key}: its record names {record['key']!r}: the set was altered, make it again")
        return dict(record)

    def _read(self, index: int, extension: str) -> tuple[str, bytes]:
        number = bisect_right(self._ends, index)
        keys, members = self._sidecar(number)
        key = keys[index - self._ends[number] + len(keys)]
        member = members[key, extension]
        name = self._shards[number].file
        content = self._files.read(name, member.offset, member.size)
        if google_crc32c.value(content) != member.crc32c:
            raise MedcossError(
                f"sample {key} ({extension}) in {self._directory / name} is damaged (CRC32C differs): restore the shard"
            )
        return key, content

    def damaged_members(self, number: int) -> list[str]:
        """Names of the members of shard `number` that do not match their CRC32C."""
        keys = self._sidecar(number)[0]
        damaged: list[str] = []
        start = self._ends[number] - len(keys)
        for place, key in enumerate(keys):
            for extension in (self._extension, _RECORD_EXTENSION):
                try:
                    self._read(start + place, extension)
                except MedcossError:
                    damaged.append(f"{key}.{extension}")
        return damaged

    def layout_problems(self, number: int) -> list[str]:
        """Where shard `number` is not what its sidecar and its index say: names, sizes, offsets, the archive's end."""
        keys, members = self._sidecar(number)
        shard = self._shards[number]
        problems: list[str] = []
        index = [f"v1.2 {len(keys)}"]
        end = 0
        for key in keys:
            entries: list[str] = []
            for extension in (self._extension, _RECORD_EXTENSION):
                name, member = f"{key}.{extension}", members.get((key, extension))
                if member is None or member.offset != end + _BLOCK:
                    return [*problems, f"member {name} does not stand where its sidecar says"]
                if self._files.read(shard.file, end, _BLOCK) != _header(name, member.size):
                    problems.append(f"member {name} does not have the header of its name and {member.size} bytes")
                end = member.offset + member.size + -member.size % _BLOCK
                entries.append(f"{extension} {member.offset} {member.size} {name}")
            index.append(" ".join(entries))
        if shard.bytes != end + 2 * _BLOCK:
            problems.append(f"has {shard.bytes - end} bytes behind its last member, not {2 * _BLOCK}")
        name = index_name(shard.file)
        if checked_bytes(self._directory, name, self._sha256) != "\n".join([*index, ""]).encode():
            problems.append(f"its index {name} differs from its members")
        return problems

    def _sidecar(self, number: int) -> tuple[list[str], dict[tuple[str, str], Member]]:
        with self._lock:
            if number not in self._members:
                self._members[number] = self._load(self._shards[number])
            return self._members[number]

    def _load(self, shard: ShardFile) -> tuple[list[str], dict[tuple[str, str], Member]]:
        name = sidecar_name(shard.file)
        content = checked_bytes(self._directory, name, self._sha256)
        keys: list[str] = []
        members: dict[tuple[str, str], Member] = {}
        for line in content.decode().splitlines()[1:]:
            key, extension, offset, size, crc32c = line.split(",")
            members[key, extension] = Member(int(offset), int(size), int(crc32c, 16))
            if extension == self._extension:
                keys.append(key)
        if len(keys) != shard.samples:
            raise MedcossError(f"{self._directory / name} lists {len(keys)} samples, the manifest {shard.samples}")
        return keys, members
