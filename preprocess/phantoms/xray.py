"""Chest-like X-rays under a random exposure; the class is where in the lungs opacity lies."""

from __future__ import annotations

import numpy as np

from preprocess.phantoms import texture
from preprocess.phantoms.texture import Array

CLASSES = ("apical", "basal", "central", "peripheral")
"""Where in the lungs the opacity lies."""
SIDE = 192


def draw(rng: np.random.Generator, label: str) -> Array:
    """One frontal view of class `label`: (height, width) float32 in [0, 1], bright where the beam is absorbed."""
    height, width = (int(SIDE * factor) for factor in ((1.0, 1.0), (1.15, 1.0), (1.0, 1.15))[rng.integers(3)])
    y, x = texture.grid((height, width), (2 / SIDE, 2 / SIDE))
    y, x = texture.rotate(y, x, rng.normal(0, 0.06))
    zoom = rng.uniform(0.88, 1.15)
    y, x = y * zoom + rng.normal(0, 0.05), x * zoom + rng.normal(0, 0.06)
    body = texture.inside(texture.ellipse(y - 0.25, x, (0, 0), (1.5, rng.uniform(0.88, 1.0)), 3), 0.08)
    shoulders = texture.inside(-(y + 0.98 - 0.25 * np.abs(x)), 0.06)
    lungs, low = _lungs(rng, y, x)
    heart_x = rng.uniform(0.08, 0.16)
    heart = texture.inside(
        texture.ellipse(y, x, (0.3, heart_x), (rng.uniform(0.28, 0.36), rng.uniform(0.24, 0.34))), 0.08
    )
    mediastinum = texture.inside(np.abs(x) - np.float32(0.13) - 0.03 * np.sin(6 * y), 0.1)
    air = lungs * (1 - heart) * (1 - mediastinum)
    spine = mediastinum * (0.75 + 0.25 * texture.lines(y, rng.uniform(0.13, 0.17), rng.uniform(0, 6), 1))
    absorbed = body * shoulders * (0.62 + 0.12 * heart + 0.1 * spine - rng.uniform(0.34, 0.42) * air)
    absorbed += 0.02 * _ribs(rng, y, x) * body * shoulders
    absorbed += 0.12 * air * _pattern(rng, label, y, x)
    absorbed += 0.06 * (1 - lungs) * body * low
    return _expose(rng, absorbed)


def _lungs(rng: np.random.Generator, y: Array, x: Array) -> tuple[Array, Array]:
    top, bottom = rng.uniform(-0.82, -0.72), rng.uniform(0.5, 0.72)
    middle, half = (top + bottom) / 2, (bottom - top) / 2
    field = np.zeros(np.broadcast_shapes(y.shape, x.shape), np.float32)
    dome = bottom - 0.12 + 0.5 * (np.abs(x) - 0.42) ** 2
    for side in (-1, 1):
        lobe = texture.ellipse(y, x, (middle, side * 0.44), (half + 0.08, rng.uniform(0.34, 0.4)), 2.6)
        field = np.maximum(field, texture.inside(lobe, 0.07))
    return field * texture.inside(y - dome, 0.05), texture.inside(dome - y, 0.05)


def _ribs(rng: np.random.Generator, y: Array, x: Array) -> Array:
    tilt = rng.uniform(0.35, 0.55)
    arc = y - tilt * (np.abs(x) - 0.45) ** 2 + rng.uniform(-0.1, 0.25) * np.abs(x)
    cage = texture.inside(np.abs(x) - np.float32(0.85), 0.1) * texture.inside(y - np.float32(0.75), 0.1)
    return cage * texture.lines(arc, rng.uniform(0.2, 0.26), rng.uniform(0, 6.28), 2)


def _pattern(rng: np.random.Generator, label: str, y: Array, x: Array) -> Array:
    """Opacity around the place where the disease prefers to lie, of mean about 0 over the lungs."""
    down, out = (y + np.float32(0.08)) / np.float32(0.6), (np.abs(x) - np.float32(0.44)) / np.float32(0.34)
    towards = {"apical": -down, "basal": down, "central": -out, "peripheral": out}[label]
    wave = 0.12 * texture.clouds(rng, np.broadcast_shapes(y.shape, x.shape), (4, 4))
    return np.tanh(1.6 * towards + wave + rng.normal(0, 0.15)) * np.float32(rng.uniform(0.7, 1.3))


def _expose(rng: np.random.Generator, absorbed: Array) -> Array:
    y, x = texture.grid(absorbed.shape, (2 / SIDE, 2 / SIDE))
    slope = rng.normal(0, 0.1, 2)
    gain, level = rng.uniform(0.75, 1.25), rng.normal(0, 0.1)
    image = (absorbed - 0.4) * gain + 0.45 + level + slope[0] * y + slope[1] * x
    image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.004, 0.012))
    clipped: Array = np.clip(image, 0, 1).astype(np.float32) ** np.float32(rng.uniform(0.75, 1.35))
    return clipped
