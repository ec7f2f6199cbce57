from __future__ import annotations

import pytest
import torch

from medcoss.model.attention import EXPLICIT_UP_TO, SelfAttention, Way, attend, choose
from medcoss.model.precision import autocast_dtype


@pytest.mark.parametrize("way", list(Way))
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
def test_all_ways_give_attention_and_its_gradients(
    way: Way, padded: bool, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, 9, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3)]
    mask = (torch.arange(9) < torch.tensor([[9], [6]]))[:, None, None, :] if padded else None
    out = attend(parts[0], parts[1], parts[2], mask, way)
    exact = [part.detach().double().requires_grad_() for part in parts]
    scores = exact[0] @ exact[1].transpose(-2, -1) / 8**0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    expected = scores.softmax(-1) @ exact[2]
    assert out.dtype is dtype
    assert (out.double() - expected).abs().max() < tolerance
    for found, wanted in zip(
        torch.autograd.grad(out.double().square().sum(), parts),
        torch.autograd.grad(expected.square().sum(), exact),
        strict=True,
    ):
        assert (found.double() - wanted).abs().max() < 20 * tolerance


def test_the_choice_follows_device_precision_and_length() -> None:
    assert choose(10, torch.float32) is Way.FUSED
    assert choose(EXPLICIT_UP_TO, torch.bfloat16) is Way.EXPLICIT
    assert choose(EXPLICIT_UP_TO + 1, torch.bfloat16) is Way.FUSED_FP32
    assert choose(10, torch.bfloat16, "cuda") is Way.FUSED


@pytest.mark.parametrize("length", [5, EXPLICIT_UP_TO + 2])
def test_taking_gradients_does_not_change_the_output(length: int) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(16, num_heads=2, qkv_bias=True)
    tokens = torch.randn(2, length, 16)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            with torch.no_grad():
                frozen = attention(tokens)
            assert torch.equal(attention(tokens).detach(), frozen)
    with pytest.raises(ValueError, match="bidirectional"):
        attention(tokens, is_causal=True)


def test_precision_follows_the_hardware_only_if_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
    assert autocast_dtype("fp32", cpu) is None
    for has_amx in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=has_amx: {"amx_bf16": found})
        assert autocast_dtype("auto", cpu) is (torch.bfloat16 if has_amx else None)
