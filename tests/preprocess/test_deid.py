"""What is marked as an identifier, and what must stay."""

from __future__ import annotations

import pytest

from preprocess.deid import deidentify, mark_earlier, merge_marks


@pytest.mark.parametrize(
    "identifier",
    [
        "03/14/2019", "2019-03-14", "14.03.2019", "3-14-19", "March 14, 2019", "14 March 2019", "14th of March 2019",
        "Mar 14",
        "March 2019", "03/2019", "2019-03-14T10:22:05", "10:45", "10:45 AM", "7 p.m.", "1430 hours",
        "617-555-0134", "(617) 555-0134", "555-0134", "+49 30 1234567", "pager 4411", "ext. 7788",
        "1234567", "MRN123456", "A-12345678", "123-45-6789", "jane.doe@clinic.org",
        "Dr. Smith", "Dr Jane Q. Smith", "DR. SMITH", "Mrs. Jones", "Professor O'Neil", "Jane Smith, M.D.",
        "J. Smith MD",
    ],
)  # fmt: skip
def test_identifiers_are_marked(identifier: str) -> None:
    marked = deidentify(f"Seen on {identifier} and stable.")
    assert "[DEID]" in marked
    for part in identifier.replace(",", " ").split():
        if len(part) > 3 or part.isdigit():
            assert part not in marked.replace("[DEID]", "")
    assert marked.endswith("stable.")


@pytest.mark.parametrize(
    "text",
    [
        "A 2.5 cm nodule at T12, 3 x 4 mm, grade 2/6 murmur.", "L4-5 disc and C5/6 level.",
        "Measures 2.5, 3.5 and 4.5 cm.",
        "It may 2 be seen.", "In 12 patients, 95% (11 of 12).", "ratio 1:2 and 120/80 mmHg.", "Series 5, image 112.",
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
