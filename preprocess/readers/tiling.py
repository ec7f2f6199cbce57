"""Tiles of a slide: which level and side give the asked resolution, which tiles are tissue, and their pixels."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from medcoss.contracts import derive_seed
from preprocess.conversion import Refusal, failed, skipped
from preprocess.readers.wsi import Level, Slide, overview, tissue

TOLERANCE = 0.05
"""A level within this of the asked resolution is cut without resampling."""

MAX_ENLARGEMENT = 1.2

MAX_SLIDE_PIXELS = 40_000_000_000
"""Largest level 0 that is looked at; a forged header may claim any size, and an overview reads all of a level."""

_CELLS = 16
"""Cells of the tissue map along a tile's side; fewer where the whole map would exceed `_MAP_CELLS`."""

_MAP_CELLS = 20_000_000

_SUPERTILE_PX = 2048


@dataclass(frozen=True)
class Plan:
    """A grid of tiles from the slide's corner: read `side` px of `level`, give `tile_px` px of `true_mpp` µm each."""

    level: Level
    side: int
    tile_px: int
    true_mpp: float
    rows: int
    columns: int

    @property
    def side_level0(self) -> float:
        """A tile's side in px of level 0."""
        return self.side * self.level.downsample


@dataclass(frozen=True, order=True)
class Tile:
    """A place in the grid and which part of it is tissue."""

    row: int
    column: int
    tissue: float


@dataclass(frozen=True)
class Found:
    """Tissue tiles in grid order, and a digest of what the slide looks like (size and overview)."""

    tiles: tuple[Tile, ...]
    digest: bytes


def plan(slide: Slide, mpp: float, *, tile_px: int, tile_mpp: float) -> Plan:
    """Choose level and side for tiles of `tile_px` px at `tile_mpp` µm a px; `mpp` is the slide's at level 0.

    The coarsest level that is fine enough is read; at most 1.2 times is enlarged.
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
    rows, columns = level.height // side, level.width // side
    if rows * columns == 0:
        raise skipped("too_small", f"{level.width} x {level.height} px, a tile takes {side}")
    return Plan(level, side, tile_px, side * level_mpp / tile_px, rows, columns)


def find_tissue(slide: Slide, plan: Plan, *, min_tissue: float) -> Found:
    """Tiles of the grid at least `min_tissue` of whose area is tissue, from an overview of the slide."""
    finest = slide.levels[0]
    bounded = math.sqrt(finest.width * finest.height / _MAP_CELLS)
    cells, cell = overview(slide, min(max(plan.side_level0 / _CELLS, bounded), plan.side_level0 / 2))
    # Summed over rows and columns with a zero border, any rectangle's sum is four look-ups.
    sums = np.pad(np.cumsum(np.cumsum(tissue(cells), axis=0), axis=1), ((1, 0), (1, 0)))
    top, bottom = _edges(plan.rows, plan.side_level0 / cell, cells.shape[0])
    left, right = _edges(plan.columns, plan.side_level0 / cell, cells.shape[1])
    inside = (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )
    area = np.maximum((bottom - top)[:, None] * (right - left)[None, :], 1)
    part = inside / area
    kept = np.argwhere((part >= min_tissue) & (part > 0))
    tiles = tuple(Tile(int(row), int(column), float(part[row, column])) for row, column in kept)
    size = f"{slide.levels[0].width} {slide.levels[0].height} {cells.shape}"
    return Found(tiles, hashlib.sha256(size.encode() + cells.tobytes()).digest())


def _edges(count: int, cells_a_tile: float, limit: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    edges = np.minimum(np.rint(np.arange(count + 1) * cells_a_tile).astype(np.int64), limit)
    return edges[:-1], edges[1:]


def draw(found: Found, count: int, seed: int) -> tuple[Tile, ...]:
    """At most `count` tiles in grid order, the same ones for one slide and seed wherever the file lies."""
    if len(found.tiles) <= count:
        return found.tiles
    generator = np.random.default_rng(derive_seed("tiles", seed, found.digest.hex()))
    chosen = np.sort(generator.choice(len(found.tiles), size=count, replace=False))
    return tuple(found.tiles[index] for index in chosen)


def read_tiles(slide: Slide, plan: Plan, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, np.ndarray[Any, Any] | None]]:
    """Each tile with its RGB pixels (tile_px, tile_px, 3) uint8, or None where they cannot be decoded.

    Neighbouring tiles come from one read where most of the read is wanted; pixels do not depend on that grouping.
    """
    span = max(1, _SUPERTILE_PX // plan.side)
    blocks: dict[tuple[int, int], list[Tile]] = defaultdict(list)
    for tile in tiles:
        blocks[tile.row // span, tile.column // span].append(tile)
    for _, group in sorted(blocks.items()):
        yield from _read_group(slide, plan, group)


def _read_group(slide: Slide, plan: Plan, group: Sequence[Tile]) -> Iterator[tuple[Tile, np.ndarray[Any, Any] | None]]:
    top, left = min(tile.row for tile in group), min(tile.column for tile in group)
    high = max(tile.row for tile in group) - top + 1
    wide = max(tile.column for tile in group) - left + 1
    region = _read(slide, plan, top, left, high, wide) if len(group) > 1 and high * wide <= 2 * len(group) else None
    for tile in group:
        if region is None:
            pixels = _read(slide, plan, tile.row, tile.column, 1, 1)
        else:
            y, x = (tile.row - top) * plan.side, (tile.column - left) * plan.side
            pixels = region[y : y + plan.side, x : x + plan.side]
        yield tile, None if pixels is None else _resize(pixels, plan.tile_px)


def _read(slide: Slide, plan: Plan, row: int, column: int, high: int, wide: int) -> np.ndarray[Any, Any] | None:
    side = plan.side
    try:
        return slide.read(plan.level, column * side, row * side, wide * side, high * side)
    except Refusal:
        return None


def _resize(pixels: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    if pixels.shape[0] == side:
        return np.ascontiguousarray(pixels)
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))
