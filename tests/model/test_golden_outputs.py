"""Outputs fixed once: a change of these numbers is a change of the model, and needs a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from medcoss.contracts import Kind
from medcoss.model.architecture import Architecture
from medcoss.model.mae import MaskedModel
from medcoss.model.mask import keep_patches, mask_tokens

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "model_outputs.json"


def wave(shape: tuple[int, ...], phase: float) -> Tensor:
    """Numbers that no generator or version of a library can change."""
    count = int(torch.tensor(shape).prod())
    return torch.sin(torch.arange(count, dtype=torch.float64) * 0.7311 + phase).float().view(shape)


def golden_outputs(architecture: Architecture) -> dict[str, object]:
    model = MaskedModel(architecture).eval()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * wave(tuple(parameter.shape), float(index)))
        ids = 6 + (torch.arange(28).view(2, 14) * 37) % 44
        image, volume = wave((2, 3, 16, 16), 0.1) * 0.5 + 0.5, wave((2, 1, 4, 12, 12), 0.2)
        masked, chosen = mask_tokens(ids, ids > 0, 0.3, vocabulary=50, seed=5, step=6, positions=[3, 4])
        keep = {
            kind: keep_patches(architecture.n_patches(kind), 0.75, seed=5, step=6, positions=[3, 4], global_batch=8)
            for kind in (Kind.IMAGE, Kind.VOLUME)
        }
        losses = {
            "sequence": model.pretext_loss(ids, "sequence", masked_ids=masked, chosen=chosen),
            "image": model.pretext_loss(image, "image", keep=keep[Kind.IMAGE]),
            "volume": model.pretext_loss(volume, "volume", keep=keep[Kind.VOLUME]),
        }
        vectors = {
            "sequence": model.encoder.embed(ids, "sequence"),
            "image": model.encoder.embed(image, "image"),
            "volume": model.encoder.embed(volume, "volume"),
        }
    return {
        "losses": {kind: float(loss) for kind, loss in losses.items()},
        "vectors": {kind: [[round(x, 6) for x in row] for row in rows.tolist()] for kind, rows in vectors.items()},
        "keep": {str(kind): rows.tolist() for kind, rows in keep.items()},
        "masked_ids": masked.tolist(),
    }


def test_outputs_are_what_they_were(architecture: Architecture) -> None:
    expected, found = json.loads(GOLDEN.read_text()), golden_outputs(architecture)
    assert found["keep"] == expected["keep"]
    assert found["masked_ids"] == expected["masked_ids"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    for kind, rows in expected["vectors"].items():
        assert torch.allclose(torch.tensor(found["vectors"][kind]), torch.tensor(rows), atol=2e-5), kind
