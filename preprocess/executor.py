"""Processes that run calls, behind the interface of `concurrent.futures`, so that a cluster's executor can take over.

What a pool of the standard library lacks here: a process that dies or falls silent costs the call it was on and no
other. Each call has a process to itself while it runs; a lost process is replaced when the next call needs one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, ParamSpec, TypeVar

from medcoss.contracts import MedcossError

STALL_SECONDS = 30.0
_START_SECONDS = 300.0
"""A process that has not finished its imports by then is given up."""

_STARTS = 3
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "VIPS_CONCURRENCY"), "1"
)
"""The number of processes says how many cores are to be busy."""
_STANDARD_ERROR = 2
_KILL_SECONDS = 5.0
_PARTS = 20
"""A silence is measured in so many parts, each waited for anew: when all processes were stopped for an hour (Ctrl-Z,
a suspended machine), one part has passed, not the whole."""

_MEMBER = "import sys; sys.path[:] = sys.argv[3:]; from preprocess.member import serve; serve(*sys.argv[1:3])"

P = ParamSpec("P")
T = TypeVar("T")


class WorkerDiedError(Exception):
    """The process that ran the call was killed or crashed."""


class StalledError(Exception):
    """The process that ran the call gave no beat for too long and was killed."""


class BrokenWorkersError(MedcossError):
    """Processes die before they can take a call."""


class LocalProcesses(Executor):
    """Up to `count` single-process members on this machine, started as calls need them.

    Each member first calls `setup(*arguments)`. A call's future gets `WorkerDiedError` if its process died and
    `StalledError` if `heartbeat.beat` was not called for `stall_seconds` while it ran; even one that holds the
    interpreter's lock or sleeps in the kernel. Calls, results and exceptions travel pickled. What members print is
    discarded unless `show_output`: C libraries print paths. Members end with this process, however it ends.
    """

    def __init__(
        self, count: int, setup: Callable[..., object] | None = None, arguments: tuple[Any, ...] = (), *,
        stall_seconds: float = STALL_SECONDS, show_output: bool = False,
    ) -> None:  # fmt: skip
        self._setup = bytes(ForkingPickler.dumps((setup, arguments, {}) if setup else (int, (), {})))
        self._stall_seconds = stall_seconds
        self._show_output = show_output
        # One thread a member does its starting, waiting and burying; the pool of threads does the queueing.
        self._threads = ThreadPoolExecutor(count, "preprocess member", initializer=_block_interrupts)
        self._own = threading.local()
        self._lock = threading.Lock()
        self._members: set[_Member] = set()
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function that can be pickled in one of the processes."""
        return self._threads.submit(self._run, bytes(ForkingPickler.dumps((fn, args, kwargs))))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes when their calls have ended."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            self.kill()

    def kill(self) -> None:
        """End the processes at once; calls under way get `WorkerDiedError`, others are cancelled."""
        with self._lock:
            self._closed = True
            for member in self._members:
                member.process.kill()
        self._threads.shutdown(cancel_futures=True)
        # Members at work were buried by their threads.
        for member in list(self._members):
            self._lose(member)

    def _run(self, call: bytes) -> Any:
        while True:
            member = getattr(self._own, "member", None) or self._start()
            try:
                # A member that was killed while it had nothing to do costs no call.
                member.connection.send_bytes(call)
                break
            except OSError:
                self._lose(member)
        try:
            succeeded, result = member.answer(self._stall_seconds)
        except TimeoutError as error:
            self._lose(member)
            raise StalledError(f"no sign of life for {self._stall_seconds:g} s") from error
        except (EOFError, OSError) as error:
            self._lose(member)
            raise WorkerDiedError(f"exit status {member.process.returncode}") from error
        if succeeded:
            return result
        raise result

    def _start(self) -> _Member:
        for _ in range(_STARTS):
            with self._lock:
                if self._closed:
                    raise WorkerDiedError("the processes are being ended")
                try:
                    member = _Member.start(self._stall_seconds / _PARTS, self._show_output)
                except OSError as error:
                    raise BrokenWorkersError(
                        f"no process can be started ({error.strerror}): fewer --workers"
                    ) from error
                self._members.add(member)
            try:
                member.connection.send_bytes(self._setup)
                succeeded, result = member.answer(_START_SECONDS)
            except (EOFError, OSError):
                self._lose(member)
                continue
            if succeeded:
                self._own.member = member
                return member
            self._lose(member)
            raise BrokenWorkersError(f"worker processes cannot start: {result}: try --debug") from result
        raise BrokenWorkersError("worker processes die as soon as they start: run with --debug to see what they say")

    def _lose(self, member: _Member) -> None:
        self._own.member = None
        member.process.kill()
        member.bury()
        with self._lock:
            self._members.discard(member)


@dataclass(frozen=True, eq=False)
class _Member:
    process: subprocess.Popen[bytes]
    connection: Connection

    @classmethod
    def start(cls, beat_seconds: float, show_output: bool) -> _Member:
        """A plain child rather than one of `multiprocessing`: that module waits for its children at exit, and one that
        sleeps in the kernel never ends."""
        ours, theirs = Pipe()
        command = [sys.executable, "-c", _MEMBER, str(theirs.fileno()), str(beat_seconds), *sys.path]
        output = _STANDARD_ERROR if show_output else subprocess.DEVNULL
        # Its standard input is never written to: it ends when we end.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=[theirs.fileno()],
            env={**_ONE_THREAD, **os.environ},
        )  # fmt: skip
        theirs.close()
        return cls(process, ours)

    def answer(self, patience: float) -> Any:
        """What the member sends next that is not a beat. Raises `TimeoutError` after so many seconds of silence, and
        `EOFError` or `OSError` if it is dead."""
        silent = 0
        while silent < _PARTS:
            if not self.connection.poll(patience / _PARTS):
                silent += 1
                continue
            silent = 0
            message = self.connection.recv()
            if message is not None:
                return message
        raise TimeoutError

    def bury(self) -> None:
        """Take leave of a killed process; one that sleeps in the kernel is left behind."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_KILL_SECONDS)
        self.connection.close()
        if self.process.stdin is not None:
            self.process.stdin.close()


def _block_interrupts() -> None:
    """Ctrl-C is this process's business: members inherit the mask of the thread that starts them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
