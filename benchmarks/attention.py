"""Time one attention call, forward and backward, each way: `python -m benchmarks.attention [--threads N]`.

Prints a row for each shape the presets meet, the way `medcoss.model.attention.choose` takes there, and its time over
that of the fastest. Where that ratio is far above 1, change `EXPLICIT_UP_TO`.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from medcoss.model.attention import Way, attend, choose

# name, batch, tokens, heads, width of a head, padded
SHAPES = (
    ("tiny: encoder, 16 patches", 64, 17, 3, 64, False),
    ("tiny: texts of 32", 64, 32, 3, 64, True),
    ("tiny: texts of 64", 64, 64, 3, 64, True),
    ("tiny: decoder, 64 patches", 64, 65, 3, 32, False),
    ("base: encoder, 36 patches", 8, 37, 12, 64, False),
    ("base: encoder, 49 patches", 8, 50, 12, 64, False),
    ("base: texts of 112", 8, 112, 12, 64, True),
    ("base: decoder, 144 patches", 8, 145, 16, 32, False),
    ("base: decoder, 196 patches", 8, 197, 16, 32, False),
)


def milliseconds(
    way: Way, dtype: torch.dtype, shape: tuple[int, int, int, int], padded: bool, training: bool, repeats: int
) -> float:
    """Shortest time of one call, gradients included for `training`."""
    batch, length, heads, width = shape
    packed = torch.randn(batch, length, 3, heads, width, dtype=dtype, requires_grad=training)
    mask = None
    if padded:
        mask = (torch.arange(length) < length - 4).expand(batch, length)[:, None, None, :]
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(query, key, value, mask, way).transpose(1, 2).reshape(batch, length, heads * width)
        if training:
            torch.autograd.grad(out, packed, torch.ones_like(out))
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def main() -> None:
    """Print the table, or with --json one object a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (default 1, as one rank a core)")
    parser.add_argument("--repeats", type=int, default=8, help="calls a row; the shortest counts")
    parser.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.json:
        print(
            f"{'ms a call':28}{'precision':10}{'mode':7}" + "".join(f"{way:>12}" for way in Way) + "   chosen (x best)"
        )
    for name, *sizes, padded in SHAPES:
        batch, length, heads, width = sizes
        for dtype in (torch.bfloat16, torch.float32):
            for training in (True, False):
                times = {
                    way: milliseconds(way, dtype, (batch, length, heads, width), padded, training, arguments.repeats)
                    for way in Way
                }
                chosen = choose(length, dtype)
                ratio = times[chosen] / min(times.values())
                mode, precision = "train" if training else "infer", str(dtype).removeprefix("torch.")
                if arguments.json:
                    row = {"shape": name, "precision": precision, "mode": mode, "ms": times, "chosen": chosen}
                    print(json.dumps(row | {"ratio": ratio}))
                else:
                    cells = "".join(f"{value:12.2f}" for value in times.values())
                    print(f"{name:28}{precision:10}{mode:7}{cells}   {chosen} ({ratio:.2f})")


if __name__ == "__main__":
    main()
