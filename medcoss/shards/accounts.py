"""What became of each input file: `outcomes.parquet` in a set, and beside it `DIR.private`, which stays at the site.

`preprocess` writes both; here is what taking a patient out of a set changes in them.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcoss.atomic import atomic_file

OUTCOMES = "outcomes.parquet"
COLUMNS = ("input_id", "unit_id", "key_prefix", "n_samples", "status", "reason", "message")
PRIVATE_SUFFIX = ".private"
INPUTS = "inputs.csv"
DEEDS = "erasures.csv"

ERASED = "erased"
"""The reason that `outcomes.parquet` gives for a file whose samples were taken out again."""

_DEED_COLUMNS = ("time", "subject", "samples", "files", "fingerprint_before", "fingerprint_after")


def private_directory(out: Path) -> Path:
    """`DIR.private` beside `DIR`."""
    return out.with_name(out.name + PRIVATE_SUFFIX)


@dataclass(frozen=True)
class Withdrawal:
    """Rows of `outcomes.parquet` that change: `files` have no sample left, `inputs` are all files of their units.

    `unplaced` samples came of tables that gave several: which row they are counted in is not known.
    """

    table: Any
    files: int
    inputs: frozenset[str]
    unplaced: int


def withdraw(path: Path, keys: Iterable[str]) -> Withdrawal:
    """The table at `path` without the samples `keys`; nothing is written. Raises `OSError` if it cannot be read."""
    import pyarrow.parquet as pq  # seconds to import on a cold disk

    table = pq.read_table(path)
    gone = Counter(key.rpartition("-")[0] for key in keys)
    rows = table.to_pylist()
    units: set[str] = set()
    files = 0
    for row in rows:
        count = gone.get(row["key_prefix"], 0) if row["key_prefix"] else 0
        if row["status"] != "written" or not count:
            continue
        units.add(row["unit_id"])
        if row["n_samples"] in (0, count):
            row |= {"key_prefix": "", "n_samples": 0, "status": "skipped", "reason": ERASED, "message": ""}
            files += 1
        else:
            row["n_samples"] -= count
    known = {row["key_prefix"] for row in table.to_pylist()}
    unplaced = sum(count for prefix, count in gone.items() if prefix not in known)
    shared = [row for row in rows if row["status"] == "written" and not row["key_prefix"] and row["n_samples"]]
    if unplaced and len(shared) == 1 and shared[0]["n_samples"] >= unplaced:
        shared[0]["n_samples"] -= unplaced
        if not shared[0]["n_samples"]:
            shared[0] |= {"status": "skipped", "reason": ERASED, "message": ""}
            units.add(shared[0]["unit_id"])
            files += 1
        unplaced = 0
    inputs = frozenset(row["input_id"] for row in rows if row["unit_id"] and row["unit_id"] in units)
    return Withdrawal(type(table).from_pylist(rows, schema=table.schema), files, inputs, unplaced)


def write_table(path: Path, table: Any) -> None:
    """Write a table of outcomes, with a checksum in each page, whole or not at all."""
    import pyarrow.parquet as pq

    with atomic_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def inputs_named(directory: Path, names: Collection[str]) -> frozenset[str]:
    """Ids of the inputs in `directory`/inputs.csv whose path bears one of `names` as a word."""
    words = [re.compile(rf"(?<![A-Za-z0-9]){re.escape(name.strip())}(?![A-Za-z0-9])") for name in names if name.strip()]
    return frozenset(
        row["input_id"] for row in _rows(directory / INPUTS) if any(word.search(row["path"]) for word in words)
    )


def forget_paths(directory: Path, inputs: Collection[str]) -> None:
    """Empty the paths of `inputs` in `directory`/inputs.csv; their ids and sizes stay, so that the files are known."""
    rows = _rows(directory / INPUTS)
    if any(row["path"] and row["input_id"] in inputs for row in rows):
        for row in rows:
            row["path"] = "" if row["input_id"] in inputs else row["path"]
        write_private_table(directory / INPUTS, tuple(rows[0]), rows)


def emptied(directory: Path) -> frozenset[str]:
    """Ids of the inputs in `directory`/inputs.csv whose paths were emptied."""
    return frozenset(row["input_id"] for row in _rows(directory / INPUTS) if not row["path"])


def record_deeds(directory: Path, deeds: Iterable[Mapping[str, Any]]) -> None:
    """Add rows to `directory`/erasures.csv: who, by token, went when, out of which state of the set. Once each."""
    rows: list[Mapping[str, Any]] = list(_rows(directory / DEEDS))
    known = {(row["subject"], row["fingerprint_before"]) for row in rows}
    new = [deed for deed in deeds if (deed["subject"], deed["fingerprint_before"]) not in known]
    if new:
        write_private_table(directory / DEEDS, _DEED_COLUMNS, [*rows, *new])


def write_private_table(path: Path, columns: tuple[str, ...], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV that its owner alone can read (mode 600, folder 700), whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with atomic_file(path) as temporary:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return []
    return list(csv.DictReader(io.StringIO(text, newline="")))
