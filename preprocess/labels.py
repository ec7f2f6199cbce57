"""Tables beside the inputs: labels for evaluation, subjects and given splits, matched by file, folder or row id."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path, PurePosixPath

from medcoss.contracts import UsageError
from preprocess.conversion import InputFile, Refusal
from preprocess.readers.rows import DEFECTS, READ, Tally, fold
from preprocess.readers.tables import column_names, read_rows, table_form
from preprocess.split import split_name

SPLIT_COLUMN = "split"
_DOUBLE_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")


@dataclass(slots=True)
class Entry:
    """What the tables say of one input: labels in the order asked for, raw subject id, split."""

    labels: dict[str, str] = field(default_factory=dict)
    subject: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Table:
    """One table: its rows by id, the folder its relative paths start from, and the folders that all ids begin with
    (`("set", "set/train")`): a set's table often names files from above the set's own folder, whatever that is called
    now.
    """

    folder: Path
    entries: dict[str, Entry]
    above: tuple[str, ...] = ()
    _latest: dict[str, Entry | None] = field(default_factory=dict, compare=False, repr=False)
    """What was found for the file asked about last: a table's rows ask a million times."""

    def find(self, file: InputFile, row: str | None) -> Entry | None:
        """The entry for a table row's id if one is given, else for the file: the most specific id wins."""
        if row is not None and row in self.entries:
            return self.entries[row]
        if file.relative not in self._latest:
            self._latest.clear()
            found = (self.entries[name] for name in self._names(file) if name in self.entries)
            self._latest[file.relative] = next(found, None)
        return self._latest[file.relative]

    def _names(self, file: InputFile) -> Iterator[str]:
        relative = file.relative
        beside = file.place.removeprefix(f"{self.folder}/") if file.place.startswith(f"{self.folder}/") else relative
        yield from (beside, relative)
        yield from (f"{folder}/{path}" for folder in self.above for path in (beside, relative))
        yield from _endings(file.place)
        name = relative.rpartition("/")[2]
        yield from (name, bare_name(name), name.split(".")[0])
        # From the nearest folder up: a DICOM series is named by its folder.
        for path in (beside, relative):
            while path := path.rpartition("/")[0]:
                yield path
                yield from (f"{folder}/{path}" for folder in self.above)
                yield path.rpartition("/")[2]


@dataclass(frozen=True)
class Labels:
    """All tables of a run, in the order given; the first table that knows a value wins."""

    tables: tuple[Table, ...] = ()
    columns: tuple[str, ...] = ()

    def find(self, file: InputFile, row: str | None) -> Entry:
        """What the tables together say of a file, or of a row of it."""
        found = [entry for entry in (table.find(file, row) for table in self.tables) if entry is not None]
        labels: dict[str, str] = {}
        for entry in reversed(found):
            labels |= entry.labels
        return Entry(
            {column: labels[column] for column in self.columns if column in labels},
            next((entry.subject for entry in found if entry.subject), None),
            next((entry.split for entry in found if entry.split), None),
        )


def _endings(path: str) -> Iterator[str]:
    """A path and what follows each of its folders, the longest first, the bare name left out."""
    while "/" in path:
        yield path
        path = path.partition("/")[2]


def _shared_folders(ids: Collection[str]) -> tuple[str, ...]:
    """The folders that all ids begin with, from the first down: ("a", "a/b") for ids such as "a/b/1.png"."""
    if not ids:
        return ()
    # What the first and the last in order share, all share.
    start = os.path.commonprefix([min(ids), max(ids)])  # noqa: RUF071 -- cut at a folder in the next line
    folder = start.rpartition("/")[0]
    return tuple(accumulate(folder.split("/"), "{}/{}".format)) if folder else ()


def bare_name(name: str) -> str:
    """A file name without its extension, and without the one before a compression's (`a.nii.gz` gives `a`)."""
    path = PurePosixPath(name)
    return PurePosixPath(path.stem).stem if path.suffix.lower() in _DOUBLE_SUFFIXES else path.stem


def read_table(path: Path, id_columns: Sequence[str], label_columns: Sequence[str], subject_column: str) -> Table:
    """Read a table with named columns: CSV, TSV, JSON lines or Parquet; its id is the first of `id_columns` it has.

    Names of columns are compared without case. Rows that agree may repeat an id; equal entries are held once.
    Raises `UsageError` if no id column is there, a row cannot be read, or rows of one id disagree.
    """
    # Tables of any other name have been CSV all along.
    form = table_form(path.name) or "csv"
    entries: dict[str, Entry] = {}
    shared: dict[tuple[str | None, ...], Entry] = {}
    tally: Tally = Tally()
    try:
        names = column_names(path, form, "utf-8")
        id_column = next((column for column in id_columns if fold(column) in map(fold, names)), None)
        if id_column is None:
            raise UsageError(
                f"the table {path} has none of the id columns {', '.join(id_columns)}: name one of its own "
                f"({', '.join(names)[:120]}) with --id-column"
            )
        folded = [fold(column) for column in (*label_columns, subject_column, SPLIT_COLUMN)]
        for number, row in enumerate(read_rows(path, form, "utf-8", {fold(id_column), *folded}, tally), 1):
            name = row.get(fold(id_column), "").strip().replace("\\", "/").removeprefix("./").rstrip("/")
            values = tuple(row.get(column, "").strip() or None for column in folded)
            if values not in shared:
                labels = {column: value for column, value in zip(label_columns, values, strict=False) if value}
                shared[values] = Entry(labels, values[-2], split_name(values[-1] or ""))
            if name and entries.setdefault(name, shared[values]) != shared[values]:
                raise UsageError(
                    f"the table {path}, row {number}: an id of column {id_column} comes twice with different values: "
                    "one row an id, or another --id-column"
                )
    except Refusal as refusal:
        why = refusal.outcome.message or refusal.outcome.reason
        raise UsageError(f"the table {path} cannot be read ({why}): export it again as UTF-8 CSV") from refusal
    broken = ", ".join(f"{tally[name]} {name}" for name in DEFECTS if tally[name])
    if broken:
        raise UsageError(f"the table {path} has {broken} (of {tally[READ]}): mend them, a label must not be lost")
    return Table(path.resolve().parent, entries, _shared_folders(entries))


def digest_table(path: Path) -> str:
    """What the settings keep of a table: 16 hex characters of its content's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
