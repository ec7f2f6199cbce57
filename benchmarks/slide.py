"""A made slide as large as a scanner's, to measure with: `python -m benchmarks.slide PATH [--side PX] [--mpp UM]`.

It is laid out as an Aperio scanner at 40x does: a TIFF in tiles of 256 px, JPEG at 4:2:0, levels 1, 4 and 16 times
reduced; tissue with the phantoms' texture and a camera's noise lies nearly all over it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from preprocess.phantoms import pathology

TILE_PX = 256
LEVELS = (1, 4, 16)
"""How many times each level is reduced."""

_PATCH_PX = 2048
_NOISE = 12.0
_CAMERA = 4


def make_slide(path: Path, side_px: int = 20_000, mpp: float = 0.25, quality: int = 85, seed: int = 0) -> Path:
    """Write a square slide of `side_px` px at `mpp` µm a px; equal arguments give equal bytes. Memory: some 250 MB.

    The pixels come from four drawn patches of 2,048 px, each place a patch turned and mirrored at random.
    """
    rng = np.random.default_rng(seed)
    patches = [_patch(rng, label) for label in pathology.CLASSES]
    across = -(-side_px // _PATCH_PX)
    choice = rng.integers(0, 8 * len(patches), (across, across))
    about = (
        f"Aperio Image Library v12.0.15\r\n{side_px}x{side_px} [0,0 {side_px}x{side_px}] (256x256) JPEG/RGB Q={quality}"
    )
    with tifffile.TiffWriter(path, bigtiff=side_px > 60_000) as writer:
        for scale in LEVELS:
            side = side_px // scale
            if side < TILE_PX:
                break
            reduced = [_turned(patch, scale) for patch in patches]
            writer.write(
                _tiles(reduced, choice, side), shape=(side, side, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX),
                photometric="rgb", subsampling=(2, 2), compression="jpeg", compressionargs={"level": quality},
                description=f"{about}|AppMag = {round(10 / mpp)}|MPP = {mpp:.4f}", metadata=None,
                subfiletype=int(scale > 1), maxworkers=1,
            )  # fmt: skip
    return path


def _patch(rng: np.random.Generator, label: str) -> np.ndarray:
    """Tissue of one class, glass in corners at most, with a camera's noise: (2048, 2048, 3) uint8."""
    drawn = pathology.draw(rng, label)[192:-192, 192:-192]
    stain = rng.normal(0, _NOISE, (*drawn.shape[:2], 1)) + rng.normal(0, _NOISE / 2, drawn.shape)
    coarse = Image.fromarray(np.clip(drawn + stain, 0, 255).astype(np.uint8))
    picture = np.asarray(coarse.resize((_PATCH_PX, _PATCH_PX), Image.Resampling.BICUBIC))
    camera = rng.integers(-_CAMERA, _CAMERA + 1, (_PATCH_PX, _PATCH_PX, 1), dtype=np.int16)
    return np.clip(picture + camera, 0, 255).astype(np.uint8)


def _turned(patch: np.ndarray, scale: int) -> list[np.ndarray]:
    """A patch reduced, in its eight orientations."""
    small = np.asarray(Image.fromarray(patch).reduce(scale)) if scale > 1 else patch
    return [np.rot90(each, turns) for each in (small, small[:, ::-1]) for turns in range(4)]


def _tiles(patches: list[list[np.ndarray]], choice: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """The level's tiles, row by row, full ones at the edges too."""
    step = patches[0][0].shape[0]
    flat = [each for eight in patches for each in eight]
    # Either a tile lies within one patch, or it is made of whole ones.
    part = min(step, TILE_PX)
    count = -(-side // TILE_PX)
    for row in range(count):
        for column in range(count):
            tile = np.full((TILE_PX, TILE_PX, 3), 255, np.uint8)
            for y in range(0, TILE_PX, part):
                for x in range(0, TILE_PX, part):
                    top, y_in = divmod(row * TILE_PX + y, step)
                    left, x_in = divmod(column * TILE_PX + x, step)
                    if top < len(choice) and left < len(choice):
                        chosen = flat[choice[top, left]]
                        tile[y : y + part, x : x + part] = chosen[y_in : y_in + part, x_in : x_in + part]
            yield tile


def main() -> None:
    """Make one slide and say what it is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--side", type=int, default=20_000, metavar="PX")
    parser.add_argument("--mpp", type=float, default=0.25, metavar="UM")
    parser.add_argument("--quality", type=int, default=85, metavar="Q")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    asked = parser.parse_args()
    made = make_slide(asked.path, asked.side, asked.mpp, asked.quality, asked.seed)
    size = made.stat().st_size
    print(f"{size} bytes, {size / asked.side**2:.3f} a px of level 0")


if __name__ == "__main__":
    main()
