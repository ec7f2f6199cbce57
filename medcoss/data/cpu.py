"""The reference backend: Pillow and NumPy, a batch a thread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medcoss.contracts import Kind
from medcoss.data.decode import Decoder


class CpuBackend:
    """Decodes batches on the calling thread; `threads` batches may be decoded at once."""

    def __init__(self, decoder: Decoder, *, threads: int) -> None:
        self.threads = threads
        self._decoder = decoder

    def decode(self, payloads: Sequence[Any], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor | None]:
        """Inputs and validity as in `Batch`, from stored payloads and their draws ((B, DRAWS), None: no augmentation).

        Raises `Undecodable` with the sample's place in `payloads`.
        """
        decoder = self._decoder
        rows: Sequence[NDArray[np.float64] | None] = [None] * len(payloads) if draws is None else list(draws)
        if decoder.spec.kind is Kind.SEQUENCE:
            ids, valid = decoder.tokenise(payloads)
            return torch.from_numpy(ids), torch.from_numpy(valid)
        inputs = np.empty((len(payloads), *decoder.spec.geometry.shape), np.float32)
        for place, (payload, row) in enumerate(zip(payloads, rows, strict=True)):
            if decoder.spec.kind is Kind.IMAGE:
                inputs[place] = decoder.image(payload, place, row)
            else:
                inputs[place, 0] = decoder.volume(payload, place, row)
        inputs *= decoder.scale
        inputs += decoder.offset
        return torch.from_numpy(inputs), None

    def close(self) -> None:
        """Nothing is held between batches."""
