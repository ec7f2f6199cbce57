"""Checking a shard set against its manifest: every file, every hash, every sample, every count."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from medcoss.contracts import MedcossError, UsageError, check_key
from medcoss.shards.accounts import COLUMNS, OUTCOMES, PRIVATE_SUFFIX
from medcoss.shards.files import sha256_file
from medcoss.shards.manifest import ERASING, MANIFEST, Manifest
from medcoss.shards.reader import ShardSet

_NAMED = 5
"""Damaged samples that a message names."""


_ERRORS = (MedcossError, ValueError, KeyError, TypeError)
"""What a set whose hashes fit but whose content does not may raise when it is read."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file of the set; `file` is its path below the set's folder."""

    file: str
    what: str


def set_folders(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """What a shell's `shards/*` means: the folders that may hold sets, and notes on what else it named.

    Files and the `NAME.private` folders beside sets are passed over.
    """
    folders = [path for path in paths if not path.is_file() and not path.name.endswith(PRIVATE_SUFFIX)]
    return folders, [f"{path} is no shard set: passed over" for path in paths if path not in folders]


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
    if (directory / ERASING).exists():
        problems.append(Problem(ERASING, "an erasure was interrupted: repeat that `medcoss erase`"))
    damaged = {problem.file for problem in problems}
    if not damaged & set(manifest.files):
        problems = _with_samples(shard_set, problems)
        for name in manifest.splits:
            problems += _split_problems(shard_set, name, damaged)
        problems += _overlaps(shard_set, damaged)
        problems += _account_problems(directory, manifest)
    return list(dict.fromkeys(problems))


def unlisted(directory: Path | str) -> list[str]:
    """Entries of a sound set's folder that neither its manifest nor this package knows: nothing checks them."""
    directory = Path(directory)
    manifest = ShardSet.open(directory).manifest
    known = {MANIFEST, OUTCOMES, "qc", ERASING} | {name.partition("/")[0] for name in manifest.files}
    known |= {shard.file.partition("/")[0] for entry in manifest.splits.values() for shard in entry.shards}
    known |= {name.partition("/")[0] for name in _strays(directory, manifest)}
    return sorted(path.name for path in directory.iterdir() if path.name not in known)


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


def _split_problems(shard_set: ShardSet, name: str, damaged: set[str]) -> Iterator[Problem]:
    """What is wrong inside shards whose bytes are as listed: made wrongly, or with the manifest changed to suit."""
    entry = shard_set.manifest.splits[name]
    try:
        split = shard_set.split(name)
        keys = split.keys
        for number, shard in enumerate(entry.shards):
            if shard.file not in damaged:
                broken = split.damaged_samples(number)
                yield from (Problem(shard.file, f"sample {key} does not match its CRC32C") for key in broken)
                yield from (Problem(shard.file, what) for what in split.layout_problems(number))
        for before, key in zip(["", *keys], keys, strict=False):
            if check_key(key) <= before:
                yield Problem(MANIFEST, f"split {name}: sample {key} comes after {before}: make the set again")
    except _ERRORS as error:
        yield Problem(MANIFEST, f"split {name}: {error}")


def _overlaps(shard_set: ShardSet, damaged: set[str]) -> Iterator[Problem]:
    """Keys and subjects in two splits (what is tested with was trained on), and counts of subjects that are wrong."""
    homes: dict[str, dict[str, str]] = {"key": {}, "subject": {}}
    for name, entry in shard_set.manifest.splits.items():
        if any(shard.file in damaged for shard in entry.shards):
            continue
        subjects: set[str] = set()
        try:
            split = shard_set.split(name)
            for index, key in enumerate(split.keys):
                record = split.record(index)
                subjects.add(record["subject"])
                if record["key"] != key:
                    yield Problem(MANIFEST, f"split {name}: the record of sample {key} names {record['key']!r}")
                for what, value in (("key", key), ("subject", record["subject"])):
                    home = homes[what].setdefault(value, name)
                    if home != name:
                        homes[what][value] = name  # said once for each pair of splits, not for each sample
                        yield Problem(MANIFEST, f"{what} {value} stands in split {home} and in split {name}")
        except _ERRORS as error:
            yield Problem(MANIFEST, f"split {name}: {error}")
            continue
        if len(subjects) != entry.subjects:
            yield Problem(MANIFEST, f"split {name} has {len(subjects)} subjects, the manifest says {entry.subjects}")


def _account_problems(directory: Path, manifest: Manifest) -> Iterator[Problem]:
    """Whether statistics can be read, and `outcomes.parquet` counts files as the manifest does."""
    for name in (file for file in manifest.files if file.endswith(".json")):
        try:
            json.loads((directory / name).read_bytes())
        except ValueError as error:
            yield Problem(name, f"is not JSON ({error})")
    if not (directory / OUTCOMES).exists():
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(directory / OUTCOMES, page_checksum_verification=True)
        if tuple(table.column_names) != COLUMNS:
            raise ValueError(f"its columns are {table.column_names}")
        statuses = table["status"].to_pylist()
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        yield Problem(OUTCOMES, f"unreadable ({' '.join(str(error).split())[:80]}): restore it")
        return
    counts = Counter(statuses)
    found = {"read": len(statuses)} | {name: counts[name] for name in ("written", "skipped", "failed")}
    if found != {name: manifest.inputs.get(name) for name in found}:
        yield Problem(OUTCOMES, f"counts {found}, the manifest {manifest.inputs}: restore it")
