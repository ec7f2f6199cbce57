"""Which patches and tokens are hidden: pure functions of (seed, step, place in the global batch).

Masks are drawn outside the model, so teacher and student share one, a step can be repeated, and a run on another number
of ranks hides the same things.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medcoss.contracts import MASK_ID, SPECIAL_TOKENS

Positions = Sequence[int] | npt.NDArray[np.int64]

_PATCHES, _TOKENS = 1, 2  # separate streams of random numbers


def keep_patches(
    n_patches: int, ratio: float, *, seed: int, step: int, positions: Positions, global_batch: int
) -> Tensor:
    """Indices of the patches that stay visible: (B, K) int64, ascending in each row.

    K = n_patches x (1 - `ratio`) rounded down, at least 1 and, for a positive ratio, at most n_patches - 1. `positions`
    are the samples' places in the global batch (B of them, each below `global_batch`); a row depends on nothing else
    than the seed, the step and its place. Raises `ValueError` for a place outside the batch.
    """
    places = np.asarray(positions, dtype=np.int64)
    if places.size and (places.min() < 0 or places.max() >= global_batch):
        raise ValueError(f"positions reach {int(places.min())} to {int(places.max())}, the batch holds {global_batch}")
    kept = int(n_patches * (1.0 - ratio) + 1e-9)  # 1e-9: a product like 9.999... counts as the 10 it stands for
    kept = max(1, min(kept, n_patches - 1 if ratio > 0 else n_patches))
    noise = _uniform(seed, step, _PATCHES, places, n_patches)
    order = np.argsort(noise, axis=1, kind="stable")[:, :kept]
    return torch.from_numpy(np.sort(order, axis=1))


def mask_tokens(
    ids: Tensor,
    valid: Tensor,
    probability: float,
    *,
    vocabulary: int,
    seed: int,
    step: int,
    positions: Positions,
) -> tuple[Tensor, Tensor]:
    """Hide tokens for masked language modelling: (masked ids (B, L) int64, chosen (B, L) bool), on the ids' device.

    Each real token (`valid` and none of the special tokens) is chosen with `probability`, and if none of a text is, the
    one that came nearest to it. Of the chosen, 80 % become [MASK], 10 % a random ordinary token, 10 % stay. A token's
    draw does not depend on how far its batch is padded.
    """
    length = ids.shape[1]
    draws = _uniform(seed, step, _TOKENS, np.asarray(positions, dtype=np.int64), length * 3)
    choice, action, substitute = torch.from_numpy(draws).to(ids.device).view(-1, length, 3).unbind(-1)
    candidates = valid & (ids >= len(SPECIAL_TOKENS))
    chance = choice.masked_fill(~candidates, 2.0)
    threshold = chance.amin(dim=1, keepdim=True).clamp_min(probability)
    chosen = candidates & ((chance < probability) | ((chance == threshold) & (threshold > probability)))
    ordinary = vocabulary - len(SPECIAL_TOKENS)
    random_ids = len(SPECIAL_TOKENS) + (substitute * max(ordinary, 1)).long().clamp_max(max(ordinary - 1, 0))
    hidden = torch.where(action < 0.8, torch.full_like(ids, MASK_ID), torch.where(action < 0.9, random_ids, ids))
    return torch.where(chosen, hidden, ids), chosen


def _uniform(seed: int, step: int, stream: int, places: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """(B, count) numbers in [0, 1): row i depends on (seed, step, stream, places[i]), its start not on `count`."""
    rows = np.empty((len(places), count))
    key = np.array([seed % 2**64, step], dtype=np.uint64)
    for row, place in zip(rows, places, strict=True):
        # A counter-based generator needs no warm-up: the place is part of the counter, the seed and step its key.
        counter = np.array([0, 0, int(place), stream], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key, counter=counter)).random(out=row)
    return rows
