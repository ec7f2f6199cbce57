"""Small sound files of every format, for tests that damage or forge them."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import SimpleITK
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

SERIES = "1.2.826.0.1.3680043.8.498.7777777777"
"""Stands in a seed's bytes where each mutant gets digits of its own, so that every DICOM mutant is a unit alone."""

LITTLE, IMPLICIT, DEFLATED, BIG = (
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)
ENCODED: dict[str, tuple[str, Callable[[np.ndarray], bytes]]] = {
    "jpeg": ("1.2.840.10008.1.2.4.50", lambda a: imagecodecs.jpeg_encode((a >> 4).astype(np.uint8), level=90)),
    "jpeg12": ("1.2.840.10008.1.2.4.51", lambda a: imagecodecs.jpeg_encode(a, bitspersample=12)),
    "lossless": ("1.2.840.10008.1.2.4.70", lambda a: imagecodecs.ljpeg_encode(a, bitspersample=16)),
    "jpegls": ("1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode),
    "j2k": ("1.2.840.10008.1.2.4.90", lambda a: imagecodecs.jpeg2k_encode(a, codecformat="j2k", level=0)),
    "htj2k": ("1.2.840.10008.1.2.4.201", imagecodecs.htj2k_encode),
}  # fmt: skip
SYNTAXES = ("explicit", "implicit", "deflated", "big", "rle", *ENCODED)


@dataclass(frozen=True)
class Seed:
    """A sound file: what is mutated, and how the result becomes a file (compressed, checksums mended)."""

    name: str
    inner: bytes
    wrap: Callable[[bytes], bytes] = bytes
    refused: str = ""
    """Why the sound file gives no sample, if it gives none."""


def smooth(*shape: int) -> np.ndarray:
    """A 12-bit picture or volume with an edge in it."""
    grid = np.indices(shape).sum(axis=0)
    return np.asarray(
        (1000 + 900 * np.sin(grid / 4) + 1500 * (np.indices(shape)[-1] > shape[-1] // 2)).astype(np.uint16)
    )


def dicom(modality: str, syntax: str, pixels: np.ndarray, **more: Any) -> bytes:
    """An object of CT, MR (frames, rows, columns, with the geometry of each frame) or CR (rows, columns)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    classes = {"CT": "2.1", "MR": "4.1", "CR": "1"}
    dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{classes[modality]}"
    dataset.SOPInstanceUID = f"{SERIES}.2"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{SERIES}.3", SERIES
    dataset.Modality, dataset.PatientID = modality, "Q-17"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"
    frames = list(pixels) if pixels.ndim == 3 else [pixels]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(frames)
        plane, place, measure = Dataset(), Dataset(), Dataset()
        plane.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
        measure.PixelSpacing, measure.SliceThickness = ["1.5", "1.5"], "2"
        place.PlaneOrientationSequence, place.PixelMeasuresSequence = [plane], [measure]
        dataset.SharedFunctionalGroupsSequence = [place]
        dataset.PerFrameFunctionalGroupsSequence = []
        for number in range(len(frames)):
            position, group = Dataset(), Dataset()
            position.ImagePositionPatient = ["-12", "-12", f"{2 * number}"]
            group.PlanePositionSequence = [position]
            dataset.PerFrameFunctionalGroupsSequence.append(group)
    for name, value in more.items():
        setattr(dataset, name, value)
    uid = {"explicit": LITTLE, "implicit": IMPLICIT, "deflated": DEFLATED, "big": BIG, "rle": LITTLE}.get(syntax)
    dataset.file_meta.TransferSyntaxUID = uid or ENCODED[syntax][0]
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if uid:
        dataset.PixelData = pixels.astype(">u2" if uid == BIG else "<u2").tobytes()
        dataset["PixelData"].VR = "OW"
    else:
        if syntax == "jpeg":
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        elif syntax == "jpeg12":
            dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = encapsulate([ENCODED[syntax][1](frame) for frame in frames])
        dataset["PixelData"].VR = "OB"
    if syntax == "rle":
        dataset.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def deflated(kind: str, pixels: np.ndarray) -> Seed:
    """A deflated object whose elements are mutated before they are compressed again."""
    data = dicom(kind, "deflated", pixels)
    start = 132 + 12 + struct.unpack_from("<I", data, 132 + 8)[0]
    packer = zlib.decompressobj(-zlib.MAX_WBITS)
    elements = packer.decompress(data[start:])

    def wrap(inner: bytes) -> bytes:
        packed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = packed.compress(inner) + packed.flush()
        return data[:start] + body + b"\0" * (len(body) % 2)

    return Seed(f"{kind.lower()}_deflated_inside.dcm", elements, wrap)


def dicom_seeds(kind: str) -> list[Seed]:
    """One object in every transfer syntax; volumes as multi-frame objects, so that one file is decoded to the end."""
    pixels = smooth(24, 20) if kind == "CR" else smooth(10, 16, 16)
    found = [Seed(f"{kind.lower()}_{syntax}.dcm", dicom(kind, syntax, pixels)) for syntax in SYNTAXES]
    if kind == "CR":
        table = Dataset()
        table.LUTDescriptor, table.LUTData = [256, 0, 12], np.arange(0, 4096, 16, "<u2").tobytes()
        more = {"WindowCenter": "2000", "WindowWidth": "3000", "PhotometricInterpretation": "MONOCHROME1"}
        found.append(Seed("cr_window.dcm", dicom("CR", "explicit", pixels, **more)))
        found.append(Seed("cr_padding.dcm", dicom("CR", "explicit", pixels, PixelPaddingValue=0, ViewPosition="PA")))
        found.append(Seed("cr_lut.dcm", dicom("CR", "implicit", pixels, VOILUTSequence=[table])))
    return [*found, deflated(kind, pixels)]


def png(image: Image.Image, **more: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", **more)
    return stream.getvalue()


def mend_png(data: bytes) -> bytes:
    """The checksums of a PNG's chunks made right, as far as its lengths lead: without it a decoder stops at once."""
    whole, place = bytearray(data), 8
    while place + 12 <= len(whole):
        size = struct.unpack_from(">I", whole, place)[0]
        if place + 12 + size > len(whole):
            break
        struct.pack_into(">I", whole, place + 8 + size, zlib.crc32(whole[place + 4 : place + 8 + size]))
        place += 12 + size
    return bytes(whole)


def png_seeds() -> list[Seed]:
    grey, deep = Image.fromarray((smooth(24, 20) >> 4).astype(np.uint8)), Image.fromarray(smooth(24, 20))
    images = {"grey": grey, "deep": deep, "palette": grey.convert("P"), "alpha": grey.convert("RGBA")}
    found = {name: png(image) for name, image in images.items()}
    found["bits"] = png(grey.convert("1"))
    return [Seed(f"{name}{part}.png", data, wrap) for name, data in found.items()
            for part, wrap in (("", bytes), ("_mended", mend_png))]  # fmt: skip


def jpeg_seeds() -> list[Seed]:
    colour = Image.merge("RGB", [Image.fromarray((smooth(40, 32) >> 4).astype(np.uint8))] * 3)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    ways: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "grey": (colour.convert("L"), {}),
        "colour": (colour, {"subsampling": 2}),
        "progressive": (colour, {"progressive": True}),
        "exif": (colour, {"exif": exif, "comment": b"a comment"}),
        "cmyk": (colour.convert("CMYK"), {}),
    }
    found = []
    for name, (image, more) in ways.items():
        stream = io.BytesIO()
        image.save(stream, "JPEG", **more)
        found.append(Seed(f"{name}.jpg", stream.getvalue()))
    return found


def stained(side: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-25, 25, (side, side, 1))
    return np.clip(np.array((220, 120, 180)) + noise, 0, 255).astype(np.uint8)


def tiff_seeds() -> list[Seed]:
    """Slides of two levels at 0.5 µm a px: generic and Aperio's, in several compressions; big and small TIFF."""
    ways: dict[str, dict[str, Any]] = {
        "jpeg.tiff": {"compression": "jpeg"},
        "jpeg.svs": {"compression": "jpeg"},
        "deflate.tiff": {"compression": "zlib"},
        "lzw.tif": {"compression": "lzw"},
        "j2k.svs": {"compression": "aperio_jp2000_rgb"},
        "plain.tif": {},
        "big.tiff": {"compression": "jpeg"},
        "strips.tif": {"compression": "zlib", "tile": None, "rowsperstrip": 16},
    }
    found = []
    for name, more in ways.items():
        stream = io.BytesIO()
        aperio = "Aperio Image Library v11.2.1\r\n128x128 (64x64) Q=70|AppMag = 20|MPP = 0.5" if "svs" in name else None
        with tifffile.TiffWriter(stream, bigtiff=name.startswith("big")) as writer:
            for level in range(2):
                writer.write(
                    stained(128 >> level), photometric="rgb", metadata=None, resolution=(20000 >> level,) * 2,
                    resolutionunit="CENTIMETER", description=aperio, subfiletype=int(level > 0),
                    **{"tile": (64, 64), **more},
                )  # fmt: skip
        refused = "raw_tiles" if "rowsperstrip" in more else ""
        found.append(Seed(name, stream.getvalue(), refused=refused))
    return found


def zip_again(inner: bytes) -> bytes:
    return gzip.compress(inner, compresslevel=1, mtime=0)


def nifti_seeds() -> list[Seed]:
    found = []
    for name, kind, dtype in (("one", nibabel.Nifti1Image, np.int16), ("two", nibabel.Nifti2Image, np.float32)):
        values = (smooth(12, 12, 12).astype(np.int32) - 1024).astype(dtype)
        image = kind(values, np.diag([2.0, 2.0, 2.0, 1.0]))
        image.header.set_xyzt_units("mm")
        image.header.set_slope_inter(1 if dtype is np.int16 else 2, 0)
        data = image.to_bytes()
        packed = Seed(f"{name}_packed.nii.gz", zip_again(data))
        found += [Seed(f"{name}.nii", data), Seed(f"{name}.nii.gz", data, zip_again), packed]
    return found


def itk_seeds() -> list[Seed]:
    """MetaImage and NRRD with the data inside, as SimpleITK writes them."""
    import tempfile

    image = SimpleITK.GetImageFromArray((smooth(12, 12, 12).astype(np.int32) - 1024).astype(np.int16))
    image.SetSpacing((2.0, 2.0, 2.0))
    image.SetMetaData("a key", "a value")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("mha", "nrrd"):
            for packed in (False, True):
                path = f"{folder}/volume.{suffix}"
                SimpleITK.WriteImage(image, path, useCompression=packed)
                with open(path, "rb") as file:  # noqa: PTH123
                    found.append(Seed(f"{'packed' if packed else 'plain'}.{suffix}", file.read()))
    return found


ROWS = [
    {"uid": f"CXR{n}", "subject": f"s{n % 5}", "impression": f"No acute disease in case {n}, 2.5 cm nodule.",
     "findings": "Heart size is normal. \"Lungs\" are clear,\nwithout effusion.", "label": "normal"}
    for n in range(12)
]  # fmt: skip


def table_seeds() -> list[Seed]:
    import csv
    import json

    found = []
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)
        found.append(Seed(f"table.{suffix}", text.getvalue().encode()))
    lines = "\n".join(json.dumps(row) for row in ROWS) + "\n"
    return [*found, Seed("lines.jsonl", lines.encode())]


def parquet_seeds() -> list[Seed]:
    table = pa.Table.from_pylist(ROWS)
    found = []
    for packing in ("none", "snappy", "gzip", "zstd"):
        stream = io.BytesIO()
        pq.write_table(table, stream, compression=packing, use_dictionary=packing != "zstd")
        found.append(Seed(f"{packing}.parquet", stream.getvalue()))
    return found


def text_seeds() -> list[Seed]:
    report = (
        "EXAMINATION: Chest radiograph\nHISTORY: 61-year-old with cough.\n\nFINDINGS:\n1. Heart size is normal.\n"
        "2. A 2.5 cm nodule (arrow) — unchanged.\n\nIMPRESSION:\nNo acute disease. Dr. Who agrees.\n"
    )
    return [Seed("report.txt", report.encode()), Seed("upper.txt", report.upper().encode())]


FAMILIES: dict[str, dict[str, Callable[[], list[Seed]]]] = {
    "report": {"table": table_seeds, "parquet": parquet_seeds, "text": text_seeds},
    "xray": {"dicom": lambda: dicom_seeds("CR"), "png": png_seeds, "jpeg": jpeg_seeds},
    "ct": {"dicom": lambda: dicom_seeds("CT"), "nifti": nifti_seeds, "itk": itk_seeds},
    "mri": {"dicom": lambda: dicom_seeds("MR"), "nifti": nifti_seeds},
    "pathology": {"tiff": tiff_seeds},
}


def alone(data: bytes, number: int) -> bytes:
    """A DICOM object as a series of its own, of which no other object is a copy; other data as they are."""
    return data.replace(SERIES.encode(), f"{SERIES[:-10]}{number + 10**9}".encode())


def sound(seed: Seed, number: int) -> bytes:
    """The seed's file, a series of its own."""
    return seed.wrap(alone(seed.inner, number))
