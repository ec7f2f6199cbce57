"""Boxes of a straight volume resampled axis by axis: one small matrix of weights an axis, each slice filtered once.

Whatever is linear along each axis can be folded into one matrix an axis: also interpolating with cubic splines to a
finer grid and reading a window from that grid linearly, which as two passes over whole volumes takes fifty times as
long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from scipy.interpolate import make_interp_spline
from scipy.sparse import csr_array

from preprocess.heartbeat import beat
from preprocess.readers.volume import Array, Volume

SMOOTHED_ABOVE = 3.5
"""Native voxels a step above which each value is an average, not a point: finer detail would come back as patterns that
are not in the patient. Not below, so that windows of usual sizes hold what the two passes gave."""

_NEGLIGIBLE = 1e-4
"""Weights of a cubic spline fade by 0.27 a voxel and never end; those below change a value by less than 0.2 HU."""


def cut(
    volume: Volume,
    boxes: Sequence[tuple[Array, Array]],
    size: tuple[int, int, int],
    *,
    grid: tuple[int, int, int] | None = None,
    clip: tuple[float, float] | None = None,
) -> Iterator[Array]:
    """Values (size), float32, of each box of a volume without drift, given as its corner voxels' native indices (3,).

    Boxes lie in rising order along axis 0 and alike along the others. `grid` is the number of points an axis of the
    finer grid that is interpolated by cubic splines first, its corners on the volume's; None reads native voxels. A
    size of 1 reads the middle. Native values are clipped to `clip` first: extremes must not bleed into others.
    """
    counts = grid or volume.values.shape
    across = [_weights(volume, counts, axis, boxes[0], size[axis]) for axis in (1, 2)]
    planes: dict[int, Array] = {}
    for box in boxes:
        along = _weights(volume, counts, 0, box, size[0])
        needed = np.unique(along.indices)
        planes = {number: plane for number, plane in planes.items() if number >= needed[0]}
        for number in needed.tolist():
            if number not in planes:
                planes[number] = _plane(volume.values[number], across, clip)
        # Planes are (x, y): each pass works along the first axis.
        stack = np.stack([planes[number] for number in needed.tolist()])
        mixed = along[:, needed] @ stack.reshape(len(needed), -1)
        beat()
        yield mixed.reshape(size[0], size[2], size[1]).transpose(0, 2, 1)


def _plane(native: Array, across: Sequence[csr_array], clip: tuple[float, float] | None) -> Array:
    """One slice (y, x) resampled along both axes, float32 (x, y)."""
    values = native if clip is None else np.clip(native, *clip)
    halfway = across[0] @ values.astype(np.float32)
    resampled: Array = across[1] @ np.ascontiguousarray(halfway.T)
    return resampled


def _weights(volume: Volume, counts: Sequence[int], axis: int, box: tuple[Array, Array], size: int) -> csr_array:
    native, count = volume.values.shape[axis], counts[axis]
    return axis_weights(native, count, float(box[0][axis]), float(box[1][axis]), size)


@lru_cache(maxsize=64)
def axis_weights(native: int, count: int, low: float, high: float, size: int) -> csr_array:
    """Sparse matrix (size, native), float32, from native voxels to points between native indices `low` and `high`."""
    scale = (count - 1) / (native - 1)
    points = np.linspace(low, high, size) * scale if size > 1 else np.array([(low + high) / 2 * scale])
    step = (high - low) / (size - 1) if size > 1 else 0.0
    reach = step * scale if step > SMOOTHED_ABOVE else 1.0
    distance = np.abs(points[:, None] - np.arange(count)) / reach
    # A triangle of one grid step is linear interpolation; one of a window's step averages what lies between.
    weights = np.maximum(0.0, 1.0 - distance)
    weights /= weights.sum(axis=1, keepdims=True)
    if count != native:
        weights = weights @ _splines(native, count)
        weights[np.abs(weights) < _NEGLIGIBLE] = 0.0
        weights /= weights.sum(axis=1, keepdims=True)
    return csr_array(weights.astype(np.float32))


@lru_cache(maxsize=8)
def _splines(native: int, count: int) -> Array:
    """Matrix (count, native) of cubic spline interpolation, corners aligned, level at both ends."""
    degree = min(3, native - 1)
    ends = "clamped" if degree == 3 else None
    spline = make_interp_spline(np.arange(native), np.eye(native), k=degree, bc_type=ends)
    return np.asarray(spline(np.linspace(0, native - 1, count)))
