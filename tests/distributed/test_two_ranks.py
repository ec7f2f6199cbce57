"""Two ranks on one machine: agreement, inactive parameters, signals, a kill in mid-stage and what is left of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medcoss.continual.run import Run, open_run
from medcoss.contracts import Kind
from medcoss.model.weights import fingerprint

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = ROOT / "launch" / "pretrain.py"
ENVIRONMENT = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def _port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def _deepspeed(script: Path, *options: str) -> list[str]:
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "-q", "--num_accelerators", "2"]
    return [*launcher, "--master_port", _port(), str(script), *options]


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture
def whole(make_set, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """runs/whole: stage report trained by one process, stage xray by two ranks of `deepspeed`, without interruption."""
    monkeypatch.chdir(folder)
    run = Run("runs/whole")
    if not run.config_path.is_file():
        for name, kind in (("report", Kind.SEQUENCE), ("xray", Kind.IMAGE)):
            make_set(kind, 40, name=name, path=folder / "shards" / name, test=2)
        settings: dict[str, Any] = {
            "model": {"preset": "vit_tiny", "drop_path": 0.1},
            "train": {
                "global_batch": 8, "micro_batch": 2, "epochs": 3, "warmup_epochs": 1, "base_lr": 0.02,
                "log_every": 5, "trace": True, "checkpoint_steps": 3, "checkpoint_minutes": 0,
            },
            "continual": {"ratio": 0.2, "centers": 0.1},
            "stages": [{"name": "report"}, {"name": "xray"}],
        }  # fmt: skip
        open_run(run.directory, settings, write=True)
        first = _run([sys.executable, str(PRETRAIN), *_options("report", run)], folder)
        assert first.returncode == 0, first.stderr
        shutil.copytree(run.directory, "runs/killed")
        second = _run(_deepspeed(PRETRAIN, *_options("xray", run)), folder)
        assert second.returncode == 0, second.stderr
        assert "Traceback" not in second.stderr
    yield run


def _options(stage: str, run: Run) -> list[str]:
    return ["--stage", stage, "--run", str(run.directory), "--no-evaluate"]


def _trace(run: Run, rank: int) -> dict[int, dict[str, Any]]:
    lines = (run.stage_directory("xray") / f"trace-{rank}.jsonl").read_text().splitlines()
    return {record["step"]: record for record in map(json.loads, lines)}


def _children(pid: int) -> set[int]:
    """All descendants of a process."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            child = int(path.parent.name)
            found |= {child} | _children(child)
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_both_ranks_see_one_modality_a_step_and_different_samples(whole: Run) -> None:
    first, second = _trace(whole, 0), _trace(whole, 1)
    assert len(first) == 15 + 3
    for step, record in first.items():
        other = second[step]
        assert (record["modality"], record["is_replay"]) == (other["modality"], other["is_replay"])
        assert record["keys"] != other["keys"]
    assert [r["modality"] for r in first.values()].count("report") == 3


def test_a_killed_stage_is_completed_by_the_same_command(whole: Run, folder: Path) -> None:
    run = Run("runs/killed")
    command = _deepspeed(PRETRAIN, *_options("xray", run))
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(run.checkpoints_directory("xray").glob("step-00000000[69]")):
            assert time.monotonic() < deadline and process.poll() is None, "no checkpoint came"
            time.sleep(0.01)
        family = _children(process.pid)
        assert len(family) >= 3, "launch.py and two ranks"
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in family if _alive(pid)], "no orphan is left"
    assert run.done("xray") is None, "killed before the end"

    again = _run(_deepspeed(PRETRAIN, *_options("xray", run)), folder)
    assert again.returncode == 0, again.stderr
    assert "stage xray: going on after step " in again.stderr
    for rank in (0, 1):
        assert _trace(run, rank) == _trace(whole, rank), "same samples, same losses to the last bit"
    assert fingerprint(run.model_path("xray")) == fingerprint(whole.model_path("xray"))


def test_on_sigterm_a_checkpoint_is_saved_and_the_exit_is_0(whole: Run, folder: Path) -> None:
    run = Run("runs/stopped")
    shutil.copytree(whole.directory, run.directory, ignore=shutil.ignore_patterns("xray"))
    command = [sys.executable, str(PRETRAIN), *_options("xray", run)]
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(run.checkpoints_directory("xray").glob("step-000000003")):
            assert time.monotonic() < deadline and process.poll() is None, "no checkpoint came"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 0
    stopped = re.search(r"stage xray: stopped after step (\d+) of 18, saved", said)
    assert stopped, said
    assert (run.checkpoints_directory("xray") / f"step-{int(stopped[1]):09d}").is_dir()
    assert run.done("xray") is None


def test_an_error_is_one_line_from_rank_0(whole: Run, folder: Path) -> None:
    result = _run(_deepspeed(PRETRAIN, "--stage", "ct", "--run", "runs/whole"), folder)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: runs/whole has no stage 'ct': its stages are report, xray"]


_ENGINE = """
import os, sys, torch
from medcoss.config import ModelConfig, TrainConfig
from medcoss.contracts import Field, Geometry, Kind, ModalitySpec
from medcoss.model.architecture import resolve
from medcoss.model.mae import MaskedModel, active_groups, parameter_groups
from medcoss.model.mask import keep_patches, mask_tokens
from medcoss.train.engine import Engine, choose_device, joined
from medcoss.train.task import Pretraining, StepInputs
from medcoss.train.world import find_world

SHAPES = {Kind.SEQUENCE: (24,), Kind.IMAGE: (3, 32, 32), Kind.VOLUME: (1, 8, 16, 16)}
specs = [ModalitySpec(k.value, k, Geometry(s), (Field("x", "utf8", "u1"),), "", vocabulary=46 if len(s) == 1 else None)
         for k, s in SHAPES.items()]
world = find_world(os.environ)
device = choose_device(world)


def inputs(model, kind, step):
    generator = torch.Generator().manual_seed(100 * step + world.rank)
    place = dict(seed=0, step=step, positions=[0, 1])
    if kind is Kind.SEQUENCE:
        ids = torch.randint(6, 46, (2, 24), generator=generator)
        valid = torch.ones_like(ids, dtype=torch.bool)
        masked, chosen = mask_tokens(ids, valid, 0.3, vocabulary=46, **place)
        return StepInputs(kind, ids, valid, masked_ids=masked, chosen=chosen)
    keep = keep_patches(model.architecture.n_patches(kind), 0.5, global_batch=2, **place)
    return StepInputs(kind, torch.rand(2, *SHAPES[kind], generator=generator), None, keep=keep)


def build(stage):
    torch.manual_seed(0)
    model = MaskedModel(resolve(ModelConfig(preset="vit_tiny", patch_3d=(8, 8, 8)), specs))
    groups = {g: [("model." + n, p) for n, p in m] for g, m in parameter_groups(model).items()}
    config = TrainConfig(global_batch=8, zero_stage=stage, weight_decay=0.05)
    module = Pretraining(model, autocast=torch.bfloat16)
    return model, groups, Engine(module, groups, config, world, device, micro_batch=2, accumulation=2)


def step(model, engine, kind, number):
    engine.set(1e-2, active_groups(kind, replay=False))
    losses = []
    for part in range(2):
        loss = engine(inputs(model, kind, 2 * number + part))
        engine.backward(loss)
        losses.append(loss.item())
    return losses


with joined(world, device, os.environ):
    reference = None
    for stage in (0, 1, 2, 3):
        model, groups, engine = build(stage)
        for number, kind in enumerate(Kind):
            step(model, engine, kind, number)
        for number, kind in enumerate([Kind.IMAGE, Kind.VOLUME, Kind.SEQUENCE], 3):
            before = engine.state()
            step(model, engine, kind, number)
            after = engine.state()
            for group, members in groups.items() if world.rank == 0 else ():
                for name, _ in members:
                    same = all(torch.equal(before[f"{k}/{name}"], after[f"{k}/{name}"])
                               for k in ("weight", "exp_avg", "exp_avg_sq", "step"))
                    assert same == (group not in active_groups(kind, replay=False)), (stage, kind, name)
        shared = [engine.state()]
        torch.distributed.broadcast_object_list(shared)
        expected = step(model, engine, Kind.IMAGE, 9)
        other, _, resumed = build(stage)
        resumed.load_state(shared[0])
        assert step(other, resumed, Kind.IMAGE, 9) == expected, f"ZeRO {stage} does not resume exactly"
        reference = expected if reference is None else reference
        assert all(abs(a - b) < 0.02 for a, b in zip(expected, reference)), f"ZeRO {stage}: {expected}, {reference}"
print("all stages agree", file=sys.stderr)
"""


def test_inactive_parameters_and_moments_do_not_change_at_any_zero_stage(tmp_path: Path) -> None:
    script = tmp_path / "engine_ranks.py"
    script.write_text(_ENGINE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", _port()]
    result = _run([*launcher, "--", str(script)], tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr.count("all stages agree") == 2
