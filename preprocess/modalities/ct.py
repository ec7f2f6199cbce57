"""CT: DICOM series, NIfTI, MetaImage and NRRD in Hounsfield units to axial windows, resampled once."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from medcoss.contracts import Augmentation, Field, Geometry, Kind, ModalitySpec, UsageError
from preprocess import volumes
from preprocess.conversion import (
    Conversion,
    Discovery,
    InputFile,
    Inspected,
    Json,
    Piece,
    Settings,
    Unit,
    failed,
    skipped,
)
from preprocess.readers.frames import Frame
from preprocess.readers.series import Loaded
from preprocess.readers.volume import Volume

SUMMARY = "CT volumes (DICOM series, NIfTI, MHA, NRRD) to windows in Hounsfield units"
EXAMPLE = "preprocess ct --in /data/chest_ct --out shards/ct --labels labels.csv --id-column patient"

MAX_SPACING_MM = 5.0
_AIR_AT_MOST_HU = -200
"""A CT of a body holds air; a bare volume file without any is masked, windowed or offset."""
_CROP_ABOVE_PX = 320
_CROP_TO = 0.8

_DERIVED_MAPS = frozenset(
    {
        *("PERFUSION", "CBF", "CBV", "RCBF", "RCBV", "MTT", "RMTT", "TTP", "TMAX", "PERMEABILITY"),
        *("IODINE", "Z_EFF", "EFF_ATOMIC_NUM", "ELECTRON_DENSITY", "MASS_ATTENUATION"),
    }
)


_UNITS = frozenset({"OD", "US", "MGML", "PCT", "Z_EFF", "ED", "EDW", "HU_MOD"})
"""The standard's other units, which a message may name: anything may stand in the header."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `preprocess ct`."""
    volumes.add_arguments(parser, stride=12, stride_help="slices from window to window at --spacing-mm (default 12)")
    parser.add_argument(
        "--window-slices", type=int, default=24, metavar="N", help="slices of a window at --spacing-mm (default 24)"
    )
    parser.add_argument(
        "--spacing-mm", type=float, default=1.0, metavar="MM", help="grid on which windows are cut (default 1)"
    )
    parser.add_argument(
        "--hu-range",
        type=_range,
        default=(-1024, 1024),
        metavar="LOW,HIGH",
        help="clip limits (default -1024,1024)",
    )
    parser.add_argument(
        "--hu-offset",
        type=int,
        metavar="HU",
        help="added to the values of files that do not say what their values are: -1024 where air is stored as 0",
    )


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as they go into the manifest. Raises `UsageError` for values that cannot be."""
    if arguments.spacing_mm <= 0 or arguments.window_slices < 2:
        raise UsageError("--spacing-mm and --window-slices: expected more than 0 and at least 2")
    return {
        **volumes.settings(arguments),
        "window_slices": arguments.window_slices,
        "spacing_mm": arguments.spacing_mm,
        "hu_range": list(arguments.hu_range),
        "hu_offset": arguments.hu_offset,
    }


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(",")
    try:
        values = int(low), int(high)
    except ValueError:
        values = (0, 0)
    if not -(1 << 15) <= values[0] < values[1] < 1 << 15:
        raise argparse.ArgumentTypeError(f"{text!r} is not two rising whole numbers of HU such as -1024,1024")
    return values


def spec(settings: Settings) -> ModalitySpec:
    """int16 HU (D, H, W); the model takes (1, D, H, W) scaled so that the wider clip limit is 1."""
    limit = max(abs(value) for value in settings["hu_range"])
    return ModalitySpec(
        name="ct",
        kind=Kind.VOLUME,
        geometry=Geometry((1, *settings["window"])),
        fields=(Field("volume", "zarr", "int16", scale=1 / limit),),
        normalisation=f"Hounsfield units clipped to {settings['hu_range']}, divided by {limit}",
        augmentation=Augmentation(mirror=0.5),
    )


def finish(settings: Settings, train: Iterable[Any]) -> tuple[ModalitySpec, dict[str, bytes]]:
    """Nothing is learnt from the set."""
    return spec(settings), {}


def inspect(file: InputFile, settings: Settings) -> dict[str, Json]:
    """What a file is, by its suffix or DICOM header. Raises `Refusal`."""
    return volumes.inspect(file, settings, "CT")


def group(inspected: Sequence[Inspected], settings: Settings) -> Discovery:
    """A unit a DICOM series or volume file."""
    return volumes.group(inspected)


def convert(unit: Unit, settings: Settings) -> Conversion:
    """All windows of a unit's volumes."""
    air = settings["hu_range"][0]
    return volumes.convert(unit, settings, _pieces, "HU", check=_check(settings), padding_becomes=air)


def _check(settings: Settings) -> Any:
    def require_hu(frame: Frame) -> None:
        maps = _DERIVED_MAPS.intersection(frame.image_type)
        if maps:
            raise skipped("not_hu", f"a map of {min(maps)}")
        if frame.units not in ("", "HU"):
            raise skipped("not_hu", f"rescale type {frame.units if frame.units in _UNITS else 'other than HU'}")
        if not frame.rescaled and settings["hu_offset"] is None:
            raise skipped("not_hu", "no rescale slope and intercept")

    return require_hu


def _pieces(loaded: Loaded, settings: Settings) -> list[Piece]:
    low, high = settings["hu_range"]
    volume = _in_hu(loaded, settings)
    volumes.require_enough(volume)
    if max(volume.spacing) > MAX_SPACING_MM + 0.01:
        raise skipped("too_thick", f"{max(volume.spacing):.2f} mm")
    digest = volumes.content_digest(volume)
    pieces = []
    boxes = windows(volume, settings)
    cut = volumes.cut(volume, boxes, fill=low, grid=grid(volume, settings), clip=(low, high))
    for number, (window, fine) in enumerate(zip(boxes, cut, strict=True)):
        values = np.rint(np.clip(fine, low, high)).astype(np.int16)
        if values.min() == values.max():
            continue
        pieces.append(
            Piece(
                content=digest,
                suffix=f"{number:04d}",
                data=window.in_plane.place(values, low),
                file=loaded.files[0],
                subject_ids=loaded.subject_ids,
                geometry=window.geometry(volume, "z"),
            )
        )
    if not pieces:
        raise failed("constant", "every window")
    return pieces


def _in_hu(loaded: Loaded, settings: Settings) -> Volume:
    volume, offset = loaded.volume, settings["hu_offset"]
    if loaded.quantitative:
        return volume
    least = float(volume.values.min())
    if offset is None:
        if least >= _AIR_AT_MOST_HU:
            raise skipped("not_hu", f"minimum {least:.0f}; --hu-offset -1024 if air is stored as 0")
        return volume
    shifted = least + offset, float(volume.values.max()) + offset
    whole = volume.values.dtype == np.int16 and shifted[0] >= -(1 << 15) and shifted[1] < 1 << 15
    values = volume.values if whole else volume.values.astype(np.float32)
    return Volume(values + values.dtype.type(offset), volume.affine)


def grid(volume: Volume, settings: Settings) -> tuple[int, int, int]:
    """Points an axis of the `spacing_mm` grid, whose corners are the volume's own corners."""
    extent = (volume.high - volume.low) * np.array(volume.spacing)
    z, y, x = (max(2, round(float(length) / settings["spacing_mm"]) + 1) for length in extent)
    return z, y, x


def windows(volume: Volume, settings: Settings) -> list[volumes.Window]:
    """Windows of `window_slices` planes of the `spacing_mm` grid."""
    depth, *canvas = settings["window"]
    counts = grid(volume, settings)
    step = (volume.high - volume.low) / (np.array(counts) - 1)
    first, last = [0, 0, 0], [count - 1 for count in counts]
    for axis in (1, 2):
        if counts[axis] > _CROP_ABOVE_PX:
            kept = round(_CROP_TO * counts[axis])
            first[axis] = (counts[axis] - kept) // 2
            last[axis] = first[axis] + kept - 1
    found = []
    length = min(settings["window_slices"], counts[0])
    for start in volumes.window_starts(counts[0], length, settings["window_stride"]):
        first[0], last[0] = start, start + length - 1
        low, high = volume.low + np.array(first) * step, volume.low + np.array(last) * step
        span = (high - low) * np.array(volume.spacing)
        in_plane = volumes.InPlane.fit((span[1], span[2]), (canvas[0], canvas[1]), stretch=settings["stretch"])
        found.append(volumes.Window(low, high, depth, in_plane))
    return found
