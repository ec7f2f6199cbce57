"""Pathology: tissue tiles of whole slides at one physical resolution, and tiles that were cut before."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from medcoss.contracts import Augmentation, Field, Geometry, Kind, ModalitySpec, UsageError
from preprocess.conversion import (
    Conversion,
    Discovery,
    InputFile,
    Inspected,
    Json,
    Outcome,
    Refusal,
    Settings,
    Status,
    Unit,
    skipped,
)
from preprocess.readers import dicom, raster, slide_parts, wsi
from preprocess.readers.sniff import FileKind, file_kind
from preprocess.slides import convert_slide, convert_tile, look, portions

SUMMARY = "tissue tiles of whole slides (OpenSlide formats, DICOM, plain images) and pre-cut tiles"
EXAMPLE = "preprocess pathology --in /data/slides --out shards/pathology --mpp 0.5 --max-tiles 100"

JPEG_QUALITY = 90
_SUBJECT_TAGS = (0x00100020, 0x00100021, 0x0020000D, 0x00280301)  # PatientID, its issuer, StudyInstanceUID, burned in
_TCGA = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")


_PARTS = (
    ("min-tissue", 0.5, "least part of a tile that is tissue"),
    ("max-pen", 0.1, "largest part of a tile that is blue, green or red ink"),
    ("max-dark", 0.25, "largest part of a tile that is black: a scanner's border, black ink"),
    ("max-white", 0.75, "largest part of a tile that is nearly white: glass, fat"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `preprocess pathology`."""
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="side of a tile (default 224)")
    parser.add_argument(
        "--mpp", type=float, default=0.5, metavar="UM", help="resolution of the tiles in µm a px, ±5 %% (default 0.5)"
    )
    parser.add_argument("--assume-mpp", type=float, metavar="UM", help="resolution of files that do not say theirs")
    parser.add_argument(
        "--mpp-csv", type=Path, metavar="CSV", help="table with columns file,mpp: resolutions that overrule the files"
    )
    parser.add_argument(
        "--tiles",
        nargs="*",
        metavar="PATH",
        help="picture files are pre-cut tiles, a sample each: all of them, or those below the given folders of --in",
    )
    parser.add_argument(
        "--max-tiles",
        type=_tile_count,
        default=100,
        metavar="N",
        help='most tiles of one slide, drawn at random; "all" or 0 for all of them (default 100)',
    )
    parser.add_argument("--draw-seed", type=int, default=0, metavar="N", help="seed of that draw (default 0)")
    parser.add_argument(
        "--overlap", type=int, default=0, metavar="PX", help="px that neighbouring tiles share (default 0)"
    )
    for name, default, text in _PARTS:
        parser.add_argument(
            f"--{name}", type=float, default=default, metavar="PART", help=f"{text} (default {default})"
        )
    parser.add_argument(
        "--min-focus",
        type=float,
        default=6.0,
        metavar="GREY",
        help="least sharpness of a slide's tile, the spread of its Laplacian in grey values; 0 takes all (default 6)",
    )
    parser.add_argument("--allow-burned-in", action="store_true", help="take DICOM slides said to have text in them")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=raster.MAX_PIXELS,
        metavar="N",
        help="largest plain image that is decoded, against decompression bombs (default 200000000)",
    )


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options; names that begin with an underscore hold paths or file names and stay out of the manifest.

    Raises `UsageError` for values that cannot be and for an unreadable --mpp-csv.
    """
    for name, value in (("--mpp", arguments.mpp), ("--assume-mpp", arguments.assume_mpp)):
        if value is not None and wsi.plausible_mpp(value) is None:
            raise UsageError(f"{name} {value} cannot be a slide's resolution: expected µm a px, for example 0.5")
    if arguments.size < 8 or not 0 <= arguments.overlap <= arguments.size - 4:
        raise UsageError("--size must be 8 px or more, and --overlap from 0 to 4 px less than that")
    parts = {name.replace("-", "_"): float(getattr(arguments, name.replace("-", "_"))) for name, _, _ in _PARTS}
    for name, value in parts.items():
        if not 0 <= value <= 1:
            raise UsageError(f"--{name.replace('_', '-')} {value:g} is no part of a tile: give 0 to 1")
    if not 0 <= arguments.min_focus < 1000:
        raise UsageError(f"--min-focus {arguments.min_focus:g} must be 0 or more, and below 1000")
    tiles = None if arguments.tiles is None else sorted(PurePosixPath(path).as_posix() for path in arguments.tiles)
    table = {} if arguments.mpp_csv is None else slide_parts.read_mpp(arguments.mpp_csv)
    return {
        "size": arguments.size,
        "mpp": arguments.mpp,
        "assume_mpp": arguments.assume_mpp,
        "mpp_csv_digest": _digest(sorted(table.items())) if table else None,
        "tiles": "none" if tiles is None else "some" if tiles else "all",
        "tiles_digest": _digest(tiles) if tiles else None,
        "max_tiles": arguments.max_tiles,
        "draw_seed": arguments.draw_seed,
        "overlap": arguments.overlap,
        **parts,
        "min_focus": arguments.min_focus,
        "allow_burned_in": arguments.allow_burned_in,
        "max_pixels": arguments.max_pixels,
        "jpeg_quality": JPEG_QUALITY,
        "_tiles": tiles,
        "_mpp": table,
    }


def spec(settings: Settings) -> ModalitySpec:
    """One RGB JPEG a sample: (3, size, size) in [0, 1]."""
    side = int(settings["size"])
    return ModalitySpec(
        name="pathology",
        kind=Kind.IMAGE,
        geometry=Geometry((3, side, side)),
        fields=(Field("image", "jpeg", "uint8", scale=1 / 255),),
        normalisation="red, green, blue as scanned (no colour profile applied), 0 to 255 as 0 to 1",
        augmentation=Augmentation(crop_scale=(0.2, 1.0), horizontal_flip=0.5),
    )


def finish(settings: Settings, train: Iterable[Any]) -> tuple[ModalitySpec, dict[str, bytes]]:
    """Nothing is learnt from the set."""
    return spec(settings), {}


def inspect(file: InputFile, settings: Settings) -> dict[str, Json]:
    """The kind of file; of a slide, its tiles in portions, or why it gives none; of a DICOM level, its series.

    Raises `Refusal` for DICOM objects that are no levels of a slide.
    """
    kind = file_kind(file.path)
    about: dict[str, Json] = {"kind": str(kind)}
    if kind is FileKind.DICOM:
        header = slide_parts.level_header(file)
        about["series"] = header.series
        if not header.speaks_for_slide:
            return about
    elif kind is FileKind.RASTER:
        about["tile"] = _is_tile(file, settings)
        if about["tile"] or slide_parts.belongs_to_another(file):
            return about
    elif kind is not FileKind.SLIDE:
        return about
    try:
        if kind is FileKind.DICOM:
            _subjects(file, settings, is_dicom=True)
        with wsi.opened(file.path, max_pixels=settings["max_pixels"]) as slide:
            about["portions"] = portions(slide, look(slide, _listed_mpp([file], settings), settings))
    except Refusal as refusal:
        # Said of the file here, it is the fate of all files of its slide.
        outcome = refusal.outcome
        about["refused"] = [str(outcome.status), outcome.reason, outcome.message]
    return about


def group(inspected: Sequence[Inspected], settings: Settings) -> Discovery:
    """Units of a slide's tiles (with the files it consists of: MRXS and VMS parts, DICOM levels), or of one tile."""
    found = Discovery([])
    series: dict[tuple[str, str], list[Inspected]] = defaultdict(list)
    parts = slide_parts.companions([one.file for one in inspected])
    claimed = {part.relative for members in parts.values() for part in members}
    for one in inspected:
        file, kind = one.file, one.about["kind"]
        if file.relative in claimed:
            continue
        if kind == FileKind.DICOM:
            folder = PurePosixPath(file.relative).parent.as_posix()
            series[folder, str(one.about["series"] or file.relative)].append(one)
        elif one.about.get("tile"):
            found.units.append(Unit((file,), {"format": "tile", "mpp": _listed_mpp([file], settings)}))
        elif kind in (FileKind.RASTER, FileKind.SLIDE):
            _add_slide(found, one, (file, *parts.get(file.relative, ())), settings)
        elif kind == FileKind.DATA:
            found.outcomes[file.relative] = Outcome(Status.SKIPPED, "unsupported_format", "not a format of slides")
        else:
            found.outcomes[file.relative] = Outcome(Status.SKIPPED, "not_an_input", "neither a slide nor an image")
    for levels in series.values():
        levels.sort(key=lambda level: level.relative)
        speaking = [level for level in levels if "portions" in level.about or "refused" in level.about]
        head = (speaking or levels)[0]
        members = (head.file, *(level.file for level in levels if level is not head))
        _add_slide(found, head, members, settings)
    return found


def _add_slide(found: Discovery, head: Inspected, members: tuple[InputFile, ...], settings: Settings) -> None:
    about: dict[str, Json] = {"format": "dicom" if head.about["kind"] == FileKind.DICOM else "slide"}
    refused, shares = head.about.get("refused"), head.about.get("portions")
    if isinstance(refused, list):
        status, reason, message = map(str, refused)
        found.outcomes |= {file.relative: Outcome(Status(status), reason, message) for file in members}
    elif isinstance(shares, list):
        found.units += [Unit(members, about | cast(dict[str, Json], share)) for share in shares]
    else:
        # Reduced levels alone: none of them was looked at yet, and the first opens them all.
        found.units.append(Unit(members, about | {"mpp": _listed_mpp(members, settings)}))


def convert(unit: Unit, settings: Settings) -> Conversion:
    """A pre-cut tile as it is, or a slide's tiles."""
    file = unit.files[0]
    if unit.detail["format"] == "tile":
        listed = unit.detail["mpp"]
        known = float(listed) if isinstance(listed, float | int) else None
        return convert_tile(file, known, _barcode(file), settings)
    subjects = _subjects(file, settings, is_dicom=unit.detail["format"] == "dicom")
    with wsi.opened(file.path, max_pixels=settings["max_pixels"]) as slide:
        return convert_slide(unit.files, slide, unit.detail, subjects, settings)


def _subjects(file: InputFile, settings: Settings, *, is_dicom: bool) -> tuple[str, ...]:
    """Ids of the patient. Refused: `burned_in`."""
    if not is_dicom:
        return _barcode(file)
    header = dicom.open_dicom(file.path, header_only=True, tags=_SUBJECT_TAGS)
    with dicom.sound_header():
        burned_in = str(header.get("BurnedInAnnotation") or "").upper() == "YES"
    if burned_in and not settings["allow_burned_in"]:
        raise skipped("burned_in", "BurnedInAnnotation is YES")
    return dicom.subject_ids(header)


def _barcode(file: InputFile) -> tuple[str, ...]:
    """The patient's part of a TCGA barcode in the file's name, else in its folders."""
    parts = reversed(PurePosixPath(file.relative.upper()).parts)
    return tuple(match.group(0) for match in map(_TCGA.search, parts) if match)[:1]


def _is_tile(file: InputFile, settings: Settings) -> bool:
    folders = settings["_tiles"]
    if folders is None:
        return False
    path = PurePosixPath(file.relative)
    # A folder may be named as it stands below --in, or as a path of its own.
    return not folders or any(
        path.is_relative_to(folder) or file.path.resolve().is_relative_to(Path(folder).resolve()) for folder in folders
    )


def _listed_mpp(group: Sequence[InputFile], settings: Settings) -> float | None:
    table: dict[str, float] = settings["_mpp"]
    for file in group if table else ():
        path = PurePosixPath(file.relative)
        for name in (file.relative, path.name, path.stem):
            if name in table:
                return table[name]
    return None


def _tile_count(text: str) -> int | None:
    """The value of --max-tiles; None for all."""
    count = 0 if text == "all" else int(text)
    if count < 0:
        raise argparse.ArgumentTypeError(f"{text} is no number of tiles")
    return count or None


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
