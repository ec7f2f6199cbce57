"""Rows of CSV and TSV, where a broken row costs itself alone and is never joined with its neighbours."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from preprocess.conversion import failed
from preprocess.readers.encoded import MAX_LINE_CHARACTERS, is_bad, lines, open_text
from preprocess.readers.rows import MALFORMED, READ, TOO_LONG, Row, Tally, fold

_DELIMITERS = ",;\t|"
_MAX_RECORD_LINES = 1000


def csv_header(path: Path, encoding: str) -> list[str]:
    """The names of the columns. Raises `Refusal`."""
    csv.field_size_limit(MAX_LINE_CHARACTERS)
    with open_text(path, encoding) as stream:
        return _header(_Feed(lines(stream)), path)[0]


def csv_rows(
    path: Path, encoding: str, wanted: Collection[str], tally: Tally, part: Sequence[int] | None
) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_CHARACTERS)
    first, size = part or (0, None)
    with open_text(path, encoding, 0, size if first == 0 else None) as stream:
        feed = _Feed(lines(stream))
        header, delimiter = _header(feed, path)
        places: dict[str, int] = {}
        for place, name in enumerate(map(fold, header)):
            if name in wanted:
                places.setdefault(name, place)
        if first == 0:
            for row in _Records(feed, delimiter, len(header), tally):
                yield {name: row[place] for name, place in places.items()}
            return
    with open_text(path, encoding, first, size) as stream:
        for row in _Records(_Feed(lines(stream)), delimiter, len(header), tally):
            yield {name: row[place] for name, place in places.items()}


def _header(feed: _Feed, path: Path) -> tuple[list[str], str]:
    try:
        first = next(feed, "")
    except _TooLongError as error:
        raise failed("too_large", f"more than {MAX_LINE_CHARACTERS >> 20} Mi characters in the first line") from error
    if not first.strip("\ufeff\r\n\t ,;"):
        raise failed("empty", "no line with the columns' names")
    if "\0" in first:
        raise failed("unreadable", "binary content in a table, or UTF-16 without its mark (name it in --encoding)")
    if is_bad(first):
        raise failed("encoding", "the line with the columns' names is in another encoding")
    named = "\t" if path.name.lower().removesuffix(".gz").endswith((".tsv", ".tab")) else None
    delimiter = named or next((mark for mark in _DELIMITERS if mark in first), ",")
    feed.give_back(all_of_it=True)
    try:
        header = next(csv.reader(feed, delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise failed("unreadable", "the line with the columns' names is no line of a table") from error
    # A comma at each line's end makes a column without a name, which counts like the others.
    return header, delimiter


class _TooLongError(csv.Error):
    pass


class _Feed:
    """Hands lines to a csv reader, and remembers those of the record in hand: a broken one must not cost its next."""

    def __init__(self, found: Iterable[str | None]) -> None:
        self._lines = iter(found)
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self._size = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        if len(self.taken) == _MAX_RECORD_LINES or self._size > MAX_LINE_CHARACTERS:
            raise csv.Error("a quote that is never closed")
        line = self._again.popleft() if self._again else next(self._lines)
        if line is None:
            raise _TooLongError
        self.taken.append(line)
        self._size += len(line)
        return line

    def start(self) -> None:
        """A new record begins."""
        self.taken.clear()
        self._size = 0

    def give_back(self, *, all_of_it: bool = False) -> None:
        """Have the lines of this record read again, except its first."""
        self._again.extendleft(reversed(self.taken if all_of_it else self.taken[1:]))
        self.start()


class _Records:
    """Rows of `width` cells. Others are counted, and reading goes on with the line after their first.

    What follows a broken row may be the rest of a text in quotes, whose lines look like rows now and then: the next
    row must begin with a cell of a kind seen before (a number, one word, several).
    """

    def __init__(self, feed: _Feed, delimiter: str, width: int, tally: Tally) -> None:
        self._feed, self._delimiter, self._width, self._tally = feed, delimiter, width, tally
        self._kinds: set[int] = set()
        self._doubtful = False

    def __iter__(self) -> Iterator[list[str]]:
        reader = self._reader()
        while True:
            self._feed.start()
            try:
                row = next(reader)
            except StopIteration:
                return
            except _TooLongError:
                self._count(TOO_LONG)
                if self._feed.taken:
                    self._count(MALFORMED)
                self._feed.give_back()
                reader = self._reader()
                continue
            except csv.Error:
                found = self._plain(self._feed.taken[0])
                self._feed.give_back()
                reader = self._reader()
                if found is None:
                    self._count(MALFORMED)
                else:
                    yield found
                continue
            if not row:
                continue
            if len(row) > self._width and not any(row[self._width :]):
                row = row[: self._width]
            kind = _kind(row[0])
            if len(row) != self._width or (self._doubtful and self._kinds and kind not in self._kinds):
                self._feed.give_back()
                reader = self._reader()
                self._count(MALFORMED)
                continue
            self._doubtful = False
            self._kinds.add(kind)
            yield row

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(self._feed, delimiter=self._delimiter, strict=True)

    def _count(self, what: str) -> None:
        self._tally[READ] += 1
        self._tally[what] += 1
        self._doubtful = True

    def _plain(self, line: str) -> list[str] | None:
        """Tabs alone divide a line: many write TSV without knowing of quotes."""
        cells = line.rstrip("\r\n").split(self._delimiter)
        return cells if self._delimiter == "\t" and len(cells) == self._width else None


def _kind(cell: str) -> int:
    return 0 if cell.isdigit() else 1 if re.search(r"\s", cell) is None else 2
