"""Tokens found word by word are those that the library finds in whole texts."""

from __future__ import annotations

import itertools
import random
import re
import unicodedata

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from medcoss.contracts import SPECIAL_TOKENS
from preprocess.readers.text import sentence_ends
from preprocess.tokens import Shortener, train

_USUAL = ["lungs", "Clear.", "2.5", "cm.", "effusion,", "Heart", "it's", "1.", "(mild)", "No", "[DEID]", "([DEID]),",
          "x[DEID]."]  # fmt: skip
_RANGES = [(0x21, 0x7F), (0xA1, 0x250), (0x300, 0x500), (0x900, 0x980), (0x1100, 0x1200), (0x1F00, 0x1FFF),
           (0x2030, 0x205E), (0x3041, 0x3100), (0xFB00, 0xFDFD), (0xFF00, 0xFFEF), (0x1D400, 0x1D430)]  # fmt: skip
_STRANGE = [chr(code) for code in itertools.chain(*itertools.starmap(range, _RANGES)) if not chr(code).isspace()]


def _texts(count: int) -> list[str]:
    """Words of reports among others of any script, with marks that combine with what stands before them."""
    drawn = random.Random(7)
    texts = []
    for _ in range(count):
        words = [
            drawn.choice(_USUAL) if drawn.random() < 0.7 else "".join(drawn.choices(_STRANGE, k=drawn.randint(1, 5)))
            for _ in range(drawn.randint(1, 60))
        ]
        texts.append(re.sub(r"\[DEID\](?:[ ,]*\[DEID\])+", "[DEID]", " ".join(words)))
    return texts


def test_the_tokenizer_is_that_of_whole_texts() -> None:
    # Not those where a mark's blanks would join those of a lone diacritic after it: words apart, they cannot.
    texts = [text for text in _texts(150) if "    " not in unicodedata.normalize("NFKC", text.replace("[DEID]", " "))]
    assert len(texts) > 100
    found, size = train((text.encode() for text in texts), 900)
    plain = Tokenizer(models.BPE(unk_token="[UNK]"))
    plain.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    plain.train_from_iterator([text.replace("[DEID]", " ") for text in texts], trainer)
    tokenizer = Tokenizer.from_str(found.decode())
    assert tokenizer.get_vocab() == plain.get_vocab()
    assert size == plain.get_vocab_size() > 600
    assert [tokenizer.encode(text, add_special_tokens=False).ids for text in texts] == [
        plain.encode(text).ids for text in texts
    ]


def test_texts_are_cut_where_whole_ones_say() -> None:
    texts = _texts(200)
    found, _ = train((text.encode() for text in texts), 900)
    tokenizer = Tokenizer.from_str(found.decode())
    cut = 0
    for length in (12, 60):
        shorten = Shortener(found, length)
        kept = [shorten(text.encode()).decode() for text in texts]
        counts = [len(tokenizer.encode(text).ids) for text in kept]
        assert shorten.figures()["length (tokens)"] == counts
        for text, short in zip(texts, kept, strict=True):
            whole = tokenizer.encode(text)
            if len(whole.ids) <= length:
                assert short == text
                continue
            cut += 1
            limit = whole.offsets[length - 2][1]
            ends = [end for end in sentence_ends(text[: limit + 3]) if end <= limit]
            longest = ends[-1] if ends else max(text[: limit + 3].rfind(" ", 0, limit + 1), 0) or max(limit, 1)
            # Shorter only where the last word, being cut, took more tokens than before.
            assert short == text[: len(short)]
            assert len(short) == longest or (
                len(short) < longest and len(tokenizer.encode(text[: len(short) + 1]).ids) > length
            )
    assert cut > 100
