"""What a model is made of, as data: widths, depths and the geometry of each kind; resolved from presets and specs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from medcoss.config import ModelConfig
from medcoss.contracts import Kind, ModalitySpec, UsageError


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build a model without a file of settings; None for a kind's geometry: the kind is absent.

    `image_shape` is (channels, height, width) in pixels, `volume_shape` (channels, depth, height, width) in voxels,
    `text_length` the longest sequence in tokens. Raises `UsageError` on construction if sizes do not fit each other.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    layer_scale: float
    drop_path: float
    patch_2d: int
    patch_3d: tuple[int, int, int]
    image_shape: tuple[int, int, int] | None = None
    volume_shape: tuple[int, int, int, int] | None = None
    text_length: int | None = None
    vocabulary: int | None = None
    text_positions: int = 512
    """Rows of the table of text positions; the longest text that fits without another table."""
    sincos_start: bool = False
    """Whether positions (encoder and decoder) start as sines and cosines; False: small noise and zeros."""

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise UsageError(f"model.depth is {self.depth}: expected at least one block")
        for width, heads, what in (
            (self.width, self.heads, "encoder"),
            (self.decoder_width, self.decoder_heads, "decoder"),
        ):
            if width % heads:
                raise UsageError(f"model: {what} width {width} is no multiple of its {heads} heads")
        if (self.text_length is None) != (self.vocabulary is None):
            raise UsageError("model: text needs both a length and a vocabulary")
        if self.text_length is not None and self.text_length > self.text_positions:
            raise UsageError(f"model: texts of {self.text_length} tokens, but only {self.text_positions} positions")
        for kind in (Kind.IMAGE, Kind.VOLUME):
            if kind in self.kinds:
                shape, patch = self.shape(kind), self.patch(kind)
                if min(patch) < 1 or any(size % step for size, step in zip(shape[1:], patch, strict=True)):
                    name = "patch_2d" if kind is Kind.IMAGE else "patch_3d"
                    raise UsageError(f"model.{name} {patch} does not divide the {kind}s' shape {shape[1:]}")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds this model takes, in the order of `Kind`."""
        present = {Kind.SEQUENCE: self.text_length, Kind.IMAGE: self.image_shape, Kind.VOLUME: self.volume_shape}
        return tuple(kind for kind in Kind if present[kind] is not None)

    def shape(self, kind: Kind) -> tuple[int, ...]:
        """Shape of one image or volume, channels first. Raises `UsageError` if the model has none."""
        shape = {Kind.IMAGE: self.image_shape, Kind.VOLUME: self.volume_shape}.get(kind)
        if shape is None:
            raise UsageError(f"this model takes no {kind}: it was built for {', '.join(self.kinds) or 'nothing'}")
        return shape

    def patch(self, kind: Kind) -> tuple[int, ...]:
        """Size of a patch in pixels or voxels."""
        return (self.patch_2d, self.patch_2d) if kind is Kind.IMAGE else self.patch_3d

    def grid(self, kind: Kind) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple(size // step for size, step in zip(self.shape(kind)[1:], self.patch(kind), strict=True))

    def n_patches(self, kind: Kind) -> int:
        """Patches of one image or volume."""
        return math.prod(self.grid(kind))

    def patch_values(self, kind: Kind) -> int:
        """Numbers in one patch, over all channels."""
        return self.shape(kind)[0] * math.prod(self.patch(kind))

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready copy; `from_json` reverses it exactly."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Architecture:
        """Rebuild an architecture. Raises `UsageError` for a missing or unknown key."""
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise UsageError(f"unreadable architecture (unknown {unknown[0]!r}): was it written by a newer medcoss?")
        values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in data.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"unreadable architecture ({error})") from error


PRESETS: dict[str, Architecture] = {
    "vit_b": Architecture(
        width=768,
        depth=12,
        heads=12,
        mlp_ratio=4.0,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        layer_scale=1e-3,
        drop_path=0.1,
        patch_2d=16,
        patch_3d=(16, 16, 16),
    ),
    "vit_tiny": Architecture(
        width=192,
        depth=6,
        heads=3,
        mlp_ratio=4.0,
        decoder_width=96,
        decoder_depth=2,
        decoder_heads=3,
        layer_scale=0.1,
        drop_path=0.0,
        patch_2d=8,
        patch_3d=(16, 8, 8),
        sincos_start=True,
    ),
}
"""vit_b is the paper's model; vit_tiny learns within minutes on two cores."""


def resolve(config: ModelConfig, specs: Iterable[ModalitySpec]) -> Architecture:
    """The preset with the configuration's changes and the geometry of the run's modalities.

    Raises `UsageError` if there is no spec, if two of a kind disagree in geometry or vocabulary (they share tokenizer,
    positions and decoder), or if patches do not divide a shape.
    """
    chosen: dict[Kind, ModalitySpec] = {}
    for spec in specs:
        first = chosen.setdefault(spec.kind, spec)
        for what, one, other in (
            ("shape", first.geometry.shape, spec.geometry.shape),
            ("vocabulary", first.vocabulary, spec.vocabulary),
        ):
            if one != other:
                raise UsageError(
                    f"modalities {first.name} and {spec.name} are both {spec.kind}s but differ in {what}"
                    f" ({one} and {other}): preprocess one of them again to match the other"
                )
    if not chosen:
        raise UsageError("model: no modality given: name at least one stage with a shard set")
    changes: dict[str, Any] = {
        name: value
        for name in ("depth", "layer_scale", "drop_path", "patch_2d", "patch_3d")
        if (value := getattr(config, name)) is not None
    }
    for kind, spec in chosen.items():
        if kind is Kind.SEQUENCE:
            changes |= {"text_length": spec.geometry.shape[0], "vocabulary": spec.vocabulary}
        else:
            changes["image_shape" if kind is Kind.IMAGE else "volume_shape"] = spec.geometry.shape
    return replace(PRESETS[config.preset], **changes)
