"""A small run of three kinds on disk, as a trainer leaves it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image

from medcoss import config as configuration
from medcoss.atomic import write_bytes
from medcoss.config import DataConfig, EvaluateConfig, ModelConfig, RunConfig, StageConfig, TrainConfig
from medcoss.continual.run import Run
from medcoss.contracts import SPECIAL_TOKENS, Field, Geometry, Kind, ModalitySpec
from medcoss.model.architecture import resolve
from medcoss.model.mae import MaskedModel
from medcoss.model.weights import save_model
from medcoss.shards import Sample, ShardSet, sha256_file, write_manifest, write_split

WORDS = ("lungs", "clear", "heart", "normal", "effusion", "left", "right", "small")
SPECS = {
    "note": ModalitySpec(
        "note", Kind.SEQUENCE, Geometry((16,)), (Field("text", "utf8", "utf8"),), "text", vocabulary=6 + len(WORDS)
    ),
    "photo": ModalitySpec("photo", Kind.IMAGE, Geometry((3, 16, 16)), (Field("i", "png", "uint8", 1 / 255),), "x"),
    "scan": ModalitySpec("scan", Kind.VOLUME, Geometry((1, 16, 16, 16)), (Field("v", "zarr", "int16", 1e-3),), "HU"),
}


def _tokenizer() -> bytes:
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *WORDS))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer.to_str().encode()


def _data(kind: Kind, rng: np.random.Generator, label: int) -> bytes | np.ndarray:
    if kind is Kind.SEQUENCE:
        return " ".join(rng.choice(WORDS, 10)).encode()
    if kind is Kind.IMAGE:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(100 * label, 150 + 100 * label, (20, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()
    return rng.integers(-500, 500, (16, 16, 16), dtype=np.int16)


def write_set(directory: Path, spec: ModalitySpec, sizes: dict[str, int], parent: dict | None = None) -> ShardSet:
    rng = np.random.default_rng(0)
    splits, files = {}, {}
    for split, count in sizes.items():
        samples = [
            Sample(
                f"{split}-{i:03d}",
                _data(spec.kind, rng, i % 2),
                f"{split}-s{i}",
                {"finding": "<b>yes" if i % 2 else "no"},
            )
            for i in range(count)
        ]
        splits[split], extra = write_split(directory, spec, split, samples, count, 8)
        files |= extra
    if spec.kind is Kind.SEQUENCE:
        write_bytes(directory / "tokenizer.json", _tokenizer())
        files["tokenizer.json"] = sha256_file(directory / "tokenizer.json")
    write_manifest(directory, spec=spec, splits=splits, files=files, settings={}, inputs={}, salt_id="t", parent=parent)
    return ShardSet.open(directory)


def _metrics(stage: str, index: int, names: list[str]) -> str:
    lines = []
    for step in range(10, 60, 10):
        for name in names[: index + 1]:
            replay = name != names[index]
            lines.append(
                {
                    "step": step,
                    "stage": stage,
                    "modality": name,
                    "is_replay": replay,
                    "loss": {"pretext": None, "distill": 1 / step}
                    if replay
                    else {"pretext": 10 / step, "distill": None},
                    "lr": 1e-4,
                    "grad_norm": None,
                    "samples_per_s": 100.0 + step,
                    "tokens_per_s": 1.0,
                    "data_wait_fraction": 0.25,
                    "flops_utilisation": 0.5,
                    "peak_memory_bytes": 2**30,
                }
            )
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three stages done, with models, metrics and buffers; nothing evaluated."""
    root = tmp_path_factory.mktemp("report")
    config = RunConfig(
        model=ModelConfig(preset="vit_tiny"),
        data=DataConfig(backend="cpu"),
        train=TrainConfig(micro_batch=8, global_batch=8),
        evaluate=EvaluateConfig(neighbours=5),
        stages=tuple(StageConfig(name, str(root / name)) for name in SPECS),
    )
    run = Run(root / "run")
    run.directory.mkdir()
    run.config_path.write_text(configuration.to_toml(config))
    names = list(SPECS)
    for index, name in enumerate(names):
        shard_set = write_set(root / name, SPECS[name], {"train": 24, "test": 8})
        torch.manual_seed(index)
        model = MaskedModel(resolve(config.model, [SPECS[n] for n in names[: index + 1]]))
        run.stage_directory(name).mkdir(parents=True)
        save_model(run.model_path(name), model, {})
        run.metrics_path(name).write_text(_metrics(name, index, names) + '{"step": 60, "cut')
        parent = {"fingerprint": shard_set.manifest.fingerprint, "policy": "kmeans", "ratio": 0.25, "filled": 1}
        write_set(run.buffer_directory(name), SPECS[name], {"train": 6}, parent)
        run.write_done(
            name,
            {
                "steps": 50,
                "seconds": 75.0,
                "model_sha256": sha256_file(run.model_path(name)),
                "versions": {"torch": "9.9"},
            },
        )
    return run
