"""What DeepSpeed is told."""

from __future__ import annotations

import pytest

from medcoss.config import TrainConfig
from medcoss.train.engine import _settings
from medcoss.train.world import World


@pytest.mark.parametrize("parameters", [1, 2, 7_654_321, 123_456_789])
@pytest.mark.parametrize("stage", [1, 2])
def test_buckets_are_even_and_hold_small_models_whole(parameters: int, stage: int) -> None:
    zero = _settings(TrainConfig(zero_stage=stage), World(0, 2, 0, 2), 32, 1, parameters)["zero_optimization"]
    for key in ("reduce_bucket_size", "allgather_bucket_size"):
        assert zero[key] % 2 == 0, "ZeRO 1 and 2 refuse an odd bucket"
        assert zero[key] == 50_000_000 or 0 <= zero[key] - parameters <= 1


def test_batches_agree_with_the_ranks() -> None:
    settings = _settings(TrainConfig(), World(0, 4, 0, 4), 16, 3, 1000)
    assert settings["train_batch_size"] == 16 * 3 * 4
    assert settings["train_micro_batch_size_per_gpu"] * settings["gradient_accumulation_steps"] == 48
