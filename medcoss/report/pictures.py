"""Samples as pictures: contact sheets of a shard set, and grey or colour views of model inputs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medcoss.contracts import Kind
from medcoss.shards.reader import Split

Pixels = NDArray[np.uint8]
"""(H, W) grey or (H, W, 3) colour."""


def spread(count: int, wanted: int) -> list[int]:
    """Up to `wanted` positions spread evenly over 0 … count - 1."""
    return sorted({int(place) for place in np.linspace(0, count - 1, min(wanted, count)).round()}) if count else []


def middle_slice(volume: NDArray[Any]) -> NDArray[Any]:
    """The middle (H, W) of a volume (D, H, W): anterior on top and the patient's left to the right, as stored."""
    return np.asarray(volume[volume.shape[0] // 2])


def grey(values: NDArray[Any], low: float, high: float) -> Pixels:
    """Numbers to 8-bit grey, `low` black and `high` white."""
    scaled = (values.astype(np.float32) - low) / max(high - low, 1e-6)
    return np.asarray(np.clip(scaled, 0, 1) * 255, dtype=np.uint8)


def display_range(values: NDArray[Any]) -> tuple[float, float]:
    """A window that shows most of a volume: its 1st and 99th percentile."""
    low, high = np.percentile(values.astype(np.float32), (1, 99))
    return float(low), float(high)


def thumbnails(split: Split, kind: Kind, positions: Sequence[int], side_px: int) -> list[Image.Image]:
    """Samples of an image or volume split as square pictures."""
    pictures: list[Image.Image] = []
    for position in positions:
        data = split.read(position)
        if isinstance(data, bytes):
            image: Image.Image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        else:
            image = Image.fromarray(grey(middle_slice(data), *display_range(data)))
        image = image.convert("RGB" if image.mode != "L" else "L")
        image.thumbnail((side_px, side_px))
        pictures.append(image)
    return pictures


def contact_sheet(pictures: Sequence[Image.Image], columns: int, side_px: int, gap_px: int = 4) -> bytes:
    """Pictures in a grid, as JPEG bytes."""
    columns = max(1, min(columns, len(pictures)))
    rows = -(-len(pictures) // columns)
    step = side_px + gap_px
    sheet = Image.new("RGB", (columns * step - gap_px, max(rows, 1) * step - gap_px), "white")
    for place, picture in enumerate(pictures):
        x, y = place % columns * step, place // columns * step
        sheet.paste(picture, (x + (side_px - picture.width) // 2, y + (side_px - picture.height) // 2))
    return jpeg(sheet)


def jpeg(image: Image.Image) -> bytes:
    """JPEG bytes, quality 88."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def png(pixels: Pixels) -> bytes:
    """PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def snippet(text: str, characters: int = 260) -> str:
    """The beginning of a text, cut at a word."""
    text = " ".join(text.split())
    return text if len(text) <= characters else text[:characters].rsplit(" ", 1)[0] + " …"
