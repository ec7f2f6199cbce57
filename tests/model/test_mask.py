from __future__ import annotations

import numpy as np
import pytest
import torch

from medcoss.contracts import MASK_ID
from medcoss.model.mask import keep_patches, mask_tokens


@pytest.mark.parametrize(("patches", "kept"), [(196, 49), (144, 36), (64, 16), (100, 25), (3, 1), (1, 1)])
def test_a_quarter_of_the_patches_is_kept(patches: int, kept: int) -> None:
    keep = keep_patches(patches, 0.75, seed=0, step=3, positions=range(4), global_batch=4)
    assert (keep.shape, keep.dtype) == ((4, kept), torch.int64)
    assert all(len(set(row.tolist())) == kept and row.tolist() == sorted(row.tolist()) for row in keep)
    assert 0 <= int(keep.min()) <= int(keep.max()) < patches


def test_ratios_at_the_ends() -> None:
    assert keep_patches(10, 0.0, seed=0, step=0, positions=[0], global_batch=1).tolist() == [list(range(10))]
    assert keep_patches(10, 0.01, seed=0, step=0, positions=[0], global_batch=1).shape == (1, 9)
    assert keep_patches(10, 0.99, seed=0, step=0, positions=[0], global_batch=1).shape == (1, 1)
    assert keep_patches(10, 0.9, seed=0, step=0, positions=[0], global_batch=1).shape == (1, 1)


def test_a_ranks_masks_are_its_rows_of_the_global_draw() -> None:
    whole = keep_patches(36, 0.75, seed=7, step=11, positions=range(12), global_batch=12)
    for rank in range(3):
        places = np.arange(rank, 12, 3)
        assert torch.equal(keep_patches(36, 0.75, seed=7, step=11, positions=places, global_batch=12), whole[places])
    for other in ({"seed": 8, "step": 11}, {"seed": 7, "step": 12}):
        assert not torch.equal(keep_patches(36, 0.75, positions=range(12), global_batch=12, **other), whole)
    with pytest.raises(ValueError, match="the batch holds 4"):
        keep_patches(36, 0.75, seed=0, step=0, positions=[4], global_batch=4)


def test_every_patch_is_kept_equally_often() -> None:
    keep = keep_patches(16, 0.75, seed=0, step=0, positions=range(4000), global_batch=4000)
    counts = torch.bincount(keep.flatten(), minlength=16).double()
    # binomial(4000, 1/4): standard deviation 27
    assert (counts - 1000).abs().max() < 5 * 27.4


def test_shares_of_masked_random_and_kept_tokens() -> None:
    texts, length, vocabulary = 400, 100, 1000
    ids = torch.randint(6, vocabulary, (texts, length), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, 80] = 2, 3
    valid = (torch.arange(length) < 81).expand(texts, -1)
    masked, chosen = mask_tokens(ids, valid, 0.15, vocabulary=vocabulary, seed=0, step=5, positions=range(texts))
    candidates = texts * 79
    n = int(chosen.sum())
    assert abs(n - 0.15 * candidates) < 5 * np.sqrt(candidates * 0.15 * 0.85)
    assert not chosen[:, 0].any() and not chosen[:, 80:].any()
    assert torch.equal(masked[~chosen], ids[~chosen])
    to_mask = int((masked[chosen] == MASK_ID).sum())
    kept = int((masked[chosen] == ids[chosen]).sum())
    changed = masked[chosen & (masked != ids) & (masked != MASK_ID)]
    for found, share in ((to_mask, 0.8), (kept, 0.1), (len(changed), 0.1)):
        assert abs(found - share * n) < 5 * np.sqrt(n * share * (1 - share))
    assert int(changed.min()) >= 6 and int(changed.max()) < vocabulary


def test_token_masks_depend_on_place_but_not_on_rank_or_padding() -> None:
    ids = torch.randint(6, 90, (6, 30), generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(ids, dtype=torch.bool)
    whole = mask_tokens(ids, valid, 0.3, vocabulary=90, seed=1, step=2, positions=range(6))
    part = mask_tokens(ids[1::2], valid[1::2], 0.3, vocabulary=90, seed=1, step=2, positions=[1, 3, 5])
    assert all(torch.equal(mine, all_[1::2]) for mine, all_ in zip(part, whole, strict=True))
    longer = torch.cat([ids, torch.zeros(6, 9, dtype=torch.int64)], dim=1)
    padding = torch.cat([valid, torch.zeros(6, 9, dtype=torch.bool)], dim=1)
    padded = mask_tokens(longer, padding, 0.3, vocabulary=90, seed=1, step=2, positions=range(6))
    assert all(torch.equal(long[:, :30], short) for long, short in zip(padded, whole, strict=True))
    assert not padded[1][:, 30:].any()
    other = mask_tokens(ids, valid, 0.3, vocabulary=90, seed=1, step=3, positions=range(6))
    assert not torch.equal(other[1], whole[1])


def test_a_text_of_any_ordinary_token_has_something_to_predict() -> None:
    ids = torch.tensor([[2, 9, 3]] * 200 + [[2, 1, 3]])
    _, chosen = mask_tokens(ids, ids > 0, 0.01, vocabulary=50, seed=0, step=0, positions=range(201))
    assert chosen[:200].sum(1).tolist() == [1] * 200
    assert not chosen[200].any()
