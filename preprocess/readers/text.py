"""Text of reports: files with sections, rows of tables, and cleaning into sentences."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from preprocess.conversion import failed

MAX_TEXT_BYTES = 4 << 20
"""A single report is a few kB; a larger text file is something else."""
_MAX_FIELD_CHARACTERS = 4 << 20

_IMPRESSION = (
    r"(?:final )?impressions?|conclusions?|opinion|summary|interpretation|assessment|impression and recommendations?"
)
_FINDINGS = r"findings?|findings and impression|findings/impression|observations?|description|report"
_ADDENDUM = r"addend(?:um|a)(?: (?:report|\d+))?"
_OTHER = (
    r"examination|exam|study|procedure|indications?|(?:clinical )?(?:history|information|indication|data|details)"
    r"|reason for (?:exam|examination|study)|technique|comparisons?|views?|contrast|dose|protocol|final report|wet read"
    r"|notifications?|recommendations?|communication|attestation|note|clinical question|(?:type of )?examination type"
)
_PERSONAL = (
    r"patient|name|mrn|dob|birth|accession|physician|radiologist|doctor|dictated|signed|transcribed|approved|verified"
    r"|date|time|phone|fax|pager|address|ssn|provider|attending|resident|technologist|sex|age|ordering|referring|hospital"
)
_KNOWN = re.compile(
    rf"^[ \t]*(?:(?P<impression>{_IMPRESSION})|(?P<findings>{_FINDINGS})|(?P<addendum>{_ADDENDUM})|(?P<other>{_OTHER}))"
    r"[ \t]*(?::|-[ \t]|\.?[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_HEADER = re.compile(r"^[ \t]*(?P<name>[A-Za-z][A-Za-z /&,.()'-]{1,50}?)[ \t]*:", re.MULTILINE)
_PERSONAL_NAME = re.compile(rf"\b(?:{_PERSONAL})\b", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"^[ \t]*(?:electronically |digitally )?"
    r"(?:signed|dictated|approved|verified|transcribed|reviewed|read|reported) (?:and \w+ )?by\b",
    re.IGNORECASE | re.MULTILINE,
)
_ITEM = re.compile(r"(?:^|(?<=[.:;!?]))[ \t]*(?:\(?\d{1,2}[.)][ \t]+(?=\S)|[-*•·][ \t]+)", re.MULTILINE)
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\bvs\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bapprox\.)(?<!\bca\.)(?<!\bNo\.)(?<!\bno\. \d)"
    r"\s+(?=[A-Z0-9\[(\"'])"
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_SPACE = re.compile(r"\s+")
_LOOSE = re.compile(r" (?=[.,;:!?]+(?: |$))")
_STOPS = re.compile(r"\.{2,}")


def read_text(path: Path, encoding: str) -> str:
    """A text file. Raises `Refusal`: `empty`, `too_large`, `encoding`, or `unreadable` for binary content."""
    size = path.stat().st_size
    if size > MAX_TEXT_BYTES:
        raise failed("too_large", f"{size} bytes of text in one file: put several reports into a CSV")
    data = path.read_bytes()
    if not data.strip():
        raise failed("empty")
    if b"\0" in data and not encoding.lower().replace("-", "").startswith(("utf16", "utf32")):
        raise failed("unreadable", "binary content in a text file")
    try:
        return data.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        raise failed("encoding", f"byte {error.start} is not {encoding}") from error


def read_rows(path: Path, encoding: str) -> Iterator[dict[str, str]]:
    """Rows of a CSV, or of a TSV by its suffix, with a header line; cells beyond the header are dropped.

    Raises `Refusal`: `empty`, `encoding`, or `unreadable` for what is no table.
    """
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    encoding = "utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding
    with path.open(newline="", encoding=encoding) as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        try:
            header = [name.strip() for name in next(reader, [])]
            if not any(header):
                raise failed("empty")
            for row in reader:
                if row:
                    yield dict(zip(header, row, strict=False))
        except UnicodeDecodeError as error:
            raise failed("encoding", f"not {encoding} (near row {reader.line_num})") from error
        except csv.Error as error:
            raise failed("unreadable", f"no table from line {reader.line_num} on") from error


def sections(text: str) -> tuple[str, str] | None:
    """(impression, findings) of a report; addenda follow the impression. None if it does not look like a report.

    Without either section the last paragraph of a text with any usual header is its impression.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    marks: list[tuple[int, int, str]] = [
        (match.start(), match.end(), match.lastgroup or "other") for match in _KNOWN.finditer(text)
    ]
    if not marks:
        return None
    known = {start for start, _, _ in marks}
    marks += [
        (match.start(), match.end(), "other")
        for match in _HEADER.finditer(text)
        if match.start() not in known and _PERSONAL_NAME.search(match["name"])
    ]
    marks += [(match.start(), match.end(), "other") for match in _SIGNATURE.finditer(text)]
    marks.sort()
    found: dict[str, list[str]] = {"impression": [], "findings": [], "addendum": []}
    for (_, start, name), end in zip(marks, [start for start, _, _ in marks[1:]] + [len(text)], strict=True):
        if name in found and text[start:end].strip():
            found[name].append(text[start:end].strip())
    impression, findings = _joined(found["impression"] + found["addendum"]), _joined(found["findings"])
    if impression or findings:
        return impression, findings
    return _last_paragraph(text, marks), ""


def _joined(parts: list[str]) -> str:
    """Parts of several sections as one text; no sentence runs from one into the next."""
    return "\n".join(part if part[-1] in ".!?" or part is parts[-1] else part + "." for part in parts)


def _last_paragraph(text: str, marks: list[tuple[int, int, str]]) -> str:
    """The last paragraph that is no header's line, for reports that dictate on without naming sections."""
    heads = [start for start, _, _ in marks]
    place = len(text)
    for paragraph in reversed(re.split(r"\n[ \t]*\n", text)):
        place = text.rfind(paragraph, 0, place)
        if paragraph.strip() and not any(place <= head < place + len(paragraph) for head in heads):
            return paragraph.strip()
    return ""


def sentences(text: str) -> list[str]:
    """Clean sentences: newlines folded, numbered and bulleted items apart, decimals whole, each ended by a stop."""
    result = []
    for item in _ITEM.split(text):
        folded = _STOPS.sub(".", _LOOSE.sub("", _SPACE.sub(" ", item))).strip()
        if not folded:
            continue
        if folded[-1] not in ".!?":
            folded = folded.rstrip(" ,;:-") + "."
        result += [sentence for sentence in _SENTENCE_END.split(folded) if any(map(str.isalnum, sentence))]
    return result


def sentence_ends(text: str) -> list[int]:
    """Places in a cleaned text (in characters) where a sentence ends, the last one included."""
    return [match.start() for match in _SENTENCE_END.finditer(text)] + [len(text)]


def count_words(text: str) -> int:
    """Number of words of at least two letters."""
    return len(_WORD.findall(text))
