"""Salt, subject tokens, split thresholds and aliases."""

from __future__ import annotations

import stat
from collections import Counter
from pathlib import Path

import pytest

from medcoss.contracts import UsageError
from preprocess.split import (
    WEAK,
    Salt,
    Subjects,
    assign,
    is_placeholder,
    load_salt,
    parse_fractions,
    parse_pattern,
    path_subject,
    read_aliases,
    split_name,
)


def test_salt_is_made_once_private_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "config" / "salt"
    first = load_salt(path)
    assert load_salt(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [item.name for item in path.parent.iterdir()] == ["salt"]
    assert first.id != load_salt(tmp_path / "other").id
    path.write_text("short")
    with pytest.raises(UsageError, match="fewer than 16"):
        load_salt(path)


def test_tokens_separate_their_parts(salt: Salt) -> None:
    assert salt.token("ab", "c", length=16) != salt.token("a", "bc", length=16)
    assert set(salt.token("x", length=26)) <= set("abcdefghijklmnopqrstuvwxyz234567")
    assert "fixed" not in repr(salt)


def test_fractions_are_met_and_a_subject_has_one_split(salt: Salt) -> None:
    fractions = parse_fractions("train=0.9,val=0.05,test=0.05")
    drawn = [assign(f"subject{n}", fractions, salt) for n in range(4000)]
    counts = Counter(drawn)
    assert abs(counts["train"] / 4000 - 0.9) < 0.02
    assert abs(counts["val"] / 4000 - 0.05) < 0.015
    assert drawn == [assign(f"subject{n}", fractions, salt) for n in range(4000)]
    assert {assign(f"s{n}", parse_fractions("test=1"), salt) for n in range(50)} == {"test"}
    for wrong in ("train=0.9", "train=2,test=-1", "train", "all=1"):
        with pytest.raises(UsageError, match="--split"):
            parse_fractions(wrong)


@pytest.mark.parametrize("name", ["", " ", "0", "0000", "ANONYMOUS", "unknown", "None", "XXX", "--", f"{WEAK}"])
def test_placeholders_name_nobody(name: str) -> None:
    assert is_placeholder(name)
    assert not is_placeholder("7")
    assert not is_placeholder("1111")
    assert not is_placeholder("P001")


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("files/p10/p10000032/s50414267.txt", "p10000032"),
        ("bids/sub-07/anat/sub-07_T1w.nii.gz", "sub-07"),
        ("sub-07_T1w.nii.gz", "sub-07"),
        ("TCGA-A1-A0SB-01Z-00-DX1.svs", "TCGA-A1-A0SB"),
        ("p1/scan.dcm", None),
    ],
)
def test_conventions_in_paths(path: str, subject: str | None) -> None:
    assert path_subject(path) == subject


def test_order_of_trust(salt: Salt) -> None:
    subjects = Subjects(salt)

    def is_named(name: str, *arguments: object) -> bool:
        return subjects.token(*arguments) == (subjects.token(name, (), "", None)[0], True)  # type: ignore[arg-type]

    uid = "1.2.840.113619.2.55.3"
    assert is_named("given", "given", ["P1"], "sub-01/x.dcm", None)
    assert is_named("P1", None, ["", "anonymous", "P1"], "sub-01/x.dcm", None)
    assert is_named("sub-01", None, ["", uid, WEAK + "digest"], "sub-01/x.dcm", None)
    assert subjects.token(None, [uid], "a.dcm", None) == (subjects.token(uid, (), "", None)[0], False)
    assert subjects.token(None, [uid], "a.dcm", None) == subjects.token(None, [uid], "b.dcm", None)
    assert subjects.token(None, (), "a.dcm", None) != subjects.token(None, (), "b.dcm", None)
    assert subjects.token(None, (), "a.csv", "1") != subjects.token(None, (), "a.csv", "2")


def test_aliases_join_two_names(tmp_path: Path, salt: Salt) -> None:
    path = tmp_path / "alias.csv"
    path.write_text("alias,subject\nP001.nii,P001-old\nP001-old,P001\n")
    subjects = Subjects(salt, read_aliases(path))
    assert subjects.token("P001.nii", (), "", None) == subjects.token("P001", (), "", None)
    for wrong in ("a,b\n1,2\n", "alias,subject\nx,y\nx,z\n", "alias,subject\nx,y\ny,x\n"):
        path.write_text(wrong)
        with pytest.raises(UsageError, match="alias table"):
            read_aliases(path)


def test_subject_from_a_pattern(salt: Salt) -> None:
    subjects = Subjects(salt, pattern=parse_pattern(r"(?P<subject>person\d+)_"))
    assert subjects.token(None, ["P1"], "train/person12_virus.jpeg", None) == subjects.token("person12", (), "", None)
    assert subjects.token(None, ["P1"], "train/IM-1.jpeg", None) == subjects.token("P1", (), "", None)
    with pytest.raises(UsageError, match="regular expression"):
        parse_pattern("(")


def test_names_of_splits() -> None:
    assert [split_name(text) for text in ("Train", "validation", "dev", "TEST", " ")] == [
        "train",
        "val",
        "val",
        "test",
        None,
    ]
    with pytest.raises(UsageError, match="split column"):
        split_name("fold3")
