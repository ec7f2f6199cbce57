"""Who a sample belongs to and which split that subject is in: names found, pseudonymous tokens, thresholds on an HMAC.

A subject's split depends on the salt and the subject's name alone, so adding inputs moves nobody and all modalities
agree. Raw names live in memory only, long enough to become a token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from medcoss.contracts import SPLITS, UsageError
from medcoss.salt import DEFAULT_SALT as DEFAULT_SALT
from medcoss.salt import Salt as Salt
from medcoss.salt import load_salt as load_salt
from medcoss.salt import read_aliases as read_aliases
from medcoss.salt import subject_token
from preprocess.conversion import WEAK

_SPLIT_NAMES = {
    "train": "train", "training": "train", "tr": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "development": "val",
    "test": "test", "testing": "test", "ts": "test",
}  # fmt: skip
_PLACEHOLDERS = frozenset(
    ("anon", "anonymous", "anonymized", "anonymised", "deidentified", "de-identified", "removed", "unknown", "none",
     "null", "nan", "na", "n/a", "no name", "noname", "name", "patient", "patientid", "subject", "id", "default")
)  # fmt: skip
_UID = re.compile(r"[0-2](\.\d+){4,}")
_MIMIC = re.compile(r"p\d{8}")
_BIDS = re.compile(r"(sub-[A-Za-z0-9]+)(_.*)?")
_TCGA = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")


def split_name(text: str) -> str | None:
    """The split that a table's cell names (train, val, test and their usual spellings), None for an empty cell.

    Raises `UsageError` for any other word.
    """
    word = text.strip().lower()
    if not word:
        return None
    if word not in _SPLIT_NAMES:
        raise UsageError(f"a split column says {word[:20]!r}: expected train, val or test")
    return _SPLIT_NAMES[word]


def parse_fractions(text: str) -> dict[str, float]:
    """`train=0.9,val=0.05,test=0.05` as a dict in the order of `SPLITS`. Raises `UsageError` unless it sums to 1."""
    try:
        given = {name.strip(): float(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise UsageError(f"--split {text!r} is not understood: expected train=0.9,val=0.05,test=0.05") from error
    if (
        set(given) - set(SPLITS)
        or any(not 0 <= value <= 1 for value in given.values())
        or abs(sum(given.values()) - 1) > 1e-6
    ):
        raise UsageError(f"--split {text!r}: expected fractions of train, val and test that sum to 1")
    return {name: given.get(name, 0.0) for name in SPLITS}


def assign(token: str, fractions: Mapping[str, float], salt: Salt) -> str:
    """The split of a subject without a given one: a threshold on HMAC(salt, token), uniform in [0, 1)."""
    place = int.from_bytes(salt.digest("split", token)[:8], "big") / 2**64
    limit = 0.0
    for name in SPLITS:
        limit += fractions[name]
        if place < limit:
            return name
    return max(SPLITS, key=lambda name: fractions[name])


def is_placeholder(name: str) -> bool:
    """Whether an id says nothing: empty, punctuation, zeros, crosses, or a word such as "anonymous"."""
    bare = name.removeprefix(WEAK).strip().lower()
    return bare in _PLACEHOLDERS or re.fullmatch(r"[\W_0]*|x{2,}", bare) is not None


def path_subject(relative: str) -> str | None:
    """A subject named by convention in a path: MIMIC folder, BIDS `sub-`, TCGA barcode (12 characters)."""
    for part in relative.split("/"):
        if _MIMIC.fullmatch(part):
            return part
        if match := _BIDS.fullmatch(part):
            return match[1]
        if match := _TCGA.match(part):
            return match[0]
    return None


@dataclass(frozen=True)
class Subjects:
    """Turns what is known of a sample's origin into a pseudonymous token."""

    salt: Salt
    aliases: Mapping[str, str] = field(default_factory=dict)
    pattern: re.Pattern[str] | None = None

    def token(self, given: str | None, ids: Sequence[str], relative: str, row: str | None) -> tuple[str, bool]:
        """The subject's token and whether it stands for a known subject.

        Order: `given` (from a table), --subject-from on the path, the input's own ids, a naming convention in the
        path, ids naming less than a patient, the row or the file itself (False is returned for these last).
        """
        for name in self._known(given, ids, relative):
            if name and not is_placeholder(name):
                return self._hash(name), True
        for name in ids:
            if _is_weak(name) and not is_placeholder(name):
                return self._hash(name), False
        return self._hash(f"file:{relative}" if row is None else f"row:{relative}\x1f{row}"), False

    def _known(self, given: str | None, ids: Sequence[str], relative: str) -> Iterator[str | None]:
        yield given
        yield self._from_pattern(relative)
        yield from (name for name in ids if not _is_weak(name))
        yield path_subject(relative)

    def _from_pattern(self, relative: str) -> str:
        match = self.pattern.search(relative) if self.pattern else None
        if match is None:
            return ""
        return (match.groupdict().get("subject") or (match[1] if match.re.groups else match[0])) or ""

    def _hash(self, name: str) -> str:
        return subject_token(self.salt, name, self.aliases)


def _is_weak(name: str) -> bool:
    return name.startswith(WEAK) or _UID.fullmatch(name.strip()) is not None


def parse_pattern(text: str) -> re.Pattern[str]:
    """Compile `--subject-from REGEX`; the subject is its group `subject`, else group 1, else the whole match."""
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"--subject-from {text!r} is no regular expression ({error}) and no .csv file") from error
