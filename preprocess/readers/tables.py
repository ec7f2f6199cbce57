"""Rows of tables: CSV and TSV, JSON lines and arrays, Parquet; plain or gzip'd, one row at a time.

What is wrong with a row costs that row and is counted; columns that nobody asked for never leave this module.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from preprocess.conversion import failed, skipped
from preprocess.heartbeat import beat
from preprocess.readers import parts
from preprocess.readers.delimited import csv_header, csv_rows
from preprocess.readers.encoded import MAX_LINE_CHARACTERS, find_encoding, is_bad, lines, open_text, read_bytes
from preprocess.readers.rows import BAD_ENCODING, MALFORMED, READ, TOO_LONG, Row, Tally, fold

_FORMS = {
    ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_MAX_JSON_BYTES = 64 << 20
_BATCH_ROWS = 256
_MAX_BATCH_BYTES = 512 << 20
"""Parquet stores equal cells once: a small file may hold any number of large ones."""


def table_form(relative: str) -> str | None:
    """`csv`, `jsonl`, `json` or `parquet` by the file's name, also before `.gz`; None for other names."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(relative).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
        return form if (form := _FORMS.get(suffixes[-1] if suffixes else "")) != "parquet" else None
    return _FORMS.get(suffixes[-1]) if suffixes else None


def table_parts(path: Path, form: str, encoding: str) -> list[list[int]]:
    """The parts a large table is read in: [first byte, bytes], or [first row, rows] of Parquet; none for a small one.

    Raises `Refusal`.
    """
    if form == "parquet":
        return parts.row_parts(_open_parquet(path).metadata.num_rows)
    if form == "json":
        return []
    return parts.byte_parts(path, encoding, parts.next_row if form == "csv" else parts.next_line)


def column_names(path: Path, form: str, encoding: str) -> list[str]:
    """The columns of a table as it names them; of JSON, those of its first record. Raises `Refusal`."""
    if form == "csv":
        return csv_header(path, encoding)
    if form == "parquet":
        return list(_open_parquet(path).schema_arrow.names)
    values = _json_lines(path, encoding, None) if form == "jsonl" else _json_array(path, encoding)
    return next((list(value) for value in values if isinstance(value, dict)), [])


def read_rows(
    path: Path, form: str, encoding: str, wanted: Collection[str], tally: Tally, part: Sequence[int] | None = None
) -> Iterator[Row]:
    """The rows of a table, or of one of its parts, as {folded column: text} of the `wanted` (folded) columns it has.

    A column that a row of JSON lacks or holds null in is missing; other cells are text. `tally` counts the rows read
    and those left out because their record is malformed, too long or not in the encoding.

    Raises `Refusal`: `empty`, `encoding`, `too_large`, or `unreadable` for what is no table.
    """
    if form == "csv":
        found = csv_rows(path, encoding, wanted, tally, part)
    elif form == "parquet":
        found = _parquet_rows(path, wanted, tally, part)
    elif form == "jsonl":
        found = _json_rows(_json_lines(path, encoding, part), wanted, tally)
    else:
        found = _json_rows(_json_array(path, encoding), wanted, tally)
    for row in found:
        tally[READ] += 1
        if sum(map(len, row.values())) > MAX_LINE_CHARACTERS:
            tally[TOO_LONG] += 1
        elif any(map(is_bad, row.values())):
            tally[BAD_ENCODING] += 1
        else:
            yield row


def _json_lines(path: Path, encoding: str, part: Sequence[int] | None) -> Iterator[Any]:
    """The value of each line; the name of its defect where there is none."""
    first, size = part or (0, None)
    with open_text(path, encoding, first, size) as stream:
        for line in lines(stream):
            if line is None:
                yield TOO_LONG
            elif line.strip("\ufeff\r\n\t "):
                yield _parsed(line.removeprefix("\ufeff"))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return MALFORMED


def _json_array(path: Path, encoding: str) -> Iterator[Any]:
    """The objects of an array, or of lines: some write those under this name too."""
    data = read_bytes(path, _MAX_JSON_BYTES)
    text = data.decode(find_encoding(data, encoding), errors="surrogateescape")
    value = _parsed(text)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        yield from value
    elif value is MALFORMED and isinstance(_parsed(text.lstrip().partition("\n")[0]), dict):
        yield from (_parsed(line) for line in text.splitlines() if line.strip())
    elif value is MALFORMED:
        raise failed("unreadable", "no JSON")
    else:
        raise skipped("unsupported_format", "JSON without an array of objects")


def _json_rows(values: Iterable[Any], wanted: Collection[str], tally: Tally) -> Iterator[Row]:
    for number, value in enumerate(values):
        if number % 1024 == 0:
            beat()
        if isinstance(value, dict):
            row = {}
            for name, cell in value.items():
                folded = fold(name)
                if folded in wanted and folded not in row and (text := _text(cell)) is not None:
                    row[folded] = text
            yield row
        else:
            tally[READ] += 1
            tally[TOO_LONG if value is TOO_LONG else MALFORMED] += 1


def _text(cell: Any) -> str | None:
    """A cell as text; None for what is missing, and for nested values."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bytes):
        return cell.decode("utf-8", errors="surrogateescape")
    if cell is None or isinstance(cell, (list, dict)) or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, bool):
        return str(cell).lower()
    # Numbers get a point where one of their column is missing: an id must stay what it is elsewhere.
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: a column's name
        raise failed("unreadable", "no Parquet file, or a damaged one") from error


def _parquet_rows(path: Path, wanted: Collection[str], tally: Tally, part: Sequence[int] | None) -> Iterator[Row]:
    import pyarrow as pa

    file = _open_parquet(path)
    columns: dict[str, str] = {}
    for name in file.schema_arrow.names:
        if fold(name) in wanted:
            columns.setdefault(fold(name), name)
    first, rows = part or (0, file.metadata.num_rows)
    groups: list[int] = []
    skip = place = 0
    for group in range(file.metadata.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        if place + count > first and place < first + rows:
            skip = first - place if not groups else skip
            groups.append(group)
        place += count
    if not columns or not groups:
        tally[READ] += rows
        return
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=list(columns.values())):
            beat()
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            if batch.nbytes > _MAX_BATCH_BYTES:
                raise failed("too_large", f"more than {_MAX_BATCH_BYTES >> 20} MiB in {_BATCH_ROWS} rows")
            taken = batch.slice(skip, rows)
            skip, rows = 0, rows - taken.num_rows
            cells = [_column(taken.column(name)) for name in columns.values()]
            for row in zip(*cells, strict=True):
                yield {name: text for name, cell in zip(columns, row, strict=True) if (text := _text(cell)) is not None}
            if rows == 0:
                return
    except (pa.ArrowException, OSError) as error:
        raise failed("unreadable", "damaged Parquet data") from error


def _column(array: Any) -> list[Any]:
    """The values; text as bytes where some of it is no UTF-8, so that the others can still be read."""
    import pyarrow as pa

    try:
        return list(array.to_pylist())
    except UnicodeDecodeError:
        return list(array.cast(pa.binary()).to_pylist())
