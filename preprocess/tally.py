"""How many files are done when units come in: a file may be divided into several units, or share one with others."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preprocess.conversion import Outcome, Status, Unit


@dataclass(frozen=True)
class Step:
    """What one more unit did: files of which no unit is left, the part of all files that was (in files), and how many
    of the files done failed.
    """

    done: int
    work: float
    failed: int


class Tally:
    """Counts files by the units that hold them. `total` is the number of files."""

    def __init__(self, units: Sequence[Unit]) -> None:
        held = Counter(file.relative for unit in units for file in unit.files)
        self.total = len(held)
        self._units = {name: number for name, number in held.items() if number > 1}
        self._left = dict(self._units)
        self._seen: dict[str, set[Status]] = defaultdict(set)

    def add(self, outcomes: Mapping[str, Outcome]) -> Step:
        """Count a unit, by the outcomes that it gave its files (by relative path).

        A file is failed if a unit failed it and none wrote of it, as in `assemble`.
        """
        done, work, failed = 0, 0.0, 0
        for name, outcome in outcomes.items():
            statuses = self._seen[name] | {outcome.status} if name in self._units else {outcome.status}
            work += 1 / self._units.get(name, 1)
            if name in self._units:
                self._seen[name] = statuses
                self._left[name] -= 1
                if self._left[name]:
                    continue
                del self._seen[name]
            done += 1
            failed += Status.FAILED in statuses and Status.WRITTEN not in statuses
        return Step(done, work, failed)
