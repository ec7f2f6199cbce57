"""Tables beside the inputs: what an id may name, and what wins."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medcoss.contracts import UsageError
from preprocess.conversion import InputFile
from preprocess.labels import Entry, Labels, bare_name, read_table


def make(folder: Path, text: str, ids: tuple[str, ...] = ("file",), columns: tuple[str, ...] = ("label",)) -> Labels:
    path = folder / "labels.csv"
    path.write_text(text)
    return Labels((read_table(path, ids, columns, "subject"),), columns)


def test_an_id_may_name_a_file_in_several_ways_or_its_folder(tmp_path: Path) -> None:
    file = InputFile(tmp_path.resolve() / "ct" / "dicom" / "P001" / "IM.1.dcm", "dicom/P001/IM.1.dcm")
    for name in ("ct/dicom/P001/IM.1.dcm", "dicom/P001/IM.1.dcm", "dicom\\P001\\IM.1.dcm", "./IM.1.dcm", "IM.1", "P001",
                 "dicom/P001", "ct"):  # fmt: skip
        assert make(tmp_path, f"file,label\n{name},ill\n").find(file, None).labels == {"label": "ill"}, name
    assert make(tmp_path, "file,label\nP002,ill\n").find(file, None).labels == {}
    both = make(tmp_path, "file,label\nP001,folder\nIM.1.dcm,file\n")
    assert both.find(file, None).labels == {"label": "file"}
    assert bare_name("a.b.nii.gz") == "a.b"


@pytest.mark.parametrize("asked", ["", "set", "set/train"], ids=["above the set", "the set", "a part of it"])
@pytest.mark.parametrize("beside", [True, False], ids=["table beside the set's folders", "table elsewhere"])
def test_ids_that_begin_above_the_input_are_found(tmp_path: Path, asked: str, beside: bool) -> None:
    root = tmp_path.resolve() / "data"
    rows = "".join(f"set/train/p{n}/s{m}/view1.jpg,{n}{m}\n" for n in range(3) for m in range(2))
    folder = root / "set" if beside else tmp_path / "tables"
    folder.mkdir(parents=True)
    labels = make(folder, f"Path,label\n{rows}", ("path",))
    for n, m in ((0, 0), (2, 1)):
        place = root / "set" / "train" / f"p{n}" / f"s{m}" / "view1.jpg"
        file = InputFile(place, place.relative_to(root / asked).as_posix())
        assert labels.find(file, None).labels == {"label": f"{n}{m}"}
    other = root / "set" / "train" / "p9" / "s0" / "view1.jpg"
    assert labels.find(InputFile(other, other.relative_to(root / asked).as_posix()), None).labels == {}


def test_a_set_s_folder_may_have_been_renamed_and_ids_may_name_folders(tmp_path: Path) -> None:
    place = tmp_path.resolve() / "renamed" / "train" / "hand" / "p1" / "study1" / "1.png"
    for root, relative in (("renamed", "train/hand/p1/study1/1.png"), ("renamed/train", "hand/p1/study1/1.png")):
        file = InputFile(place, relative)
        assert place == tmp_path.resolve() / root / relative
        for rows in ("set-1/train/hand/p1/study1/,1\nset-1/train/foot/p1/study1/,0\n",
                     "set-1/train/hand/p1/study1/1.png,1\nset-1/train/hand/p2/study1/1.png,0\n"):  # fmt: skip
            assert make(tmp_path, "file,label\n" + rows).find(file, None).labels == {"label": "1"}, (root, rows)
    # The whole path and the parts of it go before the bare name.
    both = make(tmp_path, f"file,label\n1.png,name\nstudy1/1.png,part\n{place},whole\n")
    assert both.find(InputFile(place, "hand/p1/study1/1.png"), None).labels == {"label": "whole"}
    parts = make(tmp_path, "file,label\n1.png,name\nstudy1/1.png,part\n")
    assert parts.find(InputFile(place, "hand/p1/study1/1.png"), None).labels == {"label": "part"}


def test_a_row_id_goes_before_the_file_and_the_order_of_labels_is_kept(tmp_path: Path) -> None:
    labels = make(tmp_path, "uid,a,b,subject,split\n7,1,2,S,Training\n", ("file", "uid"), ("b", "a", "none"))
    entry = labels.find(InputFile(tmp_path / "t.csv", "t.csv"), "7")
    assert list(entry.labels.items()) == [("b", "2"), ("a", "1")]
    assert (entry.subject, entry.split) == ("S", "train")
    assert labels.find(InputFile(tmp_path / "t.csv", "t.csv"), "8").labels == {}


def test_the_first_table_that_knows_a_value_wins(tmp_path: Path) -> None:
    one = make(tmp_path, "file,label\nx,first\n").tables[0]
    two = make(tmp_path, "file,label,subject\nx,second,S\n").tables[0]
    entry = Labels((one, two), ("label",)).find(InputFile(tmp_path / "x", "x"), None)
    assert (entry.labels, entry.subject) == ({"label": "first"}, "S")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\nx,1\n", "none of the id columns file"),
        ("file,label\nx,1\nx,2\n", "comes twice"),
        ("file,split\nx,fold1\n", "split column"),
        ("", "cannot be read"),
        ("file,label\nx,1,2\ny,2\nz,3\n", "has 1 rows malformed \\(of 3\\)"),
        ('file,label\nx,"1\nz,3\n', "has 1 rows malformed \\(of 2\\)"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(tmp_path, text)


def test_rows_that_agree_may_repeat_an_id(tmp_path: Path) -> None:
    assert make(tmp_path, "file,slice,label\nP1,1,ill\nP1,2,ill\n").tables[0].entries.keys() == {"P1"}


def test_a_table_in_another_encoding_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(b"file,label\nx,caf\xe9\n")
    with pytest.raises(UsageError, match="has 1 rows in another encoding") as refused:
        read_table(tmp_path / "labels.csv", ("file",), ("label",), "subject")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz", "t.jsonl", "t.json", "t.parquet", "t.dat"])
def test_every_kind_of_table_says_the_same(tmp_path: Path, name: str) -> None:
    records = [
        {"File": "a.dcm", "Label": "ill", "grade": 2, "subject": "S1", "Split": "Train"},
        {"File": "b.dcm", "Label": None, "grade": 3, "subject": None, "Split": None},
    ]
    path = tmp_path / name
    if name == "t.parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif name == "t.json":
        path.write_text(json.dumps(records))
    elif name == "t.jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        mark = "\t" if name == "t.tsv" else ","
        rows = [list(records[0]), *(["" if cell is None else str(cell) for cell in row.values()] for row in records)]
        data = "".join(mark.join(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    table = read_table(path, ("uid", "file"), ("label", "grade"), "subject")
    assert table.entries == {
        "a.dcm": Entry({"label": "ill", "grade": "2"}, "S1", "train"), "b.dcm": Entry({"grade": "3"}, None, None),
    }  # fmt: skip


def test_equal_entries_of_a_large_table_are_held_once(tmp_path: Path) -> None:
    rows = "".join(f"{number},{number % 3},{number}\n" for number in range(3000))
    (tmp_path / "t.csv").write_text("file,label,other\n" + rows)
    entries = read_table(tmp_path / "t.csv", ("file",), ("label",), "subject").entries
    assert len(entries) == 3000
    assert len({id(entry) for entry in entries.values()}) == 3
    assert entries["2999"].labels == {"label": "2"}
