"""Tokenizers: from ids, pixels and voxels to the encoder's tokens. Behaviour branches on kind here."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medcoss.contracts import Kind
from medcoss.model.architecture import Architecture

LAYER_NORM_EPS = 1e-5


def patchify(inputs: Tensor, patch: tuple[int, ...]) -> Tensor:
    """Cut (B, C, *size) into patches (B, L, C x prod(patch)), patches in row-major order, channels first in each.

    A patch's numbers lie as in a convolution's weight, so a linear layer on them equals a convolution with that stride.
    """
    batch, channels, *size = inputs.shape
    axes = len(size)
    split = [part for length, step in zip(size, patch, strict=True) for part in (length // step, step)]
    cut = inputs.reshape(batch, channels, *split)
    grid_axes, patch_axes = [2 + 2 * i for i in range(axes)], [3 + 2 * i for i in range(axes)]
    return cut.permute(0, *grid_axes, 1, *patch_axes).reshape(batch, -1, channels * math.prod(patch))


def unpatchify(patches: Tensor, shape: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The inverse of `patchify`: (B, L, C x prod(patch)) to (B, *shape), shape being (C, *size)."""
    channels, *size = shape
    axes = len(size)
    grid = [length // step for length, step in zip(size, patch, strict=True)]
    cut = patches.reshape(-1, *grid, channels, *patch)
    order = [axis for i in range(axes) for axis in (1 + i, 2 + axes + i)]
    return cut.permute(0, 1 + axes, *order).reshape(-1, *shape)


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (B, L, D) at `index` (B, K): (B, K, D)."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def sincos_positions(grid: tuple[int, ...], width: int) -> Tensor:
    """Sine and cosine positions of a grid in row-major order: (prod(grid), width) float32.

    Axes longer than 1 share the width evenly; what cannot be shared evenly stays 0.
    """
    positions = torch.zeros(math.prod(grid), width)
    axes = [axis for axis, length in enumerate(grid) if length > 1] or [len(grid) - 1]
    half = width // len(axes) // 2
    omega = 1.0 / 10000 ** (torch.arange(half, dtype=torch.float64) / half)
    coordinates = torch.meshgrid(*(torch.arange(length, dtype=torch.float64) for length in grid), indexing="ij")
    for place, axis in enumerate(axes):
        angle = coordinates[axis].reshape(-1, 1) * omega
        block = torch.cat([angle.sin(), angle.cos()], dim=1).float()
        positions[:, place * 2 * half : (place + 1) * 2 * half] = block
    return positions


class PatchEmbedding(nn.Module):
    """Images or volumes to tokens: linear patch embedding + learned position, then LayerNorm.

    The position is a spatial table plus one temporal vector: place 0 of released weights' table of times.
    """

    def __init__(self, architecture: Architecture, kind: Kind) -> None:
        super().__init__()
        self.patch = architecture.patch(kind)
        self.shape = architecture.shape(kind)
        self.project = nn.Linear(architecture.patch_values(kind), architecture.width)
        self.spatial = nn.Parameter(torch.empty(architecture.n_patches(kind), architecture.width))
        self.temporal = nn.Parameter(torch.empty(architecture.width))
        self.norm = nn.LayerNorm(architecture.width, eps=LAYER_NORM_EPS)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        nn.init.normal_(self.temporal, std=0.02)
        if architecture.sincos_start:
            with torch.no_grad():
                self.spatial.copy_(sincos_positions(architecture.grid(kind), architecture.width))
        else:
            nn.init.normal_(self.spatial, std=0.02)

    def forward(self, inputs: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, K, width) of the patches `keep` (B, K), or of all for None; only these are embedded.

        `inputs` is (B, *shape) float. Raises `ValueError` for another shape.
        """
        if tuple(inputs.shape[1:]) != self.shape:
            raise ValueError(f"inputs are {tuple(inputs.shape[1:])}, this model takes {self.shape}")
        return self.embed_patches(patchify(inputs, self.patch), keep)

    def embed_patches(self, patches: Tensor, keep: Tensor | None = None) -> Tensor:
        """As `forward`, for inputs cut by `patchify` already."""
        if keep is None:
            positions: Tensor = self.spatial
        else:
            patches = gather_rows(patches, keep)
            positions = F.embedding(keep, self.spatial)
        out: Tensor = self.norm(self.project(patches) + (positions + self.temporal))
        return out


class TextEmbedding(nn.Module):
    """Token ids to tokens: token + learned position + type, then LayerNorm."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        if architecture.vocabulary is None:
            raise ValueError("this architecture has no vocabulary")
        self.tokens = nn.Embedding(architecture.vocabulary, architecture.width)
        self.positions = nn.Parameter(torch.empty(architecture.text_positions, architecture.width))
        self.token_type = nn.Parameter(torch.empty(architecture.width))
        self.norm = nn.LayerNorm(architecture.width, eps=LAYER_NORM_EPS)
        for table in (self.tokens.weight, self.positions, self.token_type):
            nn.init.normal_(table, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Tokens (B, L, width) of ids (B, L) int64. Raises `ValueError` for texts longer than the position table."""
        length = ids.shape[1]
        if length > len(self.positions):
            raise ValueError(f"texts of {length} tokens, but only {len(self.positions)} positions")
        out: Tensor = self.norm(self.tokens(ids) + (self.positions[:length] + self.token_type))
        return out


def build_embedder(architecture: Architecture, kind: Kind) -> TextEmbedding | PatchEmbedding:
    """The tokenizer of a kind."""
    return TextEmbedding(architecture) if kind is Kind.SEQUENCE else PatchEmbedding(architecture, kind)
