"""A run's folder: where each thing of it lies, its configuration, its finished stages, its lock."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from medcoss import config as configuration
from medcoss.atomic import write_bytes
from medcoss.config import RunConfig, StageConfig
from medcoss.contracts import MedcossError, UsageError

SCHEMA_VERSION = 1
JOINT = "joint"
"""Name of the only stage of a joint run."""

_REHEARSING = ("medcoss", "replay")


class Run:
    """A run's folder: where each thing lies, its configuration and its lock."""

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)

    @property
    def config_path(self) -> Path:
        """run.toml, written at the run's first use."""
        return self.directory / "run.toml"

    @cached_property
    def config(self) -> RunConfig:
        """What run.toml says. Raises `UsageError` if there is none or it is wrong."""
        if not self.config_path.is_file():
            raise UsageError(f"{self.directory} is no run (it has no run.toml): start one with launch/pretrain.py")
        return configuration.load(self.config_path)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the stages in order; a joint run has one, `joint`."""
        if self.config.continual.paradigm == "joint":
            return (JOINT,)
        return tuple(stage.name for stage in self.config.stages)

    @property
    def rehearses(self) -> bool:
        """Whether later stages of this run read the buffers of earlier ones."""
        return self.config.continual.paradigm in _REHEARSING

    def stage_directory(self, name: str) -> Path:
        """Folder of one stage's results."""
        return self.directory / "stages" / name

    def model_path(self, name: str) -> Path:
        """Weights after stage `name`."""
        return self.stage_directory(name) / "model.safetensors"

    def done_path(self, name: str) -> Path:
        """The record of a finished stage, written last."""
        return self.stage_directory(name) / "done.json"

    def metrics_path(self, name: str) -> Path:
        """Training metrics of a stage, JSON lines."""
        return self.stage_directory(name) / "metrics.jsonl"

    def checkpoints_directory(self, name: str) -> Path:
        """Resumable checkpoints of a stage."""
        return self.stage_directory(name) / "checkpoints"

    def buffer_directory(self, name: str) -> Path:
        """Rehearsal buffer of a stage, a shard set."""
        return self.directory / "buffers" / name

    @property
    def evaluation_directory(self) -> Path:
        """Scores after the stages."""
        return self.directory / "evaluation"

    def done(self, name: str) -> dict[str, Any] | None:
        """What done.json of stage `name` says, None if it is not finished. Raises `MedcossError` if unreadable."""
        path = self.done_path(name)
        if not path.is_file():
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
            version = record["schema_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise MedcossError(f"{path}: unreadable ({error}): restore it, or delete {path.parent}") from error
        if version != SCHEMA_VERSION:
            raise UsageError(
                f"{path}: schema {version}, this medcoss reads {SCHEMA_VERSION}: use the one that wrote it"
            )
        return record

    def write_done(self, name: str, record: dict[str, Any]) -> None:
        """Write done.json of stage `name`, whole or not at all."""
        text = json.dumps({"schema_version": SCHEMA_VERSION, "stage": name, **record}, indent=2, sort_keys=True)
        write_bytes(self.done_path(name), text.encode() + b"\n")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run against a second trainer. Raises `UsageError` if another process holds it.

        The kernel drops the lock when its holder ends in whatever way, so it is never left over.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
                raise UsageError(
                    f"run {self.directory} is in use by {holder}: wait for it or take another --run"
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)


def open_run(directory: Path | str, settings: dict[str, Any], *, write: bool) -> Run:
    """The run in `directory`; at its first use `settings` (as of `config.read_settings`) become its run.toml.

    Later, settings may only repeat what run.toml says, or add stages at the end. Only with `write` is anything written
    (rank 0, holding the lock). Raises `UsageError` naming the key that contradicts run.toml.
    """
    run = Run(directory)
    if not run.config_path.is_file():
        config = configuration.from_dict(settings)
    else:
        config = run.config
        for key, (stored, wanted) in configuration.differences(config, settings).items():
            if key != "stages" or list(wanted[: len(stored)]) != list(stored):
                raise UsageError(
                    f"{key} is {_brief(stored)} in {run.config_path}, not {_brief(wanted)}: "
                    "leave it out, edit that file, or start another --run"
                )
            config = replace(config, stages=tuple(StageConfig(**stage) for stage in wanted))
        if config == run.config:
            return run
    if write:
        write_bytes(run.config_path, configuration.to_toml(config).encode())
    run.config = config
    return run


def _brief(value: Any) -> str:
    text = (
        [stage["name"] for stage in value]
        if isinstance(value, list | tuple) and value and isinstance(value[0], dict)
        else value
    )
    return str(text)
