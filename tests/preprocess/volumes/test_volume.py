"""Orientation, tilt and sampling: landmarks stay where they are in the patient."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from preprocess.conversion import Refusal
from preprocess.readers.volume import Volume, sample, to_lps

LANDMARKS = np.array([[12.0, -6.0, 9.0], [-14.0, 10.0, -11.0], [3.0, 15.0, 14.0]])
"""LPS mm; no symmetry of the axes maps them onto themselves."""

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]


def image(shape, affine, landmark):
    """A blob at a landmark, drawn from the affine alone. float32 (i, j, k)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    millimetres = index @ affine[:3, :3].T + affine[:3, 3]
    return (1000 * np.exp(-((millimetres - landmark) ** 2).sum(-1) / (2 * 2.0**2))).astype(np.float32)


def centre(values):
    """Centre of mass (3,) in indices."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in values.shape), indexing="ij"), -1)
    return (index * values[..., None]).sum((0, 1, 2)) / values.sum()


def centred(columns, shape):
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = -columns @ ((np.array(shape) - 1) / 2)
    return affine


@pytest.mark.parametrize("tilt", [0.0, 22.0], ids=["straight", "tilted"])
def test_landmarks_survive_all_orientations(tilt):
    for order, signs in ORIENTATIONS:
        columns = np.zeros((3, 3))
        for axis, (world, sign, step) in enumerate(zip(order, signs, (1.5, 2.0, 2.5), strict=True)):
            columns[world, axis] = sign * step
        shape = tuple(round(60 / step) for step in (1.5, 2.0, 2.5))
        # The third axis is that of the slices: a gantry tilt lets it lean along the second.
        columns[:, 2] += np.tan(np.radians(tilt)) * 2.5 * columns[:, 1] / 2.0
        affine = centred(columns, shape)
        for landmark in LANDMARKS:
            volume = to_lps(image(shape, affine, landmark), affine)
            axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
            assert axes[2, 0] > 0.7 and axes[1, 1] > 0.7 and axes[0, 2] > 0.7, (order, signs)
            size = tuple(int(n) for n in np.rint(volume.high - volume.low) + 1)
            straight = sample(volume, volume.low, volume.low + np.array(size) - 1, size, fill=0.0)
            native = volume.to_native(volume.low + centre(straight))
            expected = np.linalg.solve(volume.affine, [*landmark, 1.0])[:3]
            assert np.abs(native - expected).max() < 0.25, (order, signs, landmark)


def test_tilt_is_resampled_on_a_straight_grid():
    columns = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    columns[1, 0] = 0.8
    volume = Volume(np.zeros((11, 20, 20), np.int16), centred(columns, (11, 20, 20)))
    assert volume.slice_axis == 0
    assert volume.drift == pytest.approx((0.0, 0.8, 0.0))
    assert volume.spacing == pytest.approx((2.0, 1.0, 1.0))
    assert volume.low.tolist() == pytest.approx([0, 0, 0])
    assert volume.high.tolist() == pytest.approx([10, 27, 19])


def test_noise_in_the_affine_is_no_tilt():
    columns = np.diag([1.0, 1.0, 2.0])
    columns[0, 2] = 1e-3
    volume = Volume(np.zeros((20, 20, 20), np.int16), centred(columns, (20, 20, 20)))
    assert volume.drift == (0.0, 0.0, 0.0)


def test_sampling_is_corner_aligned_and_exact_on_a_ramp():
    z, y, x = np.meshgrid(np.arange(9), np.arange(8), np.arange(7), indexing="ij")
    volume = Volume((100 * z + 10 * y + x).astype(np.int16), np.eye(4))
    low, high = np.array([2.0, 1.0, 0.5]), np.array([6.0, 6.5, 5.0])
    values = sample(volume, low, high, (5, 12, 10), fill=-1)
    for axis, weight in enumerate((100, 10, 1)):
        line = np.moveaxis(values, axis, 0)[:, 0, 0]
        others = values[0, 0, 0] - weight * low[axis]
        assert line == pytest.approx(others + weight * np.linspace(low[axis], high[axis], len(line)), abs=1e-3)
    assert np.array_equal(sample(volume, np.zeros(3), volume.high, volume.values.shape, fill=-1), volume.values)


def test_turning_keeps_every_voxel_in_its_place():
    affine = centred(np.array([[0, 0, 1.0], [0, 1.5, 0], [3.0, 0, 0]]), (5, 6, 7))
    volume = Volume(np.arange(210, dtype=np.int16).reshape(5, 6, 7), affine)
    turned = volume.turned(2)
    assert turned.values[3, 4, 5] == volume.values[4, 5, 3]
    assert np.allclose(turned.affine @ [3, 4, 5, 1], volume.affine @ [4, 5, 3, 1])


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.ones((4, 4))])
def test_impossible_geometry_is_refused(affine):
    with pytest.raises(Refusal, match="no_geometry"):
        to_lps(np.zeros((4, 4, 4), np.int16), affine)
