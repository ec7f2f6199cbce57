"""One physical scale for every tile: the level that is read, resolutions that are missing, the grid and its overlap."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from medcoss.contracts import Kind, ModalitySpec, UsageError
from preprocess.conversion import Refusal
from preprocess.modalities import pathology
from preprocess.readers import tiling, wsi
from preprocess.readers.tiff_slide import TiffPyramid


def test_spec_round_trips(kit: Any) -> None:
    spec = pathology.spec(kit.options())
    assert spec.kind is Kind.IMAGE
    assert spec.geometry.shape == (3, 224, 224)
    assert ModalitySpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "words",
    [
        ("--mpp", "0"),
        ("--assume-mpp", "400"),
        ("--overlap", "222"),
        ("--min-tissue", "2"),
        ("--max-pen", "-1"),
        ("--min-focus", "-1"),
    ],
)
def test_impossible_options_are_usage_errors(kit: Any, words: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=words[0]):
        kit.options(*words)


def ruler(mpp: float, extent_um: float = 480.0, period_um: float = 20.0) -> np.ndarray:
    """Vertical stripes of tissue colours, one every `period_um`, at `mpp` µm a px."""
    side = round(extent_um / mpp)
    um = (np.arange(side) + 0.5) * mpp
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * um / period_um)
    line = np.array((214, 130, 178)) * (1 - 0.5 * wave[:, None])
    return np.broadcast_to(line.astype(np.uint8), (side, side, 3)).copy()


@pytest.mark.parametrize(("mpp", "levels"), [(0.25, 1), (0.25, 3), (0.5, 1), (0.499, 2), (0.31, 1), (0.58, 1)])
def test_ruler_shows_the_same_micrometres_a_tile(kit: Any, tmp_path: Path, mpp: float, levels: int) -> None:
    kit.write_slide(tmp_path / "ruler.tif", ruler(mpp), mpp, levels)
    result = kit.convert(tmp_path, kit.options("--min-focus", "0"))  # its stripes are smooth
    assert len(result.pieces) == 16  # 480 µm hold four tiles of 112 µm each way
    for piece in result.pieces:
        assert piece.geometry["mpp"] == pytest.approx(0.5, rel=0.05)
        profile = kit.pixels(piece.data).astype(float).mean(axis=(0, 2))
        spectrum = np.abs(np.fft.rfft((profile - profile.mean()) * np.hanning(224), 4096))
        period_px = 4096 / np.argmax(spectrum)
        assert period_px * 0.5 == pytest.approx(20.0, rel=0.02)
        assert kit.pixels(piece.data).shape == (224, 224, 3)


def test_twins_at_two_resolutions_give_alike_tiles(kit: Any, tmp_path: Path) -> None:
    fine, coarse = tmp_path / "fine", tmp_path / "coarse"
    fine.mkdir(), coarse.mkdir()
    kit.write_slide(fine / "a.tif", ruler(0.25), 0.25)
    kit.write_slide(coarse / "a.tif", ruler(0.5), 0.5)
    smooth = kit.options("--min-focus", "0")
    for one, other in zip(*(kit.convert(each, smooth).pieces for each in (fine, coarse)), strict=True):
        assert one.suffix == other.suffix
        assert np.abs(kit.pixels(one.data).astype(int) - kit.pixels(other.data)).mean() < 3


def test_coarser_slides_are_never_enlarged(kit: Any, tmp_path: Path) -> None:
    kit.write_slide(tmp_path / "fits.tif", kit.stained(600, 600), 0.59)
    kit.write_slide(tmp_path / "coarse.tif", kit.stained(600, 600), 0.61)
    result = kit.convert(tmp_path)
    assert kit.reasons(result) == {"coarse.tif": "level_too_coarse"}
    assert {piece.file for piece in result.pieces} == {"fits.tif"}
    assert kit.pixels(result.pieces[0].data).shape == (224, 224, 3)


def test_levels_within_tolerance_are_cut_as_they_are(kit: Any, tmp_path: Path) -> None:
    slide = wsi.open_slide(kit.write_slide(tmp_path / "a.tif", kit.stained(1024, 1024), 0.2525, 3))
    plan = tiling.plan(slide, 0.2525, tile_px=224, tile_mpp=0.5)
    assert (plan.level.index, plan.side) == (1, 224)
    assert plan.true_mpp == pytest.approx(0.505)
    plan = tiling.plan(slide, 0.2525, tile_px=224, tile_mpp=0.8)
    assert plan.level.index == 1
    assert plan.side == round(224 * 0.8 / 0.505)
    slide.close()


def test_missing_resolution_and_its_two_mends(kit: Any, tmp_path: Path) -> None:
    kit.write_slide(tmp_path / "a.tif", kit.stained(900, 900), None)
    Image.fromarray(kit.stained(900, 900, 5)).save(tmp_path / "b.png", dpi=(72, 72))
    assert kit.reasons(kit.convert(tmp_path)) == {"a.tif": "missing_mpp", "b.png": "missing_mpp"}
    assert len(kit.convert(tmp_path, kit.options("--assume-mpp", "0.25")).pieces) == 8
    table = tmp_path / "mpp.csv"
    table.write_text("file,mpp\na.tif,0.5\nb,0.25\n")
    result = kit.convert(tmp_path, kit.options("--mpp-csv", str(table)))
    assert sorted(piece.file for piece in result.pieces) == ["a.tif"] * 16 + ["b.png"] * 4
    assert {piece.geometry["mpp_from"] for piece in result.pieces} == {"table"}
    assert kit.reasons(result) == {"mpp.csv": "not_an_input"}


def test_table_overrules_the_file(kit: Any, tmp_path: Path) -> None:
    kit.write_slide(tmp_path / "a.tif", kit.stained(900, 900), 352.8)  # 72 dpi: a driver's placeholder
    assert kit.reasons(kit.convert(tmp_path)) == {"a.tif": "missing_mpp"}
    (tmp_path / "mpp.csv").write_text("file,mpp\na.tif,0.25\n")
    assert len(kit.convert(tmp_path, kit.options("--mpp-csv", str(tmp_path / "mpp.csv"))).pieces) == 4


@pytest.mark.parametrize("text", ["name,mpp\na,1\n", "file,mpp\na,fast\n", "file,mpp\na,900\n", "file,mpp\n"])
def test_unreadable_table_is_a_usage_error(kit: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "mpp.csv").write_text(text)
    with pytest.raises(UsageError, match="--mpp-csv"):
        kit.options("--mpp-csv", str(tmp_path / "mpp.csv"))


def test_paths_stay_out_of_public_settings(kit: Any, tmp_path: Path) -> None:
    (tmp_path / "mpp.csv").write_text("file,mpp\nSENTINEL.tif,0.25\n")
    chosen = kit.options("--tiles", "SENTINEL", "--mpp-csv", str(tmp_path / "mpp.csv"))
    public = {name: value for name, value in chosen.items() if not name.startswith("_")}
    assert "SENTINEL" not in repr(public)
    assert public["tiles"] == "some"
    other = kit.options("--tiles", "elsewhere", "--mpp-csv", str(tmp_path / "mpp.csv"))
    assert public["tiles_digest"] != other["tiles_digest"]


class Forged:
    """A slide whose header claims a million pixels each way."""

    levels = (wsi.Level(0, 1_000_000, 1_000_000, 1.0),)
    mpp = 0.5
    decoded_whole = False

    def read(self, level: wsi.Level, x: int, y: int, width: int, height: int) -> np.ndarray:
        raise AssertionError("nothing of it may be read")

    def close(self) -> None:
        return


def test_forged_size_is_refused_before_anything_is_read(kit: Any) -> None:
    with pytest.raises(Refusal, match="too_large"):
        tiling.plan(Forged(), 0.5, tile_px=224, tile_mpp=0.5)


@pytest.mark.parametrize(("mpp", "side", "step"), [(0.5, 224, 160), (0.25, 448, 320)])
def test_overlapping_tiles_share_what_was_asked(kit: Any, tmp_path: Path, mpp: float, side: int, step: int) -> None:
    extent = side + 3 * step
    pixels = kit.stained(extent, extent)
    kit.write_slide(tmp_path / "a.tif", pixels, mpp)
    result = kit.convert(tmp_path, kit.options("--overlap", "64"))
    assert kit.places(result) == {(y, x) for y in range(0, 4 * step, step) for x in range(0, 4 * step, step)}
    assert {piece.geometry["side_level0"] for piece in result.pieces} == {side}
    shown = {piece.suffix: kit.pixels(piece.data).astype(int) for piece in result.pieces}
    # The right 64 px of one tile are the left 64 px of the next.
    border = shown["0001x0001"][:, 160:]
    same, other = (np.abs(border - shown[name][:, :64]).mean() for name in ("0001x0002", "0001x0003"))
    assert same < 0.6 * other


def test_all_tiles_are_taken_on_request(kit: Any, tmp_path: Path) -> None:
    kit.write_slide(tmp_path / "a.tif", kit.stained(960, 960), 0.5)
    assert len(kit.convert(tmp_path, kit.options("--size", "64")).pieces) == 100
    for word in ("all", "0"):
        assert len(kit.convert(tmp_path, kit.options("--size", "64", "--max-tiles", word)).pieces) == 225
    with pytest.raises(SystemExit):
        kit.options("--max-tiles", "-3")


def test_directories_in_a_circle_are_refused_at_once(kit: Any, tmp_path: Path) -> None:
    path = kit.write_slide(tmp_path / "a.tif", kit.stained(512, 512), 0.5, levels=2)
    assert len(TiffPyramid(path).pages) == 2
    with tifffile.TiffFile(path) as file:
        first, last = (file.pages[number].aspage().offset for number in range(2))
    data = bytearray(path.read_bytes())
    (tags,) = struct.unpack_from("<H", data, last)
    struct.pack_into("<I", data, last + 2 + 12 * tags, first)
    path.write_bytes(data)
    with pytest.raises(Refusal, match="in a circle"):
        TiffPyramid(path)
    assert kit.reasons(kit.convert(tmp_path)).keys() == {"a.tif"}


@pytest.mark.parametrize("shape", [(16, 65_536), (65_536, 16)])
def test_tiles_longer_than_any_scanner_makes_are_refused(kit: Any, tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "a.svs"
    with tifffile.TiffWriter(path) as writer:
        writer.write(
            np.full((*shape, 3), 200, np.uint8), tile=shape, photometric="rgb", compression="zlib", metadata=None,
            description="Aperio Image Library v12.0\r\nmade|AppMag = 20|MPP = 0.5",
        )  # fmt: skip
    with pytest.raises(Refusal, match="too_large"):
        wsi.open_slide(path)
