"""The manifest: what a shard set holds, from what and how it was made, and a fingerprint of all that."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcoss.contracts import Kind, ModalitySpec, UsageError, check_name
from medcoss.shards.files import check_relative, sha256_file

__all__ = [
    "ERASING",
    "MANIFEST",
    "SCHEMA_VERSION",
    "Manifest",
    "ShardFile",
    "SplitEntry",
    "canonical_json",
    "hash_settings",
    "plain_json",
    "read_manifest",
    "readable_json",
    "sha256_file",
]

MANIFEST = "manifest.json"
ERASING = ".erasing"
"""Folder in a set while a subject is taken out of it."""

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ShardFile:
    """One shard: its path below the set's folder, samples in it, size in bytes, hex SHA-256."""

    file: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitEntry:
    """A split: number of samples, of distinct subjects, and its shards in order."""

    samples: int
    subjects: int
    shards: tuple[ShardFile, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything `manifest.json` says. `files` maps each file that is no shard to its hex SHA-256.

    `parent` is None for a converted set; a rehearsal buffer names the set and model it was chosen from. `fingerprint`
    is the SHA-256 of the canonical JSON without itself and `created_by`.
    """

    schema_version: int
    name: str
    kind: Kind
    spec: ModalitySpec
    splits: dict[str, SplitEntry]
    files: dict[str, str]
    settings: dict[str, Any]
    settings_hash: str
    inputs: dict[str, int]
    salt_id: str
    parent: dict[str, Any] | None
    created_by: dict[str, str]
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready copy; `from_json` reverses it exactly."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {
            "kind": str(self.kind),
            "spec": self.spec.to_json(),
            "splits": {name: dataclasses.asdict(entry) for name, entry in self.splits.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Rebuild a manifest and check its names. Raises `UsageError` naming the first thing that does not fit."""
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            found = data.get("schema_version") if isinstance(data, dict) else None
            raise UsageError(f"manifest schema {found!r} is not {SCHEMA_VERSION}: use the medcoss that wrote it")
        try:
            splits = {
                check_name(name): SplitEntry(
                    int(entry["samples"]),
                    int(entry["subjects"]),
                    tuple(ShardFile(**shard) for shard in entry["shards"]),
                )
                for name, entry in data["splits"].items()
            }
            manifest = cls(
                **{**data, "kind": Kind(data["kind"]), "spec": ModalitySpec.from_json(data["spec"]), "splits": splits}
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"unreadable manifest ({type(error).__name__}: {error}): was it edited by hand?"
            ) from error
        manifest._check()
        return manifest

    def computed_fingerprint(self) -> str:
        """The fingerprint that this content should carry."""
        content = self.to_json()
        del content["fingerprint"], content["created_by"]
        return hashlib.sha256(canonical_json(content)).hexdigest()

    def _check(self) -> None:
        for name in self.files:
            check_relative(name)
        for name, entry in self.splits.items():
            for shard in entry.shards:
                check_relative(shard.file)
            if entry.samples != sum(shard.samples for shard in entry.shards):
                raise UsageError(f"manifest: split {name} counts {entry.samples} samples, its shards differ")
        if self.name != self.spec.name or self.kind != self.spec.kind:
            raise UsageError(f"manifest: name {self.name} and kind {self.kind} contradict the spec")


def canonical_json(obj: Any) -> bytes:
    """One byte sequence for one JSON value: sorted keys, no spaces, UTF-8. Raises `ValueError` for NaN and infinity."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def readable_json(obj: Any) -> bytes:
    """JSON for people: indented, in the given order of keys, with a newline at the end."""
    return json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def plain_json(obj: Any) -> Any:
    """What a reader of `obj`'s JSON gets: tuples become lists, and nothing is shared with `obj`."""
    return json.loads(canonical_json(obj))


def hash_settings(settings: dict[str, Any]) -> str:
    """Hex SHA-256 of settings, independent of the order of their keys."""
    return hashlib.sha256(canonical_json(settings)).hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Read and check `directory`/manifest.json.

    Raises `UsageError` if there is none (the set is absent or unfinished), if it is not a manifest of this schema, or
    if its content does not match its fingerprint.
    """
    path = Path(directory) / MANIFEST
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        if (path.parent / ERASING).exists():
            raise UsageError(f"{path}: missing: an erasure was interrupted, repeat that `medcoss erase`") from error
        raise UsageError(f"{path}: missing: {directory} is no finished shard set, make it with `preprocess`") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}: check the path") from error
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error}): restore the file") from error
    try:
        manifest = Manifest.from_json(data)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if manifest.computed_fingerprint() != manifest.fingerprint:
        raise UsageError(f"{path}: content does not match its fingerprint: it was changed after writing, restore it")
    return manifest
