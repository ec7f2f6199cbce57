"""A withdrawn patient leaves sets, buffers and a run's records together, and a call killed anywhere can be repeated."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from medcoss.config import DataConfig
from medcoss.continual.buffer import build_buffer
from medcoss.continual.embeddings import EmbeddingTable
from medcoss.continual.erase import Withdrawn, erase
from medcoss.continual.run import Run, open_run
from medcoss.continual.stage import resolve_stage, tokenizer_sha256
from medcoss.contracts import Kind, UsageError
from medcoss.data.decode import Decoder
from medcoss.data.loader import tokenizer_of
from medcoss.shards import ShardSet, read_erasures, verify, write_manifest, write_split
from medcoss.shards.manifest import sha256_file

KINDS = {"report": Kind.SEQUENCE, "xray": Kind.IMAGE, "ct": Kind.VOLUME}
TOKEN = "subject-train-3"


@dataclass
class World:
    """Three sets, and a run whose first two stages are done and whose third was begun."""

    sets: dict[str, Path]
    run: Run

    @property
    def everything(self) -> list[Path]:
        return [*self.sets.values(), self.run.directory]

    def folders(self) -> list[Path]:
        return [*self.sets.values(), *(self.run.buffer_directory(name) for name in ("report", "xray"))]


def _buffer(run: Run, name: str, source: ShardSet, model: str, places: list[int]) -> ShardSet:
    out, manifest = run.buffer_directory(name), source.manifest
    out.mkdir(parents=True)
    entry, files = write_split(out, source.spec, "train", (source[i] for i in places), len(places), 4)
    if "tokenizer.json" in manifest.files:
        shutil.copy(source.directory / "tokenizer.json", out)
        files["tokenizer.json"] = manifest.files["tokenizer.json"]
    write_manifest(
        out, spec=source.spec, splits={"train": entry}, files=files, settings={}, salt_id=manifest.salt_id,
        inputs={"read": 20, "written": len(places), "skipped": 20 - len(places), "failed": 0},
        parent={"fingerprint": manifest.fingerprint, "model_sha256": model, "filled": 0},
    )  # fmt: skip
    return ShardSet.open(out)


@pytest.fixture
def world(make_set, tmp_path: Path) -> World:
    """The subject has train samples 6 and 7 of every set; the first buffer holds one of them, the second none."""
    sets = {name: make_set(kind, 20, name=name, path=tmp_path / "shards" / name) for name, kind in KINDS.items()}
    stages = [{"name": name, "shards": str(shard_set.directory)} for name, shard_set in sets.items()]
    run = open_run(tmp_path / "run", {"stages": stages}, write=True)
    buffers: dict[str, str] = {}
    for name, places in (("report", [1, 6, 11]), ("xray", [2, 9])):
        manifest = sets[name].manifest
        run.stage_directory(name).mkdir(parents=True)
        run.model_path(name).write_bytes(name.encode())
        model = sha256_file(run.model_path(name))
        record = {
            "sets": [manifest.fingerprint], "specs": [sets[name].spec.to_json()], "salt_id": manifest.salt_id,
            "tokenizer_sha256": tokenizer_sha256(manifest), "model_sha256": model, "buffers": dict(buffers),
        }  # fmt: skip
        run.write_done(name, record)
        buffers[name] = _buffer(run, name, sets[name], model, places).manifest.fingerprint
    checkpoint = run.checkpoints_directory("ct") / "step-000000010"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text(json.dumps({"inputs": {"set ct": sets["ct"].manifest.fingerprint}}))
    (run.directory / "report.html").write_text("pictures")
    run.evaluation_directory.mkdir()
    table = EmbeddingTable(("a", "b"), np.zeros((2, 3), np.float32), "", sets["xray"].manifest.fingerprint)
    table.save(run.evaluation_directory / "xray.safetensors")
    (run.directory / "buffers" / "ct.embeddings.partial").mkdir()
    return World({name: shard_set.directory for name, shard_set in sets.items()}, run)


def _records(directory: Path) -> list[dict]:
    opened = ShardSet.open(directory)
    return [opened.split(name).record(i) for name in opened.manifest.splits for i in range(len(opened.split(name)))]


def _states(results: list[Withdrawn]) -> dict[str, str]:
    return {Path(result.directory).name: result.state for result in results}


def test_all_that_named_the_subject_is_mended_and_the_next_stage_begins(world: World) -> None:
    before = {folder: ShardSet.open(folder).manifest for folder in world.folders()}
    results = erase(world.everything, TOKEN, salt_id="test")
    assert [(Path(r.directory).name, r.state, r.samples) for r in results] == [
        ("report", "erased", 2), ("xray", "erased", 2), ("ct", "erased", 2),
        ("report", "erased", 1), ("xray", "updated", 0), ("run", "updated", 0),
    ]  # fmt: skip
    for folder, old in before.items():
        records, new = _records(folder), ShardSet.open(folder).manifest
        assert verify(folder) == []
        assert TOKEN not in {record["subject"] for record in records}
        assert len(records) == sum(e.samples for e in old.splits.values()) - sum(
            e.samples for e in read_erasures(folder)
        )
        assert new.fingerprint != old.fingerprint
        assert [(e.subject, e.fingerprint_before) for e in read_erasures(folder)] == [(TOKEN, old.fingerprint)]
    assert ShardSet.open(world.run.buffer_directory("report")).manifest.inputs == {
        "read": 20, "written": 2, "skipped": 18, "failed": 0,
    }  # fmt: skip
    stage = resolve_stage(world.run, "ct")
    assert [len(buffer) for buffer in stage.replay] == [2, 2] and len(stage.shard_set) == 18
    done = world.run.done("xray")
    assert done is not None
    fingerprints = {name: ShardSet.open(path).manifest.fingerprint for name, path in world.sets.items()}
    assert done["sets"] == [fingerprints["xray"]]
    assert done["buffers"] == {"report": ShardSet.open(world.run.buffer_directory("report")).manifest.fingerprint}
    assert [(e["source"], e["samples"]) for e in done["erasures"]] == [("set", 2), ("buffer report", 1)]
    assert done["erasures"][0]["before"] == before[world.sets["xray"]].fingerprint
    left = {path.relative_to(world.run.directory).as_posix() for path in world.run.directory.rglob("*")}
    assert not left & {"report.html", "evaluation/xray.safetensors", "buffers/ct.embeddings.partial"}
    assert "stages/ct/checkpoints" not in left and "stages/xray/model.safetensors" in left


def test_nothing_but_the_record_of_the_deed_names_him(world: World) -> None:
    keys = [r["key"] for folder in world.folders() for r in _records(folder) if r["subject"] == TOKEN]
    assert len(keys) == 7
    erase(world.everything, TOKEN, salt_id="test")
    root = world.run.directory.parent
    for path in (path for path in root.rglob("*") if path.is_file()):
        content = path.read_bytes()
        named = [text for text in (TOKEN, *keys) if text.encode() in content]
        assert named == [] or (path.name in ("erasures.json", "erasures.csv") and named == [TOKEN]), (path, named)
    for folder in world.folders():  # keys and records of volumes lie compressed
        opened = ShardSet.open(folder)
        assert not {key for name in opened.manifest.splits for key in opened.split(name).keys} & set(keys)


@pytest.mark.parametrize("kind", list(Kind))
def test_the_set_is_the_one_that_would_be_without_him(make_set, tmp_path: Path, kind: Kind) -> None:
    source = make_set(kind, 40, shard_size=8, path=tmp_path / "set")
    others = [sample for sample in source if sample.subject != TOKEN]
    (tmp_path / "other").mkdir()
    entry, files = write_split(tmp_path / "other", source.spec, "train", iter(others), len(others), 8)
    test = source.manifest.splits["test"]
    erase([tmp_path / "set"], TOKEN, salt_id="test")
    manifest = ShardSet.open(tmp_path / "set").manifest
    assert manifest.splits["train"] == entry and manifest.splits["test"] == test
    assert {name: sha for name, sha in manifest.files.items() if name in files} == files
    left = {path.relative_to(tmp_path / "set").as_posix() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    listed = {*manifest.files, *(shard.file for e in manifest.splits.values() for shard in e.shards), "manifest.json"}
    assert left == listed and verify(tmp_path / "set") == []


def test_repeated_and_piecemeal_calls_come_to_the_same(world: World) -> None:
    erase([world.sets["report"]], TOKEN, salt_id="test")
    with pytest.raises(UsageError, match=r"a subject was erased from .* name the run in that `medcoss erase` too"):
        resolve_stage(world.run, "ct")
    erase([world.sets["xray"]], TOKEN, salt_id="test")
    # A second patient, before the run heard of the first: the buffer must lose both.
    erase([world.sets["report"]], "subject-train-5", salt_id="test")
    results = erase([world.run.directory], TOKEN, salt_id="test")
    buffer = world.run.buffer_directory("report")
    assert {record["subject"] for record in _records(buffer)} == {"subject-train-0"}
    assert [e.subject for e in read_erasures(buffer)] == [TOKEN, "subject-train-5"]
    assert any("ct, which it trains on, still holds the subject" in note for note in results[-1].notes)
    resolve_stage(world.run, "ct")
    done = world.run.done("report")
    assert done is not None and [e["samples"] for e in done["erasures"]] == [4]
    again = erase([*world.sets.values(), world.run.directory], TOKEN, salt_id="test")
    assert _states(again) == {"report": "already erased", "xray": "already erased", "ct": "erased", "run": "updated"}


def test_a_buffer_in_a_run_stands_for_the_run(world: World) -> None:
    results = erase([world.sets["report"], world.run.buffer_directory("xray")], TOKEN, salt_id="test")
    assert [Path(result.directory).name for result in results] == ["report", "report", "xray", "run"]
    assert results[-1].state == "updated"


def test_a_set_that_was_also_extended_is_no_successor(world: World) -> None:
    erase([world.sets["xray"]], TOKEN, salt_id="test")
    opened = ShardSet.open(world.sets["xray"])
    manifest, samples = opened.manifest, [*opened]
    (opened.directory / "manifest.json").unlink()
    entry, files = write_split(opened.directory, opened.spec, "train", iter(samples[1:]), len(samples) - 1, 8)
    write_manifest(
        opened.directory, spec=manifest.spec, splits={**manifest.splits, "train": entry},
        files={n: s for n, s in manifest.files.items() if not n.startswith("train")} | files, settings={},
        inputs=manifest.inputs, salt_id=manifest.salt_id,
    )  # fmt: skip
    with pytest.raises(UsageError, match="changed since stage xray was trained on it: restore it"):
        resolve_stage(world.run, "ct")


def test_refusals_change_nothing(world: World, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    for paths, token, salt, message in (
        (world.everything, "subject-train-99", "test", "in none of these folders: give the id as the inputs spell it"),
        (world.everything, TOKEN, "other", "was made with another salt"),
        ([tmp_path / "nowhere"], TOKEN, "test", "is no shard set, buffer or run"),
    ):
        with pytest.raises(UsageError, match=message):
            erase(paths, token, salt_id=salt)
    (world.sets["ct"] / ".staging").mkdir()
    with pytest.raises(UsageError, match="unfinished conversion: repeat its `preprocess` command"):
        erase(world.everything, TOKEN, salt_id="test")
    (world.sets["ct"] / ".staging").rmdir()
    with world.run.lock(), pytest.raises(UsageError, match="in use by"):
        erase(world.everything, TOKEN, salt_id="test")
    dry = erase(world.everything, TOKEN, salt_id="test", dry_run=True)
    assert [(result.state, result.samples) for result in dry] == [("found", 2)] * 3 + [("found", 1), ("absent", 0)]
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_the_erased_set_serves_decoders_and_buffers(world: World) -> None:
    erase([world.sets["report"], world.sets["ct"]], TOKEN, salt_id="test")
    for name in ("report", "ct"):
        opened = ShardSet.open(world.sets[name])
        Decoder(opened.spec, tokenizer_of(opened))
        manifest = build_buffer(
            opened, world.run.model_path("report"), world.run.directory / f"new-{name}", ratio=0.5, centers=0.1,
            policy="random", seed=0, data=DataConfig(backend="cpu", workers=1),
        )  # fmt: skip
        assert manifest.splits["train"].samples == 9 and verify(world.run.directory / f"new-{name}") == []


_DRIVER = """
import os, shutil, signal, sys
from pathlib import Path
import pyarrow.parquet, zarr, numcodecs.blosc
from medcoss.continual.erase import erase
from medcoss.contracts import MedcossError

root, token, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
live, copy = root / "live", root / "copy"
paths = [live / name for name in sys.argv[4:]]

def tree():
    found = {}
    for path in sorted(live.rglob("*")):
        if path.is_file() and path.name != ".lock":
            content = path.read_bytes()
            if path.name == "erasures.csv":  # the first column is the time
                content = b"".join(line.partition(b",")[2] for line in content.splitlines())
            found[path.relative_to(live).as_posix()] = content
    return found

def child(limit):
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    seen = [0]
    def counted(function):
        def call(*a, **k):
            seen[0] += 1
            if seen[0] == limit:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*a, **k)
        return call
    for name in ("replace", "unlink", "rmdir", "fsync", "rename", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    try:
        erase(paths, token, salt_id=None)
        os._exit(0)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(9)

def fresh():
    shutil.rmtree(live, ignore_errors=True)
    shutil.copytree(copy, live)

fresh()
assert child(0) == 0
expected = tree()
killed = 0
limit = 1
while True:
    fresh()
    status = child(limit)
    if status == 0:
        break
    assert os.WIFSIGNALED(status), (limit, status)
    killed += 1
    for path in paths:  # a reader in between
        if (path / "run.toml").exists():
            continue
        from medcoss.shards import ShardSet
        try:
            opened = ShardSet.open(path)
            for name in opened.manifest.splits:
                for sample in opened.split(name):
                    pass
        except MedcossError as error:
            assert "medcoss erase" in str(error), (limit, error)
    assert child(0) == 0, limit
    found = tree()
    assert found == expected, (limit, sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n)))
    limit += step
print("killed", killed)
"""


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("step", [19, pytest.param(1, marks=pytest.mark.long)])
def test_killed_anywhere_and_repeated_gives_the_same_bytes(world: World, tmp_path: Path, step: int) -> None:
    root = tmp_path / "kill"
    (root / "copy").mkdir(parents=True)
    names = ["report", "ct", "run"]
    for name in names[:2]:
        shutil.copytree(world.sets[name], root / "copy" / name)
    shutil.copytree(world.run.directory, root / "copy" / "run")
    config = root / "copy" / "run" / "run.toml"
    config.write_text(config.read_text().replace(str(tmp_path / "shards"), str(root / "live")))
    done = subprocess.run(
        [sys.executable, "-c", _DRIVER, str(root), TOKEN, str(step), *names], capture_output=True, text=True,
        timeout=1700, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) >= 150 // step
