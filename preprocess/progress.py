"""What a conversion says while it runs: inputs, samples, failures, rate, time left."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from typing import TextIO

_TERMINAL_S, _PLAIN_S = 0.2, 10.0
_RATE_S = 60.0
"""The rate is that of the last minute: what an earlier run had staged, and many small files, say little of the rest."""


class Progress:
    """A bar on a terminal, a plain line every 10 s elsewhere, on stderr. Names no input.

    `what` is counted up to `total`; further counts are shown after it in the order of `also`.
    """

    def __init__(
        self, total: int, label: str, what: str = "inputs", also: tuple[str, ...] = (), stream: TextIO | None = None
    ) -> None:
        self._stream = stream or sys.stderr
        self._total = total
        self._label = label
        self._what = what
        self._also = also
        self._terminal = self._stream.isatty()
        self._shown = time.monotonic()
        self._marks = deque([(self._shown, 0)])
        self._drawn = False
        self.done = 0
        self.counts: Counter[str] = Counter()

    def advance(self, done: int = 1, **counts: int) -> None:
        """Count what came, and show it if it is time to."""
        self.done += done
        self.counts.update(counts)
        now = time.monotonic()
        if now - self._shown >= (_TERMINAL_S if self._terminal else _PLAIN_S):
            self._shown = now
            self._show()

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._print(("\r\x1b[K" if self._drawn and self._terminal else "") + text + "\n")

    def close(self, *, always: bool = True) -> None:
        """Show the last state; unless `always`, only if an earlier one was shown."""
        if always or self._drawn:
            self._show()
            if self._terminal:
                self._print("\n")

    def _show(self) -> None:
        self._drawn = True
        now = time.monotonic()
        while len(self._marks) > 1 and now - self._marks[0][0] > _RATE_S:
            self._marks.popleft()
        then, before = self._marks[0]
        self._marks.append((now, self.done))
        rate = (self.done - before) / max(now - then, 1e-6)
        left = duration((self._total - self.done) / rate) if rate else "unknown"
        also = "".join(f", {self.counts[name]} {name}" for name in self._also)
        text = f"{self._label}: {self.done}/{self._total} {self._what}{also}, {rate:.3g}/s, {left} left"
        if self._terminal:
            # A line that wraps could not be drawn over: the bar takes what is left.
            width = self._columns() - 1
            size = min(20, width - len(text) - 3)
            filled = size * self.done // max(self._total, 1)
            bar = f"[{'█' * filled}{' ' * (size - filled)}] " if size >= 4 else ""
            self._print("\r\x1b[K" + (bar + text)[:width])
        else:
            self._print(text + "\n")

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            return 80

    def _print(self, text: str) -> None:
        # A terminal that was closed must not end hours of work.
        with suppress(OSError):
            print(text, end="", file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """`95` as `1:35`, `3700` as `1:01:40`."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
