"""What a training step receives: one modality's samples as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from medcoss.contracts import Kind

Inputs = Int[Tensor, "B L"] | Float[Tensor, "B C H W"] | Float[Tensor, "B C D H W"]


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch; all its samples come from one shard set.

    `inputs` is, by kind: sequence (B, L) int64 token ids, L the longest member of this rank's part; image (B, C, H, W)
    float32 in [0, 1]; volume (B, C, D, H, W) float32, the stored numbers times the field's scale plus its offset.
    `valid` is (B, L) bool for sequences, True on real tokens ([CLS] and [SEP] included), and None otherwise.
    `positions` (B,) int64 are the samples' places in the global batch: whatever is drawn at random per sample is drawn
    from (seed, step, position), so that it does not depend on the number of ranks. `keys` name the samples.
    """

    modality: str
    kind: Kind
    step: int
    is_replay: bool
    inputs: Inputs
    valid: Bool[Tensor, "B L"] | None
    keys: tuple[str, ...]
    positions: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)
