"""What this machine has and lacks for medcoss, and how to get what is missing."""

from __future__ import annotations

import importlib
import logging
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

_LOW_DISK_BYTES = 20 * 2**30
_FEW_OPEN_FILES = 1024

_PACKAGES = (
    # import name, distributions that provide it, what for, needed at all
    ("torch", ("torch",), "training", True),
    ("torchvision", ("torchvision",), "timm's operators", True),
    ("timm", ("timm",), "the encoder's blocks", True),
    ("deepspeed", ("deepspeed",), "training on several devices", True),
    ("nvidia.dali", ("nvidia-dali-cuda130",), "decoding on a GPU; without it the CPU decodes", False),
    ("faiss", ("faiss-gpu-cu12", "faiss-cpu"), "choosing rehearsal buffers", True),
    ("zarr", ("zarr",), "volume shards", True),
    ("numcodecs", ("numcodecs",), "volume shards", True),
    ("google_crc32c", ("google-crc32c",), "checksums", True),
    ("tokenizers", ("tokenizers",), "text", True),
    ("pydicom", ("pydicom",), "reading DICOM", True),
    ("pylibjpeg", ("pylibjpeg",), "compressed DICOM", True),
    ("libjpeg", ("pylibjpeg-libjpeg",), "DICOM in JPEG and JPEG-LS", True),
    ("openjpeg", ("pylibjpeg-openjpeg",), "DICOM in JPEG 2000", True),
    ("rle", ("pylibjpeg-rle",), "DICOM in RLE", True),
    ("SimpleITK", ("SimpleITK",), "NIfTI and resampling", True),
    ("openslide", ("openslide-python",), "whole slides", True),
    ("tifffile", ("tifffile",), "tiled TIFF", True),
    ("imagecodecs", ("imagecodecs",), "compressed TIFF", True),
    ("monai", ("monai",), "segmentation heads and metrics", True),
)
_MODULE_BEFORE = {"timm": "medcoss.model", "torchvision": "medcoss.model"}
"""Modules that mend a package before it can be imported."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `state` is ok, note (works, but worth knowing) or missing (something will not work)."""

    name: str
    state: str
    detail: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        """A JSON-ready copy."""
        return asdict(self)


def examine(directory: Path = Path()) -> list[Finding]:
    """Look at this machine; `directory` is where shards and runs would go. Imports everything, so it takes seconds."""
    # Some libraries greet on import, even on stdout, where `--json` must stand alone.
    logging.disable(logging.WARNING)
    try:
        return [*_machine(directory), *_packages(), *_gpu(), *_faiss(), *_checksums()]
    finally:
        logging.disable(logging.NOTSET)


def as_text(findings: list[Finding]) -> str:
    """One line a finding, and its mend on the next."""
    signs = {"ok": "ok      ", "note": "note    ", "missing": "MISSING "}
    lines = []
    for finding in findings:
        lines.append(f"{signs[finding.state]}{finding.name:16s} {finding.detail}")
        if finding.mend:
            lines.append(f"{'':24s} -> {finding.mend}")
    return "\n".join(lines) + "\n"


def _machine(directory: Path) -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", version)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("cores, memory", "ok", f"{len(os.sched_getaffinity(0))} usable cores, {memory / 2**30:.0f} GiB")
    free = shutil.disk_usage(directory).free
    low = free < _LOW_DISK_BYTES
    mend = "put shards and runs on a larger disk (--out, --run)" if low else ""
    yield Finding("disk", "note" if low else "ok", f"{free / 2**30:.0f} GiB free in {directory.resolve()}", mend)
    shared = Path("/dev/shm")
    if shared.is_dir():
        yield Finding("shared memory", "ok", f"{shutil.disk_usage(shared).total / 2**30:.1f} GiB in /dev/shm")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft < _FEW_OPEN_FILES
    yield Finding("open files", "note" if few else "ok", f"{soft} of {hard}", "ulimit -n 4096" if few else "")


def _packages() -> Iterator[Finding]:
    for module, distributions, purpose, needed in _PACKAGES:
        problem = _import_problem(module)
        found = [f"{name} {version}" for name in distributions if (version := _version(name))]
        if problem is None:
            yield Finding(module, "ok", f"{', '.join(found) or 'installed'}: {purpose}")
            continue
        state = "missing" if needed else "note"
        mend = f"pip install {distributions[-1]}" if not found else f"pip install --force-reinstall {distributions[-1]}"
        what = "not installed" if not found else f"{found[0]} is installed but does not import ({problem})"
        yield Finding(module, state, f"{what}: {purpose}", mend)


def _import_problem(module: str) -> str | None:
    """Why a module does not import, in one line; None if it does. Libraries fail on import in many ways."""
    try:
        if module in _MODULE_BEFORE:
            importlib.import_module(_MODULE_BEFORE[module])
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError, AttributeError, ValueError) as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> Iterator[Finding]:
    torch = _module("torch")
    if torch is None:
        return
    if not torch.cuda.is_available():
        built = "torch is built for CUDA but sees no GPU" if torch.version.cuda else "torch is built for the CPU"
        on_gpu = "check the driver (nvidia-smi) and the container's --gpus"
        mend = on_gpu if torch.version.cuda else "on a GPU machine: pip install '.[cuda]'"
        yield Finding("gpu", "note", f"none: {built}; training runs on the CPU", mend)
        return
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        detail = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, bf16 {torch.cuda.is_bf16_supported()}"
        yield Finding(f"gpu {number}", "ok", detail)


def _faiss() -> Iterator[Finding]:
    faiss = _module("faiss")
    if faiss is None:
        return
    count: Callable[[], int] | None = getattr(faiss, "get_num_gpus", None)
    gpus = count() if count else 0
    both = [name for name in ("faiss-cpu", "faiss-gpu-cu12") if _version(name)]
    if len(both) > 1:
        detail = "faiss-cpu and faiss-gpu-cu12 overwrite each other"
        yield Finding("faiss device", "missing", detail, "pip uninstall both, then install one")
    else:
        yield Finding("faiss device", "ok", f"{gpus} GPU(s)" if gpus else "CPU")


def _checksums() -> Iterator[Finding]:
    crc32c = _module("google_crc32c")
    if crc32c is None:
        return
    if crc32c.implementation == "c":
        yield Finding("crc32c", "ok", "compiled")
    else:
        yield Finding("crc32c", "note", "pure Python: reading is slow", "pip install --force-reinstall google-crc32c")


def _module(name: str) -> Any:
    return importlib.import_module(name) if _import_problem(name) is None else None
