"""Chest CT: body, lungs, heart, spine, ribs and table in Hounsfield units; the class is where opacity lies."""

from __future__ import annotations

import numpy as np

from preprocess.phantoms import texture
from preprocess.phantoms.texture import Array

CLASSES = ("central", "dependent", "peripheral", "ventral")
"""Where in the lungs the opacity lies."""
SLICES, SIDE = 17, 96
SPACING_MM = (5.0, 2.6, 2.6)


def draw(rng: np.random.Generator, label: str) -> Array:
    """One volume of class `label`: (z, y, x) float32 HU, z towards the head, y towards the back, x to the left."""
    z, y, x = texture.grid((SLICES, SIDE, SIDE), SPACING_MM)
    height = np.float32(rng.uniform(0, 0.15)) + np.float32(0.8) * (z - z.min()) / np.float32(SLICES * SPACING_MM[0])
    size = rng.uniform(0.94, 1.04)
    y = (y + rng.normal(0, 3)) / size
    x = (x + rng.normal(0, 3)) / size
    y, x = texture.rotate(y, x, rng.normal(0, 0.03))
    fat = rng.uniform(5, 14)
    skin = texture.ellipse(y, x, (0, 0), (92 + fat * 0.5, 116 + fat * 0.5), 2.4)
    body = texture.inside(skin, 4)
    muscle = texture.inside(skin + fat, 4)
    air = _lungs(rng, height, y, x)
    hu = -1000 + body * (1000 + rng.uniform(-110, -80))
    hu = hu + muscle * (rng.uniform(35, 60) + 95)
    depth = rng.uniform(-720, -600)
    hu = hu * (1 - air) + air * (depth + rng.uniform(220, 300) * _pattern(rng, label, z, y, x))
    blood = rng.uniform(40, 190)
    heart = texture.ellipse(y, x, (-22, 22), (42, 48)) + 70 * np.clip(height - 0.55, 0, 1) * 2
    hu = _mix(hu, texture.inside(heart, 5), blood)
    for centre, radius in (((32.0, 20.0), 12.0), ((-18.0, 4.0), 15.0)):
        hu = _mix(hu, texture.inside(texture.ellipse(y, x, centre, (radius, radius)), 4), blood)
    hu = _mix(hu, texture.inside(texture.ellipse(y, x, (58, 0), (17, 19)), 4), rng.uniform(250, 420))
    hu = _mix(hu, texture.inside(texture.ellipse(y, x, (80, 0), (14, 6)), 4), 380)
    hu = _mix(hu, texture.inside(texture.ellipse(y, x, (59, 0), (9, 9)), 4) * 0.6, 130)
    cage = texture.inside(np.abs(skin + fat + 9) - np.float32(4.5), 4)
    angle = np.arctan2(y, x)
    cage = cage * texture.inside(0.2 - texture.lines(angle + 0.5 * height * 4, 0.62, rng.uniform(0, 6)), 0.6)
    hu = _mix(hu, cage, rng.uniform(350, 550))
    hu = _mix(hu, _table(rng, y, x) + 0 * z, -120)
    noise = rng.standard_normal(hu.shape, np.float32) * np.float32(rng.uniform(5, 15))
    hu = hu + noise * body
    clipped: Array = np.clip(hu, -1000, 1800).astype(np.float32)
    return clipped


def _mix(hu: Array, part: Array, value: float) -> Array:
    return hu + part * (np.float32(value) - hu)


def _lungs(rng: np.random.Generator, height: Array, y: Array, x: Array) -> Array:
    grow = 0.72 + 0.34 * np.sin(np.pi * (0.12 + 0.76 * (1 - height)))
    wide, deep = rng.uniform(52, 56), rng.uniform(76, 82)
    air = np.zeros(np.broadcast_shapes(height.shape, y.shape, x.shape), np.float32)
    for side in (-1, 1):
        lobe = texture.ellipse(y / grow, (x - side * 55) / grow, (0, 0), (deep, wide), 2.3)
        air = np.maximum(air, texture.inside(lobe, 4))
    return air


def _pattern(rng: np.random.Generator, label: str, z: Array, y: Array, x: Array) -> Array:
    """Opacity around the place where the disease prefers to lie, of mean about 0 over the lungs."""
    back, out = y / np.float32(60), (np.abs(x) - np.float32(56)) / np.float32(45)
    towards = {"central": -out, "dependent": back, "peripheral": out, "ventral": -back}[label]
    wave = 0.15 * texture.clouds(rng, np.broadcast_shapes(z.shape, y.shape, x.shape), (2, 4, 4))
    return np.tanh(1.6 * towards + wave + rng.normal(0, 0.15)) * np.float32(rng.uniform(0.7, 1.3))


def _table(rng: np.random.Generator, y: Array, x: Array) -> Array:
    top = 110 + rng.uniform(0, 5)
    curve = y - np.float32(top) + 0.0015 * x * x
    return texture.inside(np.abs(curve) - np.float32(3), 3) * texture.inside(np.abs(x) - np.float32(130), 5)
