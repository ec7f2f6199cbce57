from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medcoss.contracts import Kind
from medcoss.model.architecture import Architecture
from medcoss.model.embed import PatchEmbedding, TextEmbedding, patchify, sincos_positions, unpatchify


@pytest.mark.parametrize(
    ("shape", "patch"), [((3, 8, 12), (4, 2)), ((1, 4, 6, 8), (2, 3, 4)), ((2, 16, 4, 4), (16, 2, 2))]
)
def test_patches_are_cut_and_put_back_exactly(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    inputs = torch.randn(2, *shape)
    assert torch.equal(unpatchify(patchify(inputs, patch), shape, patch), inputs)


def test_a_patch_holds_the_pixels_of_its_place() -> None:
    image = torch.randn(1, 3, 8, 8)
    patches = patchify(image, (4, 4))
    assert torch.equal(patches[0, 1], image[0, :, :4, 4:].flatten())
    assert torch.equal(patches[0, 2], image[0, :, 4:, :4].flatten())


def test_the_volume_embedding_equals_a_strided_convolution(architecture: Architecture) -> None:
    embedding = PatchEmbedding(architecture, Kind.VOLUME).double()
    volume = torch.randn(2, 1, 4, 12, 12, dtype=torch.float64)
    weight = embedding.project.weight.view(24, 1, 2, 4, 4)
    convolved = F.conv3d(volume, weight, embedding.project.bias, stride=(2, 4, 4)).flatten(2).transpose(1, 2)
    expected = F.layer_norm(
        convolved + embedding.spatial + embedding.temporal, (24,), embedding.norm.weight, embedding.norm.bias, 1e-5
    )
    assert torch.allclose(embedding(volume), expected, atol=1e-12)
    keep = torch.tensor([[3, 17, 0], [5, 1, 9]])
    assert torch.allclose(embedding(volume, keep), torch.stack([expected[0, keep[0]], expected[1, keep[1]]]))


def test_the_image_embedding_equals_a_strided_convolution(architecture: Architecture) -> None:
    embedding = PatchEmbedding(architecture, Kind.IMAGE)
    image = torch.rand(2, 3, 16, 16)
    convolved = F.conv2d(image, embedding.project.weight.view(24, 3, 4, 4), embedding.project.bias, stride=4)
    sums = convolved.flatten(2).transpose(1, 2) + embedding.spatial + embedding.temporal
    assert torch.allclose(embedding(image), F.layer_norm(sums, (24,)), atol=1e-5)


def test_text_tokens_are_the_normalised_sum_of_three_vectors(architecture: Architecture) -> None:
    embedding = TextEmbedding(architecture)
    ids = torch.tensor([[2, 7, 49, 3]])
    table = embedding.tokens.weight
    rows = [table[i] + embedding.positions[place] + embedding.token_type for place, i in enumerate((2, 7, 49, 3))]
    assert torch.allclose(embedding(ids)[0], F.layer_norm(torch.stack(rows), (24,)), atol=1e-5)
    with pytest.raises(ValueError, match="33 tokens, but only 32 positions"):
        embedding(torch.zeros(1, 33, dtype=torch.int64))


def test_another_shape_is_refused(architecture: Architecture) -> None:
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), this model takes \(3, 16, 16\)"):
        PatchEmbedding(architecture, Kind.IMAGE)(torch.rand(1, 3, 8, 8))


def test_sines_and_cosines_tell_all_places_apart() -> None:
    positions = sincos_positions((1, 8, 8), 96)
    assert positions.shape == (64, 96)
    assert torch.cdist(positions, positions).fill_diagonal_(9.0).min() > 0.5
    # one axis of a grid is the same as that axis alone
    assert torch.equal(sincos_positions((3, 5), 16).view(3, 5, 16)[1, :, 8:], sincos_positions((5,), 8))
