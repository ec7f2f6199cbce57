"""Pathology: one physical scale for every tile, tissue and nothing else, and slides that are refused with a reason."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medcoss.contracts import Kind, ModalitySpec, UsageError
from preprocess.cli import main
from preprocess.conversion import Conversion, Discovery, InputFile, Refusal
from preprocess.modalities import pathology
from preprocess.readers import tiling, wsi
from preprocess.reasons import REASONS
from preprocess.workers import inspect_all

PINK, GLASS = (214, 130, 178), (243, 242, 244)


def discover(files: Sequence[InputFile], settings: dict[str, Any]) -> Discovery:
    """Units and outcomes as the engine finds them."""
    inspected, refused = inspect_all(pathology, files, settings)
    found = pathology.group(inspected, settings)
    return Discovery(found.units, refused | found.outcomes)


def options(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    pathology.add_arguments(parser)
    return pathology.settings(parser.parse_args(words))


def write_slide(path: Path, pixels: np.ndarray, mpp: float | None, levels: int = 1, **extra: Any) -> Path:
    """A tiled TIFF, lossless, each level half the one before; OpenSlide reads its resolution."""
    with tifffile.TiffWriter(path) as writer:
        for level in range(levels):
            scale = 2**level
            kept = np.asarray(Image.fromarray(pixels).reduce(scale)) if scale > 1 else pixels
            places = {} if mpp is None else {"resolution": (1e4 / mpp / scale,) * 2, "resolutionunit": "CENTIMETER"}
            writer.write(
                kept, tile=(256, 256), photometric="rgb", compression="zlib", metadata=None,
                subfiletype=int(level > 0), **places, **extra,
            )  # fmt: skip
    return path


def stained(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Pink tissue with a texture, all over."""
    noise = np.random.default_rng(seed).integers(-25, 25, (height, width, 1))
    return np.clip(np.array(PINK) + noise, 0, 255).astype(np.uint8)


def convert(root: Path, settings: dict[str, Any] | None = None) -> Conversion:
    """All files below root; conversions merged. A refusal counts for all files of its unit."""
    chosen = settings or options()
    files = [InputFile(path, path.relative_to(root).as_posix()) for path in sorted(root.rglob("*")) if path.is_file()]
    discovery = discover(files, chosen)
    merged = Conversion([], outcomes=dict(discovery.outcomes))
    for unit in discovery.units:
        try:
            result = pathology.convert(unit, chosen)
        except Refusal as refusal:
            result = Conversion([], outcomes={file.relative: refusal.outcome for file in unit.files})
        merged.pieces += result.pieces
        merged.outcomes |= result.outcomes
    assert {outcome.reason for outcome in merged.outcomes.values()} <= {"", *REASONS}
    return merged


def reasons(result: Conversion) -> dict[str, str]:
    return {name: outcome.reason for name, outcome in result.outcomes.items() if outcome.reason}


def pixels(data: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_spec_round_trips() -> None:
    spec = pathology.spec(options())
    assert spec.kind is Kind.IMAGE
    assert spec.geometry.shape == (3, 224, 224)
    assert ModalitySpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "words", [("--mpp", "0"), ("--assume-mpp", "400"), ("--max-tiles", "0"), ("--min-tissue", "2")]
)
def test_impossible_options_are_usage_errors(words: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=words[0]):
        options(*words)


def ruler(mpp: float, extent_um: float = 480.0, period_um: float = 20.0) -> np.ndarray:
    """Vertical stripes of tissue colours, one every `period_um`, at `mpp` µm a px."""
    side = round(extent_um / mpp)
    um = (np.arange(side) + 0.5) * mpp
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * um / period_um)
    line = np.array(PINK) * (1 - 0.5 * wave[:, None])
    return np.broadcast_to(line.astype(np.uint8), (side, side, 3)).copy()


@pytest.mark.parametrize(("mpp", "levels"), [(0.25, 1), (0.25, 3), (0.5, 1), (0.499, 2), (0.31, 1), (0.58, 1)])
def test_ruler_shows_the_same_micrometres_a_tile(tmp_path: Path, mpp: float, levels: int) -> None:
    write_slide(tmp_path / "ruler.tif", ruler(mpp), mpp, levels)
    result = convert(tmp_path)
    assert len(result.pieces) == 16  # 480 µm hold four tiles of 112 µm each way
    for piece in result.pieces:
        assert piece.geometry["mpp"] == pytest.approx(0.5, rel=0.05)
        profile = pixels(piece.data).astype(float).mean(axis=(0, 2))
        spectrum = np.abs(np.fft.rfft((profile - profile.mean()) * np.hanning(224), 4096))
        period_px = 4096 / np.argmax(spectrum)
        assert period_px * 0.5 == pytest.approx(20.0, rel=0.02)
        assert pixels(piece.data).shape == (224, 224, 3)


def test_twins_at_two_resolutions_give_alike_tiles(tmp_path: Path) -> None:
    fine, coarse = tmp_path / "fine", tmp_path / "coarse"
    fine.mkdir(), coarse.mkdir()
    write_slide(fine / "a.tif", ruler(0.25), 0.25)
    write_slide(coarse / "a.tif", ruler(0.5), 0.5)
    for one, other in zip(convert(fine).pieces, convert(coarse).pieces, strict=True):
        assert one.suffix == other.suffix
        assert np.abs(pixels(one.data).astype(int) - pixels(other.data)).mean() < 3


def test_coarser_slides_are_never_enlarged(tmp_path: Path) -> None:
    write_slide(tmp_path / "fits.tif", stained(600, 600), 0.59)
    write_slide(tmp_path / "coarse.tif", stained(600, 600), 0.61)
    result = convert(tmp_path)
    assert reasons(result) == {"coarse.tif": "level_too_coarse"}
    assert {piece.file for piece in result.pieces} == {"fits.tif"}
    assert pixels(result.pieces[0].data).shape == (224, 224, 3)


def test_levels_within_tolerance_are_cut_as_they_are(tmp_path: Path) -> None:
    slide = wsi.open_slide(write_slide(tmp_path / "a.tif", stained(1024, 1024), 0.2525, 3))
    plan = tiling.plan(slide, 0.2525, tile_px=224, tile_mpp=0.5)
    assert (plan.level.index, plan.side) == (1, 224)
    assert plan.true_mpp == pytest.approx(0.505)
    plan = tiling.plan(slide, 0.2525, tile_px=224, tile_mpp=0.8)
    assert plan.level.index == 1
    assert plan.side == round(224 * 0.8 / 0.505)
    slide.close()


def test_tissue_is_cut_and_glass_is_not(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    slide = np.clip(np.array(GLASS) + generator.integers(-4, 5, (1344, 1344, 1)), 0, 255).astype(np.uint8)
    slide[448:896, 224:1120] = stained(448, 896)
    slide[0:224, 0:150] = (20, 21, 20)  # scanner border: dark, not coloured
    slide[1120:1218, 0:224] = PINK  # under half of its tile
    slide[1120:1246, 672:896] = PINK  # over half
    write_slide(tmp_path / "a.tif", slide, 0.5, 2)
    result = convert(tmp_path)
    places = {(piece.geometry["y_level0"], piece.geometry["x_level0"]) for piece in result.pieces}
    assert places == {(y, x) for y in (448, 672) for x in range(224, 1120, 224)} | {(1120, 672)}
    for piece in result.pieces:
        y, x = piece.geometry["y_level0"], piece.geometry["x_level0"]
        assert isinstance(y, int)
        assert isinstance(x, int)
        source = slide[y : y + 224, x : x + 224]
        assert np.abs(pixels(piece.data).astype(int) - source).mean() < 8


def test_glass_alone_is_no_tissue(tmp_path: Path) -> None:
    noise = np.random.default_rng(2).integers(-5, 6, (600, 600, 1))
    write_slide(tmp_path / "a.tif", np.clip(np.array(GLASS) + noise, 0, 255).astype(np.uint8), 0.5)
    assert reasons(convert(tmp_path)) == {"a.tif": "no_tissue"}


def test_colours_are_red_green_blue(tmp_path: Path) -> None:
    write_slide(tmp_path / "slide.tif", np.full((448, 448, 3), (200, 60, 120), np.uint8), 0.5)
    Image.new("RGB", (448, 448), (200, 60, 120)).save(tmp_path / "plain.png")
    for piece in convert(tmp_path, options("--assume-mpp", "0.5")).pieces:
        assert np.abs(pixels(piece.data).reshape(-1, 3).mean(axis=0) - (200, 60, 120)).max() < 3


def test_cap_draws_the_same_tiles_wherever_the_slide_lies(tmp_path: Path) -> None:
    drawn = []
    for folder, name in (("one", "a.tif"), ("two", "other.tif")):
        (tmp_path / folder).mkdir()
        write_slide(tmp_path / folder / name, stained(1200, 1600), 0.25, 3)
        drawn.append(convert(tmp_path / folder, options("--size", "64", "--max-tiles", "20")))
    one, two = ([(piece.suffix, piece.content, piece.data) for piece in each.pieces] for each in drawn)
    assert len(one) == 20
    assert one == two
    assert [suffix for suffix, _, _ in one] == sorted({suffix for suffix, _, _ in one})
    other = convert(tmp_path / "one", options("--size", "64", "--max-tiles", "20", "--draw-seed", "1"))
    assert {piece.suffix for piece in other.pieces} != {suffix for suffix, _, _ in one}
    every = convert(tmp_path / "one", options("--size", "64", "--max-tiles", "1000"))
    assert len(every.pieces) == (1200 // 128) * (1600 // 128)


def test_pixels_do_not_depend_on_supertiles(tmp_path: Path) -> None:
    slide = wsi.open_slide(write_slide(tmp_path / "a.tif", stained(1100, 1400), 0.25))
    plan = tiling.plan(slide, 0.25, tile_px=64, tile_mpp=0.5)
    tiles = tiling.find_tissue(slide, plan, min_tissue=0.5).tiles
    together = dict(tiling.read_tiles(slide, plan, tiles))
    for tile in tiles[::7]:
        ((_, alone),) = tiling.read_tiles(slide, plan, [tile])
        np.testing.assert_array_equal(alone, together[tile])
    slide.close()


def test_missing_resolution_and_its_two_mends(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", stained(900, 900), None)
    Image.fromarray(stained(900, 900, 5)).save(tmp_path / "b.png", dpi=(72, 72))
    assert reasons(convert(tmp_path)) == {"a.tif": "missing_mpp", "b.png": "missing_mpp"}
    assert len(convert(tmp_path, options("--assume-mpp", "0.25")).pieces) == 8
    table = tmp_path / "mpp.csv"
    table.write_text("file,mpp\na.tif,0.5\nb,0.25\n")
    result = convert(tmp_path, options("--mpp-csv", str(table)))
    assert sorted(piece.file for piece in result.pieces) == ["a.tif"] * 16 + ["b.png"] * 4
    assert {piece.geometry["mpp_from"] for piece in result.pieces} == {"table"}
    assert reasons(result) == {"mpp.csv": "not_an_input"}


def test_table_overrules_the_file(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.tif", stained(900, 900), 352.8)  # 72 dpi: a driver's placeholder
    assert reasons(convert(tmp_path)) == {"a.tif": "missing_mpp"}
    (tmp_path / "mpp.csv").write_text("file,mpp\na.tif,0.25\n")
    assert len(convert(tmp_path, options("--mpp-csv", str(tmp_path / "mpp.csv"))).pieces) == 4


@pytest.mark.parametrize("text", ["name,mpp\na,1\n", "file,mpp\na,fast\n", "file,mpp\na,900\n", "file,mpp\n"])
def test_unreadable_table_is_a_usage_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "mpp.csv").write_text(text)
    with pytest.raises(UsageError, match="--mpp-csv"):
        options("--mpp-csv", str(tmp_path / "mpp.csv"))


def test_paths_stay_out_of_public_settings(tmp_path: Path) -> None:
    (tmp_path / "mpp.csv").write_text("file,mpp\nSENTINEL.tif,0.25\n")
    chosen = options("--tiles", "SENTINEL", "--mpp-csv", str(tmp_path / "mpp.csv"))
    public = {name: value for name, value in chosen.items() if not name.startswith("_")}
    assert "SENTINEL" not in repr(public)
    assert public["tiles"] == "some"
    other = options("--tiles", "elsewhere", "--mpp-csv", str(tmp_path / "mpp.csv"))
    assert public["tiles_digest"] != other["tiles_digest"]


def test_pre_cut_tiles_need_saying(tmp_path: Path) -> None:
    for folder in ("cut", "whole"):
        (tmp_path / folder).mkdir()
    Image.fromarray(stained(224, 224, 1)).save(tmp_path / "cut" / "TCGA-AB-1234-01Z.png")
    Image.fromarray(stained(448, 448, 2)).save(tmp_path / "cut" / "large.jpg", quality=95)
    Image.fromarray(stained(100, 100, 3)).save(tmp_path / "cut" / "small.png")
    Image.fromarray(stained(900, 900, 4)).save(tmp_path / "whole" / "TCGA-CD-5678-01Z.png")
    assert set(reasons(convert(tmp_path)).values()) == {"raw_tiles", "missing_mpp"}
    result = convert(tmp_path, options("--tiles", "cut", "--assume-mpp", "0.25"))
    tiles = {piece.file: piece for piece in result.pieces if piece.file.startswith("cut")}
    assert {name: pixels(tile.data).shape[0] for name, tile in tiles.items()} == {
        "cut/TCGA-AB-1234-01Z.png": 224,
        "cut/large.jpg": 224,
        "cut/small.png": 100,
    }
    assert tiles["cut/large.jpg"].geometry["mpp"] == 0.5
    assert tiles["cut/large.jpg"].geometry["mpp_from"] == "assumed"
    assert tiles["cut/TCGA-AB-1234-01Z.png"].subject_ids == ("TCGA-AB-1234",)
    slides = [piece for piece in result.pieces if piece.file.startswith("whole")]
    assert len(slides) == 4
    assert slides[0].subject_ids == ("TCGA-CD-5678",)
    everything = convert(tmp_path, options("--tiles"))
    assert len(everything.pieces) == 4
    assert all(piece.geometry["mpp"] is None for piece in everything.pieces)


def test_private_text_never_leaves(tmp_path: Path) -> None:
    write_slide(
        tmp_path / "SENTINEL.tif", stained(500, 500), 0.5, description="SENTINEL patient", software="SENTINEL host"
    )
    result = convert(tmp_path)
    assert len(result.pieces) == 4
    for piece in result.pieces:
        assert isinstance(piece.data, bytes)
        assert b"SENTINEL" not in piece.data
        assert "SENTINEL" not in repr((piece.geometry, piece.labels, piece.suffix, piece.subject_ids))


def test_damaged_and_foreign_files_are_typed(tmp_path: Path) -> None:
    whole = write_slide(tmp_path / "cut.tif", stained(800, 800), 0.5).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[:3000])
    (tmp_path / "noise.svs").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "empty.ndpi").write_bytes(b"")
    (tmp_path / "set.npz").write_bytes(b"PK")
    (tmp_path / "notes.txt").write_text("notes")
    Image.fromarray(stained(600, 600)).save(tmp_path / "tiny.png")
    found = reasons(convert(tmp_path, options("--assume-mpp", "0.1")))
    assert found == {
        "cut.tif": "unreadable",
        "noise.svs": "unreadable",
        "empty.ndpi": "empty",
        "set.npz": "unsupported_format",
        "notes.txt": "not_an_input",
        "tiny.png": "too_small",
    }
    assert reasons(convert(tmp_path, options("--max-pixels", "1000")))["tiny.png"] == "too_large"


def test_broken_tiles_cost_themselves_only(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", stained(1024, 1024), 0.5)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[5]  # the tile at (256, 256) of the 4 x 4
    content = bytearray(path.read_bytes())
    content[place : place + 64] = bytes(64)
    path.write_bytes(content)
    result = convert(tmp_path, options("--size", "128"))
    lost = {(y, x) for y in (256, 384) for x in (256, 384)}
    places = {(piece.geometry["y_level0"], piece.geometry["x_level0"]) for piece in result.pieces}
    assert places == {(y, x) for y in range(0, 1024, 128) for x in range(0, 1024, 128)} - lost


def test_tiles_broken_where_the_overview_is_sound_are_counted(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "a.tif", stained(1024, 1024), 0.5, 4)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[5]
    content = bytearray(path.read_bytes())
    content[place : place + 64] = bytes(64)
    path.write_bytes(content)
    result = convert(tmp_path, options("--size", "128"))
    outcome = result.outcomes["a.tif"]
    assert (str(outcome.status), outcome.reason) == ("written", "broken_tile")
    assert outcome.message == "4 of 64 tiles cannot be decoded"
    assert len(result.pieces) == 60


class Forged:
    """A slide whose header claims a million pixels each way."""

    levels = (wsi.Level(0, 1_000_000, 1_000_000, 1.0),)
    mpp = 0.5

    def read(self, level: wsi.Level, x: int, y: int, width: int, height: int) -> np.ndarray:
        raise AssertionError("nothing of it may be read")

    def close(self) -> None:
        return


def test_forged_size_is_refused_before_anything_is_read() -> None:
    with pytest.raises(Refusal, match="too_large"):
        tiling.plan(Forged(), 0.5, tile_px=224, tile_mpp=0.5)


def header(path: Path, sop_class: str, image_type: list[str], series: str) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.ImageType, dataset.SeriesInstanceUID = image_type, series
    dataset.save_as(path, enforce_file_format=True)


def test_units_of_slides_of_several_files(tmp_path: Path) -> None:
    slide, ct, series = "1.2.840.10008.5.1.4.1.1.77.1.6", "1.2.840.10008.5.1.4.1.1.2", generate_uid()
    (tmp_path / "dicom").mkdir(), (tmp_path / "box").mkdir()
    for name in ("1", "2.dcm"):
        header(tmp_path / "dicom" / name, slide, ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], series)
    header(tmp_path / "dicom" / "label.dcm", slide, ["ORIGINAL", "PRIMARY", "LABEL", "NONE"], series)
    header(tmp_path / "dicom" / "ct.dcm", ct, ["ORIGINAL", "PRIMARY", "AXIAL"], generate_uid())
    for name in (
        "box.mrxs",
        "box/Index.dat",
        "box/Slidedat.ini",
        "scan.vms",
        "scan_map2.jpg",
        "scan(0,1).jpg",
        "b.png",
    ):
        (tmp_path / name).write_bytes(b"x")
    files = [InputFile(path, path.relative_to(tmp_path).as_posix()) for path in tmp_path.rglob("*") if path.is_file()]
    discovery = discover(files, options())
    units = {frozenset(file.relative for file in unit.files): unit.files[0].relative for unit in discovery.units}
    assert units == {
        frozenset({"dicom/1", "dicom/2.dcm"}): "dicom/1",
        frozenset({"box.mrxs", "box/Index.dat", "box/Slidedat.ini"}): "box.mrxs",
        frozenset({"scan.vms", "scan_map2.jpg", "scan(0,1).jpg"}): "scan.vms",
        frozenset({"b.png"}): "b.png",
    }
    assert {name: outcome.reason for name, outcome in discovery.outcomes.items()} == {
        "dicom/label.dcm": "not_an_input",
        "dicom/ct.dcm": "not_an_input",
    }


def test_real_slides(real_data: Path) -> None:
    result = convert(real_data / "pathology" / "wsi")
    assert reasons(result) == {"cptac-brca_15BR001_level.dcm": "level_too_coarse"}
    assert {piece.file for piece in result.pieces} == {"CMU-1-Small-Region.svs"}
    assert 35 <= len(result.pieces) <= 50
    assert all(piece.geometry["mpp"] == 0.499 for piece in result.pieces)
    for piece in result.pieces:
        red, green, blue = pixels(piece.data).reshape(-1, 3).mean(axis=0)
        assert red > green < blue  # haematoxylin and eosin: little green


def test_real_regions_and_tiles(real_data: Path) -> None:
    root = real_data / "pathology"
    images = convert(root / "monuseg" / "test" / "images", options("--assume-mpp", "0.25"))
    assert [len([p for p in images.pieces if p.file == name]) for name in sorted({p.file for p in images.pieces})] == [
        4,
        4,
    ]
    assert {piece.subject_ids for piece in images.pieces} == {("TCGA-G9-6363",), ("TCGA-HE-7129",)}
    some = sorted((root / "lc25000_lung224" / "lung_n").iterdir())[:10]
    files = [InputFile(path, path.relative_to(root).as_posix()) for path in some]
    chosen = options("--tiles", "lc25000_lung224")
    for unit in discover(files, chosen).units:
        (piece,) = pathology.convert(unit, chosen).pieces
        source = np.asarray(Image.open(unit.files[0].path).convert("RGB")).astype(float)
        error = np.mean((pixels(piece.data) - source) ** 2)
        assert 10 * np.log10(255**2 / error) > 35
    assert reasons(convert(root / "lc25000_lung224" / "lung_n")).keys() != set()


def test_command_keeps_paths_out_and_gives_the_same_set_for_any_number_of_workers(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "SENTINEL-folder").mkdir(parents=True)
    write_slide(raw / "SENTINEL-slide.tif", stained(700, 700), None)
    for number in range(3):
        Image.fromarray(stained(64, 64, number)).save(raw / "SENTINEL-folder" / f"{number}.png")
    table = tmp_path / "mpp.csv"
    table.write_text("file,mpp\nSENTINEL-slide.tif,0.5\n")
    manifests = []
    for workers in ("1", "2"):
        out = tmp_path / f"set{workers}"
        words = ["--in", str(raw), "--out", str(out), "--salt-file", str(tmp_path / "salt"), "--workers", workers]
        words += ["--tiles", "SENTINEL-folder", "--mpp-csv", str(table), "--size", "64"]
        assert main(["pathology", *words]) == 0
        manifests.append((out / "manifest.json").read_bytes())
        for path in out.rglob("*"):
            assert path.is_dir() or b"SENTINEL" not in path.read_bytes()
    assert manifests[0] == manifests[1]
    found = json.loads(manifests[0])
    assert found["inputs"] == {"failed": 0, "read": 4, "skipped": 0, "written": 4}
    assert sum(split["samples"] for split in found["splits"].values()) == 3 + 100
    words[words.index("SENTINEL-folder")] = "elsewhere"
    assert main(["pathology", *words]) == 2
