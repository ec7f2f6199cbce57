"""Where large files of records may be cut, so that several workers share them and none holds much of one in memory.

The places depend on the file alone: any number of workers makes the same units of work.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from preprocess.heartbeat import beat
from preprocess.readers.encoded import find_encoding, is_gzip, read_head

PART_BYTES = 8 << 20
PART_ROWS = 10_000
"""Some seconds of work: what a worker says of itself while a unit is being stored is nothing."""

_BLOCK = 1 << 20
_SAFE = ("utf-8", "ascii", "iso8859", "cp125", "latin")
"""Encodings without states, in which a line feed and a quote are one byte that means nothing else."""

Seek = Callable[[BinaryIO, int, int], int]


def byte_parts(path: Path, encoding: str, seek: Seek) -> list[list[int]]:
    """[first byte, bytes] of each part; none for what is small, compressed or in another kind of encoding.

    `seek(file, start, target)` gives the first place at or after `target` where a record begins, the file's size if
    there is none; `start` is such a place before.
    """
    size = path.stat().st_size
    known = codecs.lookup(find_encoding(read_head(path), encoding)).name
    if size <= 2 * PART_BYTES or is_gzip(path) or not known.startswith(_SAFE):
        return []
    places = [0]
    with path.open("rb", buffering=_BLOCK) as file:
        while places[-1] + 2 * PART_BYTES < size:
            places.append(min(seek(file, places[-1], places[-1] + PART_BYTES), size))
    if places[-1] < size:
        places.append(size)
    return [[first, last - first] for first, last in pairwise(places)]


def next_line(file: BinaryIO, start: int, target: int) -> int:
    """Where the next line begins."""
    file.seek(target - 1)
    while piece := file.readline(_BLOCK):
        beat()
        if piece.endswith(b"\n"):
            break
    return file.tell()


def next_row(file: BinaryIO, start: int, target: int) -> int:
    """Where the next row of a CSV begins: after a line's end that lies in no quotes."""
    file.seek(start)
    quotes = 0
    while file.tell() < target:
        quotes += file.read(min(_BLOCK, target - file.tell())).count(b'"')
        beat()
    while piece := file.readline(_BLOCK):
        quotes += piece.count(b'"')
        if piece.endswith(b"\n") and quotes % 2 == 0:
            break
        beat()
    return file.tell()


def next_abstract(file: BinaryIO, start: int, target: int) -> int:
    """Where the next line begins that starts with `###`."""
    place = next_line(file, start, target)
    file.seek(place)
    while piece := file.readline(_BLOCK):
        if piece.startswith(b"###"):
            return place
        place = file.tell()
        beat()
    return place


def row_parts(rows: int) -> list[list[int]]:
    """[first row, rows] of each part of a table of `rows` rows; none for a small one."""
    if rows <= 2 * PART_ROWS:
        return []
    return [[first, min(PART_ROWS, rows - first)] for first in range(0, rows, PART_ROWS)]
