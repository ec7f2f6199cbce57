from __future__ import annotations

import dataclasses
import json

import pytest

from medcoss.config import ModelConfig
from medcoss.contracts import Field, Geometry, Kind, ModalitySpec, UsageError
from medcoss.model.architecture import PRESETS, Architecture, resolve


def spec(name: str, kind: Kind, shape: tuple[int, ...], vocabulary: int | None = None) -> ModalitySpec:
    return ModalitySpec(name, kind, Geometry(shape), (Field("x", "png", "uint8"),), "none", vocabulary=vocabulary)


IMAGE = spec("photo", Kind.IMAGE, (3, 224, 224))
VOLUME = spec("scan", Kind.VOLUME, (1, 16, 192, 192))
TEXT = spec("note", Kind.SEQUENCE, (112,), 3000)


def test_the_papers_model_has_the_papers_sizes() -> None:
    built = resolve(ModelConfig(), [TEXT, IMAGE, VOLUME])
    assert (built.width, built.depth, built.heads, built.mlp_ratio) == (768, 12, 12, 4.0)
    assert (built.decoder_width, built.decoder_depth, built.decoder_heads) == (512, 8, 16)
    assert (built.layer_scale, built.drop_path, built.vocabulary) == (1e-3, 0.1, 3000)
    assert (built.n_patches(Kind.IMAGE), built.patch_values(Kind.IMAGE)) == (196, 768)
    assert (built.n_patches(Kind.VOLUME), built.patch_values(Kind.VOLUME)) == (144, 4096)
    assert built.kinds == (Kind.SEQUENCE, Kind.IMAGE, Kind.VOLUME)


def test_the_demonstrations_geometry_fits_vit_tiny() -> None:
    config = ModelConfig(preset="vit_tiny", layer_scale=0.2, drop_path=0.05)
    specs = [spec("photo", Kind.IMAGE, (3, 64, 64)), spec("scan", Kind.VOLUME, (1, 16, 64, 64))]
    built = resolve(config, specs)
    assert (built.n_patches(Kind.IMAGE), built.n_patches(Kind.VOLUME)) == (64, 64)
    assert (built.layer_scale, built.drop_path, built.text_length) == (0.2, 0.05, None)


def test_depth_is_a_setting() -> None:
    assert resolve(ModelConfig(preset="vit_tiny", depth=4), [IMAGE]).depth == 4
    with pytest.raises(UsageError, match="depth is 0"):
        resolve(ModelConfig(depth=0), [IMAGE])


def test_architectures_survive_json() -> None:
    for preset in PRESETS.values():
        built = dataclasses.replace(preset, image_shape=(3, 224, 224), volume_shape=(1, 16, 192, 192))
        assert Architecture.from_json(json.loads(json.dumps(built.to_json()))) == built
    with pytest.raises(UsageError, match="newer"):
        Architecture.from_json(PRESETS["vit_b"].to_json() | {"novelty": 1})


@pytest.mark.parametrize(
    ("config", "specs", "message"),
    [
        (ModelConfig(), [], "no modality"),
        (ModelConfig(), [IMAGE, spec("tile", Kind.IMAGE, (3, 64, 64))], "photo and tile are both images but differ"),
        (ModelConfig(), [TEXT, spec("letter", Kind.SEQUENCE, (112,), 500)], "differ in vocabulary"),
        (ModelConfig(patch_2d=10), [IMAGE], "patch_2d .* does not divide"),
        (ModelConfig(patch_3d=(16, 16, 5)), [VOLUME], "patch_3d .* does not divide"),
        (ModelConfig(), [spec("book", Kind.SEQUENCE, (513,), 500)], "only 512 positions"),
    ],
)
def test_what_does_not_fit_is_refused(config: ModelConfig, specs: list[ModalitySpec], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(config, specs)
