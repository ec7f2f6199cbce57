"""Arithmetic of a training step, counted from the architecture, and what this machine could do at most."""

from __future__ import annotations

import time

import torch

from medcoss.contracts import Kind
from medcoss.model.architecture import Architecture


def blocks_flops(tokens: float, width: int, depth: int, mlp_ratio: float) -> float:
    """Floating-point operations of the matrix products of `depth` transformer blocks over one sample's tokens."""
    projections = 2 * tokens * width * width * (4 + 2 * mlp_ratio)
    attention = 4 * tokens * tokens * width
    return depth * (projections + attention)


def sample_flops(architecture: Architecture, kind: Kind, tokens: float, *, mask_ratio: float, distilled: bool) -> float:
    """Operations of one sample's training step: forward and twice that backward, and the teacher's forward.

    `tokens` enter the encoder ([CLS] included). Counts matrix products only; of the MLM head nothing but the tokens
    predicted, which are few, is left out.
    """
    a = architecture
    encoder = blocks_flops(tokens, a.width, a.depth, a.mlp_ratio)
    if kind is not Kind.SEQUENCE:
        encoder += 2 * tokens * a.patch_values(kind) * a.width
    if distilled:
        return 4 * encoder
    decoder = 0.0
    if kind is not Kind.SEQUENCE:
        patches = a.n_patches(kind)
        decoder = blocks_flops(patches + 1, a.decoder_width, a.decoder_depth, a.mlp_ratio)
        decoder += 2 * tokens * a.width * a.decoder_width
        decoder += 2 * patches * mask_ratio * a.decoder_width * a.patch_values(kind)
    return 3 * (encoder + decoder)


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of this rank in a 1024 x 1024 x 1024 matrix product (4096 on a GPU), best of five."""
    size = 4096 if device.type == "cuda" else 1024
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
