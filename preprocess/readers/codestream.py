"""Compressed images inside DICOM objects: what each promises is compared with the header before it is decoded.

A decoder allocates what the stream's own header asks for, whatever DICOM's header says: some hundred bytes can ask for
gigabytes. And some decoders fill up what a stream that ends early lacks, without a word.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.uid import UID

from preprocess.conversion import failed
from preprocess.heartbeat import beat

MAX_INFLATED = 1 << 29
"""Bytes that a deflated object may take; pydicom inflates all of it at once, header and pixels."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_CUT_UNNOTICED = frozenset(UID(f"1.2.840.10008.1.2.4.{number}") for number in (50, 51, 57, 70, 80, 81))
"""JPEG of all processes and JPEG-LS, whose decoders fill what a stream that ends early lacks."""

_QUICK: dict[UID, Callable[[bytes], Any]] = {
    UID("1.2.840.10008.1.2.4.57"): imagecodecs.jpeg_decode,
    UID("1.2.840.10008.1.2.4.70"): imagecodecs.jpeg_decode,
    UID("1.2.840.10008.1.2.4.80"): imagecodecs.jpegls_decode,
}

_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xDE, 0xF7} - {0xC4, 0xC8, 0xCC})
"""JPEG's start of frame of every process, of a hierarchy of them, and JPEG-LS's."""


def refuse_unsound_streams(dataset: Dataset, syntax: UID) -> None:
    """Look at each compressed image of `dataset`. Refused: `truncated_pixels`, `unreadable`. Raises as pydicom does."""
    rows, columns, samples = int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1)
    for stream in _streams(dataset):
        for width, height, channels in promised(stream):
            if width * height * channels > rows * columns * samples:
                size = f"{width} x {height} x {channels}"
                raise failed("unreadable", f"a compressed image of {size} where the header says {columns} x {rows}")
        if syntax in _CUT_UNNOTICED and b"\xff\xd9" not in stream[-16:]:  # a byte or two of padding may follow
            raise failed("truncated_pixels", "a compressed image lacks its end")


def _streams(dataset: Dataset) -> Iterator[bytes]:
    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    frames = int(dataset.get("NumberOfFrames") or 1)
    yield from generate_frames(dataset.PixelData, number_of_frames=frames, extended_offsets=offsets)


def quickly_decoded(dataset: Dataset, syntax: UID) -> Iterator[np.ndarray[Any, Any]] | None:
    """Stored values of each frame (rows, columns), or None where pydicom's own decoders are needed.

    libjpeg-turbo and CharLS give the same values as those in a quarter of the time. Only lossless syntaxes, for
    decoders of lossy ones may differ, and only values that fill their words, whose sign needs no mending.
    """
    decode, bits = _QUICK.get(syntax), int(dataset.BitsAllocated)
    signed = bool(dataset.PixelRepresentation)
    if decode is None or int(dataset.SamplesPerPixel) > 1 or (signed and int(dataset.BitsStored) < bits):
        return None
    stored, real = np.dtype(f"u{bits // 8}"), np.dtype(f"{'iu'[not signed]}{bits // 8}")
    frames = (decode(stream) for stream in _streams(dataset))
    first = next(frames)
    if first.dtype != stored or first.shape != (dataset.Rows, dataset.Columns):
        return None
    return (frame.view(real) for frame in itertools.chain([first], frames))


def promised(stream: bytes) -> Iterator[tuple[int, int, int]]:
    """(width, height, channels) of each JPEG, JPEG-LS or JPEG 2000 header found; an unknown height is taken as large.

    Nothing for other streams (RLE, whose output cannot exceed 64 times its input).
    """
    if stream.startswith(b"\xff\xd8"):
        yield from _jpeg_frames(stream)
        return
    # In a bare codestream the header is at the start; a JP2 file has it in some box, and could have a decoy in another.
    place = stream.find(_START_OF_CODESTREAM)
    bare = place == 0
    while place >= 0:
        x, y, x0, y0 = (int.from_bytes(stream[place + at : place + at + 4]) for at in (8, 12, 16, 20))
        yield max(0, x - x0), max(0, y - y0), int.from_bytes(stream[place + 40 : place + 42])
        place = -1 if bare else stream.find(_START_OF_CODESTREAM, place + 1)


def _jpeg_frames(stream: bytes) -> Iterator[tuple[int, int, int]]:
    place = 2
    while place + 10 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        if marker == 0xDA:
            return
        if marker in _FRAME_MARKERS:
            height, width = (int.from_bytes(stream[place + at : place + at + 2]) for at in (5, 7))
            yield width or 0xFFFF, height or 0xFFFF, stream[place + 9]
        place += 2 + int.from_bytes(stream[place + 2 : place + 4])


def refuse_inflating(stream: BinaryIO) -> None:
    """Refuse a deflated object that would take more than `MAX_INFLATED` bytes (`too_large`). Raises OSError.

    The place in `stream`, an open file, is lost.
    """
    stream.seek(0)
    if _DEFLATED not in stream.read(1 << 16):
        return
    # The group's length stands in its first element, at byte 140; what is deflated comes after the group.
    stream.seek(140)
    stream.seek(144 + int.from_bytes(stream.read(4), "little"))
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while data := inflater.unconsumed_tail or stream.read(1 << 16):
        size += len(inflater.decompress(data, 1 << 24))
        beat()
        if size > MAX_INFLATED:
            raise failed("too_large", f"more than {MAX_INFLATED} bytes inflated")
