"""report.html of a run: what was run, how it learnt, what it kept and rehearses; one file that needs no network."""

from __future__ import annotations

import platform
from collections import Counter
from html import escape
from pathlib import Path

from medcoss import atomic
from medcoss.continual.run import Run
from medcoss.contracts import Kind, MedcossError
from medcoss.evaluate.retention import Retention, read_retention, retention_path
from medcoss.model.weights import load_model
from medcoss.report import plots
from medcoss.report.page import Section, figure, number, page, picture, table
from medcoss.report.pictures import contact_sheet, snippet, spread, thumbnails
from medcoss.report.reconstruct import reconstructions
from medcoss.report.record import StageRecord, read_stages
from medcoss.report.retention_view import retention_html
from medcoss.shards.manifest import MANIFEST
from medcoss.shards.reader import ShardSet

_SHEET_SAMPLES = {Kind.IMAGE: 40, Kind.VOLUME: 40, Kind.SEQUENCE: 8}
_SHEET_COLUMNS = 10
_THUMBNAIL_PX = 84


def write_report(run: Run, out: Path | None = None) -> Path:
    """Write the report of `run` to `out` (default: its report.html), atomically; returns its path.

    It shows whatever the run has so far. Raises `UsageError` if there is no run, `MedcossError` for damaged files.
    """
    stages = read_stages(run)
    retention = read_retention(retention_path(run.directory))
    out = out or run.directory / "report.html"
    sections = [
        Section("retention", "What the model knows after each stage", _retention(retention)),
        Section("run", "What was run", _what_ran(run, stages)),
        Section("losses", "Losses", _losses(stages)),
        Section("reconstructions", "Pretext task on held-out samples", _reconstructions(run, stages)),
        Section("buffers", "Rehearsal buffers", _buffers(run, stages)),
        Section("throughput", "Throughput", _throughput(stages)),
        Section("configuration", "Configuration", _configuration(run, stages)),
    ]
    done = sum(stage.state == "done" for stage in stages)
    subtitle = f"{run.config.continual.paradigm} pre-training, {done} of {len(stages)} stages finished"
    text = page(f"Run {run.directory.resolve().name}", subtitle, _cards(stages, retention), sections)
    atomic.write_bytes(out, text.encode())
    return out


def _cards(stages: list[StageRecord], retention: Retention | None) -> list[tuple[str, str]]:
    done = [stage for stage in stages if stage.state == "done"]
    cards = [(f"{len(done)} / {len(stages)}", "stages finished")]
    seconds = sum(float(stage.done.get("seconds", 0)) for stage in done)
    cards.append((_duration(seconds), "training time"))
    cards.append((str(sum(stage.done.get("steps", stage.last_step) for stage in stages)), "steps"))
    if retention and retention.stages:
        average = retention.average()[retention.stages[-1]]
        forgotten = [value for value in retention.forgetting().values() if value is not None]
        untrained = [value for value in retention.random_encoder.values() if value is not None]
        cards.append((number(average, "{:.3f}"), "kNN accuracy, average after the last stage"))
        cards.append(
            (number(sum(untrained) / len(untrained) if untrained else None, "{:.3f}"), "random encoder, average")
        )
        cards.append((number(sum(forgotten) / len(forgotten) if forgotten else None, "{:+.3f}"), "forgetting, average"))
    return cards


def _retention(retention: Retention | None) -> str:
    if retention is None or not retention.stages:
        return '<p class="soft">Not evaluated yet: run <code>medcoss evaluate RUN</code>.</p>'
    predicted = ", ".join(f"{modality}: {label}" for modality, label in retention.labels.items() if label)
    return (
        f"{retention_html(retention)}<p><small>Accuracy of a {retention.neighbours}-nearest-neighbour vote by cosine "
        "similarity; the bank is the train split, the queries the test split (other patients). Columns are modalities, "
        "rows the models after each stage; nothing is trained on the labels. A stage has taught something only where "
        f"it beats the random encoder (mean of seeds {', '.join(map(str, retention.seeds))}). Forgetting is the best "
        "earlier score minus the last. With n queries an accuracy is known to about ± 1/√n: less is noise. "
        f"Predicted: {escape(predicted) or 'nothing'}.</small></p>"
    )


def _what_ran(run: Run, stages: list[StageRecord]) -> str:
    header = [
        "stage",
        "state",
        "modality",
        "kind",
        "train samples",
        "patients",
        "steps",
        "time",
        "buffer",
        "model",
        "set",
    ]
    rows = []
    for stage in stages:
        manifests = [manifest for _, manifest in stage.sets if manifest]
        subjects = sum(manifest.splits["train"].subjects for manifest in manifests if "train" in manifest.splits)
        rows.append(
            [
                stage.name,
                stage.state,
                stage.modality,
                " + ".join(dict.fromkeys(str(manifest.kind) for manifest in manifests)) or "–",
                number(stage.samples, "{}"),
                number(subjects if manifests else None, "{}"),
                str(stage.done.get("steps", stage.last_step or "–")),
                _duration(float(stage.done["seconds"])) if "seconds" in stage.done else "–",
                number(stage.buffer.splits["train"].samples if stage.buffer else None, "{}"),
                str(stage.done.get("model_sha256", "–"))[:10],
                " ".join(manifest.fingerprint[:10] for manifest in manifests) or "–",
            ]
        )
    return table(header, rows, numbers=(4, 5, 6, 7, 8))


def _losses(stages: list[StageRecord]) -> str:
    palette = plots.colours([source.modality for stage in stages for source in stage.sources])
    shown = []
    for stage in stages:
        data = plots.losses(stage, palette)
        if data:
            shown.append(figure(f"stage {stage.name}", picture(data, f"losses of stage {stage.name}")))
    note = (
        "<p><small>Pretext loss of images and volumes is against per-patch normalised pixels: one that stays near 1 "
        "has learnt nothing but the mean. Of text it is the cross-entropy in nats.</small></p>"
    )
    return "".join(shown) + note if shown else ""


def _reconstructions(run: Run, stages: list[StageRecord]) -> str:
    parts = []
    for stage in stages:
        if not run.model_path(stage.name).is_file():
            continue
        model = load_model(run.model_path(stage.name))
        for folder, manifest in stage.sets:
            if manifest is not None:
                shown = reconstructions(model, ShardSet.open(folder), run.config.train)
                parts.append(f"<h3>{escape(manifest.name)}, after stage {escape(stage.name)}</h3>{shown}")
    note = (
        "<p><small>Each stage's own model on its own modality: decoder and heads start anew at every stage. Predicted "
        "patches are shown with the true patch's mean and spread, which the loss leaves out.</small></p>"
    )
    return "".join(parts) + note if parts else ""


def _buffers(run: Run, stages: list[StageRecord]) -> str:
    parts = []
    for stage in stages:
        directory = run.buffer_directory(stage.name)
        if stage.buffer is None or not (directory / MANIFEST).is_file():
            continue
        parts.append(f"<h3>{escape(stage.name)}</h3>{_buffer(ShardSet.open(directory))}")
    return "".join(parts)


def _buffer(buffer: ShardSet) -> str:
    split, parent = buffer.split("train"), buffer.manifest.parent or {}
    positions = spread(len(split), _SHEET_SAMPLES[buffer.spec.kind])
    facts = [f"{len(split)} samples of {buffer.manifest.splits['train'].subjects} patients"]
    facts += [f"{name} {parent[name]}" for name in ("policy", "ratio", "centers", "filled") if name in parent]
    classes = _classes(buffer)
    if classes:
        facts.append("labels " + ", ".join(f"{label}: {count}" for label, count in classes))
    caption = "; ".join(facts) + f"; {len(positions)} shown"
    if buffer.spec.kind is Kind.SEQUENCE:
        texts = [split.read(position) for position in positions]
        shown = [snippet(text.decode("utf-8", errors="replace")) for text in texts if isinstance(text, bytes)]
        return figure(caption, "".join(f'<div class="snippet">{escape(text)}</div>' for text in shown))
    pictures = thumbnails(split, buffer.spec.kind, positions, _THUMBNAIL_PX)
    return figure(
        caption, picture(contact_sheet(pictures, _SHEET_COLUMNS, _THUMBNAIL_PX), "contact sheet", kind="jpeg")
    )


def _classes(buffer: ShardSet) -> list[tuple[str, int]]:
    """How often each value of the first label column occurs, most frequent first; at most 12 values."""
    split = buffer.split("train")
    labels = [split.record(position)["labels"] for position in range(len(split))]
    column = next((name for values in labels for name in values), None)
    counts = Counter(str(values[column]) for values in labels if values.get(column) not in (None, ""))
    return counts.most_common() if len(counts) <= 12 else []


def _throughput(stages: list[StageRecord]) -> str:
    data = plots.throughput(stages)
    if data is None:
        return ""
    rows = [
        [
            stage.name,
            number(stage.samples_per_s),
            number(None if stage.data_wait_fraction is None else 100 * stage.data_wait_fraction, "{:.1f} %"),
            number(None if stage.flops_utilisation is None else 100 * stage.flops_utilisation, "{:.1f} %"),
            number(None if stage.peak_memory_bytes is None else stage.peak_memory_bytes / 2**30, "{:.2f} GiB"),
        ]
        for stage in stages
        if stage.samples_per_s is not None
    ]
    header = [
        "stage",
        "samples/s (median, all ranks)",
        "waiting for data",
        "of possible operations",
        "peak memory, a rank",
    ]
    return picture(data, "throughput") + table(header, rows, numbers=range(1, 5))


def _configuration(run: Run, stages: list[StageRecord]) -> str:
    versions: dict[str, str] = {}
    for stage in stages:
        versions |= {str(name): str(version) for name, version in (stage.done.get("versions") or {}).items()}
    versions.setdefault("python", platform.python_version())
    try:
        text = run.config_path.read_text(encoding="utf-8")
    except OSError as error:
        raise MedcossError(f"{run.config_path}: {error.strerror}") from error
    return table(["program", "version"], sorted(versions.items())) + (
        f"<details><summary>run.toml</summary><pre>{escape(text)}</pre></details>"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
