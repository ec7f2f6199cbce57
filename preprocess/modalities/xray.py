"""X-ray: radiographs from DICOM, PNG, JPEG, TIFF and BMP to one-channel 8-bit JPEGs, bright meaning dense."""

from __future__ import annotations

import argparse
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from medcoss.contracts import Augmentation, Field, Geometry, Kind, ModalitySpec, UsageError
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
from preprocess.labels import Labels
from preprocess.readers import dicom, radiograph, raster, views
from preprocess.readers.sniff import FileKind, file_kind

SUMMARY = "radiographs (DICOM CR/DX, PNG, JPEG, TIFF, BMP) to 8-bit grey images"
EXAMPLE = "preprocess xray --in /data/chest --out shards/xray --view PA AP --labels table.csv --view-column Projection"

JPEG_QUALITY = 95

_IDENTITY_TAGS = (0x00080018, 0x00082112, 0x00282110)  # SOPInstanceUID, SourceImageSequence, LossyImageCompression
_UNCOMPRESSED_PREDECESSOR = "121320"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `preprocess xray`."""
    parser.add_argument(
        "--size",
        type=int,
        default=224,
        metavar="PX",
        help="side of the model's input; stored with a short side of 256/224 of it, for crops (default 224)",
    )
    parser.add_argument(
        "--view",
        nargs="+",
        default=[],
        metavar="VIEW",
        help="keep only these views, for example PA AP; FRONTAL takes both, LATERAL takes LL and RL too",
    )
    parser.add_argument(
        "--view-column",
        nargs="+",
        default=[],
        metavar="NAME",
        help="columns of the --labels tables that name a file's view, best first; they go before the DICOM header",
    )
    parser.add_argument(
        "--body-part", nargs="+", default=[], metavar="PART", help="keep only these body parts by the DICOM header"
    )
    parser.add_argument("--allow-burned-in", action="store_true", help="take images whose header says text is in them")
    parser.add_argument("--allow-secondary-capture", action="store_true", help="take screen captures")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=raster.MAX_PIXELS,
        metavar="N",
        help="largest image that is decoded, against decompression bombs (default 200000000)",
    )


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options; `_view_tables`, which holds file names, stays out of the manifest (its tables' digests are there).

    Raises `UsageError` for a size or view that cannot be, and for view columns that no table has.
    """
    asked = sorted({str(name).upper() for name in arguments.view})
    unknown = [name for name in asked if name not in views.VIEWS]
    if unknown:
        raise UsageError(f"--view {unknown[0]} is unknown: choose from {', '.join(sorted(views.VIEWS))}")
    if arguments.size < 8:
        raise UsageError(f"--size {arguments.size} is too small: expected 8 px or more")
    tables = None
    if arguments.view_column:
        if not arguments.labels:
            raise UsageError("--view-column names a column of a table: give the table with --labels")
        tables = views.read_view_tables(arguments.labels, arguments.id_column or ("file",), arguments.view_column)
    return {
        "size": arguments.size,
        "view": asked,
        "view_column": list(arguments.view_column),
        "body_part": sorted({str(name).upper() for name in arguments.body_part}),
        "allow_burned_in": arguments.allow_burned_in,
        "allow_secondary_capture": arguments.allow_secondary_capture,
        "max_pixels": arguments.max_pixels,
        "jpeg_quality": JPEG_QUALITY,
        "_view_tables": tables,
    }


def spec(settings: Settings) -> ModalitySpec:
    """One grey JPEG a sample, three equal channels at the model: (3, size, size) in [0, 1]."""
    side = int(settings["size"])
    return ModalitySpec(
        name="xray",
        kind=Kind.IMAGE,
        geometry=Geometry((3, side, side)),
        fields=(Field("image", "jpeg", "uint8", scale=1 / 255),),
        normalisation="grey as displayed (VOI applied), bright is dense, 0 to 255 as 0 to 1; one stored channel",
        augmentation=Augmentation(crop_scale=(0.2, 1.0), horizontal_flip=0.5),
    )


def finish(settings: Settings, train: Iterable[Any]) -> tuple[ModalitySpec, dict[str, bytes]]:
    """Nothing is learnt from the set."""
    return spec(settings), {}


def inspect(file: InputFile, settings: Settings) -> dict[str, Json]:
    """Picture or DICOM, and of DICOM the instance it is a copy of. Raises `Refusal` for other files."""
    kind = file_kind(file.path)
    if kind is FileKind.RASTER:
        return {"format": "raster"}
    if kind is FileKind.DICOM:
        identity, lossy = _identity(file)
        return {"format": "dicom", "identity": identity, "lossy": lossy}
    if kind is FileKind.OTHER:
        raise skipped("not_an_input", "neither an image nor DICOM")
    raise skipped("unsupported_format", "not a format of radiographs")


def group(inspected: Sequence[Inspected], settings: Settings) -> Discovery:
    """A unit a file, but DICOM copies of one instance (another compression of it) are one unit, lossless first."""
    units: list[Unit] = []
    tables = settings["_view_tables"]
    details: dict[tuple[str, str | None], dict[str, Json]] = {}
    instances: dict[str, list[tuple[bool, str, InputFile]]] = defaultdict(list)
    for one in inspected:
        if one.about["format"] == "raster":
            units.append(_unit((one.file,), "raster", tables, details))
        else:
            identity = str(one.about["identity"]) or one.relative
            instances[identity].append((bool(one.about["lossy"]), one.relative, one.file))
    for copies in instances.values():
        files = tuple(file for _, _, file in sorted(copies, key=lambda copy: copy[:2]))
        units.append(_unit(files, "dicom", tables, details))
    return Discovery(units)


def _unit(
    files: tuple[InputFile, ...], kind: str, tables: Labels | None,
    details: dict[tuple[str, str | None], dict[str, Json]],
) -> Unit:  # fmt: skip
    """`details` holds what units have in common: a million dicts would take 200 MB."""
    named = None if tables is None else next(filter(None, (views.listed_view(tables, file) for file in files)), None)
    return Unit(files, details.setdefault((kind, named), {"format": kind, "view": named}))


def convert(unit: Unit, settings: Settings) -> Conversion:
    """One sample: of the first file of the unit that gives one; other copies are `duplicate_instance`."""
    conversion = Conversion([])
    read = _from_dicom if unit.detail["format"] == "dicom" else _from_raster
    for file in unit.files:
        if conversion.pieces:
            conversion.outcomes[file.relative] = Outcome(
                Status.SKIPPED, "duplicate_instance", "another compression or copy of an instance that was taken"
            )
            continue
        try:
            piece, figures = read(file, unit.detail["view"], settings)
        except Refusal as refusal:
            conversion.outcomes[file.relative] = refusal.outcome
            continue
        conversion.pieces.append(piece)
        conversion.figures = figures
    return conversion


def _identity(file: InputFile) -> tuple[str, bool]:
    """The instance a DICOM file is a copy of (its uncompressed predecessor, else itself) and whether it is lossy."""
    header = dicom.open_dicom(file.path, header_only=True, tags=_IDENTITY_TAGS)
    with dicom.sound_header():
        for source in header.get("SourceImageSequence") or []:
            for purpose in source.get("PurposeOfReferenceCodeSequence") or []:
                if str(purpose.get("CodeValue", "")) == _UNCOMPRESSED_PREDECESSOR:
                    return str(source.get("ReferencedSOPInstanceUID", "")), dicom.is_lossy(header)
        return str(header.get("SOPInstanceUID", "")), dicom.is_lossy(header)


def _from_dicom(file: InputFile, listed: Json, settings: Settings) -> tuple[Piece, dict[str, list[float]]]:
    dataset = dicom.open_dicom(file.path)
    radiograph.refuse_unsuitable(
        dataset,
        allow_burned_in=settings["allow_burned_in"],
        allow_secondary_capture=settings["allow_secondary_capture"],
    )
    view = listed or views.header_view(dataset)
    _refuse_view(view, settings)
    if settings["body_part"] and radiograph.body_part(dataset) not in settings["body_part"]:
        raise skipped("other_body_part", "the header names another body part or none")
    stored = dicom.decode_pixels(dataset, max_pixels=settings["max_pixels"])
    shown, how = radiograph.present(dataset, stored)
    geometry: dict[str, Json] = {
        "native_height": int(shown.shape[0]),
        "native_width": int(shown.shape[1]),
        "pixel_spacing_mm": list(radiograph.pixel_spacing_mm(dataset) or []) or None,
        "view": view,
        "voi": how,
    }
    return _piece(file, stored, shown, geometry, settings, dicom.subject_ids(dataset))


def _from_raster(file: InputFile, listed: Json, settings: Settings) -> tuple[Piece, dict[str, list[float]]]:
    _refuse_view(listed, settings)
    if settings["body_part"]:
        raise skipped("other_body_part", "a picture file has no header to ask")
    # Twice the stored size leaves the final reduction its own filter; the file's further detail would be dropped.
    side = 2 * _short_side(settings)
    read = raster.open_raster(file.path, max_pixels=settings["max_pixels"], side=side, grey=True)
    if read.more:
        raise skipped("multi_frame", "more than one page")
    stored = raster.grey_values(read)
    # A few pixels tell of nearly every picture that it is not constant.
    if stored[::16, ::16].min() == stored[::16, ::16].max() and stored.min() == stored.max():
        raise skipped("constant", "every pixel has one value")
    deep = stored.dtype != np.uint8
    geometry: dict[str, Json] = {
        "native_height": read.height,
        "native_width": read.width,
        "pixel_spacing_mm": None,
        "view": listed,
        "voi": "percentile" if deep else "none",
    }
    return _piece(file, stored, radiograph.stretch(stored) if deep else stored, geometry, settings, ())


def _refuse_view(found: Json, settings: Settings) -> None:
    if settings["view"] and not views.selected(found if isinstance(found, str) else None, settings["view"]):
        told = f"view {found}" if found else "neither a header nor a --view-column names its view"
        raise skipped("not_a_view", told)


def _piece(
    file: InputFile,
    stored: np.ndarray[Any, Any],
    shown: np.ndarray[Any, Any],
    geometry: dict[str, Json],
    settings: Settings,
    subjects: tuple[str, ...],
) -> tuple[Piece, dict[str, list[float]]]:
    """The sample, and the figures of its QC histograms."""
    small = raster.shrink(shown, _short_side(settings))
    digest = hashlib.sha256(f"{stored.dtype.str} {stored.shape}".encode())
    digest.update(np.ascontiguousarray(stored).data)
    piece = Piece(
        content=digest.digest(),
        suffix="0",
        data=raster.encode_jpeg(small, settings["jpeg_quality"]),
        file=file.relative,
        subject_ids=subjects,
        geometry={**geometry, "stored_height": int(small.shape[0]), "stored_width": int(small.shape[1])},
    )
    mean, deviation = raster.grey_figures(small)
    figures = {
        "mean of a sample (grey level)": [round(mean, 1)],
        "contrast of a sample (SD, grey levels)": [round(deviation, 1)],
    }
    for name, key in (("native height (px)", "native_height"), ("native width (px)", "native_width")):
        value = geometry[key]
        if isinstance(value, int):
            figures[name] = [float(value)]
    spacing = geometry["pixel_spacing_mm"]
    if isinstance(spacing, list) and isinstance(spacing[0], float):
        figures["pixel spacing (mm)"] = [spacing[0]]
    return piece, figures


def _short_side(settings: Settings) -> int:
    return round(int(settings["size"]) * 256 / 224)
