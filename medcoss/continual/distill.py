"""Distillation from the frozen model of the stage before."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from medcoss.contracts import Kind
from medcoss.model.vit import Encoder


class Teacher(nn.Module):
    """A frozen encoder: in eval mode whatever `train` is called on it or its owner, never with gradients."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, inputs: Tensor, kind: Kind, valid: Tensor | None, keep: Tensor | None) -> Tensor:
        """Output tokens (B, L, width) of `Encoder.forward`."""
        tokens: Tensor = self.encoder(inputs, kind, valid=valid, keep=keep)
        return tokens


def distillation_loss(student: Tensor, teacher: Tensor, valid: Tensor | None) -> Tensor:
    """Mean squared error between two output token sequences (B, L, width), a float32 scalar.

    Only tokens where `valid` (B, L) is True count; None: all.
    """
    error = (student.float() - teacher.float()).square().mean(dim=-1)
    if valid is None:
        return error.mean()
    weight = valid.float()
    return (error * weight).sum() / weight.sum().clamp_min(1.0)
