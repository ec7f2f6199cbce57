"""Slides of several files: which files belong together and which one speaks for the slide; resolutions from a table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from medcoss.contracts import UsageError
from preprocess.conversion import InputFile, skipped
from preprocess.readers import dicom, wsi

_SLIDE_MICROSCOPY = "1.2.840.10008.5.1.4.1.1.77.1.6"
_HEADER_TAGS = (0x00080008, 0x0020000E, 0x00209162)  # ImageType, SeriesInstanceUID, InConcatenationNumber
_IN_PIECES = (".mrxs", ".vms", ".vmu")


@dataclass(frozen=True)
class LevelHeader:
    """A DICOM file of a slide's pixels: its series, and whether it is the file that the slide is opened by, the
    (first part of the) level as scanned.
    """

    series: str
    speaks_for_slide: bool


def level_header(file: InputFile) -> LevelHeader:
    """Refuses as `not_an_input` all DICOM objects but levels of slides: a label may show a name."""
    header = dicom.open_dicom(file.path, header_only=True, tags=_HEADER_TAGS)
    with dicom.sound_header():
        if str(header.get("SOPClassUID", "")) != _SLIDE_MICROSCOPY:
            raise skipped("not_an_input", "a DICOM object that is no slide")
        words = {str(word).upper() for word in header.get("ImageType") or []}
        if words & {"LABEL", "OVERVIEW", "LOCALIZER", "THUMBNAIL"}:
            raise skipped("not_an_input", "a slide's label, overview or thumbnail, never read")
        first = int(header.get("InConcatenationNumber") or 1) == 1
        return LevelHeader(str(header.get("SeriesInstanceUID", "")), first and "RESAMPLED" not in words)


def companions(files: Sequence[InputFile]) -> dict[str, tuple[InputFile, ...]]:
    """The further files of slides that consist of several: a folder beside X.mrxs, files named alike beside X.vms."""
    heads = [file for file in files if file.path.suffix.lower() in _IN_PIECES]
    found: dict[str, tuple[InputFile, ...]] = {}
    for head in heads:
        stem = head.relative[: -len(head.path.suffix)]
        beside = stem + "/" if head.path.suffix.lower() == ".mrxs" else stem
        found[head.relative] = tuple(
            file
            for file in files
            if file.relative.startswith(beside)
            and file not in heads
            and (beside.endswith("/") or "/" not in file.relative[len(stem) :])
        )
    return found


def belongs_to_another(file: InputFile) -> bool:
    """Whether a picture is a part of the slide of a head file beside it, by the rule of `companions`."""
    if any(file.path.parent.with_name(file.path.parent.name + suffix).exists() for suffix in (".mrxs", ".MRXS")):
        return True
    return any(file.path.name.startswith(stem) for stem in _stems(file.path.parent))


@lru_cache(maxsize=64)
def _stems(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(path.stem for path in folder.iterdir() if path.suffix.lower() in (".vms", ".vmu")))
    except OSError:
        return ()


def read_mpp(path: Path) -> dict[str, float]:
    """--mpp-csv: µm a px by file name. Raises `UsageError` if it cannot be read or holds what cannot be."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
        table = {str(row["file"]).strip(): float(row["mpp"]) for row in rows}
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise UsageError(f"--mpp-csv cannot be read ({type(error).__name__}): expected columns file,mpp") from error
    bad = [value for value in table.values() if wsi.plausible_mpp(value) is None]
    if bad or not table:
        raise UsageError(f"--mpp-csv holds {bad[0] if bad else 'no row'}: expected µm a px, for example 0.25")
    return table
