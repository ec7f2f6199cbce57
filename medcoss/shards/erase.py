"""Taking subjects out of a finished shard set: every trace of their samples, and a record of the deed by token.

The set without them is made aside in DIR/.erasing and moved in by renames, the manifest last. Until a plan of these
renames is written the old set stands; from then on an interrupted erasure is carried to its end by the next one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medcoss import atomic
from medcoss.contracts import UsageError
from medcoss.shards import zarr
from medcoss.shards.accounts import (
    OUTCOMES,
    forget_paths,
    inputs_named,
    private_directory,
    record_deeds,
    withdraw,
    write_table,
)
from medcoss.shards.erasures import ERASURES, Erasure, content_mark, erasures_json, hash_shards, read_erasures
from medcoss.shards.files import sha256_file
from medcoss.shards.manifest import ERASING, MANIFEST, Manifest, canonical_json, read_manifest
from medcoss.shards.reader import ShardSet, Split
from medcoss.shards.sample import Sample
from medcoss.shards.writer import write_manifest, write_split

STAGING = ".staging"
_QC = "qc"
_PLAN = "plan.json"
_NEW = "set"


@dataclass(frozen=True)
class Holdings:
    """Samples of some subjects: positions by split, and their keys by subject."""

    positions: dict[str, list[int]]
    by_subject: dict[str, list[str]]

    @property
    def keys(self) -> list[str]:
        """Keys of all the samples."""
        return [key for keys in self.by_subject.values() for key in keys]


def find(shard_set: ShardSet, subjects: Collection[str], advance: Callable[[], None] = lambda: None) -> Holdings:
    """All samples of `subjects` (tokens) in a set; `advance` is called after each record of the set.

    Raises `MedcossError` for damaged records: who is in them cannot be known.
    """
    positions: dict[str, list[int]] = {}
    keys: dict[str, list[str]] = {}
    for name in shard_set.manifest.splits:
        split = shard_set.split(name)
        for index in range(len(split)):
            record = split.record(index)
            if record["subject"] in subjects:
                positions.setdefault(name, []).append(index)
                keys.setdefault(record["subject"], []).append(record["key"])
            advance()
    return Holdings(positions, keys)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a set against `preprocess` and other erasures. Raises `UsageError` if one is at work."""
    places = [path for path in (directory, private_directory(directory)) if path.is_dir()]
    descriptors: list[int] = []
    try:
        for place in places:
            descriptors.append(os.open(place, os.O_RDONLY))
            try:
                fcntl.flock(descriptors[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"{directory} is being written by another command: wait for it") from error
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def check_settled(directory: Path) -> None:
    """Raise `UsageError` if an unfinished `preprocess` keeps converted samples of any patient in the folder."""
    if (directory / STAGING).exists():
        raise UsageError(
            f"{directory} holds an unfinished conversion: repeat its `preprocess` command, or delete "
            f"{directory / STAGING} if it is not wanted, then erase again"
        )


def erase(
    shard_set: ShardSet, holdings: Holdings, subjects: Sequence[str], *, names: Collection[str] = (),
    parent: str | None = None,
) -> tuple[Manifest, list[str]]:  # fmt: skip
    """Write the set anew without `holdings`, record `subjects` as erased; returns its manifest and notes for the user.

    `names` are what the patient may be called in paths of `DIR.private/inputs.csv`, `parent` is the new fingerprint of
    the set that a buffer was chosen from. Memory does not grow with the set, but for keys and records. Raises
    `MedcossError` for damaged samples and `OSError` for a full disk, with the set as it was.
    """
    directory = shard_set.directory
    shutil.rmtree(directory / ERASING, ignore_errors=True)
    plan: dict[str, Any] = {"fingerprint_before": shard_set.manifest.fingerprint}
    try:
        with atomic.atomic_directory(directory / ERASING / _NEW) as made:
            notes = _make(shard_set, holdings, subjects, frozenset(names), parent, made, plan)
        atomic.write_bytes(directory / ERASING / _PLAN, canonical_json(plan))
    except BaseException:
        shutil.rmtree(directory / ERASING, ignore_errors=True)
        raise
    finish(directory)
    return read_manifest(directory), notes


def finish(directory: Path) -> bool:
    """Carry an interrupted erasure to its end, or remove what was made of one that had not got so far as its plan.

    False if there was none to finish. The caller holds the lock.
    """
    work, private = directory / ERASING, private_directory(directory)
    if not (work / _PLAN).exists():
        shutil.rmtree(work, ignore_errors=True)
        return False
    plan = json.loads((work / _PLAN).read_bytes())
    made = work / _NEW
    current = read_manifest(directory).fingerprint if (directory / MANIFEST).exists() else plan["fingerprint_before"]
    pending = (made / MANIFEST).exists() and current == plan["fingerprint_before"]
    if pending:
        (directory / MANIFEST).unlink(missing_ok=True)
        for name in plan["removed"]:
            _remove(directory / name)
        for name in plan["moved"]:
            if (made / name).exists():
                _remove(directory / name)
                (made / name).replace(directory / name)
        if plan["deeds"]:
            forget_paths(private, plan["inputs"])
            record_deeds(private, plan["deeds"])
        (made / MANIFEST).replace(directory / MANIFEST)
    (work / _PLAN).unlink()
    shutil.rmtree(work)
    return pending


def _make(
    shard_set: ShardSet, holdings: Holdings, subjects: Sequence[str], names: frozenset[str], parent: str | None,
    made: Path, plan: dict[str, Any],
) -> list[str]:  # fmt: skip
    """Write the files that change to `made` and say in `plan` what is to be done with them; returns notes."""
    directory, old = shard_set.directory, shard_set.manifest
    splits, files, notes = dict(old.splits), dict(old.files), []
    for name in holdings.positions:
        split, gone = shard_set.split(name), set(holdings.positions[name])
        files = {file: sha256 for file, sha256 in files.items() if not _of_split(file, name)}
        size = max(split.shard_sizes)
        splits[name], extra = write_split(made, old.spec, name, _others(split, gone), len(split) - len(gone), size)
        files |= extra
    converted, withdrawn, inputs = old.parent is None, 0, frozenset[str]()
    if converted and (directory / OUTCOMES).exists():
        changed = withdraw(directory / OUTCOMES, holdings.keys)
        withdrawn = changed.files
        inputs = changed.inputs | inputs_named(private_directory(directory), names)
        write_table(made / OUTCOMES, changed.table)
        if OUTCOMES in files:
            files[OUTCOMES] = sha256_file(made / OUTCOMES)
        if changed.unplaced:
            notes.append(f"{changed.unplaced} of the samples came of tables that {OUTCOMES} still counts them in")
    counted = withdrawn if converted else len(holdings.keys)  # a buffer's inputs are samples
    counts = dict(old.inputs)
    if counted:
        counts |= {"written": counts["written"] - counted, "skipped": counts["skipped"] + counted}
    before = hash_shards(old.splits)
    entries = []
    for subject in subjects:
        keys = holdings.by_subject.get(subject, [])
        marks = tuple(sorted({content_mark(key) for key in keys}))
        entries.append(Erasure(subject, len(keys), withdrawn, old.fingerprint, before, before, marks))
    entries[-1] = replace(entries[-1], shards_after=hash_shards(splits))
    content = erasures_json([*read_erasures(directory), *entries])
    (made / ERASURES).write_bytes(content)
    files[ERASURES] = hashlib.sha256(content).hexdigest()
    manifest = write_manifest(
        made, spec=old.spec, splits=splits, files=files, settings=old.settings, inputs=counts, salt_id=old.salt_id,
        parent=old.parent and old.parent | ({"fingerprint": parent} if parent else {}),
    )  # fmt: skip
    if (directory / _QC).exists():
        notes.append("qc/ is removed, for it shows samples")
    plan["removed"] = sorted({_QC, *(p.name for p in directory.iterdir() if _stale(p.name, holdings.positions, made))})
    plan["moved"] = sorted(path.name for path in made.iterdir() if path.name != MANIFEST)
    plan["inputs"] = sorted(inputs)
    time = datetime.now(UTC).isoformat(timespec="seconds")
    plan["deeds"] = [
        {"time": time, "subject": e.subject, "samples": e.samples, "files": e.files,
         "fingerprint_before": old.fingerprint, "fingerprint_after": manifest.fingerprint}
        for e in entries if converted
    ]  # fmt: skip
    return notes


def _others(split: Split, gone: Collection[int]) -> Iterator[Sample]:
    return (split[index] for index in range(len(split)) if index not in gone)


def _of_split(file: str, split: str) -> bool:
    return file.startswith((f"{split}-", f"{zarr.group_name(split)}/"))


def _stale(name: str, splits: Collection[str], made: Path) -> bool:
    """Whether an entry of the folder belongs to a split that is written anew, under a name that is not used again."""
    ours = any(re.fullmatch(rf"{split}(-\d{{6}}\..*|\.zarr)", name) for split in splits)
    return ours and not (made / name).exists()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
