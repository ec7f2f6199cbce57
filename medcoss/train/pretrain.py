"""A whole stage: join the ranks, train, choose the rehearsal buffer, record that it is done."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from importlib.metadata import distributions

import torch

from medcoss.continual.buffer import build_buffer
from medcoss.continual.run import Run
from medcoss.continual.stage import Stage, tokenizer_sha256
from medcoss.model.weights import fingerprint
from medcoss.train import checkpoint
from medcoss.train.engine import choose_device, joined
from medcoss.train.loop import Outcome, plan, train
from medcoss.train.process import StopRequest, stoppable
from medcoss.train.schedule import micro_batch, warmup_steps
from medcoss.train.world import World

_VERSIONS = ("medcoss", "torch", "deepspeed", "timm", "numpy", "faiss-cpu", "faiss-gpu-cu12", "nvidia-dali-cuda130")


def pretrain(
    run: Run, stage: Stage, world: World, *, resume: bool, with_buffer: bool, say: Callable[[str], None]
) -> bool:
    """Bring a stage to its end: model, buffer (if `with_buffer` and the run rehearses), done.json.

    Every rank calls it, in its main thread. False if it was stopped by SIGTERM; then a checkpoint is saved, and the
    next call goes on from it (unless not `resume`). `say` takes lines for the user. Raises `KeyboardInterrupt` after
    saving on Ctrl-C, and as `loop.train`.
    """
    describe(run, stage, world)
    device = choose_device(world)
    with joined(world, device, os.environ), stoppable() as stop:
        finished = run_stage(run, stage, world, device, stop, resume=resume, with_buffer=with_buffer, say=say)
    if stop.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if device.type == "cpu":
        # The other ranks are about to end: what this one does alone may take the whole machine.
        torch.set_num_threads(World().threads(os.environ))
    return finished


def run_stage(
    run: Run,
    stage: Stage,
    world: World,
    device: torch.device,
    stop: StopRequest,
    *,
    resume: bool,
    with_buffer: bool,
    say: Callable[[str], None],
) -> bool:
    """`pretrain` for ranks that have joined each other; `stop` ends training after a saved step."""
    outcome = train(run, stage, world, device, stop, resume=resume, say=say)
    if not outcome.finished:
        say(f"stage {stage.name}: stopped after step {outcome.steps} of {outcome.total_steps}, saved")
        return False
    if with_buffer and run.rehearses:
        say(f"stage {stage.name}: choosing its rehearsal buffer")
        _make_buffer(run, stage, world)
    if world.rank == 0:
        _record_done(run, stage, outcome, world)
    return True


def describe(run: Run, stage: Stage, world: World) -> str:
    """What `pretrain` would do, in lines. Raises `UsageError` for settings that do not fit the sets or the ranks."""
    config = run.config
    order, share = plan(stage, config), world.share(config.train.global_batch)
    micro, warmup = micro_batch(share, config.train.micro_batch), warmup_steps(config.train, order.total_steps)
    lines = [f"stage {stage.name} of {run.directory}, paradigm {config.continual.paradigm}"]
    for source, turns in zip(order.sources, order.turns, strict=True):
        role = "replay of" if source.is_replay else "train on"
        lines.append(f"  {role} {source.name}: {source.samples} samples, {turns} of {order.total_steps} steps")
    lines.append(f"  start from {stage.initial or 'random weights'}, teacher {stage.teacher or 'none'}")
    lines.append(f"  batch {config.train.global_batch} = {world.size} ranks x {share // micro} x {micro}; ")
    lines[-1] += f"{warmup} steps of warm-up to rate {config.train.base_lr * config.train.global_batch / 256:.3g}"
    return "\n".join(lines)


def _make_buffer(run: Run, stage: Stage, world: World) -> None:
    """Choose the stage's rehearsal buffer with its own model. A collective; a finished buffer is left as it is."""
    config = run.config
    build_buffer(
        stage.shard_set,
        run.model_path(stage.name),
        run.buffer_directory(stage.name),
        ratio=config.continual.ratio,
        centers=config.continual.centers,
        policy=config.continual.policy,
        seed=config.seed,
        data=config.data,
        rank=world.rank,
        world_size=world.size,
        barrier=torch.distributed.barrier,
    )


def _record_done(run: Run, stage: Stage, outcome: Outcome, world: World) -> None:
    """Write done.json, the stage's last file, and delete its checkpoints, which nobody needs any more. Rank 0 only."""
    teacher = None if stage.teacher is None else stage.inputs[f"model {run.stage_names[stage.index - 1]}"]
    buffers = zip(stage.replay_names, stage.replay, strict=True)
    tokenizers = [sha for s in stage.sets if (sha := tokenizer_sha256(s.manifest)) is not None]
    run.write_done(
        stage.name,
        {
            "paradigm": run.config.continual.paradigm,
            "sets": [shard_set.manifest.fingerprint for shard_set in stage.sets],
            "specs": [shard_set.spec.to_json() for shard_set in stage.sets],
            "salt_id": stage.shard_set.manifest.salt_id,
            "tokenizer_sha256": tokenizers[0] if tokenizers else None,
            "model_sha256": fingerprint(run.model_path(stage.name)),
            "teacher_sha256": teacher,
            "buffers": {name: buffer.manifest.fingerprint for name, buffer in buffers},
            "steps": outcome.steps,
            "seconds": round(outcome.seconds, 3),
            "ranks": world.size,
            "versions": _versions(),
        },
    )
    checkpoint.clear(run.checkpoints_directory(stage.name))


def _versions() -> dict[str, str]:
    installed = {distribution.metadata["Name"]: distribution.version for distribution in distributions()}
    return {name: installed[name] for name in _VERSIONS if name in installed}
