from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medcoss.contracts import Kind
from medcoss.model.architecture import Architecture
from medcoss.model.mae import MaskedModel, active_groups, normalise_patches, parameter_groups
from medcoss.model.mask import keep_patches, mask_tokens


def keep_for(model: MaskedModel, kind: str) -> Tensor:
    count = model.architecture.n_patches(Kind(kind))
    return keep_patches(count, 0.75, seed=0, step=0, positions=range(3), global_batch=3)


def pretext(model: MaskedModel, inputs: dict[str, Tensor], kind: str) -> Tensor:
    if kind != "sequence":
        return model.pretext_loss(inputs[kind], kind, keep=keep_for(model, kind))
    ids = inputs[kind]
    valid = torch.arange(14) < torch.tensor([[14], [9], [5]])
    masked, chosen = mask_tokens(ids, valid, 0.3, vocabulary=50, seed=0, step=0, positions=range(3))
    return model.pretext_loss(ids, kind, valid=valid, masked_ids=masked, chosen=chosen)


def decode_plainly(model: MaskedModel, tokens: Tensor, kind: str, keep: Tensor) -> Tensor:
    """All patches' predictions, sample by sample and token by token, as the decoder's definition reads."""
    decoder = model.decoder
    assert decoder is not None
    layers = decoder.kinds[kind]
    rows = []
    for sample, kept in zip(tokens, keep.tolist(), strict=True):
        small = decoder.embed(sample)
        count = len(layers.positions) - 1
        places = [small[1 + kept.index(i)] if i in kept else decoder.mask_token for i in range(count)]
        sequence = (torch.stack([small[0], *places]) + layers.positions)[None]
        for block in decoder.blocks:
            sequence = block(sequence)
        rows.append(layers.predict(decoder.norm(sequence))[0, 1:])
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["image", "volume"])
def test_the_patch_loss_equals_its_formula(model: MaskedModel, inputs: dict[str, Tensor], kind: str) -> None:
    keep = keep_for(model, kind)
    with torch.no_grad():
        loss = float(pretext(model, inputs, kind))
        predicted = decode_plainly(model, model.encoder(inputs[kind], kind, keep=keep), kind, keep).numpy()
    patch, shape = model.architecture.patch(Kind(kind)), model.architecture.shape(Kind(kind))
    errors = []
    for sample in range(3):
        grid = np.ndindex(*model.architecture.grid(Kind(kind)))
        for index, place in enumerate(grid):
            if index in keep[sample].tolist():
                continue
            cut = tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, patch, strict=True))
            pixels = inputs[kind][sample].numpy()[(slice(shape[0]), *cut)].astype(np.float64).ravel()
            target = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
            errors.append(((predicted[sample, index] - target) ** 2).mean())
    assert len(errors) == 3 * (model.architecture.n_patches(Kind(kind)) - keep.shape[1])
    assert loss == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_text_loss_equals_its_formula(model: MaskedModel, inputs: dict[str, Tensor]) -> None:
    ids = inputs["sequence"]
    valid = torch.arange(14) < torch.tensor([[14], [9], [5]])
    masked, chosen = mask_tokens(ids, valid, 0.3, vocabulary=50, seed=0, step=0, positions=range(3))
    head = model.mlm_head
    assert head is not None
    with torch.no_grad():
        loss = float(model.pretext_loss(ids, "sequence", valid=valid, masked_ids=masked, chosen=chosen))
        tokens = model.encoder(masked, "sequence", valid=valid).double() + head.offset.double()
        head.double()
        hidden = torch.nn.functional.gelu(head.dense(tokens))
        normed = (hidden - hidden.mean(-1, keepdim=True)) / (
            hidden.var(-1, unbiased=False, keepdim=True) + 1e-12
        ).sqrt()
        scores = ((normed * head.norm.weight + head.norm.bias) @ head.predict.weight.T + head.predict.bias).numpy()
    total = [np.log(np.exp(scores[i, j]).sum()) - scores[i, j, int(ids[i, j])] for i, j in np.argwhere(chosen.numpy())]
    assert loss == pytest.approx(np.mean(total), rel=1e-5)


def test_a_batch_without_chosen_tokens_costs_nothing(model: MaskedModel, inputs: dict[str, Tensor]) -> None:
    ids = inputs["sequence"]
    loss = model.pretext_loss(ids, "sequence", masked_ids=ids, chosen=torch.zeros_like(ids, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_constant_patches_have_finite_targets() -> None:
    target, mean, spread = normalise_patches(torch.full((1, 2, 12), 3.0))
    assert not target.any()
    assert torch.equal(mean, torch.full((1, 2, 1), 3.0))
    assert torch.allclose(spread, torch.full((1, 2, 1), 1e-3))


@pytest.mark.parametrize("kind", ["image", "volume"])
def test_reconstruction_returns_visible_patches_and_undoes_the_normalisation(
    model: MaskedModel, inputs: dict[str, Tensor], kind: str
) -> None:
    keep = keep_for(model, kind)
    shown = model.reconstruct(inputs[kind], kind, keep)
    assert shown.shape == inputs[kind].shape
    patch = model.architecture.patch(Kind(kind))
    visible = torch.zeros(3, model.architecture.n_patches(Kind(kind)), dtype=torch.bool).scatter(1, keep, True)
    grid = visible.view(3, 1, *model.architecture.grid(Kind(kind)))
    for axis, size in enumerate(patch):
        grid = grid.repeat_interleave(size, dim=2 + axis)
    grid = grid.expand_as(shown)
    assert torch.equal(shown[grid], inputs[kind][grid])
    assert (shown[~grid] != inputs[kind][~grid]).float().mean() > 0.99
    # a decoder that predicts a patch's own normalised values gives the input back
    assert model.decoder is not None
    layers = model.decoder.kinds[kind]
    nn.init.zeros_(layers.predict.weight)
    nn.init.zeros_(layers.predict.bias)
    flat = torch.ones_like(inputs[kind]) * torch.tensor([0.2, 0.5, 0.9]).view(3, *[1] * (inputs[kind].dim() - 1))
    assert torch.allclose(model.reconstruct(flat, kind, keep), flat, atol=1e-6)


def test_a_mask_that_hides_nothing_is_refused(model: MaskedModel, inputs: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="all of them visible"):
        model.pretext_loss(inputs["image"], "image", keep=torch.arange(16).expand(3, -1))
    with pytest.raises(ValueError, match="needs keep"):
        model.pretext_loss(inputs["image"], "image")
    with pytest.raises(ValueError, match="needs masked_ids"):
        model.pretext_loss(inputs["sequence"], "sequence")


def test_groups_hold_every_parameter_once(model: MaskedModel, architecture: Architecture) -> None:
    groups = parameter_groups(model)
    names = [name for members in groups.values() for name, _ in members]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    expected = {"shared", "cls", "embed.sequence", "embed.image", "embed.volume"}
    assert set(groups) == expected | {"decoder", "decoder.image", "decoder.volume", "mlm_head"}
    text = MaskedModel(replace(architecture, image_shape=None, volume_shape=None))
    assert set(parameter_groups(text)) == {"shared", "embed.sequence", "mlm_head"}
    assert text.decoder is None
    assert MaskedModel(replace(architecture, text_length=None, vocabulary=None)).mlm_head is None


@pytest.mark.parametrize("kind", ["sequence", "image", "volume"])
@pytest.mark.parametrize("replay", [False, True])
def test_gradients_flow_to_the_active_groups_only(
    model: MaskedModel, inputs: dict[str, Tensor], kind: str, replay: bool
) -> None:
    if replay:
        keep = None if kind == "sequence" else keep_for(model, kind)
        loss = model.encoder(inputs[kind], kind, keep=keep).square().mean()
    else:
        loss = pretext(model, inputs, kind)
    loss.backward()
    active = active_groups(kind, replay=replay)
    for group, members in parameter_groups(model).items():
        for name, parameter in members:
            assert (parameter.grad is not None and bool(parameter.grad.any())) is (group in active), name
