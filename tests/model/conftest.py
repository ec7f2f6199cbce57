"""Small models for the tests of the model."""

from __future__ import annotations

import pytest
import torch

from medcoss.model.architecture import Architecture
from medcoss.model.mae import MaskedModel

SMALL = Architecture(
    width=24,
    depth=2,
    heads=3,
    mlp_ratio=2.0,
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
    layer_scale=0.5,
    drop_path=0.0,
    patch_2d=4,
    patch_3d=(2, 4, 4),
    image_shape=(3, 16, 16),
    volume_shape=(1, 4, 12, 12),
    text_length=20,
    vocabulary=50,
    text_positions=32,
)


@pytest.fixture
def architecture() -> Architecture:
    """All three kinds: 16 patches of 48 values, 18 patches of 32 values, texts of up to 20 tokens."""
    return SMALL


@pytest.fixture
def model(architecture: Architecture) -> MaskedModel:
    """A model of `architecture` with every parameter away from its start, in eval mode."""
    torch.manual_seed(0)
    built = MaskedModel(architecture)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return built.eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Three samples of each kind."""
    generator = torch.Generator().manual_seed(1)
    return {
        "sequence": torch.randint(6, 50, (3, 14), generator=generator),
        "image": torch.rand(3, 3, 16, 16, generator=generator),
        "volume": torch.randn(3, 1, 4, 12, 12, generator=generator),
    }
