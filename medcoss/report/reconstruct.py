"""What a stage's model makes of samples it sees only in part: masked patches filled in, masked words guessed."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

import numpy as np
import tokenizers
import torch
from torch import Tensor

from medcoss.config import TrainConfig
from medcoss.contracts import MASK_ID, SPECIAL_TOKENS, Kind, UsageError
from medcoss.data.cpu import CpuBackend
from medcoss.data.decode import Decoder
from medcoss.data.loader import tokenizer_of
from medcoss.model.architecture import Architecture
from medcoss.model.mae import MaskedModel
from medcoss.model.mask import keep_patches, mask_tokens
from medcoss.report.page import figure, picture
from medcoss.report.pictures import Pixels, display_range, grey, middle_slice, png, spread
from medcoss.shards.reader import ShardSet

_SHOWN = 4
_GUESSES = 3
_HIDDEN_GREY = 0.5
_ENLARGED_PX = 150


@dataclass(frozen=True)
class Examples:
    """Inputs of some held-out samples: (B, L) ids or (B, C, *size) numbers, and which tokens are real (sequences)."""

    split: str
    inputs: Tensor
    valid: Tensor | None


def examples(shard_set: ShardSet, count: int = _SHOWN) -> Examples | None:
    """Samples of the test split, else the validation, else the train split; None if the set is empty."""
    for name in ("test", "val", "train"):
        if name in shard_set.manifest.splits and shard_set.manifest.splits[name].samples:
            split = shard_set.split(name)
            backend = CpuBackend(Decoder(shard_set.spec, tokenizer_of(shard_set)), threads=1)
            inputs, valid = backend.decode([split.read(place) for place in spread(len(split), count)], None)
            return Examples(name, inputs, valid)
    return None


def reconstructions(model: MaskedModel, shard_set: ShardSet, train: TrainConfig) -> str:
    """HTML that shows the model's pretext task on a few samples, masked as in training with a fixed seed.

    Empty if the set has no samples. Raises `UsageError` if the model was not made for this set.
    """
    shown = examples(shard_set)
    if shown is None:
        return ""
    kind = shard_set.spec.kind
    if kind is Kind.SEQUENCE:
        return _guessed_words(model, shard_set, shown, train.mlm_probability)
    return _filled_pictures(model, kind, shown, train.mask_ratio)


def _filled_pictures(model: MaskedModel, kind: Kind, shown: Examples, ratio: float) -> str:
    architecture = model.architecture
    places = np.arange(len(shown.inputs))
    if tuple(shown.inputs.shape[1:]) != architecture.shape(kind):
        raise UsageError(f"the model takes {architecture.shape(kind)}, the set holds {tuple(shown.inputs.shape[1:])}")
    keep = keep_patches(architecture.n_patches(kind), ratio, seed=0, step=0, positions=places, global_batch=len(places))
    filled = model.reconstruct(shown.inputs, kind, keep)
    hidden = hidden_voxels(architecture, kind, keep)
    rows = []
    for original, mask, result in zip(shown.inputs, hidden, filled, strict=True):
        low, high = (0.0, 1.0) if kind is Kind.IMAGE else display_range(original.numpy())
        seen = torch.where(mask, torch.full_like(original, low + _HIDDEN_GREY * (high - low)), original)
        rows.append(np.concatenate([_view(part, kind, low, high) for part in (original, seen, result)], axis=1))
    what = "middle slices" if kind is Kind.VOLUME else "images"
    caption = f"{shown.split} {what}: original, what the encoder sees, reconstruction (visible patches kept)"
    cells = "".join(picture(png(row), "original, masked, reconstruction", width_px=3 * _ENLARGED_PX) for row in rows)
    return figure(caption, f'<div class="tiles">{cells}</div>')


def hidden_voxels(architecture: Architecture, kind: Kind, keep: Tensor) -> Tensor:
    """(B, 1, *size) bool: which pixels or voxels lie in hidden patches, given the visible ones `keep` (B, K)."""
    grid = architecture.grid(kind)
    hidden = torch.ones(len(keep), architecture.n_patches(kind), dtype=torch.bool)
    hidden.scatter_(1, keep, False)
    mask = hidden.view(len(keep), 1, *grid)
    for axis, size in enumerate(architecture.patch(kind)):
        mask = mask.repeat_interleave(size, dim=2 + axis)
    return mask


def _view(values: Tensor, kind: Kind, low: float, high: float) -> Pixels:
    """An image (C, H, W) or a volume's middle slice as pixels, with a white margin to the right."""
    array = values.numpy()
    if kind is Kind.VOLUME:
        pixels = grey(middle_slice(array[0]), low, high)
    elif array.shape[0] == 3 and not (np.array_equal(array[0], array[1]) and np.array_equal(array[1], array[2])):
        pixels = grey(np.moveaxis(array, 0, 2), low, high)
    else:
        pixels = grey(array.mean(axis=0), low, high)
    colour = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    return np.pad(colour, ((0, 0), (0, max(2, colour.shape[1] // 32)), (0, 0)), constant_values=255)


@torch.no_grad()
def _guessed_words(model: MaskedModel, shard_set: ShardSet, shown: Examples, probability: float) -> str:
    head, valid, ids = model.mlm_head, shown.valid, shown.inputs
    content = tokenizer_of(shard_set)
    if head is None or valid is None or content is None:
        raise UsageError("the model or the set is not one of text")
    tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    _, chosen = mask_tokens(
        ids,
        valid,
        probability,
        vocabulary=shard_set.spec.vocabulary or 0,
        seed=0,
        step=0,
        positions=np.arange(len(ids)),
    )
    # All chosen tokens are hidden here, none kept or swapped as in training: a kept one would be no guess.
    tokens = model.encoder(torch.where(chosen, torch.full_like(ids, MASK_ID), ids), Kind.SEQUENCE, valid=valid)
    texts, right, total = [], 0, 0
    for row in range(len(ids)):
        best = head(tokens[row][chosen[row]]).float().topk(_GUESSES).indices.tolist()
        guesses = iter(best)
        words = []
        for token, hidden, real in zip(ids[row].tolist(), chosen[row].tolist(), valid[row].tolist(), strict=True):
            if hidden:
                guess = next(guesses)
                right, total = right + (guess[0] == token), total + 1
                words.append(_marked(_word(tokenizer, token), [_word(tokenizer, g) for g in guess], guess[0] == token))
            elif real and token >= len(SPECIAL_TOKENS):
                words.append(escape(_word(tokenizer, token)))
        texts.append(f'<div class="snippet">{"".join(words)}</div>')
    caption = (
        f"{shown.split} texts: hidden tokens are marked, their {_GUESSES} likeliest guesses follow; "
        f"{right} of {total} first guesses right"
    )
    return figure(caption, "".join(texts))


def _marked(word: str, guesses: list[str], right: bool) -> str:
    style = ' class="right"' if right else ""
    return f"<mark{style}>{escape(word)}<sub> {escape(' | '.join(guess.strip() for guess in guesses))}</sub></mark>"


def _word(tokenizer: tokenizers.Tokenizer, token: int) -> str:
    """A token as text, with the space it starts with; a placeholder where bytes are no text alone."""
    return str(tokenizer.decode([token], skip_special_tokens=False)) or str(tokenizer.id_to_token(token))
