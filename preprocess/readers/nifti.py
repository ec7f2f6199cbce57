"""Whole-volume files: NIfTI read here block by block, MetaImage and NRRD through SimpleITK (`itk_files`)."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from preprocess.conversion import Refusal, failed, skipped
from preprocess.heartbeat import beat
from preprocess.readers.dicom import MAX_PIXELS
from preprocess.readers.itk_files import as_standard, read_itk, three_dimensional
from preprocess.readers.volume import Array, Volume, to_lps

NIFTI_SUFFIXES = (".nii", ".nii.gz")

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
_GZIP = b"\x1f\x8b"
_AT_ONCE_BYTES = 1 << 28
_BLOCK_VOXELS = 1 << 20
_MAX_OFFSET = 1 << 26
"""Bytes before the voxels: extensions take some megabytes at most; a compressed file may promise any number."""


def read_volume_file(path: Path, *, max_voxels: int = MAX_PIXELS, beside: Collection[str] = ()) -> Volume:
    """Read a NIfTI, MetaImage or NRRD file into a `Volume` of real values (scaled), int16 or float32.

    `beside` names the files in the same folder that the header may have its pixels in. Refused: `empty`, `unreadable`,
    `unsupported_format`, `truncated_pixels`, `too_large`, `four_dimensional`, `not_a_volume`, `no_geometry`,
    `not_finite`, `detached_pixels`.
    """
    try:
        if path.stat().st_size == 0:
            raise failed("empty", "0 bytes")
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            values, affine = _read_nifti_file(path, max_voxels)
        else:
            values, affine = read_itk(path, max_voxels, beside)
    except (EOFError, zlib.error) as error:
        raise failed("truncated_pixels", "the compressed data ends early or is damaged") from error
    except OSError as error:
        raise failed("unreadable", f"cannot be read ({error.strerror or type(error).__name__})") from error
    return to_lps(values, affine)


def _read_nifti_file(path: Path, max_voxels: int) -> tuple[Array, Array]:
    whole = _unpacked_at_once(path)
    if whole is not None:
        # Where files were joined, the first alone was unpacked: what it lacks is left to the stream.
        with contextlib.suppress(Refusal):
            return _read_nifti(io.BytesIO(whole), max_voxels)
    with _opened(path) as stream:
        return _read_nifti(stream, max_voxels)


def _unpacked_at_once(path: Path) -> bytes | None:
    """The content of a small sound gzip file, three times as fast as its stream; None for all others.

    It is unpacked into the size that its last bytes promise, so a bomb fills no more than that.
    """
    if not 18 < path.stat().st_size <= _AT_ONCE_BYTES:
        return None
    packed = path.read_bytes()
    size = int.from_bytes(packed[-4:], "little")
    if not packed.startswith(_GZIP) or size > _AT_ONCE_BYTES:
        return None
    try:
        return bytes(imagecodecs.gzip_decode(packed, out=size))
    except imagecodecs.DeflateError:
        return None


def _opened(path: Path) -> BinaryIO:
    """The uncompressed bytes, whatever the suffix says of compression."""
    with path.open("rb") as stream:
        packed = stream.read(2) == _GZIP
    return gzip.open(path, "rb") if packed else path.open("rb")  # type: ignore[return-value]


def _read_nifti(stream: BinaryIO, max_voxels: int) -> tuple[Array, Array]:
    """Values (i, j, k) and the affine to LPS millimetres. Nothing beyond what the header promises is decompressed."""
    header = _header(stream)
    try:
        shape = three_dimensional(tuple(int(size) for size in header.get_data_shape()))
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        offset = max(header.get_data_offset(), header.single_vox_offset)
        placed = int(header["sform_code"]) or int(header["qform_code"])
        affine = _RAS_TO_LPS @ np.asarray(header.get_best_affine(), dtype=float)
        affine[:3] *= _MILLIMETRES[header.get_xyzt_units()[0]]
    except (HeaderDataError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise failed("unreadable", f"the NIfTI header is damaged ({type(error).__name__})") from error
    count = math.prod(shape)
    if count > max_voxels:
        raise failed("too_large", f"{'x'.join(map(str, shape))} voxels")
    if dtype.kind not in "iuf":
        raise failed("four_dimensional", "colour or complex values")
    if not placed:
        raise failed("no_geometry", "neither sform nor qform is set")
    _skip(stream, offset)
    values = _values(stream, count, dtype, 1.0 if slope is None else slope, intercept or 0.0)
    # One byte more makes gzip compare its checksum.
    stream.read(1)
    return values.reshape(shape[::-1]).T, affine


def _header(stream: BinaryIO) -> Any:
    """The header without its extensions, which may be of any size. Refused: `unreadable`, `unsupported_format`."""
    start = stream.read(Nifti2Header.sizeof_hdr)
    second = start[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    kind: Any = Nifti2Header if second else Nifti1Header
    if len(start) < kind.sizeof_hdr:
        raise failed("unreadable", "the file ends inside its NIfTI header")
    try:
        header = kind(start[: kind.sizeof_hdr], check=False)
    except (HeaderDataError, ValueError) as error:
        raise failed("unreadable", "not a NIfTI file") from error
    magic = bytes(header["magic"])
    if magic[:3] in (b"ni1", b"ni2"):
        raise skipped("unsupported_format", "the header of a .hdr/.img pair")
    if magic[:3] not in (b"n+1", b"n+2") or int(header["sizeof_hdr"]) != kind.sizeof_hdr:
        raise failed("unreadable", "not a NIfTI file")
    return header


def _skip(stream: BinaryIO, offset: int) -> None:
    ahead = offset - stream.tell()
    if ahead < 0:
        stream.seek(offset)
    elif offset > _MAX_OFFSET or len(stream.read(ahead)) < ahead:
        raise failed("unreadable", f"the voxels are said to begin at byte {offset}")


def _values(stream: BinaryIO, count: int, dtype: Any, slope: float, intercept: float) -> Array:
    """`count` real values, flat: int16 while every one fits, else float32, so that memory is that of the result."""
    whole = dtype.kind in "iu" and float(slope).is_integer() and float(intercept).is_integer()
    exact = whole and dtype.itemsize < 8 and abs(slope) < 1 << 15 and abs(intercept) < 1 << 31
    values: Array = np.empty(count, np.int16 if whole else np.float32)
    for first in range(0, count, _BLOCK_VOXELS):
        wanted = min(_BLOCK_VOXELS, count - first)
        data = stream.read(wanted * dtype.itemsize)
        if len(data) < wanted * dtype.itemsize:
            raise failed("truncated_pixels", "fewer bytes than the header says")
        block = np.frombuffer(data, dtype)
        if (slope, intercept) != (1.0, 0.0):
            block = (
                block.astype(np.int64) * int(slope) + int(intercept)
                if exact
                else block.astype(float) * slope + intercept
            )
        block = as_standard(block)
        if block.dtype == np.float32 and values.dtype == np.int16:
            values = values.astype(np.float32)
        values[first : first + wanted] = block
        beat()
    return values
