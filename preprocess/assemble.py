"""From staged samples to one set's list: duplicates, conflicting labels, given and drawn splits, order of keys."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from medcoss.contracts import SPLITS, UsageError, check_key
from medcoss.shards import content_mark
from preprocess.conversion import Outcome, Status
from preprocess.split import Salt, assign
from preprocess.staging import StagedAttachment, StagedSample, StagedUnit

_SPLIT_RANK = {"test": 0, "val": 1, "train": 2}


@dataclass(frozen=True, slots=True)
class Placed:
    """A sample that goes into the set: its split, the unit it is staged in, and what is stored beside its data."""

    split: str
    unit_id: str
    sample: StagedSample
    part: int = 0
    """Which of the samples that a rewriter makes of it."""


@dataclass(slots=True)
class FileFate:
    """One row of `outcomes`."""

    input_id: str
    unit_id: str
    outcome: Outcome
    key_prefix: str = ""
    n_samples: int = 0


@dataclass
class Assembly:
    """The whole set: samples by split in key order, and a row for every file."""

    splits: dict[str, list[Placed]]
    fates: dict[str, FileFate]
    duplicates: int = 0
    conflicts: int = 0
    unknown_subjects: int = 0
    figures: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """Rows and the like inside the files, by name, over the whole set."""

    attachments: dict[str, tuple[str, StagedAttachment]] = field(default_factory=dict)
    """Unit id and place of each file of `qc/inputs/`, by its name."""

    @property
    def samples(self) -> int:
        """Number of samples in all splits."""
        return sum(map(len, self.splits.values()))


def assemble(
    units: Iterable[StagedUnit], outcomes: Mapping[str, Outcome], fractions: Mapping[str, float], salt: Salt,
    erased: Collection[str] = (),
) -> Assembly:  # fmt: skip
    """Decide about every staged sample and every file; the result does not depend on the order of `units`.

    `outcomes` are those of files in no unit, by input id; samples whose subject or content mark is in `erased`
    are left out. Raises `UsageError` if a subject is given two splits.
    """
    units = sorted((_without(unit, erased) for unit in units), key=lambda unit: unit.unit_id)
    place = _subject_splits(units, fractions, salt)
    copies: dict[str, list[Placed]] = defaultdict(list)
    for unit in units:
        for sample in unit.samples:
            copies[check_key(sample.key)].append(Placed(place[sample.subject], unit.unit_id, sample))
    assembly = Assembly({split: [] for split in SPLITS}, {})
    lost: dict[str, str] = {}
    kept: dict[str, list[str]] = defaultdict(list)
    conflicted: set[str] = set()
    for key in sorted(copies):
        placed, *others = sorted(copies[key], key=_preference)
        labels, conflict = _agreed([one.sample.labels for one in (placed, *others)])
        assembly.duplicates += len(others)
        for other in others:
            lost[other.sample.input_id] = "conflicting_labels" if conflict else "duplicate"
        if conflict:
            assembly.conflicts += 1
            conflicted.add(placed.sample.input_id)
        sample = placed.sample
        if labels != sample.labels:
            placed = replace(placed, sample=replace(sample, labels=labels))
        assembly.splits[placed.split].append(placed)
        kept[sample.input_id].append(key)
        assembly.unknown_subjects += not sample.known
    for unit in units:
        for name, outcome in unit.outcomes.items():
            if outcome.status is Status.WRITTEN and name in lost and name not in kept:
                outcome = Outcome(Status.SKIPPED, lost[name])
            elif name in conflicted and not outcome.message:
                outcome = replace(outcome, message="copies with different labels exist: those labels are left out")
            _merge(assembly.fates, FileFate(name, unit.unit_id, outcome, *_keys(kept.get(name, []))))
    _inherit(units, assembly.fates)
    for name, outcome in outcomes.items():
        _merge(assembly.fates, FileFate(name, "", outcome))
    assembly.figures = _figures(units)
    assembly.counts = _count(units, copies, assembly)
    prefixes = {key.partition("-")[0] for keys in kept.values() for key in keys}
    for unit in units:
        for attachment in unit.attachments:
            if attachment.prefix in prefixes:
                name = f"{attachment.prefix}.{attachment.extension}"
                assembly.attachments.setdefault(name, (unit.unit_id, attachment))
    return assembly


def _without(unit: StagedUnit, erased: Collection[str]) -> StagedUnit:
    """The unit as if the erased subjects' samples had never been in it, but for its files' outcomes."""
    if not erased:
        return unit
    taken = {sample.key for sample in unit.samples if sample.subject in erased or content_mark(sample.key) in erased}
    gone = Counter(sample.input_id for sample in unit.samples if sample.key in taken)
    if not gone:
        return unit
    samples = [sample for sample in unit.samples if sample.key not in taken]
    left = {sample.input_id for sample in samples}
    outcomes = {
        name: Outcome(Status.SKIPPED, "erased")
        if outcome.status is Status.WRITTEN and name not in left and (name in gone or not left)
        else outcome
        for name, outcome in unit.outcomes.items()
    }
    counts = {
        name: {**inside, "erased": gone[name]} if name in gone else inside for name, inside in unit.counts.items()
    }
    # Figures and pictures cannot be told apart by subject: only a unit that keeps samples keeps them.
    figures, attachments = (unit.figures, unit.attachments) if samples else ({}, [])
    return replace(
        unit, outcomes=outcomes, samples=samples, counts=counts, figures=figures, attachments=attachments
    )  # fmt: skip


def _subject_splits(units: list[StagedUnit], fractions: Mapping[str, float], salt: Salt) -> dict[str, str]:
    given: dict[str, str] = {}
    tokens: set[str] = set()
    for unit in units:
        for sample in unit.samples:
            tokens.add(sample.subject)
            if sample.split is not None and given.setdefault(sample.subject, sample.split) != sample.split:
                raise UsageError(
                    f"the tables put one subject (token {sample.subject}) into both {given[sample.subject]} and "
                    f"{sample.split}: mend their split column, or name the right --subject-column"
                )
    return {token: given.get(token) or assign(token, fractions, salt) for token in tokens}


def _preference(placed: Placed) -> tuple[int, str, str]:
    """Test copies first: a model must not train on what it is tested with. Ids break the tie in any input order."""
    return _SPLIT_RANK[placed.split], placed.sample.input_id, placed.sample.subject


def _agreed(texts: list[str]) -> tuple[str, bool]:
    """Labels (JSON) that no two copies contradict, in the order they have, and whether one was contradicted."""
    if len(set(texts)) == 1:
        return texts[0], False
    merged: dict[str, Any] = {}
    contradicted = set()
    for text in texts:
        for name, value in json.loads(text).items():
            if merged.setdefault(name, value) != value:
                contradicted.add(name)
    return json.dumps({name: value for name, value in merged.items() if name not in contradicted}), bool(contradicted)


def _keys(keys: list[str]) -> tuple[str, int]:
    """The part of the key that a file's samples share ("" if they share none), and their number."""
    prefixes = {key.rpartition("-")[0] for key in keys}
    return (prefixes.pop() if len(prefixes) == 1 else ""), len(keys)


def _rank(fate: FileFate) -> tuple[int, bool]:
    return _RANK[fate.outcome.status], bool(fate.outcome.reason)


_RANK = {Status.WRITTEN: 2, Status.FAILED: 1, Status.SKIPPED: 0}


def _merge(fates: dict[str, FileFate], fate: FileFate) -> None:
    """A file can be in several units (a folder of mixed frames, a large slide): the best outcome counts, of two
    written ones that which tells of a loss; samples add up.
    """
    earlier = fates.get(fate.input_id)
    if earlier is None:
        fates[fate.input_id] = fate
        return
    best, other = (earlier, fate) if _rank(earlier) >= _rank(fate) else (fate, earlier)
    prefix = best.key_prefix if best.key_prefix == other.key_prefix or not other.key_prefix else ""
    fates[fate.input_id] = replace(best, key_prefix=prefix, n_samples=max(best.n_samples, other.n_samples))


def _inherit(units: list[StagedUnit], fates: dict[str, FileFate]) -> None:
    """The files of a series share its fate: all are duplicates if its samples are, all carry its key."""
    for unit in units:
        counted = {sample.input_id for sample in unit.samples}
        if len(counted) != 1 or len(unit.outcomes) == 1:
            continue
        head = fates[counted.pop()]
        for name in unit.outcomes:
            fate = fates[name]
            if fate is head or fate.outcome.status is not Status.WRITTEN:
                continue
            outcome = fate.outcome if head.outcome.status is Status.WRITTEN else head.outcome
            fates[name] = replace(fate, outcome=outcome, key_prefix=head.key_prefix)


def _count(units: list[StagedUnit], copies: Mapping[str, list[Placed]], assembly: Assembly) -> dict[str, int]:
    """Sum what lies inside the files, copies among it included; each file's message tells its own numbers."""
    inside: dict[str, Counter[str]] = defaultdict(Counter)
    for unit in units:
        for name, counts in unit.counts.items():
            inside[name].update(counts)
    for placed in assembly.splits.values():
        for one in placed:
            for copy in copies[one.sample.key]:
                if copy.sample.input_id in inside:
                    inside[copy.sample.input_id]["copies"] += 1
            if one.sample.input_id in inside:
                inside[one.sample.input_id]["copies"] -= 1
    total: Counter[str] = Counter()
    for name, numbers in sorted(inside.items()):
        total.update(numbers)
        fate = assembly.fates[name]
        told = ", ".join(f"{number} {what}" for what, number in numbers.items() if number)
        message = "; ".join(filter(None, (fate.outcome.message, told)))
        assembly.fates[name] = replace(fate, outcome=replace(fate.outcome, message=message))
    return {what: number for what, number in total.items() if number}


def _figures(units: list[StagedUnit]) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = defaultdict(list)
    for unit in units:
        for name, values in unit.figures.items():
            figures[name] += values
    return dict(sorted(figures.items()))
