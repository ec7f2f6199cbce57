"""Heads on the encoder's output tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medcoss.model.architecture import Architecture
from medcoss.model.vit import initialise_blocks

MLM_NORM_EPS = 1e-12


class MLMHead(nn.Module):
    """Masked language modelling: learned vector added, dense + GELU + LayerNorm, then a score for each token id."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        if architecture.vocabulary is None:
            raise ValueError("this architecture has no vocabulary")
        width = architecture.width
        self.offset = nn.Parameter(torch.empty(width))
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=MLM_NORM_EPS)
        self.predict = nn.Linear(width, architecture.vocabulary)
        nn.init.normal_(self.offset, std=0.02)
        initialise_blocks(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores (N, vocabulary) of output tokens (N, width); give it only those to be predicted."""
        out: Tensor = self.predict(self.norm(F.gelu(self.dense(tokens + self.offset))))
        return out
