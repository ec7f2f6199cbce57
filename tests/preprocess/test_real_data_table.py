"""What becomes of the real files, odd ones by name: a table checked in. All of it, twice, is for the long suite."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zarr

from medcoss.shards import verify

DEMO = Path(__file__).parents[2] / "launch" / "configs" / "real_demo.toml"

MASSES = {
    "ct": {"luna16_patches50": "not_a_volume"},
    "mri": {"msd_hippocampus/imagesTr": "written", "msd_hippocampus/labelsTr": "mask"},
    "xray": {"kermany224": "written"},
    "pathology": {"lc25000_lung224": "written", "monuseg": ""},
}
"""Folders of many files alike and what becomes of each file; the usual suite takes some of them."""

SYNTAXES = "dicom_syntaxes"
ODD = {
    "report": {
        "iu_xray/indiana_reports.csv": "written",
        "iu_xray/indiana_projections.csv": "no_text_column",
        "iu_xray/labels.csv": "label_table",
        "medical_abstracts/medical_tc_test.csv": "written",
        "medical_abstracts/medical_tc_labels.csv": "no_text_column",
        "medical_abstracts/README.md": "not_an_input",
        "medical_abstracts/LICENSE": "not_an_input",
    },
    "xray": {
        "dicom_cr/RG1_J2KI.dcm": "written",
        "dicom_cr/RG3_J2KI.dcm": "duplicate",
        "dicom_cr/RG3_J2KR.dcm": "written",
        "kermany224/labels.csv": "label_table",
    },
    "ct": {
        f"{SYNTAXES}/eCT_Supplemental.dcm": "not_hu",
        f"{SYNTAXES}/693_J2KI.dcm": "duplicate",
        f"{SYNTAXES}/693_UNCI.dcm": "duplicate",
        f"{SYNTAXES}/693_J2KR.dcm": "too_few_slices",
        f"{SYNTAXES}/bad_sequence.dcm": "too_few_slices",
        f"{SYNTAXES}/J2K_pixelrep_mismatch.dcm": "too_few_slices",
        f"{SYNTAXES}/explicit_VR-UN.dcm": "too_few_slices",
        f"{SYNTAXES}/CT_small.dcm": "too_few_slices",
        "adrenalmnist3d/adrenalmnist3d_64.npz": "unsupported_format",
        "covid_ct_md/slice_labels.csv": "label_table",
        "luna16_patches50/labels.csv": "not_an_input",
        "luna16_patches50/LICENSE.repo": "not_an_input",
        **{f"covid_ct_md/nifti160/{name}.nii.gz": "written" for name in (
            "P001", "P002", "cap001", "cap002", "normal001", "normal002")},
    },
    "mri": {
        f"{SYNTAXES}/MR_truncated.dcm": "truncated_pixels",
        f"{SYNTAXES}/emri_small.dcm": "no_geometry",
        f"{SYNTAXES}/emri_small_RLE.dcm": "no_geometry",
        f"{SYNTAXES}/emri_small_jpeg_ls_lossless.dcm": "no_geometry",
        f"{SYNTAXES}/MR_small.dcm": "too_few_slices",
        f"{SYNTAXES}/MR_small_RLE.dcm": "duplicate",
        f"{SYNTAXES}/MR_small_bigendian.dcm": "duplicate",
        f"{SYNTAXES}/MR_small_implicit.dcm": "duplicate",
        f"{SYNTAXES}/MR2_J2KI.dcm": "duplicate",
        f"{SYNTAXES}/MR2_J2KR.dcm": "too_few_slices",
        **{f"{SYNTAXES}/dcm_qa_ts/{number}.dcm": "mosaic" for number in range(1, 10)},
        f"{SYNTAXES}/dcm_qa_ts/LICENSE": "not_an_input",
        f"{SYNTAXES}/dcm_qa_ts/README.md": "not_an_input",
        f"{SYNTAXES}/LICENSE.pydicom-data": "not_an_input",
        "nifti/README.open_ms_data.md": "not_an_input",
        "nifti/MR_Gd.nii.gz": "written",
        "nifti/openms_patient20_study2_FLAIR.nii.gz": "written",
        "nifti/openms_patient20_study2_T1W.nii.gz": "written",
        "msd_hippocampus/labels.csv": "not_an_input",
    },
    "pathology": {
        "wsi/CMU-1-Small-Region.svs": "written",
        "wsi/cptac-brca_15BR001_level.dcm": "level_too_coarse",
        "lc25000_lung224/labels.csv": "label_table",
    },
}  # fmt: skip
FAILED = {"truncated_pixels", "no_geometry", "mosaic_unsupported"}
ALIKE = 12


def mass_of(modality: str, name: str) -> str | None:
    return next((f for f in MASSES.get(modality, {}) if name.startswith(f"{f}/") and name not in ODD[modality]), None)


def some(real_data: Path, modality: str, folder: Path) -> Path:
    """A folder of links to all odd files and to some of each mass of files alike."""
    names = sorted(
        path.relative_to(real_data).as_posix() for path in (real_data / modality).rglob("*") if path.is_file()
    )
    masses: dict[str, list[str]] = {}
    for name in names:
        mass = mass_of(modality, name.partition("/")[2])
        masses.setdefault(mass or name, []).append(name)
    for alike in masses.values():
        for name in alike[:: max(1, len(alike) // ALIKE)]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(real_data / name)
    return folder


def preprocess(
    modality: str, root: Path, out: Path, *more: str, workers: int = 2
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run with the options of the real demo; what it printed, and each file's row of the outcomes by its name."""
    options = [text.replace("{raw}", str(root)) for text in tomllib.loads(DEMO.read_text())["preprocess"][modality]]
    salt = out.parent / "salt"
    salt.write_text("a fixed salt for tests only")
    done = subprocess.run(
        [sys.executable, "-m", "preprocess.cli", modality, "--in", root / modality, "--out", out, "--json",
         "--salt-file", salt, "--workers", str(workers), *options, *more],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode in (0, 3), done.stderr
    with (out.with_name(out.name + ".private") / "inputs.csv").open(newline="") as file:
        names = {
            # Inputs are named by the folders that they really lie in.
            row["input_id"]: Path(row["path"]).relative_to((root / modality).resolve()).as_posix()
            for row in csv.DictReader(file)
        }
    rows = {names[row["input_id"]]: row for row in pq.read_table(out / "outcomes.parquet").to_pylist()}
    assert set(rows) == set(names.values())
    result: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (3 if result["inputs"]["failed"] else 0)
    return result, rows


def check_table(modality: str, rows: dict[str, Any]) -> Counter[str]:
    """Each odd file by name, all others by their folder; the numbers of files a reason."""
    reasons = {name: row["reason"].replace("_instance", "").replace("_position", "") or row["status"]
               for name, row in rows.items()}  # fmt: skip
    # The nine mosaics are one position after another of a phantom; only where tiles can be placed are they volumes.
    short = {name: "mosaic" if name in ODD[modality] and "dcm_qa_ts" in name and name.endswith(".dcm") else reason
             for name, reason in reasons.items()}  # fmt: skip
    assert {name: short[name] for name in ODD[modality]} == ODD[modality]
    for name, reason in reasons.items():
        status = "failed" if reason in FAILED else "written" if rows[name]["n_samples"] else "skipped"
        if reason != "duplicate":
            assert rows[name]["status"] in (status, "written"), (name, rows[name])
        mass = mass_of(modality, name)
        if mass == "monuseg":
            assert reason == ("mask" if "/masks/" in name else "written"), name
        elif mass is not None:
            # Two photographs of a mass may be one.
            assert reason in (MASSES[modality][mass], "duplicate"), name
        elif name not in ODD[modality]:
            assert name.startswith("covid_ct_md/dicom/P001/") and reason == "written", name
    return Counter(reasons.values())


@pytest.mark.parametrize("modality", ODD)
def test_odd_files_have_their_true_outcomes(modality: str, real_data: Path, tmp_path: Path) -> None:
    root = some(real_data, modality, tmp_path / "some")
    _, rows = preprocess(modality, root, tmp_path / "out", "--no-qc")
    counts = check_table(modality, rows)
    assert counts["written"] >= (2 if modality == "report" else 12)


def test_one_patient_as_dicom_and_as_nifti_is_one_subject_by_alias(real_data: Path, tmp_path: Path) -> None:
    for name in ("dicom", "nifti160/P001.nii.gz", "nifti160/P002.nii.gz"):
        path = tmp_path / "raw" / "ct" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(real_data / "ct" / "covid_ct_md" / name)
    (tmp_path / "alias.csv").write_text("alias,subject\n98C14734-ASSH,P001\n")
    (tmp_path / "salt").write_text("a fixed salt for tests only")
    subprocess.run(
        [sys.executable, "-m", "preprocess.cli", "ct", "--in", tmp_path / "raw" / "ct", "--out", tmp_path / "out",
         "--salt-file", tmp_path / "salt", "--window", "16,64,64", "--workers", "1", "--no-qc",
         "--split", "train=0.5,val=0,test=0.5", "--subject-from", "nifti160/(.*)[.]nii",
         "--subject-alias", tmp_path / "alias.csv"],
        check=True, capture_output=True,
    )  # fmt: skip
    rows = pq.read_table(tmp_path / "out" / "outcomes.parquet").to_pylist()
    prefixes = {row["key_prefix"] for row in rows}
    assert len(prefixes) == 3
    subjects: dict[str, set[str]] = {}
    splits: dict[str, set[str]] = {}
    for split in ("train", "test"):
        path = tmp_path / "out" / f"{split}.zarr"
        for text in zarr.open_group(path, mode="r")["meta"][:] if path.exists() else ():
            about = json.loads(str(text))
            subjects.setdefault(about["subject"], set()).add(about["key"][:26])
            splits.setdefault(about["subject"], set()).add(split)
    assert sorted(map(len, subjects.values())) == [1, 2]
    assert {len(found) for found in splits.values()} == {1}


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("modality", ODD)
def test_all_real_data_gives_one_set_for_any_workers_and_is_then_up_to_date(
    modality: str, real_data: Path, tmp_path: Path
) -> None:
    fingerprints = set()
    for workers in (1, 2):
        out = tmp_path / f"out-{workers}"
        result, rows = preprocess(modality, real_data, out, workers=workers)
        assert result["state"] == "written"
        check_table(modality, rows)
        again, _ = preprocess(modality, real_data, out, workers=3 - workers)
        assert again["state"] == "up to date"
        fingerprints |= {result["fingerprint"], again["fingerprint"]}
    assert len(fingerprints) == 1
    assert verify(tmp_path / "out-2") == []
