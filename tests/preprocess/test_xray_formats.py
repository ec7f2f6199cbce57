"""Radiographs in every usual encoding: equal pixels from each transfer syntax, bit layout and colour model."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from preprocess.conversion import InputFile, Inspected, Piece, Refusal
from preprocess.modalities import xray

DX = "1.2.840.10008.5.1.4.1.1.1.1"


def chest() -> np.ndarray:
    """64 x 80 smooth 12-bit values that use the whole range, different in both directions."""
    y, x = np.mgrid[:64, :80]
    return (2047.5 + 1200 * np.sin(x / 11 + y / 40) + 847 * np.cos(y / 9)).round().clip(0, 4095).astype(np.uint16)


def write(path: Path, stored: np.ndarray, syntax: UID = ExplicitVRLittleEndian, **header: Any) -> None:
    """A DX file of uint8 or 12-bit uint16 pixels, channels last; `header` goes over the defaults."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID, dataset.SOPInstanceUID = DX, generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.PatientID = "DX", "P1"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    bits = 8 if stored.dtype == np.uint8 else 12
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * stored.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    data = header.pop("data", None)
    for name, value in header.items():
        setattr(dataset, name, value)
    if syntax == RLELossless:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.PixelData = stored.tobytes()
        dataset.compress(RLELossless, generate_instance_uid=False)
    elif syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        dataset.PixelData = encapsulate([data])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    else:
        little = syntax != ExplicitVRBigEndian
        dataset.PixelData = data or stored.astype(stored.dtype.newbyteorder("<" if little else ">")).tobytes()
        dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)


def settings() -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    xray.add_arguments(parser)
    parser.set_defaults(labels=[], id_column=None)
    return xray.settings(parser.parse_args([]))


def take(path: Path) -> Piece:
    """The one sample of a file. Raises the refusal if it is refused."""
    file = InputFile(path, path.name)
    (unit,) = xray.group([Inspected(file, xray.inspect(file, settings()))], settings()).units
    conversion = xray.convert(unit, settings())
    if not conversion.pieces:
        outcome = conversion.outcomes[path.name]
        raise Refusal(outcome.status, outcome.reason, outcome.message)
    return conversion.pieces[0]


def grey(piece: Piece) -> np.ndarray:
    assert isinstance(piece.data, bytes)
    return np.asarray(Image.open(io.BytesIO(piece.data))).astype(int)


def reason(path: Path) -> str:
    with pytest.raises(Refusal) as caught:
        take(path)
    return caught.value.outcome.reason


Encoder = Callable[[np.ndarray], bytes]
LOSSLESS: dict[str, tuple[UID, Encoder | None]] = {
    "implicit little endian": (ImplicitVRLittleEndian, None),
    "explicit big endian": (ExplicitVRBigEndian, None),
    "deflated": (DeflatedExplicitVRLittleEndian, None),
    "RLE": (RLELossless, None),
    "JPEG lossless": (JPEGLossless, lambda stored: imagecodecs.ljpeg_encode(stored, bitspersample=12)),
    "JPEG lossless, first order": (JPEGLosslessSV1, lambda stored: imagecodecs.ljpeg_encode(stored, bitspersample=12)),
    "JPEG-LS": (JPEGLSLossless, imagecodecs.jpegls_encode),
    "JPEG 2000": (JPEG2000Lossless, lambda stored: imagecodecs.jpeg2k_encode(stored, codecformat="J2K")),
    "high-throughput JPEG 2000": (HTJ2KLossless, imagecodecs.htj2k_encode),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_syntaxes_give_the_sample_of_the_plain_one(tmp_path: Path, name: str) -> None:
    syntax, encode = LOSSLESS[name]
    stored = chest()
    window = {"WindowCenter": "2000", "WindowWidth": "3000"}
    write(tmp_path / "plain.dcm", stored, **window)
    extra = {} if encode is None else {"data": encode(stored)}
    write(tmp_path / "other.dcm", stored, syntax, **window, **extra)
    plain, other = take(tmp_path / "plain.dcm"), take(tmp_path / "other.dcm")
    assert other.content == plain.content
    assert other.data == plain.data
    expected = np.clip((stored - 1999.5) / 2999 + 0.5, 0, 1) * 255
    assert np.abs(grey(plain) - expected).max() <= 6


def test_a_stream_cut_short_is_never_taken(tmp_path: Path) -> None:
    """Decoders of the JPEG family fill the missing part with made-up pixels."""
    baseline: Encoder = lambda stored: imagecodecs.jpeg8_encode((stored >> 4).astype(np.uint8), level=97)  # noqa: E731
    for name, (syntax, encode) in (LOSSLESS | {"JPEG baseline": (JPEGBaseline8Bit, baseline)}).items():
        if encode is None:
            continue
        stored = (chest() >> 4).astype(np.uint8) if syntax == JPEGBaseline8Bit else chest()
        stream = encode(chest())
        write(tmp_path / "whole.dcm", stored, syntax, data=stream + b"\0\0")
        assert take(tmp_path / "whole.dcm").content
        for length in (len(stream) // 3, len(stream) - 8):
            write(tmp_path / "cut.dcm", stored, syntax, data=stream[:length])
            assert reason(tmp_path / "cut.dcm") in ("truncated_pixels", "unreadable"), name


@pytest.mark.parametrize(
    ("syntax", "bits"), [(JPEGBaseline8Bit, 8), (JPEGExtended12Bit, 12)], ids=["baseline", "extended"]
)
def test_lossy_jpeg_is_close(tmp_path: Path, syntax: UID, bits: int) -> None:
    stored = chest() if bits == 12 else (chest() >> 4).astype(np.uint8)
    encoded = imagecodecs.jpeg8_encode(stored, level=97, bitspersample=bits)
    write(tmp_path / "a.dcm", stored, syntax, data=encoded, WindowCenter=str(2 ** (bits - 1)), WindowWidth=str(2**bits))
    full = 2**bits - 1
    assert np.abs(grey(take(tmp_path / "a.dcm")) - stored / full * 255).max() <= 8


def test_bits_above_the_stored_ones_are_masked(tmp_path: Path) -> None:
    stored = chest()
    full = {"WindowCenter": "2048", "WindowWidth": "4096"}
    write(tmp_path / "plain.dcm", stored, **full)
    write(tmp_path / "overlay.dcm", stored | np.uint16(0x5000), **full)
    assert take(tmp_path / "overlay.dcm").data == take(tmp_path / "plain.dcm").data
    # The same for two's complement: the sign is bit 11, whatever an overlay left above it.
    signed = (stored.astype(np.int16) - 2048) & 0x0FFF | 0x3000
    write(tmp_path / "signed.dcm", signed.astype(np.int16), WindowCenter="0", WindowWidth="4096")
    assert take(tmp_path / "signed.dcm").data == take(tmp_path / "plain.dcm").data


def test_values_that_do_not_begin_at_bit_0_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.dcm", chest() << np.uint16(4), HighBit=15)
    assert reason(tmp_path / "a.dcm") == "unsupported_format"


@pytest.mark.parametrize("limit", [None, -1990], ids=["one value", "a range"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_weighs_nothing(tmp_path: Path, photometric: str, limit: int | None) -> None:
    signed = chest().astype(np.int16) // 4
    padded = signed.copy()
    padded[:, :16] = -2000 if limit is None else np.arange(-2000, -1989).repeat(16)[:64, None]
    header: dict[str, Any] = {"PixelPaddingValue": -2000}
    if limit is not None:
        header["PixelPaddingRangeLimit"] = limit
    write(tmp_path / "whole.dcm", signed[:, 16:], PhotometricInterpretation=photometric)
    write(tmp_path / "padded.dcm", padded, PhotometricInterpretation=photometric, **header)
    whole, shown = grey(take(tmp_path / "whole.dcm")), grey(take(tmp_path / "padded.dcm"))
    assert shown[:, :12].max() <= 12  # JPEG rings a little beside the edge
    assert np.abs(shown[:, 24:] - whole[:, 8:]).max() <= 4


def test_monochrome_twins_become_one_sample_s_bytes(tmp_path: Path) -> None:
    stored = chest()
    write(tmp_path / "two.dcm", stored, WindowCenter="2048", WindowWidth="4096")
    twin = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": "2048", "WindowWidth": "4096"}
    write(tmp_path / "one.dcm", (4095 - stored).astype(np.uint16), **twin)
    assert take(tmp_path / "one.dcm").data == take(tmp_path / "two.dcm").data


def colours() -> np.ndarray:
    y, x = np.mgrid[:64, :64]
    return np.stack([x * 4, y * 4, 255 - 2 * x - 2 * y], -1).clip(0, 255).astype(np.uint8)


def subsampled(ycc: np.ndarray) -> bytes:
    """YBR_FULL_422: two luminances, then the pair's two chrominances."""
    pairs = [ycc[:, 0::2, 0], ycc[:, 1::2, 0], ycc[:, 0::2, 1], ycc[:, 0::2, 2]]
    return np.stack(pairs, -1).tobytes()


def test_colour_becomes_luminance_in_every_model(tmp_path: Path) -> None:
    rgb = colours()
    ycc = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    luminance = rgb @ np.array([0.299, 0.587, 0.114])
    planes = np.ascontiguousarray(np.moveaxis(rgb, -1, 0)).tobytes()
    jpeg = imagecodecs.jpeg8_encode(rgb, level=97, subsampling="422")
    rct = imagecodecs.jpeg2k_encode(rgb, codecformat="J2K", mct=True)
    cases: list[tuple[np.ndarray, UID, str, dict[str, Any]]] = [
        (rgb, ExplicitVRLittleEndian, "RGB", {}),
        (rgb, ExplicitVRLittleEndian, "RGB", {"PlanarConfiguration": 1, "data": planes}),
        (ycc, ExplicitVRLittleEndian, "YBR_FULL", {}),
        (ycc, ExplicitVRLittleEndian, "YBR_FULL_422", {"data": subsampled(ycc)}),
        (rgb, JPEGBaseline8Bit, "YBR_FULL_422", {"data": jpeg}),
        (rgb, JPEG2000Lossless, "YBR_RCT", {"data": rct}),
    ]
    for number, (stored, syntax, photometric, extra) in enumerate(cases):
        path = tmp_path / f"{number}.dcm"
        write(path, stored, syntax, PhotometricInterpretation=photometric, **extra)
        piece = take(path)
        assert piece.geometry["voi"] == "colour"
        assert np.abs(grey(piece) - luminance).max() <= 8, (photometric, syntax.name)


def test_what_cannot_be_shown_is_typed(tmp_path: Path) -> None:
    write(tmp_path / "palette.dcm", (chest() >> 4).astype(np.uint8), PhotometricInterpretation="PALETTE COLOR")
    assert reason(tmp_path / "palette.dcm") == "unsupported_format"
    write(tmp_path / "video.dcm", chest(), UID("1.2.840.10008.1.2.4.102"), data=b"not a radiograph")
    assert reason(tmp_path / "video.dcm") == "unsupported_syntax"
    write(tmp_path / "short.dcm", chest(), Rows=100)
    assert reason(tmp_path / "short.dcm") == "truncated_pixels"
    write(tmp_path / "bomb.dcm", chest(), JPEGLSLossless, data=b"small", Rows=60_000, Columns=60_000)
    assert reason(tmp_path / "bomb.dcm") == "too_large"
