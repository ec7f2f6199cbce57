"""medcoss: continual self-supervised learning over medical modalities.

The names below are imported when they are first used: `import medcoss` alone imports neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medcoss.contracts import Geometry as Geometry
    from medcoss.contracts import Kind as Kind
    from medcoss.contracts import MedcossError as MedcossError
    from medcoss.contracts import ModalitySpec as ModalitySpec
    from medcoss.contracts import UsageError as UsageError
    from medcoss.data.batch import Batch as Batch
    from medcoss.model.architecture import Architecture as Architecture
    from medcoss.model.mae import MaskedModel as MaskedModel
    from medcoss.model.vit import Encoder as Encoder
    from medcoss.model.weights import load_encoder as load
    from medcoss.shards.manifest import Manifest as Manifest
    from medcoss.shards.reader import ShardSet as ShardSet

_HOMES = {
    "Architecture": ("medcoss.model.architecture", "Architecture"),
    "Batch": ("medcoss.data.batch", "Batch"),
    "Encoder": ("medcoss.model.vit", "Encoder"),
    "Geometry": ("medcoss.contracts", "Geometry"),
    "Kind": ("medcoss.contracts", "Kind"),
    "Manifest": ("medcoss.shards.manifest", "Manifest"),
    "MaskedModel": ("medcoss.model.mae", "MaskedModel"),
    "MedcossError": ("medcoss.contracts", "MedcossError"),
    "ModalitySpec": ("medcoss.contracts", "ModalitySpec"),
    "ShardSet": ("medcoss.shards.reader", "ShardSet"),
    "UsageError": ("medcoss.contracts", "UsageError"),
    "load": ("medcoss.model.weights", "load_encoder"),
}

__all__ = [
    "Architecture",
    "Batch",
    "Encoder",
    "Geometry",
    "Kind",
    "Manifest",
    "MaskedModel",
    "MedcossError",
    "ModalitySpec",
    "ShardSet",
    "UsageError",
    "load",
]


def __getattr__(name: str) -> object:
    """Import an exported name from its home; it is looked up once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'medcoss' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value: object = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
