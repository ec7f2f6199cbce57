"""What a conversion says while it runs: files, samples, failures, rate, time left."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from typing import TextIO

_TERMINAL_S, _PLAIN_S = 0.2, 10.0
_RATE_S = 60.0
"""The rate is that of the last minute or more: what an earlier run had staged, and many small files, say little of the
rest; and so do two slow units that happen to end one after the other."""


class Progress:
    """A bar on a terminal, a plain line every 10 s elsewhere, on stderr. Names no input.

    `what` is counted from `before`, which took no time, up to `total`; further counts are shown after it in the order
    of `also`. The rate is that of the count `per_second`, of `what` without it.
    """

    def __init__(
        self, total: int, label: str, what: str = "files", also: tuple[str, ...] = (), per_second: str = "",
        before: int = 0, stream: TextIO | None = None,
    ) -> None:  # fmt: skip
        self._stream = stream or sys.stderr
        self._total = total
        self._label = label
        self._what = what
        self._also = also
        self._per_second = per_second
        self._terminal = self._stream.isatty()
        self._begun = self._shown = time.monotonic()
        self._work = float(before)
        self._marks = deque([(self._begun, self._work, 0 if per_second else before)])
        self._drawn = False
        self.done = before
        self.counts: Counter[str] = Counter()
        if self._terminal and total:
            self._show()

    def advance(self, done: int = 1, work: float | None = None, **counts: int) -> None:
        """Count what came, and show it if it is time to. `work` is how much of the total that was, where it is not
        `done`: a part of a file is work, though no file is done.
        """
        self.done += done
        self._work += done if work is None else work
        self.counts.update(counts)
        now = time.monotonic()
        if now - self._shown >= (_TERMINAL_S if self._terminal else _PLAIN_S):
            self._shown = now
            self._show()

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._print(("\r\x1b[K" if self._drawn and self._terminal else "") + text + "\n")

    def close(self, *, always: bool = True) -> None:
        """Show the last state, if there was anything to do; unless `always`, only if an earlier one was shown."""
        if self._total and (always or self._drawn):
            self._show(last=True)
            if self._terminal:
                self._print("\n")

    def _show(self, *, last: bool = False) -> None:
        self._drawn = True
        now = time.monotonic()
        text = f"{self._label}: {self.done:,}/{self._total:,} {_one(self._total, self._what)}"
        text += "".join(f", {self.counts[name]:,} {_one(self.counts[name], name)}" for name in self._also)
        rate, left = self._speed(now)
        text += rate
        if last:
            text += f", took {duration(now - self._begun)}"
        elif left:
            text += f", {left} left"
        if self._terminal:
            # A line that wraps could not be drawn over: the bar takes what is left.
            width = self._columns() - 1
            size = min(20, width - len(text) - 3)
            filled = size * self.done // max(self._total, 1)
            bar = f"[{'█' * filled}{' ' * (size - filled)}] " if size >= 4 else ""
            self._print("\r\x1b[K" + (bar + text)[:width])
        else:
            self._print(text + "\n")

    def _speed(self, now: float) -> tuple[str, str]:
        """Rate and time left, empty while nothing has come; no time is left when all is done."""
        counted = self.counts[self._per_second] if self._per_second else self.done
        while len(self._marks) > 1 and now - self._marks[1][0] > _RATE_S:
            self._marks.popleft()
        then, work, before = self._marks[0]
        self._marks.append((now, self._work, counted))
        seconds, done = max(now - then, 1e-6), self._work - work
        if not done:
            return "", ""
        rate = (counted - before) / seconds
        text = f", {rate:,.0f}" if rate >= 100 else f", {rate:.3g}"
        text += f" {self._per_second}/s" if self._per_second else "/s"
        left = duration((self._total - self._work) * seconds / done)
        return text, left if self.done < self._total else ""

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except OSError:
            return 80

    def _print(self, text: str) -> None:
        # A terminal that was closed must not end hours of work.
        with suppress(OSError):
            print(text, end="", file=self._stream, flush=True)


def _one(number: int, words: str) -> str:
    """`files looked through` as they are, or `file looked through` where the number is 1."""
    first, *rest = words.split()
    return " ".join([first.removesuffix("s"), *rest]) if number == 1 else words


def duration(seconds: float) -> str:
    """`95` as `1:35`, `3700` as `1:01:40`."""
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"


def counted(number: int, one: str, many: str = "") -> str:
    """`1 file`, `2 files`, `1,500 files`; `many` is the plural where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
