"""What the engine does before it converts, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preprocess.conversion import Discovery, InputFile, Inspected, Modality, Outcome
from preprocess.workers import inspect_one


def discover(modality: Modality, files: Sequence[InputFile], settings: dict[str, Any]) -> Discovery:
    """Units, and the outcomes of all files that are in none, as the engine finds them."""
    inspected: list[Inspected] = []
    refused: dict[str, Outcome] = {}
    for file in files:
        about = inspect_one(modality, file, settings)
        if isinstance(about, Outcome):
            refused[file.relative] = about
        else:
            inspected.append(Inspected(file, about))
    found = modality.group(inspected, settings)
    return Discovery(found.units, refused | found.outcomes)
