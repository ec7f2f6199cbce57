"""One slide to samples: what `inspect` finds out about it, how its tiles are shared among units, their conversion."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocess import slidemap
from preprocess.conversion import (
    Attachment,
    Conversion,
    InputFile,
    Json,
    Outcome,
    Piece,
    Settings,
    Status,
    failed,
    skipped,
)
from preprocess.readers import raster, tiling, wsi
from preprocess.readers.tiling import Fate, Filters, Plan, Survey, Tile
from preprocess.readers.tissue import sharpness

RAW_TILE_PX = 512
"""A picture without a resolution and of at most this side is taken for a tile that was cut before."""

UNIT_TILES = 256
"""Tiles of one unit: some seconds of work, so that all workers share a large slide to its end."""

_LEFT_OUT = {
    Fate.TISSUE: "tiles with little tissue",
    Fate.WHITE: "white tiles",
    Fate.DARK: "dark tiles",
    Fate.PEN: "tiles with ink",
}
"""What the overview's filters take, as counted in messages."""


@dataclass(frozen=True, eq=False)
class Look:
    """A slide looked at as a whole: its resolution and whence it is known, the grid, and the tiles drawn from it."""

    mpp: float
    mpp_from: str
    plan: Plan
    survey: Survey
    digest: bytes
    drawn: tuple[Tile, ...]


def resolution(slide: wsi.Slide, listed: float | None, settings: Settings) -> tuple[float, str]:
    """µm a px at level 0, and whence: `listed` in a table, the file, or assumed.

    Refused: `missing_mpp`, `raw_tiles`.
    """
    if listed is not None:
        return listed, "table"
    if slide.mpp is not None:
        return slide.mpp, "file"
    if settings["assume_mpp"] is not None:
        return float(settings["assume_mpp"]), "assumed"
    finest = slide.levels[0]
    if max(finest.width, finest.height) <= RAW_TILE_PX:
        raise failed("raw_tiles", f"{finest.width} x {finest.height} px without a resolution")
    raise failed("missing_mpp", f"{finest.width} x {finest.height} px at level 0")


def look(slide: wsi.Slide, listed: float | None, settings: Settings) -> Look:
    """Find the slide's tiles. Refused: as `resolution` and `tiling.plan`, and `no_tissue`."""
    mpp, mpp_from = resolution(slide, listed, settings)
    plan = _plan(slide, mpp, settings)
    limits = Filters(settings["min_tissue"], settings["max_pen"], settings["max_dark"], settings["max_white"])
    survey = tiling.survey(slide, plan, limits)
    if not survey.tiles:
        told = ", ".join(f"{number} {what}" for what, number in _filtered(survey).items() if number)
        raise skipped("no_tissue", f"none is left of {plan.rows * plan.columns} tiles: {told}")
    digest = survey.digest(slide, mpp)
    drawn = tiling.draw(survey.tiles, settings["max_tiles"], settings["draw_seed"], digest)
    return Look(mpp, mpp_from, plan, survey, digest, drawn)


def portions(slide: wsi.Slide, seen: Look) -> list[Json]:
    """The `Unit.detail` of each unit of a slide, neighbouring tiles together; the first one speaks for the slide."""
    shares = [list(seen.drawn)] if slide.decoded_whole else tiling.share_out(seen.plan, seen.drawn, UNIT_TILES)
    found: list[Json] = []
    for number, share in enumerate(shares):
        # The first unit looks at the slide once more for the pictures, and so knows all the rest.
        about: dict[str, Json] = {"tiles": _packed(share), "first": number == 0}
        found.append(about | {"mpp": seen.mpp, "mpp_from": seen.mpp_from, "digest": seen.digest.hex()})
    return found


def convert_slide(
    files: Sequence[InputFile], slide: wsi.Slide, detail: dict[str, Any], subjects: tuple[str, ...], settings: Settings
) -> Conversion:
    """A unit's tiles: `detail` is one of `portions`, or has `mpp` alone (a table's, or None) for a whole slide.

    Samples are counted to the first of the slide's files. Refused: what `look` refuses.
    """
    seen: Look | None = None
    if "tiles" not in detail:
        seen = look(slide, detail["mpp"], settings)
        detail = {"mpp": seen.mpp, "mpp_from": seen.mpp_from, "digest": seen.digest.hex()}
        plan, tiles = seen.plan, seen.drawn
    else:
        plan, tiles = _plan(slide, detail["mpp"], settings), _unpacked(detail["tiles"])
        if detail["first"]:
            listed = detail["mpp"] if detail["mpp_from"] == "table" else None
            seen = look(slide, listed, settings)
    content = bytes.fromhex(detail["digest"])
    pieces: list[Piece] = []
    lost: dict[Tile, str] = {}
    sharp: list[float] = []
    for tile, pixels in tiling.read_tiles(slide, plan, tiles):
        detailed = 0.0 if pixels is None else sharpness(pixels)
        if pixels is None or detailed < settings["min_focus"]:
            lost[tile] = slidemap.BROKEN if pixels is None else slidemap.BLURRED
            continue
        sharp.append(detailed)
        # No hyphen in it: what stands before a key's last one names the slide.
        suffix = f"{tile.row:04d}x{tile.column:04d}"
        data = raster.encode_jpeg(pixels, settings["jpeg_quality"])
        geometry = _geometry(tile, plan, detail)
        pieces.append(Piece(content, suffix, data, files[0].relative, subjects, geometry=geometry))
    broken = sum(why == slidemap.BROKEN for why in lost.values())
    counts = {"tiles kept": len(pieces), "blurred tiles": len(lost) - broken, "unreadable tiles": broken}
    figures = {
        "tissue part of a tile": [round(tile.tissue, 3) for tile in tiles if tile not in lost],
        "sharpness of a tile (grey values)": sharp,
    }
    attachments = []
    if seen is not None:
        counts |= _filtered(seen.survey) | {"tiles not drawn": len(seen.survey.tiles) - len(seen.drawn)}
        figures |= _slide_figures(seen)
        attachments = [
            Attachment(content, "jpg", slidemap.picture(slide, seen.plan, seen.survey, seen.drawn, lost)),
            Attachment(content, "geojson", slidemap.geojson(seen.plan, seen.survey, seen.drawn, lost)),
        ]
    if pieces:
        outcomes = {files[0].relative: Outcome(Status.WRITTEN, "broken_tile" if broken else "")}
    else:
        gone = Outcome(Status.FAILED, "broken_tile") if broken else Outcome(Status.SKIPPED, "out_of_focus")
        outcomes = {file.relative: gone for file in files}
    return Conversion(pieces, outcomes, figures, attachments, {files[0].relative: counts})


def convert_tile(file: InputFile, known: float | None, subjects: tuple[str, ...], settings: Settings) -> Conversion:
    """A tile that was cut before, its short side reduced to the asked one; `known` is its µm a px, from a table."""
    side = int(settings["size"])
    read = raster.open_raster(file.path, max_pixels=settings["max_pixels"], side=2 * side)
    pixels = raster.rgb_values(read.image)
    small = raster.shrink(pixels, side)
    mpp = known or settings["assume_mpp"]
    geometry: dict[str, Json] = {
        "native_height": read.height,
        "native_width": read.width,
        "mpp": None if mpp is None else round(mpp * min(read.height, read.width) / min(small.shape[:2]), 5),
        "mpp_from": "table" if known else "assumed" if mpp else None,
    }
    content = hashlib.sha256(f"tile {pixels.shape}".encode() + pixels.tobytes()).digest()
    piece = Piece(
        content=content,
        suffix="0",
        data=raster.encode_jpeg(small, settings["jpeg_quality"]),
        file=file.relative,
        subject_ids=subjects,
        geometry=geometry,
    )
    return Conversion([piece], figures={"native width (px)": [float(read.width)]})


def _plan(slide: wsi.Slide, mpp: float, settings: Settings) -> Plan:
    return tiling.plan(slide, mpp, tile_px=settings["size"], tile_mpp=settings["mpp"], overlap_px=settings["overlap"])


def _filtered(survey: Survey) -> dict[str, int]:
    return {what: survey.count(fate) for fate, what in _LEFT_OUT.items()}


def _slide_figures(seen: Look) -> dict[str, list[float]]:
    figures = {
        "slide resolution (µm/px)": [seen.mpp],
        "tissue tiles of a slide": [float(len(seen.survey.tiles))],
    }
    return figures | {f"{what} of a slide": [float(number)] for what, number in _filtered(seen.survey).items()}


def _geometry(tile: Tile, plan: Plan, detail: dict[str, Any]) -> dict[str, Json]:
    return {
        "mpp": round(plan.true_mpp, 5),
        "mpp_from": detail["mpp_from"],
        "slide_mpp": round(detail["mpp"], 5),
        "x_level0": round(tile.column * plan.step_level0),
        "y_level0": round(tile.row * plan.step_level0),
        "side_level0": round(plan.side_level0),
        "tissue_fraction": round(tile.tissue, 3),
    }


def _packed(tiles: Sequence[Tile]) -> str:
    rows = [(tile.row, tile.column, round(1000 * tile.tissue)) for tile in tiles]
    return base64.b64encode(zlib.compress(np.array(rows, dtype="<i4").T.tobytes())).decode()


def _unpacked(text: str) -> tuple[Tile, ...]:
    columns = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i4").reshape(3, -1)
    return tuple(Tile(int(row), int(column), int(part) / 1000) for row, column, part in columns.T)
