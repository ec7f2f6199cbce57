from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medcoss.contracts import UsageError
from medcoss.model.architecture import Architecture
from medcoss.model.embed import patchify
from medcoss.model.import_reference import convert_state, import_reference
from medcoss.model.mae import MaskedModel

WIDTH, SMALL_WIDTH, VOCABULARY = 24, 16, 50


def released_state() -> dict[str, Tensor]:
    """Random tensors with the names and layouts of released checkpoints, at the test model's sizes."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "mask_token": (1, 1, SMALL_WIDTH),
        "token_embed.embeddings.weight": (VOCABULARY, WIDTH),
        "token_embed.embeddings_pos.position_embeddings.weight": (32, WIDTH),
        "token_embed.embeddings_token_type.weight": (2, WIDTH),
        "video_embed.embeddings.weight": (WIDTH, 3, 4, 4),
        "video_embed.embeddings_3D.weight": (WIDTH, 1, 2, 4, 4),
        "video_embed.embeddings_st_pos_2D.spatial_pos_embed.weight": (16, WIDTH),
        "video_embed.embeddings_st_pos_2D.temporal_pos_embed.weight": (8, WIDTH),
        "video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight": (18, WIDTH),
        "video_embed.embeddings_st_pos_3D.temporal_pos_embed.weight": (8, WIDTH),
        "video_embed.embeddings_pos.position_embeddings.weight": (40, WIDTH),
        "video_embed.embeddings_type.weight": (1, WIDTH),
        "decoder_pos_embed_1D.weight": (2, WIDTH),
        "decoder_pos_embed_2D": (1, 17, SMALL_WIDTH),
        "decoder_pos_embed_3D": (1, 19, SMALL_WIDTH),
        "mlm_head.decoder.weight": (VOCABULARY, WIDTH),
        "mlm_head.bias": (VOCABULARY,),
    }
    shapes |= {f"video_embed.{name}.bias": (WIDTH,) for name in ("embeddings", "embeddings_3D")}
    linear = {
        "decoder_embed": (SMALL_WIDTH, WIDTH),
        "decoder_pred_2D": (48, SMALL_WIDTH),
        "decoder_pred_3D": (32, SMALL_WIDTH),
        "mlm_head.transform.dense": (WIDTH, WIDTH),
        "decoder_blocks.0.attn.qkv": (48, SMALL_WIDTH),
        "decoder_blocks.0.attn.proj": (SMALL_WIDTH, SMALL_WIDTH),
        "decoder_blocks.0.mlp.fc1": (32, SMALL_WIDTH),
        "decoder_blocks.0.mlp.fc2": (SMALL_WIDTH, 32),
    }
    norms = {"token_embed.embeddings_norm": WIDTH, "video_embed.embeddings_norm": WIDTH, "decoder_norm": SMALL_WIDTH}
    norms |= {"mlm_head.transform.LayerNorm": WIDTH}
    norms |= {f"decoder_blocks.0.norm{i}": SMALL_WIDTH for i in (1, 2)}
    for layer in range(2):
        place = f"fused_encoder.layers.{layer}"
        linear |= {f"{place}.self_attn.out_proj": (WIDTH, WIDTH)}
        linear |= {f"{place}.linear1": (48, WIDTH), f"{place}.linear2": (WIDTH, 48)}
        norms |= {f"{place}.norm{i}": WIDTH for i in (1, 2)}
        shapes |= {f"{place}.self_attn.in_proj_weight": (72, WIDTH), f"{place}.self_attn.in_proj_bias": (72,)}
        shapes |= {f"{place}.gamma_{i}": (WIDTH,) for i in (1, 2)}
    for name, size in linear.items():
        shapes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_every_released_tensor_finds_its_place(architecture: Architecture) -> None:
    state = released_state()
    model = MaskedModel(architecture)
    model.load_state_dict(convert_state(state))  # strict: nothing is missing, nothing is left over
    embedder = model.encoder.embedders["volume"]
    volume = torch.randn(2, 1, 4, 12, 12)
    weight, bias = (state[f"video_embed.embeddings_3D.{part}"] for part in ("weight", "bias"))
    tokens = F.conv3d(volume, weight, bias, stride=(2, 4, 4)).flatten(2).transpose(1, 2)
    tokens = tokens + state["video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight"]
    tokens = tokens + state["video_embed.embeddings_st_pos_3D.temporal_pos_embed.weight"][0]
    norm = (state[f"video_embed.embeddings_norm.{part}"] for part in ("weight", "bias"))
    assert torch.allclose(embedder(volume), F.layer_norm(tokens, (WIDTH,), *norm), atol=1e-5)


def test_predicted_pixels_are_reordered_to_channels_first() -> None:
    state = released_state()
    converted = convert_state(state)
    hidden = torch.randn(SMALL_WIDTH)
    theirs = F.linear(hidden, state["decoder_pred_2D.weight"], state["decoder_pred_2D.bias"]).view(4, 4, 3)
    weight, bias = (converted[f"decoder.kinds.image.predict.{part}"] for part in ("weight", "bias"))
    image = theirs.permute(2, 0, 1)[None]
    assert torch.allclose(F.linear(hidden, weight, bias), patchify(image, (4, 4))[0, 0], atol=1e-5)


def test_checkpoints_of_other_models_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": released_state(), "args": argparse.Namespace(lr=1.0)}, path)
    with pytest.raises(UsageError, match="another architecture"):  # the released models are of the paper's size
        import_reference(path)
    torch.save({"model": {"weight": torch.zeros(2)}}, path)
    with pytest.raises(UsageError, match="lacks cls_token"):
        import_reference(path)
    with pytest.raises(UsageError, match=r"unknown tensor head\.weight"):
        convert_state(released_state() | {"head.weight": torch.zeros(2)})
