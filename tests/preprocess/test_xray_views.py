"""Choosing views: by the header, or by the tables that CheXpert, MIMIC-CXR, PadChest and NIH ChestX-ray14 come with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from medcoss.contracts import UsageError
from preprocess.conversion import InputFile, Inspected
from preprocess.modalities import xray
from preprocess.readers.views import VIEWS, header_view, selected, view_code


def settings(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--labels", action="append", default=[], type=Path)
    parser.add_argument("--id-column", action="append")
    xray.add_arguments(parser)
    return xray.settings(parser.parse_args(words))


def views(root: Path, names: list[str], *words: str) -> dict[str, Any]:
    """What becomes of each picture: the sample's view, or the reason why there is none."""
    rng = np.random.default_rng(1)
    files = []
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(path)
        files.append(InputFile(path, name))
    chosen = settings(*words)
    found: dict[str, Any] = {}
    for unit in xray.group([Inspected(file, xray.inspect(file, chosen)) for file in files], chosen).units:
        conversion = xray.convert(unit, chosen)
        name = unit.files[0].relative
        found[name] = conversion.pieces[0].geometry["view"] if conversion.pieces else conversion.outcomes[name].reason
    return found


def test_mimic_cxr(tmp_path: Path) -> None:
    table = tmp_path / "mimic-cxr-2.0.0-metadata.csv"
    table.write_text(
        "dicom_id,subject_id,study_id,ViewPosition\naa-1,10000032,50414267,PA\nbb-2,10000032,50414267,LATERAL\n"
        "cc-3,10000764,57375967,AP\ndd-4,10000764,57375967,\nee-5,10000764,57375967,LL\n"
    )
    folder = "files/p10/p10000032/s50414267"
    names = [f"{folder}/{name}.jpg" for name in ("aa-1", "bb-2", "cc-3", "dd-4", "ee-5", "ff-6")]
    words = ("--labels", str(table), "--id-column", "dicom_id", "--view-column", "ViewPosition")
    found = views(tmp_path, names, *words, "--view", "PA", "AP")
    assert list(found.values()) == ["PA", "not_a_view", "AP", "not_a_view", "not_a_view", "not_a_view"]
    found = views(tmp_path, names, *words, "--view", "LATERAL")
    assert [name[-8:-4] for name, view in found.items() if view != "not_a_view"] == ["bb-2", "ee-5"]
    assert list(views(tmp_path, names, *words).values()) == ["PA", "LATERAL", "AP", None, "LL", None]


def test_chexpert_whose_view_stands_in_two_columns(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "Path,Sex,Age,Frontal/Lateral,AP/PA\nCheXpert-v1.0/train/patient1/study1/view1_frontal.jpg,F,68,Frontal,AP\n"
        "CheXpert-v1.0/train/patient1/study1/view2_lateral.jpg,F,68,Lateral,\n"
        "CheXpert-v1.0/train/patient2/study1/view1_frontal.jpg,M,50,Frontal,\n"
    )
    folder = "CheXpert-v1.0/train"
    names = [f"{folder}/patient1/study1/view{n}.jpg" for n in ("1_frontal", "2_lateral")]
    names.append(f"{folder}/patient2/study1/view1_frontal.jpg")
    words = (
        "--labels",
        str(tmp_path / "train.csv"),
        "--id-column",
        "Path",
        "--view-column",
        "AP/PA",
        "Frontal/Lateral",
    )
    assert list(views(tmp_path, names, *words).values()) == ["AP", "LATERAL", "FRONTAL"]
    assert list(views(tmp_path, names, *words, "--view", "frontal").values()) == ["AP", "not_a_view", "FRONTAL"]
    assert list(views(tmp_path, names, *words, "--view", "pa").values()) == ["not_a_view"] * 3


def test_padchest_and_nih(tmp_path: Path) -> None:
    (tmp_path / "padchest.csv").write_text("ImageID,Projection\na.png,PA\nb.png,L\nc.png,AP_horizontal\nd.png,COSTAL\n")
    names = ["0/a.png", "0/b.png", "1/c.png", "1/d.png"]
    words = ("--labels", str(tmp_path / "padchest.csv"), "--id-column", "ImageID", "--view-column", "Projection")
    assert list(views(tmp_path, names, *words).values()) == ["PA", "LATERAL", "AP", None]
    (tmp_path / "nih.csv").write_text("Image Index,View Position\na.png,PA\nb.png,AP\n")
    words = ("--labels", str(tmp_path / "nih.csv"), "--id-column", "Image Index", "--view-column", "View Position")
    assert list(views(tmp_path, ["a.png", "b.png"], *words, "--view", "PA").values()) == ["PA", "not_a_view"]


def test_without_a_table_no_picture_is_of_an_asked_view(tmp_path: Path) -> None:
    assert views(tmp_path, ["a.png"], "--view", "PA") == {"a.png": "not_a_view"}
    assert views(tmp_path, ["a.png"]) == {"a.png": None}


def test_headers_name_views_in_two_places() -> None:
    dataset = Dataset()
    assert header_view(dataset) is None
    code = Dataset()
    code.CodeMeaning = "postero-anterior"
    dataset.ViewCodeSequence = [code]
    assert header_view(dataset) == "PA"
    dataset.ViewPosition = "LL"
    assert header_view(dataset) == "LL"
    dataset.ViewPosition = "SMITH"
    assert header_view(dataset) == "PA"


def test_words_of_a_file_never_become_a_view() -> None:
    assert {view_code(word) for word in VIEWS} == VIEWS
    assert view_code("  ap_horizontal ") == "AP"
    assert view_code("lateral") == view_code("L") == "LATERAL"
    assert view_code("Smith^John") is view_code("") is None


def test_frontal_and_lateral_stand_for_several() -> None:
    assert [name for name in sorted(VIEWS) if selected(name, ["FRONTAL"])] == ["AP", "FRONTAL", "PA"]
    assert [name for name in sorted(VIEWS) if selected(name, ["LATERAL"])] == ["LATERAL", "LL", "RL"]
    assert [name for name in sorted(VIEWS) if selected(name, ["PA"])] == ["PA"]
    assert selected("FRONTAL", ["AP", "PA"])
    assert not selected(None, ["AP", "PA"])


def test_a_column_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("file,label\na,x\n")
    with pytest.raises(UsageError, match="give the table with --labels"):
        settings("--view-column", "ViewPosition")
    with pytest.raises(UsageError, match="no table given to --labels has a filled column ViewPosition"):
        settings("--view-column", "ViewPosition", "--labels", str(tmp_path / "t.csv"))
