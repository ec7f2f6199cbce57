"""Every reason code that the code gives is in the closed list, and every code of the list has a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import preprocess
from preprocess.reasons import REASONS

_GIVEN = re.compile(
    r"""(?:\b(?:failed|skipped)\(\s*|Outcome\(\s*Status\.(?:FAILED|SKIPPED),\s*)["'](?P<code>[\w ]+)["']"""
)


def test_codes_in_the_source_are_in_the_list() -> None:
    found = {}
    for path in Path(preprocess.__file__).parent.rglob("*.py"):
        for match in _GIVEN.finditer(path.read_text()):
            found.setdefault(match["code"], path.name)
    assert len(found) > 15
    assert {code: name for code, name in found.items() if code not in REASONS} == {}


def test_each_code_has_a_sentence() -> None:
    assert all(re.fullmatch("[a-z_]+", code) and len(text) > 15 for code, text in REASONS.items())
