"""Text files of reports: layouts, encodings, headers in several words and languages, and what is no report."""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path
from typing import Any

import pytest

from preprocess.conversion import Conversion, InputFile, Inspected, Refusal
from preprocess.modalities import report
from preprocess.readers import parts
from preprocess.readers.rows import BAD_ENCODING, MALFORMED, READ
from preprocess.readers.sections import is_prose_of_a_report, sections
from preprocess.split import Salt, Subjects


def settings(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    common = {"id_columns": ["file"], "label_columns": ["label"], "subject_column": "subject"}
    return {**report.settings(parser.parse_args(list(words))), **common}


def convert(path: Path, content: str | bytes, *words: str, relative: str = "") -> list[Conversion]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    options = settings(*words)
    file = InputFile(path, relative or path.name)
    units = report.group([Inspected(file, report.inspect(file, options))], options).units
    return [report.convert(unit, options) for unit in units]


def texts(conversions: list[Conversion]) -> list[str]:
    return [bytes(piece.data).decode() for conversion in conversions for piece in conversion.pieces]


MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___F with new onset ascites  // eval for infection
 
 TECHNIQUE:  Chest PA and lateral
 
 COMPARISON:  None.
 
 FINDINGS: 
 
 There is no focal consolidation, pleural effusion or pneumothorax.  Bilateral
 nodular opacities are 2.5 cm and most likely represent nipple shadows.
 
 IMPRESSION: 
 
 1.  No acute cardiopulmonary process.
 2.  Findings were discussed by Dr. ___ with Dr. ___ at 8:23 PM on ___.
"""  # noqa: W291, W293


def test_the_layout_of_mimic_cxr(tmp_path: Path, salt: Salt) -> None:
    name = "files/p10/p10000032/s50414267.txt"
    (conversion,) = convert(tmp_path / "s50414267.txt", MIMIC, relative=name)
    assert texts([conversion]) == [
        "No acute cardiopulmonary process. Findings were discussed by Dr. [DEID] with Dr. [DEID] at [DEID] on [DEID]. "
        "There is no focal consolidation, pleural effusion or pneumothorax. Bilateral nodular opacities are 2.5 cm and "
        "most likely represent nipple shadows."
    ]
    (piece,) = conversion.pieces
    assert piece.row == "50414267"
    subjects = Subjects(salt)
    token, known = subjects.token(None, piece.subject_ids, name, piece.row)
    assert known
    assert token == subjects.token(None, ("p10000032",), "elsewhere.dcm", None)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FINAL REPORT\nHISTORY: cough.\n\nPA view of the chest.\n\nThe lungs are clear.", "The lungs are clear."),
        ("FINAL REPORT\nThe lungs are clear.\nThe heart is large.", "The lungs are clear.\nThe heart is large."),
        ("WET READ: no change\nFINAL REPORT\nPORTABLE CHEST, ___\n\nTubes stay.\n\nNo edema.", "No edema."),
        (
            "PA and lateral views of the chest.\n\nNo pleural effusion or pneumothorax. The lungs are clear.",
            "No pleural effusion or pneumothorax. The lungs are clear.",
        ),
    ],
)  # fmt: skip
def test_the_last_paragraph_stands_for_missing_sections(text: str, expected: str) -> None:
    assert sections(text) == (expected, "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RESULT: clear.\nOPINION: normal.", ("normal.", "clear.")),
        ("REPORT:\nclear.\nSUMMARY:\nnormal.", ("normal.", "clear.")),
        ("Assessment: normal.\nObservations: clear.", ("normal.", "clear.")),
        ("**FINDINGS:** clear.\n**IMPRESSION:** normal.", ("normal.", "clear.")),
        ("Befund: frei.\n\nBeurteilung: unauffällig.\nFragestellung: Husten?", ("unauffällig.", "frei.")),
        ("TECHNIQUE : scanner.\nRÉSULTATS : rien.\nCONCLUSION : normal.", ("normal.", "rien.")),
        ("HALLAZGOS: nada.\nIMPRESIÓN DIAGNÓSTICA: normal.", ("normal.", "nada.")),
        ("IMPRESSION: one.\nADDENDUM 2: three.\nFINDINGS: two", ("one.\nthree.", "two")),
        ("FINDINGS: as in the\nreport.\nThe heart is large.", ("", "as in the\nreport.\nThe heart is large.")),
        ("FINDINGS: better than the prior\nstudy\nof May.", ("", "better than the prior\nstudy\nof May.")),
        ("Findings\nclear.\nImpression\nnormal.", ("normal.", "clear.")),
    ],
)  # fmt: skip
def test_headers_have_many_words(text: str, expected: tuple[str, str]) -> None:
    assert sections(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "This dataset holds CT and MRI of the lung with nodule labels, see https://example.org for the mass data.",
        "# Lung nodules\n\nEffusion, edema and consolidation labels of the lungs.",
        "Dear colleague, thank you for the patient with the heart; we talked about many other things in the garden, "
        "and the weather was fine for the season, which all of us have enjoyed for quite a long time, as you know.",
        "lung = 1\nheart = {2}\neffusion = 3\nedema = 4",
        "a,b,c",
    ],
)
def test_other_prose_is_no_report(text: str) -> None:
    assert not is_prose_of_a_report(text)
    assert sections(text) is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_understood(tmp_path: Path, encoding: str) -> None:
    data = "IMPRESSION: The café is fine.".encode(encoding)
    assert texts(convert(tmp_path / "a.txt", data)) == ["The café is fine."]
    assert texts(convert(tmp_path / "a.txt.gz", gzip.compress(data), "--encoding", "latin-1")) == ["The café is fine."]


def test_what_shows_nothing_cannot_hide_an_identifier(tmp_path: Path) -> None:
    hidden = "Call 617\u2011555\u20110134 or Dr.\u200b Sm\u00adith, on 03/\u206014/2019.\x07 The lungs are clear."
    (text,) = texts(convert(tmp_path / "a.txt", f"IMPRESSION: {hidden}"))
    assert text == "Call [DEID] or [DEID], on [DEID]. The lungs are clear."


def test_numbered_lists_addenda_and_decimals(tmp_path: Path) -> None:
    content = (
        "FINDINGS:\n1) A 2.5 cm mass,\n   grade 5. The heart is large.\n(2) No effusion\n- 1.5 x 2.0 cm node.\n"
        "IMPRESSION: 1. Mass of 2.5 cm. 2. Node, 2.0 cm\nADDENDUM: 1. Size is 2.6 cm."
    )
    assert texts(convert(tmp_path / "a.txt", content)) == [
        "Mass of 2.5 cm. Node, 2.0 cm. Size is 2.6 cm. A 2.5 cm mass, grade 5. The heart is large. No effusion. "
        "1.5 x 2.0 cm node."
    ]


def abstract(number: int) -> str:
    return (
        f"###{24000000 + number}\nOBJECTIVE\tTo ask number {number} .\nMETHODS\tWe gave @ mg ( {number}.5 each ) .\n"
        f"RESULTS\tIt was well .\nCONCLUSIONS\tGood , we think .\n\n"
    )


def test_abstracts_of_pubmed_rct_keep_their_own_order(tmp_path: Path) -> None:
    (conversion,) = convert(tmp_path / "train.txt", abstract(1) + abstract(2))
    assert texts([conversion]) == [
        f"To ask number {n}. We gave @ mg ( {n}.5 each ). It was well. Good, we think." for n in (1, 2)
    ]
    assert [piece.row for piece in conversion.pieces] == ["24000001", "24000002"]
    assert conversion.counts == {"train.txt": {READ: 2}}
    again = convert(tmp_path / "other.txt", abstract(2))[0].pieces[0]
    assert again.subject_ids == conversion.pieces[1].subject_ids


def test_a_broken_abstract_costs_itself_alone(tmp_path: Path) -> None:
    broken = (
        abstract(1).encode()
        + b"###5\nMETHODS\tcaf\xe9 was good .\n\n###6\nno label here\n\n###x\nMETHODS\tWe did it .\n\n"
        b"METHODS\tno id at all .\n\n" + abstract(2).encode()
    )
    (conversion,) = convert(tmp_path / "train.txt", broken)
    assert [piece.row for piece in conversion.pieces] == ["24000001", "24000002"]
    assert conversion.counts["train.txt"][BAD_ENCODING] == 1
    assert conversion.counts["train.txt"][MALFORMED] == 2
    assert conversion.counts["train.txt"][READ] == 5


def test_a_large_file_of_abstracts_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = "".join(abstract(number) for number in range(500))
    (whole,) = convert(tmp_path / "a.txt", content)
    monkeypatch.setattr(parts, "PART_BYTES", 3000)
    divided = convert(tmp_path / "a.txt", content)
    assert len(divided) > 10
    assert texts(divided) == texts([whole])
    assert len(texts(divided)) == 500


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("README.txt", "not_an_input"), ("read_me.txt", "not_an_input"), ("SHA256SUMS.txt", "not_an_input"),
        ("requirements.txt", "not_an_input"), ("LICENSE", "not_an_input"), ("a.md", "not_an_input"),
        ("a.pdf", "unsupported_format"), ("a.nii.gz", "unsupported_format"), ("a.parquet.gz", "unsupported_format"),
        ("a.gz", "unsupported_format"), ("a.png", "not_an_input"),
    ],
)  # fmt: skip
def test_what_is_no_report_by_its_name(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        convert(tmp_path / name, "IMPRESSION: The lungs are clear.")


def test_a_name_in_the_path_goes_from_the_text(tmp_path: Path) -> None:
    content = "IMPRESSION: Jane Doe has clear lungs. A doe is no patient."
    assert texts(convert(tmp_path / "a.txt", content, relative="ward 3/Doe_Jane.txt")) == [
        "[DEID] has clear lungs. A doe is no patient."
    ]
