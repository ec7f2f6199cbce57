from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from medcoss.contracts import Kind, UsageError
from medcoss.model.architecture import Architecture
from medcoss.model.embed import patchify, unpatchify
from medcoss.model.mae import MaskedModel
from medcoss.model.vit import Encoder


def test_shapes_of_each_kind(model: MaskedModel, inputs: dict[str, Tensor]) -> None:
    encoder = model.encoder
    assert encoder(inputs["sequence"], "sequence").shape == (3, 14, 24)
    assert encoder(inputs["image"], kind="image").shape == (3, 17, 24)
    assert encoder(inputs["volume"], Kind.VOLUME).shape == (3, 19, 24)
    keep = torch.tensor([[0, 3], [5, 2], [1, 15]])
    assert encoder(inputs["image"], "image", keep=keep).shape == (3, 3, 24)
    for kind, batch in inputs.items():
        vector = encoder.embed(batch, kind)
        assert (vector.shape, vector.dtype, vector.requires_grad) == ((3, 24), torch.float32, False)


def test_keeping_all_patches_equals_no_mask(model: MaskedModel, inputs: dict[str, Tensor]) -> None:
    for kind in ("image", "volume"):
        count = model.architecture.n_patches(Kind(kind))
        everything = torch.arange(count).expand(3, -1)
        whole = model.encoder(inputs[kind], kind)
        assert torch.allclose(model.encoder(inputs[kind], kind, keep=everything), whole, atol=1e-6)
        order = torch.randperm(count)
        shuffled = model.encoder(inputs[kind], kind, keep=order.expand(3, -1))
        assert torch.allclose(shuffled[:, 1:], whole[:, 1 + order], atol=1e-5)


def test_hidden_patches_do_not_influence_the_output(model: MaskedModel, inputs: dict[str, Tensor]) -> None:
    for kind in ("image", "volume"):
        shape, patch = model.architecture.shape(Kind(kind)), model.architecture.patch(Kind(kind))
        patches = patchify(inputs[kind], patch)
        keep = torch.tensor([0, 5, 11]).expand(3, -1)
        hidden = [i for i in range(patches.shape[1]) if i not in (0, 5, 11)]
        patches[:, hidden] = float("nan")
        spoiled = unpatchify(patches, shape, patch)
        outcome = model.encoder(spoiled, kind, keep=keep)
        assert torch.equal(outcome, model.encoder(inputs[kind], kind, keep=keep))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padding_does_not_change_the_other_tokens(
    model: MaskedModel, inputs: dict[str, Tensor], dtype: torch.dtype
) -> None:
    ids = inputs["sequence"]
    padded = torch.cat([ids, torch.zeros(3, 5, dtype=torch.int64)], dim=1)
    valid = (torch.arange(19) < 14).expand(3, -1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        plain, longer = model.encoder(ids, "sequence"), model.encoder(padded, "sequence", valid=valid)
    tolerance = 1e-6 if dtype is torch.float32 else 2e-2
    assert (longer[:, :14] - plain).abs().max() <= tolerance
    vectors = model.encoder.embed(padded, "sequence", valid), model.encoder.embed(ids, "sequence")
    assert torch.allclose(*vectors, atol=1e-6)
    # what stands under the padding is of no account
    other = torch.where(valid, padded, torch.full_like(padded, 9))
    again = model.encoder(other, "sequence", valid=valid)[:, :14]
    assert torch.equal(again, model.encoder(padded, "sequence", valid=valid)[:, :14])


def test_every_token_sees_both_sides(model: MaskedModel, inputs: dict[str, Tensor]) -> None:
    ids = inputs["sequence"]
    for place in (0, 13):
        changed = ids.clone()
        changed[:, place] = 5
        difference = (model.encoder(changed, "sequence") - model.encoder(ids, "sequence")).abs().amax(-1)
        assert (difference > 0).all()


def test_the_vector_is_the_mean_of_real_tokens_without_cls(model: MaskedModel, inputs: dict[str, Tensor]) -> None:
    tokens = model.encoder(inputs["image"], "image")
    assert torch.allclose(model.encoder.embed(inputs["image"], "image"), tokens[:, 1:].mean(1), atol=1e-6)
    valid = torch.arange(14) < torch.tensor([[14], [6], [2]])
    tokens = model.encoder(inputs["sequence"], "sequence", valid=valid)
    means = torch.stack([tokens[i, 1:count].mean(0) for i, count in enumerate((14, 6, 2))])
    assert torch.allclose(model.encoder.embed(inputs["sequence"], "sequence", valid), means, atol=1e-6)


def test_drop_path_acts_in_training_only(architecture: Architecture, inputs: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    encoder = Encoder(replace(architecture, drop_path=0.5))
    image = inputs["image"]
    encoder.train()
    assert not torch.equal(encoder(image, "image"), encoder(image, "image"))
    vector = encoder.embed(image, "image")
    assert torch.equal(vector, encoder.embed(image, "image"))
    assert encoder.training
    encoder.eval()
    assert torch.equal(encoder(image, "image"), encoder(image, "image"))
    assert torch.allclose(vector, encoder(image, "image")[:, 1:].mean(1), atol=1e-6)


def test_layer_norm_constants(model: MaskedModel) -> None:
    found: dict[str, set[float]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            found.setdefault(name.split(".")[0], set()).add(module.eps)
    assert found == {"encoder": {1e-5}, "decoder": {1e-6}, "mlm_head": {1e-12}}
    assert not any(isinstance(module, nn.LayerNorm) for module in model.encoder.children())  # no final norm


def test_only_the_kinds_of_a_run_are_built(architecture: Architecture, inputs: dict[str, Tensor]) -> None:
    text = Encoder(replace(architecture, image_shape=None, volume_shape=None))
    assert list(text.embedders) == ["sequence"]
    assert text.cls is None
    with pytest.raises(UsageError, match="takes no image: it was built for sequence"):
        text(inputs["image"], "image")
