"""What is in DIR when a run begins: a finished set, one that was begun, or nothing; and who may write there."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medcoss import atomic
from medcoss.contracts import SPLITS, UsageError
from medcoss.shards import ERASURES, Manifest, canonical_json, hash_settings, read_manifest
from preprocess.conversion import InputFile, Status
from preprocess.inputs import file_bytes
from preprocess.job import Job, Result
from preprocess.outcomes import (
    OUTCOMES,
    count_reasons,
    private_directory,
    read_outcomes,
    read_private_sizes,
    write_private,
)
from preprocess.progress import counted
from preprocess.publish import STAGING

_BEGUN = "settings.json"
_LOST = ("worker_died", "stalled")


def finished(job: Job, files: Mapping[str, InputFile]) -> Result | None:
    """The result of a set that is complete for these inputs; None if --extend is to add new ones, or to try those
    again that were lost with their worker.

    Raises `UsageError` for other settings, another salt, and new or changed inputs without --extend.
    """
    manifest = read_manifest(job.out)
    if manifest.settings_hash != hash_settings(job.settings):
        raise UsageError(f"{job.out} was made with {_difference(manifest.settings, job.settings)}: name another --out")
    if manifest.salt_id != job.salt.id:
        raise UsageError(f"{job.out} was made with another salt: give its --salt-file, or name another --out")
    known = read_outcomes(job.out / OUTCOMES)
    sizes = read_private_sizes(private_directory(job.out))
    new = sum(name not in known for name in files)
    changed = sum(name in sizes and sizes[name] != file_bytes(file) for name, file in files.items())
    lost = sum(name in known and known[name].reason in _LOST for name in files)
    if new or changed or (lost and job.extend):
        if job.extend:
            return None
        what = " and ".join(f"{n:,} {word}" for n, word in ((new, "new"), (changed, "changed")) if n)
        raise UsageError(
            f"{what} {'file' if new + changed == 1 else 'files'} among the inputs since {job.out} was made: take them "
            "in with --extend, or name another --out"
        )
    if files.keys() - sizes.keys():
        # The table is gone, or a run that took these in was killed when all but it was written.
        write_private(
            private_directory(job.out), files, {name for name, outcome in known.items() if outcome.reason == "erased"}
        )
    gone = len(known) - len(files)
    notes = [f"{gone:,} of its inputs {'is' if gone == 1 else 'are'} no longer there"] if gone > 0 else []
    if lost:
        notes.append(f"{counted(lost, 'file')} stalled or took a worker down: --extend tries them again")
    failures = tuple(
        (files[name], outcome) for name, outcome in sorted(known.items())
        if outcome.status is Status.FAILED and name in files
    )  # fmt: skip
    return Result("up to date", manifest.inputs, splits(manifest), count_reasons(known.values()), manifest.fingerprint,
                  failures, tuple(notes))  # fmt: skip


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    plain = json.loads(canonical_json(dict(new)))
    if old.get("modality") != plain.get("modality"):
        return f"preprocess {old.get('modality')}"
    names = sorted(name for name in {*old, *plain} if old.get(name) != plain.get(name))
    shown = [f"{name} = {json.dumps(old.get(name))}, not {json.dumps(plain.get(name))}" for name in names[:3]]
    return "other settings (" + "; ".join(shown) + (", and more)" if len(names) > 3 else ")")


def check_out(job: Job) -> None:
    """Refuse to write among files that are not ours, or where nothing can be written: before hours of work."""
    if job.out.is_dir():
        if not (job.out / STAGING).is_dir() and any(
            path.name not in (OUTCOMES, ERASURES) for path in job.out.iterdir()
        ):
            raise UsageError(f"{job.out} is not empty and holds no shard set: name another folder with --out")
    elif job.out.exists():
        raise UsageError(f"{job.out} is a file: name a folder with --out")
    there = next(path for path in (job.out.absolute(), *job.out.absolute().parents) if os.path.lexists(path))
    if not there.is_dir() or not (job.dry_run or os.access(there, os.W_OK | os.X_OK)):
        what = "cannot be written to" if there.is_dir() else "is no folder"
        raise UsageError(f"--out {job.out}: {there} {what}: name another --out, or mend that")


def check_begun(job: Job) -> None:
    """Raise `UsageError` if an interrupted run of other settings has staged units."""
    begun = job.out / STAGING / _BEGUN
    if not begun.exists():
        return
    found = json.loads(begun.read_bytes())
    if canonical_json(found) != canonical_json(_begun_with(job)):
        what = _difference(found["settings"], job.settings) if found["salt_id"] == job.salt.id else "another salt"
        raise UsageError(f"{job.out} was begun with {what}: repeat that command, or delete {begun.parent} first")


def begin(job: Job) -> Path:
    """The staging folder, kept from an interrupted run of the same settings."""
    staging = job.out / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    if not (staging / _BEGUN).exists():
        atomic.write_bytes(staging / _BEGUN, canonical_json(_begun_with(job)))
    return staging


def _begun_with(job: Job) -> dict[str, Any]:
    return {"settings": job.settings, "salt_id": job.salt.id}


@contextmanager
def locked(private: Path) -> Iterator[None]:
    """Hold `DIR.private`. Raises `UsageError` if another run does."""
    private.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(private, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another preprocess is writing beside {private}: wait, or name another --out") from error
        yield
    finally:
        os.close(descriptor)


def splits(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Samples and subjects by split."""
    entries = ((name, manifest.splits[name]) for name in SPLITS)
    return {name: {"samples": entry.samples, "subjects": entry.subjects} for name, entry in entries}
