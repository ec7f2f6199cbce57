"""Slides as files: which belong together, what is damaged, and which reader gives which pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, generate_uid

from preprocess.conversion import InputFile, Inspected, Refusal
from preprocess.modalities import pathology
from preprocess.readers import wsi


def test_damaged_and_foreign_files_are_typed(kit: Any, tmp_path: Path) -> None:
    whole = kit.write_slide(tmp_path / "cut.tif", kit.stained(800, 800), 0.5).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[:3000])
    (tmp_path / "noise.svs").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "empty.ndpi").write_bytes(b"")
    (tmp_path / "set.npz").write_bytes(b"PK")
    (tmp_path / "notes.txt").write_text("notes")
    Image.fromarray(kit.stained(600, 600)).save(tmp_path / "tiny.png")
    found = kit.reasons(kit.convert(tmp_path, kit.options("--assume-mpp", "0.1")))
    assert found == {
        "cut.tif": "unreadable",
        "noise.svs": "unreadable",
        "empty.ndpi": "empty",
        "set.npz": "unsupported_format",
        "notes.txt": "not_an_input",
        "tiny.png": "too_small",
    }
    assert kit.reasons(kit.convert(tmp_path, kit.options("--max-pixels", "1000")))["tiny.png"] == "too_large"


def test_broken_tiles_cost_themselves_only(kit: Any, tmp_path: Path) -> None:
    path = kit.write_slide(tmp_path / "a.tif", kit.stained(1024, 1024), 0.5)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[5]  # the tile at (256, 256) of the 4 x 4
    content = bytearray(path.read_bytes())
    content[place : place + 64] = bytes(64)
    path.write_bytes(content)
    result = kit.convert(tmp_path, kit.options("--size", "128"))
    lost = {(y, x) for y in (256, 384) for x in (256, 384)}
    places = {(piece.geometry["y_level0"], piece.geometry["x_level0"]) for piece in result.pieces}
    assert places == {(y, x) for y in range(0, 1024, 128) for x in range(0, 1024, 128)} - lost


def test_tiles_broken_where_the_overview_is_sound_are_counted(kit: Any, tmp_path: Path) -> None:
    path = kit.write_slide(tmp_path / "a.tif", kit.stained(1024, 1024), 0.5, 4)
    with tifffile.TiffFile(path) as file:
        place = file.pages[0].dataoffsets[5]
    content = bytearray(path.read_bytes())
    content[place : place + 64] = bytes(64)
    path.write_bytes(content)
    result = kit.convert(tmp_path, kit.options("--size", "128"))
    outcome = result.outcomes["a.tif"]
    assert (str(outcome.status), outcome.reason) == ("written", "broken_tile")
    assert result.counts[""]["unreadable tiles"] == 4
    assert len(result.pieces) == 60


def test_pre_cut_tiles_need_saying(kit: Any, tmp_path: Path) -> None:
    for folder in ("cut", "whole"):
        (tmp_path / folder).mkdir()
    Image.fromarray(kit.stained(224, 224, 1)).save(tmp_path / "cut" / "TCGA-AB-1234-01Z.png")
    Image.fromarray(kit.stained(448, 448, 2)).save(tmp_path / "cut" / "large.jpg", quality=95)
    Image.fromarray(kit.stained(100, 100, 3)).save(tmp_path / "cut" / "small.png")
    Image.fromarray(kit.stained(900, 900, 4)).save(tmp_path / "whole" / "TCGA-CD-5678-01Z.png")
    assert set(kit.reasons(kit.convert(tmp_path)).values()) == {"raw_tiles", "missing_mpp"}
    result = kit.convert(tmp_path, kit.options("--tiles", "cut", "--assume-mpp", "0.25"))
    tiles = {piece.file: piece for piece in result.pieces if piece.file.startswith("cut")}
    assert {name: kit.pixels(tile.data).shape[0] for name, tile in tiles.items()} == {
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
    everything = kit.convert(tmp_path, kit.options("--tiles"))
    assert len(everything.pieces) == 4
    assert all(piece.geometry["mpp"] is None for piece in everything.pieces)


LEVEL = "1.2.840.10008.5.1.4.1.1.77.1.6"


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()


def write_level(
    path: Path, pixels: np.ndarray, mpp: float, series: str, flavour: str = "NONE", frames: slice | None = None,
    **elements: Any,
) -> None:  # fmt: skip
    """A DICOM level in JPEG frames of 256 px, or those `frames` of it that are one part of a concatenation."""
    height, width = pixels.shape[:2]
    whole = np.pad(pixels, ((0, -height % 256), (0, -width % 256), (0, 0)), constant_values=255)
    coded = [jpeg(whole[y : y + 256, x : x + 256]) for y in range(0, height, 256) for x in range(0, width, 256)]
    coded = coded[frames] if frames else coded
    level, measures, shared, origin, path_item = (Dataset() for _ in range(5))
    level.file_meta = FileMetaDataset()
    level.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    level.SOPClassUID = level.file_meta.MediaStorageSOPClassUID = LEVEL
    level.SOPInstanceUID = level.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    level.SeriesInstanceUID, level.StudyInstanceUID, level.PatientID = series, "1.2.3.4.5", "P-9"
    level.FrameOfReferenceUID, level.Modality = "1.2.3.9", "SM"
    level.ImageType = ["ORIGINAL" if flavour == "NONE" else "DERIVED", "PRIMARY", "VOLUME", flavour]
    level.Rows = level.Columns = 256
    level.SamplesPerPixel, level.PhotometricInterpretation, level.PlanarConfiguration = 3, "YBR_FULL_422", 0
    level.BitsAllocated = level.BitsStored = 8
    level.HighBit, level.PixelRepresentation = 7, 0
    level.TotalPixelMatrixColumns, level.TotalPixelMatrixRows, level.TotalPixelMatrixFocalPlanes = width, height, 1
    level.DimensionOrganizationType, level.NumberOfOpticalPaths = "TILED_FULL", 1
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    measures.SliceThickness = measures.SpacingBetweenSlices = 0.001
    shared.PixelMeasuresSequence = [measures]
    level.SharedFunctionalGroupsSequence = [shared]
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0
    level.TotalPixelMatrixOriginSequence = [origin]
    path_item.OpticalPathIdentifier, path_item.ObjectiveLensPower = "1", 20
    level.OpticalPathSequence = [path_item]
    for name, value in elements.items():
        setattr(level, name, value)
    level.NumberOfFrames = len(coded)
    level.PixelData = encapsulate(coded)
    level.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("parts", [1, 2])
def test_dicom_slides_of_several_levels_and_parts(kit: Any, tmp_path: Path, parts: int) -> None:
    pixels, series, whole = kit.stained(1200, 1100), generate_uid(), generate_uid()
    half = np.asarray(Image.fromarray(pixels).reduce(4))
    write_level(tmp_path / "a.dcm", half, 1.0, series, "RESAMPLED")  # sorted before the level as scanned
    for number in range(parts):
        about = {
            "ConcatenationUID": whole,
            "InConcatenationNumber": number + 1,
            "InConcatenationTotalNumber": parts,
            "ConcatenationFrameOffsetNumber": 12 * number,
            "SOPInstanceUIDOfConcatenationSource": "1.2.3.77",
        }
        frames = slice(12 * number, 12 * (number + 1) if number < parts - 1 else None)
        write_level(
            tmp_path / f"b{number}.dcm", pixels, 0.25, series, frames=frames, **(about if parts > 1 else {})
        )  # fmt: skip
    write_level(tmp_path / "label.dcm", half, 1.0, series, "RESAMPLED", ImageType=["ORIGINAL", "PRIMARY", "LABEL"])
    (unit,) = kit.discover(tmp_path, kit.options()).units
    assert [file.relative for file in unit.files] == ["b0.dcm", "a.dcm", *(["b1.dcm"] if parts > 1 else [])]
    result = kit.convert(tmp_path)
    assert kit.places(result) == {(y, x) for y in (0, 448) for x in (0, 448)}
    assert {piece.subject_ids[0] for piece in result.pieces} == {"P-9"}
    for piece in result.pieces:
        y, x = piece.geometry["y_level0"], piece.geometry["x_level0"]
        source = Image.fromarray(pixels[y : y + 448, x : x + 448]).resize((224, 224), Image.Resampling.LANCZOS)
        assert np.abs(kit.pixels(piece.data).astype(int) - np.asarray(source)).mean() < 5
    assert kit.reasons(result) == {"label.dcm": "not_an_input"}


def test_levels_of_a_refused_dicom_slide_share_its_fate(kit: Any, tmp_path: Path) -> None:
    series = generate_uid()
    write_level(tmp_path / "a.dcm", kit.stained(300, 300), 1.0, series, "RESAMPLED", BurnedInAnnotation="NO")
    write_level(tmp_path / "b.dcm", kit.stained(600, 600), 0.5, series, BurnedInAnnotation="YES")
    result = kit.convert(tmp_path)
    assert kit.reasons(result) == {"a.dcm": "burned_in", "b.dcm": "burned_in"}
    assert len(kit.convert(tmp_path, kit.options("--allow-burned-in")).pieces) == 4


def test_slides_in_pieces_are_one_unit(kit: Any, tmp_path: Path) -> None:
    names = ("box.mrxs", "box/Index.dat", "box/Slidedat.ini", "scan.vms", "scan_map2.jpg", "scan(0,1).jpg", "b.png")
    (tmp_path / "box").mkdir()
    files = {name: InputFile(tmp_path / name, name) for name in names}
    for file in files.values():
        file.path.write_bytes(b"x")
    # Their parts are not looked at one by one: a part of a slide is a picture that lacks a resolution.
    assert kit.reasons(kit.convert(tmp_path)) == dict.fromkeys(names, "unreadable")
    portion = {"tiles": "", "first": True, "mpp": 0.5, "mpp_from": "file", "digest": ""}
    heads = ("box.mrxs", "scan.vms", "b.png")
    inspected = [
        Inspected(file, {"kind": "slide", "portions": [portion]} if name in heads else {"kind": "raster"})
        for name, file in files.items()
    ]
    found = pathology.group(inspected, kit.options())
    assert found.outcomes == {}
    assert {frozenset(file.relative for file in unit.files): unit.files[0].relative for unit in found.units} == {
        frozenset({"box.mrxs", "box/Index.dat", "box/Slidedat.ini"}): "box.mrxs",
        frozenset({"scan.vms", "scan_map2.jpg", "scan(0,1).jpg"}): "scan.vms",
        frozenset({"b.png"}): "b.png",
    }


def test_damaged_jpeg_tile_of_an_svs_costs_the_tiles_on_it(kit: Any, tmp_path: Path) -> None:
    path = kit.write_svs(tmp_path / "a.svs", kit.stained(1024, 1024), 0.5, 4)
    sound = kit.convert(tmp_path, kit.options("--size", "128"))
    assert len(sound.pieces) == 64
    kit.spoil(path, 0, [5])
    result = kit.convert(tmp_path, kit.options("--size", "128"))
    lost = {(y, x) for y in (256, 384) for x in (256, 384)}
    assert kit.places(sound) - kit.places(result) == lost
    assert kit.reasons(result) == {"a.svs": "broken_tile"}
    assert result.counts[""]["unreadable tiles"] == 4
    kept = {piece.suffix: piece.data for piece in sound.pieces}
    assert all(kept[piece.suffix] == piece.data for piece in result.pieces)


def test_jpeg_that_breaks_off_is_a_broken_tile(kit: Any, tmp_path: Path) -> None:
    path = kit.write_svs(tmp_path / "a.svs", kit.stained(512, 512), 0.5, 2)
    with tifffile.TiffFile(path) as file:
        offset, size = file.pages[0].dataoffsets[3], file.pages[0].databytecounts[3]
    content = bytearray(path.read_bytes())
    content[offset + size // 2 : offset + size] = bytes(size - size // 2)
    path.write_bytes(content)
    result = kit.convert(tmp_path, kit.options("--size", "128"))
    assert len(result.pieces) == 12
    assert result.counts[""]["unreadable tiles"] == 4


def test_tile_that_claims_a_huge_size_is_not_decoded(kit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bomb = jpeg(kit.stained(256, 256)), jpeg(kit.stained(256, 4096))
    with tifffile.TiffWriter(tmp_path / "a.svs") as writer:
        writer.write(
            iter([good, good, bomb, good]), shape=(512, 512, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb",
            compression="jpeg", description="Aperio Image Library v12.0|MPP = 0.5", metadata=None,
        )  # fmt: skip
    decoded = []
    decode = imagecodecs.jpeg_decode
    monkeypatch.setattr(imagecodecs, "jpeg_decode", lambda data, **how: decoded.append(data) or decode(data, **how))
    with wsi.opened(tmp_path / "a.svs") as slide:
        assert slide.read(slide.levels[0], 256, 256, 256, 256).shape == (256, 256, 3)
        with pytest.raises(Refusal, match="broken_tile"):
            slide.read(slide.levels[0], 0, 256, 256, 256)
    assert decoded == [good]


def test_broken_level_costs_its_tiles_not_the_run(kit: Any, tmp_path: Path) -> None:
    path = kit.write_svs(tmp_path / "a.svs", kit.stained(1024, 1024), 0.25, 4)
    kit.spoil(path, 1, range(4))  # the level that tiles are read from
    assert kit.reasons(kit.convert(tmp_path)) == {"a.svs": "broken_tile"}


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_jpeg_tiles_decode_to_the_pixels_openslide_gives(
    kit: Any, tmp_path: Path, subsampling: tuple[int, int]
) -> None:
    path = kit.write_slide(
        tmp_path / "a.svs", kit.stained(700, 900), None, 2, compression="jpeg", subsampling=subsampling,
        description="Aperio Image Library v12.0|MPP = 0.5",
    )  # fmt: skip
    slide = wsi.open_slide(path)
    for level, places in ((slide.levels[0], ((0, 0), (130, 250), (850, 650))), (slide.levels[1], ((0, 0), (300, 200)))):
        for x, y in places:
            with openslide.OpenSlide(path) as other:
                corner = (round(x * level.downsample), round(y * level.downsample))
                region = np.asarray(other.read_region(corner, level.index, (300, 280)))
            opaque = np.where(region[..., 3:] == 255, region[..., :3], 255)
            np.testing.assert_array_equal(slide.read(level, x, y, 300, 280), opaque)
    slide.close()


def test_ome_pyramids_are_read_with_their_levels_and_resolution(kit: Any, tmp_path: Path) -> None:
    pixels = kit.stained(1000, 1200)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        about = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
        size = {f"PhysicalSize{axis}": 250 for axis in "XY"} | {f"PhysicalSize{axis}Unit": "nm" for axis in "XY"}
        writer.write(pixels, subifds=1, metadata={"axes": "YXS"} | size, **about)
        writer.write(np.asarray(Image.fromarray(pixels).reduce(2)), subfiletype=1, **about)
    with wsi.opened(tmp_path / "a.ome.tif") as slide:
        assert [(level.width, level.height, level.downsample) for level in slide.levels] == [
            (1200, 1000, 1.0), (600, 500, 2.0)]  # fmt: skip
        assert slide.mpp == pytest.approx(0.25)
        np.testing.assert_array_equal(slide.read(slide.levels[0], 1100, 900, 60, 50), pixels[900:950, 1100:1160])
        edge = slide.read(slide.levels[0], 1150, 950, 100, 100)
        np.testing.assert_array_equal(edge[:50, :50], pixels[950:, 1150:])
        assert (edge[50:] == 255).all()
    assert len(kit.convert(tmp_path).pieces) == 4
