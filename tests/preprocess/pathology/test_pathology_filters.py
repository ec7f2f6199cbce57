"""Which tiles are worth having: tissue, and no ink, black, white or blur; what was left out is counted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from preprocess.readers.tissue import is_ink, sharpness, sort_cells


def test_tissue_is_cut_and_glass_is_not(kit: Any, tmp_path: Path) -> None:
    slide = kit.glass(1344, 1344)
    slide[448:896, 224:1120] = kit.stained(448, 896)
    slide[0:224, 0:150] = (20, 21, 20)  # scanner border: dark, not coloured
    slide[1120:1218, 0:224] = kit.stained(98, 224)  # under half of its tile
    slide[1120:1246, 672:896] = kit.stained(126, 224)  # over half
    kit.write_slide(tmp_path / "a.tif", slide, 0.5, 2)
    result = kit.convert(tmp_path)
    places = {(piece.geometry["y_level0"], piece.geometry["x_level0"]) for piece in result.pieces}
    assert places == {(y, x) for y in (448, 672) for x in range(224, 1120, 224)} | {(1120, 672)}
    for piece in result.pieces:
        y, x = piece.geometry["y_level0"], piece.geometry["x_level0"]
        assert isinstance(y, int)
        assert isinstance(x, int)
        source = slide[y : y + 224, x : x + 224]
        assert np.abs(kit.pixels(piece.data).astype(int) - source).mean() < 8


def test_glass_alone_is_no_tissue(kit: Any, tmp_path: Path) -> None:
    kit.write_slide(tmp_path / "a.tif", kit.glass(600, 600), 0.5)
    assert kit.reasons(kit.convert(tmp_path)) == {"a.tif": "no_tissue"}


def test_colours_are_red_green_blue(kit: Any, tmp_path: Path) -> None:
    kit.write_slide(tmp_path / "slide.tif", np.full((448, 448, 3), (200, 60, 120), np.uint8), 0.5)
    Image.new("RGB", (448, 448), (200, 60, 120)).save(tmp_path / "plain.png")
    for piece in kit.convert(tmp_path, kit.options("--assume-mpp", "0.5", "--min-focus", "0")).pieces:
        assert np.abs(kit.pixels(piece.data).reshape(-1, 3).mean(axis=0) - (200, 60, 120)).max() < 3


INKS = {"blue": (35, 60, 160), "green": (30, 120, 70), "red": (205, 30, 45), "black": (28, 28, 30)}


@pytest.mark.parametrize("ink", INKS)
def test_pen_marks_cost_the_tiles_they_cover(kit: Any, tmp_path: Path, ink: str) -> None:
    slide = kit.stained(896, 896)
    slide[224:448, 224:448][:, 40:180] = INKS[ink]  # over half of one tile
    slide[448:672, 448:672][:76] = INKS[ink]  # a third of another
    slide[0:224, 0:224][:8, :40] = INKS[ink]  # a trace in a third
    kit.write_slide(tmp_path / "a.tif", slide, 0.5, 2)
    every = {(y, x) for y in range(0, 896, 224) for x in range(0, 896, 224)}
    result = kit.convert(tmp_path)
    assert kit.places(result) == every - {(224, 224), (448, 448)}
    assert result.counts[""]["dark tiles" if ink == "black" else "tiles with ink"] == 2
    assert result.counts[""]["tiles kept"] == 14
    permissive = kit.options("--max-pen", "1", "--max-dark", "1", "--min-tissue", "0.3")
    assert kit.places(kit.convert(tmp_path, permissive)) == every


def test_stains_are_no_ink() -> None:
    colours = {
        "haematoxylin": (92, 78, 150), "pale nuclei": (150, 130, 190), "eosin": (230, 120, 170), "blood": (190, 70, 95),
        "DAB": (130, 85, 50), "glass": (243, 242, 244), "fold": (90, 30, 90),
    }  # fmt: skip
    found = {name: bool(is_ink(*np.array(colour, np.int16).reshape(3, 1))[0]) for name, colour in colours.items()}
    assert found == dict.fromkeys(colours, False)


def test_scanner_borders_are_dark_and_spoil_no_threshold(kit: Any) -> None:
    cells = np.concatenate([np.full((50, 100, 3), (3, 9, 2), np.uint8), kit.glass(50, 100), kit.stained(50, 100)])
    found = sort_cells(cells)
    assert found.dark[:50].all()
    assert not found.dark[50:].any()
    assert found.white[50:100].mean() > 0.99
    assert found.tissue[100:].mean() > 0.99
    assert not found.tissue[:100].any()


def test_nearly_white_tiles_are_no_tissue_of_note(kit: Any, tmp_path: Path) -> None:
    slide = kit.stained(448, 448)
    tint = np.random.default_rng(3).integers(-4, 5, (224, 224, 1))
    slide[:224, :224] = np.clip(np.array((255, 226, 240)) + tint, 0, 255)  # a saturation of 0.11
    kit.write_slide(tmp_path / "a.tif", slide, 0.5, 2)
    faint = kit.options("--min-tissue", "0")
    result = kit.convert(tmp_path, faint)
    if (0, 0) in kit.places(kit.convert(tmp_path, kit.options("--min-tissue", "0", "--max-white", "1"))):
        assert result.counts[""]["white tiles"] == 1
    assert kit.places(result) == {(0, 224), (224, 0), (224, 224)}


def test_blurred_tiles_are_left_out_and_sound_ones_never(kit: Any, tmp_path: Path) -> None:
    slide = kit.stained(672, 672)
    blurred = Image.fromarray(slide[224:448, 224:448]).filter(ImageFilter.GaussianBlur(5))
    slide[224:448, 224:448] = np.asarray(blurred)
    kit.write_slide(tmp_path / "a.tif", slide, 0.5, 2)
    result = kit.convert(tmp_path)
    every = {(y, x) for y in (0, 224, 448) for x in (0, 224, 448)}
    assert kit.places(result) == every - {(224, 224)}
    assert (result.counts[""]["blurred tiles"], result.counts[""]["tiles kept"]) == (1, 8)
    assert kit.places(kit.convert(tmp_path, kit.options("--min-focus", "0"))) == every


def test_wholly_blurred_slides_are_skipped(kit: Any, tmp_path: Path) -> None:
    soft = Image.fromarray(kit.stained(448, 448)).filter(ImageFilter.GaussianBlur(5))
    kit.write_slide(tmp_path / "a.tif", np.asarray(soft), 0.5)
    result = kit.convert(tmp_path)
    assert kit.reasons(result) == {"a.tif": "out_of_focus"}
    assert result.counts[""]["blurred tiles"] == 4


def test_sharpness_falls_with_blur_on_real_tiles(kit: Any, real_data: Path) -> None:
    result = kit.convert(real_data / "pathology" / "wsi")
    assert result.counts[""]["blurred tiles"] == 0
    sound, soft = [], []
    for piece in result.pieces:
        image = Image.open(io.BytesIO(piece.data))
        sound.append(sharpness(np.asarray(image)))
        soft.append(sharpness(np.asarray(image.filter(ImageFilter.GaussianBlur(5)))))
    assert min(sound) > 40
    assert max(soft) < 6
