"""DICOM files: headers, stored pixel values and subject identifiers, with a typed refusal for each way to fail."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import data_element_generator
from pydicom.pixels.utils import get_expected_length, iter_pixels
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from preprocess.conversion import WEAK, failed, skipped
from preprocess.heartbeat import beat
from preprocess.readers.codestream import quickly_decoded, refuse_inflating, refuse_unsound_streams
from preprocess.split import is_placeholder

MAX_PIXELS = 1 << 30
"""Default limit of samples (frames x rows x columns x channels) decoded from one file: 2 GiB at 16 bits."""

MAX_FILE_BYTES = 1 << 32
"""What is read whole: twice the bytes of so many pixels. A file with holes costs its maker nothing to make longer."""

HEADER_ERRORS = (
    InvalidDicomError,
    BytesLengthException,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    MemoryError,
    EOFError,
    OSError,
    struct.error,
    zlib.error,
)
"""What pydicom raises, at parsing or at the later access of a lazily parsed element, for bytes that are not sound."""

_SOP_CLASS = 0x00080016
_DICOMDIR = "1.2.840.10008.1.3.10"

PIXEL_TAGS = (
    0x00280002,  # SamplesPerPixel
    0x00280004,  # PhotometricInterpretation
    0x00280006,  # PlanarConfiguration
    0x00280008,  # NumberOfFrames
    0x00280010,  # Rows
    0x00280011,  # Columns
    0x00280100,  # BitsAllocated
    0x00280101,  # BitsStored
    0x00280102,  # HighBit
    0x00280103,  # PixelRepresentation
    0x7FE00001,  # ExtendedOffsetTable
    0x7FE00002,  # ExtendedOffsetTableLengths
    0x7FE00008,  # FloatPixelData
    0x7FE00009,  # DoubleFloatPixelData
    0x7FE00010,  # PixelData
)
"""What `decode_pixels` needs."""

LOSSY_SYNTAXES = frozenset(
    UID(uid)
    for uid in (
        "1.2.840.10008.1.2.4.50",  # JPEG baseline
        "1.2.840.10008.1.2.4.51",  # JPEG extended
        "1.2.840.10008.1.2.4.81",  # JPEG-LS near lossless
        "1.2.840.10008.1.2.4.91",  # JPEG 2000, irreversible allowed
        "1.2.840.10008.1.2.4.203",  # HTJ2K, irreversible allowed
    )
)

# Expected findings become typed refusals; pydicom's own log lines would only repeat them, with header values in them.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@contextmanager
def sound_header(what: str = "the header") -> Iterator[None]:
    """Turn what pydicom raises inside the block into `failed: unreadable`; its warnings are silenced."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except HEADER_ERRORS as error:
            raise failed("unreadable", f"{what} is damaged ({type(error).__name__})") from error


def open_dicom(path: Path, *, header_only: bool = False, tags: Sequence[int] | None = None) -> Dataset:
    """Read a DICOM file; `header_only` stops before the pixel data, `tags` limits which elements are kept.

    A file without the preamble is accepted if it parses to an object with a SOP class. Refused: `empty`, `unreadable`,
    `too_large` (deflated).
    """
    return _read(path, header_only=header_only, tags=tags)[0]


@dataclass(frozen=True)
class PixelPlace:
    """The byte of a file where the pixel data begin, and how elements are encoded there."""

    start: int
    implicit: bool
    little: bool


def open_header(path: Path, tags: Sequence[int]) -> tuple[Dataset, PixelPlace | None]:
    """As `open_dicom` for a header, with what `add_pixels` needs to go on from there."""
    return _read(path, header_only=True, tags=tags)


def add_pixels(header: Dataset, path: Path, place: PixelPlace | None) -> Dataset:
    """The object whose header was read by `open_header`, with its pixel data; the header is not read again.

    `header` needs the elements of `PIXEL_TAGS`. Refused: `too_large`, `unreadable`.
    """
    if place is None:
        return open_dicom(path, tags=PIXEL_TAGS)
    with sound_header("the file"), path.open("rb") as stream:
        _refuse_long(stream)
        stream.seek(place.start)
        # Not `read_dataset`, which guesses the encoding from its first element: a length may look like letters.
        elements = data_element_generator(stream, place.implicit, place.little, specific_tags=list(PIXEL_TAGS))
        # Of a file that ends inside its pixels none are added, and `decode_pixels` says that they are cut off.
        with contextlib.suppress(EOFError):
            header.update({element.tag: element for element in elements})
    return header


def _refuse_long(stream: BinaryIO) -> None:
    if os.fstat(stream.fileno()).st_size > MAX_FILE_BYTES:
        raise failed("too_large", f"a file of more than {MAX_FILE_BYTES >> 30} GiB")


def _read(path: Path, *, header_only: bool, tags: Sequence[int] | None) -> tuple[Dataset, PixelPlace | None]:
    kept = None if tags is None else [*tags, _SOP_CLASS]
    try:
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise failed("empty", "0 bytes")
            if not header_only:
                _refuse_long(stream)
            present = stream.read(132)[128:] == b"DICM"
            with sound_header("the file"):
                return _parsed(stream, present, header_only, kept)
    except OSError as error:
        raise failed("unreadable", f"cannot be opened ({error.strerror})") from error


def _parsed(
    stream: BinaryIO, present: bool, header_only: bool, kept: list[int] | None
) -> tuple[Dataset, PixelPlace | None]:
    refuse_inflating(stream)
    stream.seek(0)
    dataset = pydicom.dcmread(stream, stop_before_pixels=header_only, force=not present, specific_tags=kept)
    start = stream.tell()
    if _SOP_CLASS not in dataset and not header_only:
        # pydicom drops everything when a file ends inside compressed pixel data: the header alone tells which.
        stream.seek(0)
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=not present, specific_tags=kept)
    if _SOP_CLASS not in dataset and dataset.file_meta.get("MediaStorageSOPClassUID") != _DICOMDIR:
        raise failed("unreadable", "not a DICOM file" if not present else "the file ends inside its header")
    # How it was found to be encoded: the transfer syntax may say otherwise, or be missing with the preamble.
    found: object = dataset.get_item(_SOP_CLASS)
    if not isinstance(found, RawDataElement):
        return dataset, None
    if "TransferSyntaxUID" not in dataset.file_meta:
        explicit = ExplicitVRLittleEndian if found.is_little_endian else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if found.is_implicit_VR else explicit
    if transfer_syntax(dataset).is_deflated:
        return dataset, None
    return dataset, PixelPlace(start, found.is_implicit_VR, found.is_little_endian)


def transfer_syntax(dataset: Dataset) -> UID:
    """The transfer syntax of a dataset; implicit little endian, DICOM's default, where the header does not say."""
    meta = getattr(dataset, "file_meta", None)
    named = meta.get("TransferSyntaxUID") if meta is not None else None
    return UID(str(named)) if named else UID("1.2.840.10008.1.2")


def is_lossy(dataset: Dataset) -> bool:
    """Whether pixel values were ever lossily compressed, by the header's flag or by the transfer syntax."""
    return str(dataset.get("LossyImageCompression", "")) == "01" or transfer_syntax(dataset) in LOSSY_SYNTAXES


def decode_pixels(dataset: Dataset, *, max_pixels: int = MAX_PIXELS) -> np.ndarray[Any, Any]:
    """Stored pixel values in native byte order: (rows, columns), with frames first and channels last where present.

    No rescale, LUT or colour conversion is applied. Refused: `no_pixels`, `truncated_pixels`, `unsupported_syntax`,
    `too_large`, `unreadable` (the compressed stream is damaged).
    """
    with sound_header():
        rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
        count = rows * columns * int(dataset.get("NumberOfFrames") or 1) * int(dataset.get("SamplesPerPixel") or 1)
        keyword = next(
            (name for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in dataset), ""
        )
        stored = len(dataset[keyword].value or b"") if keyword else 0
        syntax = transfer_syntax(dataset)
        if not keyword and count == 0:
            raise skipped("no_pixels", "no pixel data")
        if stored == 0:
            # pydicom drops an element that the file ends in: the header describes an image whose data is not there.
            raise failed("truncated_pixels", f"none of {count} pixels is there")
        if count > max_pixels:
            raise failed("too_large", f"{count} pixels, limit {max_pixels}")
        if not syntax.is_transfer_syntax:
            raise failed("unsupported_syntax", "an unknown transfer syntax")
        if not syntax.is_compressed:
            expected = get_expected_length(dataset)
            if stored < expected:
                raise failed("truncated_pixels", f"{stored} of {expected} bytes")
        if syntax.is_encapsulated:
            refuse_unsound_streams(dataset, syntax)
        values = _decode(dataset, syntax)
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def _decode(dataset: Dataset, syntax: UID) -> np.ndarray[Any, Any]:
    try:
        values = _frames(dataset, syntax)
    except NotImplementedError as error:  # raised by pydicom for a syntax that none of its decoders knows
        raise failed("unsupported_syntax", syntax.name) from error
    except RuntimeError as error:
        # pydicom raises this both without a plugin for a syntax and when every plugin failed on a damaged stream.
        if "missing dependencies" in str(error) or "missing required" in str(error):
            raise failed("unsupported_syntax", syntax.name) from error
        raise failed("unreadable", f"the compressed pixel data is damaged ({syntax.name})") from error
    except ValueError as error:
        if "less than expected" in str(error) or "frames" in str(error):
            raise failed("truncated_pixels", f"fewer frames or bytes than the header says ({syntax.name})") from error
        raise
    except StopIteration as error:
        raise failed("truncated_pixels", f"no frame in the compressed pixel data ({syntax.name})") from error
    except BaseException as error:
        # A panic of the RLE decoder, written in Rust, is no Exception, and its class cannot be imported.
        if type(error).__module__ != "pyo3_runtime":
            raise
        raise failed("unreadable", f"the compressed pixel data is damaged ({syntax.name})") from error
    return values


def _frames(dataset: Dataset, syntax: UID) -> np.ndarray[Any, Any]:
    """All frames; compressed ones one by one, for many take long."""
    count = int(dataset.get("NumberOfFrames") or 1)
    if not syntax.is_encapsulated:
        values = _bare(dataset, syntax, count)
        if values is None:
            dataset.pixel_array_options(raw=True)
            values = dataset.pixel_array
        return values
    decoded = quickly_decoded(dataset, syntax) or iter_pixels(dataset, raw=True)
    first = next(decoded)
    if count == 1:
        return first
    values = np.empty((count, *first.shape), first.dtype)
    values[0] = first
    number = 0
    for number, frame in zip(range(1, count), decoded, strict=False):
        values[number] = frame
        beat()
    if number + 1 < count:
        raise failed("truncated_pixels", f"{number + 1} frames of {count} ({syntax.name})")
    return values


def _bare(dataset: Dataset, syntax: UID, count: int) -> np.ndarray[Any, Any] | None:
    """Uncompressed grey values as pydicom gives them, which checks half a millisecond a slice; None for other pixels.

    (rows, columns), with frames first where there are several.
    """
    rows, columns, bits = int(dataset.Rows), int(dataset.Columns), int(dataset.BitsAllocated)
    stored, signed = int(dataset.BitsStored), int(dataset.PixelRepresentation)
    grey = str(dataset.PhotometricInterpretation) in ("MONOCHROME1", "MONOCHROME2") and dataset.SamplesPerPixel == 1
    sound = bits in (8, 16) and 1 <= stored <= bits and signed in (0, 1) and rows > 0 and columns > 0 and count > 0
    if not grey or not sound or not syntax.is_little_endian or "PixelData" not in dataset:
        return None
    values = np.frombuffer(dataset.PixelData, f"<{'ui'[signed]}{bits // 8}", count * rows * columns)
    if stored < bits:
        # What stands in the bits beyond is not said: overlays did once.
        values = values << (bits - stored) >> (bits - stored)
    return values.reshape(rows, columns) if count == 1 else values.reshape(count, rows, columns)


def subject_ids(dataset: Dataset) -> tuple[str, ...]:
    """Identifiers of the patient, most trusted first: PatientID (with its issuer, where named), StudyInstanceUID.

    The study's id is marked as weak: an id in the path goes before it. Placeholders are left out: may be empty.
    """
    with sound_header():
        patient = str(dataset.get("PatientID") or "").strip()
        issuer = str(dataset.get("IssuerOfPatientID") or "").strip()
        study = str(dataset.get("StudyInstanceUID") or "").strip()
    if is_placeholder(patient):
        patient = ""
    elif not is_placeholder(issuer):
        patient = f"{patient}@{issuer}"
    return tuple(name for name in (patient, study and f"{WEAK}{study}") if name)
