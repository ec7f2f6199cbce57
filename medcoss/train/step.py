"""One optimiser step, what it is measured with, and what ranks agree on after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medcoss.continual.run import Run
from medcoss.continual.stage import Stage
from medcoss.contracts import Kind, derive_seed
from medcoss.data.batch import Batch
from medcoss.data.order import Order
from medcoss.model.architecture import Architecture
from medcoss.train.engine import Engine
from medcoss.train.flops import measure_peak, sample_flops
from medcoss.train.metrics import Display, Log, Meter, Trace
from medcoss.train.schedule import learning_rate, micro_batch, warmup_steps
from medcoss.train.task import Task
from medcoss.train.world import World

GO_ON, SAVE, STOP = range(3)
"""What a rank may wish after a step, in rising strength."""


class Agreement:
    """Ranks agree after every step on the strongest wish, without any of them waiting: it takes effect a step later."""

    def __init__(self) -> None:
        self._alone = torch.distributed.get_world_size() == 1
        self._group = None if self._alone else torch.distributed.new_group(backend="gloo")
        self._pending: tuple[Any, Tensor] | None = None

    def exchange(self, wish: int) -> int:
        """Say this rank's wish for the coming step; get what all agreed on for this one."""
        if self._alone:
            return wish
        agreed = GO_ON
        if self._pending is not None:
            work, flag = self._pending
            work.wait()
            agreed = int(flag)
        flag = torch.tensor(wish)
        work = torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, flag)
        return agreed

    def close(self) -> None:
        """Let the last exchange end before the process group does."""
        if self._pending is not None:
            self._pending[0].wait()


class Stepper:
    """Steps a stage's engine through batches, on every rank alike."""

    def __init__(
        self,
        run: Run,
        stage: Stage,
        order: Order,
        engine: Engine,
        task: Task,
        world: World,
        device: torch.device,
        *,
        architecture: Architecture,
        seed: int,
        start_step: int,
    ) -> None:
        self._train, self._stage, self._order, self._engine, self._task = run.config.train, stage, order, engine, task
        self._world, self._architecture, self._seed = world, architecture, seed
        self._share = world.share(self._train.global_batch)
        self._micro = micro_batch(self._share, self._train.micro_batch)
        self._warmup = warmup_steps(self._train, order.total_steps)
        leader = world.rank == 0
        directory = run.stage_directory(stage.name)
        directory.mkdir(parents=True, exist_ok=True)
        modalities = [source.name for source in order.sources]
        self._meter = Meter(modalities, device, measure_peak(device, task.autocast or torch.float32))
        self._log = Log(run.metrics_path(stage.name) if leader else None, start_step=start_step)
        self._trace = Trace(directory / f"trace-{world.rank}.jsonl" if self._train.trace else None)
        self._display = Display(stage.name, order.total_steps, start_step, shown=leader)

    def step(self, batch: Batch, waited: float) -> None:
        """One optimiser step on one global batch; a line of metrics where one is due.

        `waited` is the seconds the loader has kept this rank waiting so far.
        """
        step = batch.step
        # Drop path draws from torch's global generator: seeded by step, a resumed run draws the same.
        torch.manual_seed(derive_seed(self._seed, "step", step, self._world.rank))
        lr = learning_rate(self._train, step, self._order.total_steps, self._warmup)
        self._engine.set(lr, self._task.active(batch))
        losses = []
        for first in range(0, self._share, self._micro):
            loss = self._engine(self._task.prepare(batch, first, self._micro))
            self._engine.backward(loss)
            losses.append(loss.detach())
        mean = torch.stack(losses).mean()
        self._trace.add(batch, mean)
        self._count(batch, mean)
        if (step + 1) % self._train.log_every == 0 or step + 1 == self._order.total_steps:
            norm = self._engine.grad_norm()
            records = self._meter.read(step=step + 1, stage=self._stage.name, lr=lr, grad_norm=norm, waited=waited)
            self._log.append(records)
            self._display.update(step + 1, records)

    def _count(self, batch: Batch, loss: Tensor) -> None:
        samples, ratio, distilled = self._train.global_batch, self._train.mask_ratio, self._task.distils(batch)
        if batch.kind is Kind.SEQUENCE:
            tokens = float(batch.inputs.shape[1])
        else:
            tokens = 1.0 + max(1, int(self._architecture.n_patches(batch.kind) * (1 - ratio)))
        flops = samples * sample_flops(self._architecture, batch.kind, tokens, mask_ratio=ratio, distilled=distilled)
        source = self._order.source_at(batch.step)
        self._meter.add(source, batch, loss, distilled=distilled, samples=samples, tokens=samples * tokens, flops=flops)

    def close(self) -> None:
        """Close files."""
        self._trace.close()
