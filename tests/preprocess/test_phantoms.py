"""Phantoms: same seed same bytes, formats that stock readers open, labels that fit the files."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import openslide
import pydicom
import pytest
from PIL import Image

from medcoss.contracts import UsageError
from preprocess.phantoms.write import SUBJECTS, generate, plan

SCALE = 0.01


def make(out: Path, seed: int = 0) -> Path:
    generate(out, seed, SCALE, 1, lambda text: None)
    return out


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("phantoms") / "raw")


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_same_seed_gives_same_bytes_with_any_number_of_workers(phantoms: Path, tmp_path: Path) -> None:
    generate(tmp_path / "again", 0, SCALE, 2, lambda text: None)
    assert digests(tmp_path / "again") == digests(phantoms)


def test_other_seed_gives_other_names_and_draws(phantoms: Path) -> None:
    for modality in SUBJECTS:
        first, second = plan(modality, 0, SCALE), plan(modality, 1, SCALE)
        assert not {item.seed for item in first} & {item.seed for item in second}
        assert not {item.subject for item in first} & {item.subject for item in second}


def test_complete_output_is_kept_and_foreign_folders_are_refused(phantoms: Path, tmp_path: Path) -> None:
    said: list[str] = []
    before = {path: path.stat().st_mtime_ns for path in phantoms.rglob("*")}
    generate(phantoms, 0, SCALE, 1, said.append)
    assert {path: path.stat().st_mtime_ns for path in phantoms.rglob("*")} == before
    assert sorted(said) == [f"{modality}: up to date" for modality in sorted(SUBJECTS)]
    with pytest.raises(UsageError, match="holds other files"):
        generate(phantoms, 1, SCALE, 1, lambda text: None)
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "mine.dcm").write_bytes(b"x")
    with pytest.raises(UsageError, match="holds other files"):
        generate(tmp_path, 0, SCALE, 1, lambda text: None)
    assert not (tmp_path / "report").exists()


def test_killed_run_is_completed(phantoms: Path, tmp_path: Path) -> None:
    # What SIGKILL leaves: whole folders, and a partial one.
    (tmp_path / "ct.partial").mkdir()
    (tmp_path / "ct.partial" / "rest").write_bytes(b"x")
    make(tmp_path)
    assert digests(tmp_path) == digests(phantoms)


@pytest.mark.parametrize("modality", SUBJECTS)
def test_labels_name_the_files_and_classes_are_balanced(phantoms: Path, modality: str) -> None:
    folder = phantoms / modality
    table = rows(folder)
    assert all((folder / row["file"]).exists() for row in table)
    named = {row["file"] for row in table}
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"labels.csv"}
    assert {name if name in named else str(Path(name).parent) for name in present} == named
    counts = Counter(item.label for item in plan(modality, 0, 1.0))
    assert len(counts) == 4
    assert max(counts.values()) - min(counts.values()) <= 1
    assert len({item.subject for item in plan(modality, 0, 1.0)}) == SUBJECTS[modality] >= 40


def test_reports_have_sections_and_do_not_name_their_class(phantoms: Path) -> None:
    for row in rows(phantoms / "report"):
        text = (phantoms / "report" / row["file"]).read_text()
        assert "FINDINGS:\n" in text
        assert "IMPRESSION:\n" in text
        assert 20 < len(text.split()) < 80
        assert row["file"].startswith(row["subject"])


def test_xrays_are_png_and_dicom_of_both_polarities(phantoms: Path) -> None:
    photometric = set()
    bits = set()
    for row in rows(phantoms / "xray"):
        path = phantoms / "xray" / row["file"]
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.mode == "L"
                assert min(image.size) >= 192
            continue
        dataset = pydicom.dcmread(path)
        assert dataset.PatientID == row["subject"]
        assert dataset.StudyDate == "20200101"
        pixels = dataset.pixel_array
        assert pixels.max() < 2**dataset.BitsStored
        photometric.add(dataset.PhotometricInterpretation)
        bits.add(dataset.BitsStored)
    assert photometric == {"MONOCHROME1", "MONOCHROME2"}
    assert bits == {12, 16}


def test_ct_series_hold_hounsfield_units_and_one_is_reversed(phantoms: Path) -> None:
    orders = set()
    for row in rows(phantoms / "ct"):
        files = sorted((phantoms / "ct" / row["file"]).iterdir())
        slices = [pydicom.dcmread(path) for path in files]
        positions = np.array([float(item.ImagePositionPatient[2]) for item in slices])
        np.testing.assert_allclose(np.abs(np.diff(positions)), slices[0].SliceThickness, atol=1e-6)
        orders.add(bool(positions[0] < positions[-1]))
        assert len({item.SOPInstanceUID for item in slices}) == len(slices)
        middle = slices[len(slices) // 2]
        hu = middle.pixel_array * float(middle.RescaleSlope) + float(middle.RescaleIntercept)
        assert hu[:3].max() < -950, "air above the patient"
        assert hu.max() > 250, "bone"
        assert 0.05 < np.mean((hu > 0) & (hu < 200)) < 0.7, "soft tissue"
    assert orders == {True, False}


def test_mri_has_an_affine_of_its_own_orientation(phantoms: Path) -> None:
    codes = set()
    for row in rows(phantoms / "mri"):
        image = nibabel.load(phantoms / "mri" / row["file"])
        assert not np.allclose(image.affine, np.eye(4))
        codes.add("".join(nibabel.aff2axcodes(image.affine)))
        canonical = nibabel.as_closest_canonical(image)
        data = np.asarray(canonical.dataobj)
        middle = data[:, :, data.shape[2] // 2]
        assert middle[data.shape[0] // 2, data.shape[1] // 2] > 4 * middle[:3].max()
    assert len(codes) == 3


def test_slides_open_in_openslide_with_resolution_levels_and_background(phantoms: Path) -> None:
    for row in rows(phantoms / "pathology"):
        with openslide.OpenSlide(phantoms / "pathology" / row["file"]) as slide:
            assert slide.level_count == 3
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
            assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
            overview = np.asarray(slide.read_region((0, 0), 2, slide.level_dimensions[2]))[..., :3].astype(int)
        saturated = np.ptp(overview, axis=-1) > 15
        assert 0.4 < saturated.mean() < 0.95
        assert overview[:4, :4].min() > 220
