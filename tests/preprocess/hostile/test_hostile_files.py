"""Damaged and forged files of every format: the run ends, says nothing but its lines, and each file has its reason."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from preprocess.reasons import REASONS
from tests.support.mutations import mutant
from tests.support.seeds import FAMILIES, sound

OPTIONS = {
    "report": ["--label-column", "label", "--id-column", "uid", "--vocabulary", "512"],
    "xray": ["--size", "16"],
    "ct": ["--window", "8,12,12", "--window-slices", "8"],
    "mri": ["--window", "8,12,12"],
    "pathology": ["--size", "32"],
}
DEFECTS = ("internal", "worker_died", "stalled")
A_NORMAL_RUN = 200
A_LONG_RUN = int(os.environ.get("MEDCOSS_FUZZ", "10000"))
"""Mutants a family of formats; MEDCOSS_FUZZ_SALT draws other ones."""
SALT = int(os.environ.get("MEDCOSS_FUZZ_SALT", "0"))


def preprocess(modality: str, folder: Path, environment: dict[str, str], timeout_s: float) -> list[dict[str, Any]]:
    """Run the engine on folder/in and check all that is true of any run; its outcomes with the files' names."""
    out = folder / "out"
    (folder / "salt").write_text("a fixed salt for tests only")
    done = subprocess.run(
        [sys.executable, "-m", "preprocess.cli", modality, "--in", folder / "in", "--out", out, "--workers", "2",
         "--salt-file", folder / "salt", "--split", "train=1,val=0,test=0", "--no-qc", *OPTIONS[modality]],
        capture_output=True, text=True, env=environment, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    rows: list[dict[str, Any]] = pq.read_table(out / "outcomes.parquet").to_pylist()
    with (folder / "out.private" / "inputs.csv").open(newline="", errors="surrogateescape") as file:
        names = {row["input_id"]: Path(row["path"]).name for row in csv.DictReader(file)}
    assert sorted(names.values()) == sorted(path.name for path in (folder / "in").iterdir())
    assert sorted(row["input_id"] for row in rows) == sorted(names)
    for row in rows:
        row["name"] = names[row["input_id"]]
    by_chance = {row["name"]: f"{row['reason']} {row['message']}" for row in rows if row["reason"] in DEFECTS}
    assert not by_chance, f"{len(by_chance)} of {len(rows)}: {dict(list(by_chance.items())[:20])}"
    assert {row["reason"] for row in rows if row["status"] != "written"} <= set(REASONS)
    # A codec's own words may hold bytes of the file, so there must be none.
    foreign = [line for line in done.stderr.splitlines() if not re.match(rf"{modality}: |note: ", line)]
    assert foreign == []
    assert "Traceback" not in done.stdout
    return rows


def fuzz(modality: str, folder: Path, environment: dict[str, str], count: int) -> None:
    (folder / "in").mkdir()
    family_of = {}
    expected = {}
    for family, make in FAMILIES[modality].items():
        seeds = make()
        for number, seed in enumerate(seeds):
            name = f"sound-{seed.name}"
            (folder / "in" / name).write_bytes(sound(seed, number))
            expected[name] = seed.refused or "read"
        for number in range(count):
            name, data = mutant(seeds, number, SALT)
            (folder / "in" / name).write_bytes(data)
            family_of[name] = family
    rows = preprocess(modality, folder, environment, timeout_s=120 + count * 2)
    reason = {row["name"]: row["reason"] for row in rows}
    # Many mutants decode to the seed's own content, and among thousands of tables to its text with another label: all
    # of these were read to the end.
    same = ("duplicate", "duplicate_instance", "conflicting_labels")
    status = {row["name"]: "read" if row["reason"] in same else row["status"] for row in rows}
    status |= {name: "read" for name, found in status.items() if found == "written"}
    intact = {name: reason[name] if status[name] == "failed" else status[name] for name in expected}
    assert intact == expected
    found = Counter((family, status[name]) for name, family in family_of.items())
    for family in FAMILIES[modality]:
        # Mutants that are all refused, or none of them, would test nothing.
        assert found[family, "failed"] > count / 20, found
        assert found[family, "read"] > count / 50, found


@pytest.mark.parametrize("modality", OPTIONS)
def test_mutated_files_have_a_reason_each(modality: str, environment: dict[str, str], tmp_path: Path) -> None:
    fuzz(modality, tmp_path, environment, A_NORMAL_RUN)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("modality", OPTIONS)
def test_very_many_mutated_files_have_a_reason_each(modality: str, environment: dict[str, str], tmp_path: Path) -> None:
    fuzz(modality, tmp_path, environment, A_LONG_RUN)
