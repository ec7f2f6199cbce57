"""Phantoms to files: a cohort of made-up subjects, their files in clinical formats, a labels table per modality.

Everything is a pure function of (seed, modality, number of the subject), so the number of workers changes nothing, and
what a complete folder holds is known before anything is drawn.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from medcoss.atomic import atomic_directory
from medcoss.contracts import UsageError, derive_seed
from preprocess.phantoms import formats

LABELS = "labels.csv"

SUBJECTS = {"report": 320, "xray": 240, "ct": 144, "mri": 160, "pathology": 64}
"""Subjects a modality at scale 1: hundreds of samples each, and enough subjects that 25 % of them test a probe."""

_SAMPLES_A_SUBJECT = {"report": 4, "xray": 4, "ct": 1, "mri": 1, "pathology": 1}
_FEWEST = 4


@dataclass(frozen=True)
class Item:
    """One file or series to write: `name` relative to the modality's folder, and what is drawn in it."""

    modality: str
    name: str
    subject: str
    label: str
    seed: int
    number: int


def plan(modality: str, seed: int, scale: float) -> list[Item]:
    """All items of a modality in the order of their names; classes in turn, so that they are balanced."""
    subjects = max(_FEWEST, round(SUBJECTS[modality] * scale))
    classes = formats.CLASSES[modality]
    items = []
    for number in range(subjects):
        # Persons are numbered per modality and their names drawn, so that no id tells the class.
        token = derive_seed("phantom subject", formats.VERSION, seed, modality, number)
        subject = f"SYN-{token % 16**8:08x}"
        for sample in range(_SAMPLES_A_SUBJECT[modality]):
            place = number * _SAMPLES_A_SUBJECT[modality] + sample
            own_seed = derive_seed("phantom", formats.VERSION, seed, modality, number, sample)
            name = formats.name(modality, subject, sample, place)
            items.append(Item(modality, name, subject, classes[(number + sample) % len(classes)], own_seed, place))
    return sorted(items, key=lambda item: item.name)


def generate(out: Path, seed: int, scale: float, workers: int, progress: Callable[[str], None]) -> dict[str, int]:
    """Write `out`/MODALITY for every modality; a complete folder of the same seed and scale is left as it is.

    Returns the number of labelled files or series a modality. Each folder appears whole or not at all. Raises
    `UsageError` before writing anything if a folder holds something else.
    """
    plans = {modality: plan(modality, seed, scale) for modality in SUBJECTS}
    missing = [modality for modality, items in plans.items() if not _is_complete(out / modality, items)]
    for modality in plans.keys() - set(missing):
        progress(f"{modality}: up to date")
    with _pool(workers if missing else 1) as run:
        for modality in missing:
            items = plans[modality]
            with atomic_directory(out / modality) as folder:
                (folder / LABELS).write_bytes(_table(items))
                for _ in run([(str(folder), item) for item in items]):
                    pass
            subjects = len({item.subject for item in items})
            progress(f"{modality}: {len(items)} {formats.UNITS[modality]} of {subjects} subjects")
    return {modality: len(items) for modality, items in plans.items()}


def _is_complete(folder: Path, items: list[Item]) -> bool:
    """Whether `folder` is what `items` would write; raises `UsageError` if it holds anything else."""
    if not folder.exists():
        return False
    table = folder / LABELS
    if not table.is_file() or table.read_bytes() != _table(items):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            return False
        raise UsageError(f"{folder} holds other files than these phantoms: delete it or give another --out")
    lost = next((item.name for item in items if not (folder / item.name).exists()), None)
    if lost is not None:
        raise UsageError(f"{folder} lacks {lost}: delete the folder and run again")
    return True


def _table(items: list[Item]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("file", "subject", "label"))
    writer.writerows((item.name, item.subject, item.label) for item in items)
    return text.getvalue().encode()


@contextmanager
def _pool(workers: int) -> Iterator[Callable[[list[tuple[str, Item]]], Iterator[None]]]:
    if workers < 2:
        yield lambda tasks: map(_write, tasks)
        return
    # Spawned, not forked: the caller may hold threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield lambda tasks: pool.map(_write, tasks, chunksize=4)


def _write(task: tuple[str, Item]) -> None:
    folder, item = task
    path = Path(folder, item.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    formats.WRITERS[item.modality](path, np.random.default_rng(item.seed), item.label, item.subject, item.number)
