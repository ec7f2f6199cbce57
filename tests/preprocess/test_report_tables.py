"""Tables of reports: every kind, read in parts, with each row either read right or counted as left out."""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocess.conversion import Conversion, InputFile, Inspected, Outcome, Refusal, Status
from preprocess.modalities import report
from preprocess.readers import encoded, parts
from preprocess.readers.rows import BAD_ENCODING, MALFORMED, READ, TOO_LONG
from preprocess.readers.tables import read_rows, table_form

TEXTS = [
    "The lungs are clear.",
    "A 2.5 cm nodule, unchanged.",
    'So-called "ground glass" is seen.',
    "No effusion\nis seen.",
]
CLEAN = [
    "The lungs are clear.",
    "A 2.5 cm nodule, unchanged.",
    'So-called "ground glass" is seen.',
    "No effusion is seen.",
]


def settings(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    common = {"id_columns": ["file", "uid"], "label_columns": ["label"], "subject_column": "subject"}
    return {**report.settings(parser.parse_args(list(words))), **common}


def convert(path: Path, *words: str) -> list[Conversion]:
    options = settings(*words)
    file = InputFile(path, path.name)
    units = report.group([Inspected(file, report.inspect(file, options))], options).units
    return [report.convert(unit, options) for unit in units]


def texts(conversions: list[Conversion]) -> list[str]:
    return [bytes(piece.data).decode() for conversion in conversions for piece in conversion.pieces]


def rows(path: Path, *columns: str) -> tuple[list[dict[str, str]], Counter[str]]:
    tally: Counter[str] = Counter()
    form = table_form(path.name)
    assert form is not None
    return list(read_rows(path, form, "utf-8", frozenset(columns), tally)), tally


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """The records as a table of the kind that the name says."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=3)
        return path
    if name.endswith(".jsonl"):
        content = "".join(json.dumps(record) + "\n" for record in records)
    elif name.endswith(".json"):
        content = json.dumps(records, indent=1)
    else:
        mark = "\t" if name.endswith(".tsv") else ";" if name.startswith("semicolon") else ","
        lines = [mark.join(records[0])]
        lines += [mark.join('"' + str(cell).replace('"', '""') + '"' for cell in row.values()) for row in records]
        content = "\r\n".join(lines) + "\r\n"
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "a.csv",
        "a.TSV".lower(),
        "semicolon.csv",
        "a.csv.gz",
        "a.jsonl",
        "a.jsonl.gz",
        "a.ndjson.jsonl",
        "a.json",
        "a.parquet",
    ],
)
def test_every_kind_of_table_gives_the_same_samples(tmp_path: Path, name: str) -> None:
    records = [
        {"UID": number, "Subject": f"S{number}", "Findings": text, "Label": "x", "other": "secret"}
        for number, text in enumerate(TEXTS)
    ]
    conversion, *others = convert(write(tmp_path / name, records))
    assert others == []
    assert texts([conversion]) == CLEAN
    assert [piece.row for piece in conversion.pieces] == ["0", "1", "2", "3"]
    assert [piece.subject_ids[0] for piece in conversion.pieces] == ["S0", "S1", "S2", "S3"]
    assert [piece.labels for piece in conversion.pieces] == [{"label": "x"}] * 4
    assert conversion.counts == {name: {"rows read": 4}}
    assert conversion.outcomes == {name: Outcome(Status.WRITTEN)}


def test_text_columns_are_found_by_their_usual_names_in_any_case(tmp_path: Path) -> None:
    both = write(tmp_path / "both.csv", [{"FINDINGS ": "The heart is large.", "Impression": "No acute process."}])
    assert texts(convert(both)) == ["No acute process. The heart is large."]
    whole = write(tmp_path / "whole.csv", [{"id": "1", "Report_Text": "The heart is large.", "text": "not this one"}])
    assert texts(convert(whole)) == ["The heart is large."]
    assert texts(convert(whole, "--text-column", "TEXT")) == ["not this one."]
    with pytest.raises(Refusal) as refusal:
        convert(whole, "--text-column", "body")
    assert refusal.value.outcome == Outcome(Status.SKIPPED, "no_text_column", "none of body")


def test_a_cell_with_a_whole_report_is_read_by_its_sections(tmp_path: Path) -> None:
    lines = "PATIENT: Jane Doe\nINDICATION: cough\nFINDINGS:\nThe lungs are clear.\nIMPRESSION:\nNo acute process.\n"
    inline = "EXAMINATION: chest. INDICATION: cough. FINDINGS: The heart is large. IMPRESSION: 1. No edema is seen."
    abstract = "Background: we asked.\nMETHODS:\nwe looked at it.\nCONCLUSIONS:\nit is so."
    table = write(tmp_path / "a.jsonl", [{"text": lines}, {"text": inline}, {"text": abstract}])
    assert texts(convert(table)) == [
        "No acute process. The lungs are clear.",
        "No edema is seen. The heart is large.",
        "Background: we asked. METHODS: we looked at it. CONCLUSIONS: it is so.",
    ]


@pytest.mark.parametrize(
    ("line", "kept_lines"),
    [
        ("2,only two", []),
        ("2,a,text,too many", []),
        ('2,a,"a quote that never ends', []),
        ('2,a,"closed" and open', []),
        ('2,"a,it ends in the wrong cell', []),
        ('"2,a,text', []),
        ('2,a,"line one is\nline, two, of it" x', []),
        ('2,a,"first of them\n3,a,"second of them', []),
        ('2,a,"swallows\n', []),
        ("2,a,text of it,", ["text of it"]),
        ('2,a,5" of it', ['5" of it']),
        ('2,a,"two\nlines, of it"', ["two\nlines, of it"]),
        ("\n\n2,a,text of it", ["text of it"]),
    ],
)
@pytest.mark.parametrize("repeats", [1, 3])
def test_a_broken_row_costs_itself_alone(tmp_path: Path, line: str, kept_lines: list[str], repeats: int) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,b,text\n1,a,before\n" + f"{line}\n8,a,between\n" * repeats + '9,a,"after, it"\n')
    found, tally = rows(path, "text")
    expected = ["before", *([*kept_lines, "between"] * repeats), "after, it"]
    assert [row["text"] for row in found] == expected
    assert tally[READ] == len(expected) + tally[MALFORMED]
    assert (tally[MALFORMED] == 0) == bool(kept_lines)


def test_tabs_alone_divide_a_line_with_stray_quotes(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\t"Ground" glass\n2\t"open\n3\tthird\n4\t"a\ttab"\n5\tfew\tmany\n')
    found, tally = rows(path, "text")
    assert [row["text"] for row in found] == ['"Ground" glass', '"open', "third", "a\ttab"]
    assert tally == {READ: 5, MALFORMED: 1}


def test_a_row_in_another_encoding_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(
        "uid,text\n1,The café is open.\n2,".encode() + b"caf\xe9 is bad\n3,It has a \0 in it.\n4,It is well.\n"
    )
    (conversion,) = convert(path)
    assert texts([conversion]) == ["The café is open.", "It is well."]
    assert conversion.counts == {"a.csv": {READ: 4, BAD_ENCODING: 2}}
    assert conversion.outcomes["a.csv"] == Outcome(Status.WRITTEN, "malformed_rows")
    assert texts(convert(path, "--encoding", "latin-1"))[1] == "café is bad."
    path.write_bytes(b"uid,text\n1,caf\xe9 is bad\n")
    (failed,) = convert(path)
    assert failed.outcomes["a.csv"] == Outcome(Status.FAILED, "encoding")
    path.write_bytes(b"uid,text,\xe9\n1,caf\xe9 is bad\n")
    with pytest.raises(Refusal, match="encoding"):
        convert(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_byte_order_marks_tell_the_encoding_whatever_is_declared(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\nThe café is open.\n", encoding=encoding)
    words = ("--encoding", "utf-16-le") if encoding == "utf-16-le" else ("--encoding", "latin-1")
    assert texts(convert(path, *words)) == ["The café is open."]
    if encoding == "utf-16-le":
        with pytest.raises(Refusal, match="unreadable"):
            convert(path)


def test_lines_of_json_that_are_no_record_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "MAX_LINE_CHARACTERS", 2000)
    lines = [
        '\ufeff{"text": "It is one.", "uid": 7, "nested": {"text": "no"}}', "", "[1, 2]", "{broken", '"text"',
        '{"text": null}', '{"text": ["no"]}', "[" * 1900, '{"text": "' + "x" * 5000 + '"}',
        '{"uid": 1.0, "text": "It is two."}',
        '{"text": "lone \\ud800 half"}', '{"text": "nul \\u0000 in it"}', "9" * 1900,
        '{"Text": "It is three.", "uid": NaN}',
    ]  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    found, tally = rows(path, "text", "uid")
    assert found == [
        {"text": "It is one.", "uid": "7"}, {}, {}, {"uid": "1", "text": "It is two."}, {"text": "It is three."}
    ]  # fmt: skip
    assert tally == {READ: 13, MALFORMED: 5, TOO_LONG: 1, BAD_ENCODING: 2}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"", "empty"),
        ("a.csv", b"uid,text\n", "empty"),
        ("a.csv", b"\x00\x01\x02,\x03\n", "unreadable"),
        ("a.jsonl", b"", "empty"),
        ("a.json", b"", "empty"),
        ("a.json", b"{", "unreadable"),
        ("a.json", b'{"numTraining": 260}', "unsupported_format"),
        ("a.json", b"[1, 2]", "unsupported_format"),
        ("a.parquet", b"PAR1 no", "unreadable"),
        ("a.csv.gz", b"no gzip", "unreadable"),
        ("a.csv.gz", gzip.compress(b"uid,text\n" + b"1,It is well.\n" * 9999)[:-20], "unreadable"),
    ],
)
def test_what_is_no_table_has_its_reason(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Refusal, match=reason):
        convert(tmp_path / name)


def test_a_parquet_column_whose_name_is_no_text_is_unreadable(tmp_path: Path) -> None:
    pq.write_table(pa.table({"impression": ["It is well."], "zeta": ["a"]}), tmp_path / "a.parquet", compression="gzip")
    assert len(convert(tmp_path / "a.parquet")) == 1
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes().replace(b"zeta", b"z\x80ta"))
    with pytest.raises(Refusal, match="unreadable"):
        convert(tmp_path / "a.parquet")


def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "MAX_UNPACKED_BYTES", 1 << 20)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text\n" + b"It is well.\n" * 100_000))
    with pytest.raises(Refusal, match="too_large"):
        convert(tmp_path / "a.csv.gz")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(Refusal, match="too_large"):
        convert(tmp_path / "a.txt.gz")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.parquet"])
def test_a_large_table_is_read_in_parts_without_losing_or_doubling_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    records = [
        {"uid": number, "text": f'Report number {number} says\n{"very " * (number % 40)}"well", it ends.'}
        for number in range(1000)
    ]
    path = write(tmp_path / name, records)
    (whole,) = convert(path)
    monkeypatch.setattr(parts, "PART_BYTES", 5000)
    monkeypatch.setattr(parts, "PART_ROWS", 70)
    divided = convert(path)
    assert len(divided) > 10
    assert max(len(one.pieces) for one in divided) < 200
    assert texts(divided) == texts([whole])
    assert len(texts(divided)) == 1000
    assert [piece.row for one in divided for piece in one.pieces] == [str(number) for number in range(1000)]
    assert sum(one.counts[name]["rows read"] for one in divided) == 1000


def test_quotes_without_an_end_do_not_swallow_the_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = [f"{number},It is number {number}." for number in range(3000)]
    lines[100] = '100,"It has no end'
    path.write_text("uid,text\n" + "\n".join(lines) + "\n")
    found, tally = rows(path, "uid")
    assert [row["uid"] for row in found] == [str(number) for number in range(3000) if number != 100]
    assert tally == {READ: 3000, MALFORMED: 1}


def test_equal_rows_without_an_id_become_one_sample_and_are_counted(tmp_path: Path) -> None:
    records = [{"subject": f"S{number % 2}", "text": "The lungs are clear."} for number in range(50)]
    (conversion,) = convert(write(tmp_path / "a.csv", records))
    assert [piece.subject_ids[0] for piece in conversion.pieces] == ["S0", "S1"]
    assert conversion.counts == {"a.csv": {READ: 50, "copies": 48}}
    with_ids = [{"uid": number, "text": "The lungs are clear."} for number in range(50)]
    (conversion,) = convert(write(tmp_path / "b.csv", with_ids))
    assert len(conversion.pieces) == 50
