"""The odd files among the real data: what becomes of each, as a checked-in expectation."""

from __future__ import annotations

from collections import Counter

import pytest

from preprocess.inputs import sort_out

CT = {
    "dicom_syntaxes/eCT_Supplemental.dcm": "skipped not_hu",
    "dicom_syntaxes/693_J2KI.dcm": "skipped duplicate",
    "dicom_syntaxes/693_UNCI.dcm": "skipped duplicate",
    "dicom_syntaxes/693_J2KR.dcm": "skipped too_few_slices",
    "dicom_syntaxes/bad_sequence.dcm": "skipped too_few_slices",
    "dicom_syntaxes/J2K_pixelrep_mismatch.dcm": "skipped too_few_slices",
    "dicom_syntaxes/explicit_VR-UN.dcm": "skipped too_few_slices",
    "dicom_syntaxes/CT_small.dcm": "skipped too_few_slices",
    "adrenalmnist3d/adrenalmnist3d_64.npz": "skipped unsupported_format",
    "covid_ct_md/slice_labels.csv": "skipped not_an_input",
    "luna16_patches50/labels.csv": "skipped not_an_input",
    "luna16_patches50/LICENSE.repo": "skipped not_an_input",
}
MRI = {
    "dicom_syntaxes/MR_truncated.dcm": "failed truncated_pixels",
    "dicom_syntaxes/emri_small.dcm": "failed no_geometry",
    "dicom_syntaxes/emri_small_RLE.dcm": "failed no_geometry",
    "dicom_syntaxes/emri_small_jpeg_ls_lossless.dcm": "failed no_geometry",
    "dicom_syntaxes/MR_small.dcm": "skipped too_few_slices",
    "dicom_syntaxes/MR_small_RLE.dcm": "skipped duplicate",
    "dicom_syntaxes/MR_small_bigendian.dcm": "skipped duplicate",
    "dicom_syntaxes/MR_small_implicit.dcm": "skipped duplicate",
    "dicom_syntaxes/MR2_J2KI.dcm": "skipped duplicate",
    "dicom_syntaxes/MR2_J2KR.dcm": "skipped too_few_slices",
    # Nine copies of one volume; the engine keeps one by its content.
    **{f"dicom_syntaxes/dcm_qa_ts/{number}.dcm": "written" for number in range(1, 10)},
    "dicom_syntaxes/dcm_qa_ts/LICENSE": "skipped not_an_input",
    "dicom_syntaxes/dcm_qa_ts/README.md": "skipped not_an_input",
    "dicom_syntaxes/LICENSE.pydicom-data": "skipped not_an_input",
    "nifti/README.open_ms_data.md": "skipped not_an_input",
    "msd_hippocampus/labels.csv": "skipped not_an_input",
}


def outcomes_of(tools, root, modality):
    """Every file's outcome as "status reason"; small windows, for only outcomes are looked at here."""
    files = tools.inputs(root)
    found = sort_out(files, [], [])
    _, own, _ = tools.run(modality, [file for file in files if file.relative not in found], "--window", "16,24,24")
    found.update(own)
    assert set(found) == {file.relative for file in files}
    short = {name: f"{outcome.status} {outcome.reason}".strip() for name, outcome in found.items()}
    # Which copy is kept is settled, but both names of the reason are true of some copies.
    return {name: text.replace("_instance", "").replace("_position", "") for name, text in short.items()}


@pytest.mark.parametrize(("modality", "expected"), [("ct", CT), ("mri", MRI)])
def test_every_file_has_its_true_outcome(tools, real_data, modality, expected):
    found = outcomes_of(tools, real_data / modality, modality)
    assert {name: found.pop(name) for name in expected} == expected
    folders = {
        "written": ("covid_ct_md/", "nifti/", "msd_hippocampus/imagesTr/"),
        "skipped not_a_volume": ("luna16_patches50/",),
        "skipped mask": ("msd_hippocampus/labelsTr/",),
    }
    for name, text in found.items():
        assert name.startswith(folders.get(text, ())), f"{name}: {text}"
    counts = Counter(found.values())
    assert counts["written"] == {"ct": 46, "mri": 263}[modality]
