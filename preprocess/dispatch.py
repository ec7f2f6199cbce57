"""Many small pieces of work over an executor: in bundles, and after a loss one by one until the culprit is alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from itertools import islice
from typing import TypeVar

from preprocess.executor import StalledError, WorkerDiedError
from preprocess.heartbeat import beat

_BUNDLE_SECONDS = 0.25
"""Work in one call: sending it costs a thousandth of that, and at the end no process waits long for another."""

_LARGEST_BUNDLE = 256
_GROWTH = 4

Item = TypeVar("Item")
Value = TypeVar("Value")
Lost = WorkerDiedError | StalledError


def dispatch(
    executor: Executor, function: Callable[[Item], Value], items: Iterable[Item], workers: int, *,
    first_bundle: int = 1, settle: bool = False,
) -> Generator[tuple[Item, Value | Lost], None, None]:  # fmt: skip
    """Call `function` (which a worker can import) on each item; yields items with results as they come, in any order.

    An item that takes its process down comes with `WorkerDiedError`, one that stalls it with `StalledError`; the other
    items of its bundle are done again. Whatever else a call raises is raised here. With `settle`, no call is under way
    any more when this ends early, by an exception or `close`.
    """
    pending: dict[Future[tuple[float, list[Value]]], list[Item]] = {}
    try:
        yield from _dispatched(executor, function, iter(items), workers, first_bundle, pending)
    finally:
        if settle:
            wait([future for future in pending if not future.cancel()])


def _dispatched(
    executor: Executor, function: Callable[[Item], Value], waiting: Iterator[Item], workers: int, size: int,
    pending: dict[Future[tuple[float, list[Value]]], list[Item]],
) -> Iterator[tuple[Item, Value | Lost]]:  # fmt: skip
    again: deque[Item] = deque()
    dead: list[Item] = []
    while True:
        while len(pending) < 2 * workers:
            bundle = [again.popleft()] if again else list(islice(waiting, size))
            if not bundle:
                break
            pending[executor.submit(_call, function, bundle)] = bundle
        if not pending:
            break
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            bundle = pending.pop(future)
            error = future.exception()
            if isinstance(error, Lost) and len(bundle) > 1:
                again.extend(bundle)
            elif isinstance(error, WorkerDiedError):
                dead += bundle
            elif isinstance(error, StalledError):
                yield bundle[0], error
            else:
                seconds, values = future.result()
                yield from zip(bundle, values, strict=True)
                fitting = int(len(bundle) * _BUNDLE_SECONDS / max(seconds, 1e-6))
                size = max(1, min(_GROWTH * len(bundle), fitting, _LARGEST_BUNDLE))
    # What kills for want of memory strikes the largest process, not the guilty one. So each of the dead gets a second
    # try with the machine to itself; one that dies then too is given up.
    for item in dead:
        future = executor.submit(_call, function, [item])
        error = future.exception()
        yield item, error if isinstance(error, Lost) else future.result()[1][0]


def _call(function: Callable[[Item], Value], items: list[Item]) -> tuple[float, list[Value]]:
    """The results with the seconds that they took."""
    begun = time.monotonic()
    values = []
    for item in items:
        beat()
        values.append(function(item))
    return time.monotonic() - begun, values
