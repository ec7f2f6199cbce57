"""What a conversion says of itself."""

from __future__ import annotations

import io
import os
import time

import pytest

from preprocess.progress import Progress, duration


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
    progress = Progress(10_000, "toy", "inputs", ("samples", "failed"), stream)
    clock[0] += 10
    progress.advance(5000, samples=9000)  # what an earlier run had staged
    for _ in range(12):
        clock[0] += 10
        progress.advance(10, samples=20, failed=1)
    assert stream.getvalue().splitlines()[-1] == "toy: 5120/10000 inputs, 9240 samples, 12 failed, 1/s, 1:21:20 left"
    assert len(stream.getvalue().splitlines()) == 13


def test_a_bar_stays_on_its_line(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (60, 90, 200):
        monkeypatch.setattr(os, "get_terminal_size", lambda _, size=columns: os.terminal_size((size, 24)))
        stream = Terminal()
        progress = Progress(4000, "pathology", "inputs", ("samples", "failed"), stream)
        clock[0] += 1
        progress.advance(2000, samples=123_456, failed=0)
        line = stream.getvalue().removeprefix("\r\x1b[K")
        assert len(line) < columns
        assert "2000/4000 inputs" in line
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
