"""The table of a real (tiny) run on disk: two modalities, two saved models."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from medcoss import config as configuration
from medcoss.config import ContinualConfig, DataConfig, EvaluateConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from medcoss.continual.run import Run
from medcoss.contracts import Field, Geometry, Kind, ModalitySpec, UsageError
from medcoss.evaluate.retention import evaluate_run, retention_path, update_retention
from medcoss.model.architecture import resolve
from medcoss.model.mae import MaskedModel
from medcoss.model.weights import save_model
from medcoss.shards import Sample, write_manifest, write_split

IMAGE = ModalitySpec("photo", Kind.IMAGE, Geometry((3, 16, 16)), (Field("image", "png", "uint8", 1 / 255),), "x")
VOLUME = ModalitySpec("scan", Kind.VOLUME, Geometry((1, 16, 16, 16)), (Field("volume", "zarr", "float16"),), "z-scores")


def _data(spec, rng, label):
    """Samples of two classes that any encoder tells apart: stripes along or across, or noise for volumes."""
    if spec is IMAGE:
        stripes = np.tile(np.array([0, 255], dtype=np.uint8).repeat(2), 4)
        pixels = np.broadcast_to(stripes if label else stripes[:, None], (16, 16)) // rng.integers(1, 3)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()
    return (rng.standard_normal((16, 16, 16)) + 3 * label).astype(np.float16)


def _write_set(directory, spec):
    rng = np.random.default_rng(0)
    splits, files = {}, {}
    for split, count in (("train", 30), ("test", 9)):
        samples = [Sample(f"{split}-{i:03d}", _data(spec, rng, i % 2), f"s{i}", {"y": i % 2}) for i in range(count)]
        splits[split], extra = write_split(directory, spec, split, samples, count, 8)
        files |= extra
    write_manifest(directory, spec=spec, splits=splits, files=files, settings={}, inputs={}, salt_id="t")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    for spec in (IMAGE, VOLUME):
        _write_set(root / spec.name, spec)
    config = RunConfig(
        model=ModelConfig(preset="vit_tiny"),
        data=DataConfig(backend="cpu"),
        train=TrainConfig(micro_batch=8, global_batch=8),
        continual=ContinualConfig(),
        evaluate=EvaluateConfig(neighbours=5),
        stages=(StageConfig("photo", str(root / "photo")), StageConfig("scan", str(root / "scan"))),
    )
    run = Run(root / "run")
    run.directory.mkdir()
    run.config_path.write_text(configuration.to_toml(config))
    for number, stage in enumerate(run.stage_names):
        torch.manual_seed(number)
        model = MaskedModel(resolve(config.model, [IMAGE, VOLUME][: number + 1]))
        run.stage_directory(stage).mkdir(parents=True)
        save_model(run.model_path(stage), model, {})
        run.write_done(stage, {})
    return run


def test_rows_after_each_stage(run):
    first = update_retention(run, "photo")
    assert list(first.scores["photo"]) == ["photo"] and first.scores["photo"]["photo"] > 0.9
    table = update_retention(run, "scan")
    assert table.stages == ["photo", "scan"] and list(table.scores["scan"]) == ["photo", "scan"]
    assert table.scores["scan"]["scan"] == 1.0 and table.random_encoder["scan"] == 1.0
    assert table.chance == {"photo": 5 / 9, "scan": 5 / 9}
    assert table.n_bank == {"photo": 30, "scan": 30} and table.n_query == {"photo": 9, "scan": 9}
    stored = json.loads(retention_path(run.directory).read_text())
    assert stored["scores"] == table.scores and stored["schema_version"] == 1 and stored["seeds"] == [0, 1, 2]
    assert set(stored["forgetting"]) == {"photo", "scan"} and stored["forgetting"]["scan"] is None


def test_evaluating_again_gives_the_same_table(run):
    update_retention(run, "photo")
    before = update_retention(run, "scan")
    stages: list[str] = []
    assert evaluate_run(run, stages.append) == before
    assert stages == ["photo", "scan"]


def test_the_callers_random_numbers_are_left_alone(run):
    retention_path(run.directory).unlink(missing_ok=True)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    update_retention(run, "photo")
    assert torch.equal(torch.rand(1), expected)


def test_unknown_and_unfinished_stages_are_refused(run):
    with pytest.raises(UsageError, match="no stage"):
        update_retention(run, "nothing")
    done = run.done_path("scan").rename(run.done_path("scan").with_suffix(".away"))
    try:
        with pytest.raises(UsageError, match="not finished"):
            update_retention(run, "scan")
    finally:
        done.rename(run.done_path("scan"))


def test_a_joint_run_has_one_row_of_all_modalities(run, tmp_path):
    config = dataclasses.replace(run.config, continual=ContinualConfig(paradigm="joint"))
    joint = Run(tmp_path / "joint")
    joint.stage_directory("joint").mkdir(parents=True)
    joint.config_path.write_text(configuration.to_toml(config))
    joint.model_path("joint").write_bytes(run.model_path("scan").read_bytes())
    joint.write_done("joint", {})
    table = update_retention(joint, "joint")
    assert table.stages == ["joint"] and list(table.scores["joint"]) == ["photo", "scan"]


def test_an_interrupted_evaluation_leaves_the_old_table(run):
    evaluate_run(run)
    before = retention_path(run.directory).read_bytes()

    def stop(stage: str) -> None:
        if stage == "scan":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, stop)
    assert retention_path(run.directory).read_bytes() == before
