"""Whole-volume files: NIfTI through nibabel, MetaImage and NRRD through SimpleITK."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from preprocess.conversion import failed, skipped
from preprocess.readers.volume import Array, Volume, itk, to_lps

MAX_VOXELS = 1 << 30
"""Default limit of voxels decoded from one file."""

NIFTI_SUFFIXES = (".nii", ".nii.gz")
ITK_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MILLIMETRES = {"meter": 1000.0, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}


def read_volume_file(path: Path, *, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a NIfTI, MetaImage or NRRD file into a `Volume` of real values (scaled), int16 or float32.

    Refused: `empty`, `unreadable`, `truncated_pixels`, `too_large`, `four_dimensional`, `not_a_volume`, `no_geometry`,
    `not_finite`.
    """
    try:
        if path.stat().st_size == 0:
            raise failed("empty", "0 bytes")
    except OSError as error:
        raise failed("unreadable", f"cannot be opened ({error.strerror})") from error
    read = _read_nifti if path.name.lower().endswith(NIFTI_SUFFIXES) else _read_itk
    values, affine = read(path, max_voxels)
    if values.dtype.kind not in "biuf":
        raise failed("four_dimensional", "colour or complex values")
    return to_lps(as_standard(values), affine)


def as_standard(values: Array) -> Array:
    """int16 where every value fits it exactly, else float32. Refused: `not_finite`."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise failed("not_finite", f"{int((~np.isfinite(values)).sum())} voxels")
        return values.astype(np.float32, copy=False)
    if values.dtype.itemsize == 1 or values.dtype == np.int16:
        return values.astype(np.int16, copy=False)
    fits = values.size == 0 or (int(values.min()) >= -(1 << 15) and int(values.max()) < 1 << 15)
    return values.astype(np.int16 if fits else np.float32)


def _read_nifti(path: Path, max_voxels: int) -> tuple[Array, Array]:
    try:
        image: Any = nibabel.load(path)
        header = image.header
        shape = _three_dimensional(tuple(int(size) for size in image.shape))
        if int(np.prod(shape, dtype=np.int64)) > max_voxels:
            raise failed("too_large", f"{'x'.join(map(str, shape))} voxels")
        if hasattr(header, "get_sform") and int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
            raise failed("no_geometry", "neither sform nor qform is set")
        unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else "mm"
        affine = _RAS_TO_LPS @ np.asarray(image.affine, dtype=float)
        affine[:3] *= _MILLIMETRES[unit]
        values = _scaled(image.dataobj).reshape(shape)
    except (EOFError, zlib.error) as error:
        raise failed("truncated_pixels", "the compressed data ends early or is damaged") from error
    except OSError as error:
        if "Expected" in str(error) or "mmap length" in str(error):
            raise failed("truncated_pixels", "fewer bytes than the header says") from error
        raise failed("unreadable", f"not a NIfTI file ({type(error).__name__})") from error
    except ValueError as error:
        if "mmap length" in str(error):
            raise failed("truncated_pixels", "fewer bytes than the header says") from error
        raise failed("unreadable", f"damaged ({type(error).__name__})") from error
    except (ImageFileError, HeaderDataError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise failed("unreadable", f"not a NIfTI file ({type(error).__name__})") from error
    return values, affine


def _scaled(proxy: Any) -> Array:
    """Real values: as stored where the header scales nothing, else float32 (float64, the default, takes twice that)."""
    unscaled = (getattr(proxy, "slope", 1.0), getattr(proxy, "inter", 0.0)) == (1.0, 0.0)
    return np.asarray(proxy) if unscaled else np.asarray(proxy, dtype=np.float32)


def _read_itk(path: Path, max_voxels: int) -> tuple[Array, Array]:
    reader = itk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size = reader.GetSize()
        if reader.GetNumberOfComponents() > 1:
            raise failed("four_dimensional", f"{reader.GetNumberOfComponents()} channels")
        shape = _three_dimensional(tuple(int(n) for n in size))
        if int(np.prod(shape, dtype=np.int64)) > max_voxels:
            raise failed("too_large", f"{'x'.join(map(str, shape))} voxels")
        image = reader.Execute()
    except RuntimeError as error:
        # ITK's message quotes the path, which may name a patient.
        short = any(
            word in str(error).lower() for word in ("could not be read", "unexpected end", "read failed", "eof")
        )
        raise failed("truncated_pixels" if short else "unreadable", "SimpleITK cannot read it") from error
    rank = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(rank, rank)[:3, :3] * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return itk.GetArrayFromImage(image).T.reshape(shape), affine


def _three_dimensional(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape without trailing ones. Refused: `not_a_volume`, `four_dimensional`."""
    trimmed = list(shape)
    while len(trimmed) > 3 and trimmed[-1] == 1:
        trimmed.pop()
    if len(trimmed) > 3:
        raise failed("four_dimensional", "x".join(map(str, shape)))
    if len(trimmed) < 3 or min(trimmed) < 2:
        raise skipped("not_a_volume", "x".join(map(str, shape)))
    return trimmed[0], trimmed[1], trimmed[2]
