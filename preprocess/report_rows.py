"""Rows of a table of reports to samples: which columns are read, what a row gives, and the account of all rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from preprocess.conversion import WEAK, Conversion, InputFile, Json, Outcome, Piece, Settings, Status, failed, skipped
from preprocess.deid import deidentify, mark_earlier, merge_marks, name_in_path, names_in
from preprocess.heartbeat import beat
from preprocess.readers import rows
from preprocess.readers.sections import cell_sections
from preprocess.readers.text import count_words, plain, sentences

MIN_WORDS = 3
_SECTION_COLUMNS = (("impression", "impressions", "conclusion"), ("findings", "finding"))
_WHOLE_COLUMNS = (
    "report", "report_text", "reporttext", "full_report", "radiology_report", "text", "note_text", "note", "narrative",
    "abstract", "abstract_text", "medical_abstract", "body", "content",
)  # fmt: skip
_REMEMBERED = 4096
_MAX_UNIT_BYTES = 512 << 20
"""Of the texts of one part of a table, which are held in memory; usual ones take some ten MB."""

WITHOUT_TEXT = "rows without text"
TOO_SHORT = "rows too short"
COPIES = "copies"
WORDS = "length (words)"


def suffix(settings: Settings) -> str:
    """The first suffix of keys: of fixed width where more may follow."""
    return "0000" if settings["long"] == "chunk" else "0"


class Rows:
    """Turns the rows of one table into samples and keeps account of them."""

    def __init__(self, file: InputFile, settings: Settings) -> None:
        self._file, self._settings = file, settings
        self._pairs = name_in_path(file.relative)
        self._suffix = suffix(settings)
        self._asked = [rows.fold(name) for name in settings["text_columns"]]
        self._names = [rows.fold(name) for name in settings["name_columns"]]
        self._ids = [rows.fold(name) for name in settings["id_columns"]]
        self._labels = {name: rows.fold(name) for name in settings["label_columns"]}
        self._subject = rows.fold(settings["subject_column"])
        usual = () if self._asked else (*_WHOLE_COLUMNS, *(name for names in _SECTION_COLUMNS for name in names))
        self.wanted = frozenset(
            (*self._asked, *usual, *self._names, *self._ids, *self._labels.values(), self._subject, "split")
        )
        self.tally: rows.Tally = rows.Tally()
        self._pieces: list[Piece] = []
        self._lengths: list[float] = []
        self._bytes = 0
        self._cleaned: dict[tuple[str, ...], str] = {}
        self._seen: set[tuple[object, ...]] = set()

    def add_table(self, found: Iterable[rows.Row], form: str) -> None:
        """Raises `Refusal` for a table without any column of text."""
        chosen: dict[tuple[str, ...], list[str]] = {}
        for row in found:
            names = tuple(row)
            if names not in chosen:
                chosen[names] = self._text_columns(row)
                # Other rows of JSON may have what this one lacks.
                if not chosen[names] and form == "csv":
                    break
            self._add_row(row, chosen[names])
        sound = form == "parquet" and not any(self.tally[name] for name in rows.DEFECTS)
        if (chosen or sound) and not any(chosen.values()) and self.tally[rows.READ]:
            asked = self._settings["text_columns"] or ("impression", "findings", "report", "text", "abstract")
            raise skipped("no_text_column", f"none of {', '.join(asked)}")

    def _text_columns(self, row: Mapping[str, str]) -> list[str]:
        if self._asked:
            return [name for name in self._asked if name in row]
        found = [next((name for name in names if name in row), "") for names in _SECTION_COLUMNS]
        return [name for name in found if name] or [name for name in _WHOLE_COLUMNS if name in row][:1]

    def _add_row(self, row: Mapping[str, str], columns: Iterable[str]) -> None:
        cells: list[str] = []
        for name in columns:
            cell = row[name]
            cells += cell_sections(cell) or (cell,)
        names = [row[column] for column in self._names if row.get(column)]
        subject = row.get(self._subject, "").strip()
        names += names_in(subject)
        # Tables of a million equal rows exist: "normal" is the commonest report.
        text = "" if names else self._cleaned.get(tuple(cells), "")
        if not text:
            text = clean(cells, names, self._pairs, deidentified=self._settings["deidentify"])
            if not names:
                if len(self._cleaned) == _REMEMBERED:
                    self._cleaned.clear()
                self._cleaned[tuple(cells)] = text
        row_id = next((found for column in self._ids if (found := row.get(column, "").strip())), None)
        labels: dict[str, Json] = {
            label: row[column].strip() for label, column in self._labels.items() if row.get(column, "").strip()
        }
        self._add(text, row_id, (subject, "" if row_id else WEAK), labels, row.get("split", "").strip() or None)

    def add_abstracts(self, found: Iterable[tuple[str, list[str]]]) -> None:
        """Abstracts with their ids, which are of papers and not of patients."""
        for name, lines in found:
            text = clean(lines, (), deidentified=self._settings["deidentify"])
            self._add(text, name, (f"{WEAK}pmid:{name}",), {}, None)

    def _add(
        self, text: str, row_id: str | None, subjects: tuple[str, ...], labels: dict[str, Json], split: str | None
    ) -> None:
        words = count_words(text)
        if words < MIN_WORDS:
            self.tally[TOO_SHORT if text else WITHOUT_TEXT] += 1
            return
        beat()
        data = text.encode()
        self._bytes += len(data)
        if self._bytes > _MAX_UNIT_BYTES:
            raise failed("too_large", f"more than {_MAX_UNIT_BYTES >> 20} MiB of text in the rows of one part")
        digest = hashlib.sha256(data).digest()
        if row_id is None:
            # Nothing tells this row from an equal one: not even a label can come from elsewhere.
            about = (digest, subjects, split, *labels.items())
            if about in self._seen:
                self.tally[COPIES] += 1
                return
            self._seen.add(about)
        self._lengths.append(float(words))
        ids = tuple(WEAK + digest.hex() if name == WEAK else name for name in subjects)
        self._pieces.append(Piece(digest, self._suffix, data, self._file.relative, ids, row_id, labels, split))

    def conversion(self) -> Conversion:
        """The samples, and the file's outcome: written if there is one, else what hindered most rows."""
        tally = self.tally
        if tally[rows.READ] == 0:
            raise failed("empty", "a table without rows")
        defects = [name for name in rows.DEFECTS if tally[name]]
        reasons = {rows.BAD_ENCODING: "encoding", rows.MALFORMED: "malformed_rows", rows.TOO_LONG: "too_large"}
        if self._pieces:
            outcome = Outcome(Status.WRITTEN, "malformed_rows" if defects else "")
        elif defects:
            outcome = Outcome(Status.FAILED, reasons[max(defects, key=lambda name: tally[name])])
        else:
            outcome = Outcome(Status.SKIPPED, "too_short" if tally[TOO_SHORT] else "no_text")
        name = self._file.relative
        figures = {WORDS: self._lengths} if self._lengths else {}
        return Conversion(self._pieces, {name: outcome}, figures, counts={name: dict(tally)})


def clean(
    parts: Iterable[str], names: Sequence[str], pairs: Sequence[tuple[str, str]] = (), *, deidentified: bool
) -> str:
    """The parts' sentences as one line of text, in their order; identifiers and `names` marked if asked for.

    `pairs` are words that are marked where they stand side by side.
    """
    found: list[str] = []
    for part in parts:
        text = mark_earlier(plain(part))
        # Before sentences are told apart: "Dr. Smith" is not the end of one.
        text = deidentify(text, names, pairs) if deidentified else text
        found += sentences(text)
    return merge_marks(" ".join(found))
