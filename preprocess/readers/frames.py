"""What DICOM headers say of each slice: where it lies, how it is scaled and what tells it from its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from preprocess.conversion import InputFile, failed, skipped
from preprocess.readers.dicom import is_lossy, sound_header
from preprocess.readers.volume import Array

SCAN_TAGS = (
    0x00080008,  # ImageType
    0x00080060,  # Modality
    0x00100020,  # PatientID
    0x0020000D,  # StudyInstanceUID
    0x0020000E,  # SeriesInstanceUID
    0x00280008,  # NumberOfFrames
    0x00280002,  # SamplesPerPixel
    0x00280010,  # Rows
    0x00280011,  # Columns
    0x00280301,  # BurnedInAnnotation
)
"""What grouping files into series needs; reading no more keeps the scan of a large folder short."""

_TELLS_APART = (
    "EchoTime",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "AcquisitionNumber",
    "AcquisitionTime",
)

_TAGS = {
    name: Tag(name)
    for name in (
        *("SOPInstanceUID", "ImageType", "FrameType", "LossyImageCompression", "NumberOfFrames", "Rows", "Columns"),
        *("PatientID", "IssuerOfPatientID", "StudyInstanceUID"),
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
        *("RescaleSlope", "RescaleIntercept", "RescaleType", "PixelPaddingValue", "PixelPaddingRangeLimit"),
        *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
        *("EffectiveEchoTime", "TemporalPositionIndex", *_TELLS_APART),
    )
}
"""By keyword: pydicom looks elements up by tags in a third of the time."""

FRAME_TAGS = tuple(_TAGS.values())
"""What `frames_of` and `subject_ids` need."""

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice of one file. Directions are unit vectors in LPS; `spacing` is (between rows, between columns) in mm.

    `number` counts frames inside a multi-frame file. `tells_apart` holds what may separate volumes at one position
    (kind of image, echo, b-value, time, acquisition), in the order in which it is tried.
    """

    file: InputFile
    number: int
    instance: str
    position: Array
    along_row: Array
    along_column: Array
    spacing: tuple[float, float]
    slope: float
    intercept: float
    rescaled: bool
    units: str
    image_type: tuple[str, ...]
    padding: tuple[int, int] | None
    lossy: bool
    tells_apart: tuple[str, ...]
    tiles: int = 1
    """Slices that lie side by side in each stored image (Siemens mosaics); `number` counts them too."""

    @cached_property
    def normal(self) -> Array:
        """Unit vector at right angles to the slice."""
        return np.cross(self.along_row, self.along_column)

    @cached_property
    def depth(self) -> float:
        """Position along the normal in mm."""
        return float(self.position @ self.normal)


def series_key(dataset: Dataset) -> tuple[str, ...]:
    """Study, series, patient and matrix: what slices of one volume always share."""
    names = ("StudyInstanceUID", "SeriesInstanceUID", "PatientID", "Rows", "Columns")
    with sound_header():
        return tuple(str(dataset.get(name) or "") for name in names)


def refuse_non_slices(dataset: Dataset, modality: str, *, burned_in: bool, secondary_capture: bool) -> None:
    """Refuse objects that are no slices of an acquisition of `modality` (CT, MR).

    Refused: `no_pixels`, `not_ct`, `not_mri`, `secondary_capture`, `burned_in`, `localizer`.
    `burned_in` and `secondary_capture` say that such objects are taken.
    """
    with sound_header():
        kinds = image_type(dataset)
        if not dataset.get("Rows"):
            raise skipped("no_pixels", "no pixel data")
        named = str(dataset.get("Modality") or "")
        if named != modality:
            # Anything may stand there, but two letters are no name.
            shown = named if named.isalpha() and len(named) <= 2 else "another or none"
            raise skipped("not_ct" if modality == "CT" else "not_mri", f"modality {shown}")
        if int(dataset.get("SamplesPerPixel") or 1) > 1:
            raise skipped("secondary_capture", "a coloured image")
        if str(dataset.SOPClassUID).startswith(_SECONDARY_CAPTURE) and not secondary_capture:
            raise skipped("secondary_capture", "a captured image")
        if str(dataset.get("BurnedInAnnotation") or "") == "YES" and not burned_in:
            raise skipped("burned_in", "BurnedInAnnotation is YES")
        if kinds & {"LOCALIZER", "SCOUT", "TOPOGRAM"}:
            raise skipped("localizer", "ImageType names a localizer")


def image_type(dataset: Dataset) -> set[str]:
    """The values of ImageType in upper case."""
    values = dataset.get("ImageType") or ()
    return {str(value).strip().upper() for value in ([values] if isinstance(values, str) else values)}


def frames_of(file: InputFile, dataset: Dataset) -> list[Frame]:
    """The slices a header describes. Refused: `no_geometry`, `unreadable`."""
    with sound_header():
        count = int(dataset.get("NumberOfFrames") or 1)
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        groups = [_Groups(dataset, item, shared) for item in per_frame] or [_Groups(dataset)]
        if count != len(groups):
            raise failed("no_geometry", f"{count} frames, geometry of {len(groups)}")
        return [_frame(file, number, found) for number, found in enumerate(groups)]


class _Groups:
    """Looks an element up in a frame's functional groups, then in the shared ones, then at the top of the dataset."""

    def __init__(self, dataset: Dataset, *groups: Dataset) -> None:
        self.dataset = dataset
        # Every functional group is a sequence of one item; its elements have names of their own.
        items = (
            element.value[0] for group in groups for element in group if element.VR == "SQ" and len(element.value) == 1
        )
        self._places = (*items, dataset)

    def get(self, name: str) -> Any:
        tag = _TAGS[name]
        return next((place[tag].value for place in self._places if tag in place), None)


def _frame(file: InputFile, number: int, header: _Groups) -> Frame:
    position = _numbers(header.get("ImagePositionPatient"), 3, "position")
    orientation = _numbers(header.get("ImageOrientationPatient"), 6, "orientation")
    spacing = _numbers(header.get("PixelSpacing"), 2, "pixel spacing")
    along_row, along_column = orientation[:3], orientation[3:]
    lengths = float(np.linalg.norm(along_row)), float(np.linalg.norm(along_column))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(along_row @ along_column))) > 1e-2:
        raise failed("no_geometry", "the orientation is not two directions at right angles")
    if spacing.min() <= 0:
        raise failed("no_geometry", "the pixel spacing is not positive")
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    kinds = header.get("FrameType") or header.dataset.get("ImageType") or ()
    kinds = tuple(str(kind).strip().upper() for kind in ([kinds] if isinstance(kinds, str) else kinds))
    padding = header.dataset.get("PixelPaddingValue")
    limit = header.dataset.get("PixelPaddingRangeLimit")
    return Frame(
        file=file,
        number=number,
        instance=str(header.dataset.get("SOPInstanceUID") or file.relative),
        position=position,
        along_row=along_row / lengths[0],
        along_column=along_column / lengths[1],
        spacing=(float(spacing[0]), float(spacing[1])),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        rescaled=slope is not None and intercept is not None,
        units=str(header.get("RescaleType") or "").strip().upper(),
        image_type=kinds,
        padding=None if padding is None else _ordered(int(padding), int(padding if limit is None else limit)),
        lossy=is_lossy(header.dataset),
        tells_apart=("\\".join(kinds), *(_text(header, name) for name in _TELLS_APART)),
    )


def _text(header: _Groups, name: str) -> str:
    # The enhanced objects have names of their own for two of these.
    other = {"EchoTime": "EffectiveEchoTime", "TemporalPositionIdentifier": "TemporalPositionIndex"}.get(name, name)
    value = header.get(name)
    return str(header.get(other) if value is None else value)


def _ordered(one: int, other: int) -> tuple[int, int]:
    return min(one, other), max(one, other)


def _numbers(value: Any, count: int, what: str) -> Array:
    if value is None or isinstance(value, str) or len(value) != count:
        raise failed("no_geometry", f"the {what} is missing")
    numbers = np.array([float(number) for number in value])
    if not np.isfinite(numbers).all():
        raise failed("no_geometry", f"the {what} is not finite")
    return numbers
