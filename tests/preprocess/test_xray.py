"""X-ray: which files are samples, refusals by header, and what leaves in the sample."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from medcoss.contracts import Kind, ModalitySpec, UsageError
from preprocess.conversion import Conversion, Discovery, InputFile, Refusal, Status
from preprocess.modalities import xray
from preprocess.reasons import REASONS
from tests.support import discovery
from tests.support.radiographs import radiograph_of, ramp


def discover(files: Sequence[InputFile], settings: dict[str, Any]) -> Discovery:
    """Units and outcomes as the engine finds them."""
    return discovery.discover(xray, files, settings)


def options(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    xray.add_arguments(parser)
    parser.set_defaults(labels=[], id_column=None)
    return xray.settings(parser.parse_args(words))


def save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def convert(root: Path, settings: dict[str, Any] | None = None) -> Conversion:
    """All files below root, converted in the order of their units; the conversions merged."""
    chosen = settings or options()
    files = [InputFile(path, path.relative_to(root).as_posix()) for path in sorted(root.rglob("*")) if path.is_file()]
    discovery = discover(files, chosen)
    merged = Conversion([], outcomes=dict(discovery.outcomes))
    for unit in discovery.units:
        try:
            result = xray.convert(unit, chosen)
        except Refusal as refusal:
            result = Conversion([], outcomes={file.relative: refusal.outcome for file in unit.files})
        merged.pieces += result.pieces
        merged.outcomes |= result.outcomes
    assert {outcome.reason for outcome in merged.outcomes.values()} <= {"", *REASONS}
    return merged


def pixels(data: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_spec_round_trips() -> None:
    spec = xray.spec(options())
    assert spec.kind is Kind.IMAGE
    assert spec.geometry.shape == (3, 224, 224)
    assert ModalitySpec.from_json(spec.to_json()) == spec
    assert xray.finish(options("--size", "64"), [])[0].geometry.shape == (3, 64, 64)


def test_unknown_view_and_size_are_usage_errors() -> None:
    with pytest.raises(UsageError, match="SIDEWAYS"):
        options("--view", "sideways")
    with pytest.raises(UsageError, match="--size"):
        options("--size", "2")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
        ({"NumberOfFrames": 2}, "multi_frame"),
        ({"BurnedInAnnotation": "YES"}, "burned_in"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"}, "secondary_capture"),
        ({"Modality": "US"}, "not_a_radiograph"),
        ({"Rows": 0}, "no_pixels"),
    ],
)
def test_unsuitable_objects_are_skipped_with_their_reason(tmp_path: Path, header: dict[str, Any], reason: str) -> None:
    save(radiograph_of(ramp(), **header), tmp_path / "a.dcm")
    result = convert(tmp_path)
    assert result.pieces == []
    assert result.outcomes["a.dcm"].reason == reason
    assert result.outcomes["a.dcm"].status is Status.SKIPPED


def test_allowed_exceptions(tmp_path: Path) -> None:
    save(radiograph_of(ramp(), BurnedInAnnotation="YES"), tmp_path / "a.dcm")
    save(radiograph_of(ramp() // 2, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT"), tmp_path / "b.dcm")
    assert len(convert(tmp_path, options("--allow-burned-in", "--allow-secondary-capture")).pieces) == 2


def test_view_and_body_part_select(tmp_path: Path) -> None:
    for number, (view, part) in enumerate([("PA", "CHEST"), ("LL", "CHEST"), ("AP", "HAND"), ("", "")]):
        stored = np.roll(ramp(), number, axis=0)
        save(radiograph_of(stored, ViewPosition=view, BodyPartExamined=part), tmp_path / f"{number}.dcm")
    frontal = convert(tmp_path, options("--view", "pa", "ap"))
    assert sorted(piece.file for piece in frontal.pieces) == ["0.dcm", "2.dcm"]
    assert {name: outcome.reason for name, outcome in frontal.outcomes.items()} == {
        "1.dcm": "not_a_view",
        "3.dcm": "not_a_view",
    }
    assert [piece.file for piece in convert(tmp_path, options("--view", "lateral")).pieces] == ["1.dcm"]
    chest = convert(tmp_path, options("--body-part", "chest"))
    assert sorted(piece.file for piece in chest.pieces) == ["0.dcm", "1.dcm"]
    assert chest.outcomes["2.dcm"].reason == "other_body_part"


def test_sample_holds_pixels_and_geometry_only(tmp_path: Path) -> None:
    y, x = np.mgrid[:700, :500]
    stored = (2000 + 900 * np.sin(x / 60) * np.cos(y / 80)).astype(np.uint16)
    header = {"PixelSpacing": ["0.2", "0.2"], "ViewPosition": "SENTINEL", "StudyDescription": "SENTINEL study"}
    save(radiograph_of(stored, **header), tmp_path / "SENTINEL.dcm")
    (piece,) = convert(tmp_path).pieces
    assert piece.subject_ids[0] == "SENTINEL-1"
    assert piece.geometry == {
        "native_height": 700,
        "native_width": 500,
        "pixel_spacing_mm": [0.2, 0.2],
        "view": None,
        "voi": "percentile",
        "stored_height": 358,
        "stored_width": 256,
    }
    assert isinstance(piece.data, bytes)
    assert b"SENTINEL" not in piece.data
    assert pixels(piece.data).shape == (358, 256)


def test_jpeg_source_is_encoded_anew_without_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "SENTINEL description"
    grey = ramp() // 16
    Image.fromarray(grey.astype(np.uint8)).save(
        tmp_path / "a.jpg", exif=exif, comment=b"SENTINEL comment", icc_profile=b"SENTINEL profile", quality=95
    )
    with (tmp_path / "a.jpg").open("ab") as stream:
        stream.write(b"SENTINEL trailer")
    (piece,) = convert(tmp_path).pieces
    assert isinstance(piece.data, bytes)
    assert b"SENTINEL" not in piece.data
    assert set(Image.open(io.BytesIO(piece.data)).info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert np.abs(pixels(piece.data).astype(int) - grey).max() <= 6  # not enlarged: 64 px stay 64 px


def test_stored_side_follows_size(tmp_path: Path) -> None:
    Image.fromarray(np.tile(ramp() // 16, (8, 8)).astype(np.uint8)).save(tmp_path / "a.png")
    for words, side in (((), 256), (("--size", "64"), 73)):
        (piece,) = convert(tmp_path, options(*words)).pieces
        assert pixels(piece.data).shape == (side, side)


def test_deep_png_is_stretched(tmp_path: Path) -> None:
    generator = np.random.default_rng(9)
    stored = generator.integers(20_000, 30_000, (128, 128)).astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / "a.png")
    (piece,) = convert(tmp_path).pieces
    assert piece.geometry["voi"] == "percentile"
    assert pixels(piece.data).min() < 10
    assert pixels(piece.data).max() > 245


def test_copies_of_one_instance_give_one_sample_whatever_the_order(tmp_path: Path) -> None:
    first = radiograph_of(ramp())
    lossy = radiograph_of(ramp() // 2 * 2, LossyImageCompression="01")
    source, purpose = Dataset(), Dataset()
    purpose.CodeValue = "121320"
    source.ReferencedSOPInstanceUID = first.SOPInstanceUID
    source.PurposeOfReferenceCodeSequence = [purpose]
    lossy.SourceImageSequence = [source]
    save(lossy, tmp_path / "a.dcm")
    save(first, tmp_path / "b.dcm")
    result = convert(tmp_path)
    assert [piece.file for piece in result.pieces] == ["b.dcm"]
    assert result.outcomes["a.dcm"].reason == "duplicate_instance"
    files = [InputFile(tmp_path / name, name) for name in ("a.dcm", "b.dcm")]
    assert discover(files, options()).units == discover(files[::-1], options()).units


def test_damaged_first_copy_gives_way_to_the_next(tmp_path: Path) -> None:
    whole = radiograph_of(ramp())
    save(whole, tmp_path / "b.dcm")
    save(whole, tmp_path / "a.dcm")
    (tmp_path / "a.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:-3000])
    result = convert(tmp_path)
    assert result.outcomes["a.dcm"].reason == "truncated_pixels"
    assert [piece.file for piece in result.pieces] == ["b.dcm"]


def test_other_files_have_their_outcomes(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "set.npz").write_bytes(b"PK")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    (tmp_path / "empty.dcm").write_bytes(b"")
    Image.new("L", (300, 300), 7).save(tmp_path / "blank.png")
    pages = [Image.fromarray((ramp() // divisor).astype(np.uint8)) for divisor in (16, 32)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    result = convert(tmp_path)
    assert result.pieces == []
    assert {name: (str(outcome.status), outcome.reason) for name, outcome in result.outcomes.items()} == {
        "notes.txt": ("skipped", "not_an_input"),
        "set.npz": ("skipped", "unsupported_format"),
        "cut.jpg": ("failed", "unreadable"),
        "empty.dcm": ("failed", "empty"),
        "blank.png": ("skipped", "constant"),
        "pages.tif": ("skipped", "multi_frame"),
    }


def test_equal_pixels_have_equal_content_whatever_the_container(tmp_path: Path) -> None:
    grey = (ramp() // 16).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    Image.fromarray(grey).convert("RGB").save(tmp_path / "b.bmp")
    Image.fromarray(grey[::-1]).save(tmp_path / "c.png")
    digests = {piece.file: piece.content for piece in convert(tmp_path).pieces}
    assert digests["a.png"] == digests["b.bmp"] != digests["c.png"]


def test_real_radiographs(real_data: Path) -> None:
    result = convert(real_data / "xray" / "dicom_cr")
    chest, leg = sorted(result.pieces, key=lambda piece: piece.file)
    assert [chest.file, leg.file] == ["RG1_J2KI.dcm", "RG3_J2KR.dcm"]
    assert result.outcomes["RG3_J2KI.dcm"].reason == "duplicate_instance"
    assert chest.geometry["view"] == "PA"
    assert chest.geometry["voi"] == "window"
    assert chest.geometry["pixel_spacing_mm"] is None
    assert pixels(chest.data).shape == (272, 256)
    # MONOCHROME1 was inverted: the spine in the middle is brighter than the air around the neck.
    picture = pixels(chest.data)
    assert picture[100:200, 120:136].mean() > picture[:20, :20].mean() + 40
    header = dcmread(real_data / "xray" / "dicom_cr" / "RG1_J2KI.dcm", stop_before_pixels=True)
    assert header.PhotometricInterpretation == "MONOCHROME1"
    legs = convert(real_data / "xray" / "dicom_cr", options("--body-part", "CHEST"))
    assert [piece.file for piece in legs.pieces] == ["RG1_J2KI.dcm"]


def test_real_photographs(real_data: Path) -> None:
    folder = real_data / "xray" / "kermany224" / "test" / "NORMAL"
    some = sorted(folder.iterdir())[:20]
    files = [InputFile(path, path.name) for path in some]
    for unit in discover(files, options()).units:
        (piece,) = xray.convert(unit, options()).pieces
        stored, source = pixels(piece.data), np.asarray(Image.open(unit.files[0].path).convert("L"))
        assert stored.shape == (224, 224)
        error = np.mean((stored.astype(float) - source) ** 2)
        assert 10 * np.log10(255**2 / error) > 42
