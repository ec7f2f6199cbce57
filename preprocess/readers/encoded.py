"""Text out of foreign bytes: gzip, byte order marks, a declared encoding, one part of a large file."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from preprocess.conversion import failed
from preprocess.heartbeat import beat

MAX_TEXT_BYTES = 4 << 20
"""A single report is a few kB; a larger text file is something else."""
MAX_UNPACKED_BYTES = 128 << 20
"""What a compressed table may unpack to: its rows are held in memory as one unit of work, for gzip has no middle."""
MAX_LINE_CHARACTERS = 4 << 20
HEAD_BYTES = 4096

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    # Before UTF-16, whose mark is the beginning of this one.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BAD = re.compile("[\0\ud800-\udfff]")
_BEAT_LINES = 4096


def is_bad(text: str) -> bool:
    """Whether characters could not be decoded (they are surrogates then), or are no text at all (NUL)."""
    return "\0" in text if text.isascii() else _BAD.search(text) is not None


def find_encoding(head: bytes, declared: str) -> str:
    """The encoding that a byte order mark tells, else the declared one."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), declared)


def is_wide(encoding: str) -> bool:
    """Whether ASCII characters take more than one byte in it, so that NUL bytes are no sign of binary content."""
    return encoding.lower().replace("-", "").replace("_", "").startswith(("utf16", "utf32"))


def is_gzip(path: Path) -> bool:
    """By the name."""
    return path.suffix.lower() == ".gz"


def read_head(path: Path) -> bytes:
    """The first `HEAD_BYTES` bytes, unpacked. Raises `Refusal` for damaged gzip data."""
    with _open(path, 0, HEAD_BYTES) as stream:
        return stream.read(HEAD_BYTES)


def read_bytes(path: Path, limit: int) -> bytes:
    """The whole content, unpacked. Raises `Refusal`: `empty`, `too_large` beyond `limit` bytes, `unreadable`."""
    with _open(path, 0, limit + 1) as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise failed("too_large", f"more than {limit >> 20} MiB of text in one piece: put several reports into a table")
    if not data.strip():
        raise failed("empty")
    return data


def read_text(path: Path, encoding: str) -> str:
    """A text file. Raises `Refusal`: `empty`, `too_large`, `encoding`, or `unreadable` for binary content."""
    data = read_bytes(path, MAX_TEXT_BYTES)
    encoding = find_encoding(data, encoding)
    if b"\0" in data and not is_wide(encoding):
        raise failed("unreadable", "binary content in a text file, or UTF-16 without its mark (name it in --encoding)")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise failed("encoding", f"byte {error.start} is not {encoding}") from error


def open_text(path: Path, encoding: str, first_byte: int = 0, size: int | None = None) -> TextIO:
    """A stream of text, line ends as they are; what cannot be decoded becomes surrogates (see `is_bad`).

    `first_byte` and `size` (bytes) choose a part of an uncompressed file. Reading raises `Refusal` for damaged gzip
    data and beyond the limit of unpacked bytes.
    """
    raw = _open(path, first_byte, size)
    return io.TextIOWrapper(raw, find_encoding(read_head(path), encoding), errors="surrogateescape", newline="")


def lines(stream: TextIO) -> Iterator[str | None]:
    """The lines with their ends, None for one beyond `MAX_LINE_CHARACTERS`.

    Raises `Refusal` (`encoding`) where an encoding of several bytes a character is broken beyond repair.
    """
    number = 0
    try:
        while line := stream.readline(MAX_LINE_CHARACTERS):
            number += 1
            if number % _BEAT_LINES == 0:
                beat()
            if len(line) < MAX_LINE_CHARACTERS or line[-1] in "\r\n":
                yield line
                continue
            while line and line[-1] not in "\r\n":
                beat()
                line = stream.readline(MAX_LINE_CHARACTERS)
            yield None
    except UnicodeDecodeError as error:
        raise failed("encoding", f"not {error.encoding} after line {number}") from error


def _open(path: Path, first_byte: int, size: int | None) -> io.BufferedReader:
    if is_gzip(path):
        unpacked = cast(BinaryIO, gzip.open(path, "rb"))  # noqa: SIM115 -- closed with the stream around it
        return io.BufferedReader(_Window(unpacked, size, MAX_UNPACKED_BYTES))
    stream = path.open("rb")
    stream.seek(first_byte)
    return io.BufferedReader(_Window(stream, size, None))


class _Window(io.RawIOBase):
    """The next `size` bytes of a stream; more than `limit` bytes are refused."""

    def __init__(self, stream: BinaryIO, size: int | None, limit: int | None) -> None:
        self._stream, self._left, self._limit = stream, size, limit
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = len(buffer) if self._left is None else min(len(buffer), self._left)
        try:
            data = self._stream.read(wanted)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise failed("unreadable", "the gzip data is damaged or cut off") from error
        buffer[: len(data)] = data
        self._read += len(data)
        if self._left is not None:
            self._left -= len(data)
        if self._limit is not None and self._read > self._limit:
            raise failed("too_large", f"unpacks to more than {self._limit >> 20} MiB: unpack it first")
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
