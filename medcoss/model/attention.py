"""Which implementation of scaled dot-product attention runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_backend(tokens: Tensor, *, masked: bool) -> AbstractContextManager[None]:
    """A context in which attention over `tokens` (B, L, D) uses the faster backend; off the CPU, PyTorch chooses."""
    if tokens.device.type != "cpu":
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)
