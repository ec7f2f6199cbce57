"""CT: Hounsfield units exact, windows where they should be, one resample close to the two-step way."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 -- the name its users know
from scipy import ndimage

from preprocess import volumes
from preprocess.modalities import ct
from preprocess.readers.nifti import read_volume_file
from preprocess.readers.series import read_series
from preprocess.readers.volume import Volume

SMALL = ("--window", "8,24,24")


def body(slices=40, side=24):
    """HU (z, y, x): air around a soft-tissue block with a gradient along z. int16."""
    values = np.full((slices, side, side), -1000, np.int16)
    values[:, 4:-4, 4:-4] = np.arange(slices)[:, None, None] * 10
    return values


def save(path, values, spacing=(1.0, 1.0, 1.0)):
    """A NIfTI whose voxels run left, posterior, superior, so that values [z, y, x] come back as they are."""
    z, y, x = spacing
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0])), path)


def outcome(tools, root, *words):
    conversions, outcomes, _ = tools.run("ct", tools.inputs(root), *SMALL, *words)
    return [piece for conversion in conversions for piece in conversion.pieces], {
        name: found.reason for name, found in outcomes.items()
    }


def test_stored_values_become_exact_hu(tools, tmp_path):
    stored = np.full((24, 24, 24), 1024, np.int16)
    stored[:, :8], stored[:, 8:16], stored[:, :, 16:] = 0, 4095, -2000
    files = tools.write_series(tmp_path, stored, tools.axial((1, 1, 1)), PixelPaddingValue=-2000)
    reading = read_series(files, check=lambda frame: None, padding_becomes=-1024)
    values = reading.volumes[0].volume.values
    assert values.dtype == np.int16
    assert (values[:, :8, :16] == -1024).all() and (values[:, 8:16, :16] == 3071).all()
    assert (values[:, 16:, :16] == 0).all() and (values[:, :, 16:] == -1024).all()
    pieces, reasons = outcome(tools, tmp_path, "--window-slices", "8")
    assert set(reasons.values()) == {""}
    data = pieces[0].data
    assert data.dtype == np.int16 and data.shape == (8, 24, 24)
    assert data[0, 0, 0] == -1024 and data[0, 12, 0] == 1024 and data[0, 20, 0] == 0 and data[0, 12, 20] == -1024


def test_padding_that_looks_like_bone_is_air(tools, tmp_path):
    stored = np.full((12, 8, 8), 1000, np.uint16)
    stored[:, :2] = 63536
    files = tools.write_series(tmp_path, stored, tools.axial(), PixelPaddingValue=63530, PixelPaddingRangeLimit=65535)
    values = read_series(files, check=lambda frame: None, padding_becomes=-1024).volumes[0].volume.values
    assert set(np.unique(values)) == {-1024, -24}


def test_windows_overlap_and_the_last_ends_at_the_last_slice(tools, tmp_path):
    save(tmp_path / "a.nii.gz", body(70))
    pieces, _ = outcome(tools, tmp_path)
    assert [piece.suffix for piece in pieces] == ["0000", "0001", "0002", "0003", "0004"]
    middle = [piece.data[:, 12, 12] for piece in pieces]
    starts = [0, 12, 24, 36, 46]
    for values, start in zip(middle, starts, strict=True):
        assert values.tolist() == np.rint(np.linspace(start, start + 23, 8) * 10).astype(int).tolist()
    assert pieces[-1].geometry["native_slices"] == 24
    assert pieces[0].geometry["voxel_mm"] == pytest.approx([23 / 7, 1.0, 1.0], abs=1e-4)


def test_a_short_volume_gives_one_window(tools, tmp_path):
    save(tmp_path / "a.nii.gz", body(14))
    pieces, _ = outcome(tools, tmp_path)
    assert len(pieces) == 1
    assert pieces[0].data[[0, -1], 12, 12].tolist() == [0, 130]
    assert pieces[0].geometry["native_slices"] == 14


def test_wide_volumes_lose_their_rim_and_others_keep_their_aspect(tools):
    settings = tools.options("ct", "--window", "8,33,33")
    wide = Volume(np.zeros((10, 181, 181), np.int16), np.diag([3.0, 2.0, 2.0, 1.0]))
    window = ct.windows(wide, settings)[0]
    # 361 px at 1 mm: 289 remain, from 36 to 324 mm.
    assert (window.low[1:] * 2).tolist() == [36, 36] and (window.high[1:] * 2).tolist() == [324, 324]
    oblong = Volume(np.zeros((10, 21, 41), np.int16), np.diag([3.0, 2.0, 2.0, 1.0]))
    in_plane = ct.windows(oblong, settings)[0].in_plane
    assert in_plane.size == (17, 33)
    placed = in_plane.place(np.zeros((8, 17, 33), np.int16), -1024)
    assert placed.shape == (8, 33, 33) and (placed[:, 8:25] == 0).all() and (placed == -1024).sum() == 8 * 16 * 33
    stretched = tools.options("ct", "--window", "8,33,33", "--stretch")
    assert ct.windows(oblong, stretched)[0].in_plane.size == (33, 33)


@pytest.mark.parametrize(
    ("reason", "values", "spacing"),
    [
        ("not_hu", body() + 1024, (1, 1, 1)),
        ("too_few_slices", body(7), (5, 1, 1)),
        ("too_few_slices", body(11), (1, 1, 1)),
        ("too_thick", body(12), (5.5, 1, 1)),
        ("constant", np.full((20, 24, 24), -1024, np.int16), (1, 1, 1)),
    ],
)
def test_volumes_that_give_nothing(tools, tmp_path, reason, values, spacing):
    save(tmp_path / "a.nii.gz", values, spacing)
    assert outcome(tools, tmp_path) == ([], {"a.nii.gz": reason})


def test_hu_offset_makes_bare_values_hu(tools, tmp_path):
    save(tmp_path / "a.nii.gz", body() + 1024)
    save(tmp_path / "b.nii.gz", body())
    offset, _ = outcome(tools, tmp_path, "--hu-offset", "-1024")
    assert offset[0].data[:, 12, 12].tolist() == np.rint(np.linspace(0, 23, 8) * 10).astype(int).tolist()


@pytest.mark.parametrize(
    ("reason", "elements"),
    [
        ("not_hu", {"RescaleSlope": None}),
        ("not_hu", {"RescaleType": "US"}),
        ("not_hu", {"ImageType": [["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]] * 10}),
        ("localizer", {"ImageType": [["ORIGINAL", "PRIMARY", "LOCALIZER"]] * 10}),
        ("not_ct", {"Modality": "PT"}),
        ("burned_in", {"BurnedInAnnotation": "YES"}),
        ("secondary_capture", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        ("secondary_capture", {"SamplesPerPixel": 3}),
    ],
)
def test_slices_that_are_no_ct(tools, tmp_path, reason, elements):
    tools.write_series(tmp_path, body(10) + 1024, tools.axial(), **elements)
    pieces, reasons = outcome(tools, tmp_path)
    assert pieces == [] and set(reasons.values()) == {reason}


def test_other_files_are_named_for_what_they_are(tools, tmp_path):
    for name in ("a.jpg", "b.npz", "c.csv", "d.hdr", "LICENSE"):
        (tmp_path / name).write_bytes(b"x" * 300)
    assert outcome(tools, tmp_path) == (
        [],
        {
            "a.jpg": "not_a_volume",
            "b.npz": "unsupported_format",
            "c.csv": "not_an_input",
            "d.hdr": "unsupported_format",
            "LICENSE": "not_an_input",
        },
    )


def test_series_is_found_across_folders_and_without_extension(tools, tmp_path):
    tools.write_series(tmp_path / "in", body(16) + 1024, tools.axial(), names="IM{}".format)
    (tmp_path / "in" / "more").mkdir()
    for k in range(0, 16, 2):
        (tmp_path / "in" / f"IM{k}").rename(tmp_path / "in" / "more" / f"{k}")
    pieces, reasons = outcome(tools, tmp_path / "in")
    assert len(reasons) == 16 and set(reasons.values()) == {""}
    assert len(pieces) == 2


def test_one_image_in_two_formats_has_one_content(tools, tmp_path):
    tools.write_series(tmp_path / "d", body() + 1024, tools.axial((1, 1, 1)))
    save(tmp_path / "a.nii.gz", body())
    pieces, _ = outcome(tools, tmp_path)
    assert len(pieces) == 6 and len({piece.content for piece in pieces}) == 1
    by_file = {piece.file: piece.subject_ids for piece in pieces}
    assert by_file == {"a.nii.gz": (), "d/000.dcm": ("Q-17", "weak:1.2.3.4.5")}
    first, second = (next(p.data for p in pieces if p.file == name and p.suffix == "0001") for name in by_file)
    assert np.array_equal(first, second)


@pytest.fixture(scope="module")
def patient(tools, real_data):
    """The real series of 40 slices."""
    return (
        read_series(tools.inputs(real_data / "ct/covid_ct_md/dicom/P001"), check=lambda frame: None).volumes[0].volume
    )


def test_real_series_equals_simpleitk_to_the_integer(real_data, patient):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(real_data / "ct/covid_ct_md/dicom/P001")))
    image = reader.Execute()
    assert np.array_equal(patient.values, sitk.GetArrayFromImage(image))
    assert patient.spacing == pytest.approx(image.GetSpacing()[::-1], abs=1e-4)
    assert patient.affine[:3, 3] == pytest.approx(image.GetOrigin(), abs=1e-4)


def two_steps(volume, settings):
    """The plain way: cubic to 1 mm, then each window linear to its size; corners aligned in both. Yields windows."""
    clipped = np.clip(volume.values, -1024, 1024).astype(np.float32)
    counts = [round((n - 1) * step) + 1 for n, step in zip(clipped.shape, volume.spacing, strict=True)]
    zoom = [count / n for count, n in zip(counts, clipped.shape, strict=True)]
    fine = np.clip(ndimage.zoom(clipped, zoom, order=3, mode="nearest", grid_mode=False), -1024, 1024)
    for axis in (1, 2):
        kept = round(0.8 * counts[axis]) if counts[axis] > 320 else counts[axis]
        first = (counts[axis] - kept) // 2
        fine = np.take(fine, range(first, first + kept), axis=axis)
    starts = [*range(0, counts[0] - 23, 12)]
    starts += [] if starts[-1] == counts[0] - 24 else [counts[0] - 24]
    for start in starts:
        window = fine[start : start + 24]
        yield ndimage.zoom(window, [n / m for n, m in zip(settings["window"], window.shape, strict=True)], order=1)


REAL = ("P001", "P002", "cap001", "cap002", "normal001", "normal002")


@pytest.mark.parametrize("name", ["dicom", *REAL])
def test_one_resample_equals_two_steps(tools, real_data, patient, name):
    """The requirement is a mean difference of 10 HU; folding both steps into one leaves the clipping in between."""
    source = patient
    if name != "dicom":
        source = read_volume_file(real_data / f"ct/covid_ct_md/nifti160/{name}.nii.gz")
    settings = tools.options("ct")
    middle = len(source.values) // 2
    volume = Volume(source.values[middle - 7 : middle + 7], source.affine)
    expected = list(two_steps(volume, settings))
    boxes = ct.windows(volume, settings)
    found = list(volumes.cut(volume, boxes, fill=-1024, grid=ct.grid(volume, settings), clip=(-1024, 1024)))
    assert len(found) == len(expected) == 2
    for one, two in zip(found, expected, strict=True):
        assert float(np.abs(np.clip(one, -1024, 1024) - two).mean()) <= 1.0


def test_spec_says_how_to_scale(tools):
    spec = ct.spec(tools.options("ct"))
    assert spec.geometry.shape == (1, 16, 192, 192)
    assert spec.fields[0].dtype == "int16" and spec.fields[0].scale == 1 / 1024
    assert ct.finish(tools.options("ct"), iter(()))[0] == spec


def test_damaged_file_does_not_hide_the_others(tools, tmp_path):
    save(tmp_path / "a.nii.gz", body())
    (tmp_path / "b.nii.gz").write_bytes(b"\x1f\x8b" + b"junk" * 100)
    save(tmp_path / "c.nii.gz", body() - 5)
    pieces, reasons = outcome(tools, tmp_path)
    assert reasons["b.nii.gz"] in ("unreadable", "truncated_pixels")
    assert {piece.file for piece in pieces} == {"a.nii.gz", "c.nii.gz"}
    assert read_volume_file(tmp_path / "a.nii.gz").values.shape == (40, 24, 24)
