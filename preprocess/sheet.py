"""What the QC page shows of samples and figures: pictures, texts and histograms as self-contained HTML."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from medcoss.contracts import Kind
from medcoss.shards import Sample

_SIDE_PX = 320
"""Width of a picture: twice what the page gives it, for sharp screens."""

_GAP_PX = 6
_INK, _FAINT = "#33658a", "#536273"


def figure(sample: Sample, kind: Kind) -> str:
    """A sample as a person recognises it: its picture, the middle planes of its volume, or its text."""
    labels = ", ".join(f"{name}: {value}" for name, value in sample.labels.items())
    about = " · ".join(filter(None, [f"{sample.key[:10]}…", labels]))
    if kind is Kind.SEQUENCE and isinstance(sample.data, bytes):
        text = html.escape(sample.data.decode()).replace("[DEID]", "<mark>[DEID]</mark>")
        return f"<figure><blockquote>{text}</blockquote><figcaption>{html.escape(about)}</figcaption></figure>"
    if isinstance(sample.data, np.ndarray):
        voxel = _voxel(sample)
        image = planes(sample.data, voxel)
        if voxel is not None:
            about += " · voxel " + " × ".join(f"{size:.3g}" for size in voxel) + " mm"
    else:
        image = Image.open(io.BytesIO(sample.data)).convert("RGB")
        image.thumbnail((_SIDE_PX, _SIDE_PX))
    caption = html.escape(about)
    return f"<figure>{picture(image, f'Sample {about}')}<figcaption>{caption}</figcaption></figure>"


def picture(image: Image.Image, says: str) -> str:
    """An `img` with the JPEG in it; `says` is its text for those who do not see it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return _img("jpeg", buffer.getvalue(), says, image.size)


def planes(volume: np.ndarray[Any, Any], voxel: tuple[float, float, float] | None) -> Image.Image:
    """A volume (D, H, W) by its three middle planes, in one grey range (its 0.5 and 99.5 percentiles).

    The first lies across the depth; below it are the two along it, depth upwards: side by side at half the scale, or
    under each other where the volume is thin. `voxel` is in mm in the order of the axes; cubes are assumed without it.
    """
    values = volume.astype(np.float32)
    low, high = np.percentile(values, [0.5, 99.5])
    grey = (np.clip((values - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)
    deep, tall, wide = (size * mm for size, mm in zip(volume.shape, voxel or (1.0, 1.0, 1.0), strict=True))
    middle = [size // 2 for size in volume.shape]
    thin = deep < 0.4 * min(wide, tall)
    scale = _SIDE_PX / wide
    below = _SIDE_PX / max(wide, tall) if thin else (_SIDE_PX - _GAP_PX) / (wide + tall)
    across = _plane(grey[middle[0]], wide * scale, tall * scale)
    front = _plane(grey[::-1, middle[1]], wide * below, deep * below)
    side = _plane(grey[::-1, :, middle[2]], tall * below, deep * below)
    left, top = (0, front.height + _GAP_PX) if thin else (front.width + _GAP_PX, 0)
    under = across.height + _GAP_PX
    shown = Image.new("L", (_SIDE_PX, under + top + side.height), 255)
    shown.paste(across, (0, 0))
    shown.paste(front, (0, under))
    shown.paste(side, (left, under + top))
    return shown


def histograms(figures: Mapping[str, Sequence[float]]) -> str:
    """Each figure's distribution with its number, median and range in words; those of one value in words alone.

    Values that are not finite are counted, not drawn.
    """
    charts, words = [], []
    for name, values in figures.items():
        every = np.asarray(values, dtype=np.float64)
        array = every[np.isfinite(every)]
        lost = f", {every.size - array.size:,} not finite" if every.size > array.size else ""
        if not array.size:
            words.append((name, f"no values{lost}"))
            continue
        low, median, high = (f"{value:.4g}" for value in np.percentile(array, [0, 50, 100]))
        if low == high:
            words.append((name, f"always {low} (values: {array.size:,}{lost})"))
            continue
        told = f"{array.size:,} values, {low} to {high}, median {median}{lost}"
        chart = _img("png", draw_histogram(name, array), f"Histogram of {name}: {told}", (440, 240))
        charts.append(f"<figure>{chart}<figcaption>{html.escape(told)}</figcaption></figure>")
    listed = "".join(f"<li>{html.escape(f'{name}: {told}')}</li>" for name, told in words)
    return f'<div class="charts">{"".join(charts)}</div>' + (f"<ul>{listed}</ul>" if listed else "")


def draw_histogram(name: str, array: np.ndarray[Any, np.dtype[np.float64]]) -> bytes:
    """PNG of 880 x 480 px of finite values; whole numbers get a bar each where there are few."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only a finished run needs it
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if np.ptp(array) <= 1e-9 * np.max(np.abs(array)):
        array = np.full(array.shape, array[0])  # rounding noise alone cannot be cut into bins
    drawing = Figure(figsize=(4.4, 2.4), dpi=200, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    whole = bool(np.all(array == np.round(array))) and np.ptp(array) <= 40
    bars = int(np.clip(2 * np.sqrt(array.size), 10, 40))
    edges: int | list[float] = [float(x) for x in np.arange(array.min() - 0.5, array.max() + 1.5)] if whole else bars
    axes.hist(array, bins=edges, color=_INK, rwidth=0.9 if whole else None)
    axes.set_title(name, fontsize=10, loc="left")
    axes.set_ylabel("count", color=_FAINT)
    axes.tick_params(colors=_FAINT)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _voxel(sample: Sample) -> tuple[float, float, float] | None:
    sizes = sample.geometry.get("voxel_mm")
    if not isinstance(sizes, list) or len(sizes) != 3 or not all(0 < size < 1e3 for size in sizes):
        return None
    return float(sizes[0]), float(sizes[1]), float(sizes[2])


def _plane(pixels: np.ndarray[Any, Any], width: float, height: float) -> Image.Image:
    # However odd the voxels, a plane stays visible and of a size that a page can hold.
    size = tuple(min(max(round(side), 8), 2 * _SIDE_PX) for side in (width, height))
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((size[0], size[1]), Image.Resampling.BILINEAR)


def _img(kind: str, content: bytes, says: str, size: tuple[int, int]) -> str:
    code = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(says)}" width="{size[0]}" height="{size[1]}" src="data:image/{kind};base64,{code}">'
