"""What a run still knows: the probe's score of every modality seen so far, after every stage.

Read beside two rows that no training explains: always naming the most frequent class, and an encoder of random weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medcoss import atomic
from medcoss.continual.embeddings import embed_split
from medcoss.continual.run import Run
from medcoss.contracts import UsageError
from medcoss.evaluate.probe import BANK_SPLIT, QUERY_SPLIT, NoTask, ProbeTask, knn_accuracy, probe_task
from medcoss.model.architecture import resolve
from medcoss.model.vit import Encoder
from medcoss.model.weights import fingerprint, load_encoder
from medcoss.shards.manifest import MANIFEST
from medcoss.shards.reader import ShardSet

SCHEMA_VERSION = 1
METRIC = "knn_accuracy"
RANDOM_SEEDS = (0, 1, 2)
"""Random encoders whose mean score is the `random_encoder` row."""

Scores = dict[str, float | None]
Embed = Callable[[Encoder, ShardSet, str], NDArray[np.float32]]
"""(encoder, shard set, split) to vectors (N, D) in shard order."""


@dataclass
class Retention:
    """The content of retention.json.

    `scores[stage][modality]` are accuracies in [0, 1]; a null has its reason at `reasons[stage][modality]`. A row holds
    the modalities trained up to its stage. `chance` is the frequency of the commonest class among the queries,
    `random_encoder` the mean over encoders of random weights (`seeds`). `labels` names the column predicted,
    `neighbours` the votes, `sets` and `models` the fingerprints of what was evaluated.
    """

    schema_version: int = SCHEMA_VERSION
    stages: list[str] = field(default_factory=list)
    modalities: list[str] = field(default_factory=list)
    metric: str = METRIC
    neighbours: int = 0
    scores: dict[str, Scores] = field(default_factory=dict)
    reasons: dict[str, dict[str, str]] = field(default_factory=dict)
    chance: Scores = field(default_factory=dict)
    random_encoder: Scores = field(default_factory=dict)
    n_bank: dict[str, int] = field(default_factory=dict)
    n_query: dict[str, int] = field(default_factory=dict)
    labels: dict[str, str | None] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: list(RANDOM_SEEDS))
    sets: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready copy with the derived `forgetting` and `average`; `from_json` takes it back."""
        return asdict(self) | {"forgetting": self.forgetting(), "average": self.average()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Retention:
        """Rebuild from retention.json. Raises `UsageError` for another schema or missing entries."""
        if data.get("schema_version") != SCHEMA_VERSION:
            raise UsageError(f"retention schema {data.get('schema_version')!r} is not {SCHEMA_VERSION}: evaluate again")
        try:
            return cls(**{item.name: data[item.name] for item in fields(cls)})
        except KeyError as error:
            raise UsageError(f"retention.json lacks {error}: evaluate again with `medcoss evaluate RUN`") from error

    def forgetting(self) -> Scores:
        """Best earlier score minus the last one, by modality; None before a second score. Negative: it got better."""
        forgotten: Scores = {}
        for modality in self.modalities:
            row = [self.scores[stage].get(modality) for stage in self.stages]
            known = [score for score in row if score is not None]
            forgotten[modality] = max(known[:-1]) - known[-1] if len(known) > 1 and row[-1] is not None else None
        return forgotten

    def average(self) -> Scores:
        """Mean score over the modalities of each stage's row, None if none has a score."""
        averages: Scores = {}
        for stage in self.stages:
            known = [score for score in self.scores[stage].values() if score is not None]
            averages[stage] = sum(known) / len(known) if known else None
        return averages


def retention_path(run_directory: Path) -> Path:
    """Where a run's table lies."""
    return run_directory / "evaluation" / "retention.json"


def read_retention(path: Path) -> Retention | None:
    """The table at `path`, None if there is none. Raises `UsageError` if it is unreadable."""
    if not path.is_file():
        return None
    try:
        return Retention.from_json(json.loads(path.read_bytes()))
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error}): delete it and run `medcoss evaluate RUN`") from error


def column_names(specs: Iterable[tuple[str, str]]) -> list[str]:
    """A name for each (stage, modality): the modality's, or the stage's where an earlier stage has that modality."""
    names: list[str] = []
    for stage, modality in specs:
        names.append(stage if modality in names else modality)
    return names


def add_row(
    retention: Retention,
    stage: str,
    sets: Mapping[str, ShardSet | None],
    *,
    encoder: Encoder,
    random_encoder: Callable[[ShardSet, int], Encoder],
    embed: Embed,
    neighbours: int,
) -> None:
    """Put the scores of `encoder` after `stage` into the table, over `sets` (column name to set, None: it is gone).

    Rows of this and of later stages are replaced. `random_encoder(set, seed)` makes an untrained encoder; its scores
    are kept as long as the set and the number of neighbours stay the same.
    """
    if stage in retention.stages:
        for later in retention.stages[retention.stages.index(stage) :]:
            del retention.scores[later], retention.reasons[later]
            retention.models.pop(later, None)
        retention.stages = retention.stages[: retention.stages.index(stage)]
    if retention.neighbours != neighbours:
        retention.sets.clear()
        retention.neighbours = neighbours
    retention.stages.append(stage)
    retention.modalities += [name for name in sets if name not in retention.modalities]
    row: Scores = {}
    reasons: dict[str, str] = {}
    for name, shard_set in sets.items():
        task = probe_task(shard_set) if shard_set else NoTask("its shard set is no longer there")
        if shard_set is None or isinstance(task, NoTask):
            row[name], reasons[name] = None, task.reason if isinstance(task, NoTask) else ""
            for entry in (retention.chance, retention.random_encoder, retention.labels):
                entry.setdefault(name, None)
            for counts in (retention.n_bank, retention.n_query):
                counts.setdefault(name, 0)
            continue
        row[name] = _score(encoder, shard_set, task, embed, neighbours)
        if retention.sets.get(name) != shard_set.manifest.fingerprint:
            untrained = (random_encoder(shard_set, seed) for seed in RANDOM_SEEDS)
            scores = [_score(model, shard_set, task, embed, neighbours) for model in untrained]
            retention.random_encoder[name] = sum(scores) / len(scores)
            retention.chance[name] = task.chance
            retention.labels[name] = task.column
            retention.n_bank[name], retention.n_query[name] = len(task.bank), len(task.queries)
            retention.sets[name] = shard_set.manifest.fingerprint
    retention.scores[stage], retention.reasons[stage] = row, reasons


def _score(encoder: Encoder, shard_set: ShardSet, task: ProbeTask, embed: Embed, neighbours: int) -> float:
    bank = embed(encoder, shard_set, BANK_SPLIT)[task.bank]
    queries = embed(encoder, shard_set, QUERY_SPLIT)[task.queries]
    return knn_accuracy(bank, task.bank_labels, queries, task.query_labels, neighbours)


def is_evaluated(run: Run, stage: str) -> bool:
    """Whether the table has a row of the very model that stage `stage` of the run has now."""
    retention = read_retention(retention_path(run.directory))
    return retention is not None and retention.models.get(stage) == fingerprint(run.model_path(stage))


def update_retention(run: Run, stage: str) -> Retention:
    """Evaluate the model of the finished stage `stage` on every modality trained so far and write retention.json.

    One process does it, on its GPU if there is one; the file is replaced atomically. Raises `UsageError` if the stage
    is unknown or not finished, `MedcossError` for damaged shards.
    """
    retention = read_retention(retention_path(run.directory)) or Retention()
    _evaluate_stage(run, stage, retention)
    _write(run, retention)
    return retention


def evaluate_run(run: Run, progress: Callable[[str], None] | None = None) -> Retention:
    """Evaluate every finished stage of a run anew and replace retention.json at the end.

    `progress` is called with each stage's name before it is evaluated. Raises `UsageError` if no stage is finished.
    """
    finished = [stage for stage in run.stage_names if run.done(stage) is not None]
    if not finished:
        raise UsageError(f"{run.directory} has no finished stage: train one with launch/pretrain.py")
    retention = Retention()
    for stage in finished:
        if progress:
            progress(stage)
        _evaluate_stage(run, stage, retention)
    _write(run, retention)
    return retention


def _write(run: Run, retention: Retention) -> None:
    text = json.dumps(retention.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    atomic.write_bytes(retention_path(run.directory), text.encode() + b"\n")


def _evaluate_stage(run: Run, stage: str, retention: Retention) -> None:
    if stage not in run.stage_names:
        raise UsageError(f"{run.directory} has no stage {stage!r}: its stages are {', '.join(run.stage_names)}")
    if run.done(stage) is None:
        raise UsageError(
            f"stage {stage} is not finished in {run.directory}: run launch/pretrain.py --stage {stage} first"
        )
    config = run.config
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    def embed(encoder: Encoder, shard_set: ShardSet, split: str) -> NDArray[np.float32]:
        batch_size = max(config.train.micro_batch, 64)  # without gradients more fits, and small batches are slow
        table = embed_split(encoder.to(device), shard_set, split, data=config.data, batch_size=batch_size)
        return np.asarray(table.vectors, dtype=np.float32)

    def random_encoder(shard_set: ShardSet, seed: int) -> Encoder:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Encoder(resolve(config.model, [shard_set.spec])).eval()

    add_row(
        retention,
        stage,
        _sets_until(run, stage),
        encoder=load_encoder(run.model_path(stage)),
        random_encoder=random_encoder,
        embed=embed,
        neighbours=config.evaluate.neighbours,
    )
    retention.models[stage] = fingerprint(run.model_path(stage))


def _sets_until(run: Run, stage: str) -> dict[str, ShardSet | None]:
    """The sets trained on up to `stage`, by column of the table; None where the folder holds no set any more."""
    stages = run.config.stages
    if run.config.continual.paradigm != "joint":
        stages = stages[: run.stage_names.index(stage) + 1]
    sets = [ShardSet.open(item.path()) if (item.path() / MANIFEST).is_file() else None for item in stages]
    modalities = [
        shard_set.manifest.name if shard_set else item.name for item, shard_set in zip(stages, sets, strict=True)
    ]
    names = column_names((item.name, modality) for item, modality in zip(stages, modalities, strict=True))
    return dict(zip(names, sets, strict=True))
