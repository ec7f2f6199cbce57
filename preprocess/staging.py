"""Converted units on disk until all are there: one file a unit, whole or absent, holding nothing but what is shipped.

A staged file is a JSON header (outcomes, figures, samples with tokens instead of names) followed by the samples' bytes
as shards hold them: volumes are compressed already, so that this work is done by as many processes as converting.
It needs no fsync: after a crash of the machine a torn file fails its check and the unit is converted again.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from medcoss.atomic import TEMPORARY_SUFFIX
from medcoss.contracts import MedcossError
from medcoss.shards import compress_volume, decompress_volume
from preprocess.conversion import Outcome, Status
from preprocess.heartbeat import beat

_MAGIC = b"medcoss staged 4"
_OPEN_FILES = 64


@dataclass(frozen=True, slots=True)
class StagedSample:
    """One sample of a staged unit: all but its data, which is `size` bytes at `offset` after the header.

    `shape` and `dtype` are those of a volume (D, H, W), None for encoded bytes. `known` says whether the subject token
    stands for a known subject. `labels` and `geometry` are JSON texts: the samples of all units are held in memory
    until the set is written, and as objects these alone would take a kilobyte each.
    """

    key: str
    input_id: str
    subject: str
    known: bool
    split: str | None
    labels: str
    geometry: str
    offset: int
    size: int
    crc32: int
    shape: tuple[int, ...] | None
    dtype: str | None


@dataclass(frozen=True, slots=True)
class StagedAttachment:
    """A file for `qc/inputs/`: named after the samples whose keys begin with `prefix`; bytes as of a sample."""

    prefix: str
    extension: str
    offset: int
    size: int
    crc32: int


@dataclass(slots=True)
class StagedUnit:
    """A unit's outcomes by input id in the order of its files, its figures, samples, attachments and counts (by input
    id and name). `stamp` tells whether inputs changed.
    """

    unit_id: str
    stamp: str
    outcomes: dict[str, Outcome]
    figures: dict[str, list[float]] = field(default_factory=dict)
    samples: list[StagedSample] = field(default_factory=list)
    attachments: list[StagedAttachment] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Number of files of the unit that failed."""
        return sum(outcome.status is Status.FAILED for outcome in self.outcomes.values())


class UnitWriter:
    """Writes one staged unit; the name appears when all is written."""

    def __init__(self, directory: Path, unit_id: str, stamp: str) -> None:
        self._path = directory / unit_id
        self._unit = StagedUnit(unit_id, stamp, {})
        self._parts: list[bytes] = []
        self._offset = 0

    def add(self, data: bytes | np.ndarray[Any, Any], **about: Any) -> None:
        """Add a sample; `about` are the fields of `StagedSample` that do not describe the data."""
        if isinstance(data, np.ndarray):
            shape, dtype, part = data.shape, data.dtype.str, compress_volume(data)
        else:
            shape, dtype, part = None, None, data
        self._unit.samples.append(StagedSample(**self._place(part), shape=shape, dtype=dtype, **about))

    def attach(self, prefix: str, extension: str, data: bytes) -> None:
        """Add a file for people to look at."""
        self._unit.attachments.append(StagedAttachment(prefix, extension, **self._place(data)))

    def _place(self, part: bytes) -> dict[str, Any]:
        place = {"offset": self._offset, "size": len(part), "crc32": zlib.crc32(part)}
        self._parts.append(part)
        self._offset += len(part)
        return place

    def commit(
        self, outcomes: dict[str, Outcome], figures: dict[str, list[float]], counts: dict[str, dict[str, int]]
    ) -> StagedUnit:
        """Write the file. Raises `OSError` (disk full) with nothing left under the unit's name."""
        self._unit.outcomes, self._unit.figures, self._unit.counts = outcomes, figures, counts
        header = json.dumps(self._unit, default=_fields, separators=(",", ":")).encode()
        temporary = self._path.with_name(self._path.name + TEMPORARY_SUFFIX)
        try:
            with temporary.open("wb") as file:
                file.write(_MAGIC + len(header).to_bytes(8, "big") + zlib.crc32(header).to_bytes(4, "big") + header)
                for part in self._parts:
                    file.write(part)
                    beat()
            temporary.replace(self._path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return self._unit


def _fields(value: StagedUnit | StagedSample | StagedAttachment | Outcome) -> dict[str, Any]:
    """As `dataclasses.asdict`, which copies all that it holds and takes a fifth of a short report's time."""
    return {name: getattr(value, name) for name in value.__slots__}


def read_unit(path: Path) -> StagedUnit | None:
    """The header of a staged unit, None if there is no whole one at `path`."""
    try:
        with path.open("rb") as file:
            header = _header(file)
            complete = header is not None and os.fstat(file.fileno()).st_size == file.tell() + header[1]
    except FileNotFoundError:
        return None
    return header[0] if header is not None and complete else None


def _header(file: BinaryIO) -> tuple[StagedUnit, int] | None:
    """The unit and the size of the data that follow it; the file is left at the start of the data."""
    start = file.read(len(_MAGIC) + 12)
    if len(start) != len(_MAGIC) + 12 or not start.startswith(_MAGIC):
        return None
    header = file.read(int.from_bytes(start[len(_MAGIC) : -4], "big"))
    if zlib.crc32(header) != int.from_bytes(start[-4:], "big"):
        return None
    content = json.loads(header)
    samples = [
        StagedSample(**{**sample, "shape": None if sample["shape"] is None else tuple(sample["shape"])})
        for sample in content.pop("samples")
    ]
    outcomes = {
        name: Outcome(Status(outcome["status"]), outcome["reason"], outcome["message"])
        for name, outcome in content.pop("outcomes").items()
    }
    attachments = [StagedAttachment(**attachment) for attachment in content.pop("attachments")]
    unit = StagedUnit(**content, outcomes=outcomes, samples=samples, attachments=attachments)
    return unit, sum(part.size for part in samples) + sum(part.size for part in attachments)


class StagedData:
    """Reads single samples' data out of staged units, keeping few files open."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: OrderedDict[str, tuple[BinaryIO, int]] = OrderedDict()

    def read(self, unit_id: str, sample: StagedSample) -> bytes | np.ndarray[Any, Any]:
        """The sample's bytes, or its volume (D, H, W). Raises `MedcossError` if they are damaged."""
        data = self.read_bytes(unit_id, sample)
        if sample.shape is None:
            return data
        return decompress_volume(data, np.dtype(sample.dtype), sample.shape)

    def read_bytes(self, unit_id: str, part: StagedSample | StagedAttachment) -> bytes:
        """The bytes of a sample, as a shard holds them, or of an attachment. Raises `MedcossError` for damaged ones."""
        file, start = self._file(unit_id)
        data = os.pread(file.fileno(), part.size, start + part.offset)
        if zlib.crc32(data) != part.crc32:
            (self._directory / unit_id).unlink(missing_ok=True)
            raise MedcossError(f"staged unit {unit_id} in {self._directory} was damaged and is removed: run again")
        return data

    def _file(self, unit_id: str) -> tuple[BinaryIO, int]:
        if unit_id not in self._open:
            file = (self._directory / unit_id).open("rb")
            start = file.read(len(_MAGIC) + 12)
            header_bytes = int.from_bytes(start[len(_MAGIC) : -4], "big")
            self._open[unit_id] = (file, len(start) + header_bytes)
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(unit_id)
        return self._open[unit_id]

    def close(self) -> None:
        """Close all files."""
        while self._open:
            self._open.popitem()[1][0].close()
