"""`launch/pretrain.py` as typed: what it refuses before any training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "launch" / "pretrain.py"


def test_a_stage_out_of_order_is_one_line_and_fixes_no_settings(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--stage", "ct", "--run", "runs/other", "--set", "seed=5"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: stage ct comes after report, which is not finished in runs/other: run ")
    assert not (tmp_path / "runs/other/run.toml").exists()


def test_an_unknown_key_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--stage", "report", "--set", "train.epoch=5"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith("error: config: unknown key train.epoch: expected one of ")
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("run.toml"))
