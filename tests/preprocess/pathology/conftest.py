"""Made slides, and a conversion of all files of a folder as the engine does it."""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from preprocess.conversion import Conversion, Discovery, InputFile, Refusal
from preprocess.modalities import pathology
from preprocess.reasons import REASONS
from tests.support.discovery import discover


class Kit:
    """What the tests of slides share."""

    PINK, GLASS = (214, 130, 178), (243, 242, 244)

    @staticmethod
    def options(*words: str) -> dict[str, Any]:
        parser = argparse.ArgumentParser()
        pathology.add_arguments(parser)
        return pathology.settings(parser.parse_args(words))

    @staticmethod
    def write_slide(path: Path, pixels: np.ndarray, mpp: float | None, levels: int = 1, **extra: Any) -> Path:
        """A tiled TIFF, lossless unless `extra` says otherwise, each level half the one before."""
        about = {"photometric": "rgb", "compression": "zlib", "metadata": None} | extra
        with tifffile.TiffWriter(path) as writer:
            for level in range(levels):
                scale = 2**level
                kept = np.asarray(Image.fromarray(pixels).reduce(scale)) if scale > 1 else pixels
                places = {} if mpp is None else {"resolution": (1e4 / mpp / scale,) * 2, "resolutionunit": "CENTIMETER"}
                writer.write(kept, tile=(256, 256), subfiletype=int(level > 0), **places, **about)
        return path

    def write_svs(self, path: Path, pixels: np.ndarray, mpp: float, levels: int = 1) -> Path:
        """As Aperio's: JPEG tiles, colour at half resolution, the resolution in the description."""
        return self.write_slide(
            path, pixels, None, levels, compression="jpeg", compressionargs={"level": 90}, subsampling=(2, 2),
            description=f"Aperio Image Library v12.0\r\nmade|AppMag = 20|MPP = {mpp}",
        )  # fmt: skip

    def stained(self, height: int, width: int, seed: int = 0) -> np.ndarray:
        """Pink tissue with a texture, all over."""
        noise = np.random.default_rng(seed).integers(-25, 25, (height, width, 1))
        return np.clip(np.array(self.PINK) + noise, 0, 255).astype(np.uint8)

    def glass(self, height: int, width: int, seed: int = 1) -> np.ndarray:
        """Empty glass with the camera's noise."""
        noise = np.random.default_rng(seed).integers(-4, 5, (height, width, 1))
        return np.clip(np.array(self.GLASS) + noise, 0, 255).astype(np.uint8)

    @staticmethod
    def discover(root: Path, settings: dict[str, Any]) -> Discovery:
        """Units and outcomes as the engine finds them."""
        paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
        files = [InputFile(path, path.relative_to(root).as_posix()) for path in paths]
        return discover(pathology, files, settings)

    def convert(self, root: Path, settings: dict[str, Any] | None = None) -> Conversion:
        """All files below root; conversions merged, counts of all files summed under "". A refusal counts for all
        files of its unit.
        """
        chosen = settings or self.options()
        discovery = self.discover(root, chosen)
        merged = Conversion([], outcomes=dict(discovery.outcomes))
        counts: Counter[str] = Counter()
        for unit in discovery.units:
            try:
                result = pathology.convert(unit, chosen)
            except Refusal as refusal:
                result = Conversion([], outcomes={file.relative: refusal.outcome for file in unit.files})
            merged.pieces += result.pieces
            merged.outcomes |= result.outcomes
            merged.attachments += result.attachments
            for numbers in result.counts.values():
                counts.update(numbers)
        merged.counts = {"": dict(counts)}
        assert {outcome.reason for outcome in merged.outcomes.values()} <= {"", *REASONS}
        return merged

    @staticmethod
    def reasons(result: Conversion) -> dict[str, str]:
        return {name: outcome.reason for name, outcome in result.outcomes.items() if outcome.reason}

    @staticmethod
    def places(result: Conversion) -> set[tuple[Any, Any]]:
        """(y, x) in px of level 0 of all tiles."""
        return {(piece.geometry["y_level0"], piece.geometry["x_level0"]) for piece in result.pieces}

    @staticmethod
    def pixels(data: Any) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(data)))

    @staticmethod
    def spoil(path: Path, page: int, tiles: Sequence[int]) -> None:
        """Overwrite the beginning of some tiles of a page."""
        with tifffile.TiffFile(path) as file:
            offsets = [file.pages[page].dataoffsets[tile] for tile in tiles]
        content = bytearray(path.read_bytes())
        for offset in offsets:
            content[offset : offset + 64] = bytes(64)
        path.write_bytes(content)


@pytest.fixture
def kit() -> Kit:
    return Kit()
