"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Root of the real raw data (MEDCOSS_DATA, or a `shared/data` folder beside the checkout); skips where absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("MEDCOSS_DATA", default))
    if not (root / "SOURCES.md").is_file():
        pytest.skip("real data is absent: set MEDCOSS_DATA to its folder")
    return root
