"""MRI: z-scores of unit mean and deviation at any scale, windows of native slices, every refusal with its reason."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from preprocess.modalities import mri
from preprocess.readers.volume import Volume


def head(slices=30, side=32, seed=0):
    """Positive values (z, y, x) with structure: a bright ball in noise. float32."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (slices, side, side)), indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 5, (slices, side, side))
    return (100 + 400 * (z**2 + y**2 + x**2 < 0.8) + noise).astype(np.float32)


def save(path, values, spacing=(1.0, 1.0, 1.0)):
    """A NIfTI whose voxels run left, posterior, superior, so that values [z, y, x] come back as they are."""
    z, y, x = spacing
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([-x, -y, z, 1.0])), path)


def outcome(tools, root, *words):
    conversions, outcomes, _ = tools.run("mri", tools.inputs(root), "--window", "8,24,24", *words)
    return [piece for conversion in conversions for piece in conversion.pieces], {
        name: found.reason for name, found in outcomes.items()
    }


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_samples_have_mean_0_and_deviation_1_at_any_scale(tools, tmp_path, scale):
    save(tmp_path / "a.nii.gz", head() * np.float32(scale))
    pieces, reasons = outcome(tools, tmp_path)
    assert reasons == {"a.nii.gz": ""} and len(pieces) == 3
    for piece in pieces:
        assert piece.data.dtype == np.float16 and piece.data.shape == (8, 24, 24)
        assert piece.data.astype(np.float64).mean() == pytest.approx(0, abs=2e-3)
        assert piece.data.astype(np.float64).std() == pytest.approx(1, abs=2e-3)


def test_outliers_are_clipped(tools, tmp_path):
    values = head()
    values[15, 16, 16] = 1e7
    save(tmp_path / "a.nii.gz", values)
    assert max(float(piece.data.max()) for piece in outcome(tools, tmp_path)[0]) < 4


def test_windows_leave_out_the_ends_and_the_last_is_shifted_back(tools):
    settings = tools.options("mri")
    volume = Volume(np.zeros((44, 20, 20), np.int16), np.eye(4))
    spans = [(window.low[0], window.high[0]) for window in mri.windows(volume, settings)]
    assert spans == [(4, 19), (12, 27), (20, 35), (24, 39)]
    short = Volume(np.zeros((12, 20, 20), np.int16), np.eye(4))
    assert [(window.low[0], window.high[0]) for window in mri.windows(short, settings)] == [(1, 10)]
    assert mri.windows(short, settings)[0].geometry(short, "z")["native_slices"] == 10


@pytest.mark.parametrize(
    ("spacing", "axis"),
    [((1, 1, 1), 0), ((3, 1, 1), 0), ((1, 1, 3), 2), ((1, 3, 1), 1), ((1, 1, 1.4), 0), ((0.9, 1.0, 1.5), 2)],
)
def test_windows_run_along_the_thick_axis(spacing, axis):
    assert mri.window_axis(spacing) == axis


def test_thick_sagittal_volume_is_cut_along_x(tools, tmp_path):
    values = head(32, 32).transpose(1, 2, 0)[:, :, :20].copy()
    values[:, :, 12] += 300
    save(tmp_path / "a.nii.gz", values, (1.0, 1.0, 4.0))
    pieces, _ = outcome(tools, tmp_path)
    assert pieces[0].geometry["axis"] == "x"
    assert pieces[0].geometry["native_spacing_mm"] == [4.0, 1.0, 1.0]
    # 2 of 20 slices are dropped at each end: the windows are slices 2 to 9 and 10 to 17.
    assert [int(np.argmax(piece.data.astype(np.float32).mean(axis=(1, 2)))) for piece in pieces][1:] == [2]
    assert len(pieces) == 2


def test_aspect_is_kept_by_padding_with_the_darkest_value(tools, tmp_path):
    save(tmp_path / "a.nii.gz", head()[:, :, 8:24])
    piece = outcome(tools, tmp_path)[0][0]
    inner = np.asarray(piece.data, np.float64)[:, :, 6:18]
    assert inner.mean() == pytest.approx(0, abs=2e-3) and inner.std() == pytest.approx(1, abs=2e-3)
    rim = np.concatenate([piece.data[:, :, :6], piece.data[:, :, 18:]], axis=2)
    assert len(np.unique(rim)) == 1 and rim[0, 0, 0] == piece.data.min()
    stretched = outcome(tools, tmp_path, "--stretch")[0][0]
    assert len(np.unique(stretched.data[:, :, 0])) > 1


def test_small_crops_give_windows(tools, tmp_path):
    save(tmp_path / "a.nii.gz", np.pad(head(35, 35), ((0, 0), (0, 16), (0, 0)), mode="reflect"))
    conversions, _, _ = tools.run("mri", tools.inputs(tmp_path))
    assert [piece.data.shape for piece in conversions[0].pieces] == [(16, 192, 192)] * 3


def test_normalising_by_volume_gives_a_tissue_one_value(tools, tmp_path):
    values = head(40)
    values[:20] = 100 + np.random.default_rng(1).normal(0, 5, values[:20].shape)
    values[:, 14:18, 14:18] = 500
    save(tmp_path / "a.nii.gz", values)
    tissue = {
        how: [float(piece.data[4, 12, 12]) for piece in outcome(tools, tmp_path, "--normalise", how)[0]]
        for how in ("window", "volume")
    }
    assert np.ptp(tissue["window"]) > 1
    assert np.ptp(tissue["volume"]) < 0.02
    assert tools.options("mri", "--masks", "m")["normalise"] == "volume"
    assert tools.options("mri")["normalise"] == "window"


@pytest.mark.parametrize("how", ["window", "volume"])
@pytest.mark.parametrize(
    ("reason", "values"),
    [
        ("constant", np.full((20, 32, 32), 7, np.int16)),
        ("constant", np.full((20, 37, 32), 1234567.8, np.float32)),
        ("not_finite", np.where(head() > 515, np.inf, head())),
        ("too_few_slices", head(7)),
        ("four_dimensional", np.stack([head(), head()])),
    ],
)
def test_volumes_that_give_nothing(tools, tmp_path, reason, values, how):
    save(tmp_path / "a.nii.gz", values) if values.ndim == 3 else nibabel.save(
        nibabel.Nifti1Image(values.T, np.eye(4)), tmp_path / "a.nii.gz"
    )
    assert outcome(tools, tmp_path, "--normalise", how) == ([], {"a.nii.gz": reason})


def test_an_empty_window_is_left_out_of_a_volume_with_content(tools, tmp_path):
    values = head(40)
    values[:14] = 0
    save(tmp_path / "a.nii.gz", values)
    assert [piece.suffix for piece in outcome(tools, tmp_path)[0]] == ["0001", "0002", "0003"]


def test_dicom_equals_nifti(tools, tmp_path):
    stored = head(24).astype(np.int16)
    tools.write_series(tmp_path / "d", stored, tools.axial((1, 1, 1)), modality="MR")
    save(tmp_path / "a.nii.gz", stored)
    pieces, _ = outcome(tools, tmp_path)
    by_file = {name: [p.data for p in pieces if p.file == name] for name in ("a.nii.gz", "d/000.dcm")}
    assert len(by_file["a.nii.gz"]) == 3
    assert all(np.array_equal(a, b) for a, b in zip(*by_file.values(), strict=True))
    assert len({piece.content for piece in pieces}) == 1


def test_ct_and_mosaics_without_their_private_header_are_not_taken(tools, tmp_path):
    tools.write_series(tmp_path / "ct", head(10).astype(np.int16), tools.axial())
    tools.write_series(
        tmp_path / "mosaic", head(2).astype(np.int16), tools.axial(), modality="MR",
        ImageType=[["ORIGINAL", "PRIMARY", "M", "MOSAIC"]] * 2,
    )  # fmt: skip
    reasons = outcome(tools, tmp_path)[1]
    assert {reasons[name] for name in reasons if name.startswith("ct/")} == {"not_mri"}
    assert {reasons[name] for name in reasons if name.startswith("mosaic/")} == {"mosaic_unsupported"}


def test_spec(tools):
    spec = mri.spec(tools.options("mri"))
    assert spec.geometry.shape == (1, 16, 192, 192)
    assert spec.fields[0].dtype == "float16" and spec.fields[0].scale == 1


@pytest.mark.parametrize("name", ["normal", "skewed", "few", "ties", "one", "outliers"])
def test_limits_are_the_percentiles_of_all_values(name):
    random = np.random.default_rng(0)
    values = {
        "normal": random.normal(100, 10, 200_000),
        "skewed": np.exp(random.normal(0, 2, 200_000)),
        "few": random.normal(0, 1, 37),
        "ties": random.integers(0, 3, 50_000),
        "one": np.array([3.0]),
        "outliers": np.where(np.arange(200_000) % 501 == 7, 1e6 + np.arange(200_000), 1.0),
    }[name].astype(np.float32)
    low, high = -mri._upper(-values, 99.8), mri._upper(values, 99.8)
    assert [low, high] == pytest.approx(np.percentile(values.astype(np.float64), [0.2, 99.8]), rel=1e-6, abs=1e-6)
