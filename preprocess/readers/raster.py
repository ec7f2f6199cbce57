"""PNG, JPEG, TIFF and BMP files: decoded pixels from untrusted bytes, and the JPEG that samples are stored as.

A stored JPEG is always encoded anew from pixels, so no EXIF, comment, colour profile or trailing byte of a source can
travel with it, and equal pixels give equal bytes. Orientation is applied, for a picture lying on its side is another
picture; a colour profile is not: grey files rarely carry one, and a model should see what the scanner wrote.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from preprocess.conversion import failed

MAX_PIXELS = 200_000_000
"""Default limit of pixels decoded from one raster file; 600 MB as RGB."""

_FILE_BYTES_A_PIXEL = 16
"""Four channels of 32 bits."""

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")

_PHOTOMETRIC, _WHITE_IS_ZERO = 0x0106, 0
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = tuple(_UPRIGHT[code] for code in (5, 6, 7, 8))


_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    EOFError,
    MemoryError,
    RecursionError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's parsers raise for bytes that are not sound."""


@dataclass(frozen=True)
class Raster:
    """A decoded, upright image; `height` and `width` are the file's own, `image` may be smaller (see `open_raster`).

    `white_is_zero` marks a deep TIFF whose values still run from white to black; `more` that further pages follow.
    """

    image: Image.Image
    height: int
    width: int
    white_is_zero: bool
    more: bool


@contextmanager
def sound_pixels() -> Iterator[None]:
    """Turn what Pillow raises inside the block into `failed: unreadable`; its warnings are silenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnidentifiedImageError as error:
            raise failed("unreadable", "not a PNG, JPEG, TIFF or BMP image") from error
        except _DECODE_ERRORS as error:
            raise failed("unreadable", f"the image is damaged or cut short ({type(error).__name__})") from error


def open_raster(path: Path, *, max_pixels: int = MAX_PIXELS, side: int | None = None, grey: bool = False) -> Raster:
    """Decode the first page of a raster file and turn it upright as its EXIF orientation says.

    `side` lets a JPEG be decoded at a half, quarter or eighth of its size as long as its short side stays at or above
    that many pixels, and `grey` as luminance: several times faster for large files.
    Refused: `empty`, `too_large` (by the header, before anything is decoded), `unreadable`.
    """
    with sound_pixels():
        size = path.stat().st_size
        if size == 0:
            raise failed("empty", "0 bytes")
        # Pillow's own limit warns at one size and fails at twice it; the check below refuses before any decoding.
        Image.MAX_IMAGE_PIXELS = None
        if size > _FILE_BYTES_A_PIXEL * max_pixels:
            # A parser would look for the next marker up to the end of a file with holes.
            raise failed("too_large", f"a file of {size} bytes")
        # An open file, not a path: Pillow would map the file into memory, where one that shrinks meanwhile kills the
        # process, and where the rows of an uncompressed TIFF that is to be turned come out at a wrong length.
        with path.open("rb") as stream, Image.open(stream, formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise failed("too_large", f"{width} x {height} pixels, limit {max_pixels}")
            # Not their number: a small file can chain millions of directories, each read to count them.
            more = image.format != "MPO" and bool(getattr(image, "is_animated", False))
            inverted = image.format == "TIFF" and image.mode in _DEEP_MODES and _photometric(image) == _WHITE_IS_ZERO
            if image.format in ("JPEG", "MPO"):
                scale = 1.0 if side is None else min(1.0, side / min(width, height))
                image.draft("L" if grey else None, (math.ceil(width * scale), math.ceil(height * scale)))
            image.load()
            if image.mode in ("P", "PA") and image.palette is None:
                raise failed("unreadable", "colours of a palette that is not there")
            if image.format == "TIFF":  # Pillow turns these itself, and gives the size after it
                return Raster(image, height, width, inverted, more)
            turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
            upright = image if turn is None else image.transpose(turn)
    sideways = turn in _SIDEWAYS
    return Raster(upright, width if sideways else height, height if sideways else width, inverted, more)


def grey_values(read: Raster) -> np.ndarray[Any, Any]:
    """Luminance (height, width): uint8, or uint16, int32 or float32 where the file is deeper; alpha lies on black."""
    image = read.image
    if image.mode == "L" and not image.has_transparency_data:
        return np.asarray(image)
    with sound_pixels():
        if image.mode in _DEEP_MODES:
            deep = np.asarray(image)
            values = np.ascontiguousarray(deep, dtype=deep.dtype.newbyteorder("="))
            if read.white_is_zero:
                return -values if values.dtype.kind == "f" else ~values
            return values
        return np.asarray(_opaque(image, 0).convert("L"))


def rgb_values(image: Image.Image) -> np.ndarray[Any, Any]:
    """Colour (height, width, 3) uint8 in the order red, green, blue; alpha lies on white.

    Refused: `unsupported_format` for more than 8 bits a channel.
    """
    if image.mode in _DEEP_MODES:
        raise failed("unsupported_format", "one channel of more than 8 bits")
    with sound_pixels():
        return np.asarray(_opaque(image, 255).convert("RGB"))


def grey_figures(pixels: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Mean and standard deviation of every fourth row and column of uint8 pixels (height, width), in grey levels."""
    some = pixels[::4, ::4].astype(np.float64).ravel()
    # On so few values, the checks that numpy's own two make take longer than the sums.
    mean = float(np.add.reduce(some)) / some.size
    return mean, math.sqrt(max(float(some @ some) / some.size - mean**2, 0.0))


def shrink(pixels: np.ndarray[Any, Any], short_side: int) -> np.ndarray[Any, Any]:
    """Resize uint8 pixels (height, width[, 3]) to a short side of `short_side` px, aspect kept; never enlarged."""
    height, width = pixels.shape[:2]
    if min(height, width) <= short_side:
        return pixels
    scale = short_side / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # The gap allows a box reduction first, which costs no visible quality and most of the time of a large reduction.
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0))


def encode_jpeg(pixels: np.ndarray[Any, Any], quality: int) -> bytes:
    """JPEG of uint8 (height, width) or (height, width, 3); colour is kept at full resolution (4:4:4)."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def _photometric(image: Image.Image) -> object:
    tags = getattr(image, "tag_v2", {})
    return tags.get(_PHOTOMETRIC)


def _opaque(image: Image.Image, background: int) -> Image.Image:
    if not image.has_transparency_data:
        return image
    layer = image.convert("RGBA")
    base = Image.new("RGBA", layer.size, (background, background, background, 255))
    return Image.alpha_composite(base, layer)
