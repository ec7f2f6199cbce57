"""What the rows of the conversion benchmark share: timing in turns, running a conversion, finding its slow parts."""

from __future__ import annotations

import contextlib
import cProfile
import importlib
import io
import itertools
import os
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from medcoss.contracts import MedcossError
from medcoss.shards import Sample
from medcoss.shards.writer import write_split
from preprocess.cli import build_parser, make_job
from preprocess.conversion import Inspected, Refusal
from preprocess.inputs import find_files
from preprocess.job import Job
from preprocess.run import run

Work = Callable[[], int]
"""Does some work once and says how many samples came of it."""

_SHOWN_PARTS = 4
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Setting:
    """How to measure: `folder` is for made files, `data` the real ones (None where absent)."""

    folder: Path
    data: Path | None
    quick: bool
    large: bool
    repeats: int

    def real(self, name: str) -> Path | None:
        """A folder or file of the real data; None where it is absent, and in a quick run."""
        path = None if self.data is None or self.quick else self.data / name
        return path if path is not None and path.exists() else None

    def made(self, name: str) -> Path:
        """A new folder for made files."""
        path = self.folder / name.replace(" ", "-")
        path.mkdir(parents=True)
        return path


@dataclass(frozen=True)
class Row:
    """A line of the table. `ours` and `against` are medians in `unit`; `ratio` that of pairs of neighbouring repeats,
    from `lowest` to `highest`; `without_start` is the ratio after what a run over next to nothing takes was deducted.
    """

    name: str
    unit: str
    ours: float
    against: float | None = None
    ratio: float | None = None
    lowest: float | None = None
    highest: float | None = None
    without_start: float | None = None
    target: float | None = None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the target was met by the better known figure; None without one."""
        value = self.without_start or self.ratio or self.ours
        if self.target is None:
            return None
        return value <= self.target if self.at_most else value >= self.target


@dataclass(frozen=True)
class Remark:
    """A line under the table: where the time goes, what the inputs were."""

    text: str


@dataclass(frozen=True)
class Times:
    """Seconds of each repeat by name, and the samples that each of the works gives."""

    seconds: Mapping[str, Sequence[float]]
    samples: Mapping[str, int]

    def rate(self, name: str) -> float:
        """Samples a second, median."""
        return self.samples[name] / statistics.median(self.seconds[name])

    def row(
        self, title: str, unit: str, ours: str, against: str, *, target: float | None = None, slower: bool = False,
        start: tuple[float, float] | None = None,
    ) -> Row:  # fmt: skip
        """Compare two of the works by samples a second.

        The ratio is ours over the other's, or with `slower` the other way round (how many times longer ours takes,
        `target` being the most that it may). `start` are seconds to deduct from ours and from the other.
        """
        scale = self.samples[ours] / self.samples[against]
        deducted = start or (0.0, 0.0)
        others = self.seconds[against]
        if len(others) == 1:
            others = [*others] * len(self.seconds[ours])
        pairs = list(zip(self.seconds[ours], others, strict=True))
        whole = [scale * other / own for own, other in pairs]
        # Where starting is most of the time, the rest is too small a difference to be told.
        long_enough = all(own > 1.5 * deducted[0] and other > 1.5 * deducted[1] for own, other in pairs)
        bare = [scale * (other - deducted[1]) / (own - deducted[0]) for own, other in pairs] if long_enough else []
        if slower:
            whole, bare = [1 / ratio for ratio in whole], [1 / ratio for ratio in bare]
        return Row(
            title, unit, self.rate(ours), self.rate(against), statistics.median(whole), min(whole), max(whole),
            statistics.median(bare) if start and bare else None, target, slower,
        )  # fmt: skip


def in_turns(
    works: Mapping[str, Work], repeats: int, *, tolerance: float = 0.0, only: Sequence[str] | None = None,
    once: Sequence[str] = (),
) -> Times:  # fmt: skip
    """Time the works `repeats` times each, one after the other, so that a slow minute of the machine meets all.

    Those named in `once` are timed in the first round alone, for works so long that one time tells.
    Raises `RuntimeError` if their numbers of samples (those of `only` if given) differ by more than the part
    `tolerance`: they would not have done the same.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    samples: dict[str, int] = {}
    for repeat in range(repeats):
        # Every other round backwards: whoever runs second finds the files in memory.
        for name in list(works)[:: -1 if repeat % 2 else 1]:
            if repeat and name in once:
                continue
            begun = time.perf_counter()
            samples[name] = works[name]()
            seconds[name].append(time.perf_counter() - begun)
    compared = [samples[name] for name in only or works]
    if min(compared) < (1 - tolerance) * max(compared) or not min(compared):
        raise RuntimeError(f"the numbers of samples differ: {samples}")
    return Times(seconds, samples)


@dataclass(frozen=True)
class Command:
    """A conversion as it would be typed, but for the interpreter's start. Sets stay where they are made: removing them
    is no part of the work.
    """

    modality: str
    inputs: tuple[Path, ...]
    scratch: Path
    options: tuple[str, ...] = ()

    def job(self, *more: str) -> Job:
        """What the command line with `more` options describes."""
        words = self.words(*more)
        return make_job(build_parser(words).parse_args(words))

    def words(self, *more: str) -> list[str]:
        """The command line, with a new folder for the set."""
        salt = self.scratch / "salt"
        salt.write_text("a fixed salt for measurements only\n")
        paths = [*map(str, self.inputs), "--out", str(self._new_folder()), "--salt-file", str(salt)]
        return [self.modality, "--in", *paths, *self.options, *more]

    def _new_folder(self) -> Path:
        return self.scratch / f"set-{next(_NUMBERS)}"

    def with_workers(self, workers: int, *more: str) -> Work:
        """The work of running it with so many processes."""

        def work() -> int:
            job = self.job("--workers", str(workers), *more)
            with contextlib.redirect_stderr(io.StringIO()):
                result = run(job)
            if job.dry_run:
                return result.inputs["read"]
            return sum(counts["samples"] for counts in result.splits.values())

        return work

    def here(self, *, store: bool = True) -> Work:
        """The work of the same inputs to shards in this process: no pool, no staging, no splits, no QC page."""
        job = self.job()
        return lambda: convert_here(replace(job, out=self._new_folder()), store=store)


def convert_here(job: Job, *, store: bool) -> int:
    """Read and convert every unit and, with `store`, write one split of shards. Returns the number of samples."""
    modality: Any = importlib.import_module(job.module)
    settings = {**job.settings, **job.private}
    inspected = []
    for file in find_files(job.inputs):
        with contextlib.suppress(Refusal):
            inspected.append(Inspected(file, modality.inspect(file, settings)))
    samples: list[Sample] = []
    for number, unit in enumerate(modality.group(inspected, settings).units):
        with contextlib.suppress(Refusal):
            for piece in modality.convert(unit, job.settings).pieces:
                key = f"{number:06d}-{len(samples):08d}"
                samples.append(Sample(key, piece.data, "nobody", {}, piece.geometry))
    if store:
        spec = modality.spec(settings)
        write_split(job.out, spec, "train", samples, len(samples), max(1, len(samples)))
    return len(samples)


_STARTS: dict[tuple[str, int], float] = {}


def start_seconds(setting: Setting, modality: str, workers: int, make: Callable[[Path], Sequence[Path]]) -> float:
    """What a run takes that has next to nothing to convert: starting processes, settings, the QC page.

    `make` writes the next to nothing into a folder and names its files. Measured once a modality and workers.
    """
    if (modality, workers) not in _STARTS:
        folder = setting.made(f"{modality} nothing {workers}")
        command = Command(modality, tuple(make(folder)), folder)
        times = in_turns({"start": command.with_workers(workers)}, setting.repeats)
        _STARTS[modality, workers] = statistics.median(times.seconds["start"])
    return _STARTS[modality, workers]


def pool(processes: int) -> ProcessPoolExecutor:
    """A plain pool that starts as the conversion's does."""
    return ProcessPoolExecutor(processes, get_context("spawn"))


def pool_seconds(processes: int, task: Callable[[Any], int], nothing: Any, repeats: int) -> float:
    """What a plain pool takes to do `task` on `nothing` once a process."""

    def work() -> int:
        with pool(processes) as workers:
            list(workers.map(task, [nothing] * processes))
        return 1

    return statistics.median(in_turns({"pool": work}, repeats).seconds["pool"])


def where_time_goes(work: Work) -> str:
    """The functions that take most of a work's time themselves, with their shares."""
    profile = cProfile.Profile()
    profile.runcall(work)
    stats: Any = pstats.Stats(profile)
    own = sorted(((row[2], place) for place, row in stats.stats.items()), reverse=True)[:_SHOWN_PARTS]
    return ", ".join(f"{seconds / stats.total_tt:.0%} {_name(*place)}" for seconds, place in own)


def _name(file: str, _line: int, function: str) -> str:
    if file == "~":
        return function.strip("<>").removeprefix("method ").removeprefix("built-in method ").replace("'", "")
    return f"{Path(file).stem}.{function}"


def peak_megabytes(command: Command) -> tuple[float, float]:
    """Highest resident memory in MB of the worker and of the process that leads, for one run in a process of its own.

    Raises `MedcossError` if the run fails.
    """
    words = command.words("--workers", "1")
    # The high-water mark of /proc begins anew with a program, that of getrusage would be its parent's at first.
    code = (
        "import resource, sys\nfrom preprocess.cli import main\n"
        f"status = main({words!r})\n"
        "own = next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1]\n"
        "print(status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, own, file=sys.stderr)\n"
    )
    # As a file: a spawned worker imports the program that it belongs to, and that must do nothing there.
    script = command.scratch / "peak.py"
    indented = "".join(f"    {line}\n" for line in code.splitlines())
    script.write_text(f"if __name__ == '__main__':\n{indented}")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    last = done.stderr.strip().rpartition("\n")[2].split()
    if done.returncode or len(last) != 3 or last[0] != "0":
        raise MedcossError(f"the run whose memory is measured failed: {done.stderr[-300:]}")
    return float(last[1]) / 1024, float(last[2]) / 1024
