"""Reports: sections, sentences, tables, tokenizer, truncation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from medcoss.contracts import CLS_ID, DEID_ID, SEP_ID, SPECIAL_TOKENS, UsageError
from preprocess.conversion import Conversion, Discovery, InputFile, Inspected, Refusal, Status
from preprocess.modalities import report
from preprocess.readers.sections import sections
from preprocess.readers.text import sentences
from preprocess.tokens import Shortener
from tests.support import discovery


def discover(files: Sequence[InputFile], settings: dict[str, Any]) -> Discovery:
    """Units and outcomes as the engine finds them."""
    return discovery.discover(report, files, settings)


def settings(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    common = {"id_columns": ["file", "uid"], "label_columns": ["label"], "subject_column": "subject"}
    return {**report.settings(parser.parse_args(list(words))), **common}


def convert(path: Path, content: str | bytes, *words: str) -> Conversion:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    options = settings(*words)
    file = InputFile(path, path.name)
    (unit,) = report.group([Inspected(file, report.inspect(file, options))], options).units
    return report.convert(unit, options)


def texts(conversion: Conversion) -> list[str]:
    return [bytes(piece.data).decode() for piece in conversion.pieces]


REPORT = """EXAMINATION: CHEST PA AND LATERAL
PATIENT NAME: DOE, JANE
INDICATION: Cough, followed by Dr. Smith.

FINDINGS:
There is a 2.5 cm nodule in the
right upper lobe. Heart size is normal
LUNGS: otherwise clear.

IMPRESSION:
1. Nodule, 2.5 cm. Follow-up is advised.
2. No effusion
ADDENDUM: Compared with 03/14/2019 there is no change.

Electronically signed by Jane Smith, M.D.
"""


def test_impression_comes_first_and_sentences_are_clean(tmp_path: Path) -> None:
    (text,) = texts(convert(tmp_path / "a.txt", REPORT))
    assert text == (
        "Nodule, 2.5 cm. Follow-up is advised. No effusion. Compared with [DEID] there is no change. "
        "There is a 2.5 cm nodule in the right upper lobe. Heart size is normal LUNGS: otherwise clear."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IMPRESSION: Normal.", ("Normal.", "")),
        ("Findings: clear\nConclusion: Normal.", ("Normal.", "clear")),
        ("FINDINGS\nclear\n\nIMPRESSION\nNormal.", ("Normal.", "clear")),
        ("Opinion - Normal.\nTechnique: PA", ("Normal.", "")),
        ("FINDINGS: clear.\r\nIMPRESSION: ok.\r\nRECOMMENDATION: none", ("ok.", "clear.")),
        (
            "FINAL REPORT\nINDICATION: cough\n\nPA view was taken.\n\nLungs are clear today.",
            ("Lungs are clear today.", ""),
        ),
        ("Dear colleague, this is no report.", None),
        ("def main():\n    return 0\n", None),
    ],
)
def test_sections(text: str, expected: tuple[str, str] | None) -> None:
    assert sections(text) == expected


def test_sentences_split_lists_and_keep_decimals() -> None:
    assert sentences("1. Mass of 2.5 cm\n2) Stable, grade 5. The heart is large\n- clear") == [
        "Mass of 2.5 cm.", "Stable, grade 5.", "The heart is large.", "clear.",
    ]  # fmt: skip
    assert sentences("No process.\n. Lungs .. are clear") == ["No process.", "Lungs. are clear."]


@pytest.mark.parametrize(
    ("name", "content", "status", "reason"),
    [
        ("a.txt", "just a note to myself", Status.FAILED, "no_text"),
        ("a.txt", "IMPRESSION:\n\n", Status.FAILED, "no_text"),
        ("a.txt", "IMPRESSION: No change.", Status.SKIPPED, "too_short"),
        ("a.txt", "", Status.FAILED, "empty"),
        ("a.txt", b"IMPRESSION: caf\xe9 is fine today", Status.FAILED, "encoding"),
        ("a.txt", b"\x00\x01\x02", Status.FAILED, "unreadable"),
        ("a.csv", "uid,comment\n1,x\n", Status.SKIPPED, "no_text_column"),
        ("a.csv", "uid,impression\n", Status.FAILED, "empty"),
        ("a.csv", "", Status.FAILED, "empty"),
    ],
)
def test_what_is_no_report_has_its_reason(
    tmp_path: Path, name: str, content: str | bytes, status: Status, reason: str
) -> None:
    with pytest.raises(Refusal) as refusal:
        convert(tmp_path / name, content)
    assert (refusal.value.outcome.status, refusal.value.outcome.reason) == (status, reason)


def test_another_encoding_can_be_named(tmp_path: Path) -> None:
    assert texts(convert(tmp_path / "a.txt", b"IMPRESSION: caf\xe9 is fine today", "--encoding", "latin-1")) == [
        "café is fine today."
    ]
    with pytest.raises(UsageError, match="unknown"):
        settings("--encoding", "klingon")


def test_table_rows_are_samples_with_their_own_columns(tmp_path: Path) -> None:
    table = (
        "uid,subject,split,label,name,findings,impression,phone\n"
        'u1,S1,test,ill,"Doe, Jane",Heart is large.,"No effusion, Jane is well.",617-555-0134\n'
        "u2,S2,,well,,The lungs are clear today.,,\n"
        "u3,S3,,well,,,ok,\n"
    )
    conversion = convert(tmp_path / "t.csv", table, "--name-column", "name")
    assert texts(conversion) == ["No effusion, [DEID] is well. Heart is large.", "The lungs are clear today."]
    first = conversion.pieces[0]
    assert (first.row, first.subject_ids[0], first.split, first.labels) == ("u1", "S1", "test", {"label": "ill"})
    outcome = conversion.outcomes["t.csv"]
    assert (outcome.status, outcome.reason) == (Status.WRITTEN, "")
    assert conversion.counts == {"t.csv": {"rows read": 3, "rows too short": 1}}
    swapped = convert(tmp_path / "t.csv", table, "--text-column", "findings", "--text-column", "impression")
    assert texts(swapped)[0].startswith("Heart is large. No effusion")


def test_discover_tells_reports_from_other_files(tmp_path: Path) -> None:
    names = ["a.txt", "b.CSV", "README.md", "LICENSE", "readme.txt", "x.json", "pic.png", "p10/s1.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"{}" if name == "x.json" else b"x")
    found = discover([InputFile(tmp_path / name, name) for name in names], settings())
    assert [unit.files[0].relative for unit in found.units] == ["a.txt", "b.CSV", "x.json", "p10/s1.txt"]
    assert {name: outcome.reason for name, outcome in found.outcomes.items()} == {
        "README.md": "not_an_input", "LICENSE": "not_an_input", "readme.txt": "not_an_input",
        "pic.png": "not_an_input",
    }  # fmt: skip


CORPUS = [
    f"The {side} {place} shows {size}.5 cm of [DEID] {what}. Heart size is normal. No effusion is seen."
    for side in ("left", "right") for place in ("lung", "base", "apex") for size in range(9)
    for what in ("opacity", "nodule")
]  # fmt: skip


def test_tokenizer_has_the_special_tokens_first_and_is_the_same_each_time() -> None:
    spec, files = report.finish(settings(), (text.encode() for text in CORPUS))
    again, more = report.finish(settings(), (text.encode() for text in CORPUS))
    assert files == more
    assert spec == again
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    assert spec.vocabulary == tokenizer.get_vocab_size()
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(6))
    ids = tokenizer.encode("Never seen: Ünïcode [DEID] 7").ids
    assert (ids[0], ids[-1]) == (CLS_ID, SEP_ID)
    assert ids.count(DEID_ID) == 1
    assert 1 not in ids
    small, _ = report.finish(settings("--vocabulary", "512"), (text.encode() for text in CORPUS))
    assert small.vocabulary is not None
    assert small.vocabulary <= 512


def test_long_texts_are_cut_at_a_sentence_end_and_the_impression_survives() -> None:
    _, files = report.finish(settings(), (text.encode() for text in CORPUS))
    shorten = Shortener(files["tokenizer.json"], 40)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    long = "Impression of a nodule. " + " ".join(CORPUS[:20])
    cut = shorten(long.encode()).decode()
    assert long.startswith(cut)
    assert cut.startswith("Impression of a nodule.")
    assert cut.endswith(".")
    assert not cut.endswith("0.")
    assert 20 < len(tokenizer.encode(cut).ids) <= 40
    assert shorten(b"Short text stays.") == b"Short text stays."
    endless = shorten(("heart " * 400).encode()).decode()
    assert 38 <= len(tokenizer.encode(endless).ids) <= 40
    assert shorten.statistics()["truncated_fraction"] == pytest.approx(2 / 3)
    assert shorten.notes() == ["67% of the texts were cut to 40 tokens: --long chunk keeps their ends"]
