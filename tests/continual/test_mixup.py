"""Intra-modal mixup: the formulas of METHOD, their randomness and their padding."""

from __future__ import annotations

import torch

from medcoss.continual.mixup import mix
from medcoss.contracts import Kind


def test_images_are_convex_mixtures_with_one_weight_a_sample() -> None:
    inputs = torch.arange(1.0, 7.0).view(6, 1, 1, 1).expand(6, 3, 4, 4).clone()
    mixed, valid = mix(inputs, None, Kind.IMAGE, seed=1, step=2, part=0)
    assert valid is None
    values = mixed[:, 0, 0, 0]
    assert torch.equal(mixed, values.view(6, 1, 1, 1).expand_as(mixed)), "one weight for all of a sample"
    assert bool(((values >= 1) & (values <= 6)).all())
    assert not torch.equal(values, inputs[:, 0, 0, 0])
    assert len({round(float(v), 6) for v in values}) > 3, "each sample draws its own weight"


def test_volumes_keep_their_shape_and_type() -> None:
    inputs = torch.rand(4, 1, 8, 16, 16)
    mixed, _ = mix(inputs, None, Kind.VOLUME, seed=0, step=0, part=0)
    assert mixed.shape == inputs.shape
    assert mixed.dtype == torch.float32


def test_text_takes_each_token_with_its_padding_from_one_of_two_samples() -> None:
    count, length = 16, 20
    ids = torch.arange(count).view(-1, 1) * 100 + torch.arange(length)
    valid = torch.arange(length) < torch.arange(5, 5 + count).view(-1, 1)
    mixed, mixed_valid = mix(ids, valid, Kind.SEQUENCE, seed=3, step=1, part=0)
    assert mixed_valid is not None
    assert torch.equal(mixed % 100, torch.arange(length).expand(count, -1)), "tokens keep their places"
    sources = mixed // 100
    for row in range(count):
        others = set(sources[row].tolist()) - {row}
        assert len(others) <= 1, "two samples at most are mixed"
        taken = valid[sources[row], torch.arange(length)]
        assert torch.equal(mixed_valid[row], taken), "the padding mask follows the tokens"
    assert bool(mixed_valid[:, 0].all()), "[CLS] is real whichever sample it is from"


def test_one_share_for_a_text_batch() -> None:
    ids = torch.arange(64).view(-1, 1).expand(64, 200).clone()
    shares = []
    for step in range(8):
        mixed, _ = mix(ids, torch.ones_like(ids, dtype=torch.bool), Kind.SEQUENCE, seed=0, step=step, part=0)
        own = (mixed == ids).float().mean(dim=1)
        moved = own[own < 1.0]
        assert float(moved.std()) < 0.06, "all rows of a batch share lambda"
        shares.append(float(moved.mean()))
    assert max(shares) - min(shares) > 0.3, "lambda is drawn anew each step"


def test_weights_are_uniform_and_depend_on_seed_step_and_part() -> None:
    inputs = torch.zeros(2000, 1)
    inputs[::2] = 1.0

    def weights(**place: int) -> torch.Tensor:
        return mix(inputs, None, Kind.IMAGE, **{"seed": 0, "step": 0, "part": 0, **place})[0]

    mixed = weights()
    inside = mixed[(mixed > 0) & (mixed < 1)]
    assert abs(float(inside.mean()) - 0.5) < 0.03
    assert abs(float(inside.std()) - 12**-0.5) < 0.02
    assert torch.equal(mixed, weights())
    for place in ({"seed": 1}, {"step": 1}, {"part": 1}):
        assert not torch.equal(mixed, weights(**place))
