"""An AdamW that leaves groups of parameters untouched in the steps of others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter, in its own shape."""


class GroupedAdamW(torch.optim.AdamW):
    """AdamW that steps only groups whose `active` is true.

    A learning rate of 0 would keep the weights of an inactive group, but its moments and step count would decay. Here
    a group's weights, moments and step count change in its own steps only.
    """

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the active groups."""
        everything = self.param_groups
        self.param_groups = [group for group in everything if group["active"]]
        try:
            loss: float | None = super().step(closure)
            return loss
        finally:
            self.param_groups = everything

    def ensure_state(self, parameters: Sequence[Tensor]) -> None:
        """Create zero moments and step counts, as AdamW itself would in a parameter's first step."""
        for parameter in parameters:
            if not self.state[parameter]:
                zeros = {key: torch.zeros_like(parameter, memory_format=torch.preserve_format) for key in MOMENTS}
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                self.state[parameter].update({"step": step, **zeros})
