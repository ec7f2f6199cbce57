"""DICOM slices to volumes: duplicates, orientations, echoes and times told apart, spacing checked, values rescaled."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from preprocess.conversion import InputFile, Outcome, Refusal, failed, skipped
from preprocess.heartbeat import beat
from preprocess.readers.dicom import MAX_PIXELS, PIXEL_TAGS, open_dicom, open_header, subject_ids
from preprocess.readers.frames import FRAME_TAGS, Frame, frames_of, image_type
from preprocess.readers.mosaic import frames_of_mosaic
from preprocess.readers.slice_pixels import SlicePixels, rescaled
from preprocess.readers.volume import Array, Volume, to_lps

MIN_SLICES = 8

_SAME_POSITION_MM = 0.01
_SAME_DIRECTION = 1 - 1e-4
"""Cosine: 0.8 degrees, more than rounding in headers and less than any intended turn."""


@dataclass(frozen=True)
class Loaded:
    """One volume and the files its slices came from (`InputFile.relative`)."""

    volume: Volume
    files: tuple[str, ...]
    subject_ids: tuple[str, ...] = ()
    quantitative: bool = False
    """Whether a DICOM header says what the values are; a bare volume file never does."""


@dataclass
class Reading:
    """Volumes of a unit and the outcomes of the files that are in none."""

    volumes: list[Loaded] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def refuse(self, frames: Iterable[Frame], refusal: Refusal) -> None:
        """Note the outcome of the frames' files, unless an earlier one is on record."""
        for frame in frames:
            self.outcomes.setdefault(frame.file.relative, refusal.outcome)


def read_series(
    files: Sequence[InputFile],
    *,
    check: Callable[[Frame], None],
    padding_becomes: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Reading:
    """All of `series_volumes` at once, in memory."""
    reading = Reading()
    found = series_volumes(files, reading, check=check, padding_becomes=padding_becomes, max_pixels=max_pixels)
    reading.volumes = list(found)
    written = {name for loaded in reading.volumes for name in loaded.files}
    reading.outcomes = {name: outcome for name, outcome in reading.outcomes.items() if name not in written}
    return reading


def series_volumes(
    files: Sequence[InputFile],
    reading: Reading,
    *,
    check: Callable[[Frame], None],
    padding_becomes: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Loaded]:
    """The volumes in the files of one series (equal `series_key`), in the order of their first file.

    `check` raises a `Refusal` for a frame of the wrong quantity. Padding pixels get the value `padding_becomes`.
    A slice that cannot be decoded has its own outcome in `reading.outcomes`; the rest goes on, and may show a gap.
    Echoes, b-values, acquisitions and times are volumes of their own, Siemens mosaics one volume a file.
    """
    frames: list[Frame] = []
    pixels = SlicePixels(max_pixels)
    ids: tuple[str, ...] = ()
    for file in sorted(files, key=lambda file: file.relative):
        try:
            header, place = open_header(file.path, (*FRAME_TAGS, *PIXEL_TAGS))
            if "MOSAIC" in image_type(header):
                found = frames_of_mosaic(file, open_dicom(file.path, header_only=True))
            else:
                found = frames_of(file, header)
            for frame in found:
                check(frame)
            ids = ids or subject_ids(header)
            pixels.add(file, header, place)
        except Refusal as refusal:
            reading.outcomes[file.relative] = refusal.outcome
        else:
            frames += found
        beat()
    frames = _single_instances(frames, pixels, reading)
    clusters = _orientations(frames)
    for cluster in clusters:
        for part in _told_apart(cluster, 0):
            try:
                if len(part) < MIN_SLICES <= len(frames) and len(clusters) > 1:
                    raise skipped("mixed_orientation", f"{len(clusters)} orientations in {len(frames)} slices")
                volume, used = _assemble(part, pixels, reading, padding_becomes)
            except Refusal as refusal:
                reading.refuse(part, refusal)
            else:
                names = dict.fromkeys(frame.file.relative for frame in used)
                loaded = Loaded(volume, tuple(names), ids, quantitative=True)
                del volume
                yield loaded
                del loaded


def _readable(frames: Iterable[Frame], pixels: SlicePixels, reading: Reading) -> list[Frame]:
    kept = []
    for frame in frames:
        try:
            pixels.of(frame)
        except Refusal as refusal:
            reading.refuse([frame], refusal)
        else:
            kept.append(frame)
    return kept


def _best(frames: Sequence[Frame], pixels: SlicePixels) -> Frame:
    """The lossless, then the original, then whichever has the smallest digest: the same for any order of the input."""
    return min(
        frames,
        key=lambda frame: (
            frame.lossy,
            "DERIVED" in frame.image_type,
            hashlib.sha256(np.ascontiguousarray(pixels.of(frame)).data).digest(),
            frame.file.relative,
        ),
    )


def _single_instances(frames: Sequence[Frame], pixels: SlicePixels, reading: Reading) -> list[Frame]:
    by_instance: dict[tuple[str, int], list[Frame]] = {}
    for frame in frames:
        by_instance.setdefault((frame.instance, frame.number), []).append(frame)
    kept = []
    for copies in by_instance.values():
        if len(copies) > 1:
            # A cut copy must not win over a sound one, so copies are decoded before one is chosen.
            copies = _readable(copies, pixels, reading)
            chosen = [_best(copies, pixels)] if copies else []
            others = [frame for frame in copies if frame not in chosen]
            reading.refuse(others, skipped("duplicate_instance", f"{len(others) + 1} copies"))
            copies = chosen
        kept += copies
    return kept


def _orientations(frames: Iterable[Frame]) -> list[list[Frame]]:
    clusters: list[list[Frame]] = []
    for frame in frames:
        for cluster in clusters:
            first = cluster[0]
            if (
                float(frame.along_row @ first.along_row) > _SAME_DIRECTION
                and float(frame.along_column @ first.along_column) > _SAME_DIRECTION
            ):
                cluster.append(frame)
                break
        else:
            clusters.append([frame])
    return clusters


def _told_apart(frames: list[Frame], start: int) -> list[list[Frame]]:
    """Split slices into volumes by echo, time or acquisition, only where that leaves fewer irregularities."""
    irregular = _irregularities(frames)
    if irregular == 0:
        return [frames]
    for number in range(start, len(frames[0].tells_apart)):
        parts: dict[str, list[Frame]] = {}
        for frame in frames:
            parts.setdefault(frame.tells_apart[number], []).append(frame)
        groups = list(parts.values())
        alone = min(len(group) for group in groups) < 2
        if len(groups) > 1 and not alone and sum(map(_irregularities, groups)) < irregular:
            return [part for group in groups for part in _told_apart(group, number + 1)]
    return [frames]


def _irregularities(frames: Sequence[Frame]) -> int:
    gaps = np.diff(sorted(frame.depth for frame in frames))
    if len(gaps) == 0:
        return 0
    usual = float(np.median(gaps))
    return int((np.abs(gaps - usual) > _tolerance(usual)).sum()) if usual > _SAME_POSITION_MM else len(gaps)


def _tolerance(spacing: float) -> float:
    """Positions are often rounded to 0.1 mm in headers."""
    return max(0.11, 0.05 * spacing)


def _assemble(
    frames: Sequence[Frame], pixels: SlicePixels, reading: Reading, padding_becomes: float | None
) -> tuple[Volume, list[Frame]]:
    """One volume from slices of one orientation. Refused: `too_few_slices`, `gap`, `variable_spacing`, ..."""
    places = _by_position(frames)
    values: Array = np.empty(0, np.int16)
    slices: list[Frame] = []
    # Each slice is decoded into its place and forgotten, so a long series takes the memory of its volume.
    for copies in places:
        readable = _readable(copies, pixels, reading)
        if not readable:
            continue
        chosen = readable[0] if len(readable) == 1 else _best(readable, pixels)
        others = [frame for frame in readable if frame.file != chosen.file]
        reading.refuse(others, skipped("duplicate_position", f"{len(readable)} slices at one position"))
        real = rescaled(pixels.of(chosen), chosen, padding_becomes)
        if not slices:
            values = np.empty((len(places), *real.shape), real.dtype)
        elif real.dtype == np.float32 and values.dtype == np.int16:
            values = values.astype(np.float32)
        values[len(slices)] = real
        slices.append(chosen)
        pixels.forget(readable)
    if len(slices) < MIN_SLICES:
        raise skipped("too_few_slices", f"{len(slices)} of {MIN_SLICES} needed")
    values = values[: len(slices)]
    if values.dtype == np.float32 and not np.isfinite(values).all():
        raise failed("not_finite", f"{int((~np.isfinite(values)).sum())} voxels")
    first = slices[0]
    affine = np.eye(4)
    affine[:3, 0] = _slice_step(slices)
    affine[:3, 1] = first.along_column * first.spacing[0]
    affine[:3, 2] = first.along_row * first.spacing[1]
    affine[:3, 3] = first.position
    return to_lps(values, affine), slices


def _by_position(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Slices in rising order along the normal, those at one position together."""
    places: list[list[Frame]] = []
    for frame in sorted(frames, key=lambda frame: (frame.depth, frame.file.relative, frame.number)):
        if places and frame.depth - places[-1][0].depth < _SAME_POSITION_MM:
            places[-1].append(frame)
        else:
            places.append([frame])
    return places


def _slice_step(slices: Sequence[Frame]) -> Array:
    """Millimetres (3,) from each slice to the next, sideways drift of a tilted gantry included.

    Refused: `gap`, `variable_spacing`, `no_geometry` (pixel spacing differs).
    """
    if len({frame.spacing for frame in slices}) > 1:
        raise failed("no_geometry", "the pixel spacing differs between slices")
    gaps = np.diff([frame.depth for frame in slices])
    usual = float(np.median(gaps))
    wide = gaps[gaps > 1.5 * usual]
    if len(wide):
        raise failed("gap", f"about {round(float((wide / usual - 1).sum()))} slices missing at {usual:.2f} mm spacing")
    if np.abs(gaps - usual).max() > _tolerance(usual):
        raise failed("variable_spacing", f"{gaps.min():.2f} to {gaps.max():.2f} mm")
    positions = np.array([frame.position for frame in slices])
    step = np.asarray((positions[-1] - positions[0]) / (len(slices) - 1))
    straight = positions[0] + np.arange(len(slices))[:, None] * step
    astray = np.linalg.norm(positions - straight, axis=1).max()
    if astray > max(0.5, 0.5 * slices[0].spacing[0], _tolerance(usual)):
        raise failed("variable_spacing", f"slices lie up to {astray:.1f} mm off a line")
    return step
