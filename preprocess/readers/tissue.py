"""What lies where on a slide: an overview of it, and which of its cells are tissue, ink, black or glass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from preprocess.conversion import Refusal, failed
from preprocess.heartbeat import beat
from preprocess.readers.wsi import Level, Slide

Mask = np.ndarray[Any, np.dtype[np.bool_]]

CLAMP = (0.03, 0.15)
"""Otsu's threshold of saturation is held within these: a slide all of tissue, or of glass, has no two classes."""

_DARK = 48
"""Brightest channel of a scanner's border or black ink; nuclei stay above it in the mean of a cell."""
_WHITE = 222
"""Darkest channel of glass, fat and holes."""
_NOISE_BELOW = 24
"""Brightest channel below which a saturation is the sensor's noise."""

_BLOCK = 2048
"""Side in px of what is read at once where a whole level is read: bounds memory to some 30 MB."""
_SMALLEST_BLOCK = 256
"""Side in px from which a block that cannot be decoded is tried in quarters."""
_BAND_CELLS = 1_000_000


@dataclass(frozen=True)
class Cells:
    """Boolean maps (rows, columns) of a slide's overview; no cell is in two of `tissue`, `pen` and `dark`."""

    tissue: Mask
    pen: Mask
    dark: Mask
    white: Mask


def overview(slide: Slide, cell_px: float) -> tuple[np.ndarray[Any, Any], float]:
    """The whole slide reduced to cells of about `cell_px` level-0 px: RGB (rows, columns, 3) uint8.

    The second value is a cell's true side in level-0 px. The coarsest level that is fine enough is read block by block,
    a finer one if nothing of it can be decoded; places that cannot be decoded are white. Cells that would lie partly
    outside the slide are left out. Refused: `unreadable` if no level can be decoded.
    """
    fine_enough = [level for level in slide.levels if level.downsample <= max(cell_px, 1.0)] or [slide.levels[0]]
    for level in sorted(fine_enough, key=lambda each: -each.downsample):
        factor = max(1, round(cell_px / level.downsample))
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
        beat()
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


def sort_cells(cells: np.ndarray[Any, Any]) -> Cells:
    """Which cells (rows, columns, 3) uint8 are what.

    Tissue has a colour saturation above Otsu's threshold held within `CLAMP`, for glass is grey at any brightness and
    stains are coloured; ink and black count neither as tissue nor for the threshold.
    """
    shape = cells.shape[:2]
    saturation = np.zeros(shape, dtype=np.uint8)
    pen, dark, white = (np.zeros(shape, dtype=bool) for _ in range(3))
    counts = np.zeros(256, dtype=np.int64)
    for band in _bands(*shape):
        red, green, blue = (cells[band][..., channel].astype(np.int16) for channel in range(3))
        high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
        parts = np.where(high >= _NOISE_BELOW, (high - low) * np.float32(255) / np.maximum(high, 1), 0)
        saturation[band] = parts.astype(np.uint8)
        dark[band] = high < _DARK
        white[band] = low >= _WHITE
        pen[band] = is_ink(red, green, blue) & ~dark[band]
        counts += np.bincount(saturation[band][~(pen[band] | dark[band])], minlength=256)
    threshold = min(max(_otsu(counts), CLAMP[0]), CLAMP[1])
    tissue = saturation > threshold * 255
    tissue &= ~pen
    tissue &= ~dark
    return Cells(tissue, pen, dark, white)


def is_ink(red: np.ndarray[Any, Any], green: np.ndarray[Any, Any], blue: np.ndarray[Any, Any]) -> Mask:
    """Where channels (int16, 0 to 255) show blue, green or red ink of a pen. Black ink is dark instead.

    Haematoxylin and eosin let least of green through, DAB least of blue: what has least of red, or as little green as
    blue beside much red, is neither.
    """
    high = np.maximum(np.maximum(red, green), blue)
    strong = high - np.minimum(np.minimum(red, green), blue) > 0.3 * high
    cold = (strong & (green - red > 0.15 * high)) | ((blue > 2 * red) & (10 * green >= 9 * red))
    hot = (red > 130) & (green < 0.4 * red) & (blue < 0.4 * red) & (np.abs(green - blue) < 0.2 * red)
    ink: Mask = cold | hot
    return ink


def _bands(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _BAND_CELLS // max(columns, 1))
    for top in range(0, rows, step):
        beat()
        yield slice(top, top + step)


def _otsu(counts: np.ndarray[Any, Any]) -> float:
    """The threshold in [0, 1] that separates 256 counts of saturation into the two classes farthest apart."""
    centres = (np.arange(256) + 0.5) / 256
    below = np.cumsum(counts).astype(np.float64)
    above = below[-1] - below
    mass = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    return float(int(np.argmax(np.nan_to_num(between, nan=-1.0))) + 1) / 256


def sharpness(pixels: np.ndarray[Any, Any]) -> float:
    """How much fine detail a tile (height, width, 3) uint8 has: the standard deviation, in grey values, of the
    Laplacian of the tile at half its size, where the camera's noise is small and a blur of 2 px still shows.

    At 0.5 µm a px sound tiles measure 14 to 103, the same ones blurred by 2 µm 4 to 9.
    """
    image = Image.fromarray(pixels).convert("L")
    grey = np.asarray(image.reduce(2) if min(image.size) > 5 else image, dtype=np.int16)
    if min(grey.shape) < 3:
        return 0.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).std())
