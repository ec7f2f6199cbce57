"""Every modality, killed with all its processes at random moments and repeated, gives the bytes of an unkilled run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from medcoss.shards import verify

Tree = Callable[[Path], dict[str, bytes]]
_MODALITIES = ["report", "xray", "ct", "mri", "pathology"]
_LONG_ROUNDS, _KILLS_A_ROUND = 10, 5


@dataclass(frozen=True)
class Reference:
    """A set made without a kill: where, and how long it took from the first thing on disk to the end."""

    raw: Path
    out: Path
    seconds: float


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantoms")
    command = [sys.executable, "-m", "preprocess.cli", "phantoms", "--out", root / "raw", "--scale", "0.01"]
    subprocess.run(command, check=True, capture_output=True)
    (root / "salt").write_text("a fixed salt for tests only")
    (root / "tmp").mkdir()
    return root


@pytest.fixture(scope="module", params=_MODALITIES)
def reference(request: pytest.FixtureRequest, phantoms: Path) -> Reference:
    raw, out = phantoms / "raw" / request.param, phantoms / f"{request.param}-unkilled"
    begun = _Run(raw, out, workers=2)
    begun.wait_for_disk()
    start = time.monotonic()
    assert begun.process.wait() == 0
    return Reference(raw, out, time.monotonic() - start)


class _Run:
    """One command in a process group of its own, with a folder for temporary files that must stay empty."""

    def __init__(self, raw: Path, out: Path, *more: str, workers: int) -> None:
        root = out.parent
        # The page is drawn from the shards alike for all; one modality shows that it comes whole.
        options = [*more, "--workers", str(workers), *([] if raw.name == "report" else ["--no-qc"])]
        command = [sys.executable, "-m", "preprocess.cli", raw.name.partition("-")[0], "--in", raw, "--out", out]
        self._staging = out / ".staging"
        self.process = subprocess.Popen(
            [*command, "--salt-file", root / "salt", "--split", "train=0.5,val=0.3,test=0.2", *options],
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": str(root / "tmp")},
        )  # fmt: skip

    def wait_for_disk(self) -> None:
        """Before that there is nothing that a kill could spoil."""
        while not self._staging.exists() and self.process.poll() is None:
            time.sleep(0.002)

    def kill(self, after_s: float) -> bool:
        """Whether it was still running `after_s` seconds after it began to write."""
        self.wait_for_disk()
        time.sleep(after_s)
        running = self.process.poll() is None
        if running:
            os.killpg(self.process.pid, signal.SIGKILL)
        assert self.process.wait() == (-signal.SIGKILL if running else 0)
        self.assert_gone()
        return running

    def assert_gone(self) -> None:
        deadline = time.monotonic() + 10
        while (left := _group(self.process.pid)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert left == []


def _group(leader: int) -> list[int]:
    """Processes that are alive in the process group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] not in "ZX" and int(fields[2]) == leader:
            found.append(int(folder.name))
    return found


def _kill_and_repeat(reference: Reference, out: Path, draw: random.Random, kills: int, tree: Tree) -> None:
    """Kill as often, begin anew where a run was done before its kill came, and compare what the last run gives."""
    killed = 0
    while killed < kills:
        if _Run(reference.raw, out, workers=draw.choice((1, 2, 3))).kill(draw.uniform(0, reference.seconds)):
            killed += 1
        else:
            shutil.rmtree(out)
    last = _Run(reference.raw, out, workers=draw.choice((1, 3)))
    assert last.process.wait() == 0
    last.assert_gone()
    assert tree(out) == tree(reference.out)
    assert verify(out) == []
    assert sorted(path.name for path in out.parent.glob(out.name + "*")) == [out.name, out.name + ".private"]
    private = out.with_name(out.name + ".private")
    assert tree(private) == tree(reference.out.with_name(reference.out.name + ".private"))
    assert list((out.parent / "tmp").iterdir()) == []


def test_killed_at_three_random_moments(reference: Reference, tree: Tree) -> None:
    draw = random.Random(f"three {reference.raw.name}")
    _kill_and_repeat(reference, reference.out.with_name(f"{reference.raw.name}-three"), draw, 3, tree)


@pytest.mark.long
def test_killed_at_fifty_random_moments(reference: Reference, tree: Tree) -> None:
    draw = random.Random(f"fifty {reference.raw.name}")
    for number in range(_LONG_ROUNDS):
        out = reference.out.with_name(f"{reference.raw.name}-fifty-{number}")
        _kill_and_repeat(reference, out, draw, _KILLS_A_ROUND, tree)


def test_killed_while_a_set_is_extended(phantoms: Path, tree: Tree) -> None:
    draw = random.Random("extended")
    raw, out, fresh = phantoms / "xray-extended", phantoms / "extended", phantoms / "extended-at-once"
    files = sorted(path for path in (phantoms / "raw" / "xray").rglob("*") if path.is_file() and path.suffix != ".csv")

    def copy(some: list[Path]) -> None:
        for path in some:
            target = raw / path.relative_to(phantoms / "raw" / "xray")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)

    copy(files[::2])
    assert _Run(raw, out, workers=2).process.wait() == 0
    few = tree(out)
    copy(files[1::2])
    begun = _Run(raw, fresh, workers=2)
    begun.wait_for_disk()
    start = time.monotonic()
    assert begun.process.wait() == 0
    seconds = time.monotonic() - start
    for _ in range(3):
        _Run(raw, out, "--extend", workers=draw.choice((1, 2, 3))).kill(draw.uniform(0, seconds))
    assert _Run(raw, out, "--extend", workers=1).process.wait() == 0
    assert tree(out) == tree(fresh) != few
    assert tree(phantoms / "extended.private") == tree(phantoms / "extended-at-once.private")
    assert verify(out) == []
