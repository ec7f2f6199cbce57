"""DICOM slices to volumes: order, duplicates, gaps, echoes, tilt, enhanced objects, each with its typed outcome."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless

from preprocess.readers.series import read_series


def stored(slices=10, rows=12, columns=14):
    """A ramp in which every voxel differs, int16."""
    return np.arange(slices * rows * columns, dtype=np.int16).reshape(slices, rows, columns)


def read(files, **options):
    return read_series(files, check=lambda frame: None, **options)


def reasons(reading):
    return {name: outcome.reason for name, outcome in reading.outcomes.items()}


def test_file_order_and_names_do_not_matter(tools, tmp_path):
    affine = tools.axial()
    forward = read(tools.write_series(tmp_path / "a", stored(), affine))
    backward = read(tools.write_series(tmp_path / "b", stored(), affine, names=lambda k: f"IM{99 - k:05d}"))
    assert len(forward.volumes) == len(backward.volumes) == 1
    assert np.array_equal(forward.volumes[0].volume.values, backward.volumes[0].volume.values)
    assert np.array_equal(forward.volumes[0].volume.values, stored() - 1024)
    assert forward.volumes[0].volume.spacing == pytest.approx((2.0, 1.0, 1.0))
    assert forward.volumes[0].subject_ids == ("Q-17", "weak:1.2.3.4.5")
    assert backward.volumes[0].files[0] == "IM00099"


def test_feet_first_slices_are_turned_head_up(tools, tmp_path):
    affine = tools.axial()
    affine[2, 0] *= -1
    volume = read(tools.write_series(tmp_path, stored(), affine)).volumes[0].volume
    assert np.array_equal(volume.values, stored()[::-1] - 1024)
    assert volume.affine[2, 0] == pytest.approx(2.0)


def test_sagittal_slices_run_along_x(tools, tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = np.array([[-3.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])  # k right, rows inferior, columns posterior
    volume = read(tools.write_series(tmp_path, stored(), affine)).volumes[0].volume
    assert volume.spacing == pytest.approx((1.0, 1.0, 3.0))
    # z comes of reversed rows, y of columns, x of reversed slices.
    assert np.array_equal(volume.values, stored().transpose(1, 2, 0)[::-1, :, ::-1] - 1024)


def test_missing_slice_is_a_gap(tools, tmp_path):
    files = tools.write_series(tmp_path, stored(), tools.axial())
    reading = read([file for file in files if file.relative != "004.dcm"])
    assert not reading.volumes
    assert set(reasons(reading).values()) == {"gap"}
    assert "about 1 slices missing at 2.00 mm" in reading.outcomes["000.dcm"].message


def test_uneven_slices_are_variable_spacing(tools, tmp_path):
    positions = [[0.0, 0.0, z] for z in np.cumsum([0, 2, 2, 2.5, 2, 2, 1.5, 2, 2, 2])]
    reading = read(tools.write_series(tmp_path, stored(), tools.axial(), ImagePositionPatient=positions))
    assert set(reasons(reading).values()) == {"variable_spacing"}


def test_truncated_slice_fails_alone_with_its_own_reason(tools, tmp_path):
    files = tools.write_series(tmp_path, stored(), tools.axial())
    for name, expected in (("009.dcm", set()), ("005.dcm", {"gap"})):
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-50])
        reading = read(files)
        found = reasons(reading)
        assert found.pop(name) == "truncated_pixels"
        assert set(found.values()) == expected
        assert [loaded.volume.values.shape[0] for loaded in reading.volumes] == ([9] if not expected else [])
        path.write_bytes(whole)


def test_copies_of_an_instance_keep_one_and_never_the_cut_one(tools, tmp_path):
    files = tools.write_series(tmp_path, stored(), tools.axial(), SOPInstanceUID=[f"1.2.{k}" for k in range(10)])
    whole = (tmp_path / "003.dcm").read_bytes()
    (tmp_path / "000_copy.dcm").write_bytes(whole[:-50])
    (tmp_path / "z_copy.dcm").write_bytes(whole)
    files = tools.inputs(tmp_path)
    for order in (files, files[::-1]):
        reading = read(order)
        assert len(reading.volumes) == 1
        assert reasons(reading) == {"000_copy.dcm": "truncated_pixels", "z_copy.dcm": "duplicate_instance"}


def test_lossless_slice_wins_at_one_position(tools, tmp_path):
    tools.write_series(tmp_path, stored(), tools.axial(), names="b{:02d}.dcm".format)
    lossy = tools.axial()
    lossy[:3, 3] += 5 * lossy[:3, 0]
    tools.write_series(tmp_path, stored(1), lossy, names="a{}.dcm".format, LossyImageCompression="01")
    reading = read(tools.inputs(tmp_path))
    assert reasons(reading) == {"a0.dcm": "duplicate_position"}
    assert np.array_equal(reading.volumes[0].volume.values, stored() - 1024)


@pytest.mark.parametrize(
    ("element", "values"),
    [
        ("EchoTime", (2.5, 80)),
        ("AcquisitionNumber", (1, 2)),
        ("TemporalPositionIdentifier", (1, 2)),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])),
    ],
)
def test_volumes_at_one_place_are_told_apart(tools, tmp_path, element, values):
    for number, value in enumerate(values):
        names = f"{{:02d}}_{number}.dcm".format
        repeated = [value] * 10 if isinstance(value, list) else value
        tools.write_series(
            tmp_path, stored() + 100 * number, tools.axial(), modality="MR", names=names, **{element: repeated}
        )
    reading = read(tools.inputs(tmp_path))
    assert not reading.outcomes
    assert [int(loaded.volume.values[0, 0, 0]) for loaded in reading.volumes] == [0, 100]


def test_an_acquisition_number_a_slice_splits_nothing(tools, tmp_path):
    files = tools.write_series(tmp_path, stored(), tools.axial(), AcquisitionNumber=list(range(10)))
    assert [loaded.volume.values.shape[0] for loaded in read(files).volumes] == [10]


def test_few_slices_of_many_orientations_are_named_so(tools, tmp_path):
    sagittal = np.eye(4)
    sagittal[:3, :3] = np.array([[3.0, 0, 0], [0, 0, 1.0], [0, -1.0, 0]])
    tools.write_series(tmp_path, stored(3), tools.axial(), names="a{}".format)
    tools.write_series(tmp_path, stored(), sagittal, names="s{}".format)
    reading = read(tools.inputs(tmp_path))
    assert reasons(reading) == dict.fromkeys(("a0", "a1", "a2"), "mixed_orientation")
    assert len(reading.volumes) == 1
    assert set(reasons(read(tools.inputs(tmp_path)[:3])).values()) == {"too_few_slices"}


def test_gantry_tilt_becomes_a_sheared_affine(tools, tmp_path):
    affine = tools.axial()
    angle = np.radians(20)
    affine[:3, 1] = (0, np.cos(angle), np.sin(angle))
    volume = read(tools.write_series(tmp_path, stored(), affine)).volumes[0].volume
    assert volume.drift == pytest.approx((0.0, 2 * np.sin(angle), 0.0), abs=1e-4)
    assert volume.spacing == pytest.approx((2 * np.cos(angle), 1.0, 1.0), abs=1e-4)


@pytest.mark.parametrize("element", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"])
def test_missing_geometry(tools, tmp_path, element):
    reading = read(tools.write_series(tmp_path, stored(), tools.axial(), **{element: None}))
    assert set(reasons(reading).values()) == {"no_geometry"}
    assert len(reading.outcomes) == 10


def enhanced(tools, frames, *, groups=True):
    """One object of `frames` slices, 3 mm apart, stored feet first."""
    dataset = tools.make_slice(stored(frames), "MR", NumberOfFrames=frames)
    if groups:
        orientation, measures = Dataset(), Dataset()
        orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        measures.PixelSpacing, measures.SliceThickness = [1, 1], 3
        shared = Dataset()
        shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
        dataset.SharedFunctionalGroupsSequence = Sequence([shared])
        items = []
        for number in range(frames):
            position, item = Dataset(), Dataset()
            position.ImagePositionPatient = [0, 0, -3 * number]
            item.PlanePositionSequence = Sequence([position])
            items.append(item)
        dataset.PerFrameFunctionalGroupsSequence = Sequence(items)
    return dataset


def test_enhanced_multi_frame_by_its_functional_groups(tools, tmp_path):
    enhanced(tools, 9).save_as(tmp_path / "e.dcm", enforce_file_format=True)
    reading = read(tools.inputs(tmp_path))
    assert np.array_equal(reading.volumes[0].volume.values, stored(9)[::-1])
    assert reading.volumes[0].files == ("e.dcm",)
    assert reading.volumes[0].volume.spacing == pytest.approx((3.0, 1.0, 1.0))


def test_multi_frame_without_groups_has_no_geometry(tools, tmp_path):
    enhanced(tools, 9, groups=False).save_as(tmp_path / "e.dcm", enforce_file_format=True)
    assert reasons(read(tools.inputs(tmp_path))) == {"e.dcm": "no_geometry"}


def test_compressed_copy_gives_the_same_volume(tools, tmp_path):
    files = tools.write_series(tmp_path / "a", stored(), tools.axial())
    for file in files:
        dataset = dcmread(file.path)
        dataset.compress(RLELossless, generate_instance_uid=False)
        (tmp_path / "b").mkdir(exist_ok=True)
        dataset.save_as(tmp_path / "b" / file.relative)
    plain, packed = (read(tools.inputs(tmp_path / name)).volumes[0].volume.values for name in "ab")
    assert np.array_equal(plain, packed)


def test_unknown_codec_is_said_so(tools, tmp_path):
    dataset = tools.make_slice(stored(1)[0])
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"  # MPEG-2: no decoder
    dataset.PixelData = encapsulate([b"\x00" * 64])
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [1, 1]
    dataset.save_as(tmp_path / "m.dcm", enforce_file_format=True)
    assert reasons(read(tools.inputs(tmp_path))) == {"m.dcm": "unsupported_syntax"}


def test_two_patients_under_one_series_uid_are_two_volumes(tools, tmp_path):
    for number in range(2):
        names = f"{{:02d}}_{number}".format
        tools.write_series(tmp_path, stored() + number, tools.axial(), names=names, PatientID=f"Q-{number}")
    conversions, outcomes, _ = tools.run("ct", tools.inputs(tmp_path), "--window", "8,16,16")
    assert {outcome.reason for outcome in outcomes.values()} == {""} and len(outcomes) == 20
    assert [{piece.subject_ids[0] for piece in found.pieces} for found in conversions] == [{"Q-0"}, {"Q-1"}]


def test_series_mixed_in_one_folder_and_spread_over_nested_ones(tools, tmp_path):
    deep = tmp_path / "a" / "b c" / "d"
    names = [f"{{:02d}}_{number}".format for number in range(3)]
    for number in range(2):
        tools.write_series(
            tmp_path, stored() + number, tools.axial(), names=names[number], SeriesInstanceUID=f"1.2.{number}"
        )
    tools.write_series(deep, stored(8, 20, 20), tools.axial(), names=names[2], SeriesInstanceUID="1.2.2")
    (tmp_path / "03_1").rename(deep / "x")
    conversions, outcomes, _ = tools.run("ct", tools.inputs(tmp_path), "--window", "8,16,16")
    assert {outcome.reason for outcome in outcomes.values()} == {""} and len(outcomes) == 28
    shapes = {tuple(found.pieces[0].geometry["native_shape"]) for found in conversions}
    assert len(conversions) == 3 and shapes == {(10, 12, 14), (8, 20, 20)}


def test_a_volume_refused_later_does_not_hide_that_its_file_gave_another(tools, tmp_path):
    dataset = enhanced(tools, 20)
    for number, item in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        item.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 3 * (number % 10)]
        echo = Dataset()
        echo.EffectiveEchoTime = 5 + number // 10
        item.MREchoSequence = Sequence([echo])
    values = stored(20)
    values[10:] = 7
    dataset.PixelData = values.tobytes()
    dataset.save_as(tmp_path / "e.dcm", enforce_file_format=True)
    conversions, outcomes, _ = tools.run("mri", tools.inputs(tmp_path), "--window", "8,16,16")
    assert conversions[0].pieces and outcomes["e.dcm"].status == "written"


def test_a_long_series_gives_signs_of_life(tools, tmp_path, monkeypatch):
    beats = []
    monkeypatch.setattr("preprocess.heartbeat._LISTENERS", [lambda: beats.append(1)])
    tools.run("ct", tools.write_series(tmp_path, stored(24), tools.axial()), "--window", "8,16,16")
    windows = 3
    assert len(beats) >= 24 + 24 + windows
