"""`qc/index.html`: what a person looks at before training on a set. One file, no link to anything outside.

It shows what the shards hold (a contact sheet of samples), the distributions that betray a wrong setting, and why
files were left out.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medcoss.contracts import SPLITS, Kind
from medcoss.shards import Manifest, Sample
from preprocess.reasons import REASONS

SHEET_SAMPLES = 30
_TILE_PX = 160
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#1c2733;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse}td,th{padding:.25rem .8rem;
text-align:left;border-bottom:1px solid #d9dfe5;vertical-align:top}td.n{text-align:right}
.sheet{display:flex;flex-wrap:wrap;gap:.5rem}figure{margin:0;width:160px}figcaption{font-size:.72rem;color:#536273;
overflow-wrap:anywhere}figure img{width:160px;background:#000}blockquote{margin:0 0 .7rem;padding-left:.7rem;
border-left:3px solid #c4ced8;width:100%}.failed{color:#a3231b}
"""


def write_qc(
    directory: Path, manifest: Manifest, sheet: Sequence[Sample], figures: Mapping[str, Sequence[float]],
    reasons: Sequence[tuple[str, str, int]], duplicates: int, inputs: Sequence[str],
    counts: Mapping[str, int],
) -> None:  # fmt: skip
    """Write `directory`/index.html. `sheet` are samples as stored, `figures` histograms' values by name with unit,
    `inputs` the names of the attachments, which lie in `directory`/inputs already, `counts` those of
    rows and the like inside the files.
    """
    parts = [
        f"<h1>{manifest.name}: {sum(entry.samples for entry in manifest.splits.values())} samples</h1>",
        _splits(manifest, duplicates),
        "<h2>Files left out</h2>",
        _reasons(reasons),
        _counts(counts),
        "<h2>Samples as stored</h2>",
        '<div class="sheet">' + "".join(_tile(sample, manifest.kind) for sample in sheet) + "</div>",
        _inputs(inputs),
        "<h2>Distributions</h2>",
        *(_picture(name, _histogram(name, values)) for name, values in figures.items()),
    ]
    title = f"{manifest.name} {manifest.fingerprint[:12]}"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>QC {title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )
    (directory / "index.html").write_text(page, encoding="utf-8")


def _splits(manifest: Manifest, duplicates: int) -> str:
    rows = "".join(
        f'<tr><td>{name}<td class="n">{entry.samples}<td class="n">{entry.subjects}<td class="n">{len(entry.shards)}'
        for name, entry in ((name, manifest.splits[name]) for name in SPLITS)
    )
    counts = ", ".join(f"{manifest.inputs[name]} {name}" for name in ("read", "written", "skipped", "failed"))
    return (
        f"<table><tr><th>split<th>samples<th>subjects<th>shards{rows}</table><p>Files: {counts}. "
        f"Copies left out: {duplicates}. Fingerprint <code>{manifest.fingerprint}</code></p>"
    )


def _reasons(reasons: Sequence[tuple[str, str, int]]) -> str:
    if not reasons:
        return "<p>None.</p>"
    rows = "".join(
        f'<tr class="{status}"><td>{status}<td>{html.escape(reason)}<td class="n">{number}<td>'
        f"{html.escape(REASONS.get(reason, ''))}"
        for status, reason, number in reasons
    )
    return f"<table><tr><th>status<th>reason<th>files<th>meaning{rows}</table>"


def _counts(counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    rows = "".join(f'<tr><td>{html.escape(name)}<td class="n">{number}' for name, number in counts.items())
    return f"<h2>Inside the files</h2><table>{rows}</table>"


def _tile(sample: Sample, kind: Kind) -> str:
    labels = ", ".join(f"{name}: {value}" for name, value in sample.labels.items())
    caption = html.escape(f"{sample.key[:10]}… {labels}")
    if kind is Kind.SEQUENCE and isinstance(sample.data, bytes):
        return f"<blockquote>{html.escape(sample.data.decode())}<figcaption>{caption}</figcaption></blockquote>"
    image = middle_slice(sample.data) if isinstance(sample.data, np.ndarray) else Image.open(io.BytesIO(sample.data))
    image = image.convert("RGB")
    image.thumbnail((2 * _TILE_PX, 2 * _TILE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return f'<figure><img alt="" src="{source}"><figcaption>{caption}</figcaption></figure>'


def _inputs(inputs: Sequence[str]) -> str:
    pictures = [name for name in inputs if name.endswith(".jpg")][:SHEET_SAMPLES]
    if not pictures:
        return ""
    shown = "".join(
        f'<figure><a href="inputs/{name}"><img alt="" loading="lazy" src="inputs/{name}"></a>'
        f"<figcaption>{name[:10]}… {_others(name, inputs)}</figcaption></figure>"
        for name in pictures
    )
    return f'<h2>Inputs</h2><div class="sheet">{shown}</div>'


def _others(picture: str, inputs: Sequence[str]) -> str:
    stem = picture.partition(".")[0]
    beside = [name for name in inputs if name.startswith(stem) and name != picture]
    return " ".join(f'<a href="inputs/{name}">{name.partition(".")[2]}</a>' for name in beside)


def middle_slice(volume: np.ndarray[Any, Any]) -> Image.Image:
    """The middle slice of a volume (D, H, W) as an 8-bit image, grey values between its 0.5 and 99.5 percentiles."""
    values = volume[len(volume) // 2].astype(np.float32)
    low, high = np.percentile(values, [0.5, 99.5])
    scaled = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)
    return Image.fromarray((scaled * 255).astype(np.uint8))


def _histogram(name: str, values: Sequence[float]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second, and only a finished run needs it
    from matplotlib.figure import Figure

    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    if array.size and np.ptp(array) <= 1e-9 * np.max(np.abs(array)):
        array[:] = array[0]  # rounding noise alone cannot be cut into bins
    figure = Figure(figsize=(4.4, 2.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    whole = array.size > 0 and bool(np.all(array == np.round(array))) and np.ptp(array) <= 40
    edges: int | list[float] = [float(x) for x in np.arange(array.min() - 0.5, array.max() + 1.5)] if whole else 40
    axes.hist(array, bins=edges, color="#33658a")
    axes.set(title=name, ylabel="count")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _picture(name: str, png: bytes) -> str:
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
