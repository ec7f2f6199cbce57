"""A rank as a process: it stops in order when told to, and never outlives its launcher. Standard library only."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 120.0
"""Longest time between a signal and the end of the process, should a collective hang because a peer is gone."""

_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stoppable() -> Iterator[StopRequest]:
    """While inside, SIGTERM and the first Ctrl-C only set the request: the training loop ends its step and saves.

    A second Ctrl-C interrupts at once. Main thread only.
    """
    request = StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        if request.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        request.signal = number

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    # Python handlers wait for the main thread, which may hang in a collective; the wake-up pipe does not.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    ended = threading.Event()
    threading.Thread(target=_end_in_time, args=(reader, ended), daemon=True).start()
    try:
        yield request
    finally:
        ended.set()
        signal.set_wakeup_fd(-1)
        os.close(writer)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_in_time(reader: int, ended: threading.Event) -> None:
    """End the process if it is still there `GRACE_SECONDS` after its first signal."""
    asked = os.read(reader, 1)
    os.close(reader)
    if asked and not ended.wait(GRACE_SECONDS):
        os._exit(1)


def die_with_launcher(environment: dict[str, str] | os._Environ[str]) -> None:
    """Have this rank told to stop (SIGTERM) as soon as the process that launched it is gone.

    `deepspeed` is two processes, and killing the outer one leaves the inner one and its ranks running: both are
    watched. Does nothing for a process without a launcher (no RANK), which may outlive its shell on purpose.
    """
    if "RANK" not in environment:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    parent = os.getppid()
    if b"deepspeed.launcher.launch" not in _command(parent):
        return
    grandparent = _parent_of(parent)
    if b"deepspeed" not in _command(grandparent):
        return
    try:
        descriptor = os.pidfd_open(grandparent)
    except OSError:
        return  # ended this very moment, or a kernel without pidfd: the parent is watched anyway
    threading.Thread(target=_stop_after, args=(descriptor,), daemon=True).start()


def _stop_after(descriptor: int) -> None:
    select.select([descriptor], [], [])
    os.kill(os.getpid(), signal.SIGTERM)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _parent_of(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    # The command's name stands in parentheses and may hold anything: the state and the parent follow the last one.
    return int(status.rpartition(")")[2].split()[1])
