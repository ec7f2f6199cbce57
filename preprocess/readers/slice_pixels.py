"""The stored values of a series' slices, decoded when they are asked for, and the real values that they stand for."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from preprocess.conversion import InputFile, Refusal, failed
from preprocess.heartbeat import beat
from preprocess.readers.dicom import PIXEL_TAGS, PixelPlace, add_pixels, decode_pixels
from preprocess.readers.frames import Frame
from preprocess.readers.mosaic import slices_of_mosaic
from preprocess.readers.volume import Array

_NEEDED = frozenset(BaseTag(tag) for tag in PIXEL_TAGS)


class SlicePixels:
    """Stored values by frame. Those of a file are decoded once, after its header, which is not read again."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._headers: dict[str, tuple[Dataset, PixelPlace | None]] = {}
        self._decoded: dict[str, Array | Refusal] = {}

    def add(self, file: InputFile, header: Dataset, place: PixelPlace | None) -> None:
        """A file whose frames may be asked for, by its header and the place of its pixel data."""
        for tag in header.keys() - _NEEDED:
            del header[tag]
        self._headers[file.relative] = header, place

    def of(self, frame: Frame) -> Array:
        """Stored values (rows, columns). Raises the `Refusal` met while decoding."""
        name = frame.file.relative
        if name not in self._decoded:
            self._decoded[name] = self._decode(frame)
            beat()
        values = self._decoded[name]
        if isinstance(values, Refusal):
            raise values
        if frame.number >= len(values):
            raise failed("truncated_pixels", f"{len(values)} frames, expected {frame.number + 1} or more")
        return np.asarray(values[frame.number])

    def _decode(self, frame: Frame) -> Array | Refusal:
        header, place = self._headers.pop(frame.file.relative)
        try:
            values = decode_pixels(add_pixels(header, frame.file.path, place), max_pixels=self._max_pixels)
        except Refusal as refusal:
            return refusal
        if frame.tiles > 1:
            return slices_of_mosaic(values, frame.tiles)
        return values.reshape(-1, *values.shape[-2:])

    def forget(self, frames: Iterable[Frame]) -> None:
        """Drop the values of frames not asked for again; those of a multi-frame file stay until the unit ends."""
        for frame in frames:
            values = self._decoded.get(frame.file.relative)
            if values is not None and not isinstance(values, Refusal) and len(values) == 1:
                del self._decoded[frame.file.relative]


def rescaled(stored: Array, frame: Frame, padding_becomes: float | None) -> Array:
    """Real values of one slice: int16 where slope and intercept are whole and all values fit, else float32."""
    whole = stored.dtype.kind in "iu" and frame.slope.is_integer() and frame.intercept.is_integer()
    padded: Array | None = None
    if padding_becomes is not None and frame.padding is not None:
        padded = (stored >= frame.padding[0]) & (stored <= frame.padding[1])
    scaled: Array
    if whole and abs(frame.slope) < 1 << 14 and abs(frame.intercept) < 1 << 30:
        slope, intercept = int(frame.slope), int(frame.intercept)
        inside = stored if padded is None else stored[~padded]
        ends = [int(end) * slope + intercept for end in (inside.min(), inside.max())] if inside.size else [0]
        if min(ends) >= -(1 << 15) and max(ends) < 1 << 15:
            # All results fit, so what wraps around on the way wraps back.
            scaled = stored.astype(np.int16) * np.int16(slope) + np.array(intercept).astype(np.int16)
        else:
            scaled = (stored.astype(np.int64) * slope + intercept).astype(np.float32)
    else:
        scaled = stored.astype(np.float32) * np.float32(frame.slope) + np.float32(frame.intercept)
    if padded is not None and padding_becomes is not None:
        scaled[padded] = padding_becomes
    return scaled
