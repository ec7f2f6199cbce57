"""Shards written by worker processes: the bytes of one process, and what a lost one costs."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from medcoss.contracts import Field, Geometry, Kind, MedcossError, ModalitySpec
from medcoss.shards import Sample, write_split
from preprocess.assemble import Placed
from preprocess.executor import LocalProcesses
from preprocess.progress import Progress
from preprocess.sharding import write_split_in_workers
from preprocess.staging import UnitWriter

VOLUMES = ModalitySpec("ct", Kind.VOLUME, Geometry((1, 2, 3, 4)), (Field("volume", "zarr", "int16"),), "counts")
TEXTS = ModalitySpec("report", Kind.SEQUENCE, Geometry((16,)), (Field("text", "utf8", "str"),), "none", vocabulary=300)
COUNT, SHARD_SIZE = 11, 4

_SETUPS = """
import os, pathlib, signal, time
from preprocess import sharding

as_sample = sharding.as_sample

def kill_once(mark):
    def sample(placed, content):
        if placed.sample.key.startswith("k06") and not pathlib.Path(mark).exists():
            pathlib.Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return as_sample(placed, content)
    sharding.as_sample = sample

def kill_always(mark):
    def sample(placed, content):
        os.kill(os.getpid(), signal.SIGKILL)
    sharding.as_sample = sample

def fill_disk(mark):
    def sample(placed, content):
        if placed.sample.key < "k04":
            raise OSError(28, "No space left on device")
        # The other shards are still being written when the first has failed.
        time.sleep(0.2)
        return as_sample(placed, content)
    sharding.as_sample = sample
"""


@pytest.fixture
def setups(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "shard_setups.py").write_text(_SETUPS)
    sys.path.insert(0, str(folder))
    yield "shard_setups"
    sys.path.remove(str(folder))
    sys.modules.pop("shard_setups", None)


def content(spec: ModalitySpec, number: int) -> bytes | np.ndarray:
    if spec.kind is Kind.SEQUENCE:
        return f"text {number} of a report".encode()
    return np.random.default_rng(number).integers(-1000, 1000, (2, 3, 4)).astype(np.int16)


def staged(spec: ModalitySpec, staging: Path) -> list[Placed]:
    """Two units whose samples alternate in the order of keys."""
    staging.mkdir()
    placed = []
    for unit in ("even", "odd"):
        writer = UnitWriter(staging, unit, "stamp")
        for number in range(unit == "odd", COUNT, 2):
            writer.add(content(spec, number), key=f"k{number:02}-0", input_id="i", subject=f"s{number % 3}", known=True,
                       split=None, labels=json.dumps({"n": number}), geometry="{}")  # fmt: skip
        placed += [Placed("train", unit, sample) for sample in writer.commit({}, {}, {}).samples]
    return sorted(placed, key=lambda one: one.sample.key)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(params=[VOLUMES, TEXTS], ids=["volumes", "texts"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ModalitySpec, list[Placed], dict[str, bytes]]:
    spec: ModalitySpec = request.param
    samples = [Sample(f"k{n:02}-0", content(spec, n), f"s{n % 3}", {"n": n}) for n in range(COUNT)]
    write_split(tmp_path / "alone", spec, "train", samples, COUNT, SHARD_SIZE)
    return spec, staged(spec, tmp_path / "staging"), files(tmp_path / "alone")


def in_workers(
    tmp_path: Path, spec: ModalitySpec, placed: list[Placed], setup: Callable[[str], None] | None = None
) -> tuple[int, int, int]:
    """Shards, samples and subjects of the split that two processes wrote."""
    arguments = (str(tmp_path / "mark"),) if setup else ()
    executor = LocalProcesses(2, setup, arguments)
    try:
        entry, others = write_split_in_workers(
            executor, 2, tmp_path / "staging", tmp_path / "made", spec, "train", placed, SHARD_SIZE,
            Progress(COUNT, "test"),
        )  # fmt: skip
    finally:
        executor.kill()
    assert {shard.file for shard in entry.shards} | set(others) == set(files(tmp_path / "made"))
    return len(entry.shards), entry.samples, entry.subjects


def test_processes_write_what_one_writes(
    case: tuple[ModalitySpec, list[Placed], dict[str, bytes]], tmp_path: Path
) -> None:
    spec, placed, alone = case
    assert in_workers(tmp_path, spec, placed) == (3, COUNT, 3)
    assert files(tmp_path / "made") == alone


def test_a_process_that_dies_over_a_shard_costs_nothing(
    case: tuple[ModalitySpec, list[Placed], dict[str, bytes]], setups: str, tmp_path: Path
) -> None:
    import shard_setups

    spec, placed, alone = case
    assert in_workers(tmp_path, spec, placed, shard_setups.kill_once) == (3, COUNT, 3)
    assert (tmp_path / "mark").exists()
    assert files(tmp_path / "made") == alone


def test_a_shard_that_kills_every_process_ends_the_run_and_leaves_nothing(
    case: tuple[ModalitySpec, list[Placed], dict[str, bytes]], setups: str, tmp_path: Path
) -> None:
    import shard_setups

    spec, placed, _ = case
    with pytest.raises(MedcossError, match=r"lost while it wrote train shard [012] .*run the same command"):
        in_workers(tmp_path, spec, placed, shard_setups.kill_always)
    assert files(tmp_path / "made") == {}


def test_a_full_disk_in_a_process_is_an_error_of_the_system(
    case: tuple[ModalitySpec, list[Placed], dict[str, bytes]], setups: str, tmp_path: Path
) -> None:
    import shard_setups

    spec, placed, _ = case
    with pytest.raises(OSError, match="No space left") as caught:
        in_workers(tmp_path, spec, placed, shard_setups.fill_disk)
    assert caught.value.errno == errno.ENOSPC
    assert files(tmp_path / "made") == {}
