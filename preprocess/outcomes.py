"""`outcomes.parquet`, a row a file; and `DIR.private/inputs.csv`, the only place that says which file an id is."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from medcoss.contracts import MedcossError
from medcoss.shards.accounts import INPUTS, emptied, write_private_table, write_table
from medcoss.shards.accounts import OUTCOMES as OUTCOMES
from medcoss.shards.accounts import private_directory as private_directory
from preprocess.assemble import FileFate
from preprocess.conversion import InputFile, Outcome, Status
from preprocess.inputs import file_bytes
from preprocess.reasons import REASONS


def write_outcomes(path: Path, fates: Iterable[FileFate]) -> None:
    """Write the rows in the order of their input ids. Raises `MedcossError` for a reason that is not in the list."""
    import pyarrow as pa  # seconds to import on a cold disk: not for --help

    rows = sorted(fates, key=lambda fate: fate.input_id)
    for fate in rows:
        if fate.outcome.reason and fate.outcome.reason not in REASONS:
            raise MedcossError(f"reason {fate.outcome.reason!r} is not in preprocess/reasons.py: add it there")
    table = pa.table(
        {
            "input_id": pa.array([fate.input_id for fate in rows], pa.string()),
            "unit_id": pa.array([fate.unit_id for fate in rows], pa.string()),
            "key_prefix": pa.array([fate.key_prefix for fate in rows], pa.string()),
            "n_samples": pa.array([fate.n_samples for fate in rows], pa.int64()),
            "status": pa.array([str(fate.outcome.status) for fate in rows], pa.string()),
            "reason": pa.array([fate.outcome.reason for fate in rows], pa.string()),
            "message": pa.array([fate.outcome.message for fate in rows], pa.string()),
        }
    )
    write_table(path, table)


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """What became of the inputs that a finished set has accounted for, by input id."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["input_id", "status", "reason", "message"])
    rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    return {name: Outcome(Status(status), reason, message) for name, status, reason, message in rows}


def count_statuses(fates: Iterable[FileFate]) -> dict[str, int]:
    """Numbers of files for the manifest: read, written, skipped, failed."""
    counts = Counter(fate.outcome.status for fate in fates)
    return {"read": sum(counts.values())} | {str(status): counts[status] for status in Status}


def count_reasons(outcomes: Iterable[Outcome]) -> list[tuple[str, str, int]]:
    """(status, reason, files) of all that were not written, or not the whole of them; most frequent first."""
    counts = Counter((str(outcome.status), outcome.reason) for outcome in outcomes if outcome.reason)
    return [(*name, number) for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def write_private(directory: Path, files: Mapping[str, InputFile], erased: Collection[str] = ()) -> None:
    """Write `inputs.csv` (input_id, path, bytes), readable by its owner alone.

    Without the paths of `erased` inputs, and of those whose paths were emptied before.
    """
    hidden = {*erased, *emptied(directory)}
    rows = (
        {"input_id": name, "path": "" if name in hidden else files[name].place,
         "bytes": file_bytes(files[name])}
        for name in sorted(files)
    )  # fmt: skip
    write_private_table(directory / INPUTS, ("input_id", "path", "bytes"), rows)


def read_private_sizes(directory: Path) -> dict[str, int]:
    """Bytes of each input when the set was made, by input id; empty if the table is gone."""
    try:
        with (directory / INPUTS).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return {row["input_id"]: int(row["bytes"]) for row in csv.DictReader(file)}
    except FileNotFoundError:
        return {}
