"""What is measured while training: metrics.jsonl, a progress line, a trace of every step."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from medcoss.atomic import write_bytes
from medcoss.contracts import MedcossError
from medcoss.data.batch import Batch

PLAIN_SECONDS = 10.0
"""Seconds between progress lines where output is no terminal."""


class Meter:
    """Sums between two logging steps, by source of the order; losses stay on the device until they are read."""

    def __init__(self, modalities: Sequence[str], device: torch.device, peak: float) -> None:
        """`modalities[i]` names source i; `peak` is this rank's possible operations a second."""
        self._modalities, self._device, self._peak = modalities, device, peak
        self._waited = 0.0
        self._reset()

    def _reset(self) -> None:
        sources = len(self._modalities)
        self._losses = torch.zeros(sources, dtype=torch.float32, device=self._device)
        self._steps, self._kinds = [0] * sources, [("pretext", False)] * sources
        self._samples = self._tokens = self._flops = 0.0
        self._begun = time.perf_counter()

    def add(
        self, source: int, batch: Batch, loss: Tensor, *, distilled: bool, samples: int, tokens: float, flops: float
    ) -> None:
        """Count one step. `loss` is this rank's; `samples`, `tokens` and `flops` are of the whole global batch."""
        self._losses[source] += loss.detach()
        self._steps[source] += 1
        self._kinds[source] = ("distill" if distilled else "pretext", batch.is_replay)
        self._samples += samples
        self._tokens += tokens
        self._flops += flops

    def read(self, *, step: int, stage: str, lr: float, grad_norm: float | None, waited: float) -> list[dict[str, Any]]:
        """A record for each source of the window that ends with `step`, and a fresh window. A collective.

        `waited` is the loader's total of seconds so far. Raises `MedcossError` for a loss that is not finite.
        """
        size = torch.distributed.get_world_size()
        torch.distributed.all_reduce(self._losses)
        losses = (self._losses / size).tolist()
        elapsed = max(time.perf_counter() - self._begun, 1e-9)
        wait, self._waited = max(waited - self._waited, 0.0), waited
        shared = {
            "step": step,
            "stage": stage,
            "lr": lr,
            "grad_norm": grad_norm,
            "samples_per_s": self._samples / elapsed,
            "tokens_per_s": self._tokens / elapsed,
            "data_wait_fraction": min(wait / elapsed, 1.0),
            "flops_utilisation": self._flops / elapsed / (self._peak * size),
            "peak_memory_bytes": peak_memory(self._device),
        }
        records = []
        for source, steps in enumerate(self._steps):
            if steps:
                kind, is_replay = self._kinds[source]
                mean = losses[source] / steps
                if not torch.isfinite(torch.tensor(mean)):
                    raise MedcossError(f"stage {stage}: loss is {mean} before step {step}: lower train.base_lr")
                loss = {"pretext": None, "distill": None} | {kind: mean}
                record = {"modality": self._modalities[source], "is_replay": is_replay, "steps": steps, "loss": loss}
                records.append(shared | record)
        self._reset()
        return records


def peak_memory(device: torch.device) -> int:
    """Most bytes this rank has held: of the GPU's memory, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Log:
    """Appends records to metrics.jsonl (rank 0 only has a path)."""

    def __init__(self, path: Path | None, *, start_step: int) -> None:
        """Continue after `start_step`: later records, of steps lost with a killed process, are dropped."""
        self._path = path
        if path is not None:
            kept = (
                [line for line in _complete_lines(path) if json.loads(line)["step"] <= start_step] if start_step else []
            )
            write_bytes(path, "".join(line + "\n" for line in kept).encode())

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Write a line for each record."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in records)


def _complete_lines(path: Path) -> list[str]:
    """Lines that a killed writer did not leave half-written."""
    if not path.is_file():
        return []
    return path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0].splitlines()


class Trace:
    """trace-RANK.jsonl: for every step its modality, a hash of the samples' keys and the exact loss."""

    def __init__(self, path: Path | None) -> None:
        self._file = None if path is None else path.open("a", encoding="utf-8")

    def add(self, batch: Batch, loss: Tensor) -> None:
        """Write one line."""
        if self._file is not None:
            record = {
                "step": batch.step,
                "modality": batch.modality,
                "is_replay": batch.is_replay,
                "keys": hashlib.sha256("\n".join(batch.keys).encode()).hexdigest(),
                "loss": float(loss.detach()).hex(),
            }
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class Display:
    """The line a person sees: redrawn on a terminal, a plain line every few seconds elsewhere; rank 0 only."""

    def __init__(self, stage: str, total_steps: int, step: int, *, shown: bool, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._stage, self._total, self._first, self._shown = stage, total_steps, step, shown
        # Under a launcher the ranks' stderr is the launcher's, so a terminal is still a terminal.
        self._terminal = self._stream.isatty() and os.environ.get("TERM", "") != "dumb"
        self._begun = time.monotonic()
        self._last = -PLAIN_SECONDS if self._terminal else self._begun - PLAIN_SECONDS
        self._losses: dict[str, float] = {}

    def update(self, step: int, records: Sequence[dict[str, Any]]) -> None:
        """Show the state after `step` steps."""
        if not self._shown or not records:
            return
        for record in records:
            name = record["modality"] + (" (replay)" if record["is_replay"] else "")
            self._losses[name] = next(value for value in record["loss"].values() if value is not None)
        now = time.monotonic()
        finished = step >= self._total
        if not self._terminal and now - self._last < PLAIN_SECONDS and not finished:
            return
        self._last = now
        left = (now - self._begun) / max(step - self._first, 1) * (self._total - step)
        losses = ", ".join(f"{name} {value:.4f}" for name, value in self._losses.items())
        text = (
            f"stage {self._stage}: step {step}/{self._total}, loss {losses}, "
            f"{records[0]['samples_per_s']:.0f} samples/s, {int(left // 60)}:{int(left % 60):02d} left"
        )
        # A terminal that was closed must not end the training.
        with suppress(OSError):
            if self._terminal:
                print(f"\r\x1b[K{text}", end="\n" if finished else "", file=self._stream, flush=True)
            else:
                print(text, file=self._stream, flush=True)
