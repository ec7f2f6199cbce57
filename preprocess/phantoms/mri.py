"""Brain-like MRI: scalp, skull, cortex, white matter, ventricles, a bias field; the class is where signal is raised."""

from __future__ import annotations

import numpy as np

from preprocess.phantoms import texture
from preprocess.phantoms.texture import Array

CLASSES = ("frontal", "lateral", "medial", "occipital")
"""Where in the white matter the signal is raised."""
SLICES, SIDE = 52, 88
SPACING_MM = (2.0, 2.0, 2.0)


def draw(rng: np.random.Generator, label: str) -> Array:
    """One volume of class `label`: (z, y, x) float32 in arbitrary scanner units, z up, y to the back, x to the left."""
    z, y, x = texture.grid((SLICES, SIDE, SIDE), SPACING_MM)
    size = rng.uniform(0.94, 1.06)
    z, y, x = z / size, (y + rng.normal(0, 2.5)) / size, (x + rng.normal(0, 2.5)) / size
    y, x = texture.rotate(y, x, rng.normal(0, 0.06))
    slope = 1 - (z / 110) ** 2
    shrink = np.sqrt(np.clip(slope, 0.1, 1)).astype(np.float32)
    fold = 2.0 * texture.clouds(rng, (SLICES, SIDE, SIDE), (12, 16, 16))
    scalp = texture.ellipse(y / shrink, x / shrink, (0, 0), (88, 72))
    skull, cortex, white = scalp + 6, scalp + 13, scalp + 19 + fold
    weights = rng.permutation(3)[:2]
    tone = np.array([rng.uniform(0.3, 0.42), rng.uniform(0.5, 0.6), rng.uniform(0.68, 0.8)])
    if weights[0] == 0:
        tone = tone[::-1]
    image = texture.inside(scalp, 3) * rng.uniform(0.5, 1.0)
    image = _mix(image, texture.inside(skull, 3), 0.12)
    image = _mix(image, texture.inside(cortex, 3), float(tone[0]))
    image = _mix(image, texture.inside(cortex + 2 + 0.5 * fold, 3), float(tone[1]))
    inner = texture.inside(white, 4)
    pattern = _pattern(rng, label, z, y, x)
    image = _mix(image, inner, float(tone[2])) + inner * pattern * rng.uniform(0.22, 0.3)
    for side in (-1, 1):
        horn = texture.ellipse(y + 6, x - side * (11 + 0.12 * np.abs(z)), (0, 0), (30, rng.uniform(4, 6)))
        image = _mix(image, texture.inside(horn + np.abs(z) * 0.25, 3), float(tone[0]))
    bias = np.exp(0.1 * texture.clouds(rng, image.shape, (2, 2, 2)))
    image = np.clip(image, 0, None) * bias
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.003, 0.01))
    image = image + noise * texture.inside(scalp, 3)
    scaled: Array = (np.abs(image) * rng.uniform(400, 1600)).astype(np.float32)
    return scaled


def _mix(image: Array, part: Array, value: float) -> Array:
    return image + part * (np.float32(value) - image)


def _pattern(rng: np.random.Generator, label: str, z: Array, y: Array, x: Array) -> Array:
    """Signal around the place where the disease prefers to lie, of mean about 0 over the white matter."""
    back, out = y / np.float32(55), (np.abs(x) - np.float32(24)) / np.float32(22)
    towards = {"frontal": -back, "lateral": out, "medial": -out, "occipital": back}[label]
    wave = 0.15 * texture.clouds(rng, np.broadcast_shapes(z.shape, y.shape, x.shape), (3, 4, 4))
    return np.tanh(1.6 * towards + wave + rng.normal(0, 0.15)) * np.float32(rng.uniform(0.7, 1.3))
