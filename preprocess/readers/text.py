"""Clean sentences out of the text of reports."""

from __future__ import annotations

import re

_ITEM = re.compile(r"(?:^|(?<=[.:;!?]))[ \t]*(?:\(?\d{1,2}[.)][ \t]+(?=\S)|[-*•·][ \t]+)", re.MULTILINE)
_PERHAPS_ITEM = re.compile(r"[-*•·.)][ \t](?:(?<=[-*•·].)|(?<=\d..))")
# Blanks are found fastest: what stands before one is looked at from there.
_SENTENCE_END = re.compile(
    r" (?=[A-Z0-9\[(\"'])(?<=[.!?] )(?<!\b[A-Z]\. )(?<!\bvs\. )(?<!\be\.g\. )(?<!\bi\.e\. )(?<!\bapprox\. )"
    r"(?<!\bca\. )(?<!\bNo\. )(?<!\bno\. \d )"
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_LETTERS = bytes(byte if chr(byte).isalpha() and byte < 128 else 32 for byte in range(256))
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x9f]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_HYPHENS = {ord(mark): "-" for mark in "\u2010\u2011\u2012\u2013\u2212"}
_LOOSE = re.compile(r" (?=[.,;:!?]+(?: |$))")
_STOPS = re.compile(r"\.{2,}")


def plain(text: str) -> str:
    """The text without characters that show nothing and could hide an identifier, and with one kind of hyphen."""
    text = _CONTROL.sub(" ", text)
    return text if text.isascii() else _INVISIBLE.sub("", text).translate(_HYPHENS)


def sentences(text: str) -> list[str]:
    """Clean sentences: newlines folded, numbered and bulleted items apart, decimals whole, each ended by a stop."""
    result = []
    # Looking for items takes long, and most texts are none.
    for item in _ITEM.split(text) if _PERHAPS_ITEM.search(text) else [text]:
        folded = _LOOSE.sub("", " ".join(item.split()))
        folded = _STOPS.sub(".", folded) if ".." in folded else folded
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
    if not text.isascii():
        return len(_WORD.findall(text))
    return sum(len(word) > 1 for word in text.encode().translate(_LETTERS).split())
