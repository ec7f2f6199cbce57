"""The engine: finds the inputs, has them converted by a pool of processes, and assembles the shard set.

Every input is accounted for, and a run that was killed at any point gives the same bytes when it is repeated: units
are staged whole in DIR/.staging, the set is written there too and moved into DIR when finished, the manifest last.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from medcoss import atomic
from medcoss.contracts import SPLITS, MedcossError, UsageError
from medcoss.shards import Manifest, canonical_json, hash_settings, read_manifest
from preprocess.assemble import Assembly, assemble
from preprocess.conversion import InputFile, Modality, Outcome, Status, Unit
from preprocess.inputs import file_bytes, find_files, input_id, sort_out
from preprocess.job import Job, Result
from preprocess.outcomes import (
    OUTCOMES,
    count_reasons,
    private_directory,
    read_outcome_ids,
    read_private_sizes,
    write_outcomes,
    write_private,
)
from preprocess.progress import Progress
from preprocess.publish import MANIFEST, STAGING, publish
from preprocess.split import Salt
from preprocess.staging import StagedUnit
from preprocess.workers import Task, UnexpectedError, Workers, inspect_all

_BEGUN = "settings.json"


def run(job: Job) -> Result:
    """Do the job. Raises `UsageError` before anything is written if it cannot be begun, `MedcossError` if it fails."""
    modality = cast(Modality, importlib.import_module(job.module))
    private = private_directory(job.out)
    found = find_files(job.inputs, leave_out=(job.out, private))
    files = {input_id(job.salt, file.relative): file for file in found}
    if (job.out / MANIFEST).exists():
        done = _finished(job, files)
        if done is not None:
            shutil.rmtree(job.out / STAGING, ignore_errors=True)
            return done
    else:
        _check_out(job)
    _check_begun(job)
    _say(job, f"looking through {len(found)} files")
    outcomes, units = _discover(job, modality, found)
    if job.dry_run:
        return _dry_result(outcomes, units, found)
    with _locked(private):
        staging = _begin(job)
        staged, defects = _convert(job, units)
        by_id = {input_id(job.salt, relative): outcome for relative, outcome in outcomes.items()}
        assembly = assemble(staged, by_id, job.settings["split"], job.salt)
        missing = [name for name in files if name not in assembly.fates]
        if missing:
            raise MedcossError(f"{len(missing)} inputs have no outcome: a defect of preprocess {job.name}, report it")
        if not assembly.samples:
            write_private(private, files)
            _refuse_empty(job, assembly)
        _say(job, f"writing {assembly.samples} samples to shards")
        manifest, told = publish(
            modality, assembly, staging, job.out, job.settings, salt_id=job.salt.id, shard_size=job.shard_size,
            with_qc=job.qc,
        )  # fmt: skip
        # After the set: a killed --extend must still see which inputs differ from those of the old set.
        write_private(private, files)
        shutil.rmtree(staging)
    return _result(manifest, assembly, files, defects, told)


def _say(job: Job, text: str) -> None:
    print(f"{job.name}: {text}", file=sys.stderr, flush=True)


def unit_id(salt: Salt, unit: Unit) -> str:
    """A unit's id: its files and what the modality says of it, under the salt."""
    names = "\0".join(sorted(file.relative for file in unit.files))
    return salt.token("unit", names, canonical_json(unit.detail), length=16)


def _finished(job: Job, files: Mapping[str, InputFile]) -> Result | None:
    """The result of a set that is complete for these inputs; None if --extend is to add new ones.

    Raises `UsageError` for other settings, another salt, and new or changed inputs without --extend.
    """
    manifest = read_manifest(job.out)
    if manifest.settings_hash != hash_settings(job.settings):
        raise UsageError(f"{job.out} was made with {_difference(manifest.settings, job.settings)}: name another --out")
    if manifest.salt_id != job.salt.id:
        raise UsageError(f"{job.out} was made with another salt: give its --salt-file, or name another --out")
    known = read_outcome_ids(job.out / OUTCOMES)
    sizes = read_private_sizes(private_directory(job.out))
    new = sum(name not in known for name in files)
    changed = sum(name in sizes and sizes[name] != file_bytes(file) for name, file in files.items())
    if new or changed:
        if job.extend:
            return None
        what = " and ".join(f"{n} {word}" for n, word in ((new, "new"), (changed, "changed")) if n)
        raise UsageError(f"{what} files among the inputs since {job.out} was made: take them in with --extend, or name "
                         "another --out")  # fmt: skip
    if not sizes:
        write_private(private_directory(job.out), files)
    gone = len(known) - len(files)
    notes = (f"{gone} of its inputs are no longer there",) if gone > 0 else ()
    return Result("up to date", manifest.inputs, _splits(manifest), [], manifest.fingerprint, notes=notes)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    plain = json.loads(canonical_json(dict(new)))
    names = sorted(name for name in {*old, *plain} if old.get(name) != plain.get(name))
    shown = [f"{name} = {json.dumps(old.get(name))}, not {json.dumps(plain.get(name))}" for name in names[:3]]
    return "other settings (" + "; ".join(shown) + (", and more)" if len(names) > 3 else ")")


def _check_out(job: Job) -> None:
    """Refuse to write among files that are not ours."""
    if job.out.is_dir():
        if not (job.out / STAGING).is_dir() and any(path.name != OUTCOMES for path in job.out.iterdir()):
            raise UsageError(f"{job.out} is not empty and holds no shard set: name another folder with --out")
    elif job.out.exists():
        raise UsageError(f"{job.out} is a file: name a folder with --out")


def _check_begun(job: Job) -> None:
    """Raise `UsageError` if an interrupted run of other settings has staged units."""
    begun = job.out / STAGING / _BEGUN
    if not begun.exists():
        return
    found = json.loads(begun.read_bytes())
    if canonical_json(found) != canonical_json(_begun_with(job)):
        what = _difference(found["settings"], job.settings) if found["salt_id"] == job.salt.id else "another salt"
        raise UsageError(f"{job.out} was begun with {what}: repeat that command, or delete {begun.parent} first")


def _begin(job: Job) -> Path:
    """The staging folder, kept from an interrupted run of the same settings."""
    staging = job.out / STAGING
    staging.mkdir(parents=True, exist_ok=True)
    if not (staging / _BEGUN).exists():
        atomic.write_bytes(staging / _BEGUN, canonical_json(_begun_with(job)))
    return staging


def _begun_with(job: Job) -> dict[str, Any]:
    return {"settings": job.settings, "salt_id": job.salt.id}


@contextmanager
def _locked(private: Path) -> Iterator[None]:
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


def _discover(job: Job, modality: Modality, found: list[InputFile]) -> tuple[dict[str, Outcome], list[Unit]]:
    """Outcomes of files outside all units, by relative path, and the units to convert in order of their ids."""
    outcomes = sort_out(found, job.masks, job.tables)
    left_over = [file for file in found if file.relative not in outcomes]
    settings = {**job.settings, **job.private}
    inspected, refused = inspect_all(modality, left_over, settings)
    discovery = modality.group(inspected, settings)
    outcomes |= refused | discovery.outcomes
    units = sorted(discovery.units, key=lambda unit: unit_id(job.salt, unit))
    left, units = (units[job.limit :], units[: job.limit]) if job.limit is not None else ([], units)
    for unit in left:
        outcomes |= {file.relative: Outcome(Status.SKIPPED, "limit") for file in unit.files}
    covered = {file.relative for unit in units for file in unit.files}
    for file in found:
        if file.relative not in covered and file.relative not in outcomes:
            outcomes[file.relative] = Outcome(Status.SKIPPED, "not_an_input")
    return outcomes, units


def _convert(job: Job, units: list[Unit]) -> tuple[list[StagedUnit], list[str]]:
    """All units staged, those that met a defect with outcome `internal`; and the defects' descriptions."""
    task = Task(job.module, job.name, job.settings, job.out / STAGING, job.subjects, job.labels)
    total = sum(len(unit.files) for unit in units)
    allowed = job.max_failures * total if isinstance(job.max_failures, float) else job.max_failures
    progress = Progress(total, job.name)
    workers = Workers(task, max(1, min(job.workers, len(units))))
    staged: list[StagedUnit] = []
    defects: list[str] = []
    try:
        for name, unit, result in workers.run((unit_id(job.salt, unit), unit) for unit in units):
            if isinstance(result, UnexpectedError):
                defects.append(f"{result.name} in unit {name}")
                if job.debug:
                    progress.note(result.trace)
                outcome = Outcome(Status.FAILED, "internal", result.name)
                result = StagedUnit(name, "", {input_id(job.salt, file.relative): outcome for file in unit.files})
            staged.append(result)
            progress.advance(inputs=len(unit.files), samples=len(result.samples), failures=result.failed)
            if allowed is not None and progress.failures > allowed:
                raise MedcossError(
                    f"{progress.failures} of {total} inputs failed, more than --max-failures allows: see why with "
                    "a run without it"
                )
    except KeyboardInterrupt as error:
        workers.kill()
        raise MedcossError(
            f"interrupted: {progress.inputs} of {total} inputs are staged in {job.out / STAGING}: the same command "
            "goes on"
        ) from error
    except BaseException:
        workers.kill()
        raise
    finally:
        progress.close()
    workers.close()
    return staged, defects


def _refuse_empty(job: Job, assembly: Assembly) -> None:
    fates = assembly.fates.values()
    reasons = ", ".join(f"{number} {reason}" for _, reason, number in count_reasons(fates)[:4])
    write_outcomes(job.out / OUTCOMES, fates)
    shutil.rmtree(job.out / STAGING)
    raise MedcossError(f"no sample came out of {len(assembly.fates)} files ({reasons}): see {job.out / OUTCOMES}")


def _dry_result(outcomes: Mapping[str, Outcome], units: list[Unit], found: list[InputFile]) -> Result:
    counts = {"read": len(found), "units": len(units)}
    counts |= {str(s): sum(o.status is s for o in outcomes.values()) for s in (Status.SKIPPED, Status.FAILED)}
    reasons: dict[tuple[str, str], int] = {}
    for outcome in outcomes.values():
        reasons[str(outcome.status), outcome.reason] = reasons.get((str(outcome.status), outcome.reason), 0) + 1
    return Result("dry run", counts, {}, [(*name, number) for name, number in sorted(reasons.items())])


def _result(
    manifest: Manifest, assembly: Assembly, files: Mapping[str, InputFile], defects: list[str], told: list[str]
) -> Result:
    fates = assembly.fates
    failures = [
        (files[name], fates[name].outcome) for name in sorted(fates) if fates[name].outcome.status is Status.FAILED
    ]
    notes = [*told, *([", ".join(f"{n} {what}" for what, n in assembly.counts.items())] if assembly.counts else [])]
    notes += [*(f"defect: {text}; run with --debug and report it" for text in defects)]
    if assembly.duplicates:
        notes.append(f"{assembly.duplicates} samples were copies of others and left out")
    if assembly.conflicts:
        notes.append(f"{assembly.conflicts} samples had copies with different labels: kept without those labels")
    if assembly.unknown_subjects:
        notes.append(f"{assembly.unknown_subjects} samples name no patient: each study, row or file counts as one")
    notes += [f"split {name} is empty: no subject was given or drawn to it" for name, entry in manifest.splits.items()
              if not entry.samples and manifest.settings["split"][name] > 0]  # fmt: skip
    splits = _splits(manifest)
    return Result("written", manifest.inputs, splits, count_reasons(fates.values()), manifest.fingerprint,
                  tuple(failures), tuple(notes))  # fmt: skip


def _splits(manifest: Manifest) -> dict[str, dict[str, int]]:
    entries = ((name, manifest.splits[name]) for name in SPLITS)
    return {name: {"samples": entry.samples, "subjects": entry.subjects} for name, entry in entries}
