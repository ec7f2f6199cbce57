"""Weights along an axis: exact where nothing changes, the two steps where a grid lies between, smooth where coarse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from preprocess.readers.separable import axis_weights, cut
from preprocess.readers.volume import Volume, sample


def zone_plate(side):
    """Rings (side, side) that grow ever finer away from the middle, up to a period of 2 voxels at the rim."""
    y, x = np.meshgrid(*[np.arange(side) - (side - 1) / 2] * 2, indexing="ij")
    return (1000 * np.cos(np.pi / side * (y**2 + x**2))).astype(np.float32)


def whole(volume, size, **options):
    return next(cut(volume, [(volume.low, volume.high)], size, **options))


def test_weights_of_an_unchanged_axis_are_the_identity():
    assert np.array_equal(axis_weights(12, 12, 0.0, 11.0, 12).toarray(), np.eye(12))


@pytest.mark.parametrize("count", [9, 30, 47])
def test_weights_equal_the_two_steps_on_a_line(count):
    line = np.random.default_rng(0).normal(0, 500, 30)
    fine = ndimage.zoom(line, count / 30, order=3, mode="nearest")
    expected = np.interp(np.linspace(0, count - 1, 11), np.arange(count), fine)
    assert axis_weights(30, count, 0.0, 29.0, 11) @ line == pytest.approx(expected, abs=2.0)


@pytest.mark.parametrize("size", [1, 5, 40, 150])
@pytest.mark.parametrize("count", [40, 77])
def test_a_constant_stays_one(size, count):
    assert axis_weights(40, count, 3.25, 31.5, size) @ np.full(40, 1.0) == pytest.approx(np.ones(size), abs=1e-6)


def test_a_size_of_one_reads_the_middle():
    volume = Volume(np.arange(9 * 8 * 7, dtype=np.int16).reshape(9, 8, 7), np.eye(4))
    assert whole(volume, (1, 1, 1)).item() == pytest.approx(float(volume.values[4, 3:5, 3].mean()))


def test_linear_reading_equals_simpleitk():
    values = np.random.default_rng(0).normal(0, 100, (12, 30, 26)).astype(np.float32)
    volume = Volume(values, np.eye(4))
    boxes = [(np.array([k + 0.5, 1.5, 0.25]), np.array([k + 5.75, 28.0, 25.0])) for k in (0, 2, 5)]
    for box, found in zip(boxes, cut(volume, boxes, (9, 17, 21), clip=(-90, 80)), strict=True):
        assert np.abs(found - sample(volume, *box, (9, 17, 21), fill=0, clip=(-90, 80))).max() < 1e-3


def test_fine_detail_does_not_come_back_as_patterns_in_coarse_windows():
    plate = Volume(np.stack([zone_plate(512)] * 2), np.diag([2.0, 1.0, 1.0, 1.0]))
    # What 64 pixels can show ends at an eighth of the way to the rim: there must be nothing but grey beyond it.
    rim = np.hypot(*np.meshgrid(*[np.linspace(-1, 1, 64)] * 2)) > 0.4
    coarse = whole(plate, (2, 64, 64))[0]
    points = sample(plate, plate.low, plate.high, (2, 64, 64), fill=0)[0]
    assert points[rim].std() > 400
    assert coarse[rim].std() < 60
    # In the middle, where the rings are wide, they are kept.
    assert coarse[28:36, 28:36].max() > 850
    usual = whole(plate, (2, 192, 192))[0]
    assert np.abs(usual - sample(plate, plate.low, plate.high, (2, 192, 192), fill=0)[0]).max() < 1e-2
