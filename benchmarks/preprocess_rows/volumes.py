"""CT and MRI against the plain way in two steps: cubic to 1 mm, then linear to the window, a .nii.gz a window."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from scipy import ndimage

from benchmarks.preprocess_rows.measure import (
    Command,
    Remark,
    Row,
    Setting,
    in_turns,
    peak_megabytes,
    start_seconds,
    where_time_goes,
)
from preprocess.conversion import InputFile, Unit
from preprocess.modalities import ct as ct_modality

itk: Any = SimpleITK
Array = np.ndarray[Any, Any]

WINDOW = (16, 192, 192)
TARGET, SCALING_TARGET, FIDELITY_TARGET = 20.0, 1.8, 10.0
_HU = (-1024, 1024)
_PLAIN = "plain"
"""The folder in which the plain way's windows are kept for comparing values."""
_NUMBERS = itertools.count()


def rows(setting: Setting, modality: str) -> Iterator[Row | Remark]:
    """The rows of `ct` or of `mri`."""
    # Both ways get one core: whole sets are converted by many processes.
    itk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    yield from _ct(setting) if modality == "ct" else _mri(setting)


def _ct(setting: Setting) -> Iterator[Row | Remark]:
    real = setting.real("ct/covid_ct_md")
    if real is None:
        files = [_made_volume(setting, "ct volumes", n, (48, 96, 96), (2.0, 2.0, 2.0)) for n in range(2)]
        series = write_series(setting.made("ct series"), 20, 160, 2.0)
        yield Remark("CT inputs: made (NIfTI 48 x 96 x 96, DICOM 20 x 160 x 160, uncompressed, 2 mm)")
    else:
        files = sorted((real / "nifti160").glob("*.nii.gz"))
        series = real / "dicom" / "P001"
        yield Remark(f"CT inputs: real ({len(files)} NIfTI of 160 px and 2 mm; DICOM P001, 40 slices, JPEG lossless)")
    slices, side = (20, 128) if setting.quick else (100, 512)
    bare = write_series(setting.made("ct uncompressed"), slices, side, 1.0)
    yield Remark(f"CT from bare DICOM: made, {slices} slices of {side} px and 1 mm, uncompressed")
    yield from _compared(setting, "ct", "CT from NIfTI", files[:1], files)
    yield from _compared(setting, "ct", "CT from DICOM", [series])
    yield from _compared(setting, "ct", "CT from bare DICOM", [bare])
    for title, path in (("NIfTI", files[0]), ("DICOM", series)):
        value = _difference(setting, path, setting.folder / f"CT-from-{title}" / _PLAIN)
        yield Row(f"CT from {title}: mean |dHU| to two steps", "HU", value, target=FIDELITY_TARGET, at_most=True)
    yield from _scaling(setting, "ct", (120, 160, 160), (2.0, 2.0, 2.0))
    yield _headers(setting)
    yield from _memory(setting)


def _mri(setting: Setting) -> Iterator[Row | Remark]:
    shape, spacing = ((40, 80, 80), (1.0, 1.4, 1.4)) if setting.quick else ((160, 256, 256), (1.0, 0.9375, 0.9375))
    made = [_made_volume(setting, "mri volumes", n, shape, spacing) for n in range(2 if setting.quick else 4)]
    yield Remark(f"MRI inputs: made volumes of {shape[0]} x {shape[1]} x {shape[2]} (int16, NIfTI)")
    yield from _compared(setting, "mri", "MRI", made[:1], made)
    scratch = setting.made("mri linear")
    command = Command("mri", (made[0],), scratch)
    works = {"ours": command.here(), "plain": lambda: plain_mri(made[0], scratch, cubic=False)}
    times = in_turns(works, setting.repeats)
    yield times.row("MRI, in process, plain without the cubic step", "windows/s", "ours", "plain")
    hippocampus = setting.real("mri/msd_hippocampus/imagesTr")
    if hippocampus is not None:
        small = sorted(hippocampus.glob("*.nii.gz"))[:12]
        yield from _compared(setting, "mri", "MRI, 12 small real volumes", small)
    yield from _scaling(setting, "mri", shape, spacing)


def _compared(
    setting: Setting, modality: str, title: str, paths: list[Path], all_paths: list[Path] | None = None
) -> Iterator[Row | Remark]:
    """One process each: converting and storing alone, and the whole command, against the plain way.

    The command may be given more files (`all_paths`), for which the plain way would take minutes: rates are compared.
    """
    scratch = setting.made(title)
    command = Command(modality, tuple(paths), scratch)
    whole = Command(modality, tuple(all_paths or paths), scratch)
    plain = plain_ct if modality == "ct" else plain_mri
    start = _start(setting, modality, 1)
    Command(modality, tuple(_nothing(setting.made(f"{title} first"), modality)), scratch).here()()  # its imports
    written = scratch / _PLAIN
    written.mkdir()
    works = {"ours": command.here(), "plain": lambda: sum(plain(path, written) for path in paths)}
    if modality == "ct":
        works["scripts"] = lambda: sum(_write(plain_ct_windows(path, scratch), scratch) for path in paths)
    works["command"] = whole.with_workers(1)
    # A time of the plain ways is the sum of many seconds, and repeats of it would take most of a run.
    times = in_turns(works, setting.repeats, only=("ours", "plain"), once=("plain", "scripts"))
    yield times.row(f"{title}, in process", "windows/s", "ours", "plain", target=TARGET)
    if modality == "ct":
        yield times.row(f"{title}, in process, plain with a file between", "windows/s", "ours", "scripts")
    files = f"{len(all_paths)} files" if all_paths else "the same"
    yield times.row(f"{title}, command with 1 worker, {files}", "windows/s", "command", "plain", start=(start, 0.0))
    yield Remark(f"{title}: {where_time_goes(command.here())}")


def _start(setting: Setting, modality: str, workers: int) -> float:
    return start_seconds(setting, modality, workers, lambda folder: _nothing(folder, modality))


def _nothing(folder: Path, modality: str) -> list[Path]:
    return [_volume(folder / f"{n}.nii.gz", n, (12, 16, 16), (2.0, 2.0, 2.0), modality) for n in range(2)]


def _scaling(setting: Setting, modality: str, shape: tuple[int, int, int], spacing: Any) -> Iterator[Row]:
    """Enough volumes that starting the processes is a small part; none like another, for duplicates are dropped."""
    count = 2 if setting.quick else 20
    paths = [_made_volume(setting, f"{modality} scaling", n, shape, spacing) for n in range(count)]
    command = Command(modality, tuple(paths), setting.made(f"{modality} scaling scratch"))
    works = {"two": command.with_workers(2), "one": command.with_workers(1)}
    start = (_start(setting, modality, 2), _start(setting, modality, 1))
    title = f"{modality.upper()}, {count} made volumes, 2 workers : 1"
    yield in_turns(works, setting.repeats).row(title, "windows/s", "two", "one", target=SCALING_TARGET, start=start)


def _headers(setting: Setting) -> Row:
    """Header reading: `--dry-run` over single slices of 512 x 512."""
    folder = write_series(setting.made("headers"), 60 if setting.quick else 1000, 64 if setting.quick else 512, 1.0)
    command = Command("ct", (folder,), setting.made("headers scratch"))
    works = {"two": command.with_workers(2, "--dry-run"), "one": command.with_workers(1, "--dry-run")}
    start = (_start(setting, "ct", 2), _start(setting, "ct", 1))
    title = "DICOM headers, 2 workers : 1 (--dry-run)"
    row = in_turns(works, setting.repeats).row(title, "files/s", "two", "one", start=start)
    shutil.rmtree(folder)
    return row


def _memory(setting: Setting) -> Iterator[Row | Remark]:
    slices = 60 if setting.quick else 1000
    side = 128 if setting.quick else 512
    folder = write_series(setting.made("memory"), slices, side, 1.0)
    worker, leader = peak_megabytes(Command("ct", (folder,), setting.made("memory scratch")))
    yield Row(f"CT of {slices} slices of {side} px: peak of the worker", "MB", worker)
    yield Remark(f"CT of {slices} slices: the leading process had {leader:.0f} MB at most")
    shutil.rmtree(folder)


def plain_ct(path: Path, folder: Path) -> int:
    """Clip, cubic to 1 mm, crop, then each window linear to its size and into a file. Returns the number of windows."""
    return _write(plain_ct_windows(path), folder)


def plain_ct_windows(path: Path, between: Path | None = None) -> Iterator[Array]:
    """The windows (16, 192, 192) int16 of the plain way, corners aligned in both steps.

    With a folder `between` the 1 mm volume goes through a .nii.gz in it, as between two scripts.
    """
    image = read_plainly(path)
    fine = np.clip(_cubic(np.clip(itk.GetArrayFromImage(image), *_HU).astype(np.float32), image), *_HU)
    if between is not None:
        fine = itk.GetArrayFromImage(itk.ReadImage(str(_write_file(np.rint(fine).astype(np.int16), between))))
    for axis in (1, 2):
        if fine.shape[axis] > 320:
            kept = round(0.8 * fine.shape[axis])
            first = (fine.shape[axis] - kept) // 2
            fine = np.take(fine, range(first, first + kept), axis=axis)
    for first in _starts(len(fine), 24, 12):
        yield np.rint(_linear(fine[first : first + 24])).astype(np.int16)


def plain_mri(path: Path, folder: Path, *, cubic: bool = True) -> int:
    """Cubic to 1 mm, ends dropped, then each window linear to its size, z-scored and into a file."""
    image = read_plainly(path)
    values = itk.GetArrayFromImage(image).astype(np.float32)
    fine = _cubic(values, image) if cubic else values
    dropped = int(0.1 * len(fine))
    fine = fine[dropped : len(fine) - dropped]

    def windows() -> Iterator[Array]:
        for first in _starts(len(fine), 16, 8):
            window = _linear(fine[first : first + 16])
            window = np.clip(window, *np.percentile(window, [0.2, 99.8]))
            yield ((window - window.mean()) / window.std()).astype(np.float32)

    return _write(windows(), folder)


def read_plainly(path: Path) -> Any:
    """A NIfTI file, or the series in a folder, turned to (z, y, x) toward superior, posterior and left."""
    if path.is_dir():
        reader = itk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        return itk.DICOMOrient(reader.Execute(), "LPS")
    return itk.DICOMOrient(itk.ReadImage(str(path)), "LPS")


def _cubic(values: Array, image: Any) -> Array:
    spacing = image.GetSpacing()[::-1]
    counts = [round((n - 1) * step) + 1 for n, step in zip(values.shape, spacing, strict=True)]
    zoom = [count / n for count, n in zip(counts, values.shape, strict=True)]
    return np.asarray(ndimage.zoom(values, zoom, order=3, mode="nearest", grid_mode=False))


def _linear(window: Array) -> Array:
    return np.asarray(ndimage.zoom(window, [n / m for n, m in zip(WINDOW, window.shape, strict=True)], order=1))


def _starts(count: int, length: int, stride: int) -> list[int]:
    starts = list(range(0, max(count - length, 0) + 1, stride))
    return starts if starts[-1] + length >= count else [*starts, count - length]


def _write(windows: Iterator[Array], folder: Path) -> int:
    files = [_write_file(window, folder) for window in windows]
    return len(files)


def _write_file(values: Array, folder: Path) -> Path:
    path = folder / f"{next(_NUMBERS)}.nii.gz"
    itk.WriteImage(itk.GetImageFromArray(values), str(path))
    return path


def _difference(setting: Setting, path: Path, plain: Path) -> float:
    """Mean over the windows of the mean |dHU| between ours and the plain way's, whose files lie in `plain`."""
    settings = Command("ct", (path,), setting.made(f"difference {path.name}")).job().settings
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    inputs = tuple(InputFile(file, file.name) for file in files)
    unit = Unit(inputs, {"source": "series" if path.is_dir() else "file"})
    pieces = ct_modality.convert(unit, settings).pieces
    windows = sorted(plain.iterdir(), key=lambda file: int(file.name.partition(".")[0]))
    pairs = zip(pieces, (itk.GetArrayFromImage(itk.ReadImage(str(file))) for file in windows), strict=True)
    return float(np.mean([np.abs(np.subtract(piece.data, window, dtype=np.float32)).mean() for piece, window in pairs]))


def _made_volume(setting: Setting, name: str, number: int, shape: tuple[int, int, int], spacing: Any) -> Path:
    folder = setting.folder / name.replace(" ", "-")
    folder.mkdir(exist_ok=True)
    return _volume(folder / f"{number}.nii.gz", number, shape, spacing, name.split()[0])


def _volume(path: Path, number: int, shape: tuple[int, ...], spacing: Any, modality: str) -> Path:
    values = _body(np.random.default_rng(number), shape)
    image = itk.GetImageFromArray(values if modality == "ct" else values + 1024)
    image.SetSpacing([float(step) for step in spacing[::-1]])
    itk.WriteImage(image, str(path))
    return path


def _body(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """A noisy, rippled cylinder in air: int16 HU (z, y, x)."""
    z, y, x = np.ogrid[tuple(slice(-1, 1, complex(n)) for n in shape)]
    inside = (x / 0.8) ** 2 + (y / 0.65) ** 2 < 1
    tissue = 40 + 250 * np.sin(9 * x + 4 * z + rng.random()) * np.cos(7 * y) + rng.normal(0, 15, shape)
    return np.where(inside, tissue, -1000 + rng.normal(0, 8, shape)).astype(np.int16)


def write_series(folder: Path, slices: int, side: int, step_mm: float) -> Path:
    """An uncompressed CT series of `slices` slices of `side` px, one file a slice."""
    rng = np.random.default_rng(slices)
    planes = _body(rng, (min(slices, 20), side, side))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.Modality, dataset.PatientID = "CT", "made"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.826.0.1.1", "1.2.826.0.1.1.1"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows = dataset.Columns = side
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelSpacing = [360 / side, 360 / side]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for number, plane in zip(range(slices), itertools.cycle(planes), strict=False):
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.826.0.1.1.1.{number + 1}")
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient = [-180, -180, round(number * step_mm, 3)]
        dataset.PixelData = (plane + np.int16(number % 7)).tobytes()
        dataset.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)
    return folder
