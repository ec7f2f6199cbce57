"""Configuration: what is read is what was written; anything else is refused by name."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from medcoss import config
from medcoss.contracts import UsageError

CONFIGS = Path(__file__).parents[1] / "launch" / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_shipped_configurations_load_and_survive_writing(file: Path) -> None:
    loaded = config.load(file)
    assert config.from_dict(tomllib.loads(config.to_toml(loaded))) == loaded
    assert [stage.name for stage in loaded.stages] == ["report", "xray", "ct", "mri", "pathology"]


def test_the_papers_configuration_is_the_defaults() -> None:
    assert config.load(CONFIGS / "paper.toml") == config.RunConfig()


def test_overrides_take_toml_values_and_bare_words(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[train]\nepochs = 5\nwarmup_epochs = 1\n")
    overrides = [
        "train.epochs=7",
        "model.preset=vit_tiny",
        "model.patch_3d=[16, 8, 8]",
        "continual.mixup=false",
        "seed=3",
    ]
    loaded = config.load(file, overrides)
    assert (loaded.train.epochs, loaded.train.warmup_epochs, loaded.seed) == (7.0, 1.0, 3)
    assert loaded.model == config.ModelConfig(preset="vit_tiny", patch_3d=(16, 8, 8))
    assert loaded.continual.mixup is False


def test_a_stage_may_have_epochs_of_its_own() -> None:
    data = {"train": {"epochs": 4}, "stages": [{"name": "ct"}, {"name": "mri", "epochs": 9}]}
    loaded = config.from_dict(data)
    assert (loaded.epochs("ct"), loaded.epochs("mri"), loaded.epochs("joint")) == (4.0, 9.0, 4.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[train]\nepoch = 3", "unknown key train.epoch"),
        ("colour = 1", "unknown key colour"),
        ("[train]\nepochs = 'many'", "train.epochs"),
        ("[train]\nepochs = true", "train.epochs"),
        ("[train]\nmask_ratio = 1.5", "train.mask_ratio is 1.5: expected 0.0 to 0.99"),
        ("[train]\nzero_stage = 4", "train.zero_stage is 4: expected one of 0, 1, 2, 3"),
        ("[model]\npatch_3d = [1, 2]", "model.patch_3d"),
        ("seed = 1.5", "seed is 1.5: expected int"),
        ("train = 3", "expected a table"),
        ("stages = []", "no [[stages]]"),
        ("[[stages]]\nname = 'ct'\n[[stages]]\nname = 'ct'", "'ct' stands twice"),
        ("[[stages]]\nname = '../ct'", "not allowed"),
        ("[[stages]]\nname = 'ct'\nepochs = 0", "epochs of stage ct"),
        ("[[stages]]\nshards = 'x'", "name"),
        ("seed = ", "not valid TOML"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as refusal:
        config.load(file)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("override", ["epochs", "=3", "seed.x=3"])
def test_overrides_that_name_nothing_are_refused(override: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        config.load(None, ["seed=1", override])


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --config an existing TOML file"):
        config.load(tmp_path / "none.toml")
