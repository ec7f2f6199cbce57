"""Intra-modal mixup of a replayed batch with a shuffled copy of itself (METHOD, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from medcoss.contracts import Kind, derive_seed


def mix(
    inputs: Tensor, valid: Tensor | None, kind: Kind, *, seed: int, step: int, part: int
) -> tuple[Tensor, Tensor | None]:
    """(mixed inputs, mixed padding mask) of one batch; a pure function of its arguments.

    image, volume (B, C, …) float: lambda x + (1 - lambda) x', lambda uniform in [0, 1) for each sample. sequence (B, L)
    int64 ids with `valid` (B, L) bool: each token of x is kept with one chance lambda for the whole batch, else the
    token of x' at its place is taken, and `valid` with it. x' is x in a random order of its samples. `part` numbers the
    parts of a global batch (ranks and micro batches), each of which is mixed within itself.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "mixup", step, part))
    count = len(inputs)
    other = torch.randperm(count, generator=generator).to(inputs.device)
    if kind is Kind.SEQUENCE:
        share = torch.rand((), generator=generator)
        own = (torch.rand(inputs.shape, generator=generator) < share).to(inputs.device)
        mixed_valid = None if valid is None else torch.where(own, valid, valid[other])
        return torch.where(own, inputs, inputs[other]), mixed_valid
    weight = torch.rand(count, generator=generator).to(inputs.device, inputs.dtype)
    weight = weight.view(-1, *[1] * (inputs.ndim - 1))
    return weight * inputs + (1.0 - weight) * inputs[other], valid
