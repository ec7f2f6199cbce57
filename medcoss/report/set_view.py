"""A shard set described in figures: its manifest, some of its samples, statistics over all records."""

from __future__ import annotations

import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from medcoss.report.pictures import snippet, spread
from medcoss.shards.reader import ShardSet, Split

_MOST_CLASSES = 20
_LENGTH = "bytes a sample"
_CONVERSION = "statistics.json"
"""File of a converted set with figures of its making, such as the part of texts that was cut."""


def describe(shard_set: ShardSet, split: str, records: int) -> dict[str, Any]:
    """The manifest in short and up to `records` samples spread over `split`, JSON-ready.

    Raises `UsageError` if the set has no such split, `MedcossError` for damaged samples.
    """
    manifest = shard_set.manifest
    chosen = shard_set.split(split)
    return {
        "name": manifest.name,
        "kind": str(manifest.kind),
        "shape": list(manifest.spec.geometry.shape),
        "stored": [f"{f.name}: {f.encoding}, {f.dtype}, x {f.scale:g} + {f.offset:g}" for f in manifest.spec.fields],
        "normalisation": manifest.spec.normalisation,
        "vocabulary": manifest.spec.vocabulary,
        "splits": {
            name: {
                "samples": entry.samples,
                "subjects": entry.subjects,
                "shards": len(entry.shards),
                "bytes": sum(shard.bytes for shard in entry.shards),
            }
            for name, entry in manifest.splits.items()
        },
        "inputs": manifest.inputs,
        "settings": manifest.settings,
        "parent": manifest.parent,
        "salt_id": manifest.salt_id,
        "created_by": manifest.created_by,
        "fingerprint": manifest.fingerprint,
        "records": [
            chosen.record(position) | {"split": split, "content": content(chosen.read(position))}
            for position in spread(len(chosen), records)
        ],
    }


def content(data: bytes | np.ndarray[Any, Any]) -> str:
    """One line on a sample's data: the text's beginning, the picture's size, the volume's range."""
    if isinstance(data, np.ndarray):
        low, mean, high = data.min(), data.astype(np.float64).mean(), data.max()
        return f"volume {'x'.join(map(str, data.shape))} {data.dtype}, {low:g} to {high:g}, mean {mean:.4g}"
    if data.startswith((b"\xff\xd8", b"\x89PNG")):
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return f"{image.format} {image.width}x{image.height} {image.mode}, {len(data)} bytes"
    return snippet(data.decode("utf-8", errors="replace"), 160)


def statistics(shard_set: ShardSet, advance: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Per split: samples, subjects, bytes, how often each label occurs, and the spread of every number in `geometry`.

    With the figures the conversion left in the set, if any. Reads every record, no data; `advance` is called with 1 for
    each. Raises `MedcossError` for damaged records.
    """
    return {
        "name": shard_set.manifest.name,
        "kind": str(shard_set.manifest.kind),
        "conversion": json.loads(shard_set.file(_CONVERSION)) if _CONVERSION in shard_set.manifest.files else {},
        "splits": {name: _split_statistics(shard_set, name, advance) for name in shard_set.manifest.splits},
    }


def _split_statistics(shard_set: ShardSet, name: str, advance: Callable[[int], None] | None) -> dict[str, Any]:
    entry, split = shard_set.manifest.splits[name], shard_set.split(name)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    figures: dict[str, list[float]] = defaultdict(list)
    per_subject = Counter(_collect(split, labels, figures, advance))
    stored = sum(shard.bytes for shard in entry.shards)
    return {
        "samples": entry.samples,
        "subjects": entry.subjects,
        "bytes": stored,
        _LENGTH: round(stored / entry.samples) if entry.samples else None,
        "samples a subject": _spread_of(list(map(float, per_subject.values()))),
        "labels": {
            column: dict(counts.most_common()) if len(counts) <= _MOST_CLASSES else f"{len(counts)} different values"
            for column, counts in labels.items()
        },
        "geometry": {key: _spread_of(values) for key, values in figures.items()},
    }


def _collect(
    split: Split,
    labels: dict[str, Counter[str]],
    figures: dict[str, list[float]],
    advance: Callable[[int], None] | None,
) -> list[str]:
    subjects = []
    for position in range(len(split)):
        record = split.record(position)
        subjects.append(str(record["subject"]))
        for column, value in record["labels"].items():
            labels[column]["(none)" if value in (None, "") else str(value)] += 1
        for key, value in record["geometry"].items():
            values = value if isinstance(value, list) else [value]
            numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
            for place, number in enumerate(numbers):
                figures[f"{key}[{place}]" if isinstance(value, list) else key].append(number)
        if advance:
            advance(1)
    return subjects


def _spread_of(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    low, middle, high = np.percentile(values, (0, 50, 100))
    return {"min": round(float(low), 6), "median": round(float(middle), 6), "max": round(float(high), 6)}


def as_text(value: Any, indent: int = 0) -> str:
    """Nested dictionaries and lists as indented lines, a leaf a line."""
    lines: list[str] = []
    _lines(value, indent, lines)
    return "\n".join(lines) + "\n"


def _lines(value: dict[str, Any] | list[Any], indent: int, lines: list[str]) -> None:
    items = value.items() if isinstance(value, dict) else ((f"[{place}]", item) for place, item in enumerate(value))
    for key, item in items:
        if isinstance(item, dict) and item and all(not isinstance(leaf, dict | list) for leaf in item.values()):
            lines.append(" " * indent + f"{key}: " + ", ".join(f"{name} {_leaf(leaf)}" for name, leaf in item.items()))
        elif isinstance(item, list) and all(not isinstance(leaf, dict | list) for leaf in item):
            lines.append(" " * indent + f"{key}: " + (", ".join(map(_leaf, item)) or "-"))
        elif isinstance(item, dict | list) and item:
            lines.append(" " * indent + f"{key}:")
            _lines(item, indent + 2, lines)
        else:
            lines.append(" " * indent + f"{key}: {'-' if item in ({}, []) else _leaf(item)}")


def _leaf(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
