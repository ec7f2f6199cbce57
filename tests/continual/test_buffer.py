"""A buffer is a shard set: exact, verified, byte-equal to its parent, whole or absent (METHOD, sections 4 and 7.5)."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from medcoss.config import DataConfig, ModelConfig
from medcoss.continual import buffer as buffers
from medcoss.continual.buffer import build_buffer
from medcoss.contracts import Kind, UsageError
from medcoss.model.architecture import resolve
from medcoss.model.mae import MaskedModel
from medcoss.model.weights import fingerprint, save_model
from medcoss.shards.reader import ShardSet
from medcoss.shards.verify import verify

DATA = DataConfig(backend="cpu", workers=1)
CHOICE = {"ratio": 0.25, "centers": 0.1, "policy": "kmeans", "seed": 0, "data": DATA}


@pytest.fixture
def model_of(tmp_path: Path):
    def make(shard_set: ShardSet) -> Path:
        torch.manual_seed(0)
        config = ModelConfig(preset="vit_tiny", patch_2d=8, patch_3d=(8, 8, 8))
        save_model(tmp_path / "model.safetensors", MaskedModel(resolve(config, [shard_set.spec])), {})
        return tmp_path / "model.safetensors"

    return make


def content(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("policy", ["kmeans", "random"])
def test_a_buffer_is_a_verified_shard_set_of_its_parents_samples(
    make_set, model_of, tmp_path: Path, kind: Kind, policy: str
) -> None:
    parent = make_set(kind, 42, shard_size=8)
    model = model_of(parent)
    manifest = build_buffer(parent, model, tmp_path / "buffer", **{**CHOICE, "policy": policy})
    assert verify(tmp_path / "buffer") == []
    chosen = ShardSet.open(tmp_path / "buffer")
    assert chosen.manifest == manifest and len(chosen) == round(0.25 * 42) and list(manifest.splits) == ["train"]
    assert chosen.spec == parent.spec and manifest.salt_id == parent.manifest.salt_id
    assert {key: value for key, value in manifest.parent.items() if key != "filled"} == {
        "fingerprint": parent.manifest.fingerprint, "model_sha256": fingerprint(model),
        "policy": policy, "ratio": 0.25, "centers": 0.1, "seed": 0,
    }  # fmt: skip
    assert isinstance(manifest.parent["filled"], int)
    keys = parent.split("train").keys
    for index, sample in enumerate(chosen):
        origin = parent[keys.index(sample.key)]
        assert sample.record() == origin.record() == chosen.split("train").record(index)
        if kind is Kind.VOLUME:
            assert sample.data.dtype == origin.data.dtype and np.array_equal(sample.data, origin.data)
        else:
            assert sample.data == origin.data
    if kind is Kind.SEQUENCE:
        assert chosen.file("tokenizer.json") == parent.file("tokenizer.json")


def test_building_again_changes_nothing_and_other_settings_are_refused(make_set, model_of, tmp_path: Path) -> None:
    parent = make_set(Kind.IMAGE, 24)
    model, out = model_of(parent), tmp_path / "buffer"
    first = build_buffer(parent, model, out, **CHOICE)
    before = content(out)
    assert build_buffer(parent, model, out, **CHOICE) == first and content(out) == before
    assert content(out) != {} and build_buffer(parent, model, tmp_path / "twin", **CHOICE) == first
    assert content(tmp_path / "twin") == before
    with pytest.raises(UsageError, match=r"another ratio \(0.25, not 0.5\): delete it"):
        build_buffer(parent, model, out, **{**CHOICE, "ratio": 0.5})
    with pytest.raises(UsageError, match="is empty: raise the ratio"):
        build_buffer(parent, model, tmp_path / "none", **{**CHOICE, "ratio": 0.0})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("policy", ["kmeans", "random"])
def test_ranks_share_the_embedding_and_make_the_same_buffer(make_set, model_of, tmp_path: Path, policy: str) -> None:
    parent = make_set(Kind.VOLUME, 30)
    model, choice = model_of(parent), {**CHOICE, "policy": policy}
    alone = build_buffer(parent, model, tmp_path / "alone", **choice)
    meeting = threading.Barrier(2, timeout=60)
    made: dict[int, object] = {}

    def act(rank: int) -> None:
        made[rank] = build_buffer(
            parent, model, tmp_path / "shared", **choice, rank=rank, world_size=2, barrier=meeting.wait
        )

    ranks = [threading.Thread(target=act, args=(rank,)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert made == {0: alone, 1: alone}
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


def test_a_failed_build_leaves_nothing(make_set, model_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = make_set(Kind.IMAGE, 24)
    model = model_of(parent)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(buffers, "write_manifest", fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        build_buffer(parent, model, tmp_path / "buffer", **CHOICE)
    assert sorted(tmp_path.iterdir()) == before


def test_a_killed_build_leaves_no_buffer_and_a_rerun_gives_the_same_bytes(make_set, model_of, tmp_path: Path) -> None:
    parent = make_set(Kind.VOLUME, 24)
    model = model_of(parent)
    build_buffer(parent, model, tmp_path / "expected", **{**CHOICE, "policy": "random"})
    process = subprocess.Popen([sys.executable, "-c", _STALL, parent.directory, model, tmp_path / "buffer"])
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "stalled").exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "stalled").exists() and (tmp_path / "buffer.partial").exists()
    assert not (tmp_path / "buffer").exists()
    build_buffer(parent, model, tmp_path / "buffer", **{**CHOICE, "policy": "random"})
    assert content(tmp_path / "buffer") == content(tmp_path / "expected")
    assert not (tmp_path / "buffer.partial").exists()


_STALL = """
import sys, time
from pathlib import Path
from medcoss.config import DataConfig
from medcoss.continual import buffer
from medcoss.shards.reader import ShardSet

parent, model, out = map(Path, sys.argv[1:])

def stall(*_, **__):
    out.with_name("stalled").touch()
    time.sleep(300)

buffer.write_manifest = stall
choice = {"ratio": 0.25, "centers": 0.1, "policy": "random", "seed": 0}
buffer.build_buffer(ShardSet.open(parent), model, out, **choice, data=DataConfig(backend="cpu"))
"""
"""A build that stops before its manifest, to be killed there."""
