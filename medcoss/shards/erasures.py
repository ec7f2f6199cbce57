"""`erasures.json`: which subjects were taken out of a shard set, by token, so that no later run brings them back."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medcoss.contracts import MedcossError, UsageError
from medcoss.shards.files import checked_bytes
from medcoss.shards.manifest import MANIFEST, Manifest, SplitEntry, canonical_json, read_manifest

ERASURES = "erasures.json"
_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Erasure:
    """One withdrawn subject: its token, how many samples and input files went, the set's fingerprint before.

    `shards_before` and `shards_after` are hashes of the manifest's splits: whether the set changed in any other way
    since can be told by them. `contents` are marks of what was erased (`content_mark`): the same scan under another
    name, or under none, must not come back in its place.
    """

    subject: str
    samples: int
    files: int
    fingerprint_before: str
    shards_before: str = ""
    shards_after: str = ""
    contents: tuple[str, ...] = ()


def content_mark(key: str) -> str:
    """What `erasures.json` says of a sample's content: no key, yet enough to know the content again under the salt."""
    return "content:" + hashlib.sha256(key.rpartition("-")[0].encode()).hexdigest()[:32]


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
        return [Erasure(**{**entry, "contents": tuple(entry.get("contents", ()))}) for entry in data["erasures"]]
    except (ValueError, KeyError, TypeError) as error:
        raise MedcossError(f"{path}: unreadable ({type(error).__name__}): restore the file") from error


def erasures_json(erasures: Iterable[Erasure]) -> bytes:
    """The content of `erasures.json`: canonical JSON, the same bytes for the same erasures."""
    entries = [dataclasses.asdict(erasure) for erasure in erasures]
    return canonical_json({"schema_version": _SCHEMA_VERSION, "erasures": entries})


def hash_shards(splits: Mapping[str, SplitEntry]) -> str:
    """Hex SHA-256 that changes with the samples of a set and with nothing else."""
    return hashlib.sha256(canonical_json({n: dataclasses.asdict(entry) for n, entry in splits.items()})).hexdigest()


def predecessors(manifest: Manifest, erasures: Sequence[Erasure]) -> dict[str, tuple[Erasure, ...]]:
    """Fingerprints of a set before erasures, and nothing else, made it what `manifest` says; each with those erasures.

    What was trained on one of these states goes together with the present set, but for the withdrawn subjects.
    """
    found: dict[str, tuple[Erasure, ...]] = {}
    since: tuple[Erasure, ...] = ()
    expected = hash_shards(manifest.splits)
    for erasure in reversed(erasures):
        if erasure.shards_after != expected:
            break
        since = (erasure, *since)
        found[erasure.fingerprint_before] = since
        expected = erasure.shards_before
    return found
