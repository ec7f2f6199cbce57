"""Landmarks in files of every orientation, through the readers and the windows: each where the patient has it."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest

from preprocess import volumes
from preprocess.modalities import ct, mri
from preprocess.readers.nifti import read_volume_file
from preprocess.readers.series import read_series

LANDMARKS = np.array([[11.0, -6.0, 9.0], [-13.0, 10.0, -10.0], [3.0, 14.0, 12.0]])
"""LPS mm; no symmetry of the axes maps them onto themselves."""
VALUES = (900.0, 600.0, 300.0)

ORIENTATIONS = [
    (order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)
]
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oriented(order, signs, steps, tilt):
    """Affine (4, 4) of a cube of 54 mm around the origin; the first axis, that of slices, leans along the second."""
    columns = np.zeros((3, 3))
    for axis in range(3):
        columns[order[axis], axis] = signs[axis] * steps[axis]
    columns[:, 0] += np.tan(np.radians(tilt)) * steps[0] * columns[:, 1] / steps[1]
    shape = tuple(round(54 / step) for step in steps)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, -columns @ ((np.array(shape) - 1) / 2)
    return shape, affine


def drawn(shape, affine):
    """Three blobs of different height, drawn from the affine alone. int16 (slices, rows, columns)."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    millimetres = index @ affine[:3, :3].T + affine[:3, 3]
    blobs = (
        value * np.exp(-((millimetres - place) ** 2).sum(-1) / (2 * 3.0**2))
        for value, place in zip(VALUES, LANDMARKS, strict=True)
    )
    return np.rint(sum(blobs)).astype(np.int16)


def errors(volume, window, values, axis=0):
    """Distance of each blob's centre in a window from its landmark, in voxels of the window along each axis (3, 3)."""
    turned = volume.turned(axis)
    size = np.array(values.shape)
    step = (window.high - window.low) / (size - 1)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in values.shape), indexing="ij"), -1)
    place = turned.to_native(window.low + index * step) @ turned.affine[:3, :3].T + turned.affine[:3, 3]
    found = []
    for landmark in LANDMARKS:
        near = np.clip(values, 0, None) * (((place - landmark) ** 2).sum(-1) < 7.0**2)
        centre = (place * near[..., None]).sum((0, 1, 2)) / near.sum()
        found.append(np.linalg.solve(turned.affine[:3, :3], centre - landmark) / step)
    return np.abs(found)


def whole_window(module, tools, volume, axis=0):
    """The one window over all slices, and its values."""
    extra = ("--window-slices", "200") if module is ct else ()
    settings = tools.options("ct" if module is ct else "mri", "--window", "36,40,40", *extra)
    turned = volume.turned(axis)
    (window,) = module.windows(turned, settings)
    grid = ct.grid(turned, settings) if module is ct else None
    (values,) = volumes.cut(turned, [window], fill=0, grid=grid)
    return window, values


@pytest.mark.parametrize("tilt", [0.0, 20.0], ids=["straight", "tilted"])
def test_landmarks_through_nifti_and_dicom(tools, tmp_path, tilt):
    for number, (order, signs) in enumerate(ORIENTATIONS):
        shape, affine = oriented(order, signs, (3.0, 2.0, 1.5), tilt)
        stored = drawn(shape, affine)
        path = tmp_path / f"{number}.nii"
        nibabel.save(nibabel.Nifti1Image(stored, RAS @ affine), path)
        files = tools.write_series(tmp_path / f"{number}", stored, affine, RescaleIntercept=0)
        read = [read_volume_file(path), read_series(files, check=lambda frame: None).volumes[0].volume]
        assert np.array_equal(read[0].values, read[1].values)
        assert np.abs(read[0].affine - read[1].affine).max() < 1e-3
        window, values = whole_window(ct, tools, read[number % 2])
        assert bool(any(read[0].drift)) == (tilt > 0)
        assert errors(read[number % 2], window, values).max() < 0.5, (order, signs)


def test_thick_slices_of_every_orientation_in_mri_windows(tools, tmp_path):
    for order, signs in ORIENTATIONS:
        shape, affine = oriented(order, signs, (4.5, 1.5, 1.5), 0.0)
        nibabel.save(nibabel.Nifti1Image(drawn(shape, affine), RAS @ affine), tmp_path / "v.nii")
        volume = read_volume_file(tmp_path / "v.nii")
        axis = mri.window_axis(volume.spacing)
        assert axis == 2 - order[0] and volume.spacing[axis] == pytest.approx(4.5)
        window, values = whole_window(mri, tools, volume, axis)
        # First and last tenth of the 12 slices are left out: 9 slices of 4.5 mm hold the landmarks.
        assert errors(volume, window, values, axis).max() < 0.5, (order, signs)
