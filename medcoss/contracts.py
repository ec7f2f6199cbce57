"""What shard sets, loaders and models agree on: kinds of sample, a modality's description, keys and errors.

Standard library only. `preprocess` writes these descriptions into manifests; `medcoss` reads them back and never needs
to know a modality's name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEID]")
"""Tokens every tokenizer of a sequence set holds, at ids 0 to 5 in this order."""

PAD_ID, UNK_ID, CLS_ID, SEP_ID, MASK_ID, DEID_ID = range(len(SPECIAL_TOKENS))

SPLITS = ("train", "val", "test")

_KEY = re.compile(r"[a-z0-9_-]{1,96}")
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")


class MedcossError(Exception):
    """A failure with a one-line message for the user: what is wrong, where, the mend.

    `exit_code` is the process's exit status: 1 for a failed run, 2 for wrong usage or configuration.
    """

    exit_code = 1


class UsageError(MedcossError):
    """Wrong command line, configuration or order of work; nothing was started."""

    exit_code = 2


class Kind(StrEnum):
    """The three shapes of sample the trainer knows; all behaviour branches on this and on nothing else."""

    SEQUENCE = "sequence"
    IMAGE = "image"
    VOLUME = "volume"


@dataclass(frozen=True)
class Geometry:
    """Shape of one sample as the model takes it.

    `shape` is (length,) for a sequence in tokens, (channels, height, width) for an image in pixels and
    (channels, depth, height, width) for a volume in voxels.
    """

    shape: tuple[int, ...]

    def check(self, kind: Kind) -> None:
        """Raise `UsageError` unless the shape has the rank `kind` needs and positive sizes."""
        rank = {Kind.SEQUENCE: 1, Kind.IMAGE: 3, Kind.VOLUME: 4}[kind]
        if len(self.shape) != rank or min(self.shape, default=0) < 1:
            raise UsageError(f"geometry {self.shape} does not fit kind {kind}: expected {rank} positive sizes")


@dataclass(frozen=True)
class Field:
    """How one member of a sample is stored.

    `encoding` is `utf8`, `jpeg`, `png` (tar members) or `zarr` (an array). A stored number v means v * scale + offset.
    """

    name: str
    encoding: str
    dtype: str
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Augmentation:
    """Training-time augmentation of a modality's samples; none is applied when embedding (METHOD, section 1).

    `crop_scale` is the range of RandomResizedCrop's area fraction, `horizontal_flip` and `mirror` are probabilities;
    `mirror` is the chance that a volume is mirrored at all, each axis then being flipped with probability 1/2.
    """

    crop_scale: tuple[float, float] | None = None
    horizontal_flip: float = 0.0
    mirror: float = 0.0


@dataclass(frozen=True)
class ModalitySpec:
    """Everything the trainer needs to know of a modality.

    `fields[0]` is the model's input. `normalisation` says in words what stored values mean. `vocabulary` is the
    tokenizer's number of tokens (sequences only). `version` counts changes of the modality's conversion.
    """

    name: str
    kind: Kind
    geometry: Geometry
    fields: tuple[Field, ...]
    normalisation: str
    augmentation: Augmentation = Augmentation()
    vocabulary: int | None = None
    version: int = 1

    def __post_init__(self) -> None:
        check_name(self.name)
        self.geometry.check(self.kind)
        if not self.fields:
            raise UsageError(f"modality {self.name} names no field: expected at least the model's input")
        if (self.vocabulary is not None) != (self.kind is Kind.SEQUENCE):
            raise UsageError(f"modality {self.name}: a vocabulary belongs to sequences and to nothing else")

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready copy; `from_json` reverses it exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ModalitySpec:
        """Rebuild a spec from a manifest's `spec`. Raises `UsageError` naming the first thing that does not fit."""
        try:
            augmentation = dict(data["augmentation"])
            if augmentation.get("crop_scale") is not None:
                low, high = augmentation["crop_scale"]
                augmentation["crop_scale"] = (float(low), float(high))
            return cls(
                name=data["name"],
                kind=Kind(data["kind"]),
                geometry=Geometry(tuple(int(size) for size in data["geometry"]["shape"])),
                fields=tuple(Field(**field) for field in data["fields"]),
                normalisation=data["normalisation"],
                augmentation=Augmentation(**augmentation),
                vocabulary=data["vocabulary"],
                version=int(data["version"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"unreadable modality spec ({error}): was it written by a newer medcoss?") from error


def check_key(key: str) -> str:
    """Return `key` if it may name a sample ([a-z0-9_-], no dots, at most 96 characters), else raise `UsageError`."""
    if not _KEY.fullmatch(key):
        raise UsageError(f"sample key {key[:60]!r} is not allowed: expected 1 to 96 of a-z, 0-9, '_' and '-'")
    return key


def check_name(name: str) -> str:
    """Return `name` if it may name a modality, stage or split on disk, else raise `UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"name {name[:60]!r} is not allowed: expected a letter, then up to 47 of a-z, 0-9, _ and -")
    return name


def derive_seed(*parts: object) -> int:
    """A 63-bit seed that depends on every part and on nothing else, equal on every machine and Python version."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
