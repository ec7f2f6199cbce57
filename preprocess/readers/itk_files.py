"""MetaImage and NRRD files through SimpleITK, once it is sure which file the pixels will be read from.

A header may name any file of the machine, or a list or pattern of them, as the place of its pixels. Only the files
found beside it as inputs are accepted, by their plain names.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np

from preprocess.conversion import failed, skipped
from preprocess.heartbeat import beat
from preprocess.readers.volume import Array, itk

ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")

_HEADER_BYTES = 1 << 20
_MAX_GRID = 1e9
_MAX_PACKED_BYTES = 2 << 30
"""The library unpacks in one call, some 10 s for so much, and a file that is silent for long is taken for stalled."""
_META_RAW = re.compile(rb"(?:^|[\r\n])BinaryData *= *True", re.IGNORECASE)
_META_PACKED = re.compile(rb"(?:^|[\r\n])CompressedData *= *True", re.IGNORECASE)
_NRRD_RAW = re.compile(rb"\nencoding: *raw *[\r\n]", re.IGNORECASE)
_META_KEY = b"ElementDataFile"
_META_LINE = re.compile(rb"(?:^|[\r\n])ElementDataFile *= *([^\r\n]*?) *(?=[\r\n]|$)")
# The library keeps ten dimensions and does not count.
_META_RANK = re.compile(rb" *= *[1-4] *")
_META_RANKS = re.compile(rb"NDims([^\r\n]*)")
# The library crashes on lines of other kinds.
_NRRD_FIELD = re.compile(rb"#.*|[ -9;-~]+:[= ].*")
_NRRD_KEY = re.compile(rb"data ?file", re.IGNORECASE)
_NRRD_LINE = re.compile(rb"(?:^|\n)data ?file: *([^\r\n]*?) *\r?(?=\n|$)", re.IGNORECASE)
_PLAIN_NAME = re.compile(r"(?!LIST)[^/\\%:*?\x00-\x1f]{1,255}")


def data_file(path: Path) -> str | None:
    """The file beside the header `path` that holds the pixels, None if the header's own file does.

    Refused: `detached_pixels` (a path, list or pattern of files), `empty`, `unreadable`.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(_HEADER_BYTES)
    except OSError as error:
        raise failed("unreadable", f"cannot be opened ({error.strerror})") from error
    if not start:
        raise failed("empty", "0 bytes")
    if path.suffix.lower() in (".mha", ".mhd"):
        return _meta_data_file(start)
    ends = [end for end in (start.find(b"\n\n"), start.find(b"\r\n\r\n")) if end >= 0]
    if not start.startswith(b"NRRD") or (not ends and len(start) == _HEADER_BYTES):
        raise failed("unreadable", "not an NRRD header")
    header = start[: min(ends)] if ends else start
    if not all(map(_NRRD_FIELD.fullmatch, header.splitlines()[1:])):
        raise failed("unreadable", "not an NRRD header")
    named = _NRRD_LINE.findall(header)
    if not named and not _NRRD_KEY.search(header):
        return None
    # A name that only one of two readers would see is no name.
    if len(named) != 1 or len(_NRRD_KEY.findall(header.replace(named[0], b""))) != 1:
        raise failed("detached_pixels", "the header names its pixel file in no clear way")
    return _plain(named[0])


def _meta_data_file(start: bytes) -> str | None:
    found = _META_LINE.search(start)
    if found is None or not all(map(_META_RANK.fullmatch, _META_RANKS.findall(start))):
        raise failed("unreadable", "not a MetaImage header")
    return None if found[1].upper() == b"LOCAL" else _plain(found[1])


def _plain(name: bytes) -> str:
    text = name.decode(errors="replace").removeprefix("./")
    if not _PLAIN_NAME.fullmatch(text) or text in (".", ".."):
        raise failed("detached_pixels", "the header names its pixels by a path, list or pattern")
    return text


def read_itk(path: Path, max_voxels: int, beside: Collection[str]) -> tuple[Array, Array]:
    """Values (i, j, k), int16 or float32, and the affine (4, 4) to LPS millimetres. Raises OSError.

    `beside` holds the names of files in the same folder that the pixels may be read from.
    """
    named = data_file(path)
    if named is not None and named not in beside:
        raise failed("detached_pixels", "the pixel file that the header names is not among the inputs beside it")
    if path.suffix.lower() in (".mha", ".mhd"):
        _refuse_second_name(path)
    reader = itk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("MetaImageIO" if path.suffix.lower() in (".mha", ".mhd") else "NrrdImageIO")
    try:
        reader.ReadImageInformation()
        if reader.GetNumberOfComponents() > 1 or "complex" in itk.GetPixelIDValueAsString(reader.GetPixelIDValue()):
            raise failed("four_dimensional", f"{reader.GetNumberOfComponents()} channels")
        shape = three_dimensional(tuple(int(n) for n in reader.GetSize()))
        if math.prod(shape) > max_voxels:
            raise failed("too_large", f"{'x'.join(map(str, shape))} voxels")
        bits = re.search(r"\d+", itk.GetPixelIDValueAsString(reader.GetPixelIDValue()))
        size = math.prod(shape) * int(bits[0] if bits else 64) // 8
        if size > _MAX_PACKED_BYTES and _is_packed(path):
            raise failed("too_large", f"{size} packed bytes, limit {_MAX_PACKED_BYTES}: store them raw or as NIfTI")
        grid = np.array([*reader.GetDirection(), *reader.GetSpacing(), *reader.GetOrigin()])
        # The library's decomposition of a matrix that overflows never ends.
        if not (np.abs(grid) < _MAX_GRID).all():
            raise failed("no_geometry", "directions, spacing or origin beyond measure")
        image = reader.Execute()
    except RuntimeError as error:
        # ITK's message quotes the path, which may name a patient.
        short = any(
            word in str(error).lower() for word in ("could not be read", "unexpected end", "read failed", "eof")
        )
        raise failed("truncated_pixels" if short else "unreadable", "SimpleITK cannot read it") from error
    beat()
    rank = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(rank, rank)[:3, :3] * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    view = itk.GetArrayViewFromImage(image)
    values = as_standard(view)
    # The view lives no longer than the image.
    values = values.copy() if np.shares_memory(values, view) else values
    return values.T.reshape(shape), affine


def _is_packed(path: Path) -> bool:
    """Whether the header says otherwise than that the voxels are stored as raw bytes."""
    with path.open("rb") as stream:
        start = stream.read(_HEADER_BYTES)
    if path.suffix.lower() in (".mha", ".mhd"):
        header = start[: end.end()] if (end := _META_LINE.search(start)) else start
        return not _META_RAW.search(header) or bool(_META_PACKED.search(header))
    return not _NRRD_RAW.search(start.replace(b"\r", b"").partition(b"\n\n")[0] + b"\n")


def _refuse_second_name(path: Path) -> None:
    """MetaImage's own parser can be led past a line by the one before it, so no second name may stand anywhere."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data.find(_META_KEY, data.find(_META_KEY) + 1) >= 0:
            raise failed("detached_pixels", "the header names its pixel file twice")


def three_dimensional(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape without trailing ones. Refused: `not_a_volume`, `four_dimensional`."""
    trimmed = list(shape)
    while len(trimmed) > 3 and trimmed[-1] == 1:
        trimmed.pop()
    if len(trimmed) > 3:
        raise failed("four_dimensional", "x".join(map(str, shape)))
    if len(trimmed) < 3 or min(trimmed) < 2:
        raise skipped("not_a_volume", "x".join(map(str, shape)))
    return trimmed[0], trimmed[1], trimmed[2]


def as_standard(values: Array) -> Array:
    """int16 where every value fits it exactly, else float32. Refused: `not_finite`, also if float32 cannot hold one."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = values.astype(np.float32, copy=False)
        if not np.isfinite(values).all():
            raise failed("not_finite", f"{int((~np.isfinite(values)).sum())} voxels or more")
        return values
    if values.dtype in (np.int8, np.uint8, np.int16):
        return values.astype(np.int16, copy=False)
    fits = values.size == 0 or (int(values.min()) >= -(1 << 15) and int(values.max()) < 1 << 15)
    return values.astype(np.int16 if fits else np.float32)
