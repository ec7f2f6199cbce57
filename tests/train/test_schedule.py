"""Steps, shares, learning rates, ranks and operation counts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from medcoss.config import ModelConfig, TrainConfig
from medcoss.contracts import Field, Geometry, Kind, ModalitySpec, UsageError
from medcoss.model.architecture import resolve
from medcoss.model.mae import MaskedModel
from medcoss.model.mask import keep_patches
from medcoss.train.flops import sample_flops
from medcoss.train.schedule import learning_rate, micro_batch, warmup_steps
from medcoss.train.world import World, find_world, rendezvous


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine() -> None:
    config = TrainConfig(global_batch=512, base_lr=1.5e-4, epochs=300, warmup_epochs=40)
    warmup = warmup_steps(config, 3000)
    assert warmup == 400
    rates = [learning_rate(config, step, 3000, warmup) for step in range(3000)]
    assert rates[0] == pytest.approx(3e-4 / 400)
    assert rates[399] == rates[400] == pytest.approx(3e-4)
    assert rates[1700] == pytest.approx(1.5e-4)
    assert 0 < rates[-1] < 1e-9
    assert all(later < earlier for earlier, later in pairwise(rates[400:]))
    no_warmup = TrainConfig(global_batch=256, base_lr=1e-3, epochs=1, warmup_epochs=0)
    assert learning_rate(no_warmup, 0, 10, warmup_steps(no_warmup, 10)) == pytest.approx(1e-3)


def test_a_warmup_that_fills_the_stage_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.warmup_epochs 40 leaves nothing of train\.epochs 2"):
        warmup_steps(TrainConfig(epochs=2, warmup_epochs=40), 100)


@pytest.mark.parametrize(("share", "largest", "expected"), [(256, 128, 128), (32, 128, 32), (48, 20, 16), (7, 4, 1)])
def test_micro_batches_divide_the_share(share: int, largest: int, expected: int) -> None:
    assert micro_batch(share, largest) == expected


def test_the_launchers_variables_are_understood() -> None:
    assert find_world({}) == World()
    deepspeed = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    assert find_world(deepspeed) == World(3, 4, 1, 2)
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert find_world(torchrun) == World(1, 2, 1, 2)
    slurm = {
        "SLURM_PROCID": "5",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_STEP_NODELIST": "gpu[03-04,9],cpu1",
        "SLURM_JOB_ID": "123",
    }
    assert find_world(slurm) == World(5, 8, 1, 4)
    assert rendezvous(slurm) == ("gpu03", 20123)
    assert rendezvous({"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}) == ("10.0.0.1", 29500)
    assert find_world({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) == World(), "a batch script's shell is no task"
    with pytest.raises(UsageError, match="rank variables are unreadable"):
        find_world({"RANK": "x", "WORLD_SIZE": "2"})
    with pytest.raises(UsageError, match="rank 2 of 2"):
        find_world({"RANK": "2", "WORLD_SIZE": "2"})


def test_ranks_share_batches_and_cores() -> None:
    assert World(0, 4).share(512) == 128
    with pytest.raises(UsageError, match="512 cannot be shared by 3 ranks"):
        World(0, 3).share(512)
    assert World(local_size=10**6).threads({}) == 1
    assert World().threads({"OMP_NUM_THREADS": "7"}) == 7
    assert World(local_size=10**6).threads({"OMP_NUM_THREADS": "7", "TORCHELASTIC_RUN_ID": "none"}) == 1


@pytest.mark.parametrize("kind", [Kind.IMAGE, Kind.VOLUME])
def test_counted_operations_match_those_done(kind: Kind) -> None:
    shape = (3, 64, 64) if kind is Kind.IMAGE else (1, 16, 64, 64)
    spec = ModalitySpec("some", kind, Geometry(shape), (Field("x", "zarr", "i2"),), "")
    architecture = resolve(ModelConfig(preset="vit_tiny"), [spec])
    model = MaskedModel(architecture)
    patches = architecture.n_patches(kind)
    keep = keep_patches(patches, 0.75, seed=0, step=0, positions=range(2), global_batch=2)
    with FlopCounterMode(display=False) as counter:
        model.pretext_loss(torch.rand(2, *shape), kind, keep=keep).backward()
    tokens = keep.shape[1] + 1
    ours = 2 * sample_flops(architecture, kind, tokens, mask_ratio=0.75, distilled=False)
    assert math.isclose(ours, counter.get_total_flops(), rel_tol=0.1)
