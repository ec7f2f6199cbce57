"""What one conversion is asked to do, and what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preprocess.conversion import InputFile, Outcome
from preprocess.executor import STALL_SECONDS
from preprocess.labels import Labels
from preprocess.split import Salt, Subjects


@dataclass(frozen=True)
class Job:
    """One conversion. `settings` is what the manifest keeps, `private` what only `inspect` and `group` see (paths,
    file names); `tables` are the label tables, `masks` mask folders.

    `max_failures` is a number of files, or a fraction of them if it is a float; None for any number. `stall_seconds` is
    how long a worker may give no sign of life.
    """

    name: str
    module: str
    inputs: tuple[Path, ...]
    out: Path
    settings: dict[str, Any]
    subjects: Subjects
    labels: Labels = field(default_factory=Labels)
    private: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()
    workers: int = 1
    limit: int | None = None
    shard_size: int | None = None
    max_failures: int | float | None = None
    extend: bool = False
    dry_run: bool = False
    qc: bool = True
    debug: bool = False
    stall_seconds: float = STALL_SECONDS

    @property
    def salt(self) -> Salt:
        """The salt of keys, tokens, ids and splits."""
        return self.subjects.salt


@dataclass(frozen=True)
class Result:
    """What a run did. `state` is "written", "up to date" or "dry run"; `reasons` are (status, reason, files)."""

    state: str
    inputs: dict[str, int]
    splits: dict[str, dict[str, int]]
    reasons: list[tuple[str, str, int]]
    fingerprint: str | None = None
    failures: tuple[tuple[InputFile, Outcome], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """3 if inputs failed, else 0."""
        return 3 if self.inputs.get("failed") else 0
