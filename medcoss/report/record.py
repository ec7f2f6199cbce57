"""What a run's folder says about itself, gathered for the report and for `medcoss status`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from medcoss.continual.run import Run
from medcoss.contracts import MedcossError
from medcoss.shards.manifest import MANIFEST, Manifest, read_manifest


@dataclass(frozen=True)
class Source:
    """What one source of a stage's batches measured: the stage's own set, or a buffer of `modality`."""

    modality: str
    is_replay: bool
    steps: list[int]
    pretext: list[float | None]
    distill: list[float | None]


@dataclass
class StageRecord:
    """A stage of a run: its state, its sets (None where they are gone), its buffer, and its training measurements."""

    name: str
    state: str
    """`done`, `started` or `to do`."""
    sets: list[tuple[str, Manifest | None]]
    """(folder, manifest) of each set trained on."""
    buffer: Manifest | None = None
    done: dict[str, Any] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    samples_per_s: float | None = None
    """Median over the logging steps, all ranks together."""
    data_wait_fraction: float | None = None
    """Mean share of a step's time spent waiting for data."""
    flops_utilisation: float | None = None
    peak_memory_bytes: int | None = None
    last_step: int = 0

    @property
    def modality(self) -> str:
        """Name of what is trained on, several joined by +."""
        return " + ".join(manifest.name if manifest else Path(folder).name for folder, manifest in self.sets)

    @property
    def samples(self) -> int | None:
        """Training samples over the sets, None if one is gone."""
        counts = [manifest.splits["train"].samples if manifest else None for _, manifest in self.sets]
        return None if None in counts else sum(count or 0 for count in counts)


def read_stages(run: Run) -> list[StageRecord]:
    """The stages of a run in order, whether trained or not. Raises `UsageError` if the folder holds no run."""
    return [_read_stage(run, name) for name in run.stage_names]


def _read_stage(run: Run, name: str) -> StageRecord:
    done = run.done(name)
    metrics = list(read_metrics(run.metrics_path(name)))
    own = (
        run.config.stages
        if run.config.continual.paradigm == "joint"
        else [stage for stage in run.config.stages if stage.name == name]
    )
    record = StageRecord(
        name=name,
        state="done" if done else "started" if run.stage_directory(name).is_dir() else "to do",
        sets=[(str(stage.path()), _manifest(stage.path())) for stage in own],
        buffer=_manifest(run.buffer_directory(name)),
        done=done or {},
        sources=_sources(metrics),
    )
    # Sources of one window share its figures: count each window once.
    windows = {line["step"]: line for line in metrics}.values()
    for figure in ("samples_per_s", "flops_utilisation"):
        known = [line[figure] for line in windows if line.get(figure) is not None]
        setattr(record, figure, median(known) if known else None)
    waits = [line["data_wait_fraction"] for line in windows if line.get("data_wait_fraction") is not None]
    record.data_wait_fraction = sum(waits) / len(waits) if waits else None
    record.peak_memory_bytes = max((line.get("peak_memory_bytes") or 0 for line in windows), default=0) or None
    record.last_step = max((line["step"] for line in windows), default=0)
    return record


def read_metrics(path: Path) -> Iterable[dict[str, Any]]:
    """The complete lines of a metrics.jsonl; a last line cut by a kill is left out, and so is a missing file's all.

    Raises `MedcossError` for a line that is no measurement.
    """
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8").rpartition("\n")[0]
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = json.loads(line)
            record["step"], record["modality"], record["loss"]
        except (ValueError, KeyError, TypeError) as error:
            raise MedcossError(f"{path}:{number}: no measurement ({error}): delete the line") from error
        yield record


def _sources(metrics: Iterable[dict[str, Any]]) -> list[Source]:
    grouped: dict[tuple[bool, str], list[dict[str, Any]]] = defaultdict(list)
    for line in metrics:
        replay = bool(line.get("is_replay", line["loss"].get("distill") is not None))
        grouped[replay, line["modality"]].append(line)
    return [
        Source(
            modality,
            replay,
            [line["step"] for line in lines],
            [line["loss"].get("pretext") for line in lines],
            [line["loss"].get("distill") for line in lines],
        )
        for (replay, modality), lines in sorted(grouped.items(), key=lambda item: item[0][0])
    ]


def _manifest(directory: Path) -> Manifest | None:
    return read_manifest(directory) if (directory / MANIFEST).is_file() else None
