"""`erasures.json`: which subjects were taken out of a shard set, by token, so that no later run brings them back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medcoss.contracts import MedcossError, UsageError
from medcoss.shards.files import checked_bytes
from medcoss.shards.manifest import MANIFEST, canonical_json, read_manifest

ERASURES = "erasures.json"
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Erasure:
    """One withdrawn subject: its token, how many samples and input files went, the set's fingerprint before."""

    subject: str
    samples: int
    files: int
    fingerprint_before: str


def read_erasures(directory: Path) -> list[Erasure]:
    """Subjects erased from the set in `directory`, in the order of their erasure; none if there is no record.

    With a manifest the record is checked against it, so that one which was deleted is noticed. Raises `MedcossError`
    for a record that is missing though listed, damaged, or of another schema; `UsageError` for a damaged manifest.
    """
    path = Path(directory) / ERASURES
    if (path.parent / MANIFEST).exists():
        files = read_manifest(path.parent).files
        if ERASURES not in files:
            return []
        content = checked_bytes(path.parent, ERASURES, files)
    elif path.exists():
        content = path.read_bytes()
    else:
        return []
    try:
        data = json.loads(content)
        if data["schema_version"] != _SCHEMA_VERSION:
            raise UsageError(f"{path}: schema {data['schema_version']!r}: use the medcoss that wrote it")
        return [Erasure(**entry) for entry in data["erasures"]]
    except (ValueError, KeyError, TypeError) as error:
        raise MedcossError(f"{path}: unreadable ({type(error).__name__}): restore the file") from error


def erasures_json(erasures: Iterable[Erasure]) -> bytes:
    """The content of `erasures.json`: canonical JSON, the same bytes for the same erasures."""
    entries = [dataclasses.asdict(erasure) for erasure in erasures]
    return canonical_json({"schema_version": _SCHEMA_VERSION, "erasures": entries})
