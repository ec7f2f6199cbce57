"""How commands fail: one line, the right status, rank 0 only."""

from __future__ import annotations

import argparse
import errno
import io
import subprocess
import sys

import pytest

from medcoss.command import Parser, Progress, add_debug, run
from medcoss.contracts import MedcossError, UsageError


def _raising(error: BaseException):
    def main(_: argparse.Namespace) -> int:
        raise error

    return main


@pytest.mark.parametrize(("error", "status", "line"), [
    (MedcossError("it broke"), 1, "error: it broke"),
    (UsageError("two\nlines"), 2, "error: two lines"),
    (OSError(errno.ENOSPC, "No space left on device", "/data/x.tar"), 1, "error: /data/x.tar: No space left"),
    (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.csv"), 1, "error: a.csv: No such file"),
    (KeyboardInterrupt(), 1, "error: interrupted"),
])  # fmt: skip
def test_failures_are_one_line(capsys, error, status, line):
    assert run(_raising(error), argparse.Namespace()) == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(line)


def test_debug_shows_the_traceback_too(capsys):
    assert run(_raising(UsageError("wrong")), argparse.Namespace(), debug=True) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.endswith("error: wrong\n")


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(_raising(ZeroDivisionError()), argparse.Namespace())


def test_status_is_passed_on():
    assert run(lambda _: 3, argparse.Namespace()) == 3


@pytest.mark.parametrize(("variable", "rank", "speaks"), [
    ("RANK", "0", True), ("RANK", "1", False), ("SLURM_PROCID", "2", False)
])  # fmt: skip
def test_only_rank_zero_speaks(capsys, monkeypatch, variable, rank, speaks):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv(variable, rank)
    assert run(_raising(MedcossError("x")), argparse.Namespace()) == 1
    assert capsys.readouterr().err == ("error: x\n" if speaks else "")


def test_wrong_arguments_are_one_line(capsys):
    parser = Parser(prog="tool")
    add_debug(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(["--frobnicate"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --frobnicate: see `tool --help`\n"


def test_reader_that_goes_away_is_no_failure():
    code = (
        "import argparse, sys\nfrom medcoss.command import run\n"
        "def main(_):\n    for i in range(200000): print(i)\n    return 0\n"
        "sys.exit(run(main, argparse.Namespace()))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0
    process.stderr.close()


def test_progress_is_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with Progress(4, "files", interval_s=0.0, stream=stream) as progress:
        progress.advance(2)
        progress.advance(2)
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["files: 2/4", "files: 4/4", "files: 4/4"]


def test_short_work_says_nothing():
    stream = io.StringIO()
    with Progress(4, "files", stream=stream) as progress:
        progress.advance(4)
    assert stream.getvalue() == ""


def test_progress_is_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress(4, "files", stream=stream) as progress:
        progress._interval_s = 0.0
        progress.advance(2)
    assert "\rfiles: 2/4" in stream.getvalue() and stream.getvalue().endswith("\n")
