"""Pathology: every tile of large slides, against reading, resizing and encoding alone and a tile-by-tile loop."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openslide
from PIL import Image

from benchmarks.preprocess_rows.measure import (
    Command,
    Remark,
    Row,
    Setting,
    in_turns,
    peak_megabytes,
    pool,
    pool_seconds,
    start_seconds,
    where_time_goes,
)
from benchmarks.slide import make_slide

TILE_PX, MPP = 224, 0.5
SLIDE_MPP, QUALITY = 0.25, 85
RAW_TARGET, LOOP_TARGET, SCALING_TARGET = 0.8, 1.1, 1.8
_NATIVE_PX = round(TILE_PX * MPP / SLIDE_MPP)
_BLOCK = 4
"""Tiles along a side of what is read at once."""

_LARGE_SIDE_PX = 60_000
_ALL = ("--max-tiles", "all", "--min-tissue", "0")
"""Its other filters stay on: they are part of the work, and keep every tile of a slide that is all tissue."""


def rows(setting: Setting) -> Iterator[Row | Remark]:
    """The rows of pathology."""
    side = 3000 if setting.quick else 20_000
    folder = setting.made("slides")
    # Two slides, for a slide is the work of one process.
    slides = [make_slide(folder / f"{seed}.svs", side, SLIDE_MPP, QUALITY, seed) for seed in range(2)]
    megabytes = sum(slide.stat().st_size for slide in slides) / 2e6
    yield Remark(
        f"pathology inputs: 2 made slides of {side} x {side} px, {SLIDE_MPP} µm a px, JPEG quality {QUALITY} (4:2:0), "
        f"{megabytes:.0f} MB each; every tile of {TILE_PX} px at {MPP} µm a px"
    )
    scratch = setting.made("slides scratch")
    command = Command("pathology", tuple(slides), scratch, _ALL)
    works = {
        "two": command.with_workers(2),
        "one": command.with_workers(1),
        "raw": lambda: _in_pool(_raw, slides, None),
        "loop": lambda: _in_pool(_loop, slides, scratch),
    }
    times = in_turns(works, setting.repeats, tolerance=0.03)
    start = {workers: start_seconds(setting, "pathology", workers, _tiny_slides) for workers in (1, 2)}
    bare = pool_seconds(2, _nothing, 0, setting.repeats)
    yield times.row(
        "pathology, 2 workers : OpenSlide read, resize, encode alone", "tiles/s", "two", "raw", target=RAW_TARGET,
        start=(start[2], bare),
    )  # fmt: skip
    yield times.row(
        "pathology, 2 workers : OpenSlide tile by tile, to files", "tiles/s", "two", "loop", target=LOOP_TARGET,
        start=(start[2], bare),
    )  # fmt: skip
    yield times.row(
        "pathology, 2 workers : 1", "tiles/s", "two", "one", target=SCALING_TARGET, start=(start[2], start[1])
    )
    one_slide = Command("pathology", (slides[0],), scratch, _ALL)
    yield Remark(f"pathology: {where_time_goes(one_slide.here())}")
    worker, leader = peak_megabytes(one_slide)
    yield Row(f"pathology: peak of the worker, slide of {megabytes:.0f} MB", "MB", worker)
    yield Remark(f"pathology: the leading process had {leader:.0f} MB at most")
    if setting.large:
        large = make_slide(folder / "large.svs", _LARGE_SIDE_PX, SLIDE_MPP, 95, 0)
        worker, leader = peak_megabytes(Command("pathology", (large,), scratch))
        size = large.stat().st_size / 1e9
        yield Row(f"pathology: peak of the worker, slide of {size:.2g} GB, 100 tiles", "MB", worker)
        yield Remark(f"pathology: the leading process had {leader:.0f} MB at most for it ({_LARGE_SIDE_PX} px a side)")


def _tiny_slides(folder: Path) -> list[Path]:
    return [make_slide(folder / f"{n}.svs", 600, SLIDE_MPP, QUALITY, n) for n in range(2)]


def _in_pool(task: Callable[[Any], int], slides: list[Path], scratch: Path | None) -> int:
    with pool(2) as workers:
        return sum(workers.map(task, [(slide, scratch) for slide in slides]))


def _nothing(_: int) -> int:
    return 0


def _raw(work: tuple[Path, None]) -> int:
    """Read blocks of tiles, resize and encode them, keep nothing."""
    slide = openslide.OpenSlide(work[0])
    width, height = (length // _NATIVE_PX for length in slide.dimensions)
    count = 0
    for top in range(0, height, _BLOCK):
        for left in range(0, width, _BLOCK):
            high, wide = min(_BLOCK, height - top), min(_BLOCK, width - left)
            corner = (left * _NATIVE_PX, top * _NATIVE_PX)
            block = slide.read_region(corner, 0, (wide * _NATIVE_PX, high * _NATIVE_PX)).convert("RGB")
            for row in range(high):
                for column in range(wide):
                    x, y = column * _NATIVE_PX, row * _NATIVE_PX
                    _encode(block.crop((x, y, x + _NATIVE_PX, y + _NATIVE_PX)))
                    count += 1
    return count


def _loop(work: tuple[Path, Path]) -> int:
    """Read, resize, encode and write tile by tile."""
    slide = openslide.OpenSlide(work[0])
    width, height = (length // _NATIVE_PX for length in slide.dimensions)
    for row in range(height):
        for column in range(width):
            corner = (column * _NATIVE_PX, row * _NATIVE_PX)
            tile = slide.read_region(corner, 0, (_NATIVE_PX, _NATIVE_PX)).convert("RGB")
            (work[1] / f"{work[0].stem}_{row}_{column}.jpg").write_bytes(_encode(tile))
    return width * height


def _encode(tile: Image.Image) -> bytes:
    stream = io.BytesIO()
    small = tile.resize((TILE_PX, TILE_PX), Image.Resampling.LANCZOS)
    small.save(stream, "JPEG", quality=90, subsampling=0)
    return stream.getvalue()
