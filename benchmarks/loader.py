"""Samples a second through the whole loader, backend by backend: `python -m benchmarks.loader [--threads N]`.

Reading, checksums, decoding and augmentation are in it, training is not. Sets are made in a temporary folder, at the
demonstration's sizes and at the paper's. The last column is DALI's rate over the CPU backend's: `data.backend = "auto"`
rests on it.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer

from medcoss.config import DataConfig
from medcoss.contracts import SPECIAL_TOKENS, Augmentation, Field, Geometry, Kind, ModalitySpec
from medcoss.data.loader import TOKENIZER_FILE, Loader
from medcoss.data.order import Order, Source
from medcoss.shards.manifest import sha256_file
from medcoss.shards.reader import ShardSet
from medcoss.shards.writer import Sample, write_manifest, write_split

WORDS = "the heart size is normal lungs are clear no pleural effusion or pneumothorax seen stable mild opacity"
IMAGES = Augmentation(crop_scale=(0.2, 1.0), horizontal_flip=0.5)
BATCH = 64
SHARDS = 4


@dataclass(frozen=True)
class Case:
    """A set to be timed: `content` makes a sample's payload from a generator."""

    name: str
    kind: Kind
    shape: tuple[int, ...]
    field: Field
    augmentation: Augmentation
    samples: int
    content: Callable[[np.random.Generator], bytes | np.ndarray[Any, Any]]


def picture(side: int, channels: int, quality: int) -> Callable[[np.random.Generator], bytes]:
    """JPEGs of smooth shapes and noise, `side` pixels on the short side."""

    def content(rng: np.random.Generator) -> bytes:
        y, x = np.mgrid[:side, : side * 9 // 8]
        planes = [127 + 90 * np.sin((x + y * rng.random()) / 9) + rng.normal(0, 6, x.shape) for _ in range(channels)]
        pixels = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(
            buffer, "JPEG", quality=quality, subsampling=0
        )
        return buffer.getvalue()

    return content


def stack(*shape: int) -> Callable[[np.random.Generator], np.ndarray[Any, Any]]:
    """CT-like volumes: smooth, with noise in the low bits."""

    def content(rng: np.random.Generator) -> np.ndarray[Any, Any]:
        z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
        wave = 600 * np.sin(x / 17 + z / 5 + rng.random()) + 300 * np.cos(y / 11)
        return np.asarray(wave + rng.normal(0, 12, shape), np.int16)

    return content


def sentence(rng: np.random.Generator) -> bytes:
    """Some 80 words."""
    return " ".join(rng.choice(WORDS.split(), int(rng.integers(40, 120)))).encode()


JPEG, ZARR = Field("image", "jpeg", "uint8", 1 / 255), Field("volume", "zarr", "int16", 1 / 1024)
CASES = (
    Case("text, 64 tokens", Kind.SEQUENCE, (64,), Field("text", "utf8", "utf8"), Augmentation(), 1024, sentence),
    Case("text, 112 tokens", Kind.SEQUENCE, (112,), Field("text", "utf8", "utf8"), Augmentation(), 1024, sentence),
    Case("image, 64, grey", Kind.IMAGE, (3, 64, 64), JPEG, IMAGES, 512, picture(64, 1, 95)),
    Case("image, 64, colour", Kind.IMAGE, (3, 64, 64), JPEG, IMAGES, 512, picture(64, 3, 90)),
    Case("image, 256 to 224, grey", Kind.IMAGE, (3, 224, 224), JPEG, IMAGES, 256, picture(256, 1, 95)),
    Case("image, 256 to 224, colour", Kind.IMAGE, (3, 224, 224), JPEG, IMAGES, 256, picture(256, 3, 90)),
    Case("volume, 16x64x64", Kind.VOLUME, (1, 16, 64, 64), ZARR, Augmentation(mirror=0.5), 256, stack(16, 64, 64)),
    Case("volume, 16x192x192", Kind.VOLUME, (1, 16, 192, 192), ZARR, Augmentation(mirror=0.5), 96, stack(16, 192, 192)),
)


def make_set(case: Case, directory: Path) -> ShardSet:
    """Write the case's samples as a shard set of one split."""
    rng = np.random.default_rng(0)
    directory.mkdir()
    payloads = [case.content(rng) for _ in range(case.samples)]
    files: dict[str, str] = {}
    vocabulary = None
    if case.kind is Kind.SEQUENCE:
        tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = Whitespace()
        trainer = BpeTrainer(special_tokens=list(SPECIAL_TOKENS), vocab_size=500, show_progress=False)
        tokenizer.train_from_iterator([WORDS], trainer)
        tokenizer.save(str(directory / TOKENIZER_FILE))
        files[TOKENIZER_FILE] = sha256_file(directory / TOKENIZER_FILE)
        vocabulary = tokenizer.get_vocab_size()
    spec = ModalitySpec(
        "sample", case.kind, Geometry(case.shape), (case.field,), "synthetic", case.augmentation, vocabulary
    )
    samples = (Sample(f"{number:06d}", payload, f"s{number}") for number, payload in enumerate(payloads))
    entry, extra = write_split(directory, spec, "train", samples, case.samples, case.samples // SHARDS)
    counts = {"read": case.samples, "written": case.samples, "skipped": 0, "failed": 0}
    write_manifest(
        directory, spec=spec, splits={"train": entry}, files=files | extra, settings={}, inputs=counts, salt_id="none"
    )
    return ShardSet.open(directory)


def rate(shard_set: ShardSet, data: DataConfig, seconds: float) -> float:
    """Samples a second that a consumer who does nothing else gets, after a first batch that is not counted."""
    source = Source("sample", shard_set.manifest.fingerprint, shard_set.split("train").shard_sizes)
    order = Order([source], global_batch=BATCH, epochs=1000, seed=0, shuffle_window=data.shuffle_window)
    with Loader([shard_set], order, data, seed=0) as loader:
        next(loader)
        for _ in range(data.prefetch):  # what was prepared during the first wait is not this time's work
            next(loader)
        start, batches = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(loader)
            batches += 1
        return batches * BATCH / (time.perf_counter() - start)


def main() -> None:
    """Print the table, or with --json one object a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="decoding threads (data.workers; default 1)")
    parser.add_argument("--seconds", type=float, default=3.0, help="time a measurement (default 3)")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.json:
        print(f"{'set':<26} {'cpu/s':>8} {'dali/s':>8} {'dali : cpu':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES):
            shard_set = make_set(case, Path(folder, str(number)))
            cpu, dali = (
                rate(shard_set, DataConfig(backend=backend, workers=arguments.threads), arguments.seconds)
                for backend in ("cpu", "dali")
            )
            if arguments.json:
                print(json.dumps({"set": case.name, "cpu_per_s": cpu, "dali_per_s": dali, "ratio": dali / cpu}))
            else:
                print(f"{case.name:<26} {cpu:8.0f} {dali:8.0f} {dali / cpu:10.2f}", flush=True)


if __name__ == "__main__":
    main()
