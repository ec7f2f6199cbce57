"""launch/build_buffer.py on two ranks, and what it refuses."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from medcoss import config as configuration
from medcoss.config import ModelConfig, RunConfig, StageConfig
from medcoss.continual.run import Run
from medcoss.contracts import Kind
from medcoss.model.architecture import resolve
from medcoss.model.mae import MaskedModel
from medcoss.model.weights import fingerprint, save_model
from medcoss.shards.reader import ShardSet
from medcoss.shards.verify import verify

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "build_buffer.py"


def start(run: Run, rank: int, port: int) -> subprocess.Popen[str]:
    """One of two ranks, as a launcher starts it."""
    launcher = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, SCRIPT, "--stage", "photo", "--run", run.directory, "--ratio", "0.2"],
        env=os.environ | launcher | meeting, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def refusal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of a refused command, run in this process."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert caught.value.code == 2
    complaint = capfd.readouterr().err
    assert complaint.startswith("error: ") and complaint.count("\n") == 1
    return complaint


@pytest.fixture
def run(make_set, tmp_path: Path) -> Run:
    """A run whose first stage is finished and whose second is not."""
    shard_set = make_set(Kind.IMAGE, 40, name="photo")
    model = ModelConfig(preset="vit_tiny", patch_2d=8)
    stages = tuple(StageConfig(name, str(shard_set.directory)) for name in ("photo", "later"))
    run = Run(tmp_path / "run")
    run.directory.mkdir()
    run.config_path.write_text(configuration.to_toml(replace(RunConfig(), model=model, stages=stages)))
    torch.manual_seed(0)
    save_model(run.model_path("photo"), MaskedModel(resolve(model, [shard_set.spec])), {})
    run.write_done(
        "photo", {"sets": [shard_set.manifest.fingerprint], "model_sha256": fingerprint(run.model_path("photo"))}
    )
    return run


def test_two_ranks_build_the_buffer_and_later_calls_keep_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [start(run, rank, port) for rank in range(2)]
    (said, complaint), (silence, _) = (rank.communicate(timeout=200) for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0], complaint
    assert "8 of 40 samples" in said and silence == ""
    buffer = ShardSet.open(run.buffer_directory("photo"))
    assert len(buffer) == 8 and verify(buffer.directory) == []
    assert buffer.manifest.parent["model_sha256"] == run.done("photo")["model_sha256"]
    complaint = refusal(monkeypatch, capfd, "--stage", "photo", "--run", run.directory, "--policy", "random")
    assert "another policy (kmeans, not random): delete it" in complaint


@pytest.mark.parametrize(("stage", "what"), [("later", "is not finished"), ("other", "has no stage 'other'")])
def test_stages_that_have_no_model_are_refused(
    run: Run, stage: str, what: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert what in refusal(monkeypatch, capfd, "--stage", stage, "--run", run.directory)
