"""One sample, as writers take it and readers give it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medcoss.contracts import MedcossError


@dataclass(eq=False)
class Sample:
    """One sample of a shard set.

    `data` is encoded bytes (UTF-8 text, JPEG, PNG) or a volume (D, H, W) in the stored dtype; writers also take a
    volume as the bytes that `compress_volume` made of it. `subject` is a
    pseudonymous token. `labels` are for evaluation only; `geometry` says how the sample was cut (units in its keys).
    """

    key: str
    data: bytes | np.ndarray[Any, Any]
    subject: str
    labels: dict[str, Any] = field(default_factory=dict)
    geometry: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """What is stored beside the data: key, subject, labels, geometry."""
        return {"key": self.key, "subject": self.subject, "labels": self.labels, "geometry": self.geometry}

    def record_json(self) -> str:
        """`record` as compact JSON; the order of labels is kept, for the first one is what a probe predicts.

        Raises `MedcossError` for values JSON cannot hold.
        """
        try:
            return json.dumps(self.record(), separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise MedcossError(f"sample {self.key}: labels or geometry are not plain JSON: {error}") from error
