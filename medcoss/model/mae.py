"""The model of pre-training: encoder, decoder and MLM head, their losses, and their parameters by activity."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medcoss.contracts import Kind
from medcoss.model.architecture import Architecture
from medcoss.model.decoder import Decoder
from medcoss.model.embed import PatchEmbedding, gather_rows, patchify, unpatchify
from medcoss.model.heads import MLMHead
from medcoss.model.vit import Encoder

TARGET_EPS = 1e-6


class MaskedModel(nn.Module):
    """Encoder with its pretext tasks: masked patches for images and volumes, masked tokens for sequences.

    `decoder` is None without images and volumes, `mlm_head` is None without sequences.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.encoder = Encoder(architecture)
        visual = set(architecture.kinds) - {Kind.SEQUENCE}
        self.decoder = Decoder(architecture) if visual else None
        self.mlm_head = MLMHead(architecture) if Kind.SEQUENCE in architecture.kinds else None

    def pretext_loss(
        self,
        inputs: Tensor,
        kind: Kind | str,
        *,
        valid: Tensor | None = None,
        keep: Tensor | None = None,
        masked_ids: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """The scalar float32 loss of one batch.

        image, volume: `inputs` (B, C, *size) and `keep` (B, K), the visible patches: mean squared error over the hidden
        patches against their normalised values. sequence: `inputs` (B, L) the true ids, `masked_ids` what the encoder
        sees, `chosen` (B, L) bool what is predicted, `valid` the padding mask: mean cross-entropy over the chosen, 0
        where nothing is chosen. Raises `ValueError` if the mask for the kind is missing or hides nothing.
        """
        kind = Kind(kind)
        if kind is Kind.SEQUENCE:
            if masked_ids is None or chosen is None or self.mlm_head is None:
                raise ValueError("a sequence's pretext loss needs masked_ids and chosen, and a model with an MLM head")
            tokens = self.encoder(masked_ids, kind, valid=valid)
            scores = self.mlm_head(tokens[chosen]).float()
            return F.cross_entropy(scores, inputs[chosen], reduction="sum") / max(len(scores), 1)
        if keep is None:
            raise ValueError(f"the pretext loss of {kind}s needs keep, the visible patches")
        patches = patchify(inputs, self.architecture.patch(kind))
        hidden = _complement(keep, patches.shape[1])
        predicted = self._predict(patches, kind, keep, hidden)
        target, _, _ = normalise_patches(gather_rows(patches, hidden))
        return F.mse_loss(predicted.float(), target)

    @torch.no_grad()
    def reconstruct(self, inputs: Tensor, kind: Kind | str, keep: Tensor) -> Tensor:
        """Images or volumes (B, C, *size) float32 with each hidden patch replaced by its prediction.

        The prediction is of normalised patches: it is shown with the true patch's mean and spread. Visible patches are
        returned exactly as given.
        """
        kind = Kind(kind)
        patches = patchify(inputs, self.architecture.patch(kind))
        hidden = _complement(keep, patches.shape[1])
        predicted = self._predict(patches, kind, keep, hidden)
        _, mean, spread = normalise_patches(gather_rows(patches, hidden))
        filled = patches.float().scatter(
            1, hidden.unsqueeze(-1).expand_as(predicted), predicted.float() * spread + mean
        )
        return unpatchify(filled, self.architecture.shape(kind), self.architecture.patch(kind))

    def _predict(self, patches: Tensor, kind: Kind, keep: Tensor, hidden: Tensor) -> Tensor:
        if self.decoder is None or hidden.shape[1] == 0:
            raise ValueError(f"nothing to predict: {patches.shape[1]} patches of {kind}s, all of them visible")
        embedder = cast(PatchEmbedding, self.encoder.embedders[str(kind)])
        tokens = self.encoder.encode_tokens(embedder.embed_patches(patches, keep))
        out: Tensor = self.decoder(tokens, kind, keep, hidden)
        return out


def normalise_patches(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """((x - mean) / spread, mean, spread) of each patch, float32; spread = sqrt(unbiased variance + 1e-6)."""
    values = patches.float()
    variance, mean = torch.var_mean(values, dim=-1, keepdim=True)
    spread = (variance + TARGET_EPS).sqrt()
    return (values - mean) / spread, mean, spread


def _complement(keep: Tensor, count: int) -> Tensor:
    """Indices 0..count-1 absent from each row of `keep` (B, K), ascending: (B, count - K)."""
    seen = torch.zeros(len(keep), count, dtype=torch.uint8, device=keep.device).scatter_(1, keep, 1)
    return seen.argsort(dim=1, stable=True)[:, : count - keep.shape[1]]


def parameter_groups(model: MaskedModel) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Every parameter, once, by the part of the model that is active or idle as a whole.

    `shared` (encoder blocks), `cls` ([CLS] of images and volumes), `embed.KIND` (tokenizers), `decoder` (what images
    and volumes share of it), `decoder.KIND` (positions and prediction), `mlm_head`. Groups of absent kinds are absent.
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault(_group_of(name), []).append((name, parameter))
    return groups


def _group_of(name: str) -> str:
    match name.split("."):
        case ["encoder", "embedders", kind, *_]:
            return f"embed.{kind}"
        case ["encoder", "cls"]:
            return "cls"
        case ["encoder", "blocks", *_]:
            return "shared"
        case ["decoder", "kinds", kind, *_]:
            return f"decoder.{kind}"
        case ["decoder" | "mlm_head" as part, *_]:
            return part
    raise ValueError(f"parameter {name} belongs to no group")


def active_groups(kind: Kind | str, *, replay: bool) -> set[str]:
    """Groups that take gradients in a step of `kind`; `replay` (distillation) uses neither decoder nor head."""
    kind = Kind(kind)
    groups = {"shared", f"embed.{kind}"}
    if kind is Kind.SEQUENCE:
        return groups if replay else groups | {"mlm_head"}
    groups.add("cls")
    return groups if replay else groups | {"decoder", f"decoder.{kind}"}
