"""A toy modality for the engine's tests: each `.toy` file is JSON that says what its conversion does."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from preprocess.job import Job
from preprocess.labels import Labels
from preprocess.split import Salt, Subjects, parse_fractions

_TOY = """
import hashlib, json, os, pathlib, signal, time
import numpy as np
from medcoss.contracts import Field, Geometry, Kind, ModalitySpec
from preprocess.conversion import Conversion, Discovery, Outcome, Piece, Status, Unit, failed

SUMMARY = "toy"
EXAMPLE = "preprocess toy"

def add_arguments(parser): ...

def settings(arguments): return {}

def spec(settings):
    return ModalitySpec("toy", Kind.VOLUME, Geometry((1, 2, 3, 4)), (Field("volume", "zarr", "int16"),), "counts")

def do(told, file):
    if told == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if told == "die once":
        mark = file.path.parent.with_name("died")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if told == "stall":
        time.sleep(1000)
    if told == "crash":
        raise ZeroDivisionError("a message that may name " + file.relative)
    if told == "fail":
        raise failed("unreadable", "on purpose")
    if told == "vanish":
        raise FileNotFoundError(2, "No such file or directory", file.relative)
    if told == "exhaust":
        raise MemoryError

def inspect(file, settings):
    if not file.relative.endswith(".toy"):
        return {"toy": False}
    do(json.loads(file.path.read_text()).get("inspect"), file)
    return {"toy": True, "secret": settings.get("_secret")}

def group(inspected, settings):
    assert [one.relative for one in inspected] == sorted(one.relative for one in inspected)
    assert all(one.about.get("secret") == settings.get("_secret") for one in inspected if one.about["toy"])
    return Discovery([Unit((one.file,)) for one in inspected if one.about["toy"]])

def convert(unit, settings):
    file = unit.files[0]
    told = json.loads(file.path.read_text())
    assert "_secret" not in settings
    do(told.get("convert"), file)
    value = told["value"]
    pieces = [
        Piece(hashlib.sha256(str(value).encode()).digest(), f"{number:04}",
              np.full((2, 3, 4), value + number, np.int16), file.relative,
              tuple(told.get("subjects", ())), split=told.get("split"), labels=told.get("labels", {}))
        for number in range(told.get("windows", 1))
    ]
    return Conversion(pieces, figures={"value": [float(value)]})

def finish(settings, train):
    total = sum(int(volume.sum()) for volume in train)
    return spec(settings), {"total.txt": str(total).encode()}
"""


@pytest.fixture
def salt() -> Salt:
    return Salt(b"a fixed salt for tests only")


@pytest.fixture
def toy_module(tmp_path: Path) -> Iterator[str]:
    """The toy's module name; worker processes find it by the sys.path they inherit."""
    folder = tmp_path / "toy_modules"
    folder.mkdir()
    name = "toy_" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]
    (folder / f"{name}.py").write_text(_TOY)
    sys.path.insert(0, str(folder))
    yield name
    sys.path.remove(str(folder))
    sys.modules.pop(name, None)


@pytest.fixture
def toy_job(toy_module: str, salt: Salt, tmp_path: Path) -> Callable[..., Job]:
    """Makes jobs on tmp_path/in to tmp_path/out; keyword arguments go to `Job`, `settings` are added to the others."""

    def make(settings: dict[str, Any] | None = None, **changes: Any) -> Job:
        common = {
            "split": parse_fractions("train=0.5,val=0.25,test=0.25"),
            "id_columns": ["file"],
            "label_columns": ["label"],
            "subject_column": "subject",
        }
        fields: dict[str, Any] = {
            "name": "toy",
            "module": toy_module,
            "inputs": (tmp_path / "in",),
            "out": tmp_path / "out",
            "settings": common | (settings or {}),
            "subjects": Subjects(salt),
            "labels": Labels((), ("label",)),
            "workers": 1,
            "qc": False,
        }
        return Job(**(fields | changes))

    return make


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """All files below a folder by relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def tree() -> Callable[[Path], dict[str, bytes]]:
    return tree_bytes
