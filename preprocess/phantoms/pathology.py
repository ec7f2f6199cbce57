"""H&E-like slides: an island of tissue on white glass, each stained differently; the class is how cells lie."""

from __future__ import annotations

from typing import Any

import numpy as np

from preprocess.phantoms import texture
from preprocess.phantoms.texture import Array

CLASSES = ("diffuse", "glandular", "solid", "spindled")
"""Broad cords, rings around a lumen, single round nuclei, bundles of spindles."""
SIDE = 1024
MPP = 0.5
_COARSE_MPP = 1.0
_HAEMATOXYLIN = (0.75, 0.78, 0.45)
_EOSIN = (0.10, 0.95, 0.30)


def draw(rng: np.random.Generator, label: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """One slide of class `label` at 0.5 micrometres a pixel: (SIDE, SIDE, 3) uint8 RGB."""
    side = int(SIDE * MPP / _COARSE_MPP)
    y, x = texture.grid((side, side), (_COARSE_MPP, _COARSE_MPP))
    edge = texture.ellipse(y, x, tuple(rng.normal(0, 10, 2)), tuple(rng.uniform(195, 235, 2)), 2.5)
    edge = edge + 18 * texture.clouds(rng, (side, side), (6, 6))
    tissue = texture.inside(edge, 12)
    sway = 7 * texture.clouds(rng, (side, side), (7, 7))
    v, u = texture.rotate(y, x, rng.uniform(0, 2 * np.pi))
    nuclei, matrix = _architecture(rng, label, v + sway, u + sway.T)
    thickness = rng.uniform(0.55, 1.35) * np.exp(0.18 * texture.clouds(rng, (side, side), (4, 4)))
    grain = texture.clouds(rng, (side, side), (150, 150))
    haematoxylin = thickness * (0.12 + rng.uniform(0.55, 0.9) * nuclei) * (1 + 0.12 * grain)
    eosin = thickness * (0.1 + rng.uniform(0.12, 0.3) * matrix) * (1 + 0.08 * grain)
    density = np.stack([
        haematoxylin * np.float32(h * rng.uniform(0.95, 1.05)) + eosin * np.float32(e * rng.uniform(0.9, 1.1))
        for h, e in zip(_HAEMATOXYLIN, _EOSIN, strict=True)
    ], axis=-1)  # fmt: skip
    white = rng.uniform(238, 248)
    coarse = white * np.exp(-density * tissue[..., None])
    return _double(np.clip(coarse, 0, 255))


def _architecture(rng: np.random.Generator, label: str, v: Array, u: Array) -> tuple[Array, Array]:
    """Density of nuclei and of pink matrix, each about 0 to 1, in coordinates of the slide turned at random."""
    if label == "glandular":
        pitch = rng.uniform(62, 76)
        radius, _ = texture.cells(rng, v, u, pitch, 0.1)
        ring = texture.inside(np.abs(radius - np.float32(0.34 * pitch)) - np.float32(6), 6)
        lumen = texture.inside(radius - np.float32(0.24 * pitch), 6)
        return 0.9 * ring, 1 - lumen
    if label == "solid":
        radius, _ = texture.cells(rng, v, u, rng.uniform(12.5, 14.5), 0.15)
        return 1.1 * texture.inside(radius - np.float32(4.2), 2), np.full_like(v, 0.5)
    if label == "spindled":
        wave = texture.lines(v + 4 * np.sin(u / 14), rng.uniform(15, 18), rng.uniform(0, 6), 1)
        return 0.5 + 0.5 * wave, 0.5 - 0.4 * wave
    cords = 0.5 + 0.5 * np.tanh(2.5 * texture.clouds(rng, v.shape, (9, 9)))
    return 0.8 * cords, 0.9 - 0.6 * cords


def _double(image: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Twice the height and width, by linear interpolation."""
    for axis in (0, 1):
        following = np.concatenate([np.take(image, range(1, image.shape[axis]), axis),
                                    np.take(image, [-1], axis)], axis)  # fmt: skip
        pairs = np.stack([image, (image + following) / 2], axis + 1)
        image = pairs.reshape([2 * size if a == axis else size for a, size in enumerate(image.shape)])
    return (image + np.float32(0.5)).astype(np.uint8)
