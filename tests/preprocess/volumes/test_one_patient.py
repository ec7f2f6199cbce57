"""One patient's CT as DICOM, as NIfTI and the report of it, through three runs of the real command."""

from __future__ import annotations

import csv

import nibabel
import numpy as np
import pytest

from medcoss.contracts import SPLITS
from medcoss.shards import ShardSet
from preprocess.cli import main

PATIENTS = 8


def body(seed):
    """HU (z, y, x) of air around a block that no other patient has. int16."""
    values = np.full((16, 20, 20), -1000, np.int16)
    values[:, 4:-4, 4:-4] = np.random.default_rng(seed).integers(-50, 300, (16, 12, 12))
    return values


def table(path, *rows):
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


@pytest.fixture
def sources(tools, tmp_path):
    """Three sources that name their patients differently, and the table that says who is who."""
    for number in range(PATIENTS):
        series = {"PatientID": f"PID-{number}", "SeriesInstanceUID": f"1.2.9.{number}"}
        tools.write_series(tmp_path / "dicom" / str(number), body(number) + 1024, tools.axial(), **series)
        (tmp_path / "nifti").mkdir(exist_ok=True)
        image = nibabel.Nifti1Image(body(100 + number).T, np.diag([-1.0, -1.0, 2.0, 1.0]))
        nibabel.save(image, tmp_path / f"nifti/scan{number}.nii.gz")
    table(tmp_path / "who.csv", ["file", "subject"], *([f"scan{n}", f"case-{n}"] for n in range(PATIENTS)))
    (tmp_path / "text").mkdir()
    table(
        tmp_path / "text/reports.csv",
        ["subject", "text"],
        *([f"R{n}", f"IMPRESSION: There is a nodule of {n}.5 cm in the lung."] for n in range(PATIENTS)),
    )
    aliases = [[name.format(n), f"person-{n}"] for n in range(PATIENTS) for name in ("PID-{}", "case-{}", "R{}")]
    table(tmp_path / "alias.csv", ["alias", "subject"], *aliases)
    (tmp_path / "salt").write_text("a fixed salt for tests only")
    return tmp_path


def convert(root, modality, source, *words, name=None):
    """Split by subject token, of the set that a run of the command makes."""
    out = root / "out" / (name or source)
    common = ["--workers", "1", "--no-qc", "--salt-file", str(root / "salt"), "--split", "train=0.5,val=0.25,test=0.25"]
    assert main([modality, "--in", str(root / source), "--out", str(out), *common, *words]) == 0
    found = {}
    for split in SPLITS:
        for sample in ShardSet.open(out).split(split):
            assert found.setdefault(sample.subject, split) == split
    return found


def test_one_patient_lands_in_one_split_whatever_the_source(sources):
    small = ("--window", "4,16,16", "--subject-alias", str(sources / "alias.csv"))
    dicom = convert(sources, "ct", "dicom", *small)
    nifti = convert(sources, "ct", "nifti", *small, "--labels", str(sources / "who.csv"))
    text = convert(sources, "report", "text", "--subject-alias", str(sources / "alias.csv"))
    assert len(dicom) == PATIENTS and dicom == nifti == text
    assert len(set(dicom.values())) > 1, "the splits differ, so that agreeing means something"
    # Without the table they are different people.
    apart = convert(sources, "ct", "nifti", "--window", "4,16,16", "--labels", str(sources / "who.csv"), name="apart")
    assert not set(apart) & set(dicom)
