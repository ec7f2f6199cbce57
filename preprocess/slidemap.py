"""Pictures of a slide for people: a thumbnail with the tissue's outline and the tiles, and the same as GeoJSON.

Both show the slide's own pixels and places only: nothing of its label, name or properties.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import contourpy
import numpy as np
from PIL import Image, ImageDraw

from preprocess.readers import raster
from preprocess.readers.tiling import Fate, Plan, Survey, Tile
from preprocess.readers.tissue import overview
from preprocess.readers.wsi import Slide

KEPT, BLURRED, BROKEN = "Kept", "Blurred", "Unreadable"
TISSUE = "Tissue"

COLOURS: dict[str, tuple[int, int, int]] = {
    TISSUE: (20, 20, 20),
    KEPT: (0, 150, 60),
    BLURRED: (240, 140, 0),
    BROKEN: (220, 0, 0),
    "Ink": (0, 90, 255),
    "Dark": (120, 60, 160),
    "White": (150, 150, 150),
}
_FILTERED = {Fate.PEN: "Ink", Fate.DARK: "Dark", Fate.WHITE: "White"}

_PICTURE_PX = 1024
_PICTURE_QUALITY = 85
_OUTLINE_CELLS = 512
"""Longest side of the map that outlines are drawn around: finer ones only grow the files."""
_LEAST_CELLS = 6
"""Area below which a spot of tissue gets no outline, in cells of that map."""

Ring = list[list[float]]


def picture(slide: Slide, plan: Plan, survey: Survey, drawn: Sequence[Tile], lost: Mapping[Tile, str]) -> bytes:
    """A JPEG of at most 1024 px a side: tissue outlined in black, tiles in the colour of their fate.

    `lost` names the fate of drawn tiles that were not kept. Blur is known of the tiles a unit has read: of a slide's
    further units it is not shown.
    """
    longest = max(slide.levels[0].width, slide.levels[0].height)
    cells, cell = survey.cells, survey.cell_px
    if longest <= _PICTURE_PX * cell:
        # Cells come out up to half as large again as asked for.
        cells, cell = overview(slide, max(1.0, longest / _PICTURE_PX / 1.5))
    image = Image.fromarray(cells).resize(_fitting(cells), Image.Resampling.BOX)
    scale = image.width / (cells.shape[1] * cell)
    pen = ImageDraw.Draw(image)
    for tile, name in _named(survey, drawn, lost):
        box = [round(value * scale) for value in _corners(plan, tile)]
        # A px inside its bounds, so that neighbours do not draw over each other.
        left, top = box[0] + 1, box[1] + 1
        pen.rectangle((left, top, max(box[2] - 2, left), max(box[3] - 2, top)), outline=COLOURS[name])
    for rings in _outlines(survey):
        for ring in rings:
            pen.line([(x * scale, y * scale) for x, y in ring], fill=COLOURS[TISSUE], width=2)
    return raster.encode_jpeg(np.asarray(image), _PICTURE_QUALITY)


def geojson(plan: Plan, survey: Survey, drawn: Sequence[Tile], lost: Mapping[Tile, str]) -> bytes:
    """A FeatureCollection that QuPath opens on the slide: the tissue's outlines as annotations, tiles as tiles.

    Coordinates are px of level 0, rings are closed, holes follow their outer ring.
    """
    features = [_feature("annotation", TISSUE, rings) for rings in _outlines(survey)]
    for tile, name in _named(survey, drawn, lost):
        left, top, right, bottom = _corners(plan, tile)
        ring = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        features.append(_feature("tile", name, [ring]))
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")).encode()


def _named(survey: Survey, drawn: Sequence[Tile], lost: Mapping[Tile, str]) -> Iterator[tuple[Tile, str]]:
    """Tiles with what became of them: those filtered for more than want of tissue, then those drawn."""
    lost_places = {(tile.row, tile.column): why for tile, why in lost.items()}
    for fate, name in _FILTERED.items():
        for row, column in np.argwhere(survey.fates == fate):
            yield Tile(int(row), int(column), 0.0), name
    for tile in drawn:
        yield tile, lost_places.get((tile.row, tile.column), KEPT)


def _corners(plan: Plan, tile: Tile) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in px of level 0."""
    left, top = round(tile.column * plan.step_level0), round(tile.row * plan.step_level0)
    return left, top, left + round(plan.side_level0), top + round(plan.side_level0)


def _outlines(survey: Survey) -> list[list[Ring]]:
    """Polygons around the tissue, each an outer ring and its holes, closed, in px of level 0."""
    mask = survey.kinds.tissue
    factor = max(1, -(-max(mask.shape) // _OUTLINE_CELLS))
    small = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).reduce(factor), dtype=np.float32)
    # A border of nothing closes the rings of tissue that runs off the slide.
    height, width = np.pad(small, 1).shape
    drawing = contourpy.contour_generator(
        z=np.pad(small, 1), fill_type=contourpy.FillType.OuterOffset, name="serial"
    )  # fmt: skip
    # The type of the result depends on the kind of filling.
    points, offsets = cast(Any, drawing.filled(127.5, 256.0))
    cell = survey.cell_px * factor
    limit = np.array([width - 2, height - 2]) * cell
    polygons = []
    for place, starts in zip(points, offsets, strict=True):
        spots = [np.asarray(place[a:b], dtype=np.float64) for a, b in pairwise(starts)]
        if _area(spots[0]) < _LEAST_CELLS:
            continue
        rings = [spots[0], *(spot for spot in spots[1:] if _area(spot) >= _LEAST_CELLS)]
        # Contours run through the cells' centres, the first of which lies half a cell outside the slide.
        scaled = [np.clip((ring - 0.5) * cell, 0, limit) for ring in rings]
        polygons.append([ring.round(1).tolist() for ring in scaled])
    return polygons


def _area(ring: np.ndarray[Any, Any]) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:]))) / 2


def _feature(kind: str, name: str, rings: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
    about = {"objectType": kind, "classification": {"name": name, "color": list(COLOURS[name])}}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": about}


def _fitting(cells: np.ndarray[Any, Any]) -> tuple[int, int]:
    """(width, height) of a picture of the cells, at most 1024 px a side."""
    rows, columns = cells.shape[:2]
    scale = min(1.0, _PICTURE_PX / max(rows, columns))
    return max(1, round(columns * scale)), max(1, round(rows * scale))
