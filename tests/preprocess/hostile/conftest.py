"""How the command is run under attack."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of the command under test: no thread pools beside its workers."""
    return os.environ | {"OMP_NUM_THREADS": "1"}
