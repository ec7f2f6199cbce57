"""One stage of pre-training, from its inputs to model.safetensors."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from medcoss.config import RunConfig
from medcoss.continual.distill import Teacher
from medcoss.continual.run import Run
from medcoss.continual.stage import Stage
from medcoss.contracts import derive_seed
from medcoss.data.loader import Loader
from medcoss.data.order import Order, Source
from medcoss.model.architecture import resolve
from medcoss.model.mae import MaskedModel, parameter_groups
from medcoss.model.weights import load_encoder, load_into, save_model
from medcoss.shards.reader import ShardSet
from medcoss.train import checkpoint as checkpoints
from medcoss.train.engine import Engine
from medcoss.train.process import StopRequest
from medcoss.train.schedule import micro_batch
from medcoss.train.step import GO_ON, SAVE, STOP, Agreement, Stepper
from medcoss.train.task import Pretraining, Task
from medcoss.train.world import World

_FREE_TO_CHANGE = {
    "train": {
        "micro_batch",
        "zero_stage",
        "log_every",
        "checkpoint_minutes",
        "checkpoint_steps",
        "keep_checkpoints",
        "trace",
    },
    "data": {"backend", "workers", "prefetch"},
    "evaluate": {"after_stage", "neighbours"},
}
"""Settings that may change between the parts of an interrupted stage."""


@dataclass(frozen=True)
class Outcome:
    """How training ended: steps done of the stage's total, seconds of training in all its parts."""

    steps: int
    total_steps: int
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether all steps are done and the model is written."""
        return self.steps == self.total_steps


def plan(stage: Stage, config: RunConfig) -> Order:
    """The stage's order of batches. Raises `UsageError` for empty sets."""
    members = [(s, False) for s in stage.sets] + [(s, True) for s in stage.replay]
    return Order(
        [_source(shard_set, is_replay) for shard_set, is_replay in members],
        global_batch=config.train.global_batch,
        epochs=config.epochs(stage.name),
        seed=stage_seed(stage, config),
        shuffle_window=config.data.shuffle_window,
    )


def stage_seed(stage: Stage, config: RunConfig) -> int:
    """The seed of everything random in a stage."""
    return derive_seed(config.seed, "stage", stage.name)


def _source(shard_set: ShardSet, is_replay: bool) -> Source:
    manifest = shard_set.manifest
    return Source(manifest.name, manifest.fingerprint, shard_set.split("train").shard_sizes, is_replay)


def train(
    run: Run,
    stage: Stage,
    world: World,
    device: torch.device,
    stop: StopRequest,
    *,
    resume: bool,
    say: Callable[[str], None],
) -> Outcome:
    """Train `stage` from its newest checkpoint (or anew without `resume`) and write its model.

    A collective. If `stop` is set on any rank, all of them save a checkpoint after the same step and return an
    unfinished outcome. `say` takes lines for the user. Raises `MedcossError` if the loss is not finite or a sample is
    damaged, `UsageError` if a checkpoint was made of something else.
    """
    config, leader, order = run.config, world.rank == 0, plan(stage, run.config)
    share, seed = world.share(config.train.global_batch), stage_seed(stage, config)
    micro = micro_batch(share, config.train.micro_batch)
    model = _build(stage, config, seed)
    teacher = None if stage.teacher is None else Teacher(load_encoder(stage.teacher)).to(device)
    task = Task(config, model, teacher, device, seed=seed)
    module = Pretraining(model, autocast=task.autocast)
    groups = {group: [(f"model.{n}", p) for n, p in members] for group, members in parameter_groups(model).items()}
    engine = Engine(module, groups, config.train, world, device, micro_batch=micro, accumulation=share // micro)

    made_of = _dependencies(stage, config)
    found = _resume(run, stage, engine, made_of, resume=resume, leader=leader, say=say)
    first, earlier = (found.step, found.seconds) if found else (0, 0.0)
    begun = saved_at = time.monotonic()

    def save(step: int) -> None:
        tensors = engine.state()
        if leader:
            directory, keep = run.checkpoints_directory(stage.name), config.train.keep_checkpoints
            seconds = earlier + time.monotonic() - begun
            checkpoints.save(directory, tensors, step=step, seconds=seconds, inputs=made_of, keep=keep)

    architecture = model.architecture
    stepper = Stepper(
        run, stage, order, engine, task, world, device, architecture=architecture, seed=seed, start_step=first
    )
    agreement, step = Agreement(), first
    loader = Loader(
        (*stage.sets, *stage.replay),
        order,
        config.data,
        seed=seed,
        rank=world.rank,
        world_size=world.size,
        start_step=first,
    )
    try:
        for batch in loader:
            stepper.step(batch, loader.wait_seconds)
            step = batch.step + 1
            minutes = (time.monotonic() - saved_at) / 60
            due = leader and 0 < config.train.checkpoint_minutes < minutes
            agreed = agreement.exchange(STOP if stop else SAVE if due else GO_ON)
            counted = config.train.checkpoint_steps and step % config.train.checkpoint_steps == 0
            if agreed != GO_ON or counted or step == order.total_steps:
                save(step)
                saved_at = time.monotonic()
            if agreed == STOP:
                break
        agreement.close()
    finally:
        stepper.close()
        loader.close()
    if step == order.total_steps:
        with engine.gathered():
            if leader:
                provenance = {"stage": stage.name, "inputs": stage.inputs, "steps": step}
                save_model(run.model_path(stage.name), model, provenance)
        torch.distributed.barrier()  # every rank may read the model from here on
    return Outcome(step, order.total_steps, earlier + time.monotonic() - begun)


def _build(stage: Stage, config: RunConfig, seed: int) -> MaskedModel:
    """The model at the start of the stage: decoder and heads anew, the rest from the stage before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        model = MaskedModel(resolve(config.model, stage.specs))
    if stage.initial is not None:
        load_into(model, stage.initial)
    return model


def _dependencies(stage: Stage, config: RunConfig) -> dict[str, str]:
    """All that the course of the stage depends on, by name: what it is made of and the settings."""
    made_of = dict(stage.inputs) | {"seed": str(config.seed)}
    for section in ("model", "data", "train", "continual"):
        for key, value in dataclasses.asdict(getattr(config, section)).items():
            if key not in _FREE_TO_CHANGE.get(section, set()):
                made_of[f"{section}.{key}"] = str(value)
    made_of["train.epochs"] = str(config.epochs(stage.name))
    return made_of


def _resume(
    run: Run,
    stage: Stage,
    engine: Engine,
    made_of: dict[str, str],
    *,
    resume: bool,
    leader: bool,
    say: Callable[[str], None],
) -> checkpoints.Checkpoint | None:
    """Put the engine into the state of the newest good checkpoint, if there is one and `resume`."""
    directory = run.checkpoints_directory(stage.name)
    found: checkpoints.Checkpoint | None = None
    if resume:
        found, damaged = checkpoints.find(directory, made_of)
        for line in damaged:
            say(line)
    if found is not None:
        engine.load_state(found.tensors())
        say(f"stage {stage.name}: going on after step {found.step}")
    # No rank may still be reading when rank 0 tidies up.
    torch.distributed.barrier()
    if leader and found is None:
        checkpoints.clear(directory)
    elif leader and found is not None:
        checkpoints.clear_after(directory, found)
    return found
