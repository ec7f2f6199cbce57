"""PubMed-RCT's sentence files: `###PMID`, then lines LABEL<tab>sentence, an empty line after each abstract."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from preprocess.readers.encoded import find_encoding, is_bad, lines, open_text, read_head
from preprocess.readers.rows import BAD_ENCODING, MALFORMED, READ, TOO_LONG, Tally

_START = re.compile(r"\s*###\d{1,10}[ \t]*\r?\n[A-Z]{2,20}\t")
_LABEL = re.compile(r"[A-Z]{2,20}")
_MAX_SENTENCES = 1000


def holds_abstracts(path: Path, encoding: str) -> bool:
    """Whether the file begins with an abstract's id and a labelled sentence."""
    head = read_head(path)
    return _START.match(head.decode(find_encoding(head, encoding), errors="ignore").removeprefix("\ufeff")) is not None


def read_abstracts(
    path: Path, encoding: str, tally: Tally, part: Sequence[int] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """(PMID, sentences in the abstract's order) of a file, or of the part [first byte, bytes].

    An abstract with a line that is no sentence, or with bytes of another encoding, is left out and counted.
    Raises `Refusal`.
    """
    first, size = part or (0, None)
    with open_text(path, encoding, first, size) as stream:
        name, sentences, defect = "", list[str](), ""
        for line in lines(stream):
            if line is None:
                defect = TOO_LONG
                continue
            text = line.strip("\ufeff\r\n ")
            if text.startswith("###"):
                if abstract := _finished(name, sentences, defect, tally):
                    yield abstract
                name, sentences, defect = text[3:].strip(), [], ""
            elif text:
                label, _, sentence = text.partition("\t")
                if is_bad(text):
                    defect = BAD_ENCODING
                elif _LABEL.fullmatch(label) is None or not sentence.strip() or len(sentences) == _MAX_SENTENCES:
                    defect = MALFORMED
                else:
                    sentences.append(sentence)
        if abstract := _finished(name, sentences, defect, tally):
            yield abstract


def _finished(name: str, sentences: list[str], defect: str, tally: Tally) -> tuple[str, list[str]] | None:
    if not name and not sentences and not defect:
        return None
    tally[READ] += 1
    if defect or not name.isdigit():
        tally[defect or MALFORMED] += 1
        return None
    return name, sentences
