"""Whole stages in one process: paradigms, resuming, damaged checkpoints, metrics."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medcoss.continual.run import Run, open_run
from medcoss.continual.stage import resolve_stage
from medcoss.contracts import Kind, UsageError
from medcoss.model.weights import load_model, read_header
from medcoss.train.engine import joined
from medcoss.train.loop import train
from medcoss.train.pretrain import describe, run_stage
from medcoss.train.process import StopRequest
from medcoss.train.world import World

NAMES = ("report", "xray", "ct")
KINDS = (Kind.SEQUENCE, Kind.IMAGE, Kind.VOLUME)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ranks() -> Iterator[World]:
    """A process group of one for all tests here: DeepSpeed keeps its groups for the life of a process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with joined(World(), CPU, {}):
        yield World()
    torch.set_num_threads(threads)


@pytest.fixture
def make_run(make_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A run of three stages over small sets, settings by section."""
    monkeypatch.chdir(tmp_path)
    for name, kind in zip(NAMES, KINDS, strict=True):
        make_set(kind, 24, name=name, path=tmp_path / "shards" / name, test=2)

    def make(directory: str = "runs/a", **sections: dict[str, Any]) -> Run:
        settings: dict[str, Any] = {
            "model": {"preset": "vit_tiny", "patch_3d": [8, 8, 8], "drop_path": 0.2},
            "train": {
                "global_batch": 8, "micro_batch": 4, "epochs": 2, "warmup_epochs": 0.5, "base_lr": 0.05,
                "log_every": 3, "trace": True, "precision": "fp32",
            },
            "continual": {"ratio": 0.25, "centers": 0.1, "policy": "random"},
            "stages": [{"name": name} for name in NAMES],
        }  # fmt: skip
        for section, values in sections.items():
            settings[section] = settings[section] | values
        return open_run(directory, settings, write=True)

    return make


class _StopAfter(StopRequest):
    """A request that comes after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def __bool__(self) -> bool:
        self._left -= 1
        return self._left <= 0


def _go(run: Run, name: str, stop: StopRequest | None = None, *, resume: bool = True) -> tuple[bool, list[str]]:
    said: list[str] = []
    stop = StopRequest() if stop is None else stop
    stage = resolve_stage(run, name)
    done = run_stage(run, stage, World(), CPU, stop, resume=resume, with_buffer=True, say=said.append)
    return done, said


def _trace(run: Run, name: str) -> dict[int, dict[str, Any]]:
    """The last record of each step."""
    lines = (run.stage_directory(name) / "trace-0.jsonl").read_text().splitlines()
    return {record["step"]: record for record in map(json.loads, lines)}


def _metrics(run: Run, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_path(name).read_text().splitlines()]


def test_medcoss_distils_what_it_replays(ranks: World, make_run) -> None:
    run = make_run()
    for name in NAMES:
        assert _go(run, name)[0]
    steps = _trace(run, "ct")
    replays = [record for record in steps.values() if record["is_replay"]]
    assert {record["modality"] for record in replays} == {"report", "xray"}
    assert len(steps) == 6 + 2 + 2, "6 samples of 24 twice are 1.5 batches of 8: two turns each"
    metrics = _metrics(run, "ct")
    for record in metrics:
        present = {key for key, value in record["loss"].items() if value is not None}
        assert present == ({"distill"} if record["is_replay"] else {"pretext"})
        assert record["samples_per_s"] > 0
        assert 0 <= record["data_wait_fraction"] <= 1
        assert 0 < record["flops_utilisation"] < 1
        assert record["peak_memory_bytes"] > 1e7
        assert record["grad_norm"] > 0
    assert {record["step"] for record in metrics} == {3, 6, 9, 10}
    assert sum(record["steps"] for record in metrics) == 10
    pretext = [record["loss"]["pretext"] for record in metrics if record["loss"]["pretext"] is not None]
    assert pretext[-1] < pretext[0]
    done = run.done("ct")
    assert done is not None
    assert done["teacher_sha256"] == run.done("xray")["model_sha256"]  # type: ignore[index]
    assert set(done["buffers"]) == {"report", "xray"}
    assert not run.checkpoints_directory("ct").exists()
    assert read_header(run.model_path("ct")).provenance["stage"] == "ct"
    assert load_model(run.model_path("ct")).architecture.kinds == KINDS


@pytest.mark.parametrize("paradigm", ["sequential", "replay", "joint"])
def test_other_paradigms_have_no_distillation(ranks: World, make_run, paradigm: str) -> None:
    run = make_run(continual={"paradigm": paradigm})
    names = run.stage_names[:2]
    for name in names:
        assert _go(run, name)[0]
    assert all(record["loss"]["distill"] is None for record in _metrics(run, names[-1]))
    replayed = {record["modality"] for record in _trace(run, names[-1]).values() if record["is_replay"]}
    assert replayed == ({"report"} if paradigm == "replay" else set())
    assert run.buffer_directory("report").is_dir() == (paradigm == "replay")
    seen = {record["modality"] for record in _trace(run, names[-1]).values()}
    assert seen == {"joint": set(NAMES), "replay": {"report", "xray"}, "sequential": {"xray"}}[paradigm]


def test_a_stopped_stage_goes_on_bit_for_bit(ranks: World, make_run) -> None:
    whole = make_run("runs/whole", train={"precision": "bf16"})
    _go(whole, "report")
    shutil.copytree(whole.directory, "runs/parts")
    parts = Run("runs/parts")
    _go(whole, "xray")
    finished, said = _go(parts, "xray", _StopAfter(4))
    assert not finished
    assert said[-1] == "stage xray: stopped after step 4 of 8, saved"
    assert parts.done("xray") is None
    # A process killed while it wrote leaves a part of a checkpoint, half a line and records of lost steps.
    (parts.checkpoints_directory("xray") / "step-000000006.partial").mkdir()
    with parts.metrics_path("xray").open("a") as file:
        file.write('{"step": 6}\n{"step": 7, "sta')
    finished, said = _go(parts, "xray")
    assert finished
    assert said[0] == "stage xray: going on after step 4"
    assert _trace(parts, "xray") == _trace(whole, "xray")
    assert parts.model_path("xray").read_bytes() == whole.model_path("xray").read_bytes()
    assert [r["step"] for r in _metrics(parts, "xray") if not r["is_replay"]] == [3, 6, 8]


def test_a_damaged_checkpoint_is_passed_over(ranks: World, make_run) -> None:
    run = make_run(train={"checkpoint_steps": 2, "keep_checkpoints": 2})
    stage = resolve_stage(run, "report")
    train(run, stage, World(), CPU, _StopAfter(5), resume=True, say=lambda _: None)
    directory = run.checkpoints_directory("report")
    names = sorted(path.name for path in directory.iterdir())
    assert names == ["step-000000004", "step-000000005"], "older ones are deleted"
    tensors = load_file(directory / names[0] / "state.safetensors")
    assert {name.partition("/")[0] for name in tensors} == {"weight", "exp_avg", "exp_avg_sq", "step"}
    state = directory / names[1] / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-5] ^= 1
    state.write_bytes(content)
    _, said = _go(run, "report")
    assert said[0].startswith(f"checkpoint {directory / names[1]} is damaged")
    assert said[1] == "stage report: going on after step 4"


def test_a_checkpoint_of_other_settings_is_refused_unless_begun_anew(ranks: World, make_run) -> None:
    run = make_run()
    train(run, resolve_stage(run, "report"), World(), CPU, _StopAfter(2), resume=True, say=lambda _: None)
    text = run.config_path.read_text()
    run.config_path.write_text(text.replace("base_lr = 0.05", "base_lr = 0.01"))
    changed = Run(run.directory)
    with pytest.raises(UsageError, match=r"train\.base_lr changed since this stage was begun: .* --resume never"):
        _go(changed, "report")
    finished, said = _go(changed, "report", resume=False)
    assert finished
    assert not any("going on" in line for line in said)
    run.config_path.write_text(text.replace("log_every = 3", "log_every = 5"))
    assert _go(Run(run.directory), "xray")[0], "what does not change the course of a stage may change"


def test_the_plan_is_told_and_misfits_are_refused(ranks: World, make_run) -> None:
    run = make_run()
    text = describe(run, resolve_stage(run, "report"), World(0, 2))
    assert "train on report: 24 samples, 6 of 6 steps" in text
    assert "batch 8 = 2 ranks x 1 x 4; 2 steps of warm-up to rate 0.00156" in text
    with pytest.raises(UsageError, match="8 cannot be shared by 3 ranks"):
        describe(run, resolve_stage(run, "report"), World(0, 3))
    shutil.rmtree(run.directory)
    slow = make_run(train={"warmup_epochs": 2})
    with pytest.raises(UsageError, match="warmup_epochs 2 leaves nothing"):
        describe(slow, resolve_stage(slow, "report"), World())
