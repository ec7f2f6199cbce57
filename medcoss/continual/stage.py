"""A stage of a run: which set is trained on, from which weights, against which teacher and buffers.

Everything a stage is made of is checked by fingerprint here, before anything is started.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcoss.continual.run import JOINT, Run
from medcoss.contracts import Kind, ModalitySpec, UsageError
from medcoss.shards.erasures import predecessors, read_erasures
from medcoss.shards.manifest import MANIFEST, Manifest, read_manifest, sha256_file
from medcoss.shards.reader import ShardSet


@dataclass(frozen=True)
class Stage:
    """One stage, resolved: all it is made of, found and checked.

    `sets` are trained on by their pretext task (one set; all of them in a joint run), `replay` are the buffers of
    `replay_names`. `initial` are the weights to start from and `teacher` those to distil from (None: none). `specs` are
    the modalities of the run up to this stage. `inputs` names everything the result depends on by fingerprint.
    """

    name: str
    index: int
    sets: tuple[ShardSet, ...]
    replay: tuple[ShardSet, ...]
    replay_names: tuple[str, ...]
    initial: Path | None
    teacher: Path | None
    specs: tuple[ModalitySpec, ...]
    inputs: dict[str, str]

    @property
    def shard_set(self) -> ShardSet:
        """The stage's own set (a joint run's first)."""
        return self.sets[0]


def resolve_stage(run: Run, name: str) -> Stage:
    """Find and check all that stage `name` is made of.

    Raises `UsageError` for an unknown stage, one out of order, a missing or changed predecessor, shard set or buffer,
    sets pseudonymised with different salts, and sequence sets with different tokenizers.
    """
    names = run.stage_names
    if name not in names:
        raise UsageError(f"{run.directory} has no stage {name!r}: its stages are {', '.join(names)}")
    index = names.index(name)
    joint = name == JOINT and run.config.continual.paradigm == "joint"
    own = run.config.stages if joint else run.config.stages[index : index + 1]
    earlier = {} if joint else {previous: _finished(run, previous, name) for previous in names[:index]}
    sets = tuple(ShardSet.open(stage.path()) for stage in own)
    _check_family(sets, earlier)
    _check_unchanged(run, name, sets, earlier)

    inputs = {f"set {stage.name}": shard_set.manifest.fingerprint for stage, shard_set in zip(own, sets, strict=True)}
    initial = None
    if index:
        initial = run.model_path(names[index - 1])
        inputs[f"model {names[index - 1]}"] = _checked_model(initial, earlier[names[index - 1]])
    replay_names = names[:index] if run.rehearses else ()
    replay = tuple(_open_buffer(run, previous, earlier, name) for previous in replay_names)
    inputs |= {f"buffer {n}": buffer.manifest.fingerprint for n, buffer in zip(replay_names, replay, strict=True)}
    return Stage(
        name=name,
        index=index,
        sets=sets,
        replay=replay,
        replay_names=replay_names,
        initial=initial,
        teacher=initial if run.config.continual.paradigm == "medcoss" else None,
        specs=tuple(ModalitySpec.from_json(s) for record in earlier.values() for s in record["specs"])
        + tuple(shard_set.spec for shard_set in sets),
        inputs=inputs,
    )


def _finished(run: Run, previous: str, name: str) -> dict[str, Any]:
    record = run.done(previous)
    if record is None:
        raise UsageError(
            f"stage {name} comes after {previous}, which is not finished in {run.directory}: "
            f"run launch/pretrain.py --stage {previous} --run {run.directory} first"
        )
    return record


def _check_family(sets: tuple[ShardSet, ...], earlier: dict[str, dict[str, Any]]) -> None:
    """Sets of one run must share the salt (or subjects could not be told apart) and the tokenizer (or ids differ)."""
    salts = {name: record["salt_id"] for name, record in earlier.items()}
    tokenizers = {name: record["tokenizer_sha256"] for name, record in earlier.items() if record["tokenizer_sha256"]}
    for shard_set in sets:
        manifest = shard_set.manifest
        for values, value, what, mend in (
            (salts, manifest.salt_id, "salt", "use one --salt-file"),
            (tokenizers, tokenizer_sha256(manifest), "tokenizer", "preprocess it with the earlier set's tokenizer"),
        ):
            for other, theirs in values.items():
                if value is not None and theirs != value:
                    raise UsageError(f"{shard_set.directory} has another {what} than stage {other}'s set: {mend}")
            if value is not None:
                values[manifest.name] = value


def tokenizer_sha256(manifest: Manifest) -> str | None:
    """Hash of a sequence set's tokenizer, None for other kinds."""
    return manifest.files.get("tokenizer.json") if manifest.kind is Kind.SEQUENCE else None


def _check_unchanged(run: Run, name: str, sets: tuple[ShardSet, ...], earlier: dict[str, dict[str, Any]]) -> None:
    """Sets of finished stages must be what they were; those deleted since are no longer needed."""
    stages = {stage.name: stage for stage in run.config.stages}
    for previous, record in earlier.items():
        directory = stages[previous].path()
        if (directory / MANIFEST).is_file():
            _same(directory, read_manifest(directory), record["sets"][0], previous)
    done = run.done(name)
    if done is not None:
        for shard_set, fingerprint in zip(sets, done["sets"], strict=False):
            _same(shard_set.directory, shard_set.manifest, fingerprint, name)


def _same(directory: Path, manifest: Manifest, fingerprint: str, stage: str) -> None:
    if manifest.fingerprint != fingerprint:
        if fingerprint in predecessors(manifest, read_erasures(directory)):
            raise UsageError(
                f"a subject was erased from {directory} since stage {stage} was trained on it: name the run in that "
                "`medcoss erase` too, so that its buffers and records follow"
            )
        raise UsageError(
            f"shard set {directory} changed since stage {stage} was trained on it: restore it or start another --run"
        )


def _checked_model(path: Path, record: dict[str, Any]) -> str:
    if not path.is_file():
        raise UsageError(
            f"{path}: missing, though its stage is finished: restore it, or delete {path.parent} to train again"
        )
    found = sha256_file(path)
    if found != record["model_sha256"]:
        raise UsageError(
            f"{path} changed since its stage was finished: restore it, or delete {path.parent} to train again"
        )
    return found


def _open_buffer(run: Run, previous: str, earlier: dict[str, dict[str, Any]], name: str) -> ShardSet:
    directory = run.buffer_directory(previous)
    build = f"launch/build_buffer.py --stage {previous} --run {run.directory}"
    if not (directory / MANIFEST).is_file():
        raise UsageError(
            f"stage {name} needs the rehearsal buffer {directory}, which is missing: build it with {build}"
        )
    buffer = ShardSet.open(directory)
    parent = buffer.manifest.parent or {}
    record = earlier[previous]
    if parent.get("fingerprint") != record["sets"][0] or parent.get("model_sha256") != record["model_sha256"]:
        raise UsageError(
            f"buffer {directory} was not chosen from stage {previous}'s set by its model: delete it and run {build}"
        )
    for later, used in earlier.items():
        expected = used["buffers"].get(previous, buffer.manifest.fingerprint)
        if expected != buffer.manifest.fingerprint:
            raise UsageError(f"buffer {directory} changed since stage {later} was trained with it: restore it")
    return buffer
