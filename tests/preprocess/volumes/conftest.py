"""Makers of small DICOM series, and options as the command line would give them."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from preprocess.conversion import Conversion, InputFile, Outcome
from tests.support.discovery import discover

CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}


def make_slice(stored: np.ndarray[Any, Any], modality: str = "CT", **elements: Any) -> Dataset:
    """A DICOM object around stored values (rows, columns) or (frames, rows, columns), int16 or uint16."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CLASSES[modality]
    dataset.SOPInstanceUID = elements.pop("SOPInstanceUID", generate_uid())
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality = modality
    dataset.PatientID = "Q-17"
    dataset.StudyInstanceUID = "1.2.3.4.5"
    dataset.SeriesInstanceUID = "1.2.3.4.5.6"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1 if stored.dtype.kind == "i" else 0
    if modality == "CT":
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    for name, value in elements.items():
        if value is None:
            if name in dataset:
                delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    dataset.PixelData = np.ascontiguousarray(stored).tobytes()
    return dataset


def write_series(
    folder: Path,
    stored: np.ndarray[Any, Any],
    affine: np.ndarray[Any, Any],
    *,
    modality: str = "CT",
    names: Callable[[int], str] = "{:03d}.dcm".format,
    **elements: Any,
) -> list[InputFile]:
    """Write slices (k, rows, columns); `affine` (4, 4) maps (k, row, column) to LPS mm. Lists as elements vary by k."""
    folder.mkdir(parents=True, exist_ok=True)
    along_column, along_row = affine[:3, 1], affine[:3, 2]
    spacing = [float(np.linalg.norm(along_column)), float(np.linalg.norm(along_row))]
    for k, values in enumerate(stored):
        own = {name: value[k] if isinstance(value, list) else value for name, value in elements.items()}
        geometry = {
            "ImagePositionPatient": [f"{value:.6f}" for value in affine[:3, 3] + k * affine[:3, 0]],
            "ImageOrientationPatient": [f"{v:.6f}" for v in (*along_row / spacing[1], *along_column / spacing[0])],
            "PixelSpacing": [f"{value:.6f}" for value in spacing],
            "InstanceNumber": k + 1,
        }
        make_slice(values, modality, **{**geometry, **own}).save_as(folder / names(k), enforce_file_format=True)
    return inputs(folder)


def inputs(root: Path) -> list[InputFile]:
    """Every file below `root` as the engine would list it."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [InputFile(path, path.relative_to(root).as_posix()) for path in files]


def axial(spacing: Sequence[float] = (2.0, 1.0, 1.0)) -> np.ndarray[Any, Any]:
    """Affine of axial slices: k superior, rows posterior, columns left."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *spacing, 1.0
    affine[:3, 3] = (-20.0, -10.0, 5.0)
    return affine


def options(modality: str, *words: str) -> dict[str, Any]:
    """The settings that a command line gives."""
    module = importlib.import_module(f"preprocess.modalities.{modality}")
    parser = argparse.ArgumentParser()
    parser.add_argument("--masks", action="append", default=[])
    module.add_arguments(parser)
    settings: dict[str, Any] = module.settings(parser.parse_args(words))
    return settings


def run(
    modality: str, files: Sequence[InputFile], *words: str
) -> tuple[list[Conversion], dict[str, Outcome], dict[str, Any]]:
    """Discover and convert; returns conversions, every file's outcome and the settings."""
    module = importlib.import_module(f"preprocess.modalities.{modality}")
    settings = options(modality, *words)
    discovery = discover(module, files, settings)
    outcomes = dict(discovery.outcomes)
    conversions = []
    for unit in discovery.units:
        conversion = module.convert(unit, settings)
        conversions.append(conversion)
        outcomes.update(conversion.outcomes)
    assert set(outcomes) == {file.relative for file in files}, "every file has an outcome"
    return conversions, outcomes, settings


class Tools:
    """The functions above, for tests (test modules cannot import each other)."""

    make_slice = staticmethod(make_slice)
    write_series = staticmethod(write_series)
    inputs = staticmethod(inputs)
    axial = staticmethod(axial)
    options = staticmethod(options)
    run = staticmethod(run)


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools
