"""Whole-slide images: levels, resolution and regions of OpenSlide's formats (DICOM too) and of plain images.

Only pixels and the resolution are ever read: a slide's label, macro image and text properties, where names and
accession numbers stand, are never opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from preprocess.conversion import Refusal, failed
from preprocess.readers import raster
from preprocess.readers.tiff_slide import JpegTiles, TiffPyramid

_PLAUSIBLE_MPP = (0.02, 50.0)
"""Outside it a resolution is a scanner driver's placeholder such as 72 dpi, not a microscope's."""

_PLAIN_TIFF = ("aperio", "generic-tiff")
"""Vendors, in OpenSlide's words, whose levels lie in TIFF pages without gaps or overlaps between tiles."""

_TILE_PX, _TILE_SIDE = 1 << 26, 1 << 14
"""The library decodes tiles whole, whatever part is asked for; a scanner's are 256 to 4096 px wide."""

_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_RASTER_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")


@dataclass(frozen=True)
class Level:
    """One resolution of a slide: its size in px and how many level-0 px one of its px spans."""

    index: int
    width: int
    height: int
    downsample: float


class Slide(Protocol):
    """A slide open for reading; `mpp` is µm a px at level 0, None where unknown.

    `decoded_whole` says that opening it decodes all of it, so that opening it in several processes gains nothing.
    """

    levels: tuple[Level, ...]
    mpp: float | None
    decoded_whole: bool

    def read(self, level: Level, x: int, y: int, width: int, height: int) -> np.ndarray[Any, Any]:
        """RGB (height, width, 3) uint8 at (x, y) in px of `level`; outside the slide is white.

        Refused: `broken_tile`; the slide stays usable.
        """

    def close(self) -> None:
        """Release the file."""


class PlainImage:
    """A decoded image as a slide of one level without a resolution of its own."""

    decoded_whole = True

    def __init__(self, pixels: np.ndarray[Any, Any]) -> None:
        self._pixels = pixels
        self.levels: tuple[Level, ...] = (Level(0, pixels.shape[1], pixels.shape[0], 1.0),)
        self.mpp: float | None = None

    def read(self, level: Level, x: int, y: int, width: int, height: int) -> np.ndarray[Any, Any]:
        region = np.full((height, width, 3), 255, dtype=np.uint8)
        inside = self._pixels[y : y + height, x : x + width]
        region[: inside.shape[0], : inside.shape[1]] = inside
        return region

    def close(self) -> None:
        return


class OpenSlideImage:
    """A slide read by OpenSlide. Raises `OpenSlideError` of the library where the file is not sound.

    Levels that are plain TIFF pages of JPEG tiles are decoded without it, to the same pixels in a fifth of the time.
    """

    decoded_whole = False

    def __init__(self, path: Path) -> None:
        import openslide

        self._library = openslide
        self._path = path
        self._slide = openslide.OpenSlide(path)
        sides = [f"openslide.level[{index}].tile-{{}}" for index in range(self._slide.level_count)]
        properties = self._slide.properties
        for side in sides:
            width, height = (int(properties.get(side.format(name), 0)) for name in ("width", "height"))
            if width * height > _TILE_PX or max(width, height) > _TILE_SIDE:
                self._slide.close()
                raise failed("too_large", "a level whose tiles are beyond measure")
        sizes, spans = self._slide.level_dimensions, self._slide.level_downsamples
        self.levels: tuple[Level, ...] = tuple(
            Level(index, size[0], size[1], float(span))
            for index, (size, span) in enumerate(zip(sizes, spans, strict=True))
        )
        self.mpp: float | None = self._resolution()
        self.vendor = str(self._slide.properties.get(openslide.PROPERTY_NAME_VENDOR) or "")
        self._direct: JpegTiles | None = None
        if self.vendor in _PLAIN_TIFF:
            with suppress(Refusal):
                self._direct = JpegTiles.of(path, sizes)

    def _resolution(self) -> float | None:
        names = (self._library.PROPERTY_NAME_MPP_X, self._library.PROPERTY_NAME_MPP_Y)
        try:
            x, y = (float(self._slide.properties[name]) for name in names)
        except (KeyError, ValueError):
            return None
        square = x > 0 and y > 0 and abs(x / y - 1) <= 0.05
        return plausible_mpp(math.sqrt(x * y)) if square else None

    def read(self, level: Level, x: int, y: int, width: int, height: int) -> np.ndarray[Any, Any]:
        if self._direct is not None and level.index in self._direct.pages:
            return self._direct.pages[level.index].read(x, y, width, height)
        corner = (round(x * level.downsample), round(y * level.downsample))
        try:
            region = self._slide.read_region(corner, level.index, (width, height))
        except self._library.OpenSlideError as error:
            # One failed read leaves OpenSlide's handle refusing all others: a broken tile must cost that tile only.
            self._slide.close()
            self._slide = self._library.OpenSlide(self._path)
            raise failed("broken_tile", "a region of the slide cannot be decoded") from error
        pixels = np.asarray(region)
        if pixels[..., 3].min() == 255:
            return np.ascontiguousarray(pixels[..., :3])
        white = Image.new("RGBA", region.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, region).convert("RGB"))

    def close(self) -> None:
        self._slide.close()
        if self._direct is not None:
            self._direct.close()


class TiffImage:
    """A tiled TIFF that OpenSlide does not read, or whose levels and resolution it does not see (OME-TIFF)."""

    decoded_whole = False

    def __init__(self, path: Path) -> None:
        """Refused: `unreadable`, `unsupported_format`."""
        self._pyramid = TiffPyramid(path)
        first = self._pyramid.pages[0]
        if not all(page.width and page.height for page in self._pyramid.pages):
            raise failed("unreadable", "a level without pixels")
        self.levels: tuple[Level, ...] = tuple(
            Level(index, page.width, page.height, math.sqrt(first.width * first.height / (page.width * page.height)))
            for index, page in enumerate(self._pyramid.pages)
        )
        size = self._pyramid.um_a_px
        self.mpp: float | None = None if size is None else plausible_mpp(size)

    def read(self, level: Level, x: int, y: int, width: int, height: int) -> np.ndarray[Any, Any]:
        return self._pyramid.pages[level.index].read(x, y, width, height)

    def close(self) -> None:
        self._pyramid.close()


def plausible_mpp(value: float) -> float | None:
    """`value` if it can be the resolution of a slide in µm a px, else None."""
    low, high = _PLAUSIBLE_MPP
    return value if math.isfinite(value) and low <= value <= high else None


def open_slide(path: Path, *, max_pixels: int = raster.MAX_PIXELS) -> Slide:
    """Open a slide by what its bytes are: OpenSlide for its formats, else a plain image decoded whole.

    `max_pixels` limits plain images only: slides are read region by region.
    Refused: `empty`, `unreadable`, and for plain images `too_large` and `unsupported_format`.
    """
    try:
        if path.stat().st_size == 0:
            raise failed("empty", "0 bytes")
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise failed("unreadable", f"cannot be opened ({error.strerror})") from error
    if not head.startswith(_RASTER_MAGIC):
        slide = _open_by_library(path, is_tiff=head.startswith(_TIFF_MAGIC))
        if slide is not None:
            return slide
    return PlainImage(raster.rgb_values(raster.open_raster(path, max_pixels=max_pixels).image))


@contextmanager
def opened(path: Path, *, max_pixels: int = raster.MAX_PIXELS) -> Iterator[Slide]:
    """`open_slide`, closed at the end of the block."""
    slide = open_slide(path, max_pixels=max_pixels)
    try:
        yield slide
    finally:
        slide.close()


def _open_by_library(path: Path, *, is_tiff: bool) -> Slide | None:
    import openslide

    try:
        slide = OpenSlideImage(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        if not is_tiff:
            raise failed("unreadable", "not a slide that OpenSlide reads") from error
        return _open_tiff(path)
    except (openslide.OpenSlideError, OSError, ValueError) as error:
        raise failed("unreadable", "the slide is damaged or parts of it are missing") from error
    if slide.vendor == "generic-tiff" and (len(slide.levels) == 1 or slide.mpp is None):
        other = _open_tiff(path)
        if other is not None and (len(other.levels) > len(slide.levels) or (slide.mpp is None and other.mpp)):
            slide.close()
            return other
        if other is not None:
            other.close()
    return slide


def _open_tiff(path: Path) -> TiffImage | None:
    try:
        return TiffImage(path)
    except Refusal:
        return None
