"""Whole-volume files: affines, scaling, units and everything that can be wrong with one."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 -- the name its users know

from preprocess.conversion import Refusal
from preprocess.readers import nifti
from preprocess.readers.nifti import read_volume_file


def ramp(shape=(7, 8, 9)):
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def save(path, values, affine, **header):
    image = nibabel.Nifti1Image(values, affine)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def test_radiological_affine_is_flipped_into_place(tmp_path):
    # Voxels run left, posterior, superior: LPS already, so only the axis order changes.
    affine = np.diag([-2.0, -2.0, 3.0, 1.0])
    affine[:3, 3] = (10, 20, 30)
    volume = read_volume_file(save(tmp_path / "v.nii.gz", ramp(), affine))
    assert np.array_equal(volume.values, ramp().transpose(2, 1, 0))
    assert volume.spacing == pytest.approx((3.0, 2.0, 2.0))
    assert volume.affine[:3, 3] == pytest.approx([-10, -20, 30])


def test_ras_affine_is_mirrored_twice(tmp_path):
    volume = read_volume_file(save(tmp_path / "v.nii", ramp(), np.eye(4)))
    assert np.array_equal(volume.values, ramp().transpose(2, 1, 0)[:, ::-1, ::-1])


def test_oblique_affine_keeps_voxels_and_places_them(tmp_path):
    angle = np.radians(25)
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 1.5, 2.0])
    volume = read_volume_file(save(tmp_path / "v.nii.gz", ramp(), affine))
    assert sorted(volume.values.ravel()) == sorted(ramp().ravel())
    index = np.argwhere(volume.values == ramp()[1, 2, 3])[0]
    expected = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine @ [1, 2, 3, 1]
    assert volume.affine @ [*index, 1] == pytest.approx(expected, abs=1e-4)
    assert volume.drift == (0.0, 0.0, 0.0)


def test_units_and_scaling(tmp_path):
    image = nibabel.Nifti1Image(ramp(), np.diag([0.002, 0.002, 0.003, 1.0]))
    image.header.set_xyzt_units("meter")
    for slope, dtype in ((2.0, np.int16), (2.5, np.float32), (2000.0, np.float32)):
        image.header.set_slope_inter(slope, -5.0)
        nibabel.save(image, tmp_path / "v.nii")
        volume = read_volume_file(tmp_path / "v.nii")
        assert volume.spacing == pytest.approx((3.0, 2.0, 2.0), rel=1e-5)
        assert volume.values.dtype == dtype
        assert volume.values[0, -1, -1] == -5.0 and volume.values.max() == slope * ramp().max() - 5


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_metaimage_and_nrrd_equal_nifti(tmp_path, suffix):
    image = sitk.GetImageFromArray(ramp())
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((5.0, 6.0, 7.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    for name in (f"v{suffix}", "v.nii.gz"):
        sitk.WriteImage(image, str(tmp_path / name))
    one, other = read_volume_file(tmp_path / f"v{suffix}"), read_volume_file(tmp_path / "v.nii.gz")
    assert np.array_equal(one.values, other.values)
    assert np.allclose(one.affine, other.affine, atol=1e-4)


def broken(path, kind):
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "unreadable":
        path.write_bytes(b"this is no image" * 40)
    elif kind == "truncated_pixels":
        save(path, np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16), affine)
        path.write_bytes(path.read_bytes()[:-4000])
    elif kind == "four_dimensional":
        save(path, np.zeros((4, 4, 4, 3), np.int16), affine)
    elif kind == "not_a_volume":
        save(path, np.zeros((4, 4, 1), np.int16), affine)
    elif kind == "no_geometry":
        image = nibabel.Nifti1Image(ramp(), None)
        nibabel.save(image, path)
    elif kind == "not_finite":
        values = ramp().astype(np.float32)
        values[1, 2, 3] = np.nan
        save(path, values, affine)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "kind",
    ["empty", "unreadable", "truncated_pixels", "four_dimensional", "not_a_volume", "no_geometry", "not_finite"],
)
def test_each_defect_has_its_reason(tmp_path, kind, suffix):
    with pytest.raises(Refusal) as refused:
        read_volume_file(broken(tmp_path / f"v{suffix}", kind))
    assert refused.value.outcome.reason == kind
    assert str(tmp_path) not in refused.value.outcome.message


def test_damaged_metaimage_and_size_limit(tmp_path):
    (tmp_path / "v.mha").write_bytes(b"ObjectType = Image\nNDims = 3\n")
    with pytest.raises(Refusal, match="unreadable"):
        read_volume_file(tmp_path / "v.mha")
    path = save(tmp_path / "v.nii", ramp(), np.eye(4))
    with pytest.raises(Refusal, match="too_large"):
        read_volume_file(path, max_voxels=500)


def test_a_header_that_promises_a_bomb_is_refused_unread(tmp_path):
    path = save(tmp_path / "v.nii", ramp(), np.eye(4))
    data = bytearray(path.read_bytes())
    data[42:48] = np.array([30000, 30000, 30000], "<i2").tobytes()
    path.with_suffix(".nii.gz").write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(Refusal, match="too_large"):
        read_volume_file(path.with_suffix(".nii.gz"))


def packed_volume(tmp_path, **more):
    """The bytes of a volume (9, 8, 7) and those of its file, not compressed."""
    path = save(tmp_path / "plain.nii", ramp(), np.eye(4), **more)
    return read_volume_file(path).values, path.read_bytes()


def test_gzip_members_are_read_as_one_file(tmp_path):
    values, plain = packed_volume(tmp_path)
    for cut in (1, 100, 352, 400, len(plain) // 2, len(plain) - 1):
        (tmp_path / "v.nii.gz").write_bytes(gzip.compress(plain[:cut]) + gzip.compress(plain[cut:]))
        assert np.array_equal(read_volume_file(tmp_path / "v.nii.gz").values, values), cut


def test_bytes_after_the_voxels_are_left_alone(tmp_path):
    values, plain = packed_volume(tmp_path)
    for data in (gzip.compress(plain + b"more" * 500), gzip.compress(plain) + bytes(64)):
        (tmp_path / "v.nii.gz").write_bytes(data)
        assert np.array_equal(read_volume_file(tmp_path / "v.nii.gz").values, values)


@pytest.mark.parametrize("said", [0, 1, 400, 1 << 20, (1 << 28) + 1, (1 << 32) - 1])
def test_a_forged_size_is_found_out(tmp_path, said):
    """The size at the end of a gzip file is what room is made for: too small or too large, the file is damaged."""
    _, plain = packed_volume(tmp_path)
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(plain)[:-4] + said.to_bytes(4, "little"))
    with pytest.raises(Refusal, match="unreadable"):
        read_volume_file(tmp_path / "v.nii.gz")


def test_a_wrong_checksum_is_found_out(tmp_path):
    _, plain = packed_volume(tmp_path)
    data = bytearray(gzip.compress(plain))
    data[-6] ^= 1
    (tmp_path / "v.nii.gz").write_bytes(bytes(data))
    with pytest.raises(Refusal, match="unreadable"):
        read_volume_file(tmp_path / "v.nii.gz")


def test_small_and_large_files_are_unpacked_to_the_same_values(tmp_path, monkeypatch):
    values, plain = packed_volume(tmp_path)
    (tmp_path / "v.nii.gz").write_bytes(gzip.compress(plain))
    opened = []
    stream = nifti._opened
    monkeypatch.setattr(nifti, "_opened", lambda path: opened.append(path) or stream(path))
    assert np.array_equal(read_volume_file(tmp_path / "v.nii.gz").values, values) and not opened
    monkeypatch.setattr(nifti, "_AT_ONCE_BYTES", len(plain) - 1)
    assert np.array_equal(read_volume_file(tmp_path / "v.nii.gz").values, values) and len(opened) == 1
