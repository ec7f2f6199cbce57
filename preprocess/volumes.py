"""What CT and MRI share: options, finding volumes among files, windows along an axis, fitting slices into a square."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from medcoss.contracts import UsageError
from preprocess.conversion import (
    Conversion,
    Discovery,
    InputFile,
    Inspected,
    Json,
    Outcome,
    Piece,
    Refusal,
    Settings,
    Status,
    Unit,
    skipped,
)
from preprocess.heartbeat import beat
from preprocess.readers import separable
from preprocess.readers.dicom import MAX_PIXELS, open_dicom
from preprocess.readers.frames import SCAN_TAGS, Frame, refuse_non_slices, series_key
from preprocess.readers.itk_files import ITK_SUFFIXES, data_file
from preprocess.readers.nifti import NIFTI_SUFFIXES, read_volume_file
from preprocess.readers.series import MIN_SLICES, Loaded, Reading, series_volumes
from preprocess.readers.sniff import FileKind, file_kind
from preprocess.readers.volume import Array, Volume, sample

MIN_THICKNESS_MM = 12.0
CONSTANT_SD = 1e-6
_SHOWN_PERCENTILES = (1, 50, 99)
_ROUNDING_MM = 0.01

_UNREAD_VOLUMES = (".img", ".hdr", ".img.gz", ".hdr.gz", ".mnc", ".minc", ".par", ".rec", ".nii.bz2", ".nii.zst")
_PIXELS = (".raw", ".zraw", ".raw.gz")


def add_arguments(parser: argparse.ArgumentParser, *, stride: int, stride_help: str) -> None:
    """Declare the options both modalities have."""
    parser.add_argument(
        "--window",
        type=_window,
        default=(16, 192, 192),
        metavar="D,H,W",
        help="voxels of a sample (default 16,192,192)",
    )
    parser.add_argument("--window-stride", type=int, default=stride, metavar="N", help=stride_help)
    parser.add_argument("--stretch", action="store_true", help="stretch slices to the window; their aspect is lost")
    parser.add_argument("--allow-burned-in", action="store_true", help="take images whose header says text is in them")
    parser.add_argument("--allow-secondary-capture", action="store_true", help="take screen captures")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"most voxels decoded from one file, against decompression bombs (default {MAX_PIXELS})",
    )


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The shared options as JSON-ready values. Raises `UsageError` for sizes that cannot be."""
    if arguments.window_stride < 1 or min(arguments.window) < 2 or arguments.max_pixels < 1:
        raise UsageError("--window, --window-stride and --max-pixels: expected sizes of at least 2, 1 and 1")
    return {
        "window": list(arguments.window),
        "window_stride": arguments.window_stride,
        "stretch": arguments.stretch,
        "allow_burned_in": arguments.allow_burned_in,
        "allow_secondary_capture": arguments.allow_secondary_capture,
        "max_pixels": arguments.max_pixels,
    }


def _window(text: str) -> tuple[int, int, int]:
    sizes = text.split(",")
    if len(sizes) != 3 or not all(size.strip().isdecimal() for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not three sizes such as 16,192,192")
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


def inspect(file: InputFile, settings: Settings, modality: str) -> dict[str, Json]:
    """Volume file, pixel file of one, or slice of a series; raises `Refusal` for all else.

    `modality` is DICOM's name for it (CT, MR). Reads headers of DICOM, MetaImage and NRRD, else some bytes at most.
    """
    name = file.relative.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return {"source": "file"}
    if name.endswith(ITK_SUFFIXES):
        return {"source": "file", "pixels": data_file(file.path)}
    if name.endswith(_PIXELS):
        return {"source": "pixels"}
    return {"source": "series", "series": list(_series_of(file, settings, modality))}


def group(inspected: Sequence[Inspected]) -> Discovery:
    """One unit a DICOM series (whatever its folders) and one a volume file with its pixel file."""
    outcomes: dict[str, Outcome] = {}
    series: dict[tuple[Json, ...], list[InputFile]] = {}
    units: list[Unit] = []
    loose = {one.relative: one.file for one in inspected if one.about["source"] == "pixels"}
    for one in sorted(inspected, key=lambda one: one.relative):
        name, pixels = one.about.get("series"), one.about.get("pixels")
        if one.about["source"] == "file":
            beside = loose.pop(str(PurePosixPath(one.relative).with_name(str(pixels))), None) if pixels else None
            units.append(Unit((one.file, beside) if beside else (one.file,), {"source": "file"}))
        elif isinstance(name, list):
            series.setdefault(tuple(name), []).append(one.file)
    for relative in loose:
        outcomes[relative] = Outcome(Status.SKIPPED, "not_an_input", "pixels without a header that names them")
    units += [Unit(tuple(members), {"source": "series"}) for members in series.values()]
    return Discovery(units, outcomes)


def _series_of(file: InputFile, settings: Settings, modality: str) -> tuple[str, ...]:
    """The series a DICOM file belongs to; refuses what is no slice of a volume."""
    kind = file_kind(file.path)
    if kind in (FileKind.RASTER, FileKind.SLIDE):
        raise skipped("not_a_volume", "a two-dimensional image")
    if kind is FileKind.DATA or file.relative.lower().endswith(_UNREAD_VOLUMES):
        raise skipped("unsupported_format", file.path.suffix[:16])
    if kind is not FileKind.DICOM:
        raise skipped("not_an_input", file.path.suffix[:16])
    header = open_dicom(file.path, header_only=True, tags=SCAN_TAGS)
    refuse_non_slices(
        header,
        modality,
        burned_in=settings["allow_burned_in"],
        secondary_capture=settings["allow_secondary_capture"],
    )
    return series_key(header)


def convert(
    unit: Unit,
    settings: Settings,
    pieces: Callable[[Loaded, Settings], list[Piece]],
    unit_of_values: str,
    *,
    check: Callable[[Frame], None],
    padding_becomes: float | None = None,
) -> Conversion:
    """A unit's volumes one after the other, each turned to samples by `pieces`. See `series_volumes` for `check`.

    A file that gave samples counts as written, whatever became of another volume in it.
    """
    reading, conversion = Reading(), Conversion([])
    refused: dict[str, Outcome] = {}
    written: dict[str, Outcome] = {}
    for loaded in _volumes_of(unit, settings, reading, check, padding_becomes):
        try:
            found = pieces(loaded, settings)
        except Refusal as refusal:
            refused |= dict.fromkeys(loaded.files, refusal.outcome)
        else:
            written |= dict.fromkeys(loaded.files, Outcome(Status.WRITTEN))
            conversion.pieces += found
            _add_figures(conversion.figures, loaded.volume, found, unit_of_values)
        del loaded  # a long series takes all the memory that there may be for two
    conversion.outcomes = reading.outcomes | refused | written
    return conversion


def _volumes_of(
    unit: Unit, settings: Settings, reading: Reading, check: Callable[[Frame], None], padding_becomes: float | None
) -> Iterator[Loaded]:
    limit = int(settings["max_pixels"])
    if unit.detail["source"] == "series":
        yield from series_volumes(unit.files, reading, check=check, padding_becomes=padding_becomes, max_pixels=limit)
        return
    names = tuple(file.relative for file in unit.files)
    try:
        beside = [PurePosixPath(name).name for name in names[1:]]
        yield Loaded(read_volume_file(unit.files[0].path, max_voxels=limit, beside=beside), names)
    except Refusal as refusal:
        reading.outcomes |= dict.fromkeys(names, refusal.outcome)


def require_enough(volume: Volume) -> None:
    """Refuse a volume too thin for one window along axis 0 (`too_few_slices`)."""
    count, spacing = volume.values.shape[0], volume.spacing[0]
    if count < MIN_SLICES or count * spacing < MIN_THICKNESS_MM - _ROUNDING_MM:
        raise skipped("too_few_slices", f"{count} slices, {count * spacing:.1f} mm")


def window_starts(count: int, length: int, stride: int) -> list[int]:
    """First slices of windows of `length` among `count`; the last is shifted back to end at the last slice."""
    if count <= length:
        return [0]
    starts = list(range(0, count - length + 1, stride))
    return starts if starts[-1] == count - length else [*starts, count - length]


@dataclass(frozen=True)
class InPlane:
    """Where slices go in a window: sampled at `size` voxels, then placed at `offset` in a canvas of `canvas`."""

    size: tuple[int, int]
    offset: tuple[int, int]
    canvas: tuple[int, int]

    @classmethod
    def fit(cls, extent_mm: tuple[float, float], canvas: tuple[int, int], *, stretch: bool) -> InPlane:
        """Keep the aspect of `extent_mm` (between the centres of corner pixels) unless `stretch`."""
        if stretch:
            return cls(canvas, (0, 0), canvas)
        step = max(extent / (pixels - 1) for extent, pixels in zip(extent_mm, canvas, strict=True))
        height, width = (
            max(1, min(pixels, round(extent / step) + 1)) for extent, pixels in zip(extent_mm, canvas, strict=True)
        )
        return cls((height, width), ((canvas[0] - height) // 2, (canvas[1] - width) // 2), canvas)

    def place(self, values: Array, fill: float) -> Array:
        """Values (D, *size) on a canvas (D, *canvas) of `fill`, same dtype."""
        if self.size == self.canvas:
            return values
        placed = np.full((values.shape[0], *self.canvas), fill, values.dtype)
        top, left = self.offset
        placed[:, top : top + self.size[0], left : left + self.size[1]] = values
        return placed


@dataclass(frozen=True)
class Window:
    """A box of a volume in straight indices, corner voxel to corner voxel, and how its slices fit the sample."""

    low: Array
    high: Array
    depth: int
    in_plane: InPlane

    def geometry(self, volume: Volume, axis: str) -> dict[str, Json]:
        """The sample's geometry for its record; millimetres in the sample's axis order (depth, height, width)."""
        spans = (self.high - self.low) * np.array(volume.spacing)
        voxel = [float(span / max(1, n - 1)) for span, n in zip(spans, (self.depth, *self.in_plane.size), strict=True)]
        inside = int(np.floor(self.high[0] + 1e-6) - np.ceil(self.low[0] - 1e-6)) + 1
        return {
            "axis": axis,
            "native_slices": max(1, inside),
            "native_spacing_mm": [round(value, 4) for value in volume.spacing],
            "native_shape": list(volume.values.shape),
            "voxel_mm": [round(value, 4) for value in voxel],
        }


def cut(
    volume: Volume,
    windows: Sequence[Window],
    *,
    fill: float,
    grid: tuple[int, int, int] | None = None,
    clip: tuple[float, float] | None = None,
) -> Iterator[Array]:
    """Values (depth, *in_plane.size), float32, of each window before placing; windows of one volume, in rising order.

    Straight volumes go through the grid of `grid` points an axis, see `separable.cut`; sheared ones are read linearly
    from their own voxels, `fill` outside. Values are clipped to `clip` before; a spline may lead out of it again.
    """
    size = (windows[0].depth, *windows[0].in_plane.size)
    if not any(volume.drift):
        yield from separable.cut(volume, [(window.low, window.high) for window in windows], size, grid=grid, clip=clip)
        return
    for window in windows:
        yield sample(volume, window.low, window.high, size, fill=fill, clip=clip)
        beat()


def content_digest(volume: Volume) -> bytes:
    """SHA-256 of the rescaled values in canonical orientation: equal for one image in two formats."""
    digest = hashlib.sha256(f"{volume.values.dtype.str}{volume.values.shape}".encode())
    # Slice by slice: the values may lie in any order, and a copy of all would double the memory.
    for plane in volume.values:
        digest.update(np.ascontiguousarray(plane).data)
    return digest.digest()


def _add_figures(figures: dict[str, list[float]], volume: Volume, pieces: Sequence[Piece], unit: str) -> None:
    """Add a volume and its samples to the figures of the QC histograms; `unit` is that of stored values."""
    depth, height, width = volume.values.shape
    # As float32, for half floats are ordered ten times as slowly.
    samples = [np.asarray(piece.data)[::2, ::4, ::4].astype(np.float32) for piece in pieces]
    percentiles = [np.percentile(sample, _SHOWN_PERCENTILES).tolist() for sample in samples]
    rows = {
        # Rounded: 2 and 1.9999999 mm are one spacing.
        "slice spacing (mm)": [round(volume.spacing[0], 3)],
        "in-plane spacing (mm)": [round(volume.spacing[1], 3), round(volume.spacing[2], 3)],
        "native slices": [float(depth)],
        "matrix (px)": [float(height), float(width)],
        "windows per volume": [float(len(pieces))],
        f"mean of a sample ({unit})": [float(np.mean(sample, dtype=np.float64)) for sample in samples],
    }
    for place, percent in enumerate(_SHOWN_PERCENTILES):
        rows[f"percentile {percent} of a sample ({unit})"] = [found[place] for found in percentiles]
    for name, values in rows.items():
        figures.setdefault(name, []).extend(values)
