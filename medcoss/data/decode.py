"""Stored payloads to model inputs, by kind: the reference implementation that every backend must agree with.

What augmentation does to a sample is drawn here as numbers, from (seed, step, position) and nothing else; backends only
carry it out.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
from numpy.typing import NDArray
from PIL import Image

from medcoss.contracts import (
    CLS_ID,
    PAD_ID,
    SEP_ID,
    SPECIAL_TOKENS,
    Augmentation,
    Kind,
    ModalitySpec,
    UsageError,
    derive_seed,
)

DRAWS = 24
"""Uniform numbers a sample may use: 10 tries of (area, aspect), a corner (2), a flip; a volume uses the first four."""

_TRIES = 10
_LOG_ASPECT = (math.log(3 / 4), math.log(4 / 3))


class Undecodable(Exception):  # noqa: N818 - names the state of a sample; the loader turns it into the user's error
    """A payload that is no valid sample: its `place` in the batch and what is wrong with it."""

    def __init__(self, place: int, what: str) -> None:
        super().__init__(what)
        self.place = place
        self.what = what


@dataclass(frozen=True)
class Window:
    """A rectangle of an image in whole pixels, to be resized to the model's size."""

    left: int
    top: int
    width: int
    height: int


def draws(seed: int, step: int, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """(B, DRAWS) uniform numbers in [0, 1): row p of the endless table of (seed, step), for each p in `positions`."""
    rows = int(positions.max()) + 1 if len(positions) else 0
    table = np.random.Generator(np.random.Philox(key=derive_seed(seed, "augment", step))).random((rows, DRAWS))
    return table[positions]


def crop_window(
    width: int, height: int, target: tuple[int, int], augmentation: Augmentation, draw: NDArray[np.float64] | None
) -> Window:
    """The part of a `width` x `height` image that becomes the model's input of `target` (height, width) pixels.

    With a draw and a `crop_scale`: RandomResizedCrop's window (area fraction uniform in the scale, aspect
    log-uniform in 3/4 to 4/3, ten tries, else the largest centred window of an allowed aspect). Without: the largest
    centred window of the target's aspect, which is what resizing the short side and cropping the centre takes.
    """
    if draw is None or augmentation.crop_scale is None:
        return _centred(width, height, target[1] / target[0])
    low, high = augmentation.crop_scale
    for area_draw, aspect_draw in draw[: 2 * _TRIES].reshape(_TRIES, 2):
        area = (low + (high - low) * area_draw) * width * height
        aspect = math.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * aspect_draw)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(draw[2 * _TRIES] * (width - w + 1))
            return Window(left, int(draw[2 * _TRIES + 1] * (height - h + 1)), w, h)
    return _centred(width, height, min(max(width / height, math.exp(_LOG_ASPECT[0])), math.exp(_LOG_ASPECT[1])))


def flips_horizontally(augmentation: Augmentation, draw: NDArray[np.float64] | None) -> bool:
    """Whether an image is flipped left to right."""
    return draw is not None and bool(draw[2 * _TRIES + 2] < augmentation.horizontal_flip)


def mirrored_axes(augmentation: Augmentation, draw: NDArray[np.float64] | None) -> tuple[bool, bool, bool]:
    """Which of a volume's axes (depth, height, width) are reversed."""
    if draw is None or draw[0] >= augmentation.mirror:
        return (False, False, False)
    return (bool(draw[1] < 0.5), bool(draw[2] < 0.5), bool(draw[3] < 0.5))


class Decoder:
    """Decodes one modality's payloads as its spec says.

    `tokenizer` is the content of the set's tokenizer.json (sequences only). Raises `UsageError` for a spec that this
    version cannot serve; the methods raise `Undecodable` for a payload that is no sample.
    """

    def __init__(self, spec: ModalitySpec, tokenizer: bytes | None = None) -> None:
        self.spec = spec
        self.scale = np.float32(spec.fields[0].scale)
        self.offset = np.float32(spec.fields[0].offset)
        self._tokenizer = _tokenizer(spec, tokenizer) if spec.kind is Kind.SEQUENCE else None
        if spec.kind is Kind.IMAGE:
            ends = (float(self.offset), float(255 * self.scale + self.offset))
            if min(ends) < -1e-6 or max(ends) > 1 + 1e-6:
                raise UsageError(f"set {spec.name}: pixels 0 and 255 mean {ends}: a spec's scale must lead into [0, 1]")
        if spec.kind is Kind.VOLUME and spec.geometry.shape[0] != 1:
            raise UsageError(f"set {spec.name}: volumes of {spec.geometry.shape[0]} channels: only one is supported")

    def tokenise(self, payloads: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(B, L) int64 ids and (B, L) bool validity: [CLS], the text's tokens, [SEP], then padding.

        L is the longest member; the spec's length cuts the text, never its [SEP].
        """
        assert self._tokenizer is not None, "only sequence sets have a tokenizer"
        texts = []
        for place, payload in enumerate(payloads):
            try:
                texts.append(bytes(payload).decode("utf-8"))
            except UnicodeDecodeError as error:
                raise Undecodable(place, f"not UTF-8 text ({error.reason} at byte {error.start})") from error
        room = self.spec.geometry.shape[0] - 2
        coded = [item.ids[:room] for item in self._tokenizer.encode_batch(texts, add_special_tokens=False)]
        ids = np.full((len(coded), max(map(len, coded), default=0) + 2), PAD_ID, np.int64)
        valid = np.zeros(ids.shape, np.bool_)
        for row, tokens in enumerate(coded):
            ids[row, : len(tokens) + 2] = [CLS_ID, *tokens, SEP_ID]
            valid[row, : len(tokens) + 2] = True
        return ids, valid

    def window(self, payload: bytes, place: int, draw: NDArray[np.float64] | None) -> Window:
        """The crop window of an encoded image, from its header alone."""
        with _open(payload, place) as image:
            return crop_window(*image.size, self._size, self.spec.augmentation, draw)

    def image(self, payload: bytes, place: int, draw: NDArray[np.float64] | None) -> NDArray[np.uint8]:
        """(C, H, W) uint8: decoded, cropped, resized (bicubic, antialiased), flipped; one stored channel becomes C."""
        height, width = self._size
        channels = self.spec.geometry.shape[0]
        with _open(payload, place) as image:
            mode = "L" if channels == 1 or image.mode in ("1", "L", "LA") else "RGB"
            try:
                # No draft(): the JPEG decoder's reduced sizes give other pixels than a full decode does.
                pixels = image if image.mode == mode else image.convert(mode)
                window = crop_window(*image.size, self._size, self.spec.augmentation, draw)
                corner = (window.left + window.width, window.top + window.height)
                # Cropped first: resize(box=...) would let pixels outside the window into its edges.
                part = pixels.crop((window.left, window.top, *corner))
                array = np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))
            except (OSError, SyntaxError, ValueError) as error:
                raise Undecodable(place, f"damaged image ({error})") from error
        if flips_horizontally(self.spec.augmentation, draw):
            array = array[:, ::-1]
        if array.ndim == 2:
            return np.broadcast_to(array, (channels, height, width))
        return np.moveaxis(array, 2, 0)

    def check_volume(self, payload: NDArray[np.generic], place: int) -> NDArray[np.generic]:
        """The stored (D, H, W) volume if it has the spec's shape."""
        if payload.shape != self.spec.geometry.shape[1:]:
            raise Undecodable(place, f"volume of {payload.shape} voxels, the set's are {self.spec.geometry.shape[1:]}")
        return payload

    def volume(self, payload: NDArray[np.generic], place: int, draw: NDArray[np.float64] | None) -> NDArray[np.generic]:
        """(D, H, W) in the stored type: a mirrored view of the stored volume."""
        axes = mirrored_axes(self.spec.augmentation, draw)
        return self.check_volume(payload, place)[tuple(slice(None, None, -1 if axis else 1) for axis in axes)]

    @property
    def _size(self) -> tuple[int, int]:
        return self.spec.geometry.shape[1], self.spec.geometry.shape[2]


def _open(payload: bytes, place: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(payload), formats=("JPEG", "PNG"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Undecodable(place, f"no JPEG or PNG image ({type(error).__name__})") from error


def _centred(width: int, height: int, aspect: float) -> Window:
    """The largest window of `aspect` (width / height) in the middle of the image."""
    w = min(width, max(1, round(height * aspect)))
    h = min(height, max(1, round(width / aspect)))
    return Window((width - w) // 2, (height - h) // 2, w, h)


def _tokenizer(spec: ModalitySpec, content: bytes | None) -> tokenizers.Tokenizer:
    if content is None:
        raise UsageError(f"set {spec.name} is text but brings no tokenizer.json: make the set again with preprocess")
    try:
        json.loads(content)  # the library's own error for a damaged file is a bare Exception
        tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except ValueError as error:
        raise UsageError(f"set {spec.name}: tokenizer.json does not load ({error}): make the set again") from error
    for number, token in enumerate(SPECIAL_TOKENS):
        if tokenizer.token_to_id(token) != number:
            raise UsageError(
                f"set {spec.name}: tokenizer.json has {token} at {tokenizer.token_to_id(token)}: not {number}"
            )
    # Lengths are cut and padded here, to the batch: a file's own settings must not interfere.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
