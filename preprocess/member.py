"""A worker process of `executor.LocalProcesses`: takes calls from a pipe, sends back results and beats."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler

from preprocess import heartbeat

_PR_SET_PDEATHSIG = 1
_BEAT = bytes(ForkingPickler.dumps(None))


def serve(descriptor: str, beat_seconds: str) -> None:
    """Answer calls (function, positional, named) until the other end is closed: None for a beat, at most one in
    `beat_seconds`; (succeeded, result or exception) when a call has ended.
    """
    _die_with_parent()
    pipe = _Pipe(int(descriptor), float(beat_seconds))
    heartbeat.listen(pipe.beat)
    while True:
        try:
            call = pipe.connection.recv_bytes()
        except EOFError:
            return
        pipe.send(_answer(call))


class _Pipe:
    """The end of a worker; a conversion's threads may beat at once."""

    def __init__(self, descriptor: int, beat_seconds: float) -> None:
        self.connection = Connection(descriptor)
        self._beat_seconds = beat_seconds
        self._sent = 0.0
        self._lock = threading.Lock()

    def beat(self) -> None:
        if time.monotonic() - self._sent >= self._beat_seconds:
            self.send(_BEAT)

    def send(self, message: bytes) -> None:
        with self._lock:
            self._sent = time.monotonic()
            self.connection.send_bytes(message)


def _answer(call: bytes) -> bytes:
    try:
        function, positional, named = ForkingPickler.loads(call)
        return bytes(ForkingPickler.dumps((True, function(*positional, **named))))
    except Exception as error:  # noqa: BLE001 -- it is raised again where the call's result is asked for
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return _exception(error)


def _exception(error: Exception) -> bytes:
    try:
        message = bytes(ForkingPickler.dumps((False, error)))
        ForkingPickler.loads(message)  # an exception of several arguments may not survive the way
    except Exception:  # noqa: BLE001
        return bytes(ForkingPickler.dumps((False, RuntimeError(f"{type(error).__name__} in a worker process"))))
    return message


def _die_with_parent() -> None:
    """A worker must not outlive a parent that was killed, even if it holds the interpreter's lock for ever."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_await_end_of_input, daemon=True).start()


def _await_end_of_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)
