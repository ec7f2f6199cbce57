"""Files are counted as files, however many units hold them."""

from __future__ import annotations

from pathlib import Path

from preprocess.conversion import InputFile, Outcome, Status, Unit
from preprocess.tally import Step, Tally

WRITTEN, SKIPPED, FAILED = Outcome(Status.WRITTEN), Outcome(Status.SKIPPED, "empty"), Outcome(Status.FAILED, "gap")


def unit(*names: str) -> Unit:
    return Unit(tuple(InputFile(Path(name), name) for name in names))


def test_a_file_is_done_with_the_last_of_its_units() -> None:
    tally = Tally([unit("table"), unit("table"), unit("table"), unit("table"), unit("a", "b")])
    assert tally.total == 3
    assert [tally.add({"table": WRITTEN}) for _ in range(3)] == [Step(0, 0.25, 0)] * 3
    assert tally.add({"a": WRITTEN, "b": FAILED}) == Step(2, 2.0, 1)
    assert tally.add({"table": WRITTEN}) == Step(1, 0.25, 0)


def test_a_file_failed_if_no_unit_wrote_of_it() -> None:
    for outcomes, failed in (
        ((FAILED, WRITTEN), 0), ((WRITTEN, FAILED), 0), ((FAILED, SKIPPED), 1), ((SKIPPED, FAILED), 1),
        ((FAILED, FAILED), 1), ((SKIPPED, SKIPPED), 0),
    ):  # fmt: skip
        tally = Tally([unit("slide"), unit("slide")])
        steps = [tally.add({"slide": outcome}) for outcome in outcomes]
        assert [step.failed for step in steps] == [0, failed]
        assert [step.done for step in steps] == [0, 1]
