"""Lets torchvision, and with it timm, be imported beside a CPU-only torch.

The published torchvision wheel links CUDA's torch. Beside a CPU-only torch its extension does not load, the operators
`nms` and `qnms` are never declared, and importing torchvision fails on them. Declaring their schemas is enough: nothing
here calls them. Where the extension loads this module changes nothing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = ("nms", "qnms")
_declared: list[torch.library.Library] = []  # a Library takes its schemas back when it is collected


def declare() -> bool:
    """Declare the schemas torchvision's import needs; True if this call had to, False if they were there already."""
    if _load_extension() or all(hasattr(torch.ops.torchvision, name) for name in _SCHEMAS):
        return False
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, name):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)
    return True


def _load_extension() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for extension in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(extension))  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return hasattr(torch.ops.torchvision, "nms")
    return False


declare()
