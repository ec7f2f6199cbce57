"""Files that kill, stall or confuse their worker: each has its reason, all others are converted."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from medcoss.contracts import MedcossError
from preprocess.job import Job
from preprocess.run import run

MakeJob = Callable[..., Job]
Toys = dict[str, dict[str, Any]]


def write_toys(folder: Path, toys: Toys) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in toys.items():
        (folder / name).write_text(json.dumps(content))


def plain(count: int) -> Toys:
    return {f"{n}.toy": {"value": 10 * n, "subjects": [f"patient {n}"]} for n in range(count)}


def outcomes(job: Job) -> dict[str, tuple[str, str, str]]:
    """Status, reason and message by file name."""
    with (job.out.with_name(job.out.name + ".private") / "inputs.csv").open() as file:
        names = {row["input_id"]: Path(row["path"]).name for row in csv.DictReader(file)}
    rows = pq.read_table(job.out / "outcomes.parquet").to_pylist()
    return {names[row["input_id"]]: (row["status"], row["reason"], row["message"]) for row in rows}


@pytest.mark.parametrize("phase", ["inspect", "convert"])
def test_each_kind_of_trouble_costs_its_file_alone(
    tmp_path: Path, toy_job: MakeJob, capfd: pytest.CaptureFixture[str], phase: str
) -> None:
    trouble = {
        "die": ("failed", "worker_died", "exit status -9"),
        "stall": ("failed", "stalled", "no sign of life for 1 s"),
        "crash": ("failed", "internal", "ZeroDivisionError"),
        "fail": ("failed", "unreadable", "on purpose"),
        "vanish": ("failed", "unreadable", "No such file or directory"),
        "exhaust": ("failed", "worker_died", "out of memory"),
    }
    write_toys(tmp_path / "in", plain(30) | {f"{told}.toy": {"value": 1, phase: told} for told in trouble})
    write_toys(tmp_path / "in", {"unlucky.toy": {"value": 5000, phase: "die once"}})
    job = toy_job(workers=2, stall_seconds=1, debug=True, private={"_secret": "a file name"})
    result = run(job)
    rows = outcomes(job)
    assert {name: rows[f"{name}.toy"] for name in trouble} == trouble
    # What kills for want of memory may strike the wrong process: a second death is waited for.
    assert rows["unlucky.toy"][0] == "written"
    assert result.inputs["written"] == 31
    assert [note for note in result.notes if "ZeroDivisionError in " in note]
    shown = capfd.readouterr().err
    assert shown.count("ZeroDivisionError: a message") == 1
    up_to_date = run(job)
    assert (up_to_date.state, up_to_date.exit_code) == ("up to date", 3)
    assert [note for note in up_to_date.notes if note.startswith("3 files stalled")]
    assert up_to_date.reasons == result.reasons
    assert up_to_date.failures == result.failures


def test_lost_inputs_are_tried_again_by_extend(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", plain(4) | {"odd.toy": {"value": 900, "convert": "stall"}})
    job = toy_job(stall_seconds=0.5)
    run(job)
    # The disk hung, and answers again: the file is as it was.
    path = tmp_path / "in" / "odd.toy"
    path.write_text(json.dumps({"value": 900, "convert": "stalk"}))
    assert run(job).state == "up to date"
    assert run(replace(job, extend=True)).inputs == {"read": 5, "written": 5, "skipped": 0, "failed": 0}
    assert run(replace(job, extend=True)).state == "up to date"


def test_what_stalled_in_a_run_that_was_broken_off_is_not_staged(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", {"odd.toy": {"value": 900, "convert": "stall"}})
    path = tmp_path / "in" / "odd.toy"
    before = path.stat()
    with pytest.raises(MedcossError, match="max-failures"):
        run(toy_job(stall_seconds=0.5, max_failures=0))
    path.write_text(json.dumps({"value": 900, "convert": "stalk"}))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(toy_job()).inputs["written"] == 1


def test_few_files_start_few_processes(tmp_path: Path, toy_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = subprocess.Popen.__init__

    def count(*arguments: Any, **named: Any) -> None:
        started.append(arguments)
        start(*arguments, **named)

    monkeypatch.setattr(subprocess.Popen, "__init__", count)
    write_toys(tmp_path / "in", plain(3))
    assert run(toy_job(workers=1000)).inputs["written"] == 3
    assert 1 <= len(started) <= 4
