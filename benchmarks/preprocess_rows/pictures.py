"""X-ray: against decoding, resizing and encoding alone, on as many processes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from scipy import ndimage

from benchmarks.preprocess_rows.measure import (
    Command,
    Remark,
    Row,
    Setting,
    in_turns,
    pool,
    pool_seconds,
    start_seconds,
    where_time_goes,
)

TARGET, SCALING_TARGET = 1.3, 1.8
SHORT_SIDE = 256
_CHUNKS = 8


def rows(setting: Setting) -> Iterator[Row | Remark]:
    """The rows of X-ray: small JPEGs, large DICOM files of 12 bits, large PNGs of 16 bits."""
    side, count = (300, 8) if setting.quick else (2000, 80)
    real = setting.real("xray/kermany224")
    if real is not None:
        pictures = sorted(path for path in real.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        yield Remark(f"X-ray inputs: {len(pictures)} real JPEGs of 224 px")
    else:
        pictures = _make(setting.made("jpegs"), "jpg", 40 if setting.quick else 3000, 224)
        yield Remark(f"X-ray inputs: {len(pictures)} made JPEGs of 224 px")
    yield Remark(
        f"X-ray inputs: {count} made DICOM files (12 bits, uncompressed) and {count // 2} PNGs (16 bits) of {side} px"
    )
    for title, files in (
        ("JPEG 224 px", pictures),
        (f"DICOM {side} px", _make(setting.made("dicom"), "dcm", count, side)),
        (f"PNG {side} px, 16 bits", _make(setting.made("png"), "png", count // 2, side)),
    ):
        yield from _compared(setting, title, real if real is not None and files is pictures else files[0].parent, files)


def _compared(setting: Setting, title: str, folder: Path, files: list[Path]) -> Iterator[Row | Remark]:
    """Ours looks for the files in `folder` itself, the plain way is told them."""
    scratch = setting.made(f"xray {title}")
    command = Command("xray", (folder,), scratch)
    works = {
        "two": command.with_workers(2),
        "one": command.with_workers(1),
        "plain": lambda: _in_pool(files),
        "ours here": command.here(),
        "plain here": lambda: plain(files),
    }
    times = in_turns(works, setting.repeats, tolerance=0.01)
    start = {n: start_seconds(setting, "xray", n, lambda folder: _make(folder, "jpg", 4, 32)) for n in (1, 2)}
    bare = pool_seconds(2, plain, [], setting.repeats)
    yield times.row(
        f"X-ray {title}, in process: times longer than plain", "files/s", "ours here", "plain here", target=TARGET,
        slower=True,
    )  # fmt: skip
    yield times.row(
        f"X-ray {title}, 2 workers: times longer than plain", "files/s", "two", "plain", slower=True,
        start=(start[2], bare),
    )  # fmt: skip
    yield times.row(
        f"X-ray {title}, 2 workers : 1", "files/s", "two", "one", target=SCALING_TARGET, start=(start[2], start[1])
    )
    yield Remark(f"X-ray {title}: {where_time_goes(command.here())}")


def _in_pool(files: list[Path]) -> int:
    with pool(2) as workers:
        return sum(workers.map(plain, [files[first::_CHUNKS] for first in range(_CHUNKS)]))


def plain(files: Sequence[Path]) -> int:
    """Decode, bring to 8 bits by one multiplication, resize and encode; nothing is written."""
    for path in files:
        if path.suffix == ".dcm":
            dataset = pydicom.dcmread(path)
            image = Image.fromarray(_eight_bits(dataset.pixel_array, float(dataset.WindowWidth)))
        else:
            with Image.open(path) as opened:
                image = opened.convert("L") if opened.mode in ("L", "RGB") else _shallow(opened)
        scale = SHORT_SIDE / min(image.size)
        if scale < 1:
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
        image.save(io.BytesIO(), "JPEG", quality=95)
    return len(files)


def _shallow(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    return Image.fromarray(_eight_bits(values, float(values.max())))


def _eight_bits(values: np.ndarray[Any, Any], top: float) -> np.ndarray[Any, Any]:
    return np.asarray(np.clip(values * np.float32(255 / top), 0, 255).astype(np.uint8))


def _make(folder: Path, suffix: str, count: int, side: int) -> list[Path]:
    """`count` smooth, noisy pictures that differ."""
    rng = np.random.default_rng(side)
    coarse = ndimage.zoom(rng.random((2, 12, 12)), (1, side / 12, side / 12), order=1)
    noise = rng.normal(0, 0.01, (side, side))
    files = []
    for number in range(count):
        share = (number + 1) / (count + 1)
        image = np.clip(share * coarse[0] + (1 - share) * coarse[1] + noise, 0, 1)
        files.append(folder / f"{number:05d}.{suffix}")
        if suffix == "dcm":
            _write_dicom((image * 4095).astype(np.uint16), number, files[-1])
        elif suffix == "png":
            Image.fromarray((image * 65535).astype(np.uint16)).save(files[-1], compress_level=3)
        else:
            Image.fromarray((image * 255).astype(np.uint8)).save(files[-1], "JPEG", quality=90)
    return files


def _write_dicom(values: np.ndarray[Any, Any], number: int, path: Path) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.1.2.{number + 1}")
    dataset.Modality, dataset.PatientID, dataset.ImageType = "DX", f"made{number}", ["ORIGINAL", "PRIMARY"]
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = values.tobytes()
    dataset.save_as(path, enforce_file_format=True)
