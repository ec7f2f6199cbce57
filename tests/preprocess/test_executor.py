"""The executor: what is lost when a process dies or falls silent, and what is not."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from preprocess import executor as executor_module
from preprocess.executor import BrokenWorkersError, LocalProcesses, StalledError, WorkerDiedError

Start = Callable[..., LocalProcesses]
_STALL_S = 1.0

_CALLS = """
import ctypes, os, re, signal, subprocess, sys, threading, time
from preprocess import heartbeat

def process_id(): return os.getpid()

def double(number): return 2 * number

def die(number): os.kill(os.getpid(), number)

class TwoArgumentsError(Exception):
    def __init__(self, first, second): super().__init__(first)

def raise_two(): raise TwoArgumentsError("a", "b")

def give_a_lock(): return threading.Lock()

def sleep(seconds): time.sleep(seconds)

def wait_and_tell(seconds):
    time.sleep(seconds)
    return os.getpid()

def sleep_beating(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        heartbeat.beat()
        time.sleep(0.01)
    return "slept"

def sleep_with_the_lock_held(seconds): ctypes.PyDLL(None).usleep(int(seconds * 1e6))

def match_for_ever(): re.match("(a*)*b", "a" * 64)

def stop(): os.kill(os.getpid(), signal.SIGSTOP)

def talk():
    print("a patient's path", flush=True)
    os.write(2, b"a patient's path")

def come_up_slowly(seconds): time.sleep(seconds)

def die_at_start(): os._exit(7)

def fail_at_start(): raise ImportError("no codec")
"""

_PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
import executor_calls
from preprocess.executor import LocalProcesses
executor = LocalProcesses(2)
for name in ("sleep_with_the_lock_held", "sleep"):
    executor.submit(getattr(executor_calls, name), 100)
while len(executor._members) < 2:
    time.sleep(0.01)
time.sleep(1)
print(*(member.process.pid for member in executor._members), flush=True)
time.sleep(100)
"""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A module that the processes can import as well."""
    folder = tmp_path_factory.mktemp("calls")
    (folder / "executor_calls.py").write_text(_CALLS)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("executor_calls")
    sys.path.remove(str(folder))
    del sys.modules["executor_calls"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[LocalProcesses] = []

    def make(count: int, *arguments: object, stall_seconds: float = _STALL_S) -> LocalProcesses:
        started.append(LocalProcesses(count, *arguments, stall_seconds=stall_seconds))  # type: ignore[arg-type]
        return started[-1]

    yield make
    for executor in started:
        executor.kill()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_results_and_exceptions_come_back(start: Start, calls: ModuleType) -> None:
    executor = start(2)
    assert list(executor.map(calls.double, range(20))) == list(range(0, 40, 2))
    with pytest.raises(FileNotFoundError) as caught:
        executor.submit(os.stat, "/nowhere").result()
    assert caught.value.errno == 2
    assert "in a worker process" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="TwoArgumentsError in a worker process"):
        executor.submit(calls.raise_two).result()
    with pytest.raises(TypeError, match="pickle"):
        executor.submit(calls.give_a_lock).result()
    assert executor.submit(calls.double, 4).result() == 8


def test_processes_are_started_as_calls_need_them(start: Start, calls: ModuleType) -> None:
    executor = start(1000)
    pids = {executor.submit(calls.process_id).result() for _ in range(10)}
    assert len(pids) == 1
    assert list(executor.map(calls.double, range(3))) == [0, 2, 4]
    assert len(executor._members) <= 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_death_costs_the_call_it_met(start: Start, calls: ModuleType, number: int) -> None:
    executor = start(2)
    others = [executor.submit(calls.double, n) for n in range(6)]
    killer = executor.submit(calls.die, number)
    others += [executor.submit(calls.double, n) for n in range(6, 12)]
    assert [other.result() for other in others] == list(range(0, 24, 2))
    with pytest.raises(WorkerDiedError):
        killer.result()


def test_a_process_killed_at_rest_costs_nothing(start: Start, calls: ModuleType) -> None:
    executor = start(1)
    pid = executor.submit(calls.process_id).result()
    os.kill(pid, signal.SIGKILL)
    for member in executor._members:
        member.process.wait()
    assert executor.submit(calls.process_id).result() != pid


@pytest.mark.parametrize("name", ["sleep", "sleep_with_the_lock_held", "match_for_ever", "stop"])
def test_silence_is_ended_and_costs_the_call_it_met(start: Start, calls: ModuleType, name: str) -> None:
    executor = start(1)
    pid = executor.submit(calls.process_id).result()
    begun = time.monotonic()
    silent = executor.submit(getattr(calls, name), *([100] if "sleep" in name else []))
    behind = executor.submit(calls.process_id)
    with pytest.raises(StalledError, match="no sign of life for 1 s"):
        silent.result()
    assert 0.9 * _STALL_S < time.monotonic() - begun < 5 * _STALL_S
    assert behind.result() != pid
    assert not alive(pid)


def test_one_that_cannot_be_killed_is_left_behind(
    start: Start, calls: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor_module, "_KILL_SECONDS", 0.1)
    executor = start(1)
    pid = executor.submit(calls.process_id).result()
    with monkeypatch.context() as patch:
        # A process that sleeps in the kernel takes no signal; a stopped one that is not killed does as little.
        patch.setattr(subprocess.Popen, "kill", lambda process: None)
        with pytest.raises(StalledError):
            executor.submit(calls.stop).result()
        assert alive(pid)
    try:
        assert executor.submit(calls.process_id).result() != pid
        begun = time.monotonic()
        executor.kill()
        assert time.monotonic() - begun < 5
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_beats_and_slow_starts_are_no_silence(start: Start, calls: ModuleType) -> None:
    executor = start(2, calls.come_up_slowly, (2.5 * _STALL_S,))
    assert executor.submit(calls.sleep_beating, 2.5 * _STALL_S).result() == "slept"
    with pytest.raises(StalledError):
        executor.submit(calls.sleep, 100).result()


def test_being_stopped_together_is_no_silence(calls: ModuleType, tmp_path: Path) -> None:
    """A terminal's Ctrl-Z, or a machine that is suspended, stops parent and worker alike."""
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys\nsys.path.insert(0, sys.argv[1])\nimport executor_calls\n"
        "from preprocess.executor import LocalProcesses\n"
        "executor = LocalProcesses(1, stall_seconds=1)\n"
        "print(executor.submit(executor_calls.process_id).result(), flush=True)\n"
        "print(executor.submit(executor_calls.sleep_beating, 1).result(), flush=True)\n"
        "executor.kill()\n"
    )
    folder = Path(str(calls.__file__)).parent
    process = subprocess.Popen([sys.executable, driver, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    time.sleep(0.3)
    for number in (signal.SIGSTOP, signal.SIGCONT):
        # The parent goes on first: the worst case.
        os.kill(process.pid, number)
        os.kill(worker, number)
        time.sleep(2.5 * _STALL_S if number == signal.SIGSTOP else 0)
    assert process.communicate(timeout=30)[0] == "slept\n"


def test_processes_that_cannot_start_end_the_run(start: Start, calls: ModuleType) -> None:
    with pytest.raises(BrokenWorkersError, match="die as soon as they start"):
        start(1, calls.die_at_start).submit(calls.double, 1).result()
    with pytest.raises(BrokenWorkersError, match="no codec"):
        start(1, calls.fail_at_start).submit(calls.double, 1).result()


def test_kill_ends_all_at_once(start: Start, calls: ModuleType) -> None:
    executor = start(2, stall_seconds=60)
    pids = set()
    while len(pids) < 2:
        pids |= set(executor.map(calls.wait_and_tell, [0.2, 0.2]))
    futures = [executor.submit(calls.sleep, 100) for _ in range(4)]
    time.sleep(0.3)
    begun = time.monotonic()
    executor.kill()
    assert time.monotonic() - begun < 3
    assert all(future.done() for future in futures)
    assert [isinstance(f.exception(), WorkerDiedError) for f in futures[:2]] == [True, True]
    assert [future.cancelled() for future in futures[2:]] == [True, True]
    assert not any(alive(pid) for pid in pids)


def test_what_processes_print_is_not_shown(start: Start, calls: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    start(1).submit(calls.talk).result()
    shown = LocalProcesses(1, show_output=True)
    assert capfd.readouterr() == ("", "")
    shown.submit(calls.talk).result()
    shown.shutdown()
    out, errors = capfd.readouterr()
    assert out == ""
    assert errors.count("a patient's path") == 2


def test_processes_end_with_a_killed_parent(calls: ModuleType, tmp_path: Path) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(_PARENT)
    folder = Path(str(calls.__file__)).parent
    process = subprocess.Popen([sys.executable, driver, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)
