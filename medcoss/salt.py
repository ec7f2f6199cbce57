"""The secret salt behind all pseudonyms of a site, and the token a patient's name becomes under it.

Standard library only. `preprocess` gives samples their keys and tokens by it; `medcoss erase` finds a patient again.
"""

from __future__ import annotations

import base64
import csv
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medcoss.contracts import UsageError

DEFAULT_SALT = "~/.config/medcoss/salt"
"""Where a user's salt lies unless told otherwise."""

TOKEN_LENGTH = 16
"""Characters of a subject's token: 80 bits, so that two patients of one site never share one."""


@dataclass(frozen=True)
class Salt:
    """The secret of one site: without it tokens cannot be traced back by trying all patient numbers."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """What manifests show of the salt: equal for equal salts, useless for computing tokens."""
        return self.token("salt id", "", length=16)

    def digest(self, *parts: str | bytes) -> bytes:
        """HMAC-SHA256 over the parts, with lengths, so that ("ab", "c") and ("a", "bc") differ. 32 bytes."""
        message = b""
        for part in parts:
            data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
            message += len(data).to_bytes(8, "big") + data
        return hmac.digest(self.secret, message, "sha256")

    def token(self, *parts: str | bytes, length: int) -> str:
        """The first `length` characters of the digest in lower-case base32 ([a-z2-7])."""
        # Eight characters spell five bytes; spelling the whole digest would take longer than computing it.
        spelt = self.digest(*parts)[: -(-length // 8) * 5]
        return base64.b32encode(spelt).decode().lower()[:length]


def subject_token(salt: Salt, name: str, aliases: Mapping[str, str]) -> str:
    """The pseudonym of the patient called `name`, the same in all sets of one salt. [a-z2-7]{16}

    `aliases` maps other names of a patient to the one that counts (`read_aliases`); blanks around names are ignored.
    """
    name = name.strip()
    return salt.token("subject", aliases.get(name, name), length=TOKEN_LENGTH)


def load_salt(path: Path) -> Salt:
    """Read the salt file, or make it once (mode 600, in a folder of mode 700).

    Raises `UsageError` if the file is too short to be a secret, `OSError` if it cannot be read or made.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Whole before it has its name: two first runs at once must agree on one salt, and a killed one leaves none.
    if not path.exists():
        fresh = path.with_name(f"{path.name}.{os.getpid()}.partial")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            if not path.exists():
                os.link(fresh, path)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    return read_salt(path)


def read_salt(path: Path) -> Salt:
    """Read a salt file that must be there already; same errors as `load_salt`."""
    secret = path.read_bytes().strip()
    if len(secret) < 16:
        raise UsageError(f"the salt file {path} holds fewer than 16 characters: write a longer secret or delete it")
    return Salt(secret)


def read_aliases(path: Path) -> dict[str, str]:
    """`--subject-alias CSV`, columns `alias,subject`: two names of one patient. Chains are followed.

    Raises `UsageError` if the columns are missing, an alias has two subjects, or names form a ring.
    """
    pairs: dict[str, str] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if not {"alias", "subject"} <= set(reader.fieldnames or ()):
            raise UsageError(f"the alias table {path} lacks the columns alias,subject: add that header")
        for row in reader:
            alias, subject = (row["alias"] or "").strip(), (row["subject"] or "").strip()
            if alias == subject or not alias or not subject:
                continue
            if pairs.setdefault(alias, subject) != subject:
                raise UsageError(f"the alias table {path} gives one alias two subjects (line {reader.line_num})")
    resolved = {}
    for alias in pairs:
        seen, name = {alias}, pairs[alias]
        while name in pairs:
            if name in seen:
                raise UsageError(f"the alias table {path} goes round in a ring: name one of its subjects as the last")
            seen.add(name)
            name = pairs[name]
        resolved[alias] = name
    return resolved
