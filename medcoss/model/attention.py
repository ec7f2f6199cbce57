"""Self-attention that takes, on the CPU, the faster way for its length and precision.

`scaled_dot_product_attention`'s CPU kernel is the fastest way forward and, in float32, backward too. In bfloat16 its
backward pass is three to seven times slower than in float32, so bfloat16 takes another way. On a GPU PyTorch's choice
is left alone. `python -m benchmarks.attention` measures the ways.
"""

from __future__ import annotations

from enum import StrEnum

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor


class Way(StrEnum):
    """Implementations of attention, equal but for rounding."""

    FUSED = "fused"
    """`scaled_dot_product_attention` in the precision it is given."""
    FUSED_FP32 = "fused_fp32"
    """The same, computed in float32."""
    EXPLICIT = "explicit"
    """Two batched matrix products with a softmax between them."""


EXPLICIT_UP_TO = 128
"""Longest sequence (tokens) for which two bfloat16 matrix products train as fast as the fused kernel in float32."""


def choose(length: int, dtype: torch.dtype, device: str = "cpu") -> Way:
    """The way for sequences of `length` tokens.

    It does not depend on whether gradients are taken, so a teacher and a student of equal weights agree bit by bit.
    """
    if device != "cpu" or dtype is not torch.bfloat16:
        return Way.FUSED
    return Way.EXPLICIT if length <= EXPLICIT_UP_TO else Way.FUSED_FP32


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, way: Way) -> Tensor:
    """softmax(query key^T / sqrt(d)) value, all (B, heads, L, d); `mask` (B, 1, 1, L) bool, True: may be seen."""
    match way:
        case Way.EXPLICIT:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            if mask is not None:
                scores = scores.masked_fill_(~mask, float("-inf"))
            weights: Tensor = scores.softmax(dim=-1)
            return weights @ value
        case Way.FUSED_FP32:
            with torch.autocast(query.device.type, enabled=False):
                wide = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=mask)
            return wide.to(query.dtype)
        case Way.FUSED:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class SelfAttention(Attention):
    """timm's attention (same parameters and names), its products computed the way `choose` says.

    Bidirectional; without normalised queries, dropout or gates.
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Tokens (B, L, D) to (B, L, D); `attn_mask` (B, 1, 1, L) bool, True where a key may be seen."""
        if is_causal:
            raise ValueError("attention here is bidirectional: every token may see every other")
        batch, length, _ = x.shape
        packed = self.qkv(x).view(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        way = choose(length, query.dtype, query.device.type)
        mixed = attend(query, key, value, attn_mask, way)
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, length, self.attn_dim))
        return out
