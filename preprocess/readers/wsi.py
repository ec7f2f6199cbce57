"""Whole-slide images: levels, resolution and regions of OpenSlide's formats (DICOM too) and of plain images.

Only pixels and the resolution are ever read: a slide's label, macro image and text properties, where names and
accession numbers stand, are never opened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from preprocess.conversion import Refusal, failed
from preprocess.readers import raster

_PLAUSIBLE_MPP = (0.02, 50.0)
"""Outside it a resolution is a scanner driver's placeholder such as 72 dpi, not a microscope's."""

_TIFF_MAGIC = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_RASTER_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM")
_BLOCK = 2048
"""Side in px of what is read at once where a whole level is read: bounds memory to some 30 MB."""
_SMALLEST_BLOCK = 256
"""Side in px from which a block that cannot be decoded is tried in quarters."""


@dataclass(frozen=True)
class Level:
    """One resolution of a slide: its size in px and how many level-0 px one of its px spans."""

    index: int
    width: int
    height: int
    downsample: float


class Slide(Protocol):
    """A slide open for reading; `mpp` is µm a px at level 0, None where unknown."""

    levels: tuple[Level, ...]
    mpp: float | None

    def read(self, level: Level, x: int, y: int, width: int, height: int) -> np.ndarray[Any, Any]:
        """RGB (height, width, 3) uint8 at (x, y) in px of `level`; outside the slide is white.

        Refused: `broken_tile`; the slide stays usable.
        """

    def close(self) -> None:
        """Release the file."""


class PlainImage:
    """A decoded image as a slide of one level without a resolution of its own."""

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
    """A slide read by OpenSlide. Raises `OpenSlideError` of the library where the file is not sound."""

    def __init__(self, path: Path) -> None:
        import openslide

        self._library = openslide
        self._path = path
        self._slide = openslide.OpenSlide(path)
        sizes, spans = self._slide.level_dimensions, self._slide.level_downsamples
        self.levels: tuple[Level, ...] = tuple(
            Level(index, size[0], size[1], float(span))
            for index, (size, span) in enumerate(zip(sizes, spans, strict=True))
        )
        self.mpp: float | None = self._resolution()

    def _resolution(self) -> float | None:
        names = (self._library.PROPERTY_NAME_MPP_X, self._library.PROPERTY_NAME_MPP_Y)
        try:
            x, y = (float(self._slide.properties[name]) for name in names)
        except (KeyError, ValueError):
            return None
        square = x > 0 and y > 0 and abs(x / y - 1) <= 0.05
        return plausible_mpp(math.sqrt(x * y)) if square else None

    def read(self, level: Level, x: int, y: int, width: int, height: int) -> np.ndarray[Any, Any]:
        corner = (round(x * level.downsample), round(y * level.downsample))
        try:
            region = self._slide.read_region(corner, level.index, (width, height))
        except self._library.OpenSlideError as error:
            # One failed read leaves OpenSlide's handle refusing all others: a broken tile must cost that tile only.
            self._slide.close()
            self._slide = self._library.OpenSlide(self._path)
            raise failed("broken_tile", "a region of the slide cannot be decoded") from error
        if region.getchannel("A").getextrema() == (255, 255):
            return np.asarray(region.convert("RGB"))
        white = Image.new("RGBA", region.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, region).convert("RGB"))

    def close(self) -> None:
        self._slide.close()


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
        slide = _open_by_library(path, may_be_plain=head.startswith(_TIFF_MAGIC))
        if slide is not None:
            return slide
    return PlainImage(raster.rgb_values(raster.open_raster(path, max_pixels=max_pixels).image))


def _open_by_library(path: Path, *, may_be_plain: bool) -> OpenSlideImage | None:
    import openslide

    try:
        return OpenSlideImage(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        if may_be_plain:
            return None
        raise failed("unreadable", "not a slide that OpenSlide reads") from error
    except (openslide.OpenSlideError, OSError, ValueError) as error:
        raise failed("unreadable", "the slide is damaged or parts of it are missing") from error


def overview(slide: Slide, cell_px: float) -> tuple[np.ndarray[Any, Any], float]:
    """The whole slide reduced to cells of at most about `cell_px` level-0 px: RGB (rows, columns, 3) uint8.

    The second value is a cell's true side in level-0 px. The coarsest level that is fine enough is read block by block,
    a finer one if nothing of it can be decoded; places that cannot be decoded are white. Cells that would lie partly
    outside the slide are left out. Refused: `unreadable` if no level can be decoded.
    """
    fine_enough = [level for level in slide.levels if level.downsample <= max(cell_px, 1.0)] or [slide.levels[0]]
    for level in sorted(fine_enough, key=lambda each: -each.downsample):
        factor = max(1, int(cell_px / level.downsample))
        cells = np.full((level.height // factor, level.width // factor, 3), 255, dtype=np.uint8)
        reading = _Reduction(slide, level, factor, cells)
        reading.fill()
        if reading.blocks_read or not cells.size:
            return cells, factor * level.downsample
    raise failed("unreadable", "no part of the slide can be decoded")


@dataclass
class _Reduction:
    """Fills `cells` (rows, columns, 3), each the mean of `factor` x `factor` px of `level`, around what is broken."""

    slide: Slide
    level: Level
    factor: int
    cells: np.ndarray[Any, Any]
    blocks_read: int = 0
    patience: int = 200
    """Failed reads that are still looked into for readable parts: each costs a new opening of the file."""

    def fill(self) -> None:
        step = max(1, _BLOCK // self.factor)
        rows, columns = self.cells.shape[:2]
        for top in range(0, rows, step):
            for left in range(0, columns, step):
                self._fill(top, left, min(step, rows - top), min(step, columns - left))

    def _fill(self, top: int, left: int, high: int, wide: int) -> None:
        k = self.factor
        try:
            block = self.slide.read(self.level, left * k, top * k, wide * k, high * k)
        except Refusal:
            self.patience -= 1
            if max(high, wide) * k >= _SMALLEST_BLOCK and max(high, wide) > 1 and self.patience > 0:
                upper, near = (high + 1) // 2, (wide + 1) // 2
                for y, part_high in ((top, upper), (top + upper, high - upper)):
                    for x, part_wide in ((left, near), (left + near, wide - near)):
                        if part_high and part_wide:
                            self._fill(y, x, part_high, part_wide)
            return
        self.blocks_read += 1
        self.cells[top : top + high, left : left + wide] = np.asarray(Image.fromarray(block).reduce(k))


def tissue(cells: np.ndarray[Any, Any], clamp: tuple[float, float] = (0.03, 0.15)) -> np.ndarray[Any, Any]:
    """Which cells (rows, columns, 3) uint8 are tissue: colour saturation above Otsu's threshold held within `clamp`.

    Glass is grey at any brightness and stains are coloured. Nearly black cells (scanner borders) count as grey:
    their saturation is noise.
    """
    if cells.size == 0:
        return np.zeros(cells.shape[:2], dtype=bool)
    high = cells.max(axis=2).astype(np.float32)
    low = cells.min(axis=2).astype(np.float32)
    saturation = np.where(high >= 24, (high - low) / np.maximum(high, 1), 0.0)
    coloured: np.ndarray[Any, Any] = saturation > min(max(_otsu(saturation), clamp[0]), clamp[1])
    return coloured


def _otsu(values: np.ndarray[Any, Any], bins: int = 512) -> float:
    """The threshold in [0, 1] that separates `values` best into two classes (largest variance between them)."""
    counts, edges = np.histogram(values, bins=bins, range=(0.0, 1.0))
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts).astype(np.float64)
    above = below[-1] - below
    mass = np.cumsum(counts * centers)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(edges[1:][int(np.argmax(np.nan_to_num(between, nan=-1.0)))])
