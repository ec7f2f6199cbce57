"""Radiology reports and other short medical texts: impression first, cleaned, de-identified, with a BPE tokenizer."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from medcoss.contracts import Field, Geometry, Kind, ModalitySpec, UsageError
from preprocess import tokens
from preprocess.conversion import (
    Conversion,
    Discovery,
    InputFile,
    Inspected,
    Json,
    Piece,
    Rewriter,
    Settings,
    Unit,
    failed,
    skipped,
)
from preprocess.deid import name_in_path
from preprocess.readers import abstracts, parts, tables
from preprocess.readers.encoded import read_text
from preprocess.readers.sections import sections
from preprocess.readers.text import count_words
from preprocess.report_rows import MIN_WORDS, WORDS, Rows, clean, suffix

SUMMARY = "radiology reports: text files with sections; CSV, TSV, JSON and Parquet tables; PubMed-RCT files"
EXAMPLE = "preprocess report --in raw/report --out shards/report --labels raw/report/labels.csv"

_TEXT_SUFFIXES = (".txt", ".text", ".rpt")
_KNOWN_FORMATS = (".xml", ".pdf", ".doc", ".docx", ".rtf", ".hl7", ".xlsx", ".xls", ".gz", ".bz2", ".xz", ".zst",
                  ".zip", ".tar", ".html", ".htm", ".avro", ".feather", ".arrow", ".db", ".sqlite")  # fmt: skip
_NO_REPORTS = re.compile(
    r"(read[ _-]?me|licen[cs]e|copying|changelog|sha\d+(sums?)?|md5(sums?)?|index|requirements|citation|notice)\b.*",
    re.IGNORECASE,
)
_STUDY = re.compile(r"s(\d{8})")


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
    made = Rows(file, settings)
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


def finish(settings: Settings, train: Iterable[bytes | np.ndarray[Any, Any]]) -> tuple[ModalitySpec, dict[str, bytes]]:
    """Train the byte-level BPE on the train split. Raises `MedcossError` if that split is empty."""
    tokenizer, size = tokens.train(train, int(settings["vocabulary_limit"]))
    return spec({**settings, "vocabulary_limit": size}), {tokens.TOKENIZER: tokenizer}


def rewriter(settings: Settings, files: dict[str, bytes]) -> Rewriter:
    """Cuts texts to the length, now that tokens are known."""
    return tokens.Shortener(files[tokens.TOKENIZER], int(settings["length_tokens"]), chunk=settings["long"] == "chunk")
