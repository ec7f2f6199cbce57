"""Patterns the phantoms are drawn with: wavy lines, cells around jittered centres, clouds, soft-edged ellipses.

All take coordinate arrays of one shape and unit (pixels, millimetres or micrometres) and return float32 of that shape.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage

Array = np.ndarray[Any, np.dtype[Any]]


def grid(shape: tuple[int, ...], step: tuple[float, ...]) -> tuple[Array, ...]:
    """Coordinates of a lattice of `shape`, `step` apart on each axis, with the origin in its centre; broadcastable."""
    axes = [
        ((np.arange(size, dtype=np.float32) - (size - 1) / 2) * np.float32(width))
        for size, width in zip(shape, step, strict=True)
    ]
    return tuple(np.meshgrid(*axes, indexing="ij", sparse=True))


def inside(distance: Array, softness: float) -> Array:
    """1 where `distance` is negative, 0 where positive, a smooth step `softness` wide between."""
    return np.clip(np.float32(0.5) - distance / np.float32(softness), 0, 1)


def ellipse(y: Array, x: Array, centre: tuple[float, float], radii: tuple[float, float], power: float = 2.0) -> Array:
    """Signed distance-like field of an ellipse (negative inside), in units of the mean radius; power > 2 is boxier."""
    v = np.abs((y - np.float32(centre[0])) / np.float32(radii[0])) ** np.float32(power)
    v = v + np.abs((x - np.float32(centre[1])) / np.float32(radii[1])) ** np.float32(power)
    field: Array = (v ** np.float32(1 / power) - 1) * np.float32(sum(radii) / 2)
    return field


def clouds(rng: np.random.Generator, shape: tuple[int, ...], cells: tuple[int, ...]) -> Array:
    """Smooth random field of mean 0 and standard deviation about 1, with `cells` bumps along each axis."""
    coarse = rng.standard_normal(tuple(count + 3 for count in cells)).astype(np.float32)
    factors = [(size + 1) / count for size, count in zip(shape, cells, strict=True)]
    for axis, factor in enumerate(factors):
        position = np.arange(shape[axis], dtype=np.float32) / np.float32(factor) + 1
        lower = np.minimum(position.astype(np.int64), coarse.shape[axis] - 2)
        weight = position - lower
        weight = weight * weight * (3 - 2 * weight)
        weight = weight.reshape([-1 if a == axis else 1 for a in range(coarse.ndim)]).astype(np.float32)
        coarse = np.take(coarse, lower, axis) * (1 - weight) + np.take(coarse, lower + 1, axis) * weight
    field: Array = coarse * np.float32(1.4)
    return field


def lines(across: Array, wavelength: float, phase: float, sharpness: float = 1.0) -> Array:
    """Parallel lines `wavelength` apart along the coordinate `across`: mean about 0, range about -1 to 1."""
    wave = np.sin(across * np.float32(2 * np.pi / wavelength) + np.float32(phase))
    field: Array = np.tanh(wave * np.float32(sharpness)) / np.tanh(np.float32(sharpness))
    return field


def bands(across: Array, wavelength: float, phase: float) -> Array:
    """Bands along `across` that rise slowly and fall within a tenth of their width: mean 0, range -1 to 1."""
    place = across * np.float32(1 / wavelength) + np.float32(phase)
    place = place - np.floor(place)
    field: Array = np.minimum(place * np.float32(2 / 0.9), (1 - place) * np.float32(20)) - 1
    return field


def cells(rng: np.random.Generator, y: Array, x: Array, spacing: float, jitter: float) -> tuple[Array, Array]:
    """Distance to the nearest of centres on a jittered hexagonal-like lattice, and the angle around it (radians)."""
    y, x = np.broadcast_arrays(y, x)
    row = np.floor(y / np.float32(spacing)).astype(np.int32)
    column_start = np.floor((x - x.min()) / np.float32(spacing)).astype(np.int32)
    row -= row.min()
    origin = float(np.floor(y.min() / spacing) * spacing)
    left = float(x.min())
    offsets = rng.uniform(-jitter, jitter, (2, int(row.max()) + 3, int(column_start.max()) + 4)).astype(np.float32)
    best = np.full(y.shape, np.inf, np.float32)
    dy = np.zeros(y.shape, np.float32)
    dx = np.zeros(y.shape, np.float32)
    for down in (-1, 0, 1):
        r = row + down
        for right in (-1, 0, 1):
            c = column_start + right
            cy = origin + (r + np.float32(0.5) + offsets[0, r + 1, c + 1]) * np.float32(spacing)
            shift = np.float32(0.5) * (r & 1)
            cx = left + (c + np.float32(0.25) + shift + offsets[1, r + 1, c + 1]) * np.float32(spacing)
            vy, vx = y - cy, x - cx
            squared = vy * vy + vx * vx
            nearer = squared < best
            best = np.where(nearer, squared, best)
            dy = np.where(nearer, vy, dy)
            dx = np.where(nearer, vx, dx)
    return np.sqrt(best), np.arctan2(dy, dx)


def rotate(y: Array, x: Array, angle: float) -> tuple[Array, Array]:
    """Coordinates turned by `angle` radians."""
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * y - s * x, s * y + c * x


def blur(field: Array, sigma: float | tuple[float, ...]) -> Array:
    """Gaussian blur, in lattice steps."""
    result: Array = ndimage.gaussian_filter(field, sigma, mode="nearest", truncate=3.0)
    return result
