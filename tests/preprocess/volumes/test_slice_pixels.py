"""Pixels read after the header alone, and stored values made real ones: the same as by the long way."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from preprocess.conversion import Refusal
from preprocess.readers.dicom import PIXEL_TAGS, add_pixels, decode_pixels, open_dicom, open_header
from preprocess.readers.frames import FRAME_TAGS
from preprocess.readers.slice_pixels import rescaled

TAGS = (*FRAME_TAGS, *PIXEL_TAGS)

# 20560 bytes: in a header without names of types the length begins with 0x50 0x50, the letters of a type "PP".
LOOKS_LIKE_LETTERS = (40, 257)


def stored(shape=(12, 14)):
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape) - 90


def in_two_steps(path):
    header, place = open_header(path, TAGS)
    assert "PixelData" not in header
    return decode_pixels(add_pixels(header, path, place))


def write(tools, path, way, shape):
    """A file of the stored values in one of the ways that files are written, sound or not."""
    values = stored(shape)
    dataset = tools.make_slice(values, SpecificCharacterSet="ISO_IR 100")
    syntaxes = {
        "implicit": ImplicitVRLittleEndian, "big": ExplicitVRBigEndian, "deflated": DeflatedExplicitVRLittleEndian,
    }  # fmt: skip
    if way == "rle":
        dataset.compress(RLELossless, generate_instance_uid=False)
    elif way == "big":
        dataset.PixelData = values.astype(">i2").tobytes()
    if way.startswith("bare"):
        body = DicomBytesIO()
        body.is_little_endian, body.is_implicit_VR = True, way == "bare implicit"
        write_dataset(body, dataset)
        path.write_bytes(body.getvalue())
    else:
        syntax = syntaxes.get(way)
        if syntax is not None:
            dataset.file_meta.TransferSyntaxUID = syntax
        dataset.save_as(path, enforce_file_format=True)
    return values


@pytest.mark.parametrize("shape", [(12, 14), LOOKS_LIKE_LETTERS])
@pytest.mark.parametrize("way", ["explicit", "implicit", "big", "deflated", "rle", "bare implicit", "bare explicit"])
def test_pixels_after_the_header_equal_those_of_the_whole_file(tools, tmp_path, way, shape):
    path = tmp_path / "a.dcm"
    values = write(tools, path, way, shape)
    assert np.array_equal(decode_pixels(open_dicom(path)), values)
    assert np.array_equal(in_two_steps(path), values)


@pytest.mark.filterwarnings("ignore:Expected explicit VR")
@pytest.mark.parametrize("shape", [(12, 14), LOOKS_LIKE_LETTERS])
def test_a_syntax_that_the_file_contradicts(tools, tmp_path, shape):
    """Explicit types are promised and left out; the header tells how to go on, whatever the length looks like."""
    path = tmp_path / "a.dcm"
    dataset = tools.make_slice(stored(shape))
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    body = path.read_bytes()[144 + int.from_bytes(path.read_bytes()[140:144], "little") :]
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    whole = path.read_bytes()
    path.write_bytes(whole[: 144 + int.from_bytes(whole[140:144], "little")] + body)
    assert dcmread(path).file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert np.array_equal(in_two_steps(path), stored(shape))


def test_frames_of_one_file(tools, tmp_path):
    values = np.arange(3 * 12 * 14, dtype=np.int16).reshape(3, 12, 14)
    for name, compressed in (("a.dcm", False), ("b.dcm", True)):
        dataset = tools.make_slice(values, NumberOfFrames=3)
        if compressed:
            dataset.compress(RLELossless, generate_instance_uid=False)
        dataset.save_as(tmp_path / name, enforce_file_format=True)
        assert np.array_equal(in_two_steps(tmp_path / name), values)


def test_real_files_of_all_syntaxes(real_data):
    seen = set()
    for path in sorted((real_data / "mri/dicom_syntaxes").rglob("*.dcm")):
        try:
            expected = decode_pixels(open_dicom(path))
        except Refusal as refusal:
            with pytest.raises(Refusal) as found:
                in_two_steps(path)
            assert found.value.outcome.reason == refusal.outcome.reason, path.name
        else:
            assert np.array_equal(in_two_steps(path), expected), path.name
            seen.add(str(open_header(path, TAGS)[0].file_meta.TransferSyntaxUID))
    assert len(seen) >= 8


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_that_became_shorter_in_between(tools, tmp_path, compressed):
    path = tmp_path / "a.dcm"
    dataset = tools.make_slice(stored())
    if compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    whole = path.read_bytes()
    header, place = open_header(path, TAGS)
    for kept in (place.start - 10, place.start, place.start + 5, len(whole) - 20):
        path.write_bytes(whole[:kept])
        with pytest.raises(Refusal, match="truncated_pixels"):
            decode_pixels(add_pixels(header.copy(), path, place))
    path.unlink()
    with pytest.raises(Refusal, match="unreadable") as refused:
        add_pixels(header, path, place)
    assert str(tmp_path) not in str(refused.value)


DTYPES = (np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.float32)
SCALES = [
    (slope, intercept)
    for slope in (1.0, 2.0, -1.0, 0.5, 0.0, 16383.0, 70000.0)
    for intercept in (0.0, -1024.0, -1024.5, 32767.0, 40000.0, 5e9)
]


def spread(dtype):
    """Values (40,) of the type: its ends, what is around zero and around CT's, and -32768."""
    if np.dtype(dtype).kind == "f":
        return np.linspace(-3000, 3000, 40, dtype=dtype)
    ends = np.iinfo(dtype)
    wanted = np.array([0, 1, 2, 5, 100, 1024, 4095, 32767, 32768, 65535, -1, -2, -1024, -2000, -32768, -32767])
    inside = wanted[(wanted >= ends.min) & (wanted <= ends.max)]
    return np.resize([*inside, ends.min, ends.max], 40).astype(dtype)


@pytest.mark.parametrize("padding", [None, (-32768, -32768), (0, 0), (-2000, 100)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_real_values_equal_the_formula(dtype, padding):
    for slope, intercept in SCALES:
        for values in (spread(dtype), spread(dtype)[:4], np.zeros(3, dtype)):
            frame = SimpleNamespace(slope=slope, intercept=intercept, padding=padding)
            before = values.copy()
            found = rescaled(values, frame, -1024)
            exact = values.astype(np.float64) * slope + intercept
            if padding is not None:
                exact[(values >= padding[0]) & (values <= padding[1])] = -1024
            assert np.array_equal(values, before)
            whole = values.dtype.kind != "f" and slope.is_integer() and intercept.is_integer()
            small = abs(slope) < 1 << 14 and abs(intercept) < 1 << 30
            if whole and small and exact.min() >= -32768 and exact.max() <= 32767:
                assert found.dtype == np.int16 and np.array_equal(found, exact)
            else:
                size = np.abs(values.astype(np.float64) * slope).max() + abs(intercept)
                assert found.dtype == np.float32 and np.allclose(found, exact, rtol=0, atol=3e-7 * size)


def test_padding_below_what_fits_does_not_widen_a_slice():
    """-32768 with an intercept of -1024 is no int16, but it is padding, and the rest stays whole numbers."""
    values = np.array([[-32768, 0, 1024, 4095]], np.int16)
    frame = SimpleNamespace(slope=1.0, intercept=-1024.0, padding=(-32768, -32768))
    found = rescaled(values, frame, -1024)
    assert found.dtype == np.int16 and found.tolist() == [[-1024, -1024, 0, 3071]]
    kept = rescaled(values, frame, None)
    assert kept.dtype == np.float32 and kept.tolist() == [[-33792, -1024, 0, 3071]]
