"""One encoder for sequences, images and volumes."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from medcoss.contracts import Kind, UsageError
from medcoss.model.architecture import Architecture
from medcoss.model.attention import SelfAttention
from medcoss.model.embed import LAYER_NORM_EPS, PatchEmbedding, TextEmbedding, build_embedder


def run_blocks(blocks: nn.ModuleList, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Tokens (B, L, D) through pre-norm blocks; `mask` (B, 1, 1, L) bool is True where a key may be seen."""
    for block in blocks:
        tokens = block(tokens, attn_mask=mask)
    return tokens


def initialise_blocks(module: nn.Module) -> None:
    """Xavier weights and zero biases for every linear layer under `module`; LayerNorms stay as they are made."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class Encoder(nn.Module):
    """Tokenizers by kind, then one stack of pre-norm transformer blocks without a final norm.

    `embedders` holds the tokenizers of the kinds the architecture has, by name. Text brings its own [CLS] as its first
    token; images and volumes are given the learned `cls`.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.embedders = nn.ModuleDict({str(kind): build_embedder(architecture, kind) for kind in architecture.kinds})
        self.register_parameter("cls", None)
        if set(architecture.kinds) - {Kind.SEQUENCE}:
            self.cls = nn.Parameter(torch.empty(architecture.width))
            nn.init.normal_(self.cls, std=0.02)
        self.blocks = nn.ModuleList(
            Block(
                architecture.width,
                architecture.heads,
                architecture.mlp_ratio,
                qkv_bias=True,
                init_values=architecture.layer_scale,
                drop_path=architecture.drop_path,
                attn_layer=SelfAttention,
                norm_layer=partial(nn.LayerNorm, eps=LAYER_NORM_EPS),  # type: ignore[arg-type]
            )
            for _ in range(architecture.depth)
        )
        initialise_blocks(self.blocks)

    def forward(
        self, inputs: Tensor, kind: Kind | str, *, valid: Tensor | None = None, keep: Tensor | None = None
    ) -> Tensor:
        """Output tokens.

        sequence: `inputs` (B, L) int64 ids, `valid` (B, L) bool (True: a real token; None: all): tokens (B, L, width).
        image, volume: `inputs` (B, C, *size) float, `keep` (B, K) int64 patch indices (None: all): tokens
        (B, 1 + K, width), [CLS] first; patches not kept are never read. Raises `UsageError` if the model was not built
        for `kind`, `ValueError` for inputs of another shape.
        """
        kind = Kind(kind)
        embedder = self._embedder(kind)
        if isinstance(embedder, TextEmbedding):
            mask = None if valid is None else valid[:, None, None, :]
            return run_blocks(self.blocks, embedder(inputs), mask)
        return self.encode_tokens(embedder(inputs, keep))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Embedded patches (B, K, width) to output tokens (B, 1 + K, width), [CLS] first."""
        cls = self.cls.to(tokens.dtype).expand(len(tokens), 1, -1)
        return run_blocks(self.blocks, torch.cat([cls, tokens], dim=1))

    @torch.no_grad()
    def embed(self, inputs: Tensor, kind: Kind | str, valid: Tensor | None = None) -> Tensor:
        """One vector a sample: the mean of the real output tokens without [CLS] and padding, (B, width) float32.

        Always computed as in evaluation (no drop path, nothing masked, no gradient), whatever mode the encoder is in.
        """
        training = self.training
        self.eval()
        try:
            tokens = self(inputs, kind, valid=valid)[:, 1:].float()
        finally:
            self.train(training)
        if valid is None or Kind(kind) is not Kind.SEQUENCE:
            return cast(Tensor, tokens.mean(dim=1))
        weight = valid[:, 1:, None].float()
        return cast(Tensor, (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1.0))

    def _embedder(self, kind: Kind) -> TextEmbedding | PatchEmbedding:
        if kind not in self.architecture.kinds:
            built = ", ".join(self.architecture.kinds)
            raise UsageError(f"this encoder takes no {kind}: it was built for {built}")
        return cast("TextEmbedding | PatchEmbedding", self.embedders[str(kind)])
