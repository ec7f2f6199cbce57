"""Volume files and DICOM objects that promise too much or name foreign files: refused before it costs anything."""

from __future__ import annotations

import gzip
import re
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 -- the name its users know
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID

from preprocess.conversion import Refusal
from preprocess.readers import codestream
from preprocess.readers.dicom import decode_pixels, open_dicom
from preprocess.readers.itk_files import data_file
from preprocess.readers.nifti import read_volume_file


def ramp(shape=(7, 8, 9)):
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def reason(path, **options):
    with pytest.raises(Refusal) as refused:
        read_volume_file(path, **options)
    assert str(path.parent) not in refused.value.outcome.message
    return refused.value.outcome.reason


def image():
    """The ramp as SimpleITK has it; comes back as ramp()."""
    made = sitk.GetImageFromArray(ramp())
    made.SetSpacing((1.0, 2.0, 3.0))
    return made


@pytest.mark.parametrize("packed", [False, True], ids=["raw", "packed"])
@pytest.mark.parametrize(("header", "pixels"), [("v.mhd", (".raw", ".zraw")), ("v.nhdr", (".raw", ".raw.gz"))])
def test_pixels_beside_the_header(tools, tmp_path, header, pixels, packed):
    sitk.WriteImage(image(), str(tmp_path / header), packed)
    name = f"v{pixels[packed]}"
    assert data_file(tmp_path / header) == name
    assert np.array_equal(read_volume_file(tmp_path / header, beside=[name]).values, ramp())
    assert reason(tmp_path / header) == "detached_pixels"
    (tmp_path / "loose.raw").write_bytes(b"1234")
    _, outcomes, _ = tools.run("mri", tools.inputs(tmp_path))
    found = {name: outcome.reason for name, outcome in outcomes.items()}
    assert found == {header: "too_few_slices", name: "too_few_slices", "loose.raw": "not_an_input"}


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("packed", [False, True], ids=["raw", "packed"])
def test_pixels_in_the_header_s_file(tmp_path, suffix, packed):
    sitk.WriteImage(image(), str(tmp_path / f"v{suffix}"), packed)
    volume = read_volume_file(tmp_path / f"v{suffix}")
    assert np.array_equal(volume.values, ramp()) and volume.spacing == pytest.approx((3.0, 2.0, 1.0))


def test_big_endian_pixels(tmp_path):
    sitk.WriteImage(image(), str(tmp_path / "v.mhd"))
    (tmp_path / "v.raw").write_bytes(ramp().astype(">i2").tobytes())
    text = (tmp_path / "v.mhd").read_text()
    (tmp_path / "v.mhd").write_text(text.replace("ByteOrderMSB = False", "ByteOrderMSB = True"))
    assert np.array_equal(read_volume_file(tmp_path / "v.mhd", beside=["v.raw"]).values, ramp())
    sitk.WriteImage(image(), str(tmp_path / "w.nhdr"))
    (tmp_path / "w.raw").write_bytes(ramp().astype(">i2").tobytes())
    text = (tmp_path / "w.nhdr").read_text()
    (tmp_path / "w.nhdr").write_text(text.replace("endian: little", "endian: big"))
    assert np.array_equal(read_volume_file(tmp_path / "w.nhdr", beside=["w.raw"]).values, ramp())


@pytest.fixture
def secret(tmp_path):
    """A file outside the inputs, of the size of the pixels that headers below would read from it."""
    path = tmp_path / "secret.raw"
    path.write_bytes(ramp().tobytes())
    (tmp_path / "in").mkdir()
    return path


NAMES = ("{secret}", "../secret.raw", "./../secret.raw", "LIST", "LIST 2D", "%s1.raw", "sub/v.raw", "..", "a\\b.raw")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("header", ["v.mhd", "v.mha", "v.nhdr", "v.nrrd"])
def test_headers_that_name_other_files_read_none(tools, tmp_path, secret, header, name):
    path = tmp_path / "in" / header
    meta = header.startswith("v.m")
    sitk.WriteImage(image(), str(path.with_suffix(".mhd" if meta else ".nhdr")))
    text = path.with_suffix(".mhd" if meta else ".nhdr").read_text()
    for file in path.parent.iterdir():
        file.unlink()
    told = name.format(secret=secret)
    path.write_text(text.replace("v.raw", told))
    assert reason(path, beside=["v.raw", "secret.raw", told]) == "detached_pixels"
    conversions, outcomes, _ = tools.run("mri", tools.inputs(path.parent))
    assert {found.reason for found in outcomes.values()} == {"detached_pixels"} and not conversions
    # The same header does read the file where it is an input beside it: the refusal is not for another reason.
    path.write_text(text.replace("v.raw", "secret.raw"))
    secret.rename(path.parent / "secret.raw")
    assert np.array_equal(read_volume_file(path, beside=["secret.raw"]).values, ramp())


@pytest.mark.parametrize(
    "trick",
    [
        b"Comment = x\rElementDataFile = LOCAL\n",  # a line for one reader, a comment for another
        b"ElementDataFile = LOCAL\n",
        b"TransformMatrix = ElementDataFile = LOCAL\n",
        b"Comment = " + b"x" * 490 + b"\nElementDataFile = LOCAL\n",
    ],
)
def test_a_second_name_is_no_way_around(tmp_path, secret, trick):
    path = tmp_path / "in" / "v.mhd"
    sitk.WriteImage(image(), str(path))
    (tmp_path / "in" / "v.raw").unlink()
    text = path.read_bytes().replace(b"v.raw", b"../secret.raw")
    path.write_bytes(trick + text)
    assert reason(path, beside=["v.raw"]) == "detached_pixels"
    path.write_bytes(text.replace(b"ElementDataFile", trick + b"ElementDataFile"))
    assert reason(path, beside=["v.raw"]) == "detached_pixels"


def test_nrrd_with_two_names(tmp_path, secret):
    path = tmp_path / "in" / "v.nhdr"
    sitk.WriteImage(image(), str(path))
    text = path.read_text()
    for second in ("data file: ../secret.raw\n", "datafile: ../secret.raw\n", "# data file: ../secret.raw\n"):
        path.write_text(re.sub("(?m)^data file: v.raw\n", "data file: v.raw\n" + second, text))
        assert reason(path, beside=["v.raw"]) == "detached_pixels"


def nifti(path, values, affine=None, **header):
    made = nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine, dtype=values.dtype)
    for name, value in header.items():
        made.header[name] = value
    nibabel.save(made, path)
    return path


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.int64, np.float32, np.float64, ">i2"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_real_type_is_read(tmp_path, dtype, suffix):
    values = (ramp() % 100).astype(dtype)
    volume = read_volume_file(nifti(tmp_path / f"v{suffix}", values, np.diag([-1.0, -1, 1, 1])))
    assert np.array_equal(volume.values, values.T)
    assert volume.values.dtype == (np.float32 if np.dtype(dtype).kind == "f" else np.int16)
    wide = read_volume_file(nifti(tmp_path / f"w{suffix}", ramp().astype(np.int32) * 1000, np.diag([-1.0, -1, 1, 1])))
    assert wide.values.dtype == np.float32 and np.array_equal(wide.values, ramp().T * 1000.0)


def test_types_that_are_no_volume(tmp_path):
    colour = np.zeros((8, 8, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert reason(nifti(tmp_path / "rgb.nii.gz", colour)) == "four_dimensional"
    assert reason(nifti(tmp_path / "c.nii", ramp().astype(np.complex64))) == "four_dimensional"
    assert reason(nifti(tmp_path / "t.nii", np.zeros((8, 8, 8, 5), np.int16))) == "four_dimensional"
    assert reason(nifti(tmp_path / "big.nii", np.full((8, 8, 8), 1e300))) == "not_finite"
    assert read_volume_file(nifti(tmp_path / "one.nii", ramp()[..., None])).values.shape == (9, 8, 7)
    sitk.WriteImage(sitk.GetImageFromArray(ramp((4, 8, 9, 3)), isVector=True), str(tmp_path / "v.mha"))
    assert reason(tmp_path / "v.mha") == "four_dimensional"


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_no_slope_means_as_stored(tmp_path, slope):
    path = nifti(tmp_path / "v.nii", ramp(), np.diag([-1.0, -1, 1, 1]))
    data = bytearray(path.read_bytes())
    data[112:120] = np.array([slope, 7.0], "<f4").tobytes()
    path.write_bytes(bytes(data))
    assert np.array_equal(read_volume_file(path).values, ramp().T)
    data[112:120] = np.array([1.0, np.inf], "<f4").tobytes()
    path.write_bytes(bytes(data))
    assert reason(path) == "unreadable"


def test_microns_and_second_version_and_pairs(tmp_path):
    made = nibabel.Nifti2Image(ramp(), np.diag([-500.0, -500.0, 750.0, 1.0]))
    made.header.set_xyzt_units("micron")
    nibabel.save(made, tmp_path / "v.nii.gz")
    volume = read_volume_file(tmp_path / "v.nii.gz")
    assert volume.spacing == pytest.approx((0.75, 0.5, 0.5)) and np.array_equal(volume.values, ramp().T)
    pair = nibabel.Nifti1Pair(ramp(), np.eye(4))
    nibabel.save(pair, tmp_path / "p.img")
    (tmp_path / "p.hdr").rename(tmp_path / "p.nii")
    assert reason(tmp_path / "p.nii") == "unsupported_format"


def test_files_that_unpack_to_more_than_they_say_cost_what_they_say(tmp_path):
    path = nifti(tmp_path / "v.nii", ramp(), np.diag([-1.0, -1, 1, 1]))
    bomb = gzip.compress(path.read_bytes() + bytes(1 << 25), 6)
    (tmp_path / "v.nii.gz").write_bytes(bomb)
    assert np.array_equal(read_volume_file(tmp_path / "v.nii.gz").values, ramp().T)
    data = bytearray(path.read_bytes())
    data[108:112] = np.array([3e8], "<f4").tobytes()
    (tmp_path / "far.nii.gz").write_bytes(gzip.compress(bytes(data)))
    assert reason(tmp_path / "far.nii.gz") == "unreadable"


def test_a_wrong_checksum_is_noticed(tmp_path):
    nifti(tmp_path / "v.nii", ramp())
    packed = bytearray(gzip.compress((tmp_path / "v.nii").read_bytes()))
    packed[-6] ^= 1
    (tmp_path / "v.nii.gz").write_bytes(bytes(packed))
    assert reason(tmp_path / "v.nii.gz") == "unreadable"


def compressed(tools, syntax, stream, side=16):
    dataset = tools.make_slice(np.zeros((side, side), np.uint16))
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    return dataset


def j2k(width, height, channels=1):
    """The header of a JPEG 2000 codestream."""
    size = b"".join(n.to_bytes(4) for n in (width, height, 0, 0, width, height, 0, 0))
    return b"\xff\x4f\xff\x51" + (38 + 3 * channels).to_bytes(2) + bytes(2) + size + channels.to_bytes(2) + b"\x0f\1\1"


def jpeg(marker, width, height):
    frame = b"\x10" + height.to_bytes(2) + width.to_bytes(2) + b"\1\1\x11\0"
    return b"\xff\xd8\xff\xe0\0\4ab\xff" + bytes([marker]) + (len(frame) + 2).to_bytes(2) + frame


@pytest.mark.parametrize(
    ("syntax", "stream"),
    [
        ("1.2.840.10008.1.2.4.90", j2k(60000, 60000)),
        ("1.2.840.10008.1.2.4.90", j2k(16, 16, 16384)),
        ("1.2.840.10008.1.2.4.90", b"\0\0\0\x0cjP  \r\n\x87\n" + j2k(16, 16) + b"box" + j2k(60000, 60000)),
        ("1.2.840.10008.1.2.4.70", jpeg(0xC3, 65000, 65000)),
        ("1.2.840.10008.1.2.4.70", jpeg(0xC3, 16, 0)),
        ("1.2.840.10008.1.2.4.80", jpeg(0xF7, 65000, 65000)),
        ("1.2.840.10008.1.2.4.50", jpeg(0xC0, 65000, 17)),
    ],
)
def test_streams_larger_than_the_header_says_are_not_decoded(tools, monkeypatch, syntax, stream):
    monkeypatch.setattr("preprocess.readers.dicom._decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(Refusal, match="unreadable: a compressed image of"):
        decode_pixels(compressed(tools, syntax, stream + bytes(64)))


def test_sound_streams_promise_what_the_header_says(real_data):
    sizes = set()
    for path in [*(real_data / "ct/dicom_syntaxes").glob("*.dcm"), *(real_data / "mri/dicom_syntaxes").rglob("*.dcm")]:
        dataset = open_dicom(path)
        if "PixelData" in dataset and dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            count = int(dataset.get("NumberOfFrames") or 1)
            for stream in generate_frames(dataset.PixelData, number_of_frames=count):
                for found in codestream.promised(stream):
                    assert found == (dataset.Columns, dataset.Rows, 1)
                    sizes.add(found)
    assert len(sizes) >= 3


def test_deflated_objects(tools, tmp_path, monkeypatch):
    dataset = tools.make_slice(ramp((16, 16)))
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert np.array_equal(decode_pixels(open_dicom(tmp_path / "a.dcm")), ramp((16, 16)))
    monkeypatch.setattr(codestream, "MAX_INFLATED", 1 << 20)
    whole = (tmp_path / "a.dcm").read_bytes()
    start = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = packer.compress(zlib.decompress(whole[start:], -zlib.MAX_WBITS) + bytes(1 << 21)) + packer.flush()
    (tmp_path / "a.dcm").write_bytes(whole[:start] + bomb)
    for header_only in (True, False):
        with pytest.raises(Refusal, match="too_large"):
            open_dicom(tmp_path / "a.dcm", header_only=header_only)
