"""What a conversion says while it runs: inputs, samples, failures, rate, time left."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_TERMINAL_S, _PLAIN_S = 0.2, 10.0


class Progress:
    """A bar on a terminal, a plain line every 10 s elsewhere, on stderr. Names no input."""

    def __init__(self, total: int, label: str, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._total = total
        self._label = label
        self._terminal = self._stream.isatty()
        self._start = self._shown = time.monotonic()
        self._drawn = False
        self.inputs = self.samples = self.failures = 0

    def advance(self, *, inputs: int, samples: int, failures: int) -> None:
        """Count what a unit gave, and show it if it is time to."""
        self.inputs += inputs
        self.samples += samples
        self.failures += failures
        now = time.monotonic()
        if now - self._shown >= (_TERMINAL_S if self._terminal else _PLAIN_S):
            self._shown = now
            self._show()

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._drawn and self._terminal:
            print("\r\x1b[K", end="", file=self._stream)
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Show the last state."""
        self._show()
        if self._terminal:
            print(file=self._stream, flush=True)

    def _show(self) -> None:
        self._drawn = True
        rate = self.inputs / max(time.monotonic() - self._start, 1e-6)
        left = (self._total - self.inputs) / rate if rate else 0.0
        text = (
            f"{self._label}: {self.inputs}/{self._total} inputs, {self.samples} samples, {self.failures} failed, "
            f"{rate:.3g}/s, {duration(left)} left"
        )
        if self._terminal:
            filled = 20 * self.inputs // max(self._total, 1)
            print(f"\r\x1b[K[{'█' * filled}{' ' * (20 - filled)}] {text}", end="", file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """`95` as `1:35`, `3700` as `1:01:40`."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
