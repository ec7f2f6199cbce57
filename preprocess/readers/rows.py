"""What all readers of rows share: names of columns, and the accounts of rows."""

from __future__ import annotations

from collections import Counter

READ = "rows read"
MALFORMED = "rows malformed"
BAD_ENCODING = "rows in another encoding"
TOO_LONG = "rows too long"
DEFECTS = (MALFORMED, BAD_ENCODING, TOO_LONG)

Row = dict[str, str]
"""{folded name of a column: text}; a column that the row lacks is missing."""

Tally = Counter[str]
"""Rows read, and rows left out for a defect, by the names above."""


def fold(name: str) -> str:
    """A column's name as names are compared: without case and outer spaces."""
    return name.strip().strip("\ufeff").casefold()
