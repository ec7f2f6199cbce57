"""Radiographs in DICOM: which objects are samples, and stored values to the 8-bit picture a reader would see.

The order is DICOM's (PS3.3 C.11, PS3.4 N.2): modality LUT, first VOI transformation (a LUT before a window), then
MONOCHROME1 inverted, so that bright means dense in every sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from preprocess.conversion import failed, skipped
from preprocess.readers.dicom import sound_header, transfer_syntax

MODALITIES = frozenset({"CR", "DX", "DR", "RG", "PX", "IO"})

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_FOR_PROCESSING = frozenset(f"1.2.840.10008.5.1.4.1.1.1.{number}.1" for number in (1, 2, 3))
_LOW, _HIGH = 0.005, 0.995
_CHUNK = 1 << 16
"""Pixels looked up or counted at once: numpy widens their index to 8 bytes, which should stay in the cache."""


def refuse_unsuitable(dataset: Dataset, *, allow_burned_in: bool, allow_secondary_capture: bool) -> None:
    """Raise a refusal unless the object is one radiograph for viewing, by its header alone.

    Refused: `no_pixels`, `multi_frame`, `for_processing`, `secondary_capture`, `burned_in`, `not_a_radiograph`,
    `unsupported_format`.
    """
    with sound_header():
        sop_class = str(dataset.get("SOPClassUID", ""))
        modality = str(dataset.get("Modality") or "").upper()
        frames = int(dataset.get("NumberOfFrames") or 1)
        if not dataset.get("Rows") or not dataset.get("Columns"):
            raise skipped("no_pixels", "no image in this object")
        # UIDs 1.2.840.10008.5.1.4.1.1.7.1 to .7.4 are the multi-frame secondary captures.
        captured = sop_class == _SECONDARY_CAPTURE or sop_class.startswith(_SECONDARY_CAPTURE + ".")
        if captured and not allow_secondary_capture:
            raise skipped("secondary_capture", "the object is a secondary capture")
        if modality not in MODALITIES and not (captured and modality in ("", "OT", "SC")):
            named = modality if modality.isalpha() and len(modality) <= 2 else "another or none"
            raise skipped("not_a_radiograph", f"modality {named}")
        if frames > 1:
            raise skipped("multi_frame", f"{frames} frames")
        intent = str(dataset.get("PresentationIntentType") or "").upper()
        if intent == "FOR PROCESSING" or sop_class in _FOR_PROCESSING:
            raise skipped("for_processing", "raw detector values")
        if str(dataset.get("BurnedInAnnotation") or "").upper() == "YES" and not allow_burned_in:
            raise skipped("burned_in", "BurnedInAnnotation is YES")
        stored, high = int(dataset.get("BitsStored") or 0), dataset.get("HighBit")
        if high is not None and stored and int(high) != stored - 1 and not transfer_syntax(dataset).is_compressed:
            # Values that do not begin at bit 0, as the retired standard allowed: pydicom would cut their high bits.
            raise failed("unsupported_format", f"{stored} stored bits below a high bit of {int(high)}")


def body_part(dataset: Dataset) -> str:
    """BodyPartExamined in upper case, empty where the header says none; for selection only, never recorded."""
    with sound_header():
        return str(dataset.get("BodyPartExamined") or "").strip().upper()


def pixel_spacing_mm(dataset: Dataset) -> list[float] | None:
    """[row, column] spacing in mm at the patient or else at the detector; None where absent or 0\\0 (unknown)."""
    with sound_header():
        for name in ("PixelSpacing", "ImagerPixelSpacing"):
            values = [float(value) for value in dataset.get(name) or []]
            if len(values) == 2 and all(np.isfinite(value) and value > 0 for value in values):
                return values
    return None


def present(dataset: Dataset, stored: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], str]:
    """Stored values (height, width) or (height, width, 3) to uint8 (height, width), and the transformation taken.

    The second value is `lut`, `window`, `percentile` (no VOI in the header: 0.5 and 99.5 percentiles of what is not
    padding) or `colour` (luminance). Padding becomes black. Refused: `not_finite`, `constant`, `unsupported_format`.
    """
    with sound_header():
        if stored.ndim == 3:
            return _luminance(dataset, stored), "colour"
        if str(dataset.get("PhotometricInterpretation", "")) not in ("MONOCHROME1", "MONOCHROME2"):
            raise failed("unsupported_format", "one channel that is neither MONOCHROME1 nor MONOCHROME2")
        values, index = _candidates(stored)
        padding = _padding(dataset, values)

        def counts() -> np.ndarray[Any, Any]:
            found: np.ndarray[Any, Any] = _count(index, values.size) * ~padding
            return found

        if np.count_nonzero(counts()) < 2 if padding.any() else stored.min() == stored.max():
            raise skipped("constant", "every pixel that is not padding has one value")
        bright, how = _voi(dataset, _modality_values(dataset, values), counts)
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            bright = 1.0 - bright
        bright[padding] = 0.0
    return _look_up(bright, index), how


def stretch(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Deep grey values without a header (height, width) to uint8 between their 0.5 and 99.5 percentiles.

    Refused: `not_finite`, `constant`.
    """
    levels, index = _candidates(values)
    if values.min() == values.max():
        raise skipped("constant", "every pixel has one value")
    return _look_up(_percentiles(levels.astype(np.float64), _count(index, levels.size)), index)


def _look_up(bright: np.ndarray[Any, Any], index: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The table of brightness in [0, 1] as bytes, at each pixel's index."""
    table = np.rint(np.clip(bright, 0.0, 1.0) * 255.0).astype(np.uint8)
    flat = index.ravel()
    shown = np.empty(flat.shape, np.uint8)
    for start in range(0, flat.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        np.take(table, flat[part], out=shown[part], mode="clip")
    return shown.reshape(index.shape)


def _count(index: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """How often each of `size` indices occurs."""
    flat = index.ravel()
    counts = np.zeros(size, np.int64)
    step = max(_CHUNK, size)
    for start in range(0, flat.size, step):
        counts += np.bincount(flat[start : start + step], minlength=size)
    return counts


def _candidates(stored: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Values that `stored` may hold, in any order, and each pixel's index into them: transformations cost a table."""
    if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        # The bits are the index, so nothing is computed per pixel; signed values come after 32767 in such a table.
        unsigned = np.dtype(f"u{stored.dtype.itemsize}")
        every = np.arange(256**stored.dtype.itemsize).astype(unsigned)
        return every.view(stored.dtype).astype(np.int64), stored.view(unsigned)
    if stored.dtype.kind not in "iu" and not np.isfinite(stored).all():
        raise failed("not_finite", "NaN or infinite values")
    values, index = np.unique(stored, return_inverse=True)
    return values, index.reshape(stored.shape)


def _luminance(dataset: Dataset, stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if stored.dtype != np.uint8 or stored.shape[-1] != 3:
        raise failed("unsupported_format", "colour of more than 8 bits or not of 3 channels")
    if photometric in ("YBR_FULL", "YBR_FULL_422"):
        return np.ascontiguousarray(stored[..., 0])
    if photometric not in ("RGB", "YBR_ICT", "YBR_RCT"):
        raise failed("unsupported_format", "a colour model other than RGB and YBR")
    weighted = stored.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    grey: np.ndarray[Any, Any] = np.rint(weighted).astype(np.uint8)
    return grey


def _padding(dataset: Dataset, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which of `values` the header declares as padding, a single value or a range."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(values.shape, dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    ends = [int(end) for end in (first, first if limit is None else limit)]
    if signed:  # the element's type is ambiguous in implicit files: a signed value may come as its unsigned twin
        ends = [end - 65536 if end > 32767 else end for end in ends]
    inside: np.ndarray[Any, Any] = (values >= min(ends)) & (values <= max(ends))
    return inside


def _modality_values(dataset: Dataset, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    sequence = dataset.get("ModalityLUTSequence")
    if sequence:
        entries, first, _ = _lut(dataset, sequence[0])
        mapped: np.ndarray[Any, Any] = entries[np.clip(values - first, 0, entries.size - 1).astype(np.int64)]
        return mapped.astype(np.float64)
    slope, intercept = float(dataset.get("RescaleSlope") or 1.0), float(dataset.get("RescaleIntercept") or 0.0)
    return values.astype(np.float64) * slope + intercept


def _voi(
    dataset: Dataset, values: np.ndarray[Any, Any], counts: Callable[[], np.ndarray[Any, Any]]
) -> tuple[np.ndarray[Any, Any], str]:
    sequence = dataset.get("VOILUTSequence")
    if sequence:
        entries, first, bits = _lut(dataset, sequence[0])
        index = np.clip(np.rint(values) - first, 0, entries.size - 1).astype(np.int64)
        full = (1 << bits) - 1
        if int(entries.max()) * 4 < full:
            # Some devices declare 16 bits for entries of 10 or 12: by the letter the picture would be nearly black.
            full = (1 << int(entries.max()).bit_length()) - 1
        return entries[index] / max(full, 1), "lut"
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if center is not None and width is not None and width >= (1.0 if function == "LINEAR" else 1e-9):
        return _window(values, center, width, function), "window"
    return _percentiles(values, counts()), "percentile"


def _first(element: Any) -> float | None:
    """First value of a window element; None where absent, empty or not finite."""
    if element is None or str(element) == "":
        return None
    value = float(element) if isinstance(element, str | int | float) else float(element[0])
    return value if np.isfinite(value) else None


def _window(values: np.ndarray[Any, Any], center: float, width: float, function: str) -> np.ndarray[Any, Any]:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3, output range [0, 1]."""
    if function == "SIGMOID":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if width == 1.0:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _percentiles(values: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Linear between the two percentiles of the distribution that `counts` gives over `values`."""
    order = np.argsort(values, kind="stable")
    cumulative = np.cumsum(counts[order]) / counts.sum()
    low, high = (float(values[order][np.searchsorted(cumulative, part)]) for part in (_LOW, _HIGH))
    if high <= low:
        present_values = values[counts > 0]
        low, high = float(present_values.min()), float(present_values.max())
    return (values - low) / max(high - low, 1e-12)


def _lut(dataset: Dataset, item: Dataset) -> tuple[np.ndarray[Any, Any], int, int]:
    """Entries (n,) uint16, first mapped value and bits an entry of a modality or VOI LUT item."""
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = (count + 65536 if count < 0 else count) or 65536
    data = item.LUTData
    if isinstance(data, bytes):
        little = dataset.original_encoding[1] is not False
        wide = len(data) >= 2 * count
        entries = np.frombuffer(data, dtype=np.dtype("u1" if not wide else "<u2" if little else ">u2"))
    else:
        entries = np.atleast_1d(np.asarray(data)).astype(np.int64) & 0xFFFF
    if entries.size < count or not 1 <= bits <= 16:
        raise failed("unreadable", "a lookup table shorter than its header says")
    return entries[:count].astype(np.uint16), first, bits
