"""What a step computes: masks and mixtures drawn outside the model, then the pretext or the distillation loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medcoss.config import RunConfig
from medcoss.continual.distill import Teacher, distillation_loss
from medcoss.continual.mixup import mix
from medcoss.contracts import Kind
from medcoss.data.batch import Batch
from medcoss.model.mae import MaskedModel, active_groups
from medcoss.model.mask import keep_patches, mask_tokens
from medcoss.model.precision import autocast_dtype


@dataclass(frozen=True)
class StepInputs:
    """All of one micro batch that the model is given; equal inputs give an equal loss (but for drop path).

    `inputs` and `valid` as in `Batch`. image, volume: `keep` (B, K), the visible patches. sequence: `masked_ids` and
    `chosen` (B, L) for the pretext loss. `target` (B, L, width): the teacher's output tokens, if this is distilled.
    """

    kind: Kind
    inputs: Tensor
    valid: Tensor | None
    keep: Tensor | None = None
    masked_ids: Tensor | None = None
    chosen: Tensor | None = None
    target: Tensor | None = None


class Pretraining(nn.Module):
    """The trained module: `forward` gives the scalar loss of one micro batch."""

    def __init__(self, model: MaskedModel, *, autocast: torch.dtype | None) -> None:
        """`autocast` is the type of matrix products over the float32 weights (None: float32)."""
        super().__init__()
        self.model = model
        self._autocast = autocast

    def forward(self, step: StepInputs) -> Tensor:
        """The distillation loss if a target is given, else the pretext loss; float32 scalar."""
        with autocast(step.inputs.device, self._autocast):
            if step.target is not None:
                tokens = self.model.encoder(step.inputs, step.kind, valid=step.valid, keep=step.keep)
                return distillation_loss(tokens, step.target, step.valid)
            return self.model.pretext_loss(
                step.inputs,
                step.kind,
                valid=step.valid,
                keep=step.keep,
                masked_ids=step.masked_ids,
                chosen=step.chosen,
            )


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Autocast to `dtype` on `device`; None turns it off."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


class Task:
    """Turns batches into `StepInputs`. All randomness is a function of (seed, step, place in the global batch)."""

    def __init__(
        self, config: RunConfig, model: MaskedModel, teacher: Teacher | None, device: torch.device, *, seed: int
    ) -> None:
        self._config, self._teacher, self._device, self._seed = config, teacher, device, seed
        self._architecture = model.architecture
        self.autocast = autocast_dtype(config.train.precision, device)
        """Type of matrix products; None is float32."""

    def distils(self, batch: Batch) -> bool:
        """Whether the batch is distilled from the teacher: replayed batches are, if there is a teacher."""
        return batch.is_replay and self._teacher is not None

    def active(self, batch: Batch) -> set[str]:
        """Parameter groups this batch updates."""
        return active_groups(batch.kind, replay=self.distils(batch))

    def prepare(self, batch: Batch, first: int, count: int) -> StepInputs:
        """Samples `first` to `first + count` of a rank's batch, masked and (if distilled) mixed and taught."""
        rows = slice(first, first + count)
        inputs = batch.inputs[rows].to(self._device, non_blocking=True)
        valid = None if batch.valid is None else batch.valid[rows].to(self._device, non_blocking=True)
        positions = batch.positions[rows]
        distils = self.distils(batch)
        if distils and self._config.continual.mixup:
            inputs, valid = mix(
                inputs, valid, batch.kind, seed=self._seed, step=batch.step, part=int(positions[0]) if count else 0
            )
        train = self._config.train
        if batch.kind is not Kind.SEQUENCE:
            keep = keep_patches(
                self._architecture.n_patches(batch.kind),
                train.mask_ratio,
                seed=self._seed,
                step=batch.step,
                positions=positions,
                global_batch=train.global_batch,
            ).to(self._device, non_blocking=True)
            target = self._teach(inputs, batch.kind, valid, keep) if distils else None
            return StepInputs(batch.kind, inputs, valid, keep=keep, target=target)
        assert valid is not None and self._architecture.vocabulary is not None
        if distils and not self._config.continual.distill_masked_text:
            return StepInputs(batch.kind, inputs, valid, target=self._teach(inputs, batch.kind, valid, None))
        masked_ids, chosen = mask_tokens(
            inputs,
            valid,
            train.mlm_probability,
            vocabulary=self._architecture.vocabulary,
            seed=self._seed,
            step=batch.step,
            positions=positions,
        )
        if distils:
            return StepInputs(batch.kind, masked_ids, valid, target=self._teach(masked_ids, batch.kind, valid, None))
        return StepInputs(batch.kind, inputs, valid, masked_ids=masked_ids, chosen=chosen)

    def _teach(self, inputs: Tensor, kind: Kind, valid: Tensor | None, keep: Tensor | None) -> Tensor:
        assert self._teacher is not None
        with autocast(self._device, self.autocast):
            tokens: Tensor = self._teacher(inputs, kind, valid, keep)
        return tokens
