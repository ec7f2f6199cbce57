"""Real slides, regions and tiles, and the pictures made of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from preprocess import slidemap


def test_real_slides(kit: Any, real_data: Path) -> None:
    result = kit.convert(real_data / "pathology" / "wsi")
    assert kit.reasons(result) == {"cptac-brca_15BR001_level.dcm": "level_too_coarse"}
    assert {piece.file for piece in result.pieces} == {"CMU-1-Small-Region.svs"}
    assert 35 <= len(result.pieces) <= 50
    assert all(piece.geometry["mpp"] == 0.499 for piece in result.pieces)
    for piece in result.pieces:
        red, green, blue = kit.pixels(piece.data).reshape(-1, 3).mean(axis=0)
        assert red > green < blue  # haematoxylin and eosin: little green


def test_real_regions_and_tiles(kit: Any, real_data: Path, tmp_path: Path) -> None:
    root = real_data / "pathology"
    images = kit.convert(root / "monuseg" / "test" / "images", kit.options("--assume-mpp", "0.25"))
    assert [len([p for p in images.pieces if p.file == name]) for name in sorted({p.file for p in images.pieces})] == [
        4,
        4,
    ]
    assert {piece.subject_ids for piece in images.pieces} == {("TCGA-G9-6363",), ("TCGA-HE-7129",)}
    few = tmp_path / "lc25000"
    few.mkdir()
    for path in sorted((root / "lc25000_lung224" / "lung_n").iterdir())[:10]:
        (few / path.name).symlink_to(path)
    for piece in kit.convert(few, kit.options("--tiles")).pieces:
        source = np.asarray(Image.open(few / piece.file).convert("RGB")).astype(float)
        error = np.mean((kit.pixels(piece.data) - source) ** 2)
        assert 10 * np.log10(255**2 / error) > 35
    assert set(kit.reasons(kit.convert(few)).values()) == {"raw_tiles"}


def attachments(result: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """The thumbnail's pixels and the parsed GeoJSON of one slide."""
    found = {each.extension: each.data for each in result.attachments}
    assert found["jpg"].count(b"Exif") == 0
    return np.asarray(Image.open(io.BytesIO(found["jpg"]))).astype(int), json.loads(found["geojson"])


def features(document: dict[str, Any], name: str) -> list[list[np.ndarray]]:
    """Polygons of one classification, each its rings (n, 2), after what GeoJSON asks of all of them."""
    assert set(document) == {"type", "features"}
    assert document["type"] == "FeatureCollection"
    polygons = []
    for feature in document["features"]:
        assert set(feature) == {"type", "geometry", "properties"}
        assert (feature["type"], feature["geometry"]["type"]) == ("Feature", "Polygon")
        about = feature["properties"]
        assert about["objectType"] == ("annotation" if about["classification"]["name"] == "Tissue" else "tile")
        assert len(about["classification"]["color"]) == 3
        assert all(0 <= value <= 255 for value in about["classification"]["color"])
        rings = [np.array(ring, dtype=float) for ring in feature["geometry"]["coordinates"]]
        for ring in rings:
            assert ring.shape[0] >= 4
            np.testing.assert_array_equal(ring[0], ring[-1])
        if about["classification"]["name"] == name:
            polygons.append(rings)
    return polygons


def inside(ring: np.ndarray, width: int, height: int) -> np.ndarray:
    canvas = Image.new("1", (width, height))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in ring], fill=1)
    return np.asarray(canvas)


def test_pictures_show_the_tissue_and_the_fate_of_tiles(kit: Any, tmp_path: Path) -> None:
    slide = kit.glass(1344, 1568)
    slide[448:896, 224:1120] = kit.stained(448, 896)
    slide[560:640, 700:780] = kit.glass(80, 80)  # a hole
    slide[672:896, 896:1120][:120, :160] = (30, 120, 70)
    slide[448:672, 224:448] = np.asarray(
        Image.fromarray(slide[448:672, 224:448]).filter(ImageFilter.GaussianBlur(5))
    )  # fmt: skip
    kit.write_svs(tmp_path / "SENTINEL.svs", slide, 0.5, 2)
    result = kit.convert(tmp_path)
    assert kit.places(result) == {(y, x) for y in (448, 672) for x in (224, 448, 672, 896)} - {(448, 224), (672, 896)}
    thumbnail, document = attachments(result)
    (tissue,) = features(document, "Tissue")
    assert len(tissue) == 3  # the outline, then the hole and the ink
    whole, *holes = (inside(ring, 1568, 1344) for ring in tissue)
    truth = np.zeros((1344, 1568), bool)
    truth[448:896, 224:1120] = True
    assert (whole & truth).sum() / (whole | truth).sum() > 0.93
    for y, x in ((slice(560, 640), slice(700, 780)), (slice(672, 792), slice(896, 1056))):
        assert sum(hole[y, x].mean() > 0.8 for hole in holes) == 1
    tiles = {name: {(int(ring[0][0, 1]), int(ring[0][0, 0])) for ring in features(document, name)} for name in
             (slidemap.KEPT, slidemap.BLURRED, "Ink")}  # fmt: skip
    assert tiles == {slidemap.KEPT: kit.places(result), slidemap.BLURRED: {(448, 224)}, "Ink": {(672, 896)}}
    assert all(np.ptp(rings[0], axis=0).tolist() == [224, 224] for rings in features(document, slidemap.KEPT))
    # The picture: at most 1,024 px, the outline where tissue meets glass and nowhere on the empty glass.
    assert max(thumbnail.shape) == 1024
    scale = 1024 / 1568
    black = (thumbnail.max(axis=2) < 110).astype(int)
    column = round(560 * scale)
    assert black[round(448 * scale) - 4 : round(448 * scale) + 5, column].any()
    assert black[round(896 * scale) - 4 : round(896 * scale) + 5, column].any()
    assert not black[: round(430 * scale)].any()
    assert not black[round(910 * scale) :].any()
    edge = thumbnail[round(784 * scale), round(448 * scale) - 2 : round(448 * scale) + 3]
    assert (edge[:, 1] - edge[:, 0]).max() > 40  # green: kept
    for each in result.attachments:
        assert b"SENTINEL" not in each.data


def test_real_thumbnail_outlines_the_tissue(kit: Any, real_data: Path) -> None:
    result = kit.convert(real_data / "pathology" / "wsi")
    thumbnail, document = attachments(result)
    assert thumbnail.shape == (1024, 766, 3)
    polygons = features(document, "Tissue")
    covered = sum(inside(rings[0], 2220, 2967).astype(int) for rings in polygons) > 0
    inside_tiles = [
        covered[p.geometry["y_level0"] :, p.geometry["x_level0"] :][:224, :224].mean() for p in result.pieces
    ]
    assert min(inside_tiles) > 0.45
    assert 0.2 < covered.mean() < 0.6
    assert len(features(document, slidemap.KEPT)) == len(result.pieces) == 42


def test_outlines_of_tissue_at_the_slides_edge_are_closed_inside_it(kit: Any, tmp_path: Path) -> None:
    kit.write_slide(tmp_path / "a.tif", kit.stained(700, 900), 0.5, 2)
    _, document = attachments(kit.convert(tmp_path))
    ((ring,),) = features(document, "Tissue")
    assert ring.min() >= 0
    assert ring[:, 0].max() <= 900
    assert ring[:, 1].max() <= 700
    assert np.ptp(ring, axis=0) == pytest.approx([900, 700], abs=30)


def test_private_text_never_leaves(kit: Any, tmp_path: Path) -> None:
    kit.write_slide(
        tmp_path / "SENTINEL.tif", kit.stained(500, 500), 0.5, description="SENTINEL patient", software="SENTINEL host"
    )
    result = kit.convert(tmp_path)
    assert len(result.pieces) == 4
    for piece in result.pieces:
        assert isinstance(piece.data, bytes)
        assert b"SENTINEL" not in piece.data
        assert "SENTINEL" not in repr((piece.geometry, piece.labels, piece.suffix, piece.subject_ids))
