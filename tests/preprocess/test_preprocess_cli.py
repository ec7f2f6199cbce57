"""The command line: help, exit codes, one-line errors, JSON, defaults."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocess.cli import main, modality_names
from preprocess.job import Job


def write_reports(folder: Path, count: int = 12) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.txt").write_text(
            f"IMPRESSION: No effusion in case {number}.\nFINDINGS: The lungs are clear.\n"
        )


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    (tmp_path / "salt").write_text("a fixed salt for tests only")
    return ["--out", str(tmp_path / "out"), "--salt-file", str(tmp_path / "salt"), "--workers", "1"]


def test_help_names_every_modality_and_imports_none() -> None:
    code = (
        "import sys; from preprocess import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith(('preprocess.modalities.', 'numpy', 'torch'))])"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 5
    assert done.stdout.splitlines()[-1] == "[]"
    assert {"report", "xray", "ct", "mri", "pathology", "phantoms"} <= set(done.stdout.split())
    assert "preprocess phantoms --out raw --seed 0" in done.stdout


@pytest.mark.parametrize("name", ["report", "xray", "ct", "mri", "pathology", "phantoms"])
def test_each_help_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    assert done.value.code == 0
    assert f"preprocess {name}" in capsys.readouterr().out.partition("example:")[2]


def test_modalities_are_the_files_there_are() -> None:
    assert {"report", "xray", "ct", "mri", "pathology"} <= set(modality_names())


def test_in_defaults_to_the_raw_folder(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reports(tmp_path / "raw" / "report")
    (tmp_path / "raw" / "report" / "scan.bin").write_bytes(bytes(100))
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["state"], first["inputs"]["written"]) == ("written", 12)
    assert first["reasons"] == [["skipped", "not_an_input", 1]]
    assert main(["report", *arguments, "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert (second["state"], second["fingerprint"]) == ("up to date", first["fingerprint"])
    assert second["reasons"] == first["reasons"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--in", "nowhere"], "no such input: nowhere"),
        (["--in", "empty"], "no files in empty"),
        (["--in", "raw", "--out", "raw/../raw"], "--out raw/../raw is the folder of the inputs"),
        (["--in", "raw", "--labels", "none.csv"], "no such table: none.csv"),
        (["--in", "raw", "--subject-from", "none.csv"], "no such table: none.csv: check --subject-from"),
        (["--in", "raw", "--masks", "none"], "no such folder: none: check --masks"),
        (["--in", "raw", "--out", "raw/0.txt"], "raw/0.txt is a file"),
        (["--in", "raw", "--out", "raw/0.txt/set"], "--out raw/0.txt/set: {cwd}/raw/0.txt is no folder"),
        (["--in", "raw", "--split", "train=2"], "--split 'train=2'"),
        (["--in", "raw", "--length", "4"], "--length 4"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], message: str,
) -> None:  # fmt: skip
    write_reports(tmp_path / "raw", 2)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments, *words]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert errors.startswith(f"error: {message.format(cwd=tmp_path)}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [["--workers", "0"], ["--max-failures", "200%"], ["--limit", "x"], ["--no-such-option"]]
)
def test_wrong_words_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["report", "--out", "out", *words])
    assert done.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_option_is_looked_up_in_the_help_that_lists_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["report", "--out", "out", "--lenght", "64"])
    assert capsys.readouterr().err == "error: unrecognized arguments: --lenght 64: see `preprocess report --help`\n"


def test_a_label_column_that_no_table_has_is_refused_before_any_work(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,finding\na,clear\n")
    words = ["xray", "--in", str(tmp_path / "a.png"), *arguments, "--labels", str(tmp_path / "labels.csv")]
    assert main([*words, "--label-column", "findings"]) == 2
    assert capsys.readouterr().err.startswith("error: --label-column findings: no table")
    assert not (tmp_path / "out").exists()
    assert main([*words, "--label-column", "finding"]) == 0


def test_a_folder_that_cannot_be_listed_is_not_named(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reports(tmp_path / "raw" / "MILLER^ANNA")
    real = os.scandir

    def denied(folder: Path) -> object:
        if Path(folder).name.startswith("MILLER"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr("os.scandir", denied)
    assert main(["report", "--in", str(tmp_path / "raw"), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: a folder in {tmp_path / 'raw'} cannot be listed (Permission denied)")
    assert "MILLER" not in error


def test_an_out_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_reports(tmp_path / "raw")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # a root user may write to any folder
    words = ["report", "--in", str(tmp_path / "raw"), *arguments]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --out {tmp_path / 'out'}: {tmp_path} cannot be written to")
    assert error.count("\n") == 1
    assert main([*words, "--dry-run"]) == 0


def test_a_set_of_another_modality_is_called_by_its_name(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_reports(tmp_path / "raw")
    assert main(["report", "--in", str(tmp_path / "raw"), *arguments]) == 0
    capsys.readouterr()
    assert main(["xray", "--in", str(tmp_path / "raw"), *arguments]) == 2
    out = tmp_path / "out"
    assert capsys.readouterr().err == f"error: {out} was made with preprocess report: name another --out\n"


def test_a_new_salt_is_told_of_once(tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_reports(tmp_path / "raw")
    (tmp_path / "salt").unlink()
    for told in (True, False):
        assert main(["report", "--in", str(tmp_path / "raw"), *arguments]) == 0
        assert ("a new salt was made in" in capsys.readouterr().err) is told


def test_a_full_disk_is_named_by_the_set_that_was_written(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(job: Job) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("preprocess.run.run", full)
    assert main(["report", "--in", str(tmp_path), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'out'}: No space left on device: free some space")
    assert error.count("\n") == 1


def test_ctrl_c_while_the_modality_is_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("preprocess.cli.build_parser", stop)
    assert main(["ct", "--out", "out"]) == 1
    assert capsys.readouterr().err == "error: interrupted: nothing was begun\n"


def test_qc_page_stands_alone(tmp_path: Path, arguments: list[str]) -> None:
    write_reports(tmp_path / "raw")
    (tmp_path / "raw" / "bad.txt").write_text("no report <script>")
    assert main(["report", "--in", str(tmp_path / "raw"), *arguments]) == 3
    page = (tmp_path / "out" / "qc" / "index.html").read_text()
    assert "no_text" in page
    assert "No effusion in case" in page
    assert "data:image/png;base64," in page
    assert "http" not in page
    assert "<script" not in page
