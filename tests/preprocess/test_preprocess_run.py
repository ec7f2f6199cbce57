"""The engine: accounting, rerun, extension, duplicates, splits, failures."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from medcoss.contracts import MedcossError, UsageError
from medcoss.shards import (
    ERASURES,
    Erasure,
    ShardSet,
    canonical_json,
    erasures_json,
    read_erasures,
    read_manifest,
    verify,
)
from preprocess.job import Job
from preprocess.run import run

MakeJob = Callable[..., Job]
Tree = Callable[[Path], dict[str, bytes]]


def write_toys(folder: Path, toys: dict[str, dict[str, Any] | str]) -> None:
    for name, content in toys.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def plain(count: int, start: int = 0) -> dict[str, dict[str, Any] | str]:
    return {f"{n}.toy": {"value": 10 * n, "subjects": [f"patient {n}"]} for n in range(start, start + count)}


def outcomes(out: Path, job: Job) -> dict[str, dict[str, Any]]:
    """Rows of outcomes.parquet by file name."""
    with (out.with_name(out.name + ".private") / "inputs.csv").open() as file:
        names = {row["input_id"]: os.path.relpath(row["path"], job.inputs[0]) for row in csv.DictReader(file)}
    return {names[row["input_id"]]: row for row in pq.read_table(out / "outcomes.parquet").to_pylist()}


def test_every_file_has_one_row_and_the_set_holds_what_was_written(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", plain(8) | {
        "wide.toy": {"value": 1000, "windows": 3, "subjects": ["patient 1"]},
        "bad.toy": {"convert": "fail"}, "crash.toy": {"convert": "crash"}, "notes.txt": "hello",
        "masks/1.toy": {"value": 1}, "labelsTr/2.toy": {"value": 2},
    })  # fmt: skip
    job = toy_job()
    result = run(job)
    rows = outcomes(job.out, job)
    assert {name: (row["status"], row["reason"]) for name, row in rows.items()} == {
        **{f"{n}.toy": ("written", "") for n in range(8)},
        "wide.toy": ("written", ""),
        "bad.toy": ("failed", "unreadable"),
        "crash.toy": ("failed", "internal"),
        "notes.txt": ("skipped", "not_an_input"),
        "masks/1.toy": ("skipped", "mask"),
        "labelsTr/2.toy": ("skipped", "mask"),
    }
    assert rows["wide.toy"]["n_samples"] == 3
    assert rows["crash.toy"]["message"] == "ZeroDivisionError"
    assert result.inputs == {"read": 14, "written": 9, "skipped": 3, "failed": 2}
    assert result.exit_code == 3
    shards = ShardSet.open(job.out)
    assert sum(len(shards.split(name)) for name in ("train", "val", "test")) == 11
    assert verify(job.out) == []
    train = shards.split("train")
    assert int(shards.file("total.txt")) == sum(int(train[i].data.sum()) for i in range(len(train)))
    assert not (job.out / ".staging").exists()
    table = job.out.with_name("out.private") / "inputs.csv"
    assert stat.S_IMODE(table.stat().st_mode) == 0o600


def test_any_number_of_workers_and_any_order_of_roots_give_the_same_bytes(
    tmp_path: Path, toy_job: MakeJob, tree: Tree
) -> None:
    write_toys(tmp_path / "a", plain(40) | {"same.toy": {"value": 500, "subjects": ["x"]}})
    write_toys(tmp_path / "b", plain(40, 50) | {"copy.toy": {"value": 500, "subjects": ["y"]}})
    roots = (tmp_path / "a", tmp_path / "b")
    one = toy_job(inputs=roots, qc=True)
    fingerprint = run(one).fingerprint
    for workers, order in ((2, roots[::-1]), (3, roots)):
        other = toy_job(inputs=order, qc=True, workers=workers, out=tmp_path / f"out{workers}")
        assert run(other).fingerprint == fingerprint
        assert tree(other.out) == tree(one.out)


def test_a_complete_set_is_up_to_date_and_keeps_its_exit_code(tmp_path: Path, toy_job: MakeJob, tree: Tree) -> None:
    write_toys(tmp_path / "in", plain(4) | {"bad.toy": {"convert": "fail"}})
    job = toy_job()
    first = run(job)
    before = tree(job.out)
    second = run(job)
    assert (first.state, second.state) == ("written", "up to date")
    assert first.exit_code == second.exit_code == 3
    assert tree(job.out) == before


def test_other_settings_and_another_salt_are_refused(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", plain(3))
    run(toy_job())
    with pytest.raises(UsageError, match=r"other settings \(limit = null, not 5\)"):
        run(toy_job(settings={"limit": 5}))
    other = toy_job()
    other = replace(other, subjects=replace(other.subjects, salt=type(other.salt)(b"another salt, long enough")))
    with pytest.raises(UsageError, match="another salt"):
        run(other)


def test_new_and_changed_inputs_need_extend_which_equals_a_fresh_run(
    tmp_path: Path, toy_job: MakeJob, tree: Tree
) -> None:
    write_toys(tmp_path / "in", plain(6))
    job = toy_job()
    run(job)
    write_toys(tmp_path / "in", plain(3, 6))
    with pytest.raises(UsageError, match="3 new files"):
        run(job)
    write_toys(tmp_path / "in", {"0.toy": {"value": 77_7, "subjects": ["patient 0"], "labels": {}}})
    with pytest.raises(UsageError, match="3 new and 1 changed files"):
        run(job)
    assert run(replace(job, extend=True)).inputs["written"] == 9
    fresh = toy_job(out=tmp_path / "fresh")
    run(fresh)
    assert tree(job.out) == tree(fresh.out)
    assert run(job).state == "up to date"


def test_duplicates_leave_one_survivor_and_the_test_copy_is_preferred(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", plain(2) | {
        "a.toy": {"value": 500, "windows": 2, "subjects": ["x"], "split": "train"},
        "b.toy": {"value": 500, "windows": 2, "subjects": ["y"], "split": "test"},
        "c.toy": {"value": 500, "windows": 2, "subjects": ["z"], "split": "val"},
    })  # fmt: skip
    job = toy_job()
    run(job)
    rows = outcomes(job.out, job)
    assert [(rows[name]["status"], rows[name]["reason"]) for name in ("a.toy", "b.toy", "c.toy")] == [
        ("skipped", "duplicate"), ("written", ""), ("skipped", "duplicate"),
    ]  # fmt: skip
    keys = [key for key in ShardSet.open(job.out).split("test").keys if key.startswith(rows["b.toy"]["key_prefix"])]
    assert len(keys) == 2


def test_labels_that_copies_contradict_are_left_out(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", {
        "a.toy": {"value": 500, "subjects": ["x"], "split": "train", "labels": {"label": "ill", "side": "left"}},
        "b.toy": {"value": 500, "subjects": ["x"], "split": "train", "labels": {"label": "well", "side": "left"}},
    })  # fmt: skip
    job = toy_job(settings={"label_columns": ["label", "side"]})
    job = replace(job, labels=replace(job.labels, columns=("label", "side")))
    result = run(job)
    assert ShardSet.open(job.out).split("train")[0].labels == {"side": "left"}
    assert sorted(row["reason"] for row in outcomes(job.out, job).values()) == ["", "conflicting_labels"]
    assert "1 sample kept without labels on which copies disagree" in result.notes


def test_a_subject_given_two_splits_is_refused(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", {
        "a.toy": {"value": 1, "subjects": ["x"], "split": "train"},
        "b.toy": {"value": 2, "subjects": ["x"], "split": "test"},
    })  # fmt: skip
    with pytest.raises(UsageError, match="one subject"):
        run(toy_job())


def test_a_given_split_holds_for_all_of_the_subject(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", {f"{n}.toy": {"value": 10 * n, "subjects": ["x"]} for n in range(5)})
    write_toys(tmp_path / "in", {"9.toy": {"value": 90, "subjects": ["x"], "split": "val"}} | plain(4, 20))
    job = toy_job()
    run(job)
    shards = ShardSet.open(job.out)
    places = {
        name: {shards.split(name)[i].subject for i in range(len(shards.split(name)))}
        for name in ("train", "val", "test")
    }
    token = job.subjects.token(None, ["x"], "", None)[0]
    assert [name for name, tokens in places.items() if token in tokens] == ["val"]


def test_adding_inputs_moves_nobody(tmp_path: Path, toy_job: MakeJob) -> None:
    def place(out: Path) -> dict[str, str]:
        shards = ShardSet.open(out)
        return {key: name for name in ("train", "val", "test") for key in shards.split(name).keys}

    write_toys(tmp_path / "in", plain(12))
    few = toy_job()
    run(few)
    write_toys(tmp_path / "in", plain(12, 12))
    many = toy_job(out=tmp_path / "many")
    run(many)
    before, after = place(few.out), place(many.out)
    assert len(after) == 24
    assert before == {key: after[key] for key in before}


def test_an_erased_subject_does_not_come_back(tmp_path: Path, toy_job: MakeJob, tree: Tree) -> None:
    write_toys(tmp_path / "in", plain(6) | {"more.toy": {"value": 400, "windows": 2, "subjects": ["patient 3"]}})
    job = toy_job()
    run(job)
    token = job.subjects.token(None, ["patient 3"], "", None)[0]
    manifest = read_manifest(job.out)
    record = erasures_json([Erasure(token, 3, 2, manifest.fingerprint)])
    (job.out / ERASURES).write_bytes(record)
    manifest = replace(manifest, files={**manifest.files, ERASURES: hashlib.sha256(record).hexdigest()})
    manifest = replace(manifest, fingerprint=manifest.computed_fingerprint())
    (job.out / "manifest.json").write_bytes(canonical_json(asdict(manifest)))
    write_toys(tmp_path / "in", plain(3, 6) | {"new.toy": {"value": 800, "subjects": ["patient 3"]}})
    run(replace(job, extend=True))
    table = pq.read_table(job.out / "outcomes.parquet").to_pylist()
    assert Counter((row["status"], row["reason"]) for row in table) == {("written", ""): 8, ("skipped", "erased"): 3}
    names = (job.out.with_name("out.private") / "inputs.csv").read_text()
    assert "0.toy" in names and "3.toy" not in names and "new.toy" not in names
    shards = ShardSet.open(job.out)
    subjects = {shards.split(s)[i].subject for s in ("train", "val", "test") for i in range(len(shards.split(s)))}
    assert len(subjects) == 8
    assert token not in subjects
    assert read_erasures(job.out)[0].subject == token
    assert verify(job.out) == []
    assert run(job).state == "up to date"


def test_too_many_failures_stop_the_run(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", plain(4) | {f"bad{n}.toy": {"convert": "fail"} for n in range(4)})
    with pytest.raises(MedcossError, match="max-failures"):
        run(toy_job(max_failures=2, workers=1))
    with pytest.raises(MedcossError, match="max-failures"):
        run(toy_job(max_failures=0.25, workers=1))
    assert run(toy_job(max_failures=0.5)).inputs["failed"] == 4


def test_files_that_fail_when_looked_through_count_to_the_failures(
    tmp_path: Path, toy_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    write_toys(tmp_path / "in", plain(4) | {f"bad{n}.toy": {"inspect": "fail"} for n in range(4)})
    with pytest.raises(MedcossError, match=r"4 of 8 files failed, more than --max-failures allows"):
        run(toy_job(max_failures=0.4))
    assert not (tmp_path / "out" / ".staging" / "set").exists()
    capsys.readouterr()
    assert run(toy_job(max_failures=4)).inputs["failed"] == 4
    assert "toy: 8/8 files, 4 samples, 4 failed, " in capsys.readouterr().err


def test_nothing_to_convert_is_no_line_of_progress(
    tmp_path: Path, toy_job: MakeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    write_toys(tmp_path / "in", {"notes.txt": "hello"})
    with pytest.raises(MedcossError, match=r"no sample came out of 1 file \(1 not_an_input\)"):
        run(toy_job())
    assert capsys.readouterr().err == "toy: looking through 1 file\n"


def test_two_runs_on_one_folder_are_refused(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", plain(2))
    private = tmp_path / "out.private"
    private.mkdir()
    descriptor = os.open(private, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(UsageError, match="another preprocess"):
            run(toy_job())
    finally:
        os.close(descriptor)
    assert run(toy_job()).state == "written"


def test_limit_takes_the_same_units_in_any_run(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", plain(9))
    job = toy_job(limit=3)
    assert run(job).inputs == {"read": 9, "written": 3, "skipped": 6, "failed": 0}
    assert {row["reason"] for row in outcomes(job.out, job).values()} == {"", "limit"}


def test_dry_run_writes_nothing(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", plain(3) | {"notes.txt": ""})
    result = run(toy_job(dry_run=True))
    assert result.inputs == {"read": 4, "units": 3, "skipped": 1, "failed": 0}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "toy_modules"]


def test_unusable_inputs_and_outputs_are_one_line_before_anything_is_written(tmp_path: Path, toy_job: MakeJob) -> None:
    with pytest.raises(UsageError, match="no such input"):
        run(toy_job())
    (tmp_path / "in").mkdir()
    with pytest.raises(UsageError, match="no files in"):
        run(toy_job())
    write_toys(tmp_path / "in", plain(1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        run(toy_job())
    assert (tmp_path / "out" / "thesis.doc").read_text() == "mine"


def test_nothing_but_failures_is_a_failed_run_with_outcomes(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", {"bad.toy": {"convert": "fail"}})
    job = toy_job()
    with pytest.raises(MedcossError, match="no sample came out of 1 file \\(1 unreadable\\)"):
        run(job)
    assert [path.name for path in job.out.iterdir()] == ["outcomes.parquet"]
    write_toys(tmp_path / "in", plain(2))
    assert run(job).inputs["written"] == 2


def test_links_in_a_ring_and_pipes_end_the_walk(tmp_path: Path, toy_job: MakeJob) -> None:
    write_toys(tmp_path / "in", plain(2))
    (tmp_path / "in" / "ring").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "in" / "pipe.toy")
    (tmp_path / "in" / "gone.toy").symlink_to(tmp_path / "nowhere")
    job = toy_job()
    run(job)
    rows = outcomes(job.out, job)
    assert rows["pipe.toy"]["reason"] == "not_an_input"
    assert rows["gone.toy"]["reason"] == "unreadable"
    assert sum(row["status"] == "written" for row in rows.values()) == 2
