"""What is marked as an identifier, and what must stay."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medcoss.contracts import SPECIAL_TOKENS
from preprocess.deid import DEID, deidentify, mark_earlier, merge_marks, name_in_path, names_in


@pytest.mark.parametrize(
    "identifier",
    [
        "03/14/2019", "2019-03-14", "14.03.2019", "3-14-19", "March 14, 2019", "14 March 2019", "14th of March 2019",
        "Mar 14",
        "March 2019", "03/2019", "2019-03-14T10:22:05", "10:45", "10:45 AM", "7 p.m.", "1430 hours",
        "617-555-0134", "(617) 555-0134", "555-0134", "+49 30 1234567", "pager 4411", "ext. 7788",
        "1234567", "MRN123456", "A-12345678", "123-45-6789", "jane.doe@clinic.org",
        "Dr. Smith", "Dr Jane Q. Smith", "DR. SMITH", "Mrs. Jones", "Professor O'Neil", "Jane Smith, M.D.",
        "J. Smith MD", "14MAR2019", "Mar. 14, 2019", "14. März 2019", "March 14-16, 2019", "2019/03/14", "3/14/19",
        "03/14", "8:30", "10:45:12", "14:30 Uhr", "432-1987", "fax 617-5550", "MRN: 12345", "Accession # CT-19-0012",
        "S19-12345", "12-345-678", "1.2.840.113619.2.55", "192.168.10.12", "https://pacs.clinic.org/p/7", "dr. smith",
        "Dr. Jane\nSmith", "Dr.Smith", "Nurse Miller", "SMITH, JOHN MD",
    ],
)  # fmt: skip
def test_identifiers_are_marked(identifier: str) -> None:
    marked = deidentify(f"Seen on {identifier} and stable.")
    assert "[DEID]" in marked
    for part in identifier.replace(",", " ").replace("/", " ").split():
        if len(part) > 3 or part.isdigit():
            assert part not in marked.replace("[DEID]", "")
    assert marked.endswith("stable.")


@pytest.mark.parametrize(
    "text",
    [
        "A 2.5 cm nodule at T12, 3 x 4 mm, grade 2/6 murmur.", "L4-5 disc and C5/6 level.",
        "Measures 2.5, 3.5 and 4.5 cm.",
        "It may 2 be seen.", "In 12 patients, 95% (11 of 12).", "ratio 1:2 and 120/80 mmHg.", "Series 5, image 112.",
        "A ratio of 1:32 and a titer of 1:64, dilution 2:15.", "Series 5, image 3:45 (2:33).", "T2 and FLAIR, T1-2.",
        "12/15 nodes, 3/7 lymph nodes, 4/5 strength.", "Measures 3 x 4 cm, 12 x 10 x 8 mm.", "Doses of 200-1000 mg.",
        "Ribs 3, 4 and 5; levels C3-4-5, L1-2.", "pH 7.35, 98.6 F, 0.05-0.10.", "In segment 2. May represent scar.",
        "DR CHEST two views.", "MR of the brain.", "Discussed with Emergency Department staff.",
        "Reviewed by the team.", "In any case no 20% change.", "Compared with CT 12 of 15 slices.",
        "Version 2.5.1 of it.",
        "A 55-year-old man.", "Drainage of the right lobe.", "BI-RADS 4.", "The marked MDCT changes.",
    ],
)  # fmt: skip
def test_findings_stay(text: str) -> None:
    assert deidentify(text) == text


def test_known_names_go_in_any_order_and_case() -> None:
    assert (
        deidentify("Compared to jane's scan, Doe is well.", ["DOE^JANE"])
        == "Compared to [DEID]'s scan, [DEID] is well."
    )
    assert deidentify("Doering stays.", ["Doe"]) == "Doering stays."


def test_earlier_marks_become_one_token_and_other_special_tokens_cannot_be_forged() -> None:
    assert mark_earlier("x-XXXX of ___ by [**Last Name 12**]") == "x-[DEID] of [DEID] by [DEID]"
    assert merge_marks("[DEID], [DEID] [DEID] end") == "[DEID] end"
    assert mark_earlier("a [MASK] and [CLS]") == "a MASK and CLS"


def test_what_told_of_a_name_stays_and_the_name_goes() -> None:
    assert deidentify("Signed by: Jane Q. Smith on call.") == "Signed by: [DEID] on call."
    assert deidentify("Findings were discussed with Jane Smith at noon.") == (
        "Findings were discussed with [DEID] at noon."
    )
    assert deidentify("Dr. Smith was told. The lungs are clear.") == "[DEID] was told. The lungs are clear."
    assert deidentify("Called to DR. SMITH AT 1430 ON 3/14.") == "Called to [DEID] AT 1430 ON [DEID]."
    assert deidentify("Seen by Dr. Smith\nLungs are clear.") == "Seen by [DEID]\nLungs are clear."


def test_names_that_are_words_go_beside_another_part_only() -> None:
    names = ["NO^VAN LONG"]
    assert deidentify("No effusion. A long tube. Van Long No is well.", names) == (
        "No effusion. A long tube. [DEID] is well."
    )
    assert deidentify("No effusion in Berg, No. A long tube.", ["Berg^No"]) == "No effusion in [DEID], No. A long tube."
    assert deidentify("Long Berg and berg long: no long bone.", ["Berg^Long"]) == "[DEID] and [DEID]: no long bone."


def test_a_subject_or_a_path_that_looks_like_a_name_is_one() -> None:
    assert names_in("DOE^JANE") == ["DOE^JANE"]
    assert names_in("Doe, Jane") == ["Doe, Jane"]
    assert [names_in(text) for text in ("P0012", "S1", "10000032", "patient A", "TCGA-AB-1234", "")] == [[]] * 6
    assert name_in_path("ward/Doe_Jane_2019.txt") == (("Doe", "Jane"),)
    assert name_in_path("files/p10/p10000032/s50414267.txt") == ()
    pairs = name_in_path("Chest_Report/Doe_Jane.txt")
    assert deidentify("Chest of Jane Doe, a doe, report.", pairs=pairs) == "Chest of [DEID], a doe, report."


_SAFE = st.sampled_from(
    ["The lungs are clear", "A 2.5 cm nodule at T12", "ratio 1:32", "grade 2/6 murmur", "no effusion", "3 x 4 cm",
     "L4-5 disc", "12/15 nodes", "unchanged", "95% of 20", "in segment 2", "(series 3, image 45)"]
)  # fmt: skip
_DAYS = st.dates(date(1900, 1, 1), date(2099, 12, 31))
_PLANTED = st.one_of(
    *(
        _DAYS.map(lambda day, form=form: day.strftime(form))
        for form in ("%m/%d/%Y", "%B %d, %Y", "%Y-%m-%d", "%d.%m.%Y")
    ),
    st.times().map(lambda time: time.strftime("%I:%M %p")),
    st.times().map(lambda time: time.strftime("%H:%M:%S")),
    st.from_regex(r"[2-9][0-9]{2}-[2-9][0-9]{2}-[0-9]{4}", fullmatch=True),
    st.from_regex(r"[0-9]{6,12}", fullmatch=True),
    st.from_regex(r"MRN:? [0-9]{5,9}", fullmatch=True),
    st.from_regex(r"[a-z]{3,9}\.[a-z]{3,9}@[a-z]{3,9}\.(org|com)", fullmatch=True),
    st.from_regex(r"Dr\. (Kowalski|Nguyen|O'Neil|Garcia-Lopez)", fullmatch=True),
    st.from_regex(r"(Ana|Bob) (Kowalski|Nguyen), M\.D\.", fullmatch=True),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_SAFE, _PLANTED), min_size=1, max_size=4), _SAFE)
def test_planted_identifiers_never_come_out_and_all_else_does(pairs: list[tuple[str, str]], end: str) -> None:
    text = "".join(f"{safe}; seen {planted}, " for safe, planted in pairs) + end + "."
    assert deidentify(text) == "".join(f"{safe}; seen {DEID}, " for safe, _ in pairs) + end + "."


@pytest.mark.parametrize(
    "unit",
    ["a-", "A-", "a", "1-", "1.", "1 ", "Aa ", "[**", "a@", "Dr. ", "DR ", "+1 ", "__ ", "1/", "Ab, ", "\n", "(1"],
)
def test_no_text_takes_for_ever(unit: str) -> None:
    text = unit * (50_000 // len(unit)) + " 123456 MD Dr. @ www. 03/14/2019"
    assert "123456" not in deidentify(mark_earlier(text))


@pytest.mark.parametrize("text", ["[SEP]", "[[SEP]]", "[[[MASK]]", "a[CLS]b", "[PAD"])
def test_no_spelling_of_a_special_token_is_left(text: str) -> None:
    marked = mark_earlier(text)
    assert all(token not in marked for token in SPECIAL_TOKENS)
    assert any(token[1:-1] in marked for token in SPECIAL_TOKENS)
