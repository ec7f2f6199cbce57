"""What every command shares: one-line errors, exit codes, `--debug`, rank 0 speaking for all, progress on stderr.

Standard library only. Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 done but some inputs failed.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NoReturn, TextIO

from medcoss.contracts import MedcossError

_MENDS = {
    errno.ENOSPC: "free some space or write elsewhere, then run again",
    errno.EDQUOT: "free some of your quota or write elsewhere, then run again",
    errno.ENOENT: "check the path",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "write to another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line `error: …` and exit status 2; only rank 0 prints them."""

    def error(self, message: str) -> NoReturn:
        """Print the error with where help is to be had, and exit with status 2."""
        report_error(f"{message}: see `{self.prog} --help`")
        raise SystemExit(2)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add `--debug`."""
    parser.add_argument("--debug", action="store_true", help="on an error, show the traceback as well")


def run(main: Callable[[argparse.Namespace], int], arguments: argparse.Namespace, *, debug: bool = False) -> int:
    """Call `main(arguments)` and turn foreseeable failures into one line on stderr and an exit status.

    Foreseeable are `MedcossError` (its own status), `OSError` (1) and Ctrl-C (1). A reader of our output that went
    away (`| head`) is no failure. Anything else is a defect of the program and keeps its traceback.
    """
    try:
        status = main(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Python flushes stdout once more at exit and would complain: give it somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (MedcossError, OSError, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        report_error(_describe(error))
        return error.exit_code if isinstance(error, MedcossError) else 1


def report_error(message: str) -> None:
    """Print `error: message` as exactly one line on stderr, on rank 0 only."""
    if is_rank_zero():
        print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Print `text` on stderr, on rank 0 only: what is going on, as opposed to results on stdout.

    A terminal that was closed or a reader that went away must not end hours of work: then nothing is printed.
    """
    if is_rank_zero():
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def is_rank_zero() -> bool:
    """Whether this process speaks for its job: rank 0 of a launcher's ranks, or a process that has no ranks."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _describe(error: MedcossError | OSError | KeyboardInterrupt) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: run the same command again to go on"
    if isinstance(error, MedcossError):
        return str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    mend = _MENDS.get(error.errno or 0)
    return where + (error.strerror or str(error) or type(error).__name__) + (f": {mend}" if mend else "")


class Progress:
    """Progress of `total` things on stderr: a bar on a terminal, a plain line every `interval_s` seconds elsewhere.

    Use as a context manager and call `advance`. Silent on ranks other than 0. Not thread safe.
    """

    def __init__(self, total: int, label: str, *, interval_s: float = 15.0, stream: TextIO | None = None) -> None:
        self.total = total
        self.label = label
        self.done = 0
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._interval_s = 0.1 if self._terminal else interval_s
        self._start = self._shown = time.monotonic()
        self._silent = not is_rank_zero()
        self._drawn = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._drawn and (self._terminal or kind is None):
            self._show()
            if self._terminal:
                print(file=self._stream, flush=True)

    def advance(self, count: int = 1) -> None:
        """Count `count` more things as done."""
        self.done += count
        now = time.monotonic()
        if now - self._shown >= self._interval_s:
            self._shown = now
            self._show()

    def _show(self) -> None:
        if self._silent:
            return
        self._drawn = True
        rate = self.done / max(time.monotonic() - self._start, 1e-9)
        text = f"{self.label}: {self.done}/{self.total}, {rate:.3g}/s"
        if self._terminal:
            filled = 24 * self.done // max(self.total, 1)
            print(f"\r{text} [{'█' * filled}{' ' * (24 - filled)}] ", end="", file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)
