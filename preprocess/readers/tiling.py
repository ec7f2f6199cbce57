"""Tiles of a slide: which level and side give the asked resolution, which tiles are worth having, and their pixels."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from PIL import Image

from medcoss.contracts import derive_seed
from preprocess.conversion import Refusal, failed, skipped
from preprocess.heartbeat import beat
from preprocess.readers.tissue import Cells, overview, sort_cells
from preprocess.readers.wsi import Level, Slide

TOLERANCE = 0.05
"""A level within this of the asked resolution is cut without resampling."""

MAX_ENLARGEMENT = 1.2

MAX_SLIDE_PIXELS = 40_000_000_000
"""Largest level 0 that is looked at; a forged header may claim any size, and an overview reads all of a level."""

_CELLS = 16
"""Cells of the tissue map along a tile's side; fewer where the whole map would exceed `_MAP_CELLS`."""

_MAP_CELLS = 20_000_000

_SUPERTILE_PX = 4096


class Fate(IntEnum):
    """What the overview says of a tile's place: kept, or the first reason that speaks against it."""

    KEPT = 0
    DARK = 1
    PEN = 2
    TISSUE = 3
    """Too little of it."""
    WHITE = 4


@dataclass(frozen=True)
class Filters:
    """Limits, as parts of a tile's area."""

    min_tissue: float = 0.5
    max_pen: float = 0.1
    max_dark: float = 0.25
    max_white: float = 0.75


@dataclass(frozen=True)
class Plan:
    """A grid of tiles from the slide's corner: read `side` px of `level` every `step` px, give `tile_px` px of
    `true_mpp` µm each.
    """

    level: Level
    side: int
    step: int
    tile_px: int
    true_mpp: float
    rows: int
    columns: int

    @property
    def side_level0(self) -> float:
        """A tile's side in px of level 0."""
        return self.side * self.level.downsample

    @property
    def step_level0(self) -> float:
        """From one tile to the next in px of level 0."""
        return self.step * self.level.downsample


@dataclass(frozen=True, order=True)
class Tile:
    """A place in the grid and which part of it is tissue."""

    row: int
    column: int
    tissue: float


@dataclass(frozen=True, eq=False)
class Survey:
    """What an overview tells: the fate and part of tissue of each place (rows, columns), and the overview itself
    (its RGB `cells`, each `cell_px` px of level 0 wide, and what they are).
    """

    fates: np.ndarray[Any, np.dtype[np.uint8]]
    part: np.ndarray[Any, np.dtype[np.float64]]
    cells: np.ndarray[Any, np.dtype[np.uint8]]
    kinds: Cells
    cell_px: float

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The kept tiles in grid order."""
        kept = np.argwhere(self.fates == Fate.KEPT)
        return tuple(Tile(int(row), int(column), float(self.part[row, column])) for row, column in kept)

    def digest(self, slide: Slide, mpp: float) -> bytes:
        """Of what the slide shows: this overview, the sizes of its levels, its resolution. A copy has the same."""
        sizes = " ".join(f"{level.width}x{level.height}" for level in slide.levels)
        about = f"{sizes} {mpp:.6g} {self.cells.shape} {self.cell_px:.6g}"
        found = hashlib.sha256(about.encode())
        found.update(np.ascontiguousarray(self.cells).data)
        return found.digest()

    def count(self, fate: Fate) -> int:
        """Number of places of that fate."""
        return int(np.count_nonzero(self.fates == fate))


def plan(slide: Slide, mpp: float, *, tile_px: int, tile_mpp: float, overlap_px: int = 0) -> Plan:
    """Choose level and side for tiles of `tile_px` px at `tile_mpp` µm a px; `mpp` is the slide's at level 0.

    The coarsest level that is fine enough is read; at most 1.2 times is enlarged. Neighbours share `overlap_px` px.
    Refused: `level_too_coarse`, `too_small`, `too_large`.
    """
    finest = slide.levels[0]
    if finest.width * finest.height > MAX_SLIDE_PIXELS:
        raise failed("too_large", f"a slide of {finest.width} x {finest.height} px, limit {MAX_SLIDE_PIXELS}")
    fine_enough = [level for level in slide.levels if mpp * level.downsample <= tile_mpp * (1 + TOLERANCE)]
    level = max(fine_enough, key=lambda each: each.downsample) if fine_enough else slide.levels[0]
    level_mpp = mpp * level.downsample
    if level_mpp > tile_mpp * MAX_ENLARGEMENT:
        raise skipped("level_too_coarse", f"finest level {level_mpp:.4g} µm a px, asked {tile_mpp:g}")
    as_it_is = abs(level_mpp / tile_mpp - 1) <= TOLERANCE
    side = tile_px if as_it_is else max(1, round(tile_px * tile_mpp / level_mpp))
    step = max(1, round(side * (1 - overlap_px / tile_px)))
    if min(level.width, level.height) < side:
        raise skipped("too_small", f"{level.width} x {level.height} px, a tile takes {side}")
    rows, columns = (level.height - side) // step + 1, (level.width - side) // step + 1
    return Plan(level, side, step, tile_px, side * level_mpp / tile_px, rows, columns)


def survey(slide: Slide, plan: Plan, filters: Filters) -> Survey:
    """Look at all of the slide, coarsely, and judge every place of the grid."""
    finest = slide.levels[0]
    bounded = math.sqrt(finest.width * finest.height / _MAP_CELLS)
    cells, cell = overview(slide, min(max(plan.side_level0 / _CELLS, bounded), plan.side_level0 / 2))
    kinds = sort_cells(cells)
    rows = _edges(plan.rows, plan, cell, cells.shape[0])
    columns = _edges(plan.columns, plan, cell, cells.shape[1])
    tissue = _parts(kinds.tissue, rows, columns)
    fates = np.select(
        [
            _parts(kinds.dark, rows, columns) > filters.max_dark,
            _parts(kinds.pen, rows, columns) > filters.max_pen,
            (tissue < filters.min_tissue) | (tissue <= 0),
            _parts(kinds.white, rows, columns) > filters.max_white,
        ],
        [Fate.DARK, Fate.PEN, Fate.TISSUE, Fate.WHITE],
        Fate.KEPT,
    )
    return Survey(fates.astype(np.uint8), tissue, cells, kinds, cell)


Edges = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def _edges(count: int, plan: Plan, cell: float, limit: int) -> Edges:
    starts = np.arange(count) * (plan.step_level0 / cell)
    ends = starts + plan.side_level0 / cell
    first, last = (np.minimum(np.rint(edge).astype(np.int64), limit) for edge in (starts, ends))
    return first, last


def _parts(mask: np.ndarray[Any, Any], rows: Edges, columns: Edges) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Which part of each rectangle (rows, columns) the mask covers."""
    # Summed over rows and columns with a zero border, any rectangle's sum is four look-ups.
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int32)
    np.cumsum(mask, axis=0, dtype=np.int32, out=sums[1:, 1:])
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    (top, bottom), (left, right) = rows, columns
    inside = (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )
    parts: np.ndarray[Any, Any] = inside / np.maximum((bottom - top)[:, None] * (right - left)[None, :], 1)
    return parts


def draw(tiles: tuple[Tile, ...], count: int | None, seed: int, digest: bytes) -> tuple[Tile, ...]:
    """At most `count` tiles in grid order, the same ones for one slide (its digest) and seed wherever the file lies."""
    if count is None or len(tiles) <= count:
        return tiles
    generator = np.random.default_rng(derive_seed("tiles", seed, digest.hex()))
    chosen = np.sort(generator.choice(len(tiles), size=count, replace=False))
    return tuple(tiles[index] for index in chosen)


def in_blocks(plan: Plan, tiles: Sequence[Tile]) -> list[list[Tile]]:
    """The tiles by supertile: neighbours that one read gives."""
    span = max(1, (_SUPERTILE_PX - plan.side) // plan.step + 1)
    blocks: dict[tuple[int, int], list[Tile]] = defaultdict(list)
    for tile in tiles:
        blocks[tile.row // span, tile.column // span].append(tile)
    return [blocks[place] for place in sorted(blocks)]


def share_out(plan: Plan, tiles: Sequence[Tile], most: int) -> list[list[Tile]]:
    """The tiles in portions of about `most`, whole supertiles as far as they fit."""
    portions: list[list[Tile]] = []
    for block in in_blocks(plan, tiles):
        if not portions or len(portions[-1]) + len(block) > most:
            portions.append([])
        portions[-1] += block
    return portions


def read_tiles(slide: Slide, plan: Plan, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, np.ndarray[Any, Any] | None]]:
    """Each tile with its RGB pixels (tile_px, tile_px, 3) uint8, or None where they cannot be decoded.

    Neighbouring tiles come from one read where most of the read is wanted; pixels do not depend on that grouping.
    """
    for block in in_blocks(plan, tiles):
        beat()
        top, left = min(tile.row for tile in block), min(tile.column for tile in block)
        high = max(tile.row for tile in block) - top
        wide = max(tile.column for tile in block) - left
        dense = len(block) > 1 and (high + 1) * (wide + 1) <= 2 * len(block)
        region = _read(slide, plan, top, left, high, wide) if dense else None
        for tile in block:
            if region is None:
                beat()
                pixels = _read(slide, plan, tile.row, tile.column, 0, 0)
            else:
                y, x = (tile.row - top) * plan.step, (tile.column - left) * plan.step
                pixels = region[y : y + plan.side, x : x + plan.side]
            yield tile, None if pixels is None else _resize(pixels, plan.tile_px)


def _read(slide: Slide, plan: Plan, row: int, column: int, high: int, wide: int) -> np.ndarray[Any, Any] | None:
    """The tile at (row, column) and those up to `high` below and `wide` beside it."""
    height, width = (steps * plan.step + plan.side for steps in (high, wide))
    try:
        return slide.read(plan.level, column * plan.step, row * plan.step, width, height)
    except Refusal:
        return None


def _resize(pixels: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    if pixels.shape[0] == side:
        return np.ascontiguousarray(pixels)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))
