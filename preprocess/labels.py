"""Tables beside the inputs: labels for evaluation, subjects and given splits, matched by file, folder or row id."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from medcoss.contracts import UsageError
from preprocess.conversion import InputFile
from preprocess.split import split_name

SPLIT_COLUMN = "split"
_DOUBLE_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")


@dataclass
class Entry:
    """What the tables say of one input: labels in the order asked for, raw subject id, split."""

    labels: dict[str, str] = field(default_factory=dict)
    subject: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Table:
    """One table: its rows by id, and the folder its relative paths start from."""

    folder: Path
    entries: dict[str, Entry]

    def find(self, file: InputFile, row: str | None) -> Entry | None:
        """The entry for a table row's id if one is given, else for the file: the most specific id wins."""
        if row is not None and row in self.entries:
            return self.entries[row]
        return next((self.entries[name] for name in self._names(file) if name in self.entries), None)

    def _names(self, file: InputFile) -> Iterator[str]:
        relative = PurePosixPath(file.relative)
        beside = (
            PurePosixPath(file.path.relative_to(self.folder)) if file.path.is_relative_to(self.folder) else relative
        )
        yield from (str(beside), str(relative), relative.name, bare_name(relative.name), relative.name.split(".")[0])
        # From the nearest folder up: a DICOM series is named by its folder.
        for path in (beside, relative):
            for parent in path.parents:
                if parent.name:
                    yield str(parent)
                    yield parent.name


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


def bare_name(name: str) -> str:
    """A file name without its extension, and without the one before a compression's (`a.nii.gz` gives `a`)."""
    path = PurePosixPath(name)
    return PurePosixPath(path.stem).stem if path.suffix.lower() in _DOUBLE_SUFFIXES else path.stem


def read_table(path: Path, id_columns: Sequence[str], label_columns: Sequence[str], subject_column: str) -> Table:
    """Read a CSV (or TSV) with a header; its id is the first of `id_columns` that it has.

    Rows that agree may repeat an id. Raises `UsageError` if no id column is there, or rows of one id disagree.
    """
    entries: dict[str, Entry] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            header = list(reader.fieldnames or ())
            id_column = next((column for column in id_columns if column in header), None)
            if id_column is None:
                raise UsageError(
                    f"the table {path} has none of the id columns {', '.join(id_columns)}: name one of its own "
                    f"({', '.join(header)[:120]}) with --id-column"
                )
            wanted = [column for column in label_columns if column in header]
            for row in reader:
                name = (row[id_column] or "").strip().replace("\\", "/").removeprefix("./")
                entry = Entry(
                    {column: value for column in wanted if (value := (row[column] or "").strip())},
                    (row.get(subject_column) or "").strip() or None,
                    split_name(row.get(SPLIT_COLUMN) or ""),
                )
                if name and entries.setdefault(name, entry) != entry:
                    raise UsageError(
                        f"the table {path}, line {reader.line_num}: an id of column {id_column} comes twice with "
                        "different values: one row an id, or another --id-column"
                    )
        except (csv.Error, UnicodeDecodeError) as error:
            raise UsageError(f"the table {path} is no UTF-8 CSV ({type(error).__name__}): convert it first") from error
    return Table(path.resolve().parent, entries)


def digest_table(path: Path) -> str:
    """What the settings keep of a table: 16 hex characters of its content's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
