"""One volume type for every source: values on a grid [z, y, x] toward superior, posterior and left, and its sampling.

Coordinates are DICOM's: millimetres (x toward the patient's left, y posterior, z superior). An affine maps indices in
the array's own axis order (z, y, x) to (x, y, z) millimetres, at voxel centres.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import SimpleITK

from preprocess.conversion import failed

Array = np.ndarray[Any, Any]

# The package says it is typed, but its generated functions are not.
itk: Any = SimpleITK

_WORLD_OF_AXIS = (2, 1, 0)
"""Array axis 0 runs along world z, axis 1 along y, axis 2 along x."""

_STRAIGHT_ENOUGH = 0.25
"""Sideways drift in voxels over the whole volume below which a sheared grid counts as a straight one."""


@dataclass(frozen=True)
class Volume:
    """Values (z, y, x), int16 or float32, and the affine (4, 4) from (z, y, x) indices to LPS millimetres.

    The grid may be sheared (gantry tilt): then its slices, at right angles to nothing, drift sideways along the two
    other axes. `spacing`, `low` and `size` describe the straight grid that encloses it: same slices, same pixels, drift
    taken out. Straight indices count native voxels and equal native indices where there is no drift.
    """

    values: Array
    affine: Array
    spacing: tuple[float, float, float] = field(init=False)
    drift: tuple[float, float, float] = field(init=False)
    """Voxels by which the next slice along `slice_axis` lies further along each axis."""
    slice_axis: int = field(init=False)

    def __post_init__(self) -> None:
        if not np.isfinite(self.affine).all() or min(np.linalg.norm(self.affine[:3, :3], axis=0)) < 1e-6:
            raise failed("no_geometry", "the spacing is zero or not a number")
        spacing, drift, slice_axis = _straighten(self.affine[:3, :3], self.values.shape)
        object.__setattr__(self, "spacing", spacing)
        object.__setattr__(self, "drift", drift)
        object.__setattr__(self, "slice_axis", slice_axis)

    @property
    def low(self) -> Array:
        """Straight index (3,) of the enclosing grid's first corner; zeros unless sheared."""
        return np.asarray(np.minimum(0.0, self._total_drift))

    @property
    def high(self) -> Array:
        """Straight index (3,) of the enclosing grid's last corner; shape - 1 unless sheared."""
        return np.asarray(np.array(self.values.shape) - 1 + np.maximum(0.0, self._total_drift))

    @property
    def _total_drift(self) -> Array:
        return np.asarray(np.array(self.drift) * (self.values.shape[self.slice_axis] - 1))

    def to_native(self, straight: Array) -> Array:
        """Native indices (..., 3) of straight indices (..., 3)."""
        steps = straight[..., self.slice_axis, None]
        return np.asarray(straight - steps * np.array(self.drift))

    def turned(self, axis: int) -> Volume:
        """The same volume with array axis `axis` moved to the front, the other two in their order."""
        order = [axis, *(other for other in range(3) if other != axis)]
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, order]
        return Volume(self.values.transpose(order), affine)


def to_lps(values: Array, affine: Array) -> Volume:
    """Reorder and flip an array of any orientation into a `Volume`; nothing is interpolated and nothing copied.

    `values` is (i, j, k), `affine` (4, 4) maps (i, j, k) to LPS millimetres. Oblique grids go to the nearest axes.
    Refused: `no_geometry`.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or lengths.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise failed("no_geometry", "the affine is singular or not finite")
    cosines = affine[:3, :3] / lengths
    order = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(cosines[_WORLD_OF_AXIS[target], source]) for target, source in enumerate(axes)),
    )
    turned = np.eye(4)
    turned[:3, 3] = affine[:3, 3]
    values = values.transpose(order)
    for target, source in enumerate(order):
        column = affine[:3, source]
        if column[_WORLD_OF_AXIS[target]] < 0:
            turned[:3, 3] += column * (values.shape[target] - 1)
            column = -column
            values = np.flip(values, axis=target)
        turned[:3, target] = column
    return Volume(values, turned)


def sample(
    volume: Volume,
    low: Array,
    high: Array,
    size: tuple[int, int, int],
    *,
    fill: float,
    clip: tuple[float, float] | None = None,
) -> Array:
    """Values (size), float32, on a regular grid whose corner voxels lie at straight indices `low` and `high`.

    Linear interpolation in one step, corner-aligned; a size of 1 samples the middle. `fill` is the value outside.
    Native values are clipped to `clip` first, so that extremes do not bleed into their surroundings.
    """
    low, high = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    steps = np.array([(b - a) / (n - 1) if n > 1 else 0.0 for a, b, n in zip(low, high, size, strict=True)])
    start = np.where(np.array(size) > 1, low, (low + high) / 2)
    corners = np.array(list(itertools.product(*zip(start, start + steps * (np.array(size) - 1), strict=True))))
    native = volume.to_native(corners)
    # Only the part that is needed becomes an ITK image, so a long series costs the memory of one window.
    first = np.clip(np.floor(native.min(axis=0)), 0, np.array(volume.values.shape) - 1).astype(int)
    last = np.clip(np.ceil(native.max(axis=0)), first, np.array(volume.values.shape) - 1).astype(int)
    part = volume.values[first[0] : last[0] + 1, first[1] : last[1] + 1, first[2] : last[2] + 1]
    part = np.ascontiguousarray(part) if clip is None else np.clip(part, *clip)
    image = itk.GetImageFromArray(part)
    image.SetOrigin([float(index) for index in first[::-1]])
    resampler = itk.ResampleImageFilter()
    # Worker processes share the cores already.
    resampler.SetNumberOfThreads(1)
    resampler.SetInterpolator(itk.sitkLinear)
    resampler.SetOutputPixelType(itk.sitkFloat32)
    resampler.SetDefaultPixelValue(fill)
    resampler.SetSize([int(n) for n in size[::-1]])
    resampler.SetOutputOrigin([float(value) for value in start[::-1]])
    resampler.SetOutputSpacing([float(step) if step > 0 else 1.0 for step in steps[::-1]])
    if any(volume.drift):
        matrix = np.eye(3)
        matrix[:, volume.slice_axis] -= np.array(volume.drift)
        shear = itk.AffineTransform(3)
        shear.SetMatrix(matrix[::-1, ::-1].ravel().tolist())
        resampler.SetTransform(shear)
    return np.asarray(itk.GetArrayFromImage(resampler.Execute(image)))


def _straighten(
    columns: Array, shape: tuple[int, ...]
) -> tuple[tuple[float, float, float], tuple[float, float, float], int]:
    """Spacing of the straight grid, drift per slice and the axis of the slices, for index steps (3, 3) in mm."""
    lengths = np.linalg.norm(columns, axis=0)
    units = columns / lengths
    dots = np.abs(units.T @ units)
    pairs = {axis: dots[tuple(other for other in range(3) if other != axis)] for axis in range(3)}
    slice_axis = min(pairs, key=lambda axis: (round(float(pairs[axis]), 6), axis))
    others = [axis for axis in range(3) if axis != slice_axis]
    drift = np.zeros(3)
    for axis in others:
        drift[axis] = float(columns[:, slice_axis] @ units[:, axis]) / lengths[axis]
    if np.abs(drift).max() * (shape[slice_axis] - 1) < _STRAIGHT_ENOUGH:
        drift[:] = 0.0
    spacing = lengths.copy()
    if drift.any():
        normal = np.cross(units[:, others[0]], units[:, others[1]])
        spacing[slice_axis] = abs(float(columns[:, slice_axis] @ normal) / np.linalg.norm(normal))
    return (
        (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        (float(drift[0]), float(drift[1]), float(drift[2])),
        slice_axis,
    )
