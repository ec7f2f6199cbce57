"""The QC page's histograms take any figures a modality may give."""

from __future__ import annotations

import pytest

from preprocess.qc import _histogram


@pytest.mark.parametrize(
    "values",
    [[], [3.0], [0.7, 0.7 + 1e-16, 0.7 - 1e-16], [float("nan"), 1.0, float("inf")], [-1e300, 1e300], [0.0, 0.0]],
    ids=["none", "one", "rounding noise", "not finite", "far apart", "zeros"],
)
def test_a_histogram_is_drawn_of_any_figures(values: list[float]) -> None:
    assert _histogram("slice spacing (mm)", values).startswith(b"\x89PNG")
