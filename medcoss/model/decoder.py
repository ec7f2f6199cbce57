"""The decoder of masked patches: images and volumes share its blocks."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from medcoss.contracts import Kind
from medcoss.model.architecture import Architecture
from medcoss.model.attention import SelfAttention
from medcoss.model.embed import gather_rows, sincos_positions
from medcoss.model.vit import initialise_blocks, run_blocks

DECODER_NORM_EPS = 1e-6


class KindLayers(nn.Module):
    """A kind's own part of the decoder: positions of [CLS] and all patches, and the prediction of a patch's numbers."""

    def __init__(self, architecture: Architecture, kind: Kind) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1 + architecture.n_patches(kind), architecture.decoder_width))
        self.predict = nn.Linear(architecture.decoder_width, architecture.patch_values(kind))
        if architecture.sincos_start:
            with torch.no_grad():
                self.positions[1:] = sincos_positions(architecture.grid(kind), architecture.decoder_width)


class Decoder(nn.Module):
    """Predicts hidden patches from the encoder's output for the visible ones."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        width = architecture.decoder_width
        norm = partial(nn.LayerNorm, eps=DECODER_NORM_EPS)
        self.embed = nn.Linear(architecture.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.blocks = nn.ModuleList(
            Block(
                width,
                architecture.decoder_heads,
                architecture.mlp_ratio,
                qkv_bias=True,
                attn_layer=SelfAttention,
                norm_layer=norm,  # type: ignore[arg-type]
            )
            for _ in range(architecture.decoder_depth)
        )
        self.norm = norm(width)
        self.kinds = nn.ModuleDict(
            {str(kind): KindLayers(architecture, kind) for kind in architecture.kinds if kind is not Kind.SEQUENCE}
        )
        initialise_blocks(self)

    def forward(self, tokens: Tensor, kind: Kind, keep: Tensor, wanted: Tensor) -> Tensor:
        """Predicted (normalised) numbers of the patches `wanted` (B, W): (B, W, values of a patch).

        `tokens` (B, 1 + K, encoder width) are the encoder's output for the visible patches `keep` (B, K), [CLS] first.
        """
        layers = cast(KindLayers, self.kinds[str(kind)])
        seen = self.embed(tokens)
        # Places count [CLS] as 0, so patch i stands at i + 1. Hidden places take the mask token.
        places = torch.cat([torch.zeros_like(keep[:, :1]), keep + 1], dim=1)
        full = self.mask_token.to(seen.dtype).expand(len(seen), len(layers.positions), -1)
        full = full.scatter(1, places.unsqueeze(-1).expand(-1, -1, seen.shape[-1]), seen)
        full = run_blocks(self.blocks, full + layers.positions)
        out: Tensor = layers.predict(self.norm(gather_rows(full, wanted + 1)))
        return out
