"""What runs in the worker processes: files in, what they are out; units in, staged files out."""

from __future__ import annotations

import importlib
import json
import traceback
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from medcoss.contracts import MedcossError
from preprocess.conversion import (
    Conversion,
    InputFile,
    Json,
    Modality,
    Outcome,
    Piece,
    Refusal,
    Settings,
    Status,
    Unit,
)
from preprocess.dispatch import Lost, dispatch
from preprocess.executor import StalledError
from preprocess.heartbeat import beat
from preprocess.inputs import input_id, stamp
from preprocess.labels import Labels
from preprocess.split import Salt, Subjects, split_name
from preprocess.staging import StagedUnit, UnitWriter, read_unit

_FIRST_FILES = 16
"""Inspecting takes far less than a process takes to start: few files are not worth several."""


@dataclass(frozen=True)
class Task:
    """What a worker needs besides files and units. `module` is the dotted name of the modality's module; `private` are
    settings that only `inspect` gets.
    """

    module: str
    modality: str
    settings: dict[str, Any]
    staging: Path
    subjects: Subjects
    labels: Labels
    private: Mapping[str, Any] = field(default_factory=dict)

    @property
    def salt(self) -> Salt:
        """The salt of tokens, keys and ids."""
        return self.subjects.salt


@dataclass(frozen=True)
class Defect:
    """An error that the modality did not foresee: its type's name, and the traceback, which may hold anything."""

    name: str
    trace: str

    @property
    def outcome(self) -> Outcome:
        """What becomes of the files concerned."""
        return Outcome(Status.FAILED, "internal", self.name)


_TASK: list[Task] = []
"""The one task of this worker process, set when it starts: label tables are too large to travel with every unit."""


def set_up(task: Task) -> None:
    """Called once in each worker process."""
    _TASK.append(task)
    importlib.import_module(task.module)


def inspect_each(
    executor: Executor, files: Iterable[InputFile], workers: int
) -> Iterator[tuple[InputFile, dict[str, Json] | Outcome | Defect]]:
    """What the modality says of each file, or the outcome of one that it refuses; in any order."""
    for file, result in dispatch(executor, _inspect_in_worker, files, workers, first_bundle=_FIRST_FILES):
        yield file, _lost(result) if isinstance(result, Lost) else result


def convert_each(
    executor: Executor, task: Task, units: Iterable[tuple[str, Unit]], workers: int
) -> Iterator[tuple[str, Unit, StagedUnit, Defect | None]]:
    """Convert the units, given with their ids; yields each with its result as it comes, in any order.

    Raises `MedcossError` if staging fails, for then no later unit can be kept either.
    """
    try:
        for (name, unit), result in dispatch(executor, _convert_in_worker, units, workers):
            if isinstance(result, StagedUnit):
                result.unit_id = name  # the same text, not another copy for every unit that is kept
                yield name, unit, result, None
            else:
                outcome = _lost(result) if isinstance(result, Lost) else result.outcome
                yield name, unit, _unstaged(task, name, unit, outcome), result if isinstance(result, Defect) else None
    except OSError as error:
        raise MedcossError(disk_trouble(task.staging.parent, error)) from error


def disk_trouble(out: Path, error: OSError) -> str:
    """The one line for a set that cannot be written."""
    return (
        f"{out}: {error.strerror or type(error).__name__}: make room or mend that, then run the same command to go on"
    )


def _lost(error: Lost) -> Outcome:
    return Outcome(Status.FAILED, "stalled" if isinstance(error, StalledError) else "worker_died", str(error))


def _inspect_in_worker(file: InputFile) -> dict[str, Json] | Outcome | Defect:
    task = _TASK[0]
    try:
        return inspect_one(_modality(task), file, {**task.settings, **task.private})
    except Exception as error:  # noqa: BLE001 -- told to the user as a defect; the other files go on
        return Defect(type(error).__name__, traceback.format_exc())


def inspect_one(modality: Modality, file: InputFile, settings: Settings) -> dict[str, Json] | Outcome:
    """What the modality says of a file, or the outcome of one that it refuses."""
    try:
        return modality.inspect(file, settings)
    except (Refusal, OSError, MemoryError) as error:
        return _outcome(error)


def _outcome(error: Refusal | OSError | MemoryError) -> Outcome:
    if isinstance(error, Refusal):
        return error.outcome
    if isinstance(error, OSError):
        # The text of an OSError holds the path; its kind is enough.
        return Outcome(Status.FAILED, "unreadable", error.strerror or type(error).__name__)
    return Outcome(Status.FAILED, "worker_died", "out of memory")


def _modality(task: Task) -> Modality:
    return cast(Modality, importlib.import_module(task.module))


def _convert_in_worker(item: tuple[str, Unit]) -> StagedUnit | Defect:
    """Convert and stage one unit; what an earlier run staged of the same files is taken as it is.

    Raises `MedcossError` or `OSError` if staging is impossible.
    """
    unit_id, unit = item
    task = _TASK[0]
    marker = stamp(unit.files)
    earlier = read_unit(task.staging / unit_id)
    if earlier is not None and earlier.stamp == marker:
        return earlier
    try:
        conversion = _modality(task).convert(unit, task.settings)
    except Refusal as refusal:
        conversion = Conversion([], {file.relative: refusal.outcome for file in unit.files})
    except (OSError, MemoryError) as error:
        # Not staged: unlike what is said of a file's content, it may be otherwise when the next run tries it.
        return _unstaged(task, unit_id, unit, _outcome(error))
    except Exception as error:  # noqa: BLE001 -- told to the user as a defect; the other units go on
        return Defect(type(error).__name__, traceback.format_exc())
    try:
        return _stage(task, unit_id, unit, marker, conversion)
    except MemoryError as error:
        return _unstaged(task, unit_id, unit, _outcome(error))


def _unstaged(task: Task, unit_id: str, unit: Unit, outcome: Outcome) -> StagedUnit:
    return StagedUnit(unit_id, "", {input_id(task.salt, file.relative): outcome for file in unit.files})


def _stage(task: Task, unit_id: str, unit: Unit, marker: str, conversion: Conversion) -> StagedUnit:
    writer = UnitWriter(task.staging, unit_id, marker)
    ids = {file.relative: input_id(task.salt, file.relative) for file in unit.files}
    files = {file.relative: file for file in unit.files}
    for piece in conversion.pieces:
        beat()
        token, known, labels, split = _identity(task, files[piece.file], piece)
        content = task.salt.token("key", task.modality, piece.content, length=26)
        writer.add(
            piece.data, key=f"{content}-{piece.suffix}", input_id=ids[piece.file], subject=token, known=known,
            split=split, labels=json.dumps(labels), geometry=json.dumps(piece.geometry),
        )  # fmt: skip
    default = Outcome(Status.WRITTEN) if conversion.pieces else Outcome(Status.SKIPPED, "empty")
    for attachment in conversion.attachments:
        prefix = task.salt.token("key", task.modality, attachment.content, length=26)
        writer.attach(prefix, attachment.extension, attachment.data)
    outcomes = {ids[name]: conversion.outcomes.get(name, default) for name in ids}
    return writer.commit(
        outcomes, conversion.figures, {ids[name]: counts for name, counts in conversion.counts.items()}
    )


def _identity(task: Task, file: InputFile, piece: Piece) -> tuple[str, bool, dict[str, Any], str | None]:
    entry = task.labels.find(file, piece.row)
    token, known = task.subjects.token(entry.subject, piece.subject_ids, file.relative, piece.row)
    labels = piece.labels | entry.labels
    ordered = {name: labels[name] for name in task.labels.columns if name in labels}
    return token, known, ordered, entry.split or (split_name(piece.split) if piece.split else None)
