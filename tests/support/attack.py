"""The command run over a folder of hostile files, and what it said of each and took."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

from preprocess.reasons import REASONS

PEAK_KIB = 3 << 20
"""Of any one process. Genuine files may be as large as 2 GiB decoded, so a bomb below that is not one."""

MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], timeout=250)
print(f"peak {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}", file=sys.stderr)
sys.exit(done.returncode)
"""
"""A program that runs the command it is given and tells the peak memory of the largest process of it, in KiB."""


class Run:
    """What became of a folder: reasons by file name, its text output, the largest process in KiB."""

    def __init__(self, modality: str, folder: Path, *options: str) -> None:
        (folder.parent / "salt").write_text("a fixed salt for tests only")
        self.out = folder.parent / f"out-{modality}"
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, sys.executable, "-m", "preprocess.cli", modality, "--in", folder,
             "--out", self.out, "--workers", "2", "--salt-file", folder.parent / "salt",
             "--split", "train=1,val=0,test=0", *options],
            capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=280,
        )  # fmt: skip
        *lines, peak = done.stderr.splitlines()
        self.text = done.stdout + "\n".join(lines)
        self.peak_kib = int(peak.split()[1])
        assert done.returncode in (0, 3), done.stderr
        assert "Traceback" not in self.text
        private = self.out.with_name(self.out.name + ".private") / "inputs.csv"
        with private.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            self.names = {row["input_id"]: row["path"].removeprefix(f"{folder}/") for row in csv.DictReader(file)}
        rows = pq.read_table(self.out / "outcomes.parquet").to_pylist()
        assert sorted(row["input_id"] for row in rows) == sorted(self.names)
        self.reasons = {self.names[row["input_id"]]: row["reason"] or row["status"] for row in rows}
        assert set(self.reasons.values()) <= {"written", *REASONS} - {"internal", "worker_died", "stalled"}, (
            self.reasons
        )

    def holds(self, content: bytes) -> bool:
        return any(content in path.read_bytes() for path in self.out.rglob("*") if path.is_file())
