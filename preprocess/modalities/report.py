"""Radiology reports and other short medical texts: impression first, cleaned, de-identified, with a BPE tokenizer."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from medcoss.contracts import Field, Geometry, Kind, ModalitySpec, UsageError
from preprocess import tokens
from preprocess.conversion import (
    WEAK,
    Conversion,
    Discovery,
    InputFile,
    Inspected,
    Json,
    Outcome,
    Piece,
    Rewriter,
    Settings,
    Status,
    Unit,
    failed,
    skipped,
)
from preprocess.deid import deidentify, mark_earlier, merge_marks, name_in_path, names_in
from preprocess.heartbeat import beat
from preprocess.readers import abstracts, parts, rows, tables
from preprocess.readers.encoded import read_text
from preprocess.readers.sections import cell_sections, sections
from preprocess.readers.text import count_words, plain, sentences

SUMMARY = "radiology reports: text files with sections; CSV, TSV, JSON and Parquet tables; PubMed-RCT files"
EXAMPLE = "preprocess report --in raw/report --out shards/report --labels raw/report/labels.csv"

MIN_WORDS = 3
_SECTION_COLUMNS = (("impression", "impressions", "conclusion"), ("findings", "finding"))
_WHOLE_COLUMNS = (
    "report", "report_text", "reporttext", "full_report", "radiology_report", "text", "note_text", "note", "narrative",
    "abstract", "abstract_text", "medical_abstract", "body", "content",
)  # fmt: skip
_TEXT_SUFFIXES = (".txt", ".text", ".rpt")
_KNOWN_FORMATS = (".xml", ".pdf", ".doc", ".docx", ".rtf", ".hl7", ".xlsx", ".xls", ".gz", ".bz2", ".xz", ".zst",
                  ".zip", ".tar", ".html", ".htm", ".avro", ".feather", ".arrow", ".db", ".sqlite")  # fmt: skip
_NO_REPORTS = re.compile(
    r"(read[ _-]?me|licen[cs]e|copying|changelog|sha\d+(sums?)?|md5(sums?)?|index|requirements|citation|notice)\b.*",
    re.IGNORECASE,
)
_REMEMBERED = 4096
_MAX_UNIT_BYTES = 512 << 20
"""Of the texts of one part of a table, which are held in memory; usual ones take some ten MB."""
_STUDY = re.compile(r"s(\d{8})")

WITHOUT_TEXT = "rows without text"
TOO_SHORT = "rows too short"
COPIES = "copies"
WORDS = "length (words)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the report modality."""
    add = parser.add_argument
    add("--text-column", action="append", metavar="NAME",
        help="column of tables with text, in any case; repeatable, joined in order (default impression and findings, "
        "else report, text, abstract, ...)")  # fmt: skip
    add("--length", type=int, default=112, metavar="TOKENS", help="longest text (default 112)")
    add("--long", choices=("truncate", "chunk"), default="truncate",
        help="longer texts end at a sentence's end, or become several samples (default truncate)")  # fmt: skip
    add("--vocabulary", type=int, default=30_000, metavar="TOKENS", help="largest size of the BPE (default 30000)")
    add("--encoding", default="utf-8", metavar="NAME",
        help="of text files and tables without a byte order mark (default utf-8)")  # fmt: skip
    add("--name-column", action="append", default=[], metavar="NAME",
        help="column of tables that holds a name to be removed from the text; repeatable")  # fmt: skip
    add("--keep-identifiers", action="store_true",
        help="do not mark dates, times, numbers, titled names as [DEID]: for public text")  # fmt: skip


def settings(arguments: argparse.Namespace) -> dict[str, Json]:
    """The options as JSON values. Raises `UsageError` for sizes that make no tokenizer and unknown encodings."""
    if arguments.length < 8 or arguments.length > 512:
        raise UsageError(f"--length {arguments.length}: expected 8 to 512 tokens")
    if arguments.vocabulary < 512:
        raise UsageError(
            f"--vocabulary {arguments.vocabulary}: expected at least 512, 262 are bytes and special tokens"
        )
    try:
        "".encode(arguments.encoding)
    except (LookupError, UnicodeError) as error:
        raise UsageError(f"--encoding {arguments.encoding}: unknown; for example utf-8, latin-1, cp1252") from error
    return {
        "text_columns": list(arguments.text_column or ()),
        "name_columns": list(arguments.name_column),
        "length_tokens": arguments.length,
        "long": arguments.long,
        "vocabulary_limit": arguments.vocabulary,
        "encoding": arguments.encoding,
        "deidentify": not arguments.keep_identifiers,
    }


def spec(settings: Settings) -> ModalitySpec:
    """What samples are; `finish` puts in the size of the vocabulary that was found."""
    return ModalitySpec(
        name="report",
        kind=Kind.SEQUENCE,
        geometry=Geometry((int(settings["length_tokens"]),)),
        fields=(Field("text", "utf8", "str"),),
        normalisation=f"cleaned UTF-8 text, impression before findings, cut at a sentence end to the length; "
        f"{tokens.TOKENIZER} gives its ids with [CLS] and [SEP]",
        vocabulary=int(settings["vocabulary_limit"]),
    )


def inspect(file: InputFile, settings: Settings) -> dict[str, Json]:
    """Whether it is a text, a file of abstracts or a table, and the parts a large one is read in.

    Told by the name, and by the first bytes of a text; whether it is a report shows when it is read. Raises `Refusal`.
    """
    path = PurePosixPath(file.relative)
    encoding = settings["encoding"]
    try:
        if form := tables.table_form(file.relative):
            return {"form": form, "parts": _json(tables.table_parts(file.path, form, encoding))}
        suffix = PurePosixPath(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
        if _NO_REPORTS.fullmatch(path.name) or suffix in (".md", ""):
            raise skipped("unsupported_format" if path.suffix.lower() == ".gz" else "not_an_input")
        if suffix not in _TEXT_SUFFIXES:
            raise skipped("unsupported_format" if {suffix, path.suffix.lower()} & {*_KNOWN_FORMATS} else "not_an_input")
        if abstracts.holds_abstracts(file.path, encoding):
            return {"form": "abstracts", "parts": _json(parts.byte_parts(file.path, encoding, parts.next_abstract))}
    except OSError as error:
        raise failed("unreadable", error.strerror or type(error).__name__) from error
    return {"form": "text", "parts": []}


def _json(found: list[list[int]]) -> list[Json]:
    return [[*part] for part in found]


def group(inspected: Sequence[Inspected], settings: Settings) -> Discovery:
    """A unit a file, or a part of a large table."""
    units = []
    for one in inspected:
        form, places = one.about["form"], one.about["parts"]
        assert isinstance(places, list)
        details: list[dict[str, Json]] = [{"form": form, "part": part} for part in places] or [{"form": form}]
        units += [Unit((one.file,), detail) for detail in details]
    return Discovery(units)


def convert(unit: Unit, settings: Settings) -> Conversion:
    """Samples of one text file or table. Raises `Refusal`."""
    file, form = unit.files[0], str(unit.detail["form"])
    part: Any = unit.detail.get("part")
    made = _Rows(file, settings)
    if form == "text":
        return _convert_text(file, settings)
    if form == "abstracts":
        made.add_abstracts(abstracts.read_abstracts(file.path, settings["encoding"], made.tally, part))
    else:
        made.add_table(tables.read_rows(file.path, form, settings["encoding"], made.wanted, made.tally, part), form)
    return made.conversion()


def _convert_text(file: InputFile, settings: Settings) -> Conversion:
    found = sections(read_text(file.path, settings["encoding"]))
    if found is None:
        raise failed("no_text", "no usual header of a report (FINDINGS, IMPRESSION, ...), nor a radiologist's prose")
    text = clean(found, (), name_in_path(file.relative), deidentified=settings["deidentify"])
    if not text:
        raise failed("no_text", "its sections are empty")
    words = count_words(text)
    if words < MIN_WORDS:
        raise skipped("too_short", f"{words} words")
    study = _STUDY.fullmatch(PurePosixPath(file.relative.removesuffix(".gz")).stem)
    data = text.encode()
    piece = Piece(hashlib.sha256(data).digest(), suffix(settings), data, file.relative, row=study[1] if study else None)
    return Conversion([piece], figures={WORDS: [float(words)]})


def suffix(settings: Settings) -> str:
    """The first suffix of keys: of fixed width where more may follow."""
    return "0000" if settings["long"] == "chunk" else "0"


class _Rows:
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


def finish(settings: Settings, train: Iterable[bytes | np.ndarray[Any, Any]]) -> tuple[ModalitySpec, dict[str, bytes]]:
    """Train the byte-level BPE on the train split. Raises `MedcossError` if that split is empty."""
    tokenizer, size = tokens.train(train, int(settings["vocabulary_limit"]))
    return spec({**settings, "vocabulary_limit": size}), {tokens.TOKENIZER: tokenizer}


def rewriter(settings: Settings, files: dict[str, bytes]) -> Rewriter:
    """Cuts texts to the length, now that tokens are known."""
    return tokens.Shortener(files[tokens.TOKENIZER], int(settings["length_tokens"]), chunk=settings["long"] == "chunk")
