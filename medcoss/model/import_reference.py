"""Reads checkpoints released with the MedCoSS paper into this package's model."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medcoss.contracts import UsageError
from medcoss.model.architecture import PRESETS, Architecture
from medcoss.model.mae import MaskedModel

IMAGE_SHAPE = (3, 224, 224)
VOLUME_SHAPE = (1, 16, 192, 192)
TEXT_LENGTH = 112

_RENAMED = {
    "cls_token": "encoder.cls",
    "token_embed.embeddings.weight": "encoder.embedders.sequence.tokens.weight",
    "token_embed.embeddings_pos.position_embeddings.weight": "encoder.embedders.sequence.positions",
    "token_embed.embeddings_norm.weight": "encoder.embedders.sequence.norm.weight",
    "token_embed.embeddings_norm.bias": "encoder.embedders.sequence.norm.bias",
    "video_embed.embeddings.weight": "encoder.embedders.image.project.weight",
    "video_embed.embeddings.bias": "encoder.embedders.image.project.bias",
    "video_embed.embeddings_3D.weight": "encoder.embedders.volume.project.weight",
    "video_embed.embeddings_3D.bias": "encoder.embedders.volume.project.bias",
    "video_embed.embeddings_st_pos_2D.spatial_pos_embed.weight": "encoder.embedders.image.spatial",
    "video_embed.embeddings_st_pos_3D.spatial_pos_embed.weight": "encoder.embedders.volume.spatial",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed_2D": "decoder.kinds.image.positions",
    "decoder_pos_embed_3D": "decoder.kinds.volume.positions",
    "decoder_pred_3D.weight": "decoder.kinds.volume.predict.weight",
    "decoder_pred_3D.bias": "decoder.kinds.volume.predict.bias",
    "mlm_head.transform.dense.weight": "mlm_head.dense.weight",
    "mlm_head.transform.dense.bias": "mlm_head.dense.bias",
    "mlm_head.transform.LayerNorm.weight": "mlm_head.norm.weight",
    "mlm_head.transform.LayerNorm.bias": "mlm_head.norm.bias",
    "mlm_head.decoder.weight": "mlm_head.predict.weight",
    "mlm_head.bias": "mlm_head.predict.bias",
}
_FIRST_ROW = {
    "token_embed.embeddings_token_type.weight": "encoder.embedders.sequence.token_type",
    "video_embed.embeddings_st_pos_2D.temporal_pos_embed.weight": "encoder.embedders.image.temporal",
    "video_embed.embeddings_st_pos_3D.temporal_pos_embed.weight": "encoder.embedders.volume.temporal",
    "decoder_pos_embed_1D.weight": "mlm_head.offset",
}
_IN_BLOCK = {
    "self_attn.in_proj_weight": "attn.qkv.weight",
    "self_attn.in_proj_bias": "attn.qkv.bias",
    "self_attn.out_proj.weight": "attn.proj.weight",
    "self_attn.out_proj.bias": "attn.proj.bias",
    "linear1.weight": "mlp.fc1.weight",
    "linear1.bias": "mlp.fc1.bias",
    "linear2.weight": "mlp.fc2.weight",
    "linear2.bias": "mlp.fc2.bias",
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
}
_KEPT_PREFIXES = {
    "decoder_embed.": "decoder.embed.",
    "decoder_blocks.": "decoder.blocks.",
    "decoder_norm.": "decoder.norm.",
}
_UNUSED = ("video_embed.embeddings_pos.", "video_embed.embeddings_type.")


def import_reference(path: Path) -> MaskedModel:
    """The model of a released checkpoint, in eval mode; write it with `weights.save_model`.

    Only tensors, plain containers and `argparse.Namespace` are unpickled. Raises `UsageError` if the file holds more,
    cannot be read, or is no such checkpoint.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"checkpoint {path}: {error.strerror}: give an existing file") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UsageError(
            f"checkpoint {path}: not a plain PyTorch checkpoint ({str(error).splitlines()[0]}):"
            " files that need more than tensors to be unpickled are refused"
        ) from error
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, Mapping) or "cls_token" not in {str(name).removeprefix("module.") for name in state}:
        raise UsageError(f"checkpoint {path}: no MedCoSS pre-training checkpoint: its `model` lacks cls_token")
    converted = convert_state({str(name).removeprefix("module."): tensor for name, tensor in state.items()})
    model = MaskedModel(_architecture(converted, path)).eval()
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in converted or converted[name].shape != shape:
            found = tuple(converted[name].shape) if name in converted else "missing"
            raise UsageError(f"checkpoint {path}: {name} is {found}, expected {tuple(shape)}: another architecture")
    model.load_state_dict(converted)
    return model


def convert_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A released model's tensors under this package's names and in its layouts (float32).

    Images and volumes share one LayerNorm there and own a copy each here. Raises `UsageError` for an unknown name.
    """
    return {name: tensor.detach().float().contiguous() for key in state for name, tensor in _convert(key, state[key])}


def _convert(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if key.startswith(_UNUSED):
        return
    if key in _RENAMED:
        name = _RENAMED[key]
        if name.endswith("project.weight"):
            tensor = tensor.flatten(1)
        elif name.endswith((".cls", ".mask_token")):
            tensor = tensor.flatten()
        elif name.startswith("decoder.kinds.") and name.endswith("positions"):
            tensor = tensor.squeeze(0)
        yield name, tensor
    elif key in _FIRST_ROW:
        yield _FIRST_ROW[key], tensor[0]
    elif key.startswith("video_embed.embeddings_norm."):
        for kind in ("image", "volume"):
            yield f"encoder.embedders.{kind}.norm.{key.rpartition('.')[2]}", tensor
    elif key.startswith("decoder_pred_2D."):
        # There the predicted numbers of a patch are ordered (row, column, channel), here (channel, row, column).
        channels = IMAGE_SHAPE[0]
        side = round((len(tensor) / channels) ** 0.5)
        moved = tensor.reshape(side, side, channels, -1).movedim(2, 0).reshape(tensor.shape)
        yield f"decoder.kinds.image.predict.{key.rpartition('.')[2]}", moved
    elif key.startswith("fused_encoder.layers."):
        _, _, index, rest = key.split(".", 3)
        yield f"encoder.blocks.{index}.{_IN_BLOCK.get(rest, rest)}", tensor
    else:
        for old, new in _KEPT_PREFIXES.items():
            if key.startswith(old):
                yield new + key.removeprefix(old), tensor
                return
        raise UsageError(f"unknown tensor {key} in a MedCoSS checkpoint: was it made by other code?")


def _architecture(state: Mapping[str, Any], path: Path) -> Architecture:
    table = state.get("encoder.embedders.sequence.tokens.weight")
    if table is None:
        raise UsageError(f"checkpoint {path}: no token table: expected a MedCoSS pre-training checkpoint")
    return replace(
        PRESETS["vit_b"],
        image_shape=IMAGE_SHAPE,
        volume_shape=VOLUME_SHAPE,
        text_length=TEXT_LENGTH,
        vocabulary=len(table),
    )
