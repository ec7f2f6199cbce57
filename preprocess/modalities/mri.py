"""MRI: DICOM series, NIfTI, MetaImage and NRRD to windows of native slices, z-scored."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medcoss.contracts import Augmentation, Field, Geometry, Kind, ModalitySpec
from preprocess import volumes
from preprocess.conversion import (
    Conversion,
    Discovery,
    InputFile,
    Inspected,
    Json,
    Piece,
    Refusal,
    Settings,
    Unit,
    failed,
)
from preprocess.readers.frames import Frame
from preprocess.readers.series import Loaded
from preprocess.readers.volume import Array, Volume

SUMMARY = "MRI volumes (DICOM series, NIfTI, MHA, NRRD) to z-scored windows"
EXAMPLE = "preprocess mri --in /data/brain_mri --out shards/mri --normalise volume"

_PERCENTILES = (0.2, 99.8)
_DROPPED = 0.1
_CLEARLY_THICKER = 1.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `preprocess mri`."""
    volumes.add_arguments(parser, stride=8, stride_help="native slices from window to window (default 8)")
    parser.add_argument(
        "--normalise",
        choices=["window", "volume"],
        help="z-score by the window's own values or by the volume's foreground (default: window; volume with --masks)",
    )


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as they go into the manifest. Raises `UsageError` for values that cannot be."""
    # One tissue's value must not change from window to window where a segmentation is to be learnt.
    default = "volume" if arguments.masks else "window"
    return {**volumes.settings(arguments), "normalise": arguments.normalise or default}


def spec(settings: Settings) -> ModalitySpec:
    """float16 z-scores (D, H, W); the model takes (1, D, H, W)."""
    low, high = _PERCENTILES
    return ModalitySpec(
        name="mri",
        kind=Kind.VOLUME,
        geometry=Geometry((1, *settings["window"])),
        fields=(Field("volume", "zarr", "float16"),),
        normalisation=f"clipped to percentiles {low} and {high}, z-scored by {settings['normalise']}",
        augmentation=Augmentation(mirror=0.5),
    )


def finish(settings: Settings, train: Iterable[Any]) -> tuple[ModalitySpec, dict[str, bytes]]:
    """Nothing is learnt from the set."""
    return spec(settings), {}


def inspect(file: InputFile, settings: Settings) -> dict[str, Json]:
    """What a file is, by its suffix or DICOM header. Raises `Refusal`."""
    return volumes.inspect(file, settings, "MR")


def group(inspected: Sequence[Inspected], settings: Settings) -> Discovery:
    """A unit a DICOM series or volume file."""
    return volumes.group(inspected)


def convert(unit: Unit, settings: Settings) -> Conversion:
    """All windows of a unit's volumes."""
    return volumes.convert(unit, settings, _pieces, "z-score", check=_any_contrast)


def _any_contrast(frame: Frame) -> None:
    """MRI values have no unit to check."""


@dataclass(frozen=True)
class Scale:
    """Clip limits, mean and standard deviation of a z-score, in the values' own unit."""

    low: float
    high: float
    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Array) -> Scale:
        """From any number of values, float32. Refused: `constant`."""
        if values.size == 0:
            raise failed("constant", "no foreground")
        # In the order in which they lie: windows come turned, and to put them straight takes long.
        flat = values.ravel(order="K")
        low, high = -_upper(-flat, 100 - _PERCENTILES[0]), _upper(flat, _PERCENTILES[1])
        clipped = np.clip(flat, low, high)
        deviation = float(clipped.std(dtype=np.float64))
        mean = float(clipped.mean(dtype=np.float64))
        # Interpolating equal values of 10^6 leaves float32's rounding, some 10^-7 of them, which is no contrast.
        if not deviation >= volumes.CONSTANT_SD * max(1.0, abs(mean)):
            raise failed("constant", f"standard deviation {deviation:.1e}")
        return cls(low, high, mean, deviation)

    def apply(self, values: Array) -> Array:
        """float16 z-scores of float32 values."""
        clipped = np.clip(values, self.low, self.high)
        return ((clipped - np.float32(self.mean)) / np.float32(self.deviation)).astype(np.float16)


def _upper(flat: Array, percent: float) -> float:
    """`np.percentile` for a high `percent`, from the largest values alone: ordering all takes six times as long."""
    place = percent / 100 * (flat.size - 1)
    # No step of a row's length, nor of its halves and thirds: it would meet the same columns in each.
    step = max(1, flat.size >> 13) // 6 * 6 + 1
    bound = np.percentile(flat[::step], 4 * percent - 300)
    largest = np.sort(flat[flat >= bound])
    # Counted from the end, for the rest is not there; where the guess was bad, all are ordered.
    below, above = (int(index) - flat.size for index in (np.floor(place), np.ceil(place)))
    if -below > largest.size:
        return float(np.percentile(flat, percent))
    return float(largest[below] + (place % 1) * (float(largest[above]) - float(largest[below])))


def window_axis(spacing: Sequence[float]) -> int:
    """Array axis along which windows run: that of the clearly largest spacing, else superior-inferior."""
    largest = int(np.argmax(spacing))
    return largest if spacing[largest] >= _CLEARLY_THICKER * min(spacing) else 0


def _pieces(loaded: Loaded, settings: Settings) -> list[Piece]:
    axis = window_axis(loaded.volume.spacing)
    volume = loaded.volume.turned(axis)
    volumes.require_enough(volume)
    digest = volumes.content_digest(loaded.volume)
    whole = _foreground_scale(volume) if settings["normalise"] == "volume" else None
    darkest = float(volume.values.min())
    pieces = []
    boxes = windows(volume, settings)
    for number, (window, values) in enumerate(zip(boxes, volumes.cut(volume, boxes, fill=darkest), strict=True)):
        try:
            scale = whole or Scale.of(values)
        except Refusal:
            # An empty window of a volume that has content; if all are empty the volume is refused below.
            continue
        pieces.append(
            Piece(
                content=digest,
                suffix=f"{number:04d}",
                data=window.in_plane.place(scale.apply(values), (scale.low - scale.mean) / scale.deviation),
                file=loaded.files[0],
                subject_ids=loaded.subject_ids,
                geometry=window.geometry(volume, "zyx"[axis]),
            )
        )
    if not pieces:
        raise failed("constant", "every window")
    return pieces


def _foreground_scale(volume: Volume) -> Scale:
    values = volume.values.astype(np.float32)
    return Scale.of(values[values > values.mean(dtype=np.float64)])


def windows(volume: Volume, settings: Settings) -> list[volumes.Window]:
    """Windows of native slices along axis 0, first and last tenth left out; a shorter volume gives one, stretched."""
    depth, *canvas = settings["window"]
    dropped = int(volume.values.shape[0] * _DROPPED)
    count = volume.values.shape[0] - 2 * dropped
    length = min(depth, count)
    span = (volume.high - volume.low) * np.array(volume.spacing)
    in_plane = volumes.InPlane.fit((span[1], span[2]), (canvas[0], canvas[1]), stretch=settings["stretch"])
    found = []
    for start in volumes.window_starts(count, length, settings["window_stride"]):
        low, high = volume.low.copy(), volume.high.copy()
        low[0], high[0] = dropped + start, dropped + start + length - 1
        found.append(volumes.Window(low, high, depth, in_plane))
    return found
