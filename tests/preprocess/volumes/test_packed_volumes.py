"""MetaImage and NRRD files whose unpacking would take too long without a sign of life."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from preprocess.conversion import Refusal
from preprocess.readers import itk_files

VALUES = np.random.default_rng(0).integers(-900, 900, (9, 10, 11)).astype(np.int16)


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "a.nhdr"])
@pytest.mark.parametrize(("voxels", "limit_bytes"), [(np.int16, 1980), (np.float64, 7920)])
def test_packed_files_have_a_limit_and_raw_ones_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, voxels: type, limit_bytes: int
) -> None:
    image = sitk.GetImageFromArray(VALUES.astype(voxels))
    beside = ("a.raw", "a.raw.gz")
    for packed in (True, False):
        sitk.WriteImage(image, str(tmp_path / name), packed)
        monkeypatch.setattr(itk_files, "_MAX_PACKED_BYTES", limit_bytes)
        assert np.array_equal(itk_files.read_itk(tmp_path / name, 10**6, beside)[0], VALUES.T)
        monkeypatch.setattr(itk_files, "_MAX_PACKED_BYTES", limit_bytes - 1)
        if packed:
            with pytest.raises(Refusal, match=f"too_large: {limit_bytes} packed bytes, limit {limit_bytes - 1}"):
                itk_files.read_itk(tmp_path / name, 10**6, beside)
        else:
            assert np.array_equal(itk_files.read_itk(tmp_path / name, 10**6, beside)[0], VALUES.T)


def test_text_counts_as_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(itk_files, "_MAX_PACKED_BYTES", 1000)
    numbers = " ".join(map(str, VALUES.ravel()))
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 11 10 9\nspacings: 1 1 1\nencoding: ascii\n\n"
    (tmp_path / "a.nrrd").write_text(head + numbers)
    with pytest.raises(Refusal, match="too_large: 1980 packed bytes"):
        itk_files.read_itk(tmp_path / "a.nrrd", 10**6, ())
