"""Siemens mosaics: slices put where the private header says, and refused where it does not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from pydicom import dcmread

from preprocess.readers.mosaic import slices_of_mosaic
from preprocess.readers.series import read_series
from preprocess.readers.volume import to_lps

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from nibabel.nicom import dicomwrappers


def read(files):
    return read_series(files, check=lambda frame: None)


@pytest.fixture
def mosaic(real_data):
    """A real mosaic of 35 slices of 64 x 64."""
    return dcmread(real_data / "mri/dicom_syntaxes/dcm_qa_ts/1.dcm")


def test_tiles_are_taken_row_by_row():
    image = np.arange(6 * 8).reshape(6, 8)
    tiles = slices_of_mosaic(image, 3)
    assert tiles.shape == (3, 3, 4)
    assert np.array_equal(tiles[0], image[:3, :4])
    assert np.array_equal(tiles[1], image[:3, 4:])
    assert np.array_equal(tiles[2], image[3:, :4])


def test_volume_and_place_equal_nibabel_s(tools, tmp_path, mosaic):
    mosaic.save_as(tmp_path / "m.dcm")
    volume = read(tools.inputs(tmp_path)).volumes[0].volume
    wrapper = dicomwrappers.wrapper_from_data(mosaic)
    expected = to_lps(np.asarray(wrapper.get_unscaled_data()), np.asarray(wrapper.affine))
    assert volume.values.shape == (35, 64, 64) and np.array_equal(volume.values, expected.values)
    assert np.abs(volume.affine - expected.affine).max() < 1e-4
    assert volume.spacing == pytest.approx((3.6, 3.25, 3.25), abs=1e-4)


def test_each_file_of_a_series_is_a_volume_of_its_own(tools, real_data):
    files = [f for f in tools.inputs(real_data / "mri/dicom_syntaxes/dcm_qa_ts") if f.relative.endswith(".dcm")]
    conversions, outcomes, _ = tools.run("mri", files)
    assert {outcome.status for outcome in outcomes.values()} == {"written"} and len(outcomes) == 9
    pieces = [piece for found in conversions for piece in found.pieces]
    # Seven syntaxes and one content: the engine keeps one.
    assert {piece.file for piece in pieces} == set(outcomes)
    assert len({piece.content for piece in pieces}) == 1 and len({piece.suffix for piece in pieces}) * 9 == len(pieces)


def test_times_are_not_mixed_up(tools, tmp_path, mosaic):
    still = mosaic.pixel_array.copy()
    for number in range(3):
        mosaic.SOPInstanceUID = f"1.2.3.{number}"
        mosaic.PixelData = (still + 100 * (number + 1) * (still > 0)).astype(np.uint16).tobytes()
        mosaic.save_as(tmp_path / f"{2 - number}.dcm")
    found = read(tools.inputs(tmp_path)).volumes
    assert [loaded.files for loaded in found] == [("0.dcm",), ("1.dcm",), ("2.dcm",)]
    means = [loaded.volume.values[loaded.volume.values > 0].mean() for loaded in found]
    assert np.diff(means) == pytest.approx([-100, -100])


@pytest.mark.parametrize("damage", ["missing", "cut", "count", "distance", "grid"])
def test_a_mosaic_that_cannot_be_placed_is_refused(tools, tmp_path, mosaic, damage):
    private = mosaic[0x0029, 0x1010]
    if damage == "missing":
        del mosaic[0x0029, 0x1010]
    elif damage == "cut":
        private.value = private.value[:300]
    elif damage == "count":
        place = private.value.index(b"NumberOfImagesInMosaic")
        private.value = private.value[:place] + private.value[place:].replace(b"35", b"00", 1)
    elif damage == "distance":
        del mosaic.SpacingBetweenSlices, mosaic.SliceThickness
    elif damage == "grid":
        mosaic.Rows = 383
    mosaic.save_as(tmp_path / "m.dcm")
    reading = read(tools.inputs(tmp_path))
    assert {name: outcome.reason for name, outcome in reading.outcomes.items()} == {"m.dcm": "mosaic_unsupported"}
