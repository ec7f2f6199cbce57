from __future__ import annotations

import torch

from medcoss.model import torchvision_operators


def test_torchvision_and_timm_can_be_imported() -> None:
    import timm.models.vision_transformer
    import torchvision.transforms.v2

    assert timm.models.vision_transformer.Block
    assert torchvision.transforms.v2.RandomResizedCrop
    assert hasattr(torch.ops.torchvision, "nms")


def test_declaring_twice_changes_nothing() -> None:
    before = len(torchvision_operators._declared)
    assert torchvision_operators.declare() is False
    assert len(torchvision_operators._declared) == before
