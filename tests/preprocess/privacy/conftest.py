"""Raw files of all modalities with planted names in every place that holds text, and a search through what ships."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import SimpleITK
import tifffile
import zarr
from PIL import Image, ImageCms, PngImagePlugin
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

LABEL_GREEN = (0, 255, 0)
"""The colour of slides' label and macro images: nothing else in the inputs is green."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Planter:
    """Makes names that occur nowhere else and remembers them."""

    def __init__(self, modality: str) -> None:
        self._prefix = f"Zzq{modality[0]}{modality[-1]}"
        self.names: list[str] = []

    def name(self) -> str:
        """A word of letters, as a family name."""
        number = len(self.names)
        self.names.append(self._prefix + "".join(_LETTERS[number // 26**k % 26] for k in (2, 1, 0)) + "sen")
        return self.names[-1]

    def number(self, form: str = "{}") -> str:
        """Ten digits in `form`, as of a record."""
        self.names.append(form.format(f"{73918462 + 1009 * len(self.names):010d}"))
        return self.names[-1]

    def phone(self) -> str:
        """A telephone number."""
        self.names.append(f"617-555-{1009 + len(self.names):04d}")
        return self.names[-1]


def smooth(*shape: int) -> np.ndarray:
    grid = np.indices(shape).sum(axis=0)
    return np.asarray(
        (1000 + 900 * np.sin(grid / 4) + 1500 * (np.indices(shape)[-1] > shape[-1] // 2)).astype(np.uint16)
    )


def _dicom(path: Path, plant: Planter, modality: str, pixels: np.ndarray, number: int, **more: Any) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.SourceApplicationEntityTitle = plant.name()[:16]
    dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{ {'CT': '2', 'MR': '4', 'CR': '1'}[modality] }".replace(" ", "")
    study = plant.number("1.2.826.0.1.{}")
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, f"{study}.{number}"
    dataset.SOPInstanceUID = f"{study}.{number}.{more.get('InstanceNumber', 0)}"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality = modality
    dataset.PatientName, dataset.PatientID = f"{plant.name()}^{plant.name()}", plant.name()
    dataset.PatientBirthDate, dataset.PatientAddress = "19610417", plant.name()
    for word in ("OtherPatientNames", "ReferringPhysicianName", "InstitutionName", "OperatorsName", "StationName",
                 "StudyDescription", "SeriesDescription", "ProtocolName", "ImageComments", "PatientComments",
                 "AdditionalPatientHistory", "DeviceSerialNumber", "IssuerOfPatientID", "Manufacturer",
                 "BodyPartExamined", "PerformingPhysicianName", "RequestedProcedureDescription"):  # fmt: skip
        setattr(dataset, word, plant.name()[:16])
    dataset.AccessionNumber = plant.number()
    dataset.PatientTelephoneNumbers = plant.number("{}")
    block = dataset.private_block(0x0009, "ZzCREATOR", create=True)
    block.add_new(1, "LO", plant.name())
    block.add_new(2, "OB", plant.name().encode().ljust(20, b"\0"))
    item = Dataset()
    item.CodeMeaning, item.CodeValue = plant.name(), "1"
    dataset.RequestedProcedureCodeSequence = [item]
    dataset.add_new(0x60000010, "US", pixels.shape[0])
    dataset.add_new(0x60000011, "US", pixels.shape[1])
    dataset.add_new(0x60001500, "LO", plant.name())
    dataset.add_new(0x60003000, "OW", plant.name().encode().ljust(pixels.size // 8 + 8, b"\0"))
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)
    # A name behind the end of the pixels, as in a file that grew.
    path.write_bytes(
        path.read_bytes() + struct.pack("<HH2sHI", 0xFFFC, 0xFFFC, b"OB", 0, 16) + plant.name()[:16].encode()
    )


def _series(folder: Path, plant: Planter, modality: str, number: int) -> None:
    """Ten slices that bear the same names."""
    folder.mkdir(parents=True)
    before = list(plant.names)
    for k, pixels in enumerate(smooth(10, 16, 16 + number)):
        more = {
            "ImagePositionPatient": ["-12", "-12", str(2 * k)], "PixelSpacing": ["1.5", "1.5"], "RescaleSlope": "1",
            "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"], "RescaleIntercept": "-1024", "InstanceNumber": k,
        }  # fmt: skip
        plant.names = list(before)
        _dicom(folder / f"{k:03d}", plant, modality, pixels, number, **more)


def _images(folder: Path, plant: Planter, pixels: np.ndarray) -> None:
    """The same kind of picture as PNG, JPEG and TIFF, with text in every place these formats have for it."""
    folder.mkdir(parents=True, exist_ok=True)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Author", plant.name())
    notes.add_text(plant.name(), "a key", zip=True)
    notes.add_text("Comment", f"seen by {plant.name()}", zip=True)
    notes.add_itxt("XML:com.adobe.xmp", f"<x>{plant.name()}</x>", zip=True)
    notes.add_itxt("Title", plant.name(), lang="en", tkey=plant.name())
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    end = profile + plant.name().encode() + plant.name().encode("utf-16-be")
    exif = Image.Exif()
    exif[0x010E], exif[0x013B], exif[0x8298] = plant.name(), plant.name(), plant.name()
    exif[0x9C9B] = plant.name().encode("utf-16-le")
    image = Image.fromarray(pixels)
    image.save(folder / f"{plant.name()}.png", pnginfo=notes, icc_profile=end, exif=exif)
    path = folder / f"{plant.name()}.jpg"
    image = Image.fromarray(np.roll(pixels, 3, axis=1))
    xmp = f"<x>{plant.name()}</x>".encode()
    image.save(path, comment=plant.name().encode(), exif=exif, icc_profile=end, xmp=xmp, quality=95)
    path.write_bytes(path.read_bytes() + plant.name().encode())
    tifffile.imwrite(
        folder / f"{plant.name()}.tif", np.roll(pixels, 6, axis=1), description=plant.name(), software=plant.name(),
        metadata=None, photometric="rgb" if pixels.ndim == 3 else "minisblack",
        extratags=[(315, "s", 0, plant.name(), True), (65000, "s", 0, plant.name(), True)],
    )  # fmt: skip


def _volumes(folder: Path, plant: Planter) -> None:
    folder.mkdir(parents=True)
    values = (smooth(12, 12, 12).astype(np.int32) - 1024).astype(np.int16)
    image = nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0]))
    image.header.set_xyzt_units("mm")
    image.header["descrip"], image.header["aux_file"] = plant.name(), plant.name()
    image.header["db_name"], image.header["intent_name"] = plant.name(), plant.name()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", plant.name().encode()))
    (folder / f"{plant.name()}.nii").write_bytes(image.to_bytes() + plant.name().encode())
    image = nibabel.Nifti1Image(values[::-1].copy(), np.diag([2.0, 2.0, 2.0, 1.0]))
    image.header["descrip"] = plant.name()
    (folder / f"{plant.name()}.nii.gz").write_bytes(gzip.compress(image.to_bytes()))
    for suffix, way in (("mha", values[:, ::-1]), ("nrrd", values[:, :, ::-1])):
        kept = SimpleITK.GetImageFromArray(np.ascontiguousarray(way))
        kept.SetSpacing((2.0, 2.0, 2.0))
        kept.SetMetaData("PatientName", plant.name())
        kept.SetMetaData(plant.name(), "a key")
        SimpleITK.WriteImage(kept, str(folder / f"{plant.name()}.{suffix}"))


def plant_report(folder: Path, plant: Planter) -> list[str]:
    place = folder / plant.name() / plant.name()
    place.mkdir(parents=True)
    who, mrn, doctor, signed, history = plant.name(), plant.number(), plant.name(), plant.name(), plant.name()
    phone, born, colleague = plant.phone(), "04/17/1961", plant.name()
    plant.names.append(born)
    stem, other = plant.name(), plant.name()
    for number in range(12):
        (place / f"{stem}_{number}.txt").write_text(
            f"PATIENT NAME: {who}\nMRN: {mrn}\nHISTORY: {history} fell.\n"
            f"FINDINGS: Seen with Dr. {doctor} on {born}, case {number}. Heart size is normal. No effusion is seen.\n"
            f"IMPRESSION: Stable case number {number}. Call {phone}. Discussed with Doctor {colleague}.\n"
            f"Electronically signed by {signed}\n"
        )
    (folder / f"{plant.name()}.txt").write_text(f"{who} wrote a note that is no report\n")
    (folder / f"{plant.name()}.txt").write_bytes(f"FINDINGS: {other} \xff\xfe".encode("latin-1"))
    (folder / f"{plant.name()}.pdf").write_bytes(plant.name().encode())
    subject, mail, secret, column = plant.name(), plant.name(), plant.name(), plant.name()
    named, record = plant.name(), plant.number("MRN-{}")
    rows = [
        {"uid": f"{subject}{n}", "subject": f"{subject}{n}", "person": named, column: secret, "label": "ill",
         "impression": f"{mail}{n}@mail.org says {named} with {record} is stable in row {n} of {{}}."}
        for n in range(12)
    ]  # fmt: skip
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        with (folder / f"{plant.name()}.{suffix}").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows({**row, "impression": row["impression"].format(suffix)} for row in rows)
    lines = [json.dumps({**row, "impression": row["impression"].format("jsonl")}) for row in rows]
    (folder / f"{plant.name()}.jsonl").write_text("\n".join(lines) + "\n")
    columns = [{**row, "impression": row["impression"].format("parquet")} for row in rows]
    pq.write_table(pa.Table.from_pylist(columns), folder / f"{plant.name()}.parquet")
    (folder / f"{plant.name()}.csv").write_text(f"{plant.name()},{plant.name()}\n{plant.name()},x\n")
    return ["--id-column", "uid", "--name-column", "person", "--vocabulary", "512"]


def plant_xray(folder: Path, plant: Planter) -> list[str]:
    place = folder / plant.name() / plant.name()
    place.mkdir(parents=True)
    picture = smooth(24, 20)
    _dicom(place / f"{plant.name()}.dcm", plant, "CR", picture, 1, ViewPosition="PA")
    _dicom(place / plant.name(), plant, "CR", picture.T.copy(), 2, ViewPosition=plant.name()[:16])
    odd = {"Modality": plant.name()[:16], "ImageType": [plant.name(), plant.name()]}
    _dicom(place / f"{plant.name()}.dcm", plant, "CR", picture, 3, **odd)
    cut = place / f"{plant.name()}.dcm"
    _dicom(cut, plant, "CR", picture, 4, PhotometricInterpretation="MONOCHROME1")
    cut.write_bytes(cut.read_bytes()[:-400])
    plant.names.pop()  # the one at the file's end is cut off with it
    _dicom(place / f"{plant.name()}.dcm", plant, "CR", picture, 5, PhotometricInterpretation=plant.name()[:16])
    _images(folder / plant.name(), plant, (picture >> 4).astype(np.uint8))
    return ["--size", "16"]


def plant_ct(folder: Path, plant: Planter) -> list[str]:
    _series(folder / plant.name() / plant.name(), plant, "CT", 1)
    place = folder / plant.name()
    place.mkdir()
    odd = {"Modality": plant.name()[:16]}
    _dicom(place / plant.name(), plant, "CT", smooth(16, 16), 3, **odd)
    units = {
        "RescaleType": plant.name()[:16], "RescaleSlope": "1", "RescaleIntercept": "0", "PixelSpacing": ["1", "1"],
        "ImagePositionPatient": ["0", "0", "0"], "ImageOrientationPatient": ["1", "0", "0", "0", "1", "0"],
    }  # fmt: skip
    _dicom(place / plant.name(), plant, "CT", smooth(16, 16), 4, **units)
    _volumes(folder / plant.name(), plant)
    return ["--window", "8,12,12"]


def plant_mri(folder: Path, plant: Planter) -> list[str]:
    _series(folder / plant.name() / plant.name(), plant, "MR", 1)
    _volumes(folder / plant.name(), plant)
    return ["--window", "8,12,12"]


def plant_pathology(folder: Path, plant: Planter) -> list[str]:
    place = folder / plant.name() / plant.name()
    place.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(-25, 25, (256, 256, 1))
    tissue = np.clip(np.array((220, 120, 180)) + noise, 0, 255).astype(np.uint8)
    green = np.broadcast_to(np.array(LABEL_GREEN, np.uint8), (96, 128, 3)).copy()
    words = "|".join(f"{key} = {plant.name()}" for key in ("User", "ScanScope ID", "Filename", "Title", "Barcode"))
    about = f"Aperio Image Library v11.2.1\r\n256x256 (64x64) Q=70|AppMag = 20|MPP = 0.5|{words}"
    with tifffile.TiffWriter(place / f"{plant.name()}.svs") as writer:
        writer.write(tissue, tile=(64, 64), photometric="rgb", compression="jpeg", description=about, metadata=None)
        thumb = f"Aperio Image Library v11.2.1\r\n256x256 -> 64x64 - |{plant.name()}"
        writer.write(tissue[::4, ::4], photometric="rgb", compression="jpeg", description=thumb, metadata=None)
        for kind in ("label", "macro"):
            text = f"Aperio Image Library v11.2.1\r\n{kind} 128x96|{plant.name()}"
            writer.write(green, photometric="rgb", compression="lzw", description=text, metadata=None, subfiletype=1)
    tifffile.imwrite(
        folder / f"{plant.name()}.tiff", tissue[::-1], tile=(64, 64), photometric="rgb", metadata=None,
        resolution=(20000, 20000), resolutionunit="CENTIMETER", description=plant.name(), software=plant.name(),
        extratags=[(315, "s", 0, plant.name(), True)],
    )  # fmt: skip
    _images(folder / "tiles" / plant.name(), plant, tissue[:64, :64])
    (folder / f"{plant.name()}.svs").write_bytes(f"not a slide of {plant.name()}".encode() * 40)
    return ["--size", "32", "--tiles", "tiles"]


PLANT: dict[str, Callable[[Path, Planter], list[str]]] = {
    "report": plant_report, "xray": plant_xray, "ct": plant_ct, "mri": plant_mri, "pathology": plant_pathology,
}  # fmt: skip


def expand(root: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of all below `root` as it lies there, and once more with whatever is packed unpacked."""
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        yield f"{name} (name)", name.encode(errors="surrogateescape")
        if path.is_file():
            yield from unpack(name, path.read_bytes())
        elif (path / "zarr.json").is_file():
            node = zarr.open(path, mode="r")
            for key, array in node.arrays() if isinstance(node, zarr.Group) else ():
                values = np.asarray(array[:])
                yield f"{name}/{key} (decoded)", values.tobytes()
                if values.dtype.kind in "OTUS":
                    yield f"{name}/{key} (text)", "\n".join(map(str, values.ravel())).encode()
                yield f"{name}/{key} (attributes)", json.dumps(dict(array.attrs)).encode()


def unpack(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """The content and, by what it is, what is packed inside it: members, rows, metadata, embedded pictures."""
    yield name, content
    if name.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive.getmembers():
                yield (
                    f"{name}:{member.name} (header)",
                    repr(member.get_info()).encode() + repr(member.pax_headers).encode(),
                )
                file = archive.extractfile(member)
                yield from unpack(f"{name}:{member.name}", file.read() if file else b"")
    elif content[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(content))
        yield f"{name} (rows)", str(table.to_pylist()).encode() + str(table.schema.metadata).encode()
    elif content[:2] == b"\x1f\x8b":
        yield from unpack(f"{name} (unzipped)", gzip.decompress(content))
    elif content[:8] == b"\x89PNG\r\n\x1a\n" or content[:3] == b"\xff\xd8\xff":
        image = Image.open(io.BytesIO(content))
        image.load()
        yield f"{name} (metadata)", repr(image.info).encode() + repr(dict(image.getexif())).encode()
        yield f"{name} (pixels)", image.tobytes()
    for found in re.finditer(rb"base64,([A-Za-z0-9+/=]+)", content):
        yield from unpack(f"{name} (embedded at {found.start()})", base64.b64decode(found[1]))
    for found in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", content):
        # A staged file or a picture may hold a deflated part anywhere.
        try:
            inside = zlib.decompressobj().decompress(content[found.start() :], 1 << 20)
        except zlib.error:
            continue
        yield f"{name} (inflated at {found.start()})", inside


def leaks(parts: Iterator[tuple[str, bytes]], names: list[str]) -> list[tuple[str, str]]:
    """(name, where) of each planted name found, in any letter case and in the usual encodings."""
    wanted = {
        form: name for name in names for text in {name, name.lower(), name[::-1].lower()} for form in
        (text.lower().encode(), text.lower().encode("utf-16-le"), text.lower().encode("utf-16-be"))
    }  # fmt: skip
    # One look for the few beginnings spares nearly all contents the hundreds of forms.
    beginnings = {form[:8] for form in wanted}
    found = []
    for where, content in parts:
        small = content.lower()
        if any(beginning in small for beginning in beginnings):
            found += [(name, where) for form, name in wanted.items() if form in small]
    return found


class Privacy:
    """What the test beside this file uses (test modules cannot import each other)."""

    Planter = Planter
    plant = PLANT
    expand = staticmethod(expand)
    unpack = staticmethod(unpack)
    leaks = staticmethod(leaks)
    green = LABEL_GREEN


@pytest.fixture(scope="session")
def privacy() -> type[Privacy]:
    return Privacy
