"""The DALI backend: images and volumes decoded and augmented by a DALI pipeline; the only module that imports DALI.

It carries out the very draws of `decode`, so its batches equal the CPU backend's within the decoders' rounding. Text
goes through the shared decoder.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch.utils.dlpack
from numpy.typing import NDArray
from torch import Tensor

from medcoss.contracts import Kind, ModalitySpec, UsageError
from medcoss.data.cpu import CpuBackend
from medcoss.data.decode import Decoder, Undecodable, flips_horizontally, mirrored_axes


def is_installed() -> bool:
    """Whether DALI is on this machine; a broken installation counts as installed and fails on use."""
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


class DaliBackend:
    """Decodes batches of at most `batch_size` samples of one set in a DALI pipeline of `threads` threads.

    `device_id` None runs the whole pipeline on the CPU; a number decodes JPEGs by the mixed decoder and does the rest
    on that GPU, where the tensors stay. Raises `UsageError` if DALI is not installed.
    """

    threads = 1
    """Batches that may be decoded at once: a pipeline runs on one caller's thread and is parallel inside."""

    def __init__(self, decoder: Decoder, *, batch_size: int, threads: int, device_id: int | None = None) -> None:
        if not is_installed():
            raise UsageError("data.backend is dali, but DALI is not installed: install nvidia-dali or take cpu")
        self._decoder = decoder
        self._reference = CpuBackend(decoder, threads=1)
        self._pipeline: Any = None
        if decoder.spec.kind is not Kind.SEQUENCE:
            self._pipeline = _build(decoder.spec, batch_size, threads, device_id)

    def decode(self, payloads: Sequence[Any], draws: NDArray[np.float64] | None) -> tuple[Tensor, Tensor | None]:
        """As `CpuBackend.decode`."""
        if self._pipeline is None:
            return self._reference.decode(payloads, draws)
        if self._decoder.spec.kind is Kind.IMAGE:
            feeds = self._image_feeds(payloads, draws)
        else:
            feeds = self._volume_feeds(payloads, draws)
        for name, arrays in feeds.items():
            self._pipeline.feed_input(name, arrays)
        try:
            (output,) = self._pipeline.run()
        except RuntimeError as error:
            # DALI names no sample: the reference decoder finds the one at fault, if it too refuses it.
            self._reference.decode(payloads, draws)
            raise Undecodable(0, f"DALI refuses a sample of its batch ({str(error).splitlines()[0]})") from error
        # The pipeline reuses its output buffer in the next run: the batch needs its own.
        return torch.utils.dlpack.from_dlpack(output.as_tensor()).clone(), None

    def close(self) -> None:
        """Release the pipeline's threads and buffers."""
        self._pipeline = None

    def _image_feeds(self, payloads: Sequence[bytes], draws: NDArray[np.float64] | None) -> dict[str, list[Any]]:
        feeds: dict[str, list[Any]] = {"encoded": [], "start": [], "extent": [], "flip": []}
        for place, payload in enumerate(payloads):
            row = None if draws is None else draws[place]
            window = self._decoder.window(payload, place, row)
            feeds["encoded"].append(np.frombuffer(payload, np.uint8))
            feeds["start"].append(np.array((window.top, window.left), np.int32))
            feeds["extent"].append(np.array((window.height, window.width), np.int32))
            feeds["flip"].append(np.array(flips_horizontally(self._decoder.spec.augmentation, row), np.int32))
        return feeds

    def _volume_feeds(
        self, payloads: Sequence[NDArray[np.generic]], draws: NDArray[np.float64] | None
    ) -> dict[str, list[Any]]:
        feeds: dict[str, list[Any]] = {"stored": [], "depthwise": [], "vertical": [], "horizontal": []}
        for place, payload in enumerate(payloads):
            row = None if draws is None else draws[place]
            feeds["stored"].append(np.ascontiguousarray(self._decoder.check_volume(payload, place))[..., None])
            axes = mirrored_axes(self._decoder.spec.augmentation, row)
            for name, axis in zip(("depthwise", "vertical", "horizontal"), axes, strict=True):
                feeds[name].append(np.array(axis, np.int32))
        return feeds


def _build(spec: ModalitySpec, batch_size: int, threads: int, device_id: int | None) -> Any:
    """A built pipeline that is fed a batch, run once and read once: prefetching is the loader's."""
    pipeline = _module("nvidia.dali").Pipeline(
        batch_size=batch_size, num_threads=threads, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=False,
        exec_async=False, exec_pipelined=False,
    )  # fmt: skip
    device: Literal["cpu", "gpu"] = "cpu" if device_id is None else "gpu"
    with pipeline:
        pipeline.set_outputs(_images(spec, device) if spec.kind is Kind.IMAGE else _volumes(spec, device))
    pipeline.build()
    return pipeline


def _images(spec: ModalitySpec, device: Literal["cpu", "gpu"]) -> Any:
    """Encoded bytes and windows to (C, H, W) float32."""
    fn, types = _module("nvidia.dali.fn"), _module("nvidia.dali.types")

    channels, height, width = spec.geometry.shape
    decoded = fn.decoders.image_slice(
        fn.external_source(name="encoded"),
        fn.external_source(name="start"),
        fn.external_source(name="extent"),
        device="mixed" if device == "gpu" else "cpu",
        axes=(0, 1),
        output_type=types.GRAY if channels == 1 else types.RGB,
        # As the reference: stored pixels as they lie, chroma interpolated, exact inverse transform.
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
    )
    resized = fn.resize(
        decoded, resize_x=width, resize_y=height, interp_type=types.INTERP_CUBIC, antialias=True, device=device
    )
    field = spec.fields[0]
    return fn.crop_mirror_normalize(
        resized,
        mirror=fn.external_source(name="flip"),
        mean=[0.0] * channels,
        std=[1.0] * channels,
        scale=field.scale,
        shift=field.offset,
        dtype=types.FLOAT,
        output_layout="CHW",
        device=device,
    )


def _volumes(spec: ModalitySpec, device: Literal["cpu", "gpu"]) -> Any:
    """Stored (D, H, W, 1) numbers to (1, D, H, W) float32."""
    fn, types = _module("nvidia.dali.fn"), _module("nvidia.dali.types")

    stored = fn.external_source(name="stored", layout="DHWC")
    moved = stored.gpu() if device == "gpu" else stored
    flipped = fn.flip(
        fn.cast(moved, dtype=types.FLOAT),
        depthwise=fn.external_source(name="depthwise"),
        vertical=fn.external_source(name="vertical"),
        horizontal=fn.external_source(name="horizontal"),
    )
    field = spec.fields[0]
    scaled = flipped * np.float32(field.scale) + np.float32(field.offset)
    return fn.reshape(scaled, shape=list(spec.geometry.shape), layout="CDHW")


def _module(name: str) -> Any:
    """A DALI module, imported on use; its annotations disagree with its own operators, hence `Any`."""
    return importlib.import_module(name)
