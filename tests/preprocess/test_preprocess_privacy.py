"""Planted names and numbers come out nowhere: not in shards, outcomes, QC, logs, staging or terminal-less output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

SENTINELS = [f"Zzquasar{letter}" for letter in "abcdefghijkl"]
NUMBERS = ["7391846205", "MRN-8837261", "617-555-0188", "04/17/1961"]


def plant(folder: Path) -> None:
    a, b, c, d, e, f, g, h, i, j, k, m = SENTINELS
    (folder / a).mkdir(parents=True)
    body = "Heart size is normal. No effusion is seen."
    for number in range(24):
        (folder / a / f"{b}_{number}.txt").write_text(
            f"PATIENT NAME: {c}\nMRN: {NUMBERS[0]}\nHISTORY: {d} fell.\n"
            f"FINDINGS: Seen with Dr. {e} on {NUMBERS[3]}, case {number}. {body}\n"
            f"IMPRESSION: Stable case number {number}. Call {NUMBERS[2]}.\nElectronically signed by {f}\n"
        )
    rows = [f"{g}{n},{h},{i}@mail.org says {NUMBERS[1]} is stable in row {n},ill,{j}" for n in range(24)]
    (folder / f"{k}.csv").write_text("uid,subject,impression,label,secret\n" + "\n".join(rows) + "\n")
    (folder / f"{m}.txt").write_text(f"{c} wrote a note that is no report\n")


def test_sentinels_reach_no_output_byte(tmp_path: Path) -> None:
    plant(tmp_path / "in")
    labels = "\n".join(f"{SENTINELS[6]}{n},well,{SENTINELS[9]}" for n in range(24))
    (tmp_path / "labels.csv").write_text(f"uid,label,secret\n{labels}\n")
    (tmp_path / "salt").write_text("a fixed salt for tests only")
    done = subprocess.run(
        [sys.executable, "-m", "preprocess.cli", "report", "--in", tmp_path / "in", "--out", tmp_path / "out",
         "--salt-file", tmp_path / "salt", "--labels", tmp_path / "labels.csv", "--id-column", "uid", "--workers", "1",
         "--split", "train=0.6,val=0.2,test=0.2"], capture_output=True,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    outputs = {path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert sum(name.endswith(".tar") for name in outputs) == 3
    # Parquet compresses its columns: search what a reader sees as well.
    outputs["rows"] = str(pq.read_table(tmp_path / "out" / "outcomes.parquet").to_pylist()).encode()
    outputs |= {
        "stdout": done.stdout.replace(bytes(tmp_path), b""),
        "stderr": done.stderr.replace(bytes(tmp_path), b""),
    }
    for planted in [*SENTINELS, *NUMBERS, *(sentinel.lower() for sentinel in SENTINELS)]:
        assert [name for name, content in outputs.items() if planted.encode() in content] == [], planted
    assert SENTINELS[1].encode() in (tmp_path / "out.private" / "inputs.csv").read_bytes()
