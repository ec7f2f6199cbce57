"""In which type matrices are multiplied."""

from __future__ import annotations

from typing import Literal

import torch


def autocast_dtype(precision: Literal["auto", "bf16", "fp32"], device: torch.device) -> torch.dtype | None:
    """The type to autocast to on `device`; None: no autocast, float32.

    `auto` takes bfloat16 where the hardware multiplies matrices faster in it: GPUs that support it, and CPUs with AMX.
    On a CPU that has bfloat16 instructions but no AMX the products take about twice as long as in float32.
    """
    if precision == "auto":
        if device.type == "cuda":
            precision = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
        else:
            precision = "bf16" if torch.cpu.get_capabilities().get("amx_bf16", False) else "fp32"
    return torch.bfloat16 if precision == "bf16" else None
