"""The file formats of the phantoms: text, DICOM, PNG, NIfTI and pyramidal TIFF, with made-up, fixed headers."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from preprocess.phantoms import ct, mri, pathology, report, xray

VERSION = 1
"""Raised when the same seed gives other bytes than before."""

CLASSES = {
    "report": report.CLASSES, "xray": xray.CLASSES, "ct": ct.CLASSES, "mri": mri.CLASSES,
    "pathology": pathology.CLASSES,
}  # fmt: skip
UNITS = {
    "report": "text files", "xray": "DICOM and PNG files", "ct": "DICOM series", "mri": "NIfTI volumes",
    "pathology": "slides",
}  # fmt: skip

_DATE, _TIME = "20200101", "120000"
_INSTITUTION = "Synthetic phantom, no patient"


def name(modality: str, subject: str, sample: int, number: int) -> str:
    """Path of an item below its modality's folder; a CT series is a folder."""
    endings = {"report": ".txt", "ct": "", "mri": ".nii.gz", "pathology": ".tiff"}
    ending = endings.get(modality, ".png" if number % 3 == 2 else ".dcm")
    return f"{subject}/{modality}-{sample + 1:02d}{ending}"


def write_report(path: Path, rng: np.random.Generator, label: str, subject: str, number: int) -> None:
    """A plain text report with FINDINGS and IMPRESSION sections, alternately in either order."""
    findings, impression = report.draw(rng, label)
    sections = [f"FINDINGS:\n{findings}\n", f"IMPRESSION:\n{impression}\n"]
    head = f"EXAMINATION: Chest radiograph (synthetic)\nPATIENT ID: {subject}\n\n"
    path.write_text(head + "\n".join(sections[:: -1 if number % 4 == 3 else 1]), encoding="utf-8")


def write_xray(path: Path, rng: np.random.Generator, label: str, subject: str, number: int) -> None:
    """PNG or DICOM by the path's suffix; every fourth DICOM is MONOCHROME1; 12 or 16 bits, some with a window."""
    image = xray.draw(rng, label)
    if path.suffix == ".png":
        Image.fromarray((image * 255 + 0.5).astype(np.uint8)).save(path, optimize=False, compress_level=3)
        return
    bits = 12 if number % 2 else 16
    top = 2**bits - 1
    inverted = number % 4 == 1
    stored = ((1 - image if inverted else image) * top + 0.5).astype(np.uint16)
    dataset = _dataset(DigitalXRayImageStorageForPresentation, "DX", subject, ("xray", str(number)), number)
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.BurnedInAnnotation = "NO"
    dataset.ViewPosition = "PA"
    dataset.BodyPartExamined = "CHEST"
    dataset.ImagerPixelSpacing = [1.8, 1.8]
    if number % 4 != 2:
        dataset.WindowCenter, dataset.WindowWidth = top / 2, top
    _save(dataset, stored, bits, path)


def write_ct(path: Path, rng: np.random.Generator, label: str, subject: str, number: int) -> None:
    """A DICOM series as a folder of axial slices; every seventh series names its files against their positions."""
    hu = ct.draw(rng, label)
    path.mkdir()
    step, row, column = ct.SPACING_MM
    # Slope and intercept differ by series, as scanners' do.
    slope, intercept = ((1.0, -1024.0), (1.0, -8192.0), (2.0, -2048.0))[number % 3]
    stored = ((hu - intercept) / slope + 0.5).astype(np.uint16)
    base = _dataset(CTImageStorage, "CT", subject, ("ct", str(number)), number)
    base.PhotometricInterpretation = "MONOCHROME2"
    base.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    base.RescaleSlope, base.RescaleIntercept, base.RescaleType = slope, intercept, "HU"
    base.WindowCenter, base.WindowWidth = -500, 1500
    base.BodyPartExamined = "CHEST"
    base.PixelSpacing = [row, column]
    base.SliceThickness = step
    base.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    base.PatientPosition = "HFS"
    base.KVP = 120
    corner = [-(hu.shape[2] - 1) / 2 * column, -(hu.shape[1] - 1) / 2 * row]
    count = hu.shape[0]
    for index in range(count):
        base.SOPInstanceUID = base.file_meta.MediaStorageSOPInstanceUID = _uid("ct", subject, str(number), str(index))
        base.InstanceNumber = index + 1
        base.ImagePositionPatient = [*corner, round(index * step - 60, 3)]
        file = count - index if number % 7 == 0 else index + 1
        _save(base, stored[index], 16, path / f"IM{file:04d}.dcm")


def write_mri(path: Path, rng: np.random.Generator, label: str, subject: str, number: int) -> None:
    """A NIfTI volume whose axes are stored in the order and direction of one of three scanners (int16)."""
    volume = np.clip(mri.draw(rng, label), 0, 32000).astype(np.int16)
    # To (x, y, z) with the world axes of NIfTI: x to the right, y to the front, z up.
    data = volume.transpose(2, 1, 0)
    step, row, column = mri.SPACING_MM
    affine = np.diag([-column, -row, step, 1.0])
    affine[:3, 3] = (data.shape[0] * column / 2, data.shape[1] * row / 2 - 12.0, -data.shape[2] * step / 2 + 7.0)
    image = nibabel.Nifti1Image(data, affine)  # type: ignore[no-untyped-call]
    turned = ([[0, 1], [1, 1], [2, 1]], [[0, -1], [1, -1], [2, 1]], [[0, 1], [1, -1], [2, -1]])[number % 3]
    image = image.as_reoriented(turned)  # type: ignore[no-untyped-call]
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"synthetic phantom, no patient"
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=1, mtime=0))


def write_pathology(path: Path, rng: np.random.Generator, label: str, subject: str, number: int) -> None:
    """A tiled TIFF of three levels, 0.5 micrometres a pixel by its resolution tags."""
    image = pathology.draw(rng, label)
    with tifffile.TiffWriter(path) as writer:
        for level in range(3):
            writer.write(
                image, tile=(256, 256), photometric="rgb", compression="jpeg", compressionargs={"level": 88},
                resolution=(10000 / pathology.MPP / 2**level,) * 2, resolutionunit="CENTIMETER", metadata=None,
                software="phantom slide, no patient" if level == 0 else None, subfiletype=int(level > 0),
            )  # fmt: skip
            image = _half(image)


def _half(image: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    blocks: np.ndarray[Any, np.dtype[np.uint8]] = image[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
    mean: np.ndarray[Any, np.dtype[np.uint8]] = (blocks.sum(axis=(1, 3), dtype=np.uint16) // 4).astype(np.uint8)
    return mean


def _uid(*parts: str) -> Any:
    return generate_uid(entropy_srcs=["phantom", str(VERSION), *parts])


def _dataset(sop_class: UID, modality: str, subject: str, study: tuple[str, ...], number: int) -> Dataset:
    """The header that all DICOM phantoms share: made-up names, fixed dates, UIDs from the subject."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = _uid(subject, *study, "instance")
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)  # type: ignore[arg-type]
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID = _uid(subject, *study)
    dataset.SeriesInstanceUID = _uid(subject, *study, "series")
    dataset.FrameOfReferenceUID = _uid(subject, *study, "frame")
    dataset.Modality = modality
    dataset.PatientID = subject
    dataset.PatientName = f"Phantom^{subject[4:].upper()}"
    dataset.PatientBirthDate = "19500101"
    dataset.PatientSex = "O"
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = _DATE
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = dataset.AcquisitionTime = _TIME
    dataset.AccessionNumber = f"A{number:06d}"
    dataset.StudyID = str(number)
    dataset.ReferringPhysicianName = ""
    dataset.Manufacturer = "Phantom Works"
    dataset.InstitutionName = _INSTITUTION
    dataset.SeriesDescription = f"{modality} phantom"
    dataset.SeriesNumber = dataset.AcquisitionNumber = dataset.InstanceNumber = 1
    return dataset


def _save(dataset: Dataset, pixels: np.ndarray[Any, np.dtype[np.uint16]], bits: int, path: Path) -> None:
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


WRITERS: dict[str, Callable[[Path, np.random.Generator, str, str, int], None]] = {
    "report": write_report, "xray": write_xray, "ct": write_ct, "mri": write_mri, "pathology": write_pathology,
}  # fmt: skip
