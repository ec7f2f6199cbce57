"""A run's layout, its configuration, its lock, and what makes up each stage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medcoss.config import RunConfig, read_settings
from medcoss.continual.run import Run, open_run
from medcoss.continual.stage import resolve_stage, tokenizer_sha256
from medcoss.contracts import Kind, MedcossError, UsageError
from medcoss.shards.manifest import sha256_file
from medcoss.shards.reader import ShardSet
from medcoss.shards.writer import write_manifest

PRETRAIN = Path(__file__).resolve().parents[2] / "launch" / "pretrain.py"
NAMES = ("report", "xray", "ct")


@pytest.fixture
def sets(make_set, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ShardSet]:
    monkeypatch.chdir(tmp_path)
    kinds = zip(NAMES, (Kind.SEQUENCE, Kind.IMAGE, Kind.VOLUME), strict=True)
    return {name: make_set(kind, 12, name=name, path=tmp_path / "shards" / name) for name, kind in kinds}


def _settings(**continual: object) -> dict[str, object]:
    return {"stages": [{"name": name} for name in NAMES], "continual": continual}


def _finish(run: Run, name: str, shard_set: ShardSet, **changes: object) -> None:
    """Pretend that a stage was trained: its model, its buffer and its record."""
    run.stage_directory(name).mkdir(parents=True)
    run.model_path(name).write_bytes(f"weights of {name}".encode())
    model = sha256_file(run.model_path(name))
    manifest = shard_set.manifest
    buffer = run.buffer_directory(name)
    shutil.copytree(shard_set.directory, buffer)
    (buffer / "manifest.json").unlink()
    write_manifest(
        buffer, spec=manifest.spec, splits=manifest.splits, files=manifest.files, settings={}, inputs=manifest.inputs,
        salt_id=manifest.salt_id, parent={"fingerprint": manifest.fingerprint, "model_sha256": model},
    )  # fmt: skip
    record = {
        "sets": [manifest.fingerprint],
        "specs": [shard_set.spec.to_json()],
        "salt_id": manifest.salt_id,
        "tokenizer_sha256": tokenizer_sha256(manifest),
        "model_sha256": model,
        "buffers": {},
    }
    run.write_done(name, record | changes)


def _two_done(sets: dict[str, ShardSet], **continual: object) -> Run:
    run = open_run("runs/a", _settings(**continual), write=True)
    _finish(run, "report", sets["report"])
    _finish(run, "xray", sets["xray"])
    return run


def test_run_toml_is_written_once_and_then_rules(tmp_path: Path) -> None:
    run = open_run(tmp_path / "a", {"seed": 3, "train": {"epochs": 5}}, write=True)
    assert run.config.train.epochs == 5
    again = open_run(tmp_path / "a", {}, write=True)
    assert again.config == run.config
    assert open_run(tmp_path / "a", {"train": {"epochs": 5.0}}, write=True).config == run.config, "repeating is allowed"
    with pytest.raises(UsageError, match=r"train\.epochs is 5\.0 in .*run\.toml, not 7\.0"):
        open_run(tmp_path / "a", {"train": {"epochs": 7}}, write=True)
    with pytest.raises(UsageError, match=r"unknown key train\.epoch"):
        open_run(tmp_path / "a", read_settings(None, ["train.epoch=3"]), write=True)
    assert Run(tmp_path / "a").config == run.config
    with pytest.raises(UsageError, match="is no run"):
        _ = Run(tmp_path / "b").config


def test_stages_may_be_added_but_not_changed(tmp_path: Path) -> None:
    stages = [{"name": "report"}, {"name": "xray"}]
    open_run(tmp_path, {"stages": stages}, write=True)
    more = open_run(tmp_path, {"stages": [*stages, {"name": "ct"}]}, write=True)
    assert Run(tmp_path).stage_names == more.stage_names == ("report", "xray", "ct")
    with pytest.raises(UsageError, match="stages is "):
        open_run(tmp_path, {"stages": [{"name": "xray"}, {"name": "report"}]}, write=True)


def test_nothing_is_written_unless_asked(tmp_path: Path) -> None:
    run = open_run(tmp_path / "a", {"seed": 9}, write=False)
    assert run.config == RunConfig(seed=9)
    assert not (tmp_path / "a").exists()


def test_the_first_stage_starts_from_nothing(sets: dict[str, ShardSet]) -> None:
    stage = resolve_stage(open_run("runs/a", _settings(), write=True), "report")
    assert (stage.index, stage.initial, stage.teacher, stage.replay) == (0, None, None, ())
    assert stage.inputs == {"set report": sets["report"].manifest.fingerprint}


def test_a_later_stage_finds_model_teacher_and_buffers(sets: dict[str, ShardSet]) -> None:
    run = _two_done(sets)
    stage = resolve_stage(run, "ct")
    assert stage.initial == stage.teacher == run.model_path("xray")
    assert stage.replay_names == ("report", "xray")
    assert [buffer.directory for buffer in stage.replay] == [run.buffer_directory(n) for n in ("report", "xray")]
    assert [spec.name for spec in stage.specs] == list(NAMES)
    assert set(stage.inputs) == {"set ct", "model xray", "buffer report", "buffer xray"}


@pytest.mark.parametrize(("paradigm", "replays", "teaches"), [("sequential", 0, False), ("replay", 2, False)])
def test_paradigms_differ_in_buffers_and_teacher(
    sets: dict[str, ShardSet], paradigm: str, replays: int, teaches: bool
) -> None:
    stage = resolve_stage(_two_done(sets, paradigm=paradigm), "ct")
    assert len(stage.replay) == replays
    assert (stage.teacher is not None) is teaches
    assert stage.initial is not None


def test_a_joint_run_has_one_stage_of_all_sets(sets: dict[str, ShardSet]) -> None:
    run = open_run("runs/j", _settings(paradigm="joint"), write=True)
    stage = resolve_stage(run, "joint")
    assert [shard_set.spec.name for shard_set in stage.sets] == list(NAMES)
    assert stage.initial is None
    with pytest.raises(UsageError, match="its stages are joint"):
        resolve_stage(run, "ct")


def test_refusals_name_what_is_wrong(sets: dict[str, ShardSet], make_set, tmp_path: Path) -> None:
    run = open_run("runs/a", _settings(), write=True)
    with pytest.raises(UsageError, match="no stage 'pet': its stages are report, xray, ct"):
        resolve_stage(run, "pet")
    with pytest.raises(UsageError, match="stage xray comes after report, which is not finished"):
        resolve_stage(run, "xray")
    _finish(run, "report", sets["report"])
    _finish(run, "xray", sets["xray"])

    parked = tmp_path / "parked"
    run.buffer_directory("report").rename(parked)
    with pytest.raises(UsageError, match=r"needs the rehearsal buffer .*report, which is missing: build it with"):
        resolve_stage(run, "ct")
    shutil.copytree(run.buffer_directory("xray"), run.buffer_directory("report"))
    with pytest.raises(UsageError, match="was not chosen from stage report's set by its model"):
        resolve_stage(run, "ct")
    shutil.rmtree(run.buffer_directory("report"))
    parked.rename(run.buffer_directory("report"))

    weights = run.model_path("xray").read_bytes()
    run.model_path("xray").write_bytes(b"other")
    with pytest.raises(UsageError, match=r"xray/model\.safetensors changed since its stage was finished"):
        resolve_stage(run, "ct")
    run.model_path("xray").unlink()
    with pytest.raises(UsageError, match=r"xray/model\.safetensors: missing"):
        resolve_stage(run, "ct")
    run.model_path("xray").write_bytes(weights)
    resolve_stage(run, "ct")

    shutil.rmtree(tmp_path / "shards" / "xray")
    resolve_stage(run, "ct")  # an earlier set may be gone: its buffer is all that is needed
    make_set(Kind.IMAGE, 12, name="xray", path=tmp_path / "shards" / "xray", seed=1)
    with pytest.raises(UsageError, match="shards/xray changed since stage xray was trained on it"):
        resolve_stage(run, "ct")


def test_a_buffer_may_not_change_between_its_uses(sets: dict[str, ShardSet]) -> None:
    run = open_run("runs/a", _settings(), write=True)
    _finish(run, "report", sets["report"])
    _finish(run, "xray", sets["xray"], buffers={"report": "f" * 64})
    with pytest.raises(UsageError, match="changed since stage xray was trained with it"):
        resolve_stage(run, "ct")


@pytest.mark.parametrize(("key", "what"), [("salt_id", "salt"), ("tokenizer_sha256", "tokenizer")])
def test_sets_of_one_run_share_salt_and_tokenizer(
    sets: dict[str, ShardSet], make_set, tmp_path: Path, key: str, what: str
) -> None:
    make_set(Kind.SEQUENCE, 12, name="notes", path=tmp_path / "shards" / "notes")
    settings = {"stages": [{"name": "report"}, {"name": "notes"}]}
    run = open_run("runs/t", settings, write=True)
    _finish(run, "report", sets["report"])
    resolve_stage(run, "notes")
    record = run.done("report")
    assert record is not None
    run.write_done("report", record | {key: "0" * 64})
    with pytest.raises(UsageError, match=f"shards/notes has another {what} than stage report's set"):
        resolve_stage(run, "notes")


def test_a_damaged_record_is_named(sets: dict[str, ShardSet]) -> None:
    run = _two_done(sets)
    run.done_path("xray").write_text("{")
    with pytest.raises(MedcossError, match=r"xray/done\.json: unreadable"):
        resolve_stage(run, "ct")
    run.done_path("xray").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(UsageError, match="schema 99"):
        resolve_stage(run, "ct")


def test_only_one_holds_the_lock(tmp_path: Path) -> None:
    run = Run(tmp_path / "a")
    with run.lock(), pytest.raises(UsageError, match=f"in use by process {os.getpid()} on"), Run(run.directory).lock():
        pytest.fail("a second holder")
    with run.lock():
        pass


def _trainer(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PRETRAIN), "--run", "runs/a", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_refuses_in_one_line_and_exits_2(sets: dict[str, ShardSet]) -> None:
    run = open_run("runs/a", _settings(), write=True)
    out_of_order = _trainer("--stage", "ct")
    assert (out_of_order.returncode, out_of_order.stdout) == (2, "")
    assert out_of_order.stderr.startswith("error: stage ct comes after report")
    assert out_of_order.stderr.count("\n") == 1
    with run.lock():
        second = _trainer("--stage", "report")
    assert second.returncode == 2
    assert second.stderr.startswith("error: run runs/a is in use by process")
    assert second.stderr.count("\n") == 1
