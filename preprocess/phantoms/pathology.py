"""H&E-like slides: an island of tissue on white glass, each stained differently; the class is how cells lie."""

from __future__ import annotations

from typing import Any

import numpy as np

from preprocess.phantoms import texture
from preprocess.phantoms.texture import Array

CLASSES = ("glandular", "nested", "palisaded", "spindled")
"""Rings around a lumen, round solid nests, bands of upright rows, wavy bundles."""
SIDE = 1024
MPP = 0.5
_COARSE_MPP = 1.0
_HAEMATOXYLIN = (0.65, 0.70, 0.29)
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
    eosin = thickness * (0.1 + rng.uniform(0.25, 0.5) * matrix) * (1 + 0.08 * grain)
    density = np.stack([
        haematoxylin * np.float32(h * rng.uniform(0.85, 1.15)) + eosin * np.float32(e * rng.uniform(0.8, 1.2))
        for h, e in zip(_HAEMATOXYLIN, _EOSIN, strict=True)
    ], axis=-1)  # fmt: skip
    white = rng.uniform(238, 248)
    coarse = white * np.exp(-density * tissue[..., None])
    return _double(np.clip(coarse, 0, 255))


def _architecture(rng: np.random.Generator, label: str, v: Array, u: Array) -> tuple[Array, Array]:
    """Density of nuclei and of pink matrix, each about 0 to 1, in coordinates of the slide turned at random."""
    dots = texture.inside(0.3 - np.sin(v * np.float32(0.62)) * np.sin(u * np.float32(0.62)), 0.6)
    pitch = rng.uniform(44, 54)
    if label in ("glandular", "nested"):
        radius, _ = texture.cells(rng, v, u, pitch, 0.1)
        if label == "glandular":
            ring = texture.inside(np.abs(radius - np.float32(0.33 * pitch)) - np.float32(4.5), 3)
            lumen = texture.inside(radius - np.float32(0.24 * pitch), 3)
            return ring * (0.35 + 0.65 * dots) + 0.25 * dots * (1 - ring) * (1 - lumen), 1 - lumen
        nest = texture.inside(radius - np.float32(0.3 * pitch), 4)
        return nest * (0.35 + 0.65 * dots) + 0.1 * dots * (1 - nest), 0.55 + 0.45 * (1 - nest)
    if label == "palisaded":
        rise = 0.5 + 0.5 * texture.bands(v, 0.8 * pitch, rng.uniform())
        return rise * (0.3 + 0.7 * dots), 1 - 0.6 * rise
    wave = 0.5 + 0.5 * texture.lines(v + 5 * np.sin(u / 14), 0.5 * pitch, rng.uniform(0, 6), 1)
    streak = texture.inside(0.35 - texture.lines(u + 0.8 * v, 26, 0, 1) * wave, 0.6)
    return 0.7 * wave * (0.35 + 0.65 * streak), 1 - 0.5 * wave


def _double(image: Array) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Twice the height and width, by linear interpolation."""
    for axis in (0, 1):
        following = np.concatenate([np.take(image, range(1, image.shape[axis]), axis),
                                    np.take(image, [-1], axis)], axis)  # fmt: skip
        pairs = np.stack([image, (image + following) / 2], axis + 1)
        image = pairs.reshape([2 * size if a == axis else size for a, size in enumerate(image.shape)])
    return (image + np.float32(0.5)).astype(np.uint8)
