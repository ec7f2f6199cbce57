"""Reports: cleaning alone, and the whole command with the training of the tokenizer."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.preprocess_rows.measure import Command, Remark, Row, Setting, in_turns, start_seconds, where_time_goes
from preprocess.phantoms.report import CLASSES, LEXICONS

TARGET, SCALING_TARGET = 5000.0, 1.8
_FILES = 8


def rows(setting: Setting) -> Iterator[Row | Remark]:
    """The rows of reports."""
    count = 1600 if setting.quick else 40_000
    made = _make(setting.made("reports"), count)
    yield Remark(f"report inputs: {count} made reports of some 60 words in {_FILES} CSV files")
    yield from _rates(setting, "made", made)
    real = setting.real("report/iu_xray/indiana_reports.csv")
    if real is not None:
        yield from _rates(setting, "real (Indiana)", [real])
    scratch = setting.made("reports scaling")
    command = Command("report", tuple(made), scratch)
    works = {"two": command.with_workers(2), "one": command.with_workers(1)}
    times = in_turns(works, setting.repeats)
    start = {workers: start_seconds(setting, "report", workers, lambda folder: _make(folder, 80)) for workers in (1, 2)}
    yield times.row(
        "reports, whole command, 2 workers : 1", "reports/s", "two", "one", target=SCALING_TARGET,
        start=(start[2], start[1]),
    )  # fmt: skip
    yield Remark("reports: the tokenizer's training and the shards are the leading process's work, on all cores or one")


def _rates(setting: Setting, title: str, files: list[Path]) -> Iterator[Row | Remark]:
    command = Command("report", tuple(files), setting.made(f"reports of {title}"))
    clean = command.here(store=False)
    times = in_turns({"cleaning": clean}, setting.repeats)
    yield Row(f"reports, {title}: cleaning, in process", "reports/s", times.rate("cleaning"), target=TARGET)
    times = in_turns({"command": command.with_workers(2)}, setting.repeats)
    yield Row(f"reports, {title}: whole command, 2 workers", "reports/s", times.rate("command"), target=TARGET)
    yield Remark(f"reports, {title}, cleaning: {where_time_goes(clean)}")


def _make(folder: Path, count: int) -> list[Path]:
    """Tables with columns study, findings and impression; identifiers here and there as in real ones."""
    rng = np.random.default_rng(count)
    words = np.array(sorted(word for name in CLASSES for word in LEXICONS[name]))
    files = [folder / f"{number}.csv" for number in range(_FILES)]
    for number, path in enumerate(files):
        with path.open("w", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            table.writerow(("study", "findings", "impression"))
            for row in range(count // _FILES):
                findings = ". ".join(_sentence(rng, words) for _ in range(7))
                impression = f"1. {_sentence(rng, words)}. 2. Nodule of {rng.integers(1, 9)}.{rng.integers(1, 9)} cm."
                if row % 5 == 0:
                    impression += f" Discussed with Dr. Miller on {rng.integers(1, 12)}/{rng.integers(1, 28)}/2019."
                table.writerow((f"{number}-{row}", findings + ".", impression))
    return files


def _sentence(rng: np.random.Generator, words: np.ndarray) -> str:
    return " ".join(rng.choice(words, int(rng.integers(5, 10)))).capitalize()
