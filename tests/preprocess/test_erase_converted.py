"""What `medcoss erase` leaves of a converted set: its accounts, its private tables, and what `--extend` does after."""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from medcoss.cli import main
from medcoss.salt import subject_token
from medcoss.shards import ShardSet, read_erasures, verify
from preprocess import cli
from preprocess.job import Job
from preprocess.run import run
from preprocess.split import Salt

MakeJob = Callable[..., Job]
NAME = "patient 3"


@pytest.fixture
def salt_file(tmp_path: Path, salt: Salt) -> Path:
    path = tmp_path / "salt"
    path.write_bytes(salt.secret)
    return path


def _toys(folder: Path, numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    for n in numbers:
        told = {"value": 10 * n, "windows": 1 + n % 3, "subjects": [f"patient {n % 6}"]}
        (folder / f"scan of patient {n % 6}, {n}.toy").write_text(json.dumps(told))


def _rows(out: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(out / "outcomes.parquet").to_pylist())


def _private(out: Path, name: str) -> list[dict[str, str]]:
    with (out.with_name(out.name + ".private") / name).open() as file:
        return list(csv.DictReader(file))


def _erase(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    assert main(["erase", *map(str, words), "--json"]) == 0
    return list(json.loads(capsys.readouterr().out))


def test_a_conversion_forgets_the_patient_and_never_takes_him_in_again(
    tmp_path: Path, toy_job: MakeJob, salt: Salt, salt_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _toys(tmp_path / "in", range(12))
    (tmp_path / "in" / "letter about patient 3.txt").write_text("x")
    job = toy_job(qc=True)
    run(job)
    token = subject_token(salt, NAME, {})
    before = ShardSet.open(job.out).manifest
    his = {row["input_id"] for row in _private(job.out, "inputs.csv") if NAME in row["path"]}
    keys = {s.key for name in before.splits for s in ShardSet.open(job.out).split(name) if s.subject == token}
    assert len(his) == 3 and len(keys) == 2
    capsys.readouterr()

    (result,) = _erase(capsys, "--subject", f" {NAME} ", "--salt-file", salt_file, job.out)
    after = ShardSet.open(job.out).manifest
    assert (result["state"], result["samples"], result["files"], result["fingerprint"]) == (
        "erased", 2, 2, after.fingerprint,
    )  # fmt: skip
    assert "qc/ is removed, for it shows samples" in result["notes"] and not (job.out / "qc").exists()
    assert verify(job.out) == []
    assert after.inputs == before.inputs | {"written": 10, "skipped": 3}
    rows = {row["input_id"]: row for row in _rows(job.out)}
    assert len(rows) == 13
    erased = {name for name, row in rows.items() if row["reason"] == "erased"}
    assert erased < his and len(erased) == 2
    for name in erased:
        row = rows[name]
        assert (row["status"], row["n_samples"], row["key_prefix"], bool(row["unit_id"])) == ("skipped", 0, "", True)
    assert {row["input_id"] for row in _private(job.out, "inputs.csv") if not row["path"]} == his
    assert all(int(row["bytes"]) > 0 for row in _private(job.out, "inputs.csv"))
    (deed,) = _private(job.out, "erasures.csv")
    assert (deed["subject"], deed["samples"], deed["files"]) == (token, "2", "2")
    assert (deed["fingerprint_before"], deed["fingerprint_after"]) == (before.fingerprint, after.fingerprint)
    private = job.out.with_name("out.private")
    assert {stat.S_IMODE(path.stat().st_mode) for path in private.iterdir()} == {0o600}
    for path in [*job.out.rglob("*"), *private.rglob("*")]:
        if path.is_file():
            content = path.read_bytes()
            assert NAME.encode() not in content
            assert (token.encode() in content) == (path.name in ("erasures.json", "erasures.csv"))
    assert not keys & {key for name in after.splits for key in ShardSet.open(job.out).split(name).keys}

    # His files still lie among the inputs, and more of his come with others'.
    assert run(job).state == "up to date"
    _toys(tmp_path / "in", range(12, 24))
    assert run(toy_job(qc=True, extend=True)).state == "written"
    extended = ShardSet.open(job.out).manifest
    subjects = {s.subject for name in extended.splits for s in ShardSet.open(job.out).split(name)}
    assert token not in subjects and len(subjects) == 5
    hidden = {row["input_id"] for row in _private(job.out, "inputs.csv") if not row["path"]}
    assert his < hidden and len(hidden) == len(his) + 2, "the paths stay out, those of his new files too"
    assert [erasure.subject for erasure in read_erasures(job.out)] == [token]
    assert sum(row["reason"] == "erased" for row in _rows(job.out)) == 4 and verify(job.out) == []

    for path in (tmp_path / "in").glob(f"*{NAME}*"):
        path.unlink()
    other = toy_job(out=tmp_path / "without")
    run(other)
    without = ShardSet.open(other.out).manifest
    assert extended.splits == without.splits, "the set is the one that would be had he never been there"


def test_a_copy_under_another_name_does_not_come_in_his_place(
    tmp_path: Path, toy_job: MakeJob, salt_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _toys(tmp_path / "in", range(6))
    run(toy_job())
    _erase(capsys, "--subject", NAME, "--salt-file", salt_file, toy_job().out)
    (tmp_path / "in" / f"scan of {NAME}, 3.toy").unlink()
    told = {"value": 30, "subjects": ["patient 4"]}
    (tmp_path / "in" / "export.toy").write_text(json.dumps(told))
    (tmp_path / "in" / "other.toy").write_text(json.dumps(told | {"value": 31}))
    run(toy_job(extend=True))
    rows = _rows(toy_job().out)
    assert sorted((row["status"], row["reason"]) for row in rows) == [("skipped", "erased"), *[("written", "")] * 6]


def test_damage_to_the_accounts_is_found(tmp_path: Path, toy_job: MakeJob) -> None:
    _toys(tmp_path / "in", range(12))
    out = toy_job().out
    run(toy_job())
    path = out / "outcomes.parquet"
    content, rows, found = path.read_bytes(), _rows(out), 0
    for place in range(0, len(content), 31):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        if [problem.file for problem in verify(out)] == ["outcomes.parquet"]:
            found += 1
        else:  # the file's page headers and statistics are not covered: no row may have changed
            assert _rows(out) == rows, place
    assert found > 0.4 * len(content) / 31
    path.write_bytes(content)
    assert verify(out) == []


def test_aliases_tokens_and_misspelt_names(
    tmp_path: Path, toy_job: MakeJob, salt: Salt, salt_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _toys(tmp_path / "in", range(6))
    job = toy_job()
    run(job)
    aliases = tmp_path / "aliases.csv"
    aliases.write_text("alias,subject\nMr. Three,patient 3\n")
    common = ["--salt-file", salt_file, job.out]
    for words in (["--subject", "patient 33"], ["--subject", "Mr. Three"]):
        assert main([str(word) for word in ("erase", *words, *common)]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error: the subject is in none of these folders") and "33" not in said
    assert main(["erase", "--subject", NAME, "--salt-file", str(tmp_path / "none"), str(job.out)]) == 1
    assert not (tmp_path / "none").exists(), "a salt that was made now would find nobody"
    named = ["--subject", "Mr. Three", "--subject-alias", aliases, *common]
    dry = _erase(capsys, *named, "--dry-run")
    assert [(one["state"], one["samples"]) for one in dry] == [("found", 1)]
    assert [one["state"] for one in _erase(capsys, *named)] == ["erased"]
    assert [one["state"] for one in _erase(capsys, "--token", subject_token(salt, NAME, {}), job.out)] == [
        "already erased"
    ]


def test_rows_of_a_table_are_counted_out(tmp_path: Path, salt_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "reports.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("subject", "impression"))
        for n in range(12):
            writer.writerow((f"patient {n % 4}", f"There is a small effusion on the left, number {'x' * n} of them."))
    words = ["report", "--in", tmp_path / "in", "--out", tmp_path / "out", "--salt-file", salt_file, "--split",
             "train=1", "--workers", 1]  # fmt: skip
    assert cli.main([str(word) for word in words]) == 0
    before = _rows(tmp_path / "out")
    assert [row["n_samples"] for row in before] == [12]
    capsys.readouterr()
    (result,) = _erase(capsys, "--subject", NAME, "--salt-file", salt_file, tmp_path / "out", tmp_path / "out.private")
    assert (result["samples"], result["files"]) == (3, 0)
    assert [(row["n_samples"], row["status"]) for row in _rows(tmp_path / "out")] == [(9, "written")]
    assert verify(tmp_path / "out") == []
    assert ShardSet.open(tmp_path / "out").manifest.splits["train"].subjects == 3
    assert main(["show", str(tmp_path / "out")]) == 0
