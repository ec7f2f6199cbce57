"""Steps, shares and learning rates of a stage: pure arithmetic."""

from __future__ import annotations

import math

from medcoss.config import TrainConfig
from medcoss.contracts import UsageError


def micro_batch(share: int, largest: int) -> int:
    """Largest divisor of a rank's `share` of the global batch that is at most `largest` samples."""
    return next(size for size in range(min(share, largest), 0, -1) if share % size == 0)


def warmup_steps(config: TrainConfig, total_steps: int) -> int:
    """Steps of linear warm-up: the same part of all steps, replay included, as of the epochs.

    Raises `UsageError` if the warm-up would fill the stage.
    """
    if config.warmup_epochs >= config.epochs:
        raise UsageError(
            f"train.warmup_epochs {config.warmup_epochs:g} leaves nothing of train.epochs {config.epochs:g}: lower it"
        )
    return round(total_steps * config.warmup_epochs / config.epochs)


def learning_rate(config: TrainConfig, step: int, total_steps: int, warmup: int) -> float:
    """Rate of step `step` (from 0): a line up to base_lr x global_batch / 256, then half a cosine down towards 0."""
    peak = config.base_lr * config.global_batch / 256
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(total_steps - warmup, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * done))
