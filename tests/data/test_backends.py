"""The CPU backend does what METHOD says, and DALI agrees with it."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from medcoss.contracts import SPECIAL_TOKENS, Augmentation, Field, Geometry, Kind, ModalitySpec, UsageError
from medcoss.data.cpu import CpuBackend
from medcoss.data.dali import DaliBackend
from medcoss.data.decode import Decoder, Undecodable, Window, crop_window, draws, mirrored_axes

MEAN_TOLERANCE = 1.5 / 255
"""Mean absolute difference between the backends' pixels; measured 0.2 / 255."""
LARGEST_TOLERANCE = 12 / 255
"""Largest difference; measured 4 / 255 here, 6 / 255 at the hard edges of real radiographs: Pillow rounds and clips to
8 bits between its horizontal and vertical pass, DALI only at the end."""

ROWS = np.arange(24, dtype=np.int64)


def image_spec(size: int = 64, channels: int = 3, **augmentation: object) -> ModalitySpec:
    chosen = augmentation or {"crop_scale": (0.2, 1.0), "horizontal_flip": 0.5}
    return ModalitySpec(
        "picture", Kind.IMAGE, Geometry((channels, size, size)), (Field("image", "jpeg", "uint8", 1 / 255),), "8 bit",
        Augmentation(**chosen),  # type: ignore[arg-type]
    )  # fmt: skip


def volume_spec(dtype: str = "int16") -> ModalitySpec:
    scale = 1 / 1024 if dtype == "int16" else 1.0
    return ModalitySpec(
        "stack", Kind.VOLUME, Geometry((1, 6, 20, 24)), (Field("volume", "zarr", dtype, scale),), "HU / 1024",
        Augmentation(mirror=0.5),
    )  # fmt: skip


def picture(width: int, height: int, mode: str, seed: int, form: str = "JPEG") -> bytes:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [127 + 95 * np.sin(x / (5 + c) + y / (9 - c) + seed) + rng.normal(0, 8, x.shape) for c in range(3)]
    pixels = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels if mode == "RGB" else pixels[..., 0])
    if form == "JPEG":
        image.save(buffer, form, quality=90, subsampling=0)
    else:
        image.save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(("width", "height", "form"), [(64, 64, "JPEG"), (90, 64, "PNG"), (200, 260, "JPEG")])
def test_dali_agrees_with_the_reference_on_images(width: int, height: int, form: str, mode: str, augment: bool) -> None:
    decoder = Decoder(image_spec())
    payloads = [picture(width, height, mode, seed, form) for seed in range(24)]
    table = draws(3, 7, ROWS) if augment else None
    reference, _ = CpuBackend(decoder, threads=1).decode(payloads, table)
    backend = DaliBackend(decoder, batch_size=32, threads=1)
    other, valid = backend.decode(payloads, table)
    again, _ = backend.decode(payloads[:5], None if table is None else table[:5])
    backend.close()
    assert valid is None and other.shape == reference.shape == (24, 3, 64, 64)
    difference = (other - reference).abs()
    assert difference.mean() < MEAN_TOLERANCE and difference.max() < LARGEST_TOLERANCE
    assert torch.equal(again, other[:5])


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("dtype", ["int16", "float16"])
def test_dali_equals_the_reference_on_volumes(dtype: str, augment: bool) -> None:
    decoder = Decoder(volume_spec(dtype))
    rng = np.random.default_rng(0)
    payloads = [rng.normal(0, 300, (6, 20, 24)).astype(dtype) for _ in range(24)]
    table = draws(3, 7, ROWS) if augment else None
    reference, _ = CpuBackend(decoder, threads=1).decode(payloads, table)
    backend = DaliBackend(decoder, batch_size=24, threads=1)
    other, _ = backend.decode(payloads, table)
    first = other.clone()
    backend.decode(payloads[::-1], table)
    backend.close()
    assert torch.equal(other, reference)
    assert torch.equal(other, first), "a batch must not change when the pipeline runs again"


def test_draws_depend_on_seed_step_and_position_alone() -> None:
    whole = draws(1, 2, np.arange(64))
    assert np.array_equal(draws(1, 2, np.array([5, 63, 0])), whole[[5, 63, 0]])
    assert not np.array_equal(draws(1, 3, np.arange(64)), whole)
    assert not np.array_equal(draws(2, 2, np.arange(64)), whole)
    assert draws(1, 2, np.arange(0)).shape[0] == 0
    assert 0.48 < draws(0, 0, np.arange(4096)).mean() < 0.52


def test_crop_windows_have_the_scale_and_aspect_of_the_spec() -> None:
    augmentation = Augmentation(crop_scale=(0.2, 1.0))
    windows = [crop_window(320, 256, (224, 224), augmentation, row) for row in draws(0, 0, np.arange(4000))]
    area = np.array([w.width * w.height for w in windows]) / (320 * 256)
    aspect = np.array([w.width / w.height for w in windows])
    assert 0.195 < area.min() < 0.22 and 0.95 < area.max() <= 1
    assert 0.73 < aspect.min() < 0.78 and 1.3 < aspect.max() < 1.36
    assert abs(np.log(aspect).mean()) < 0.05 and 0.5 < area.mean() < 0.62
    assert all(w.left + w.width <= 320 and w.top + w.height <= 256 and min(w.left, w.top) >= 0 for w in windows)
    assert {w.left == 0 for w in windows} == {True, False}
    whole = Augmentation(crop_scale=(1.0, 1.0))
    wide = crop_window(1000, 10, (224, 224), whole, draws(0, 0, np.arange(1))[0])
    assert wide == Window(493, 0, 13, 10)  # no try fits: the widest allowed aspect, centred


def test_without_augmentation_the_centre_is_taken() -> None:
    assert crop_window(300, 200, (64, 64), Augmentation((0.2, 1.0)), None) == Window(50, 0, 200, 200)
    assert crop_window(200, 300, (64, 128), Augmentation((0.2, 1.0)), None) == Window(0, 100, 200, 100)
    decoder = Decoder(image_spec())
    payload = picture(64, 64, "L", 0)
    pixels = decoder.image(payload, 0, None)
    assert np.array_equal(pixels[1], np.asarray(Image.open(io.BytesIO(payload))))


def test_flips_and_mirrors_have_their_probabilities() -> None:
    table = draws(0, 0, np.arange(4000))
    payload = picture(64, 64, "L", 1)
    decoder = Decoder(image_spec(crop_scale=None, horizontal_flip=0.5))
    plain = decoder.image(payload, 0, None)
    flipped = [not np.array_equal(decoder.image(payload, 0, row), plain) for row in table[:400]]
    assert 0.42 < np.mean(flipped) < 0.58
    turned = next(row for row, flip in zip(table, flipped, strict=False) if flip)
    assert np.array_equal(decoder.image(payload, 0, turned), plain[:, :, ::-1])
    axes = np.array([mirrored_axes(Augmentation(mirror=0.5), row) for row in table])
    assert np.abs(axes.mean(0) - 0.25).max() < 0.03
    assert 0.5 + 0.5 / 8 - 0.03 < (~axes.any(1)).mean() < 0.5 + 0.5 / 8 + 0.03
    volume = np.arange(6 * 20 * 24).reshape(6, 20, 24)
    row = np.zeros(24)
    row[2] = 0.9
    assert np.array_equal(Decoder(volume_spec()).volume(volume, 0, row), volume[::-1, :, ::-1])


def test_channels_follow_the_spec() -> None:
    colour, grey = picture(70, 70, "RGB", 0), picture(70, 70, "L", 0)
    assert Decoder(image_spec(channels=1)).image(colour, 0, None).shape == (1, 64, 64)
    three = Decoder(image_spec()).image(colour, 0, None)
    assert np.abs(three[0].astype(int) - three[2]).mean() > 5
    # Red stays first (METHOD, section 7.7).
    red = io.BytesIO()
    Image.new("RGB", (64, 64), (250, 20, 20)).save(red, "PNG")
    assert Decoder(image_spec()).image(red.getvalue(), 0, None)[:, 0, 0].tolist() == [250, 20, 20]
    assert np.array_equal(*Decoder(image_spec()).image(grey, 0, None)[:2])


def test_payloads_that_are_no_samples_are_refused_with_their_place() -> None:
    good = picture(64, 64, "L", 0)
    backend = CpuBackend(Decoder(image_spec()), threads=1)
    for bad in (b"", b"no image", good[:300]):
        with pytest.raises(Undecodable) as caught:
            backend.decode([good, bad], None)
        assert caught.value.place == 1
    dali = DaliBackend(Decoder(image_spec()), batch_size=2, threads=1)
    with pytest.raises(Undecodable) as caught:
        dali.decode([good, b"no image"], None)
    dali.close()
    assert caught.value.place == 1
    with pytest.raises(Undecodable, match="voxels"):
        CpuBackend(Decoder(volume_spec()), threads=1).decode([np.zeros((6, 20, 23), np.int16)], None)


def test_specs_and_tokenizers_that_cannot_serve_are_refused(make_set) -> None:
    field = (Field("image", "jpeg", "uint8"),)
    with pytest.raises(UsageError, match="scale"):
        Decoder(ModalitySpec("picture", Kind.IMAGE, Geometry((3, 8, 8)), field, "8 bit"))
    text = make_set(Kind.SEQUENCE, 4)
    with pytest.raises(UsageError, match="brings no tokenizer"):
        Decoder(text.spec, None)
    with pytest.raises(UsageError, match="does not load"):
        Decoder(text.spec, b"{")
    shifted = json.loads(text.file("tokenizer.json"))
    shifted["model"]["vocab"] |= {"[UNK]": 2, "[CLS]": 1}
    shifted["added_tokens"] = []
    with pytest.raises(UsageError, match=r"has \[UNK\] at 2: not 1"):
        Decoder(text.spec, json.dumps(shifted).encode())
    decoder = Decoder(text.spec, text.file("tokenizer.json"))
    long = " ".join(["bab"] * 60).encode()
    ids, valid = decoder.tokenise([long, b"bab dab", b""])
    assert ids.shape == (3, 24) and valid.sum(1).tolist() == [24, 4, 2]
    assert ids[0, [0, 23]].tolist() == [SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]")]
    with pytest.raises(Undecodable, match="not UTF-8"):
        decoder.tokenise([b"bab", b"\xff\xfe"])
