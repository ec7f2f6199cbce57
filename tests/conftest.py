"""Fixtures shared by all tests."""

from __future__ import annotations

import hashlib
import io
import os
import signal
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from medcoss.contracts import SPECIAL_TOKENS, Augmentation, Field, Geometry, Kind, ModalitySpec
from medcoss.shards.manifest import SplitEntry
from medcoss.shards.reader import ShardSet
from medcoss.shards.writer import Sample, write_manifest, write_split

# A shell ignores Ctrl-C on behalf of what it starts in the background, and so would the commands under test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Root of the real raw data (MEDCOSS_DATA, or a `shared/data` folder beside the checkout); skips where absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("MEDCOSS_DATA", default))
    if not (root / "SOURCES.md").is_file():
        pytest.skip("real data is absent: set MEDCOSS_DATA to its folder")
    return root


class MakeSet(Protocol):
    """Writes a small shard set; see `make_set`."""

    def __call__(
        self,
        kind: Kind,
        samples: int = 40,
        *,
        name: str | None = None,
        shard_size: int = 8,
        classes: int = 2,
        size: tuple[int, ...] = (3, 32, 32),
        seed: int = 0,
        path: Path | None = None,
        test: int = 6,
    ) -> ShardSet: ...


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """A factory of shard sets with train, an empty val and test splits, whose classes (label `class`) differ visibly.

    Sequences hold up to 24 tokens of a 40-word vocabulary, images are JPEGs somewhat larger than `size` (C, H, W)
    stored with one channel, volumes are int16 (1, 8, 16, 16) with scale 1/1024.
    """

    def make(
        kind: Kind,
        samples: int = 40,
        *,
        name: str | None = None,
        shard_size: int = 8,
        classes: int = 2,
        size: tuple[int, ...] = (3, 32, 32),
        seed: int = 0,
        path: Path | None = None,
        test: int = 6,
    ) -> ShardSet:
        directory = path or tmp_path / (name or f"set-{kind}")
        directory.mkdir(parents=True)
        name = name or kind.value
        files: dict[str, str] = {}
        if kind is Kind.SEQUENCE:
            vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *_WORDS))}
            tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
            tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
            tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
            content = tokenizer.to_str().encode()
            (directory / "tokenizer.json").write_bytes(content)
            files["tokenizer.json"] = hashlib.sha256(content).hexdigest()
            spec = ModalitySpec(
                name, kind, Geometry((24,)), (Field("text", "utf8", "utf8"),), "words", vocabulary=len(vocabulary)
            )
        elif kind is Kind.IMAGE:
            spec = ModalitySpec(
                name, kind, Geometry(size), (Field("image", "jpeg", "uint8", 1 / 255),), "8 bit",
                Augmentation(crop_scale=(0.2, 1.0), horizontal_flip=0.5),
            )  # fmt: skip
        else:
            spec = ModalitySpec(
                name, kind, Geometry((1, 8, 16, 16)), (Field("volume", "zarr", "int16", 1 / 1024),), "HU / 1024",
                Augmentation(mirror=0.5),
            )  # fmt: skip
        splits: dict[str, SplitEntry] = {}
        for number, (split, count) in enumerate((("train", samples), ("val", 0), ("test", test))):
            rng = np.random.default_rng([seed, number])
            made = (
                Sample(
                    key=f"{name}-{split}-{index:05d}",
                    data=_content(kind, size, index % classes, rng),
                    subject=f"subject-{split}-{index // 2}",
                    labels={"class": f"class{index % classes}"},
                )
                for index in range(count)
            )
            splits[split], extra = write_split(directory, spec, split, made, count, shard_size)
            files |= extra
        write_manifest(
            directory, spec=spec, splits=splits, files=files, settings={"seed": seed}, salt_id="test",
            inputs={"read": samples + test, "written": samples + test, "skipped": 0, "failed": 0},
        )  # fmt: skip
        return ShardSet.open(directory)

    return make


_WORDS = tuple(f"{a}{b}" for a in "bdfklmnr" for b in ("ab", "el", "im", "on", "ur"))


def _content(kind: Kind, size: tuple[int, ...], label: int, rng: np.random.Generator) -> bytes | np.ndarray:
    if kind is Kind.SEQUENCE:
        words = rng.choice(len(_WORDS) // 2, int(rng.integers(3, 30))) * 2 + label % 2
        return " ".join(_WORDS[word] for word in words).encode()
    if kind is Kind.VOLUME:
        z, y, x = np.mgrid[:8, :16, :16] + rng.integers(0, 9, 3)[:, None, None, None]
        wave = np.sin((x + label * y) / 3 + z / 4) * 500 + rng.normal(0, 40, (8, 16, 16))
        return np.asarray(wave, np.int16)
    height, width = size[1] + 8, size[2] + 8 + int(rng.integers(0, 12))
    y, x = np.mgrid[:height, :width] + rng.integers(0, 30, 2)[:, None, None]
    wave = 127 + 90 * np.sin((x + label * y) / 4) + rng.normal(0, 10, (height, width))
    buffer = io.BytesIO()
    Image.fromarray(wave.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
