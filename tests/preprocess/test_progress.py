"""What a conversion says of itself."""

from __future__ import annotations

import io
import os
import time

import pytest

from preprocess.progress import Progress, counted, duration


class Terminal(io.StringIO):
    """A terminal of 60 columns."""

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 99


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_rate_is_that_of_the_last_minute(clock: list[float]) -> None:
    stream = io.StringIO()
    progress = Progress(10_000, "toy", also=("samples", "failed"), stream=stream)
    clock[0] += 10
    progress.advance(5000, samples=9000)  # what an earlier run had staged
    for _ in range(12):
        clock[0] += 10
        progress.advance(10, samples=20, failed=1)
    assert stream.getvalue().splitlines()[-1] == (
        "toy: 5,120/10,000 files, 9,240 samples, 12 failed, 1/s, 1:21:20 left"
    )
    assert len(stream.getvalue().splitlines()) == 13


def test_units_slower_than_the_minute_do_not_promise_too_much(clock: list[float]) -> None:
    """Two processes, five minutes a file: the second ends 10 s after the first, and 8 files take 20 minutes more."""
    stream = io.StringIO()
    progress = Progress(10, "slow", also=("samples",), per_second="samples", stream=stream)
    for seconds in (300, 10, 290, 10):
        clock[0] += seconds
        progress.advance(samples=600)
    assert [line.removeprefix("slow: ") for line in stream.getvalue().splitlines()] == [
        "1/10 files, 600 samples, 2 samples/s, 45:00 left",
        "2/10 files, 1,200 samples, 3.87 samples/s, 20:40 left",
        "3/10 files, 1,800 samples, 2.07 samples/s, 33:50 left",
        "4/10 files, 2,400 samples, 4 samples/s, 15:00 left",
    ]


def test_parts_of_a_file_are_work_before_the_file_is_done(clock: list[float]) -> None:
    stream = io.StringIO()
    progress = Progress(1, "table", also=("samples", "failed"), per_second="samples", stream=stream)
    clock[0] += 10
    progress.advance(0, failed=0)
    for part in range(4):
        clock[0] += 10
        progress.advance(int(part == 3), 0.25, samples=20_000)
    clock[0] += 5
    progress.close()
    assert stream.getvalue().splitlines() == [
        "table: 0/1 file, 0 samples, 0 failed",
        "table: 0/1 file, 20,000 samples, 0 failed, 1,000 samples/s, 1:00 left",
        "table: 0/1 file, 40,000 samples, 0 failed, 1,333 samples/s, 0:30 left",
        "table: 0/1 file, 60,000 samples, 0 failed, 1,500 samples/s, 0:13 left",
        "table: 1/1 file, 80,000 samples, 0 failed, 1,600 samples/s",
        "table: 1/1 file, 80,000 samples, 0 failed, 1,455 samples/s, took 0:55",
    ]


def test_what_was_done_before_is_counted_and_moves_no_time(clock: list[float]) -> None:
    stream = io.StringIO()
    progress = Progress(110, "ct", also=("failed",), before=100, stream=stream)
    clock[0] += 20
    progress.advance(2, failed=100)
    clock[0] += 10
    progress.close()
    assert stream.getvalue().splitlines() == [
        "ct: 102/110 files, 100 failed, 0.1/s, 1:20 left",
        "ct: 102/110 files, 100 failed, 0.0667/s, took 0:30",
    ]


def test_nothing_to_do_is_nothing_said() -> None:
    for stream in (io.StringIO(), Terminal()):
        Progress(0, "toy", also=("samples",), stream=stream).close()
        assert stream.getvalue() == ""


def test_a_terminal_shows_the_bar_before_the_first_file(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((200, 24)))
    stream = Terminal()
    Progress(4000, "ct", also=("samples",), stream=stream)
    assert stream.getvalue().endswith("] ct: 0/4,000 files, 0 samples")


def test_one_of_a_thing_is_not_told_as_several(clock: list[float]) -> None:
    stream = io.StringIO()
    progress = Progress(1, "ct", "files looked through", ("samples", "failed"), stream=stream)
    clock[0] += 10
    progress.advance(1, samples=1, failed=1)
    assert stream.getvalue() == "ct: 1/1 file looked through, 1 sample, 1 failed, 0.1/s\n"


def test_a_bar_stays_on_its_line(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (60, 90, 200):
        monkeypatch.setattr(os, "get_terminal_size", lambda _, size=columns: os.terminal_size((size, 24)))
        stream = Terminal()
        progress = Progress(4000, "pathology", also=("samples", "failed"), per_second="samples", stream=stream)
        clock[0] += 1
        progress.advance(2000, samples=123_456, failed=0)
        line = stream.getvalue().split("\r\x1b[K")[-1]
        assert len(line) < columns
        assert "2,000/4,000 files" in line
        assert line.count("█") == {60: 0, 90: 0, 200: 10}[columns] or (columns == 90 and 0 < line.count("█") < 10)


def test_a_terminal_that_went_away_ends_nothing(clock: list[float]) -> None:
    stream = open(os.devnull)  # noqa: SIM115, PTH123 -- not open for writing: printing to it is an OSError
    progress = Progress(2, "toy", stream=stream)
    clock[0] += 60
    progress.advance()
    progress.note("a note")
    progress.close()
    stream.close()
    assert progress.done == 1


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 95, 3700)] == ["0:00", "1:35", "1:01:40"]


def test_counts_of_things() -> None:
    assert [counted(number, "file") for number in (0, 1, 1500)] == ["0 files", "1 file", "1,500 files"]
    assert [counted(number, "copy", "copies") for number in (1, 2)] == ["1 copy", "2 copies"]
