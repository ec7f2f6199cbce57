"""A worker's sign of life, so that a file that stalls its reader is told from one that takes long."""

from __future__ import annotations

from collections.abc import Callable

_LISTENERS: list[Callable[[], None]] = []


def listen(listener: Callable[[], None]) -> None:
    """Have `listener` called at each beat of this process; the engine's, set when a worker starts."""
    _LISTENERS.append(listener)


def beat() -> None:
    """Say that work goes on: after each slice, tile, page or some thousand rows. Costs next to nothing."""
    for listener in _LISTENERS:
        listener()
