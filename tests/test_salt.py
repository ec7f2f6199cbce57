"""The salt: one token for all names of a patient, found without numpy or torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medcoss.contracts import UsageError
from medcoss.salt import Salt, read_salt, subject_token


def test_a_token_follows_the_alias_and_the_salt() -> None:
    salt = Salt(b"a secret of sixteen characters")
    token = subject_token(salt, "P17", {})
    assert len(token) == 16 and set(token) <= set("abcdefghijklmnopqrstuvwxyz234567")
    assert subject_token(salt, " Miller ", {"Miller": "P17"}) == token
    assert subject_token(Salt(b"another secret of some length"), "P17", {}) != token
    assert subject_token(salt, "P18", {}) != token


def test_reading_makes_no_salt(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_salt(tmp_path / "salt")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "salt").write_text("short")
    with pytest.raises(UsageError, match="fewer than 16"):
        read_salt(tmp_path / "salt")


def test_the_standard_library_is_enough() -> None:
    code = "import sys, medcoss.salt; assert not {'numpy', 'torch', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
