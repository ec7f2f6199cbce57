"""Headers and stored pixel values: every syntax alike, every defect with its own reason."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.pixels import iter_pixels
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from preprocess.conversion import Refusal
from preprocess.readers.codestream import quickly_decoded
from preprocess.readers.dicom import _bare, decode_pixels, is_lossy, open_dicom, subject_ids


def test_seven_syntaxes_give_equal_stored_values(real_data):
    files = sorted((real_data / "mri/dicom_syntaxes/dcm_qa_ts").glob("*.dcm"))
    datasets = [open_dicom(path) for path in files]
    assert len({str(dataset.file_meta.TransferSyntaxUID) for dataset in datasets}) >= 7
    values = [decode_pixels(dataset) for dataset in datasets]
    assert all(np.array_equal(values[0], other) for other in values[1:])
    assert all(other.dtype.isnative and other.shape == (384, 384) for other in values)


def test_the_lossy_copy_is_known(real_data):
    lossy = {
        path.name: is_lossy(open_dicom(path, header_only=True))
        for path in (real_data / "ct/dicom_syntaxes").glob("693*")
    }
    assert lossy == {"693_J2KI.dcm": True, "693_UNCI.dcm": True, "693_J2KR.dcm": False}


def refusal(path, **options):
    with pytest.raises(Refusal) as refused:
        decode_pixels(open_dicom(path), **options)
    assert str(path.parent) not in refused.value.outcome.message
    return refused.value.outcome.status.value, refused.value.outcome.reason


def test_defects(tools, tmp_path):
    path = tmp_path / "a.dcm"
    tools.make_slice(np.ones((16, 16), np.int16)).save_as(path, enforce_file_format=True)
    whole = path.read_bytes()
    assert refusal(path, max_pixels=255) == ("failed", "too_large")
    for length, expected in ((0, "empty"), (90, "unreadable"), (140, "unreadable"), (-1, "truncated_pixels")):
        path.write_bytes(whole[:length])
        assert refusal(path) == ("failed", expected)
    path.write_bytes(b"\x89PNG" + bytes(500))
    assert refusal(path) == ("failed", "unreadable")
    assert refusal(tmp_path / "absent.dcm") == ("failed", "unreadable")


def test_object_without_pixels(tools, tmp_path):
    dataset = tools.make_slice(np.ones((16, 16), np.int16))
    del dataset.PixelData, dataset.Rows, dataset.Columns
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert refusal(tmp_path / "a.dcm") == ("skipped", "no_pixels")


def test_cut_inside_compressed_data_is_truncation(real_data, tmp_path):
    whole = next((real_data / "ct/covid_ct_md/dicom/P001").glob("*.dcm")).read_bytes()
    for length in (20_000, len(whole) - 10):
        (tmp_path / "a.dcm").write_bytes(whole[:length])
        assert refusal(tmp_path / "a.dcm") == ("failed", "truncated_pixels")


def test_mutated_bytes_never_escape_as_another_error(tools, tmp_path):
    path = tmp_path / "a.dcm"
    tools.make_slice(np.arange(256, dtype=np.int16).reshape(16, 16)).save_as(path, enforce_file_format=True)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(whole)
        for place in generator.integers(128, len(whole) - 512, 4):
            data[place] = generator.integers(256)
        path.write_bytes(bytes(data))
        try:
            dataset = open_dicom(path)
            subject_ids(dataset)
            decode_pixels(dataset)
        except Refusal:
            pass


@pytest.mark.parametrize(
    ("patient", "issuer", "expected"),
    [
        ("Q-17", None, ("Q-17", "weak:1.2.3.4.5")),
        (" Q-17 ", "Ward 3", ("Q-17@Ward 3", "weak:1.2.3.4.5")),
        ("ANONYMOUS", "Ward 3", ("weak:1.2.3.4.5",)),
        ("", None, ("weak:1.2.3.4.5",)),
        ("0000", None, ("weak:1.2.3.4.5",)),
    ],
)
def test_subject_ids(tools, patient, issuer, expected):
    assert (
        subject_ids(tools.make_slice(np.ones((4, 4), np.int16), PatientID=patient, IssuerOfPatientID=issuer))
        == expected
    )


def test_quick_decoders_equal_pydicom_s(real_data):
    paths = [*sorted((real_data / "ct/covid_ct_md/dicom/P001").glob("*.dcm"))[:3]]
    paths += [real_data / f"mri/dicom_syntaxes/dcm_qa_ts/{number}.dcm" for number in (5, 6, 7, 8)]
    for path in paths:
        dataset = open_dicom(path)
        quick = quickly_decoded(dataset, dataset.file_meta.TransferSyntaxUID)
        assert quick is not None
        assert np.array_equal(next(quick), next(iter_pixels(dataset, raw=True)))


def test_multi_frame_objects_are_decoded_frame_by_frame(tools):
    stored = np.arange(5 * 16 * 12, dtype=np.uint16).reshape(5, 16, 12)
    dataset = tools.make_slice(stored, NumberOfFrames=5)
    dataset.compress(RLELossless, generate_instance_uid=False)
    assert np.array_equal(decode_pixels(dataset), stored)
    dataset.NumberOfFrames = 6
    with pytest.raises(Refusal):
        decode_pixels(dataset)


@pytest.mark.filterwarnings("ignore:The pixel data")
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize(("bits", "stored"), [(16, 16), (16, 12), (16, 1), (8, 8), (8, 5)])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_bare_values_equal_pydicom_s(tools, syntax, bits, stored, signed, frames):
    noise = np.random.default_rng(bits + stored).integers(0, 1 << bits, (frames, 6, 5))
    dataset = tools.make_slice(noise.astype(np.uint16), BitsStored=stored, HighBit=stored - 1, BitsAllocated=bits,
                               PixelRepresentation=signed)  # fmt: skip
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.NumberOfFrames = frames
    dataset.PixelData = noise.astype(f"<u{bits // 8}").tobytes() + b"padding."
    dataset.pixel_array_options(raw=True)
    expected = dataset.pixel_array[:frames] if frames > 1 else dataset.pixel_array
    assert _bare(dataset, syntax, frames) is not None
    found = decode_pixels(dataset)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert np.array_equal(found, expected)
    assert (found.min() < 0) == bool(signed)


@pytest.mark.parametrize(
    "changes",
    [{"SamplesPerPixel": 3}, {"BitsAllocated": 32}, {"BitsStored": 17}, {"PhotometricInterpretation": "PALETTE COLOR"}],
)
def test_other_pixels_are_left_to_pydicom(tools, changes):
    dataset = tools.make_slice(np.zeros((4, 4), np.uint16), **changes)
    assert _bare(dataset, ExplicitVRLittleEndian, 1) is None
    assert _bare(tools.make_slice(np.zeros((4, 4), np.uint16)), ExplicitVRBigEndian, 1) is None
