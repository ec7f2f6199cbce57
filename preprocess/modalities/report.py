"""Radiology reports and other short medical texts: impression first, cleaned, de-identified, with a BPE tokenizer."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from medcoss.contracts import (
    CLS_ID,
    DEID_ID,
    SEP_ID,
    SPECIAL_TOKENS,
    Field,
    Geometry,
    Kind,
    MedcossError,
    ModalitySpec,
    UsageError,
)
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
from preprocess.deid import deidentify, mark_earlier, merge_marks
from preprocess.readers.text import count_words, read_rows, read_text, sections, sentence_ends, sentences

SUMMARY = "radiology reports: text files with sections, or CSV/TSV tables"
EXAMPLE = "preprocess report --in raw/report --out shards/report --labels raw/report/labels.csv"

TOKENIZER = "tokenizer.json"
MIN_WORDS = 3
_DEFAULT_COLUMNS = ("impression", "findings")
_TEXT_SUFFIXES = (".txt", ".text", ".rpt")
_TABLE_SUFFIXES = (".csv", ".tsv")
_KNOWN_FORMATS = (
    ".json",
    ".jsonl",
    ".parquet",
    ".xml",
    ".pdf",
    ".doc",
    ".docx",
    ".rtf",
    ".hl7",
    ".xlsx",
    ".gz",
    ".zip",
)
_NO_REPORTS = re.compile(r"(readme|licen[cs]e|copying|changelog|sha256sums|md5sums|index)\b.*", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the report modality."""
    add = parser.add_argument
    add("--text-column", action="append", metavar="NAME",
        help="column of tables with text; repeatable, joined in order (default impression, findings)")  # fmt: skip
    add("--length", type=int, default=112, metavar="TOKENS", help="cut at a sentence end to it (default 112)")
    add("--vocabulary", type=int, default=30_000, metavar="TOKENS", help="largest size of the BPE (default 30000)")
    add("--encoding", default="utf-8", metavar="NAME", help="of text files and tables (default utf-8)")
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
    except LookupError as error:
        raise UsageError(f"--encoding {arguments.encoding}: unknown; for example utf-8, latin-1, cp1252") from error
    return {
        "text_columns": list(arguments.text_column or _DEFAULT_COLUMNS),
        "name_columns": list(arguments.name_column),
        "length_tokens": arguments.length,
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
        f"{TOKENIZER} gives its ids with [CLS] and [SEP]",
        vocabulary=int(settings["vocabulary_limit"]),
    )


def inspect(file: InputFile, settings: Settings) -> dict[str, Json]:
    """Told by the name alone; whether it is a report shows when it is read. Raises `Refusal` for other files."""
    path = PurePosixPath(file.relative)
    suffix = path.suffix.lower()
    if _NO_REPORTS.fullmatch(path.name) or suffix in (".md", ""):
        raise skipped("not_an_input")
    if suffix not in _TEXT_SUFFIXES and suffix not in _TABLE_SUFFIXES:
        raise skipped("unsupported_format" if suffix in _KNOWN_FORMATS else "not_an_input")
    return {}


def group(inspected: Sequence[Inspected], settings: Settings) -> Discovery:
    """A unit a file."""
    return Discovery([Unit((one.file,)) for one in inspected])


def convert(unit: Unit, settings: Settings) -> Conversion:
    """Samples of one text file or table. Raises `Refusal`."""
    file = unit.files[0]
    if file.path.suffix.lower() in _TABLE_SUFFIXES:
        return _convert_table(file, settings)
    found = sections(read_text(file.path, settings["encoding"]))
    if found is None:
        raise failed("no_text", "no usual header of a report (FINDINGS, IMPRESSION, INDICATION, ...)")
    text = clean(found, (), deidentified=settings["deidentify"])
    if not text:
        raise failed("no_text", "its sections are empty")
    words = count_words(text)
    if words < MIN_WORDS:
        raise skipped("too_short", f"{words} words")
    return Conversion(
        [Piece(_digest(text), "0", text.encode(), file.relative)], figures={"length (words)": [float(words)]}
    )


def _convert_table(file: InputFile, settings: Settings) -> Conversion:
    counts: Counter[str] = Counter()
    lengths: list[float] = []
    pieces = list(_row_pieces(file, settings, counts, lengths))
    left_out = ", ".join(f"{counts[name]} rows {name}" for name in ("without text", "too short") if counts[name])
    if counts["rows"] == 0:
        raise failed("empty", "a header without rows")
    if not pieces:
        raise skipped("too_short" if counts["too short"] else "no_text", left_out)
    outcome = Outcome(Status.WRITTEN, message=f"left out: {left_out}" if left_out else "")
    return Conversion(pieces, {file.relative: outcome}, {"length (words)": lengths})


def _row_pieces(file: InputFile, settings: Settings, counts: Counter[str], lengths: list[float]) -> Iterator[Piece]:
    columns: list[str] = settings["text_columns"]
    for row in read_rows(file.path, settings["encoding"]):
        if not counts["rows"] and not any(column in row for column in columns):
            raise skipped("no_text_column", f"none of {', '.join(columns)}")
        counts["rows"] += 1
        names = [row[column] for column in settings["name_columns"] if row.get(column)]
        text = clean([row.get(column) or "" for column in columns], names, deidentified=settings["deidentify"])
        words = count_words(text)
        if words < MIN_WORDS:
            counts["too short" if text else "without text"] += 1
            continue
        lengths.append(float(words))
        digest = _digest(text)
        row_id = next((row[column].strip() for column in settings["id_columns"] if row.get(column)), None)
        subject = (row.get(settings["subject_column"]) or "").strip()
        yield Piece(
            content=digest,
            suffix="0",
            data=text.encode(),
            file=file.relative,
            subject_ids=(subject, "" if row_id else WEAK + digest.hex()),
            row=row_id,
            labels={c: row[c].strip() for c in settings["label_columns"] if row.get(c, "").strip()},
            split=row.get("split") or None,
        )


def clean(parts: Iterable[str], names: Iterable[str], *, deidentified: bool) -> str:
    """The parts' sentences as one line of text, in their order; identifiers and `names` marked if asked for."""
    found: list[str] = []
    for part in parts:
        text = mark_earlier(part)
        # Before sentences are told apart: "Dr. Smith" is not the end of one.
        text = deidentify(text, names) if deidentified else text
        found += sentences(text)
    return merge_marks(" ".join(found))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def finish(settings: Settings, train: Iterable[bytes | np.ndarray[Any, Any]]) -> tuple[ModalitySpec, dict[str, bytes]]:
    """Train the byte-level BPE on the train split. Raises `MedcossError` if that split is empty."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS_ID), ("[SEP]", SEP_ID)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=settings["vocabulary_limit"],
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    count = 0

    def texts() -> Iterator[str]:
        nonlocal count
        for data in train:
            count += 1
            # The mark must not be taken apart into pieces of its own.
            yield bytes(data).decode().replace(SPECIAL_TOKENS[DEID_ID], " ")

    tokenizer.train_from_iterator(texts(), trainer)
    if count == 0:
        raise MedcossError("no report is in the train split, so there is no tokenizer: give more subjects or --split")
    vocabulary = tokenizer.get_vocab_size()
    described = spec({**settings, "vocabulary_limit": vocabulary})
    return described, {TOKENIZER: tokenizer.to_str().encode()}


def rewriter(settings: Settings, files: dict[str, bytes]) -> Rewriter:
    """Cuts texts to the length, now that tokens are known."""
    return Shortener(files[TOKENIZER], int(settings["length_tokens"]))


class Shortener:
    """Cuts a text that has more than `length` tokens, [CLS] and [SEP] included, at its last sentence end before."""

    def __init__(self, tokenizer: bytes, length: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(tokenizer.decode())
        self._length = length
        self._texts = self._cut = self._tokens = 0

    def count(self, data: bytes | np.ndarray[Any, Any]) -> int:
        """One: the end of a long text is dropped."""
        return 1

    def __call__(self, data: bytes | np.ndarray[Any, Any], part: int = 0) -> bytes:
        """The text, or its beginning. A first sentence that is too long is cut between two words."""
        text = bytes(data).decode()
        # Most of a long text is never looked at: what is too many tokens shows in its beginning.
        space = text.find(" ", 6 * self._length)
        encoding = self._tokenizer.encode(text[:space] if space > 0 else text)
        if space > 0 and len(encoding.ids) <= self._length:
            encoding = self._tokenizer.encode(text)
        self._texts += 1
        self._tokens += min(len(encoding.ids), self._length)
        if len(encoding.ids) <= self._length:
            return text.encode()
        self._cut += 1
        # The last kept token is the one before [SEP]'s place.
        limit = encoding.offsets[self._length - 2][1]
        ends = [end for end in sentence_ends(text) if end <= limit]
        if ends:
            return text[: ends[-1]].encode()
        return text[: max(text.rfind(" ", 0, limit + 1), 1)].encode()

    def statistics(self) -> dict[str, float]:
        """`truncated_fraction` of texts, `mean_tokens` of a stored one."""
        texts = max(self._texts, 1)
        return {"truncated_fraction": self._cut / texts, "mean_tokens": self._tokens / texts}

    def notes(self) -> list[str]:
        """A warning where more than 5 % were cut."""
        share = self._cut / max(self._texts, 1)
        return [f"{share:.0%} of the texts were cut to {self._length} tokens"] if share > 0.05 else []
