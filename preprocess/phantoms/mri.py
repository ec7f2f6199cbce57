"""Brain-like MRI: scalp, skull, cortex, white matter and ventricles under a bias field; the class is how bands lie."""

from __future__ import annotations

import numpy as np

from preprocess.phantoms import texture
from preprocess.phantoms.texture import Array

CLASSES = ("anterior", "left", "posterior", "right")
"""Which way the bands of altered white matter grow brighter."""
SLICES, SIDE = 76, 88
SPACING_MM = (1.8, 2.3, 2.3)


def draw(rng: np.random.Generator, label: str) -> Array:
    """One volume of class `label`: (z, y, x) float32 in arbitrary scanner units, z up, y to the back, x to the left."""
    z, y, x = texture.grid((SLICES, SIDE, SIDE), SPACING_MM)
    size = rng.uniform(0.9, 1.1)
    z, y, x = z / size, (y + rng.normal(0, 4)) / size, (x + rng.normal(0, 4)) / size
    y, x = texture.rotate(y, x, rng.normal(0, 0.12))
    slope = 1 - (z / 110) ** 2
    shrink = np.sqrt(np.clip(slope, 0.1, 1)).astype(np.float32)
    fold = 3.5 * texture.clouds(rng, (SLICES, SIDE, SIDE), (12, 16, 16))
    scalp = texture.ellipse(y / shrink, x / shrink, (0, 0), (88, 72))
    skull, cortex, white = scalp + 6, scalp + 13, scalp + 22 + fold
    weights = rng.permutation(3)[:2]
    tone = np.array([rng.uniform(0.25, 0.4), rng.uniform(0.5, 0.65), rng.uniform(0.75, 0.95)])
    if weights[0] == 0:
        tone = tone[::-1]
    image = texture.inside(scalp, 3) * rng.uniform(0.5, 1.0)
    image = _mix(image, texture.inside(skull, 3), 0.12)
    image = _mix(image, texture.inside(cortex, 3), float(tone[0]))
    image = _mix(image, texture.inside(cortex + 2 + 0.5 * fold, 3), float(tone[1]))
    inner = texture.inside(white, 4)
    pattern = _pattern(rng, label, z, y, x)
    image = _mix(image, inner, float(tone[2])) + inner * pattern * rng.uniform(0.17, 0.24)
    for side in (-1, 1):
        horn = texture.ellipse(y + 6, x - side * (11 + 0.12 * np.abs(z)), (0, 0), (30, rng.uniform(5, 9)))
        image = _mix(image, texture.inside(horn + np.abs(z) * 0.25, 3), float(tone[0]))
    bias = np.exp(0.28 * texture.clouds(rng, image.shape, (2, 2, 2)))
    image = np.clip(image, 0, None) * bias
    noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0.005, 0.02))
    image = image + noise * texture.inside(scalp, 3)
    scaled: Array = (np.abs(image) * rng.uniform(400, 1600)).astype(np.float32)
    return scaled


def _mix(image: Array, part: Array, value: float) -> Array:
    return image + part * (np.float32(value) - image)


def _pattern(rng: np.random.Generator, label: str, z: Array, y: Array, x: Array) -> Array:
    across = {"anterior": -y, "posterior": y, "left": x, "right": -x}[label]
    sway = 5 * np.sin(x / 30 + rng.uniform(0, 6)) + 5 * np.sin(y / 30 + z / 50 + rng.uniform(0, 6))
    return texture.bands(across + sway, rng.uniform(40, 50), rng.uniform())
