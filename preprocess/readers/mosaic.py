"""Siemens mosaics: the slices of a whole volume, side by side in one image, placed by the private CSA header."""

from __future__ import annotations

import math
import struct
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from preprocess.conversion import InputFile, failed
from preprocess.readers.dicom import sound_header
from preprocess.readers.frames import Frame, frames_of
from preprocess.readers.volume import Array

with warnings.catch_warnings():
    # The package warns of its readers of whole series; of it, only the parser of the private header is used.
    warnings.simplefilter("ignore")
    from nibabel.nicom import csareader as _untyped

csareader: Any = _untyped
_CSA_ERRORS = (csareader.CSAError, struct.error, AssertionError, LookupError, ValueError, TypeError, AttributeError)
_SAME_DIRECTION = 1 - 1e-3


def frames_of_mosaic(file: InputFile, dataset: Dataset) -> list[Frame]:
    """The slices of a mosaic, each in its place. Refused: `mosaic_unsupported`, `no_geometry`, `unreadable`.

    A file is one volume: those of one series are times or directions, even where no element tells them apart.
    """
    found = frames_of(file, dataset)
    whole = found[0]
    with sound_header():
        rows, columns = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
        spacing = float(dataset.get("SpacingBetweenSlices") or dataset.get("SliceThickness") or 0)
    count, normal = _private(dataset)
    grid = math.ceil(math.sqrt(count))
    if len(found) > 1 or not 2 <= count <= rows * columns or rows % grid or columns % grid:
        raise failed("mosaic_unsupported", f"{count} slices in an image of {rows} x {columns}")
    if abs(float(normal @ whole.normal)) < _SAME_DIRECTION or not spacing > 0:
        raise failed("mosaic_unsupported", "the slices' direction or distance is missing or at odds with the header")
    # The header's position is that of a single image as large as the mosaic around the centre of the true slice.
    shift = np.array([rows - rows // grid, columns - columns // grid]) / 2
    corner = whole.position + whole.along_column * shift[0] * whole.spacing[0]
    corner = corner + whole.along_row * shift[1] * whole.spacing[1]
    apart = (*whole.tells_apart, whole.instance)
    return [
        replace(whole, number=number, position=corner + number * spacing * normal, tells_apart=apart, tiles=count)
        for number in range(count)
    ]


def _private(dataset: Dataset) -> tuple[int, Array]:
    """Number of slices and the unit vector (3,) from the first to the last."""
    try:
        header = csareader.get_csa_header(dataset)
        count = int(csareader.get_n_mosaic(header))
        normal = np.array([float(value) for value in csareader.get_slice_normal(header)])
    except _CSA_ERRORS as error:
        raise failed("mosaic_unsupported", f"no usable CSA header ({type(error).__name__})") from error
    if normal.shape != (3,) or not abs(float(np.linalg.norm(normal)) - 1) < 1e-2:
        raise failed("mosaic_unsupported", "the CSA header names no direction of the slices")
    return count, normal


def slices_of_mosaic(image: Array, count: int) -> Array:
    """The `count` slices (count, rows / grid, columns / grid) of a mosaic (rows, columns) filled row by row."""
    grid = math.ceil(math.sqrt(count))
    rows, columns = image.shape[0] // grid, image.shape[1] // grid
    return image.reshape(grid, rows, grid, columns).swapaxes(1, 2).reshape(-1, rows, columns)[:count]
