"""X-ray: stored values to what a reader would see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from preprocess.conversion import Refusal
from preprocess.readers import radiograph
from tests.support.radiographs import radiograph_of, ramp


def shown(stored: np.ndarray, **header: Any) -> np.ndarray:
    picture, _ = radiograph.present(radiograph_of(stored, **header), stored)
    return picture


def test_linear_window_follows_the_standard() -> None:
    picture = shown(ramp(), WindowCenter="2048", WindowWidth="1025").ravel()
    assert picture[0] == 0
    assert picture[4095] == 255
    assert picture[1535] == 0  # c - 0.5 - (w - 1) / 2 = 1535.5
    assert picture[2560] == 255
    assert picture[1791] == round((1791 - 2047.5) / 1024 * 255 + 127.5)


def test_exact_and_sigmoid_windows() -> None:
    exact = shown(ramp(), WindowCenter="2048", WindowWidth="1000", VOILUTFunction="LINEAR_EXACT").ravel()
    assert exact[1548] == 0
    assert exact[2548] == 255
    assert exact[2148] == round(0.6 * 255)
    sigmoid = shown(ramp(), WindowCenter="2048", WindowWidth="500", VOILUTFunction="SIGMOID").ravel()
    assert sigmoid[2048] in (127, 128)
    assert sigmoid[2298] == round(255 / (1 + np.exp(-2.0)))
    assert sigmoid[0] == 0
    assert sigmoid[4095] == 255


def test_windows_equal_an_independent_reading() -> None:
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        dataset = radiograph_of(ramp(), WindowCenter=["900", "7"], WindowWidth=["700", "7"], VOILUTFunction=function)
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", "100"
        other = apply_voi_lut(apply_modality_lut(ramp(), dataset), dataset, index=0)
        low, high = 100.0, 100.0 + 0.5 * 4095  # its output range is that of the modality values
        expected = (other - low) / (high - low) * 255
        picture, how = radiograph.present(dataset, ramp())
        assert how == "window"
        assert np.abs(picture - expected).max() <= 0.51


def lut_item(entries: np.ndarray, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [entries.size % 65536, first, bits])
    item.add_new("LUTData", "US", [int(value) for value in entries])
    return item


def test_voi_lut_goes_before_the_window() -> None:
    entries = (np.arange(1000, dtype=np.float64) ** 2 / 999**2 * 1023).astype(np.uint16)
    header = {"VOILUTSequence": [lut_item(entries, 500, 10)], "WindowCenter": "10", "WindowWidth": "10"}
    dataset = radiograph_of(ramp(), **header)
    picture, how = radiograph.present(dataset, ramp())
    assert how == "lut"
    flat = picture.ravel()
    assert flat[0] == flat[500] == 0
    assert flat[1499] == flat[4095] == 255
    assert flat[1000] == round(int(entries[500]) / 1023 * 255)


def test_voi_lut_as_bytes_and_with_too_many_declared_bits() -> None:
    entries = np.arange(4096, dtype="<u2")
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 16])
    item.add_new("LUTData", "OW", entries.tobytes())
    flat = shown(ramp(), VOILUTSequence=[item]).ravel()
    assert flat[4095] == 255
    assert flat[2048] == 128


def test_short_lut_is_refused() -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [4096, 0, 12])
    item.add_new("LUTData", "OW", bytes(100))
    with pytest.raises(Refusal, match="lookup table"):
        shown(ramp(), VOILUTSequence=[item])


def test_modality_lut_comes_first() -> None:
    reversed_ = np.arange(4095, -1, -1, dtype=np.uint16)
    header = {"ModalityLUTSequence": [lut_item(reversed_, 0, 12)], "WindowCenter": "2048", "WindowWidth": "4096"}
    plain = shown(ramp(), WindowCenter="2048", WindowWidth="4096")
    np.testing.assert_array_equal(shown(ramp(), **header), plain.ravel()[::-1].reshape(plain.shape))


def test_monochrome_twins_are_equal() -> None:
    generator = np.random.default_rng(3)
    stored = generator.integers(0, 4096, (80, 90)).astype(np.uint16)
    twin = (4095 - stored).astype(np.uint16)
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        (
            {"WindowCenter": "1800", "WindowWidth": "2000"},
            {"WindowCenter": str(4095 - 1800 + 1), "WindowWidth": "2000"},
        ),
        ({"PixelPaddingValue": 0}, {"PixelPaddingValue": 4095}),
    ]
    for two, one in pairs:
        bright = shown(stored, **two)
        inverted = shown(twin, PhotometricInterpretation="MONOCHROME1", **one)
        assert np.abs(bright.astype(int) - inverted).max() <= (1 if not two.get("WindowCenter") else 0)
        assert bright.std() > 50


def test_without_voi_percentiles_of_what_is_not_padding() -> None:
    generator = np.random.default_rng(5)
    stored = generator.integers(1000, 2000, (200, 200)).astype(np.int16)
    stored[:, :60] = -2000
    picture = shown(stored, PixelPaddingValue=-2000)
    assert (picture[:, :60] == 0).all()
    real = stored[:, 60:]
    low, high = np.percentile(real, [0.5, 99.5], method="inverted_cdf")
    expected = np.rint(np.clip((real - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(picture[:, 60:], expected)
    spoiled = shown(stored)
    assert spoiled[:, 60:].min() > 150
