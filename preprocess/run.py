"""The engine: finds the inputs, has them converted by a pool of processes, and assembles the shard set.

Every input is accounted for, and a run that was killed at any point gives the same bytes when it is repeated: units
are staged whole in DIR/.staging, the set is written there too and moved into DIR when finished, the manifest last.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from operator import itemgetter
from typing import cast

from medcoss.command import say
from medcoss.contracts import MedcossError
from medcoss.shards import ERASURES, Manifest, canonical_json, read_erasures
from preprocess.assemble import Assembly, assemble
from preprocess.conversion import InputFile, Inspected, Modality, Outcome, Status, Unit
from preprocess.executor import LocalProcesses
from preprocess.inputs import find_files, input_id, sort_out
from preprocess.job import Job, Result
from preprocess.outcomes import OUTCOMES, count_reasons, private_directory, write_outcomes, write_private
from preprocess.progress import Progress, counted
from preprocess.publish import MANIFEST, STAGING, publish
from preprocess.resume import begin, check_begun, check_out, finished, locked, splits
from preprocess.split import Salt
from preprocess.staging import StagedUnit
from preprocess.tally import Tally
from preprocess.workers import Defect, Task, convert_each, disk_trouble, inspect_each, set_up


def run(job: Job) -> Result:
    """Do the job. Raises `UsageError` before anything is written if it cannot be begun, `MedcossError` if it fails."""
    modality = cast(Modality, importlib.import_module(job.module))
    private = private_directory(job.out)
    found = find_files(job.inputs, leave_out=(job.out, private))
    files = {input_id(job.salt, file.relative): file for file in found}
    if (job.out / MANIFEST).exists():
        done = finished(job, files)
        if done is not None:
            shutil.rmtree(job.out / STAGING, ignore_errors=True)
            return done
    else:
        check_out(job)
    check_begun(job)
    task = Task(job.module, job.name, job.settings, job.out / STAGING, job.subjects, job.labels, job.private)
    # Both uses share the processes: starting them takes longer than many a run.
    workers = LocalProcesses(
        job.workers, set_up, (task,), stall_seconds=job.stall_seconds, show_output=job.debug
    )  # fmt: skip
    try:
        outcomes, units, defects = _discover(job, modality, found, workers)
        if job.dry_run:
            return _dry_result(outcomes, units, found)
        with locked(private):
            begin(job)
            failed_before = sum(outcome.status is Status.FAILED for outcome in outcomes.values())
            staged = _convert(job, task, units, failed_before, workers, defects)
            return _finish(job, modality, staged, outcomes, files, defects, workers)
    finally:
        workers.kill()


def _finish(
    job: Job, modality: Modality, staged: list[StagedUnit], outcomes: Mapping[str, Outcome],
    files: Mapping[str, InputFile], defects: list[str], workers: LocalProcesses,
) -> Result:  # fmt: skip
    private, staging = private_directory(job.out), job.out / STAGING
    erased = {mark for erasure in read_erasures(job.out) for mark in (erasure.subject, *erasure.contents)}
    by_id = {input_id(job.salt, relative): outcome for relative, outcome in outcomes.items()}
    assembly = assemble(staged, by_id, job.settings["split"], job.salt, erased)
    missing = [name for name in files if name not in assembly.fates]
    if missing:
        raise MedcossError(
            f"no outcome for {counted(len(missing), 'file')}: a defect of preprocess {job.name}, report it"
        )
    forgotten = {name for name, fate in assembly.fates.items() if fate.outcome.reason == "erased"}
    if not assembly.samples:
        write_private(private, files, forgotten)
        _refuse_empty(job, assembly)
    say(f"{job.name}: writing {counted(assembly.samples, 'sample')} to shards")
    try:
        manifest, told = publish(
            modality, assembly, staging, job.out, job.settings, executor=workers, workers=job.workers,
            salt_id=job.salt.id, shard_size=job.shard_size, with_qc=job.qc,
            carried={ERASURES: (job.out / ERASURES).read_bytes()} if erased else {},
        )  # fmt: skip
        # After the set: a killed --extend must still see which inputs differ from those of the old set.
        write_private(private, files, forgotten)
    except OSError as error:
        raise MedcossError(disk_trouble(job.out, error)) from error
    shutil.rmtree(staging)
    return _result(manifest, assembly, files, defects, told)


def unit_id(salt: Salt, unit: Unit) -> str:
    """A unit's id: its files and what the modality says of it, under the salt."""
    names = "\0".join(sorted(file.relative for file in unit.files))
    return salt.token("unit", names, canonical_json(unit.detail), length=16)


def _discover(
    job: Job, modality: Modality, found: list[InputFile], workers: LocalProcesses
) -> tuple[dict[str, Outcome], list[tuple[str, Unit]], list[str]]:
    """Outcomes of files outside all units, by relative path, the units to convert with their ids and in order of these,
    and the descriptions of defects that were met.
    """
    outcomes = sort_out(found, job.masks, job.tables)
    left_over = [file for file in found if file.relative not in outcomes]
    say(f"{job.name}: looking through {counted(len(left_over), 'file')}")
    inspected: dict[str, Inspected] = {}
    defects: list[str] = []
    progress = Progress(len(left_over), job.name, "files looked through")
    try:
        for file, about in inspect_each(workers, left_over, job.workers):
            if isinstance(about, Defect):
                _note_defect(job, progress, defects, about, f"input {input_id(job.salt, file.relative)}")
                outcomes[file.relative] = about.outcome
            elif isinstance(about, Outcome):
                outcomes[file.relative] = about
            else:
                inspected[file.relative] = Inspected(file, about)
            progress.advance()
    finally:
        progress.close(always=False)
    # In the order of the files, not in that of the answers.
    ordered = [inspected[file.relative] for file in left_over if file.relative in inspected]
    discovery = modality.group(ordered, {**job.settings, **job.private})
    outcomes |= discovery.outcomes
    units = sorted(((unit_id(job.salt, unit), unit) for unit in discovery.units), key=itemgetter(0))
    left, units = (units[job.limit :], units[: job.limit]) if job.limit is not None else ([], units)
    for _, unit in left:
        outcomes |= {file.relative: Outcome(Status.SKIPPED, "limit") for file in unit.files}
    covered = {file.relative for _, unit in units for file in unit.files}
    for file in found:
        if file.relative not in covered and file.relative not in outcomes:
            outcomes[file.relative] = Outcome(Status.SKIPPED, "not_an_input")
    return outcomes, units, defects


def _note_defect(job: Job, progress: Progress, defects: list[str], defect: Defect, where: str) -> None:
    defects.append(f"{defect.name} in {where}")
    if job.debug:
        progress.note(defect.trace)


def _convert(
    job: Job, task: Task, units: list[tuple[str, Unit]], failed_before: int, workers: LocalProcesses, defects: list[str]
) -> list[StagedUnit]:
    """All units staged; defects that were met are added to `defects`. `failed_before` files failed when they were
    looked through: they count to --max-failures.
    """
    tally = Tally([unit for _, unit in units])
    total = tally.total + failed_before
    progress = Progress(
        total, job.name, also=("samples", "failed"), per_second="samples", before=failed_before
    )  # fmt: skip
    staged: list[StagedUnit] = []
    try:
        progress.advance(0, failed=failed_before)
        _stop_at_failures(job, failed_before, total)
        for name, unit, result, defect in convert_each(workers, task, units, job.workers):
            if defect is not None:
                _note_defect(job, progress, defects, defect, f"unit {name}")
            staged.append(result)
            fates = zip(unit.files, result.outcomes.values(), strict=True)
            step = tally.add({file.relative: outcome for file, outcome in fates})
            progress.advance(step.done, step.work, samples=len(result.samples), failed=step.failed)
            _stop_at_failures(job, progress.counts["failed"], total)
    except KeyboardInterrupt as error:
        raise MedcossError(
            f"interrupted: {progress.done:,} of {counted(total, 'file')} done, staged in {task.staging}: "
            "the same command goes on"
        ) from error
    finally:
        progress.close()
    return staged


def _stop_at_failures(job: Job, failures: int, total: int) -> None:
    """Raise `MedcossError` if more of `total` files failed than --max-failures allows."""
    allowed = job.max_failures * total if isinstance(job.max_failures, float) else job.max_failures
    if allowed is not None and failures > allowed:
        raise MedcossError(
            f"{failures:,} of {counted(total, 'file')} failed, more than --max-failures allows: see why with a run "
            "without it"
        )


def _refuse_empty(job: Job, assembly: Assembly) -> None:
    fates = assembly.fates.values()
    counts = count_reasons(fate.outcome for fate in fates)
    reasons = ", ".join(f"{number:,} {reason}" for _, reason, number in counts[:4])
    write_outcomes(job.out / OUTCOMES, fates)
    shutil.rmtree(job.out / STAGING)
    raise MedcossError(
        f"no sample came out of {counted(len(assembly.fates), 'file')} ({reasons}): see {job.out / OUTCOMES}"
    )


def _dry_result(outcomes: Mapping[str, Outcome], units: list[tuple[str, Unit]], found: list[InputFile]) -> Result:
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
    notes = [*told]
    if assembly.counts:
        notes.append("; ".join(f"{what}: {n:,}" for what, n in assembly.counts.items()))
    notes += [*(f"defect: {text}; run with --debug and report it" for text in defects)]
    if assembly.duplicates:
        notes.append(f"{counted(assembly.duplicates, 'copy', 'copies')} of other samples left out")
    if assembly.conflicts:
        notes.append(f"{counted(assembly.conflicts, 'sample')} kept without labels on which copies disagree")
    if assembly.unknown_subjects:
        unknown = counted(assembly.unknown_subjects, "sample")
        notes.append(f"{unknown} without a known patient: each study, row or file counts as one; see --subject-from")
    notes += [f"split {name} is empty: no subject was given or drawn to it" for name, entry in manifest.splits.items()
              if not entry.samples and manifest.settings["split"][name] > 0]  # fmt: skip
    return Result("written", manifest.inputs, splits(manifest), count_reasons(fate.outcome for fate in fates.values()),
                  manifest.fingerprint, tuple(failures), tuple(notes))  # fmt: skip
