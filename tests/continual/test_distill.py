"""The frozen teacher and the distillation loss."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from medcoss.config import ContinualConfig, ModelConfig, RunConfig, TrainConfig
from medcoss.continual.distill import Teacher, distillation_loss
from medcoss.contracts import Field, Geometry, Kind, ModalitySpec
from medcoss.data.batch import Batch
from medcoss.model.architecture import Architecture, resolve
from medcoss.model.mae import MaskedModel
from medcoss.train.task import Pretraining, Task

_SHAPES = {Kind.SEQUENCE: (24,), Kind.IMAGE: (3, 32, 32), Kind.VOLUME: (1, 8, 16, 16)}


def _architecture(drop_path: float = 0.0) -> Architecture:
    specs = [
        ModalitySpec(kind.value, kind, Geometry(shape), (Field("x", "utf8", "u1"),), "", vocabulary=vocabulary)
        for kind, shape in _SHAPES.items()
        for vocabulary in [46 if kind is Kind.SEQUENCE else None]
    ]
    return resolve(ModelConfig(preset="vit_tiny", patch_3d=(8, 8, 8), drop_path=drop_path), specs)


def _batch(kind: Kind, count: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(5)
    positions = np.arange(count, dtype=np.int64)
    keys = tuple(f"k{i}" for i in range(count))
    if kind is Kind.SEQUENCE:
        inputs = torch.randint(6, 46, (count, 24), generator=generator)
        inputs[:, 0] = 2
        valid = torch.arange(24) < torch.tensor([24, 10, 15, 7])[:count, None]
        return Batch("report", kind, 3, True, inputs, valid, keys, positions)
    inputs = torch.rand(count, *_SHAPES[kind], generator=generator)
    return Batch(kind.value, kind, 3, True, inputs, None, keys, positions)


def _task(model: MaskedModel, teacher: Teacher | None, **continual: object) -> Task:
    config = RunConfig(train=TrainConfig(global_batch=4, precision="fp32"), continual=ContinualConfig(**continual))  # type: ignore[arg-type]
    return Task(config, model, teacher, torch.device("cpu"), seed=7)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_a_student_equal_to_its_teacher_has_no_loss_at_all(kind: Kind, precision: torch.dtype | None) -> None:
    model = MaskedModel(_architecture())
    task = _task(model, Teacher(copy.deepcopy(model.encoder)))
    task.autocast = precision
    module = Pretraining(model, autocast=precision).train()
    step = task.prepare(_batch(kind), 0, 4)
    loss = module(step).detach()
    assert float(loss) == 0.0
    nn.init.normal_(model.encoder.blocks[0].mlp.fc1.bias)
    assert float(module(step)) > 1e-6


@pytest.mark.parametrize("kind", [Kind.IMAGE, Kind.VOLUME])
def test_teacher_and_student_see_the_same_patches_of_the_same_mixture(kind: Kind) -> None:
    model = MaskedModel(_architecture())
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    teacher = Teacher(copy.deepcopy(model.encoder))
    for name, encoder in (("teacher", teacher.encoder), ("student", model.encoder)):
        encoder.register_forward_hook(
            lambda _, args, kwargs, out, name=name: seen.update({name: (args[0], kwargs["keep"])}), with_kwargs=True
        )
    batch = _batch(kind)
    Pretraining(model, autocast=None)(_task(model, teacher).prepare(batch, 0, 4))
    for ours, theirs in zip(seen["student"], seen["teacher"], strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(seen["student"][0], batch.inputs), "replayed samples are mixed"
    Pretraining(model, autocast=None)(_task(model, teacher, mixup=False).prepare(batch, 0, 4))
    assert torch.equal(seen["student"][0], batch.inputs), "no mixup where it is turned off"


def test_the_teacher_stays_in_eval_and_without_gradients() -> None:
    class Owner(nn.Module):
        def __init__(self, teacher: Teacher) -> None:
            super().__init__()
            self.teacher = teacher

    torch.manual_seed(0)
    model = MaskedModel(_architecture(drop_path=0.9))
    owner = Owner(Teacher(model.encoder)).train()
    assert owner.training
    assert not any(module.training for module in owner.teacher.modules())
    owner.teacher.encoder.train(False)
    inputs = torch.rand(2, 3, 32, 32)
    keep = torch.tensor([[0, 3], [1, 2]])
    first, second = (owner.teacher(inputs, Kind.IMAGE, None, keep) for _ in range(2))
    assert torch.equal(first, second), "drop path is off"
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in owner.teacher.parameters())


def test_only_replayed_batches_are_distilled_and_only_with_a_teacher() -> None:
    model = MaskedModel(_architecture())
    teacher = Teacher(copy.deepcopy(model.encoder))
    replayed = _batch(Kind.IMAGE)
    fresh = Batch(**{**replayed.__dict__, "is_replay": False})
    task = _task(model, teacher)
    assert task.prepare(replayed, 0, 4).target is not None
    assert task.prepare(fresh, 0, 4).target is None
    assert task.active(replayed) == {"shared", "embed.image", "cls"}
    assert task.active(fresh) == {"shared", "embed.image", "cls", "decoder", "decoder.image"}
    rehearsing = _task(model, None)
    step = rehearsing.prepare(replayed, 0, 4)
    assert step.target is None, "experience replay gives buffers their pretext loss"
    assert torch.equal(step.inputs, replayed.inputs)


def test_text_is_distilled_masked_only_on_request() -> None:
    model = MaskedModel(_architecture())
    teacher = Teacher(copy.deepcopy(model.encoder))
    batch = _batch(Kind.SEQUENCE)
    plain = _task(model, teacher).prepare(batch, 0, 4)
    masked = _task(model, teacher, distill_masked_text=True).prepare(batch, 0, 4)
    changed = (plain.inputs != masked.inputs) & plain.valid
    assert 0 < int(changed.sum()) < int(plain.valid.sum()) / 2
    assert masked.target is not None
    assert masked.chosen is None


def test_the_loss_counts_real_tokens_only() -> None:
    student, teacher = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    teacher[0, 0] = 2.0
    teacher[1, 2] = 100.0
    valid = torch.tensor([[True, True, True], [True, False, False]])
    assert float(distillation_loss(student, teacher, valid)) == pytest.approx(4.0 / 4)
    assert float(distillation_loss(student, teacher, None)) == pytest.approx((4.0 + 10000.0) / 6)
