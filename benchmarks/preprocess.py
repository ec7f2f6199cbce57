"""Samples a second of `preprocess` against plain ways of the same work: `python -m benchmarks.preprocess [--quick]`.

All figures are of one run: the works that a row compares are timed in turns and the ratio is the median of neighbours,
so that trust in it does not need a quiet machine; the plain ways of CT and MRI take long and are timed once.
"Whole command" counts from the parsed command line to the finished set, processes' start and QC page included; the
column "no start" deducts what a run over next to nothing takes.
A "." begins a remark: what the inputs were, and the functions that took most of a conversion's time themselves.
Real files (MEDCOSS_DATA, or shared/data beside the checkout) are taken where they are there, else made ones. All of it
takes some 15 minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

# Run as a script, its own folder comes first on the path, where this file would hide the package of its name.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.preprocess_rows.measure import Remark, Row, Setting

SUBJECTS = ("ct", "mri", "pathology", "xray", "report")


def main() -> None:
    """Print the table, and with --json write it to a file as well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny inputs and one repeat: tries the script, no more")
    parser.add_argument("--only", type=_subjects, default=SUBJECTS, metavar="LIST", help=f"of {','.join(SUBJECTS)}")
    parser.add_argument("--repeats", type=int, metavar="N", help="times that each work is timed (default 3)")
    parser.add_argument("--large", action="store_true", help="measure the memory that a slide of some 2 GB takes too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to it as JSON")
    arguments = parser.parse_args()
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error("--repeats: expected at least 1")
    # Imported late: the processes of a pool import this file anew and need none of it.
    from benchmarks.preprocess_rows.measure import Setting

    machine = describe_machine()
    print(", ".join(machine.values()))
    found: list[Row | Remark] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        repeats = arguments.repeats or (1 if arguments.quick else 3)
        setting = Setting(Path(folder), real_data(), arguments.quick, arguments.large, repeats)
        if setting.data is None:
            print("Real files are absent: all inputs are made.")
        print(HEADING)
        for row in all_rows(setting, arguments.only):
            found.append(row)
            print(as_text(row), flush=True)
    if arguments.json:
        content = {"machine": machine, "quick": arguments.quick, "rows": [asdict(row) for row in found]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


def _subjects(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(SUBJECTS):
        raise argparse.ArgumentTypeError(f"{text!r}: choose from {','.join(SUBJECTS)}")
    return names


def describe_machine() -> dict[str, str]:
    """What the figures depend on: cores, processor, memory, versions."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [
            line.partition(":")[2].strip() for line in information.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return {
        "cores": f"{len(os.sched_getaffinity(0))} cores",
        "cpu": cpu,
        "memory": f"{memory:.0f} GB",
        "python": f"Python {platform.python_version()}",
        "load": f"load {load:.1f} at the start",
    }


def real_data() -> Path | None:
    """The folder of real files, None where there is none."""
    root = Path(os.environ.get("MEDCOSS_DATA", ROOT.parent / "shared" / "data"))
    for candidate in (root, ROOT / "shared" / "data"):
        if (candidate / "SOURCES.md").is_file():
            return candidate
    return None


def all_rows(setting: Setting, subjects: tuple[str, ...]) -> Iterator[Row | Remark]:
    """The rows of the subjects, in their usual order."""
    from benchmarks.preprocess_rows import pictures, reports, slides, volumes

    if "ct" in subjects:
        yield from volumes.rows(setting, "ct")
    if "mri" in subjects:
        yield from volumes.rows(setting, "mri")
    if "pathology" in subjects:
        yield from slides.rows(setting)
    if "xray" in subjects:
        yield from pictures.rows(setting)
    if "report" in subjects:
        yield from reports.rows(setting)


HEADING = (
    f"{'':<62} {'ours':>9} {'against':>9} {'unit':<10} {'ratio':>7} {'(from to)':>15} {'no start':>8} {'target':>9}"
)


def as_text(row: Row | Remark) -> str:
    """A line of the table."""
    from benchmarks.preprocess_rows.measure import Remark

    if isinstance(row, Remark):
        return f"  . {row.text}"
    against = "" if row.against is None else f"{row.against:9.4g}"
    ratio = "" if row.ratio is None else f"{row.ratio:7.2f}"
    spread = "" if row.lowest is None or row.highest is None else f"({row.lowest:.2f} {row.highest:.2f})"
    bare = "" if row.without_start is None else f"{row.without_start:8.2f}"
    goal = "" if row.target is None else f"{'≤' if row.at_most else '≥'} {row.target:g} {'ok' if row.met else '--'}"
    return f"{row.name:<62} {row.ours:9.4g} {against:>9} {row.unit:<10} {ratio:>7} {spread:>15} {bare:>8} {goal:>9}"


if __name__ == "__main__":
    main()
