"""What kind of file an input is: by its suffix where that is telling, else by its first bytes."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

RASTER_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp"})
SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi"})

_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
_DATA_SUFFIXES = frozenset(
    {
        *(".npz", ".npy", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".h5", ".hdf5", ".zarr", ".mat"),
        *(".gif", ".webp", ".heic", ".jp2", ".j2k", ".jxl", ".avif", ".dng", ".isyq", ".isyntax", ".vsi", ".lif"),
    }
)
_RASTER_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


class FileKind(StrEnum):
    """The families of files that the image modalities tell apart."""

    RASTER = "raster"
    DICOM = "dicom"
    SLIDE = "slide"
    DATA = "data"
    """A known data format that no image modality reads."""
    OTHER = "other"


def file_kind(path: Path) -> FileKind:
    """The kind of `path`; at most 132 bytes are read, and none where the suffix is telling. Never raises."""
    suffix = path.suffix.lower()
    if suffix in RASTER_SUFFIXES:
        return FileKind.RASTER
    if suffix in SLIDE_SUFFIXES:
        return FileKind.SLIDE
    if suffix in _DICOM_SUFFIXES:
        return FileKind.DICOM
    if suffix in _DATA_SUFFIXES or path.name.lower().endswith(".nii.gz"):
        return FileKind.DATA
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError:
        return FileKind.OTHER
    if head[128:] == b"DICM":
        return FileKind.DICOM
    return FileKind.RASTER if head.startswith(_RASTER_MAGIC) else FileKind.OTHER
