"""Checking a shard set against its manifest: every file, every hash, every key."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from medcoss.contracts import MedcossError, UsageError
from medcoss.shards.files import sha256_file
from medcoss.shards.manifest import MANIFEST, Manifest
from medcoss.shards.reader import ShardSet

_NAMED = 5
"""Damaged samples that a message names."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file of the set; `file` is its path below the set's folder."""

    file: str
    what: str


def verify(directory: Path | str, advance: Callable[[int], None] | None = None) -> list[Problem]:
    """All problems of the set in `directory`, none if it is exactly what its manifest says.

    `advance` is called with the size in bytes of each file once it is checked. Raises `UsageError` if the folder holds
    no manifest at all.
    """
    directory = Path(directory)
    try:
        shard_set = ShardSet.open(directory)
    except UsageError as error:
        if not (directory / MANIFEST).is_file():
            raise
        return [Problem(MANIFEST, str(error))]
    manifest = shard_set.manifest
    expected: dict[str, tuple[int | None, str]] = {name: (None, sha256) for name, sha256 in manifest.files.items()}
    for entry in manifest.splits.values():
        expected |= {shard.file: (shard.bytes, shard.sha256) for shard in entry.shards}
    problems: list[Problem] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        jobs = [(name, pool.submit(_check_file, directory / name, *want)) for name, want in expected.items()]
        for name, job in jobs:
            what, size = job.result()
            problems += [Problem(name, what)] if what else []
            if advance:
                advance(size)
    problems += [Problem(name, "not in the manifest: left over, delete it") for name in _strays(directory, manifest)]
    if not any(problem.file in manifest.files for problem in problems):
        problems = _with_samples(shard_set, problems) + list(_key_problems(shard_set))
    return problems


def _check_file(path: Path, size: int | None, sha256: str) -> tuple[str, int]:
    """What is wrong with a file ("" if nothing), and its size in bytes."""
    try:
        found = path.stat().st_size
        if size is not None and found != size:
            return f"has {found} bytes, the manifest says {size}: restore it", found
        return ("" if sha256_file(path) == sha256 else "is damaged (SHA-256 differs): restore it"), found
    except OSError as error:
        return f"{error.strerror or 'unreadable'}: restore it", 0


def _strays(directory: Path, manifest: Manifest) -> Iterator[str]:
    """Files that look like shards, which a glob would read, but that the manifest does not name."""
    known = set(manifest.files) | {shard.file for entry in manifest.splits.values() for shard in entry.shards}
    for split in manifest.splits:
        for path in sorted([*directory.glob(f"{split}-??????.*"), *(directory / f"{split}.zarr").rglob("*")]):
            name = path.relative_to(directory).as_posix()
            if path.is_file() and name not in known:
                yield name


def _with_samples(shard_set: ShardSet, problems: list[Problem]) -> list[Problem]:
    """The problems, those of readable shards naming the samples concerned."""
    places = {
        shard.file: (split, number)
        for split, entry in shard_set.manifest.splits.items()
        for number, shard in enumerate(entry.shards)
    }
    named: list[Problem] = []
    for problem in problems:
        damaged: list[str] = []
        if problem.file in places and (shard_set.directory / problem.file).is_file():
            split, number = places[problem.file]
            damaged = shard_set.split(split).damaged_samples(number)
        if damaged:
            rest = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
            named.append(Problem(problem.file, f"{problem.what}; damaged: {', '.join(damaged[:_NAMED])}{rest}"))
        else:
            named.append(problem)
    return named


def _key_problems(shard_set: ShardSet) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for split in shard_set.manifest.splits:
        try:
            keys = shard_set.split(split).keys
        except MedcossError as error:
            yield Problem(MANIFEST, f"split {split}: {error}")
            continue
        for key in keys:
            if key in seen:
                yield Problem(
                    MANIFEST, f"key {key} stands in split {seen[key]} and in split {split}: make the set again"
                )
            seen[key] = split
