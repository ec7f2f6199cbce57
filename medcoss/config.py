"""A run's configuration: dataclasses, read from TOML, overridden by `--set section.key=value`.

Every setting stands once, here, with its unit and default. Unknown keys are errors, never ignored.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medcoss import toml
from medcoss.contracts import UsageError, check_name


@dataclass(frozen=True)
class ModelConfig:
    """The encoder, tokenizers, decoder and heads. None means: the preset's value."""

    preset: Literal["vit_b", "vit_tiny"] = "vit_b"
    """vit_b is the paper's; vit_tiny (6 blocks, width 192) is for demonstrations and tests."""
    depth: int | None = None
    """Blocks of the encoder."""
    layer_scale: float | None = None
    """Initial LayerScale; the paper's 1e-3 suits trained weights, 0.1 learns faster from scratch."""
    drop_path: float | None = None
    """Chance that a block is skipped for a sample in training."""
    patch_2d: int | None = None
    """Side of an image patch in pixels."""
    patch_3d: tuple[int, int, int] | None = None
    """Size of a volume patch in voxels: depth, height, width."""


@dataclass(frozen=True)
class DataConfig:
    """How samples reach the trainer."""

    backend: Literal["auto", "cpu", "dali"] = "auto"
    """auto takes DALI where there is a GPU to decode on, else the CPU decoder, which is faster on CPUs alone."""
    workers: int = 1
    """Decoding threads a rank."""
    prefetch: int = 2
    """Batches prepared ahead of the step."""
    shuffle_window: int = 8
    """Shards whose samples are shuffled together; bounds memory and keeps reads near each other."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation of one stage (METHOD, section 3)."""

    global_batch: int = 512
    """Samples a step, over all ranks and accumulated micro batches."""
    micro_batch: int = 128
    """Most samples a rank encodes at once; its share of global_batch is cut into equal parts no larger than this."""
    epochs: float = 300.0
    """Passes over the stage's own set."""
    warmup_epochs: float = 40.0
    """Linear warm-up, in the same epochs."""
    base_lr: float = 1.5e-4
    """Learning rate for 256 samples a step; the peak is base_lr x global_batch / 256."""
    weight_decay: float = 0.05
    """AdamW's, on matrices only: none on biases, norms and scales."""
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 0.0
    """Largest gradient norm; 0 is off."""
    precision: Literal["auto", "bf16", "fp32"] = "bf16"
    """bf16 is autocast over fp32 weights; auto takes it where the hardware multiplies matrices faster in it."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO: what is sharded over ranks (1 optimiser, 2 gradients, 3 weights)."""
    mask_ratio: float = 0.75
    """Part of the patches hidden from the encoder."""
    mlm_probability: float = 0.15
    """Part of the real tokens to predict."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_minutes: float = 10.0
    """Minutes between resumable checkpoints; one is always written at the end and on SIGTERM."""
    checkpoint_steps: int = 0
    """Steps between resumable checkpoints as well; 0 is off."""
    keep_checkpoints: int = 2
    """Newest resumable checkpoints kept a stage; the rest are deleted."""
    trace: bool = False
    """Each rank writes trace-RANK.jsonl, a line a step: what it was given and its exact loss. For finding faults."""


@dataclass(frozen=True)
class ContinualConfig:
    """What is done against forgetting (METHOD, sections 3, 4 and 6)."""

    paradigm: Literal["medcoss", "sequential", "replay", "joint"] = "medcoss"
    ratio: float = 0.05
    """Part of a set kept in its rehearsal buffer."""
    centers: float = 0.01
    """k-means clusters as a part of the set."""
    policy: Literal["kmeans", "random"] = "kmeans"
    mixup: bool = True
    """Intra-modal mixup of replayed batches."""
    distill_masked_text: bool = False
    """Distil text on its MLM-masked ids, as the reference code does."""


@dataclass(frozen=True)
class EvaluateConfig:
    """The k-nearest-neighbour probe after each stage."""

    after_stage: bool = True
    neighbours: int = 20


@dataclass(frozen=True)
class StageConfig:
    """One stage: its name and its shard set (default shards/NAME)."""

    name: str
    shards: str = ""
    epochs: float | None = None
    """Passes over this stage's set; None: train.epochs. Warm-up keeps its part of them. A joint run has one number."""

    def path(self) -> Path:
        """Folder of the stage's shard set."""
        return Path(self.shards or f"shards/{self.name}")


@dataclass(frozen=True)
class RunConfig:
    """A whole run, as stored in run.toml."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    continual: ContinualConfig = field(default_factory=ContinualConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    preprocess: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By modality, the options of `preprocess MODALITY` that make its shard set (read by launch/demo.py)."""
    stages: tuple[StageConfig, ...] = tuple(StageConfig(name) for name in ("report", "xray", "ct", "mri", "pathology"))

    def epochs(self, stage: str) -> float:
        """Passes over the set of the stage called `stage`."""
        own = [item.epochs for item in self.stages if item.name == stage and item.epochs is not None]
        return own[0] if own else self.train.epochs

    def __post_init__(self) -> None:
        if not self.stages:
            raise UsageError("config: no [[stages]]: name at least one stage and its shards")
        for stage in self.stages:
            if stage.epochs is not None and not stage.epochs > 0:
                raise UsageError(f"config: epochs of stage {stage.name} is {stage.epochs}: expected more than 0")
        names = [check_name(stage.name) for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"config: stage {name!r} stands twice in [[stages]]: give each its own name")
        for section, key, low, high in _RANGES:
            value = getattr(getattr(self, section), key)
            if not low <= value <= high:
                raise UsageError(f"config: {section}.{key} is {value}: expected {low} to {high}")


_RANGES = (
    ("train", "global_batch", 1, 1 << 20),
    ("train", "micro_batch", 1, 1 << 20),
    ("train", "epochs", 1e-6, 1e6),
    ("train", "warmup_epochs", 0.0, 1e6),
    ("train", "base_lr", 0.0, 10.0),
    ("train", "mask_ratio", 0.0, 0.99),
    ("train", "mlm_probability", 0.0, 1.0),
    ("train", "log_every", 1, 1 << 30),
    ("train", "keep_checkpoints", 1, 1 << 20),
    ("train", "checkpoint_minutes", 0.0, 1e6),
    ("train", "checkpoint_steps", 0, 1 << 30),
    ("data", "workers", 1, 4096),
    ("data", "prefetch", 1, 4096),
    ("data", "shuffle_window", 1, 1 << 20),
    ("continual", "ratio", 0.0, 1.0),
    ("continual", "centers", 0.0, 1.0),
    ("evaluate", "neighbours", 1, 1 << 20),
)


def load(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file (None: defaults) and apply `section.key=value` overrides, values in TOML notation.

    Raises `UsageError` naming the key for a missing file, wrong TOML, an unknown key or a value of the wrong type.
    """
    return from_dict(read_settings(path, overrides))


def read_settings(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a TOML file and overrides say, and no more: settings left to their defaults are absent.

    Raises `UsageError` for a missing file, wrong TOML or an override that is not `section.key=value`.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"config {path}: {error.strerror}: give --config an existing TOML file") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"config {path}: not valid TOML: {error}") from error
    for override in overrides:
        toml.override(data, override)
    return data


def differences(config: RunConfig, settings: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings (as of `read_settings`) whose value is another one than in `config`: {key: (in config, in settings)}.

    Keys that `settings` does not mention never differ. Raises `UsageError` as `from_dict`.
    """
    wanted = dataclasses.asdict(from_dict(settings))
    stored = dataclasses.asdict(config)
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            pairs = {f"{key}.{name}": (stored[key].get(name), wanted[key][name]) for name in value}
        else:
            pairs = {key: (stored[key], wanted[key])}
        found |= {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return found


def from_dict(data: dict[str, Any]) -> RunConfig:
    """Build and check a `RunConfig` from parsed TOML. Raises `UsageError` naming the key."""
    config = toml.build(RunConfig, data)
    assert isinstance(config, RunConfig)
    return config


def to_toml(config: RunConfig) -> str:
    """The configuration as TOML that `load` reads back to an equal `RunConfig`, without settings left to the preset."""
    values = dataclasses.asdict(config)
    stages = values.pop("stages")
    lines: list[str] = []
    for key, value in values.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {toml.write_value(value)}")
    for section, value in values.items():
        if isinstance(value, dict) and value:
            lines += ["", f"[{section}]"]
            lines += [f"{key} = {toml.write_value(item)}" for key, item in value.items() if item is not None]
    for stage in stages:
        lines += ["", "[[stages]]"] + [
            f"{key} = {toml.write_value(item)}" for key, item in stage.items() if item is not None
        ]
    return "\n".join(lines) + "\n"
