"""Views of radiographs: the words of headers and tables in one vocabulary, and tables that name a file's view."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset

from medcoss.contracts import UsageError
from preprocess.conversion import InputFile
from preprocess.labels import Labels, read_table
from preprocess.readers.dicom import sound_header

VIEWS = frozenset(
    {"AP", "PA", "FRONTAL", "LATERAL", "LL", "RL", "LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO"}
)
"""View codes that are recorded and selectable; any other text of a file is dropped, as it might name a person."""

_SPELLINGS = {
    "L": "LATERAL", "LAT": "LATERAL", "LATERAL VIEW": "LATERAL", "LEFT LATERAL": "LL", "RIGHT LATERAL": "RL",
    "ANTERO-POSTERIOR": "AP", "ANTEROPOSTERIOR": "AP", "AP HORIZONTAL": "AP", "AP SUPINE": "AP", "AP ERECT": "AP",
    "POSTERO-ANTERIOR": "PA", "POSTEROANTERIOR": "PA", "PA ERECT": "PA", "FRONTAL VIEW": "FRONTAL",
}  # fmt: skip


def view_code(text: str) -> str | None:
    """The view that a header or table cell names, as one of `VIEWS`; None for any other text."""
    word = " ".join(text.replace("_", " ").upper().split())
    return word if word in VIEWS else _SPELLINGS.get(word)


def header_view(dataset: Dataset) -> str | None:
    """The view by ViewPosition, or else by the meaning of the view code; None where the header says none."""
    with sound_header():
        found = view_code(str(dataset.get("ViewPosition") or ""))
        for item in dataset.get("ViewCodeSequence") or []:
            found = found or view_code(str(item.get("CodeMeaning") or ""))
    return found


def selected(found: str | None, asked: Sequence[str]) -> bool:
    """Whether a view is among those asked for: FRONTAL takes AP and PA, LATERAL takes LL and RL.

    A view known as frontal only is taken where both frontal views are asked for.
    """
    wanted = set(asked)
    if "LATERAL" in wanted:
        wanted |= {"LL", "RL"}
    if "FRONTAL" in wanted or {"AP", "PA"} <= wanted:
        wanted |= {"FRONTAL", "AP", "PA"}
    return found in wanted


def read_view_tables(paths: Sequence[Path], id_columns: Sequence[str], columns: Sequence[str]) -> Labels:
    """The cells of `columns` by file, from those of the tables that have one. Raises `UsageError` if none has."""
    tables = tuple(read_table(path, id_columns, columns, "") for path in paths)
    if not any(entry.labels for table in tables for entry in table.entries.values()):
        raise UsageError(
            f"no table given to --labels has a filled column {' or '.join(columns)}: name theirs with --view-column"
        )
    return Labels(tables, tuple(columns))


def listed_view(tables: Labels, file: InputFile) -> str | None:
    """The view that the tables name for a file: of the first column that names one."""
    cells = tables.find(file, None).labels
    return next(filter(None, map(view_code, cells.values())), None)
