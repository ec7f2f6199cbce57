"""The tokenizer of a set of texts: byte-level BPE trained on the train split; and texts cut to its length.

Both work word by word, and words are few: what the library makes of one is asked for once. That is exact, for a text
is one line of words between single blanks, no token spans a blank but at its own beginning, and the normal form of no
character ends in one. (Training alone sees runs of blanks, where marks are taken out: no run reaches over a word.)
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from medcoss.contracts import CLS_ID, DEID_ID, SEP_ID, SPECIAL_TOKENS, MedcossError
from preprocess.readers.text import sentence_ends

Found = TypeVar("Found")

TOKENIZER = "tokenizer.json"
_DEID = SPECIAL_TOKENS[DEID_ID]
_FRAME = 2
"""[CLS] and [SEP]."""
_REMEMBERED = 1 << 17
_LONGEST_REMEMBERED = 64


def train(texts: Iterable[bytes | np.ndarray[Any, Any]], limit: int) -> tuple[bytes, int]:
    """The tokenizer as JSON and its size in tokens, at most `limit`. Raises `MedcossError` if there are no texts."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    trainer = trainers.BpeTrainer(
        vocab_size=limit,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    count = 0

    def divided(word: str) -> str:
        # The mark must not be taken apart into pieces of its own. Bytes are spelled as letters: a piece holds no blank.
        normal = normalizer.normalize_str(word.replace(_DEID, " "))
        return " ".join(piece for piece, _ in byte_level.pre_tokenize_str(normal))

    def prepared() -> Iterator[str]:
        nonlocal count
        pieces = _Memory(divided)
        for data in texts:
            count += 1
            yield " ".join(map(pieces.__getitem__, _words(bytes(data).decode())))

    tokenizer.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    tokenizer.train_from_iterator(prepared(), trainer)
    if count == 0:
        raise MedcossError("no report is in the train split, so there is no tokenizer: give more subjects or --split")
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS_ID), ("[SEP]", SEP_ID)]
    )
    return tokenizer.to_str().encode(), tokenizer.get_vocab_size()


def _words(text: str) -> list[str]:
    """The words, all but the first with the blank before them, which belongs to their first token."""
    return text.replace(" ", "\n ").split("\n")


class _Memory(dict[str, Found]):
    """What was found for each word, so that it is looked for once. Very long words are as many as there are texts."""

    def __init__(self, find: Callable[[str], Found]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, word: str) -> Found:
        found = self._find(word)
        if len(word) <= _LONGEST_REMEMBERED:
            if len(self) == _REMEMBERED:
                self.clear()
            self[word] = found
        return found


class Shortener:
    """Makes texts of at most `length` tokens, [CLS] and [SEP] included, out of longer ones, at sentence ends.

    `chunk` makes as many as are needed for all sentences in their order; otherwise the first is kept alone. Texts are
    one line of words between single blanks.
    """

    def __init__(self, tokenizer: bytes, length: int, *, chunk: bool = False) -> None:
        from tokenizers import Tokenizer

        encode = Tokenizer.from_str(tokenizer.decode()).encode
        # Where each token of a word ends, in characters of the word.
        self._ends = _Memory(lambda word: tuple(end for _, end in encode(word, add_special_tokens=False).offsets))
        self._length = length
        self._chunk = chunk
        self._texts = self._long = 0
        self._lengths = array("I")
        self._last: tuple[bytes, list[tuple[str, int]]] = (b"", [])

    def count(self, data: bytes | np.ndarray[Any, Any]) -> int:
        """How many texts become of it."""
        return len(self._parts(bytes(data))) if self._chunk else 1

    def __call__(self, data: bytes | np.ndarray[Any, Any], part: int = 0) -> bytes:
        """The text, or one part of it. A sentence that is too long for one is cut between two words."""
        if self._chunk:
            parts = self._parts(bytes(data))
            (text, tokens), more = parts[part], len(parts) > 1
        else:
            whole = bytes(data).decode()
            end, tokens = self._end(whole, 0)
            text, more = whole[:end], end < len(whole)
        self._texts += part == 0
        self._long += part == 0 and more
        self._lengths.append(tokens)
        return text.encode()

    def _parts(self, data: bytes) -> list[tuple[str, int]]:
        """The texts made of one with their numbers of tokens; joined by blanks they are the whole."""
        if self._last[0] != data:
            parts, text, start = [], data.decode(), 0
            while start < len(text):
                end, tokens = self._end(text, start)
                parts.append((text[start:end], tokens))
                start = end + (text[end : end + 1] == " ")
            self._last = (data, parts)
        return self._last[1]

    def _end(self, text: str, start: int) -> tuple[int, int]:
        """Where the sentences end that fit, from `start` on, and their number of tokens."""
        # Most of a long text is never looked at: what is too many tokens shows in its beginning.
        reach = 6 * self._length
        while True:
            space = text.find(" ", start + reach)
            words = _words(text[start : space if space > 0 else len(text)])
            tokens = self._count(words)
            if space < 0 or tokens > self._length:
                break
            reach *= 2
        if tokens <= self._length:
            return len(text), tokens
        limit = self._reached(words)
        window = text[start : start + limit + 3]
        ends = [end for end in sentence_ends(window) if end <= limit]
        end = ends[-1] if ends else window.rfind(" ", 0, limit + 1)
        if end <= 0:
            end = max(limit, 1)
        # A word that is cut, or a stop that stands at the end now, may take a token more than it did.
        while (tokens := self._count(_words(text[start : start + end]))) > self._length and end > 1:
            end -= 1
        return start + end, tokens

    def _count(self, words: list[str]) -> int:
        return sum(map(len, map(self._ends.__getitem__, words))) + _FRAME

    def _reached(self, words: list[str]) -> int:
        """The characters up to the end of the last token that leaves room for [SEP]."""
        left, place = self._length - _FRAME, 0
        for word in words:
            ends = self._ends[word]
            if len(ends) >= left:
                return place + ends[left - 1]
            left -= len(ends)
            place += len(word)
        return place

    def statistics(self) -> dict[str, float]:
        """`truncated_fraction` or `chunked_fraction` of texts, `mean_tokens` of a stored one."""
        shares = {"truncated_fraction": 0.0} if self._chunk else {}
        name = "chunked_fraction" if self._chunk else "truncated_fraction"
        return shares | {
            name: self._long / max(self._texts, 1),
            "mean_tokens": sum(self._lengths) / max(len(self._lengths), 1),
        }

    def figures(self) -> dict[str, list[float]]:
        """Tokens of each stored text, [CLS] and [SEP] included."""
        return {"length (tokens)": [float(tokens) for tokens in self._lengths]}

    def notes(self) -> list[str]:
        """A warning where more than 5 % were cut."""
        share = self._long / max(self._texts, 1)
        if share <= 0.05:
            return []
        if self._chunk:
            return [f"{share:.0%} of the texts became several samples of at most {self._length} tokens"]
        return [f"{share:.0%} of the texts were cut to {self._length} tokens: --long chunk keeps their ends"]
