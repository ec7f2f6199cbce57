"""Pathology: tissue tiles of whole slides at one physical resolution, and tiles that were cut before."""

from __future__ import annotations

import argparse
import csv
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from medcoss.contracts import Augmentation, Field, Geometry, Kind, ModalitySpec, UsageError
from preprocess.conversion import (
    Conversion,
    Discovery,
    InputFile,
    Inspected,
    Json,
    Outcome,
    Piece,
    Settings,
    Status,
    Unit,
    failed,
    skipped,
)
from preprocess.readers import dicom, raster, tiling, wsi
from preprocess.readers.sniff import FileKind, file_kind

SUMMARY = "tissue tiles of whole slides (OpenSlide formats, DICOM, plain images) and pre-cut tiles"
EXAMPLE = "preprocess pathology --in /data/slides --out shards/pathology --mpp 0.5 --max-tiles 100"

JPEG_QUALITY = 90
RAW_TILE_PX = 512
"""A picture without a resolution and of at most this side is taken for a tile that was cut before."""

_SLIDE_MICROSCOPY = "1.2.840.10008.5.1.4.1.1.77.1.6"
_HEADER_TAGS = (0x00080008, 0x0020000E)  # ImageType, SeriesInstanceUID
_SUBJECT_TAGS = (0x00100020, 0x00100021, 0x0020000D, 0x00280301)  # PatientID, its issuer, StudyInstanceUID, burned in
_TCGA = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")


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
        "--max-tiles", type=int, default=100, metavar="N", help="most tiles of one slide, drawn at random (default 100)"
    )
    parser.add_argument("--draw-seed", type=int, default=0, metavar="N", help="seed of that draw (default 0)")
    parser.add_argument(
        "--min-tissue",
        type=float,
        default=0.5,
        metavar="PART",
        help="least part of a tile that is tissue (default 0.5)",
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
    if arguments.size < 8 or arguments.max_tiles < 1 or not 0 <= arguments.min_tissue <= 1:
        raise UsageError("--size must be 8 px or more, --max-tiles 1 or more and --min-tissue within 0 and 1")
    tiles = None if arguments.tiles is None else sorted(PurePosixPath(path).as_posix() for path in arguments.tiles)
    table = {} if arguments.mpp_csv is None else _read_mpp(arguments.mpp_csv)
    return {
        "size": arguments.size,
        "mpp": arguments.mpp,
        "assume_mpp": arguments.assume_mpp,
        "mpp_csv_digest": _digest(sorted(table.items())) if table else None,
        "tiles": "none" if tiles is None else "some" if tiles else "all",
        "tiles_digest": _digest(tiles) if tiles else None,
        "max_tiles": arguments.max_tiles,
        "draw_seed": arguments.draw_seed,
        "min_tissue": arguments.min_tissue,
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
    """The kind of file, and of a DICOM level the series it belongs to. Raises `Refusal` for other DICOM objects."""
    kind = file_kind(file.path)
    return {"kind": str(kind), "series": _slide_series(file) if kind is FileKind.DICOM else None}


def group(inspected: Sequence[Inspected], settings: Settings) -> Discovery:
    """A unit a slide (with the files it consists of: MRXS and VMS parts, DICOM levels of a folder) or a tile."""
    units: list[Unit] = []
    outcomes: dict[str, Outcome] = {}
    series: dict[tuple[str, str], list[InputFile]] = defaultdict(list)
    parts = _companions([one.file for one in inspected])
    claimed = {part.relative for members in parts.values() for part in members}
    for one in inspected:
        file, kind = one.file, one.about["kind"]
        if file.relative in claimed:
            continue
        if kind == FileKind.DICOM:
            folder = PurePosixPath(file.relative).parent.as_posix()
            series[folder, str(one.about["series"] or file.relative)].append(file)
        elif kind in (FileKind.RASTER, FileKind.SLIDE):
            tile = kind == FileKind.RASTER and _is_tile(file, settings)
            members = (file, *parts.get(file.relative, ()))
            units.append(Unit(members, {"format": "tile" if tile else "slide", "mpp": _listed_mpp(members, settings)}))
        elif kind == FileKind.DATA:
            outcomes[file.relative] = Outcome(Status.SKIPPED, "unsupported_format", "not a format of slides")
        else:
            outcomes[file.relative] = Outcome(Status.SKIPPED, "not_an_input", "neither a slide nor an image")
    for levels in series.values():
        members = tuple(sorted(levels, key=lambda level: level.relative))
        units.append(Unit(members, {"format": "dicom", "mpp": _listed_mpp(members, settings)}))
    return Discovery(units, outcomes)


def convert(unit: Unit, settings: Settings) -> Conversion:
    """A pre-cut tile as it is, or the drawn tissue tiles of a slide."""
    listed = unit.detail.get("mpp")
    known = float(listed) if isinstance(listed, float | int) else None
    if unit.detail["format"] == "tile":
        return _convert_tile(unit.files[0], known, settings)
    subjects = _subjects(unit, settings)
    slide = wsi.open_slide(unit.files[0].path, max_pixels=settings["max_pixels"])
    try:
        mpp = known or slide.mpp or settings["assume_mpp"]
        if mpp is None:
            finest = slide.levels[0]
            if max(finest.width, finest.height) <= RAW_TILE_PX:
                raise failed("raw_tiles", f"{finest.width} x {finest.height} px without a resolution")
            raise failed("missing_mpp", f"{finest.width} x {finest.height} px at level 0")
        source = "table" if known else "file" if slide.mpp else "assumed"
        return _convert_slide(unit.files[0], slide, (mpp, source), subjects, settings)
    finally:
        slide.close()


def _convert_tile(file: InputFile, known: float | None, settings: Settings) -> Conversion:
    side = int(settings["size"])
    read = raster.open_raster(file.path, max_pixels=settings["max_pixels"], side=2 * side)
    pixels = raster.rgb_values(read.image)
    small = raster.shrink(pixels, side)
    mpp = known or settings["assume_mpp"]
    geometry: dict[str, Json] = {
        "native_height": read.height,
        "native_width": read.width,
        "mpp": None if mpp is None else round(mpp * min(read.height, read.width) / min(small.shape[:2]), 5),
        "mpp_from": "table" if known else "assumed" if mpp else None,
    }
    content = hashlib.sha256(f"tile {pixels.shape}".encode() + pixels.tobytes()).digest()
    piece = Piece(
        content=content,
        suffix="0",
        data=raster.encode_jpeg(small, settings["jpeg_quality"]),
        file=file.relative,
        subject_ids=_barcode(file),
        geometry=geometry,
    )
    return Conversion([piece], figures={"native width (px)": [float(read.width)]})


def _convert_slide(
    file: InputFile, slide: wsi.Slide, resolution: tuple[float, str], subjects: tuple[str, ...], settings: Settings
) -> Conversion:
    mpp, mpp_from = resolution
    plan = tiling.plan(slide, mpp, tile_px=int(settings["size"]), tile_mpp=settings["mpp"])
    found = tiling.find_tissue(slide, plan, min_tissue=settings["min_tissue"])
    if not found.tiles:
        raise skipped("no_tissue", f"none of {plan.rows * plan.columns} tiles is tissue enough")
    drawn = tiling.draw(found, settings["max_tiles"], settings["draw_seed"])
    content = hashlib.sha256(found.digest)
    cut: list[tuple[tiling.Tile, bytes]] = []
    broken = 0
    for tile, pixels in tiling.read_tiles(slide, plan, drawn):
        if pixels is None:
            broken += 1
            continue
        content.update(pixels.tobytes())
        cut.append((tile, raster.encode_jpeg(pixels, settings["jpeg_quality"])))
    if not cut:
        raise failed("broken_tile", f"all {broken} drawn tiles cannot be decoded")
    pieces = [
        Piece(
            content=content.digest(),
            suffix=f"{tile.row:04d}-{tile.column:04d}",
            data=data,
            file=file.relative,
            subject_ids=subjects,
            geometry={
                "mpp": round(plan.true_mpp, 5),
                "mpp_from": mpp_from,
                "slide_mpp": round(mpp, 5),
                "x_level0": round(tile.column * plan.side_level0),
                "y_level0": round(tile.row * plan.side_level0),
                "side_level0": round(plan.side_level0),
                "tissue_fraction": round(tile.tissue, 3),
            },
        )
        for tile, data in cut
    ]
    message = f"{broken} of {len(drawn)} tiles cannot be decoded" if broken else ""
    return Conversion(
        pieces,
        outcomes={file.relative: Outcome(Status.WRITTEN, "broken_tile" if broken else "", message)},
        figures={
            "slide resolution (µm/px)": [mpp],
            "tissue tiles of a slide": [float(len(found.tiles))],
            "tissue part of a tile": [tile.tissue for tile, _ in cut],
        },
    )


def _subjects(unit: Unit, settings: Settings) -> tuple[str, ...]:
    if unit.detail["format"] != "dicom":
        return _barcode(unit.files[0])
    header = dicom.open_dicom(unit.files[0].path, header_only=True, tags=_SUBJECT_TAGS)
    with dicom.sound_header():
        burned_in = str(header.get("BurnedInAnnotation") or "").upper() == "YES"
    if burned_in and not settings["allow_burned_in"]:
        raise skipped("burned_in", "BurnedInAnnotation is YES")
    return dicom.subject_ids(header)


def _barcode(file: InputFile) -> tuple[str, ...]:
    """The patient's part of a TCGA barcode in the file's name, else in its folders."""
    parts = reversed(PurePosixPath(file.relative.upper()).parts)
    return tuple(match.group(0) for match in map(_TCGA.search, parts) if match)[:1]


def _slide_series(file: InputFile) -> str:
    """SeriesInstanceUID of a DICOM file that holds a level of a slide; refuses all others as `not_an_input`."""
    header = dicom.open_dicom(file.path, header_only=True, tags=_HEADER_TAGS)
    with dicom.sound_header():
        if str(header.get("SOPClassUID", "")) != _SLIDE_MICROSCOPY:
            raise skipped("not_an_input", "a DICOM object that is no slide")
        if {"LABEL", "OVERVIEW", "LOCALIZER"} & {str(word).upper() for word in header.get("ImageType") or []}:
            raise skipped("not_an_input", "a slide's label or overview, never read")
        return str(header.get("SeriesInstanceUID", ""))


def _companions(files: Sequence[InputFile]) -> dict[str, tuple[InputFile, ...]]:
    """The further files of slides that consist of several: a folder beside X.mrxs, files named alike beside X.vms."""
    heads = [file for file in files if file.path.suffix.lower() in (".mrxs", ".vms", ".vmu")]
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


def _read_mpp(path: Path) -> dict[str, float]:
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


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
