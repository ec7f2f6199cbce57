"""A sixth modality is one new file: the one that docs/add-a-modality.md walks through, from raw frames to training."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medcoss.config import DataConfig
from medcoss.contracts import Kind
from medcoss.data.loader import embedding_batches
from medcoss.shards import ShardSet

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "add-a-modality.md").read_text(encoding="utf-8")
BANNER_PX, HEIGHT, WIDTH = 8, 56, 72
TINY = """
model = { preset = "vit_tiny", depth = 2, patch_2d = 8 }
data = { backend = "cpu" }
[train]
global_batch = 8
micro_batch = 8
epochs = 2
warmup_epochs = 0.5
base_lr = 0.02
log_every = 1
precision = "fp32"
"""


def block(language: str) -> str:
    """The page's one block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


class Overlay:
    """A copy of the package `preprocess` with the page's module in it, used by commands in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "overlay" / "preprocess"
        shutil.copytree(ROOT / "preprocess", self.package, ignore=shutil.ignore_patterns("__pycache__"))
        (self.package / "modalities" / "ultrasound.py").write_text(block("python"), encoding="utf-8")

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join([str(self.package.parent), str(ROOT)])
        environment = {**os.environ, "PYTHONPATH": paths, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=240
        )

    def preprocess(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "preprocess.cli", *words)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    """12 patients' frames, a copy, a blank one and a text file; shards/ultrasound is what the command made of them."""
    overlay = Overlay(tmp_path_factory.mktemp("sixth"))
    for number in range(24):
        path = overlay.folder / "raw" / f"sub-{number // 2:02}" / f"frame{number % 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame(number)).save(path)
    shutil.copy(path, path.with_name("copy.png"))
    Image.new("L", (WIDTH, HEIGHT), 9).save(path.with_name("blank.png"))
    path.with_name("notes.txt").write_text("notes")
    (overlay.folder / "salt").write_text("a fixed salt for tests only")
    done = overlay.preprocess(
        "ultrasound", "--in", "raw", "--out", "shards/ultrasound", "--salt-file", "salt", "--size", "32",
        "--banner-px", str(BANNER_PX), "--split", "train=0.8,val=0,test=0.2", "--workers", "2", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["inputs"] == {"read": 27, "written": 24, "skipped": 3, "failed": 0}
    assert sorted(result["reasons"]) == [["skipped", name, 1] for name in ("constant", "duplicate", "not_an_input")]
    return overlay


def frame(number: int) -> np.ndarray:
    """A grey sector that differs by number, below a white banner."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    values = (90 + 60 * np.sin((x + number) / 9) * np.cos(y / (7 + number % 5))).astype(np.uint8)
    values[:BANNER_PX] = 255
    return values


def test_the_page_holds_a_module_of_less_than_100_lines() -> None:
    source = block("python")
    assert len(source.splitlines()) < 100
    functions = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    assert functions == {"add_arguments", "settings", "spec", "inspect", "group", "convert", "finish"}


def test_one_new_file_and_nothing_else(made: Overlay) -> None:
    def digests(folder: Path) -> dict[str, str]:
        files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    ours, theirs = digests(ROOT / "preprocess"), digests(made.package)
    assert theirs.pop("modalities/ultrasound.py")
    assert theirs == ours


def test_help_lists_it(made: Overlay) -> None:
    shown = " ".join(made.preprocess("--help").stdout.split())
    assert " ultrasound ultrasound frames (PNG) to 8-bit grey images " in shown
    assert "--banner-px PX" in made.preprocess("ultrasound", "--help").stdout


def test_the_set_is_sound_and_loads(made: Overlay) -> None:
    done = made.run("-m", "medcoss.cli", "verify", "shards/ultrasound")
    assert (done.returncode, done.stdout) == (0, "shards/ultrasound: sound\n")
    shard_set = ShardSet.open(made.folder / "shards" / "ultrasound")
    assert shard_set.spec.kind is Kind.IMAGE
    split = shard_set.split("train")
    batches = list(embedding_batches(split, shard_set.spec, 64, 0, 1, DataConfig(backend="cpu")))
    (batch,) = batches
    assert batch.inputs.shape == (len(split), 3, 32, 32)
    # No white banner is left, and the grey is that of the frames.
    assert float(batch.inputs.max()) < 170 / 255
    assert abs(float(batch.inputs.mean()) - 90 / 255) < 0.03
    # Two frames a patient: no patient in both splits.
    subjects = [{s.subject for s in shard_set.split(name)} for name in ("train", "test")]
    assert len(subjects[0]) + len(subjects[1]) == 12
    assert not subjects[0] & subjects[1]


def test_it_trains_as_a_stage(made: Overlay) -> None:
    (made.folder / "mine.toml").write_text(TINY + block("toml"))
    script = ROOT / "launch" / "pretrain.py"
    done = made.run(script, "--stage", "ultrasound", "--run", "runs/mine", "--config", "mine.toml", "--no-evaluate")
    assert done.returncode == 0, done.stderr
    stage = made.folder / "runs" / "mine" / "stages" / "ultrasound"
    assert (stage / "model.safetensors").is_file()
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"]["pretext"] for line in lines]
    assert len(losses) >= 4
    assert all(0 < loss < 10 for loss in losses)
