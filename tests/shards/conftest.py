"""Small shard sets of every format."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medcoss.contracts import Field, Geometry, Kind, ModalitySpec
from medcoss.shards import Manifest, Sample, write_manifest, write_split

Build = Callable[..., Manifest]

SPECS = {
    "sequence": ModalitySpec(
        "note", Kind.SEQUENCE, Geometry((16,)), (Field("text", "utf8", "utf8"),), "clean text", vocabulary=50
    ),
    "image": ModalitySpec(
        "photo", Kind.IMAGE, Geometry((3, 32, 32)), (Field("image", "jpeg", "uint8", 1 / 255),), "8 bit / 255"
    ),
    "volume": ModalitySpec(
        "scan", Kind.VOLUME, Geometry((1, 4, 8, 8)), (Field("volume", "zarr", "int16", 1 / 1024),), "HU / 1024"
    ),
}


def make_samples(kind: str, split: str, count: int) -> list[Sample]:
    """Samples with contents that depend on split and number alone."""
    samples = []
    for number in range(count):
        rng = np.random.default_rng([len(split), number])
        data: bytes | np.ndarray[Any, Any]
        if kind == "sequence":
            data = f"Größe {number} of the {split}.".encode()
        elif kind == "image":
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (40, 44, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=95)
            data = buffer.getvalue()
        else:
            data = rng.integers(-1024, 1024, (4, 8, 8), dtype=np.int16)
        samples.append(
            Sample(
                f"{split}-{number:04d}",
                data,
                f"{split}-s{number // 2}",
                {"zeta": number % 2, "alpha": "a"},
                {"spacing_mm": 1.5},
            )
        )
    return samples


def build_set(directory: Path, kind: str, sizes: dict[str, int], shard_size: int = 4) -> Manifest:
    """Write a whole shard set."""
    spec, splits, files = SPECS[kind], {}, {}
    for split, count in sizes.items():
        splits[split], extra = write_split(
            directory, spec, split, iter(make_samples(kind, split, count)), count, shard_size
        )
        files |= extra
    return write_manifest(
        directory,
        spec=spec,
        splits=splits,
        files=files,
        settings={"size": (32, 32)},
        inputs={"read": 1, "written": 1, "skipped": 0, "failed": 0},
        salt_id="test",
    )


@pytest.fixture(params=["sequence", "image", "volume"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def build() -> Build:
    return build_set


@pytest.fixture
def samples_of() -> Callable[[str, str, int], list[Sample]]:
    return make_samples


@pytest.fixture
def specs() -> dict[str, ModalitySpec]:
    return SPECS
