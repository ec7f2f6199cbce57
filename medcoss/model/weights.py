"""Model files: safetensors whose header holds the architecture and where the weights came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from medcoss.atomic import atomic_file
from medcoss.contracts import UsageError
from medcoss.model.architecture import Architecture
from medcoss.model.mae import MaskedModel
from medcoss.model.vit import Encoder

SCHEMA_VERSION = 1
_HEADER = "medcoss"  # one entry only: the order of several would differ from run to run, and with it the file's hash
_ENCODER = "encoder."


@dataclass(frozen=True)
class Header:
    """What a model file says of itself."""

    architecture: Architecture
    provenance: dict[str, Any]


@dataclass(frozen=True)
class LoadReport:
    """What `load_into` did: tensors copied, kinds the file lacks (left as they were), kinds the model lacks."""

    loaded: int
    fresh_kinds: tuple[str, ...]
    unused_kinds: tuple[str, ...]


def save_model(path: Path, model: MaskedModel, provenance: Mapping[str, Any]) -> None:
    """Write encoder, decoder and heads with their architecture and `provenance` (JSON-ready), atomically.

    Equal weights, architecture and provenance give equal bytes.
    """
    header = {
        "schema_version": SCHEMA_VERSION,
        "architecture": model.architecture.to_json(),
        "provenance": dict(provenance),
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata={_HEADER: text})


def read_header(path: Path) -> Header:
    """The header of a model file. Raises `UsageError` if it is missing, no safetensors file, or not of medcoss."""
    return _read(path, "")[0]


def load_model(path: Path) -> MaskedModel:
    """The whole pre-training model of a file, in eval mode. Raises `UsageError` as `read_header`."""
    header, tensors = _read(path, None)
    with torch.device("meta"):
        model = MaskedModel(header.architecture)
    _assign(model, tensors, path)
    return model.eval()


def load_encoder(path: Path | str) -> Encoder:
    """The encoder of a model file, in eval mode. Raises `UsageError` as `read_header`."""
    header, tensors = _read(Path(path), _ENCODER)
    with torch.device("meta"):
        encoder = Encoder(header.architecture)
    _assign(encoder, {name.removeprefix(_ENCODER): tensor for name, tensor in tensors.items()}, Path(path))
    return encoder.eval()


def load_into(model: MaskedModel, path: Path) -> LoadReport:
    """Copy a file's encoder, tokenizers and [CLS] into `model`; its decoder and heads stay as they are.

    Kinds only one side has are left alone and reported. Raises `UsageError` naming the tensor if shapes differ.
    """
    header, tensors = _read(path, _ENCODER)
    theirs, ours = set(header.architecture.kinds), set(model.architecture.kinds)
    target = model.state_dict()
    skipped = tuple(f"{_ENCODER}embedders.{kind}." for kind in theirs - ours)
    taken = {name: tensor for name, tensor in tensors.items() if not name.startswith(skipped) and name in target}
    for name, tensor in taken.items():
        if tensor.shape != target[name].shape:
            raise UsageError(
                f"weights {path}: {name} is {tuple(tensor.shape)}, this model needs {tuple(target[name].shape)}:"
                " use weights of the same preset, patch size, geometry and vocabulary"
            )
    depth = f"{_ENCODER}blocks."
    if {name for name in tensors if name.startswith(depth)} != {name for name in target if name.startswith(depth)}:
        raise UsageError(
            f"weights {path}: {header.architecture.depth} encoder blocks, this model has {model.architecture.depth}:"
            " use weights of the same preset"
        )
    model.load_state_dict(taken, strict=False)
    return LoadReport(len(taken), tuple(map(str, sorted(ours - theirs))), tuple(map(str, sorted(theirs - ours))))


def fingerprint(path: Path) -> str:
    """SHA-256 of a model file, in hexadecimal. Raises `UsageError` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"weights {path}: {error.strerror}: give an existing model file") from error


def _read(path: Path, prefix: str | None) -> tuple[Header, dict[str, Tensor]]:
    """Header and tensors whose name starts with `prefix` (None: all, empty: none)."""
    if not path.is_file():
        raise UsageError(f"weights {path}: no such file: give a model.safetensors of a finished stage")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_HEADER)
            names = [] if prefix == "" else sorted(file.keys())
            tensors = {name: file.get_tensor(name) for name in names if prefix is None or name.startswith(prefix)}
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"weights {path}: not a readable safetensors file ({error}):"
            " turn released checkpoints into one with `medcoss import-weights FILE --out W`"
        ) from error
    if text is None:
        raise UsageError(f"weights {path}: no medcoss header: only files written by medcoss can be loaded")
    data = json.loads(text)
    if data["schema_version"] != SCHEMA_VERSION:
        raise UsageError(f"weights {path}: schema {data['schema_version']}, this medcoss reads {SCHEMA_VERSION}")
    return Header(Architecture.from_json(data["architecture"]), data["provenance"]), tensors


def _assign(module: torch.nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    result = module.load_state_dict(tensors, strict=False, assign=True)
    wrong = [*result.missing_keys, *result.unexpected_keys]
    if wrong:
        raise UsageError(f"weights {path}: tensor {wrong[0]} does not fit the file's own architecture: it is damaged")
