"""Files of a shard set: hashed while written, read at offsets by many threads, names that cannot leave the folder."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from types import TracebackType

from medcoss.contracts import MedcossError, UsageError

_BLOCK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content. Raises `OSError`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_relative(name: str) -> str:
    """Return `name` if it is a plain relative POSIX path that stays below its folder, else raise `UsageError`."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
        raise UsageError(f"file name {name[:80]!r} in the manifest may leave its folder: do not use this shard set")
    return name


def checked_bytes(directory: Path, name: str, sha256: dict[str, str]) -> bytes:
    """Content of a file that the manifest lists by SHA-256.

    Raises `UsageError` if the manifest does not list it, `MedcossError` if it is missing or differs.
    """
    if name not in sha256:
        raise UsageError(f"{directory}: the manifest lists no file {name!r}")
    try:
        content = (directory / name).read_bytes()
    except OSError as error:
        raise MedcossError(f"{directory / name}: {error.strerror}: restore the file") from error
    if hashlib.sha256(content).hexdigest() != sha256[name]:
        raise MedcossError(f"{directory / name} is damaged (SHA-256 differs from the manifest): restore the file")
    return content


class HashedFile:
    """A binary file being written that knows its SHA-256 and size without being read again."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    @property
    def sha256(self) -> str:
        """Hex digest of what was written so far."""
        return self._digest.hexdigest()

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._file.close()


class _Descriptor:
    """An open file that closes when its last user lets go: eviction never closes it under a reading thread."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class Files:
    """Reads parts of files by offset, thread-safe, keeping at most `limit` files open."""

    def __init__(self, directory: Path, limit: int = 64) -> None:
        self._directory = directory
        self._limit = limit
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, offset: int, size: int) -> bytes:
        """The `size` bytes at `offset` of file `name`; a negative offset counts from the end.

        Raises `MedcossError` naming the file if it is missing, unreadable or too short.
        """
        descriptor = self._descriptor(name)
        try:
            if offset < 0:
                offset += os.fstat(descriptor.number).st_size
            data = os.pread(descriptor.number, size, offset) if offset >= 0 else b""
        except OSError as error:
            raise MedcossError(f"shard {self._directory / name}: {error.strerror}") from error
        if len(data) != size:
            raise MedcossError(
                f"shard {self._directory / name} is cut short at byte {max(offset, 0) + len(data)}: restore the file"
            )
        return data

    def _descriptor(self, name: str) -> _Descriptor:
        with self._lock:
            descriptor = self._open.get(name)
            if descriptor is None:
                try:
                    descriptor = _Descriptor(self._directory / name)
                except OSError as error:
                    raise MedcossError(f"shard {self._directory / name}: {error.strerror}: restore the file") from error
                self._open[name] = descriptor
            self._open.move_to_end(name)
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
            return descriptor
