"""Planted names and numbers come out nowhere: not in shards, sidecars, QC, logs or the staging of a killed run."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image, PngImagePlugin

MODALITIES = ("report", "xray", "ct", "mri", "pathology")

_KILLED = """
import os, signal, sys
import preprocess.run
from preprocess import cli

def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    preprocess.run.publish = die
    sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("modality", MODALITIES)
def test_planted_names_reach_no_output_byte(modality: str, privacy: Any, tmp_path: Path) -> None:
    folder, out, temporary = tmp_path / "in", tmp_path / "out", tmp_path / "tmp"
    folder.mkdir()
    temporary.mkdir()
    plant = privacy.Planter(modality)
    options = privacy.plant[modality](folder, plant)
    secret = plant.name()
    (tmp_path / "labels.csv").write_text(f"file,uid,label,secret\nnothing,nothing,well,{secret}\n")
    (tmp_path / "salt").write_text("a fixed salt for tests only")
    command = [
        modality, "--in", str(folder), "--out", str(out), "--salt-file", str(tmp_path / "salt"), "--workers", "1",
        "--labels", str(tmp_path / "labels.csv"), "--split", "train=1,val=0,test=0", *options,
    ]  # fmt: skip
    environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    driver = tmp_path / "driver.py"
    driver.write_text(_KILLED)
    killed = subprocess.run([sys.executable, driver, *command], capture_output=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(list((out / ".staging").iterdir())) > 2
    assert_clean(privacy, plant.names, tmp_path, killed)
    done = subprocess.run([sys.executable, "-m", "preprocess.cli", *command], capture_output=True, env=environment)
    assert done.returncode in (0, 3), done.stderr
    assert not (out / ".staging").exists()
    assert_clean(privacy, plant.names, tmp_path, done)
    statuses = pq.read_table(out / "outcomes.parquet")["status"].to_pylist()
    assert statuses.count("written") >= 4, statuses
    table = out.with_name("out.private") / "inputs.csv"
    assert stat.S_IMODE(table.stat().st_mode) == 0o600
    assert stat.S_IMODE(table.parent.stat().st_mode) == 0o700
    # Were the names in no input, their absence would say nothing.
    listed = table.read_bytes()
    planted = privacy.leaks([*privacy.expand(folder), ("inputs", listed), ("labels", secret.encode())], plant.names)
    missing = set(plant.names) - {name for name, _ in planted}
    assert missing == set()
    assert sum(name in listed.decode() for name in plant.names) >= 6


def assert_clean(privacy: Any, names: list[str], root: Path, done: subprocess.CompletedProcess[bytes]) -> None:
    parts = list(privacy.expand(root / "out"))
    assert len(parts) > 8
    parts += [("stdout", done.stdout), ("stderr", done.stderr)]
    parts += [(f"TMPDIR {name}", content) for name, content in privacy.expand(root / "tmp")]
    parts += [("settings of the private folder", content.read_bytes())
              for content in (root / "out.private").glob("*") if content.name != "inputs.csv"]  # fmt: skip
    assert privacy.leaks(iter(parts), names) == []
    green = [name for name, content in parts if name.endswith((".jpg", ".png")) or "embedded" in name
             if _is_green(content, privacy.green)]  # fmt: skip
    assert green == [], "the label or macro image of a slide"


def _is_green(content: bytes, colour: tuple[int, int, int]) -> bool:
    if content[:3] != b"\xff\xd8\xff" and content[:4] != b"\x89PNG":
        return False
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=int)
    return bool((np.abs(pixels - np.array(colour)).max(axis=-1) < 60).sum() > 20)


def test_two_hundred_names_are_planted(privacy: Any, tmp_path: Path) -> None:
    names = []
    for modality in MODALITIES:
        plant = privacy.Planter(modality)
        privacy.plant[modality](tmp_path / modality, plant)
        names += plant.names
    assert len(set(names)) >= 200


@pytest.mark.parametrize(
    "way", ["tar", "gzip", "parquet", "zarr", "png", "exif", "embedded", "name", "utf-16", "staged"]
)
def test_the_search_finds_what_is_packed(way: str, privacy: Any, tmp_path: Path) -> None:
    name = privacy.Planter("report").name()
    data = f"a text by {name}, MD".encode()
    notes = PngImagePlugin.PngInfo()
    notes.add_text("a", "b" * 200 + name, zip=True)
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "PNG", pnginfo=notes)
    path = tmp_path / "x"
    if way == "tar":
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            member = tarfile.TarInfo("a.json.gz")
            packed = gzip.compress(data)
            member.size = len(packed)
            archive.addfile(member, io.BytesIO(packed))
    elif way == "gzip":
        path.write_bytes(gzip.compress(data))
    elif way == "parquet":
        pq.write_table(pa.table({"a": [name] * 3}), path, compression="zstd")
    elif way == "zarr":
        group = zarr.create_group(tmp_path / "x.zarr")
        array = group.create_array("a", shape=(64,), chunks=(64,), dtype="uint8")
        array[:] = np.frombuffer(data.ljust(64), np.uint8)
    elif way == "png":
        path.write_bytes(picture.getvalue())
    elif way == "exif":
        exif = Image.Exif()
        exif[0x9C9B] = name.encode("utf-16-le")
        Image.new("L", (8, 8)).save(tmp_path / "x.jpg", exif=exif)
    elif way == "embedded":
        import base64

        path.write_text(f'<img src="data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}">')
    elif way == "name":
        (tmp_path / f"{name.upper()}.txt").write_text("nothing")
    elif way == "utf-16":
        path.write_bytes(json.dumps("x").encode() + name.encode("utf-16-be"))
    else:
        path.write_bytes(b"staged" + picture.getvalue())
    assert {found for found, _ in privacy.leaks(privacy.expand(tmp_path), [name])} == {name}
