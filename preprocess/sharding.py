"""A split's shards, each written by one of the worker processes out of what is staged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medcoss.contracts import MedcossError, ModalitySpec
from medcoss.shards import Sample, SplitEntry, SplitWriter, WrittenShard, write_shard
from preprocess.assemble import Placed
from preprocess.dispatch import dispatch
from preprocess.heartbeat import beat
from preprocess.progress import Progress
from preprocess.staging import StagedData


@dataclass(frozen=True)
class ShardTask:
    """Shard `number` of a split: where it goes, where its data is staged, and its samples in order."""

    directory: Path
    staging: Path
    spec: ModalitySpec
    split: str
    number: int
    shard_size: int
    placed: tuple[Placed, ...]


def write_split_in_workers(
    executor: Executor, workers: int, staging: Path, directory: Path, spec: ModalitySpec, split: str,
    placed: Sequence[Placed], shard_size: int, progress: Progress,
) -> tuple[SplitEntry, dict[str, str]]:  # fmt: skip
    """As `medcoss.shards.write_split` with the staged samples `placed`, which are in the order of their keys.

    Raises `MedcossError` if a process is lost twice over one shard, and what writing raises there.
    """
    with SplitWriter(directory, spec, split, len(placed), shard_size) as writer:
        for one in placed:
            writer.note(as_sample(one, b""))
        size = writer.shard_size
        tasks = (
            ShardTask(directory, staging, spec, split, number, size, tuple(placed[number * size : (number + 1) * size]))
            for number in range(writer.shards)
        )
        written: dict[int, WrittenShard] = {}
        # What is left behind cannot be removed while a process still writes there.
        with closing(dispatch(executor, write_staged, tasks, workers, settle=True)) as results:
            for task, result in results:
                if not isinstance(result, WrittenShard):
                    raise MedcossError(
                        f"a process was lost while it wrote {split} shard {task.number} ({result}): run the same "
                        "command again to go on"
                    ) from result
                written[task.number] = result
                progress.advance(len(task.placed))
        return writer.close([written[number] for number in range(writer.shards)])


def write_staged(task: ShardTask) -> WrittenShard:
    """Write one shard. Raises `MedcossError` for damaged staged data, `OSError` for a full disk."""
    data = StagedData(task.staging)
    try:
        samples = _samples(task.placed, data)
        return write_shard(task.directory, task.spec, task.split, task.number, task.shard_size, samples)
    finally:
        data.close()


def _samples(placed: Sequence[Placed], data: StagedData) -> Iterator[Sample]:
    for one in placed:
        beat()
        yield as_sample(one, data.read_bytes(one.unit_id, one.sample))


def as_sample(placed: Placed, content: bytes | np.ndarray[Any, Any]) -> Sample:
    """The sample with `content` as its data."""
    about = placed.sample
    return Sample(about.key, content, about.subject, json.loads(about.labels), json.loads(about.geometry))
