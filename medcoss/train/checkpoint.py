"""Resumable checkpoints of a stage: written whole, checked when read, free of pickle.

A checkpoint is a folder `step-N` with `state.safetensors` (weights, moments, step counts by parameter) and
`checkpoint.json` (the step, the hash of the state, what the stage is made of). Order, masks, mixtures and drop path
are functions of (seed, step), so the step is the loader's position and the state of all random numbers.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medcoss.atomic import TEMPORARY_SUFFIX, atomic_directory
from medcoss.contracts import MedcossError, UsageError
from medcoss.shards.manifest import sha256_file

SCHEMA_VERSION = 1
STATE = "state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: steps done, and seconds of training until then."""

    path: Path
    step: int
    seconds: float

    def tensors(self) -> dict[str, Tensor]:
        """Its state as `Engine.load_state` takes it. Raises `MedcossError` if it cannot be read."""
        try:
            return load_file(self.path / STATE)
        except (OSError, SafetensorError) as error:
            raise MedcossError(f"checkpoint {self.path}: unreadable ({error}): delete it") from error


def save(
    directory: Path, tensors: dict[str, Tensor], *, step: int, seconds: float, inputs: dict[str, str], keep: int
) -> None:
    """Write the checkpoint after `step` steps and delete all but the newest `keep`."""
    name = f"step-{step:09d}"
    if not (directory / name).exists():
        with atomic_directory(directory / name) as temporary:
            save_file(tensors, temporary / STATE)
            record = {
                "schema_version": SCHEMA_VERSION,
                "step": step,
                "seconds": seconds,
                "inputs": inputs,
                "sha256": sha256_file(temporary / STATE),
            }
            (temporary / "checkpoint.json").write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    newest = sorted(path for path in directory.glob("step-*") if path.suffix != TEMPORARY_SUFFIX)
    for path in newest[:-keep]:
        shutil.rmtree(path)


def find(directory: Path, inputs: dict[str, str]) -> tuple[Checkpoint | None, list[str]]:
    """(newest undamaged checkpoint or None, a line for each damaged one that is newer).

    Raises `UsageError` naming the first of `inputs` that differs from what the checkpoint was made of.
    """
    damaged: list[str] = []
    candidates = [path for path in directory.glob("step-*") if path.is_dir() and path.suffix != TEMPORARY_SUFFIX]
    for path in sorted(candidates, reverse=True):
        try:
            record = json.loads((path / "checkpoint.json").read_bytes())
            if record["schema_version"] != SCHEMA_VERSION:
                version = record["schema_version"]
                raise UsageError(f"checkpoint {path}: schema {version}, this medcoss reads {SCHEMA_VERSION}: delete it")
            if sha256_file(path / STATE) != record["sha256"]:
                raise ValueError(f"{STATE} does not match its hash")
            checkpoint = Checkpoint(path, int(record["step"]), float(record["seconds"]))
            made_of = dict(record["inputs"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            damaged.append(f"checkpoint {path} is damaged ({error}) and passed over")
            continue
        for key in sorted(inputs.keys() | made_of.keys()):
            if made_of.get(key) != inputs.get(key):
                raise UsageError(
                    f"{key} changed since this stage was begun: restore it, or begin the stage anew with --resume never"
                )
        return checkpoint, damaged
    return None, damaged


def clear(directory: Path) -> None:
    """Delete all checkpoints of a stage, and what a killed run left half-written."""
    shutil.rmtree(directory, ignore_errors=True)


def clear_after(directory: Path, checkpoint: Checkpoint) -> None:
    """Delete what lies there newer than `checkpoint` (damaged), and what a killed run left half-written."""
    for path in directory.iterdir():
        if path.suffix == TEMPORARY_SUFFIX or path.name > checkpoint.path.name:
            shutil.rmtree(path)
