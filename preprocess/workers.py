"""Worker processes: units in, staged files out. A worker that dies costs the unit it was on and nothing else."""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

from medcoss.contracts import MedcossError
from preprocess.conversion import (
    Conversion,
    InputFile,
    Inspected,
    Modality,
    Outcome,
    Piece,
    Refusal,
    Settings,
    Status,
    Unit,
)
from preprocess.inputs import input_id, stamp
from preprocess.labels import Labels
from preprocess.split import Salt, Subjects, split_name
from preprocess.staging import StagedUnit, UnitWriter, read_unit

_IN_FLIGHT_A_WORKER = 4
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Task:
    """What a worker needs besides the unit. `module` is the dotted name of the modality's module."""

    module: str
    modality: str
    settings: dict[str, Any]
    staging: Path
    subjects: Subjects
    labels: Labels

    @property
    def salt(self) -> Salt:
        """The salt of tokens, keys and ids."""
        return self.subjects.salt


def inspect_all(
    modality: Modality, files: Sequence[InputFile], settings: Settings
) -> tuple[list[Inspected], dict[str, Outcome]]:
    """What the modality says of each file, and the outcomes of those it refuses, by relative path."""
    inspected: list[Inspected] = []
    outcomes: dict[str, Outcome] = {}
    for file in files:
        try:
            inspected.append(Inspected(file, modality.inspect(file, settings)))
        except Refusal as refusal:
            outcomes[file.relative] = refusal.outcome
    return inspected, outcomes


class UnexpectedError(Exception):
    """A defect met in a worker; carries the type's name and the traceback as text, for both survive the pipe."""

    def __init__(self, name: str, trace: str) -> None:
        super().__init__(name, trace)
        self.name, self.trace = name, trace


_TASK: list[Task] = []
"""The one task of this worker process, set when it starts: label tables are too large to travel with every unit."""


def _convert_in_worker(unit_id: str, unit: Unit) -> StagedUnit:
    return convert_unit(_TASK[0], unit_id, unit)


def convert_unit(task: Task, unit_id: str, unit: Unit) -> StagedUnit:
    """Convert and stage one unit; what an earlier run staged of the same files is taken as it is.

    Raises `UnexpectedError` for a defect in the modality, `MedcossError` or `OSError` if staging is impossible.
    """
    marker = stamp(unit.files)
    earlier = read_unit(task.staging / unit_id)
    if earlier is not None and earlier.stamp == marker:
        return earlier
    conversion = _converted(task, unit)
    writer = UnitWriter(task.staging, unit_id, marker)
    ids = {file.relative: input_id(task.salt, file.relative) for file in unit.files}
    files = {file.relative: file for file in unit.files}
    for piece in conversion.pieces:
        token, known, labels, split = _identity(task, files[piece.file], piece)
        content = task.salt.token("key", task.modality, piece.content, length=26)
        writer.add(
            piece.data, key=f"{content}-{piece.suffix}", input_id=ids[piece.file], subject=token, known=known,
            split=split, labels=labels, geometry=piece.geometry,
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


def _converted(task: Task, unit: Unit) -> Conversion:
    modality = cast(Modality, importlib.import_module(task.module))
    try:
        return modality.convert(unit, task.settings)
    except Refusal as refusal:
        outcome = refusal.outcome
    except OSError as error:
        # The text of an OSError holds the path; its kind is enough.
        outcome = Outcome(Status.FAILED, "unreadable", error.strerror or type(error).__name__)
    except MemoryError:
        outcome = Outcome(Status.FAILED, "worker_died", "out of memory")
    except Exception as error:
        raise UnexpectedError(type(error).__name__, traceback.format_exc()) from error
    return Conversion([], {file.relative: outcome for file in unit.files})


def _start_worker(task: Task) -> None:
    """Ctrl-C is the parent's business, and a worker must not outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    importlib.import_module(task.module)
    _TASK.append(task)


def _die_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


class Workers:
    """A pool of spawned processes that survives the death of its members."""

    def __init__(self, task: Task, count: int) -> None:
        self._task = task
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def run(self, units: Iterable[tuple[str, Unit]]) -> Iterator[tuple[str, Unit, StagedUnit | UnexpectedError]]:
        """Convert the units, yielding each with its result as it comes; their order is not that of the input.

        Raises `MedcossError` if staging fails, for then no later unit can be kept either.
        """
        pending: dict[Future[StagedUnit], tuple[str, Unit]] = {}
        waiting = iter(units)
        suspects: list[tuple[str, Unit]] = []
        while True:
            # Few units are in flight, so that a dying worker leaves few suspects to be tried again one by one.
            for item in waiting:
                pending[self._submit(item, self._count)] = item
                if len(pending) >= _IN_FLIGHT_A_WORKER * self._count:
                    break
            if not pending:
                return
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                item = pending.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(item)
                else:
                    yield (*item, self._result(future))
            if suspects:
                wait(pending)
                suspects += [item for future, item in pending.items() if future.exception() is not None]
                for future, item in pending.items():
                    if future.exception() is None:
                        yield (*item, self._result(future))
                pending.clear()
                yield from self._one_by_one(suspects)
                suspects.clear()

    def _one_by_one(self, items: list[tuple[str, Unit]]) -> Iterator[tuple[str, Unit, StagedUnit | UnexpectedError]]:
        for item in items:
            self.close()
            future = self._submit(item, 1)
            wait([future])
            if isinstance(future.exception(), BrokenProcessPool):
                unit_id, unit = item
                outcome = Outcome(Status.FAILED, "worker_died")
                outcomes = {input_id(self._task.salt, file.relative): outcome for file in unit.files}
                # Not staged: the next run tries it again.
                yield (*item, StagedUnit(unit_id, stamp(unit.files), outcomes))
            else:
                yield (*item, self._result(future))
        self.close()

    def _submit(self, item: tuple[str, Unit], count: int) -> Future[StagedUnit]:
        for _ in range(2):
            if self._pool is None:
                spawn = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(count, spawn, _start_worker, (self._task,))
            try:
                return self._pool.submit(_convert_in_worker, *item)
            except BrokenProcessPool:
                self.close()
        raise MedcossError("worker processes die as soon as they start: look at the messages above, or use --debug")

    def _result(self, future: Future[StagedUnit]) -> StagedUnit | UnexpectedError:
        error = future.exception()
        if error is None:
            return future.result()
        if isinstance(error, UnexpectedError):
            return error
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise MedcossError(
                f"{self._task.staging.parent}: {error.strerror}: free some space, then run the same command to go on"
            ) from error
        raise error

    def close(self) -> None:
        """End the processes; units that were not begun are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def kill(self) -> None:
        """End the processes at once: what they were writing has no name yet."""
        if self._pool is not None:
            for child in multiprocessing.active_children():
                child.kill()
            self.close()
