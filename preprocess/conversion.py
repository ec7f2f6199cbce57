"""The seam between the engine (`run.py`) and a modality: units of work, the samples they give, typed outcomes.

A modality module in `preprocess/modalities/` offers these functions; nothing else of it is called:

    SUMMARY: str                                   one line for --help
    EXAMPLE: str                                   one command line for --help
    add_arguments(parser)                          its own options, with units in their names
    settings(arguments) -> dict                    its options as JSON-ready values; part of the manifest
    spec(settings) -> ModalitySpec                 what its samples are, before `finish`
    inspect(file, settings) -> dict                what a file is, by its name and header; in a worker process
    group(inspected, settings) -> Discovery        inspected files to units of work; touches no file
    convert(unit, settings) -> Conversion          one unit to samples, in a worker process
    finish(settings, train) -> (ModalitySpec, {name: bytes})   set-level work over the train split's samples

`train` yields each train sample's `data` once, in key order, read from disk as asked for. A modality may also offer

    rewriter(settings, files) -> Rewriter          a last change of each sample's data that needs `finish`'s files

`inspect` and `convert` read foreign bytes: they may raise `Refusal`, and call `heartbeat.beat()` whenever some seconds
of work are done, for a worker that gives no sign of life is taken for stalled. What `inspect` returns stays in memory.

`settings` as the functions get them are the modality's own plus the engine's `COMMON_SETTINGS`. Options that hold paths
or file names bear names that begin with an underscore: only `inspect` and `group` get those, and no manifest does (a
digest beside each lets a change be noticed).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medcoss.contracts import ModalitySpec

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
Settings = Mapping[str, Any]

COMMON_SETTINGS = ("id_columns", "label_columns", "subject_column")
"""What the engine adds to a modality's settings, for modalities that read tables: names of columns, best first."""

WEAK = "weak:"
"""Prefix of a subject id that names less than a patient (a study UID, a digest): used when there is no better."""


class Status(StrEnum):
    """What became of an input file."""

    WRITTEN = "written"
    SKIPPED = "skipped"
    """Legitimately not a sample."""
    FAILED = "failed"
    """Should have been a sample; sets exit status 3."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The fate of one file. `reason` is a code of `reasons.py`; `message` names values, never a path or a patient."""

    status: Status
    reason: str = ""
    message: str = ""


class Refusal(Exception):  # noqa: N818 -- not every refusal is an error: a mask is refused as input too
    """Raised while reading an input that gives no sample; becomes the outcome of the files concerned."""

    def __init__(self, status: Status, reason: str, message: str = "") -> None:
        super().__init__(f"{reason}: {message}")
        self.outcome = Outcome(status, reason, message)


def failed(reason: str, message: str = "") -> Refusal:
    """A refusal of something that should have been a sample."""
    return Refusal(Status.FAILED, reason, message)


def skipped(reason: str, message: str = "") -> Refusal:
    """A refusal of something that is legitimately not a sample."""
    return Refusal(Status.SKIPPED, reason, message)


@dataclass(frozen=True, slots=True, init=False)
class InputFile:
    """A file found below --in: where it is and its path relative to the --in it was found under (POSIX form).

    They are held by the million and sent to the workers: a path as text takes a fifth of the memory of a `Path`.
    """

    place: str
    relative: str

    def __init__(self, path: str | os.PathLike[str], relative: str) -> None:
        object.__setattr__(self, "place", os.fspath(path))
        object.__setattr__(self, "relative", relative)

    def __reduce__(self) -> tuple[type[InputFile], tuple[str, str]]:
        """What a frozen class with slots gets instead takes several times as long."""
        return InputFile, (self.place, self.relative)

    @property
    def path(self) -> Path:
        """`place` as a `Path`, made anew each time."""
        return Path(self.place)


@dataclass(frozen=True)
class Inspected:
    """A file and what the modality's `inspect` said of it, JSON-ready."""

    file: InputFile
    about: dict[str, Json] = field(default_factory=dict)

    @property
    def relative(self) -> str:
        """The file's path relative to its --in."""
        return self.file.relative


@dataclass(frozen=True)
class Unit:
    """Work that is done or lost as a whole: one file, one DICOM series, one slide.

    `detail` is the modality's own, JSON-ready (for example the ordered windows of a series); no PHI.
    """

    files: tuple[InputFile, ...]
    detail: dict[str, Json] = field(default_factory=dict)


@dataclass
class Discovery:
    """`units` to convert, and `outcomes` (by `InputFile.relative`) of files that are in no unit."""

    units: list[Unit]
    outcomes: dict[str, Outcome] = field(default_factory=dict)


@dataclass
class Piece:
    """One sample as a modality hands it to the engine, before it gets its key, subject token and split.

    `content` is the sha256 digest of the source content that defines identity (stored pixels, cleaned text): equal
    digests and suffixes are duplicates. `suffix` is the window or tile index, fixed width, e.g. "0003"; "0" when alone.
    `data` is encoded bytes (text, JPEG, PNG) or the volume array (D, H, W) in the stored dtype. `file` is the
    `relative` of the file the sample is counted to. `subject_ids` are raw identifiers, most trusted first; the engine
    turns them into a token at once and they reach no disk; one that starts with `WEAK`, or has the form of a DICOM UID,
    gives way to an id found in the path. `row` is a table row's id for looking up labels.
    `labels` and `split` come from the input itself (a table's columns); files' labels are joined by the engine.
    """

    content: bytes
    suffix: str
    data: bytes | np.ndarray[Any, Any]
    file: str
    subject_ids: tuple[str, ...] = ()
    row: str | None = None
    labels: dict[str, Json] = field(default_factory=dict)
    split: str | None = None
    geometry: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Attachment:
    """A file for people in `qc/inputs/`, named KEY_PREFIX.EXTENSION after the samples of equal `content`: a thumbnail
    with the tiles drawn on it, outlines for a viewer. Shown to whoever sees the set, so without names or labels.
    """

    content: bytes
    extension: str
    data: bytes


@dataclass
class Conversion:
    """What a unit gave: samples, the outcome of each of its files by `relative`, figures for the QC histograms, files
    for people to look at, and counts of what lies inside a file.

    A file missing in `outcomes` is `written` if a piece counts to the unit. `figures` maps a histogram's name with its
    unit (for example "slice spacing (mm)") to values. `counts` are numbers by the file's `relative` and a name such as
    "rows too short": summed over the units of a file for its message, over all files for the statistics.
    """

    pieces: list[Piece]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    figures: dict[str, list[float]] = field(default_factory=dict)
    attachments: list[Attachment] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


class Rewriter(Protocol):
    """Changes each sample's data when the set-level files are known; keeps its own count of what it did."""

    def count(self, data: bytes | np.ndarray[Any, Any]) -> int:
        """How many samples become of it, at least 1; those after the first get the next suffixes."""

    def __call__(self, data: bytes | np.ndarray[Any, Any], part: int = 0) -> bytes | np.ndarray[Any, Any]:
        """The data of one of them as it is to be stored."""

    def statistics(self) -> dict[str, float]:
        """Figures for `statistics.json` after all samples, for example the fraction of texts that were cut."""

    def figures(self) -> dict[str, list[float]]:
        """Values for further histograms of the QC page, by name with unit, of all samples so far."""

    def notes(self) -> list[str]:
        """What the user should be told of that."""


class Modality(Protocol):
    """The functions of a module in `preprocess/modalities/`, as the engine calls them."""

    SUMMARY: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def settings(self, arguments: argparse.Namespace) -> dict[str, Json]: ...
    def spec(self, settings: Settings) -> ModalitySpec: ...
    def inspect(self, file: InputFile, settings: Settings) -> dict[str, Json]: ...
    def group(self, inspected: Sequence[Inspected], settings: Settings) -> Discovery: ...
    def convert(self, unit: Unit, settings: Settings) -> Conversion: ...
    def finish(
        self, settings: Settings, train: Iterable[bytes | np.ndarray[Any, Any]]
    ) -> tuple[ModalitySpec, dict[str, bytes]]: ...
