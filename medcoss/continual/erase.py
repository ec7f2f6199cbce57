"""A withdrawn patient leaves shard sets, rehearsal buffers and the records of runs, in one go.

Sets come first, then the buffers chosen from them, then what runs recorded of both, so that a run's next stage finds
fingerprints that fit. Every step can be repeated: a call that was killed is finished by the same call.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

from medcoss.atomic import TEMPORARY_SUFFIX
from medcoss.command import Progress
from medcoss.continual.run import Run
from medcoss.contracts import UsageError
from medcoss.shards import erase as sets
from medcoss.shards.erasures import Erasure, predecessors, read_erasures
from medcoss.shards.manifest import ERASING, MANIFEST, read_manifest
from medcoss.shards.reader import ShardSet
from medcoss.shards.verify import set_folders

Lineage = Mapping[str, tuple[str, tuple[Erasure, ...]]]
"""By an earlier fingerprint of a set or buffer: its present one, and the erasures between the two."""

LIMITS = (
    "what was learned or measured before stays: weights, a tokenizer's merges, statistics.json, scores",
    "copies, backups, exports and embeddings written elsewhere are not reached",
)
"""What an erasure cannot undo: printed after each."""


@dataclass
class Withdrawn:
    """What came of one folder: `state` is erased, already erased, updated, absent or, of a dry run, found."""

    directory: str
    state: str
    samples: int = 0
    files: int = 0
    fingerprint: str | None = None
    notes: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The result in one line, then its notes."""
        what = {
            "erased": f"{self.samples} samples of {self.files} files erased",
            "found": f"{self.samples} samples would be erased",
            "updated": "records updated",
            "absent": "nothing of the subject",
        }.get(self.state, self.state)
        text = f"{self.directory}: {what}" + (f", fingerprint {self.fingerprint}" if self.fingerprint else "")
        return "\n".join([text, *(f"  {note}" for note in self.notes)])


def erase(
    paths: Sequence[Path], token: str, *, salt_id: str | None, names: Collection[str] = (), dry_run: bool = False
) -> list[Withdrawn]:  # fmt: skip
    """Take subject `token` out of the sets, buffers and runs at `paths`; returns what came of each folder.

    `salt_id` is that of the salt which made the token (None: not known), `names` what the subject may be called in
    private tables of paths. Raises `UsageError` before anything is changed for a folder that is none of these, a set of
    another salt, an unfinished conversion, a folder in use, and a subject who is nowhere; `MedcossError` for damaged
    shards.
    """
    folders, runs = _targets(paths)
    buffers = [folder for run in runs for folder in _buffers(run)]
    with ExitStack() as held:
        if not dry_run:
            for run in runs:
                held.enter_context(run.lock())
            for folder in [*folders, *buffers]:
                held.enter_context(sets.locked(folder))
                sets.finish(folder)
        opened = [ShardSet.open(folder) for folder in [*folders, *buffers]]
        others = [ShardSet.open(path) for run in runs for path in _configured(run, [one.directory for one in opened])]
        _check(opened, salt_id)
        found = {shard_set.directory: _find(shard_set, token) for shard_set in opened}
        if not any(holdings.keys for holdings in found.values()):
            _check_known([*opened, *others], token)
        if dry_run:
            return [_looked(shard_set, found[shard_set.directory]) for shard_set in opened]
        lineage = _lineage([*opened, *others])
        stale = {*lineage, *(one.manifest.fingerprint for one in opened if found[one.directory].keys)}
        # First what shows samples: after the records are mended, a repeated call would not know that it has to go.
        of_runs = [_drop_traces(run, stale) for run in runs]
        of_sets = []
        for shard_set in sorted(opened, key=lambda one: one.manifest.parent is not None):
            of_sets.append(_erase_one(shard_set, token, found[shard_set.directory], names, lineage))
            lineage |= _lineage([ShardSet.open(shard_set.directory)])
        for run, result in zip(runs, of_runs, strict=True):
            _update_run(run, lineage, result)
            result.notes += [
                f"{one.directory}, which it trains on, still holds the subject: name it as well"
                for one in others
                if one.directory in _configured(run, ()) and _find(one, token).keys
            ]
        return of_sets + of_runs


def _targets(paths: Sequence[Path]) -> tuple[list[Path], list[Run]]:
    """Folders of sets, and runs; a buffer inside a run stands for its run, whose records must follow."""
    folders: dict[Path, Path] = {}
    runs: dict[Path, Run] = {}
    for path in set_folders(paths)[0]:
        home = next((p for p in (path, path.absolute().parent.parent) if (p / "run.toml").is_file()), None)
        if home is not None:
            runs.setdefault(home.resolve(), Run(home))
        elif (path / MANIFEST).exists() or (path / ERASING).exists():
            folders.setdefault(path.resolve(), path)
        else:
            sets.check_settled(path)
            raise UsageError(f"{path} is no shard set, buffer or run: name a folder with a {MANIFEST} or run.toml")
    return list(folders.values()), list(runs.values())


def _buffers(run: Run) -> list[Path]:
    found = (run.buffer_directory(name) for name in run.stage_names)
    return [path for path in found if (path / MANIFEST).exists() or (path / ERASING).exists()]


def _configured(run: Run, given: Collection[Path]) -> Iterator[Path]:
    """Sets that a run trains on and that were not named in the call."""
    known = {path.resolve() for path in given}
    for stage in run.config.stages:
        if (stage.path() / MANIFEST).is_file() and stage.path().resolve() not in known:
            yield stage.path()


def _check(opened: Sequence[ShardSet], salt_id: str | None) -> None:
    for shard_set in opened:
        sets.check_settled(shard_set.directory)
        if salt_id is not None and shard_set.manifest.salt_id != salt_id:
            raise UsageError(
                f"{shard_set.directory} was made with another salt, under which the subject has another token: give "
                "its --salt-file"
            )


def _check_known(opened: Sequence[ShardSet], token: str) -> None:
    """Raise `UsageError` for a subject who is in no set and never was erased: most likely the id is misspelt."""
    if not any(erasure.subject == token for one in opened for erasure in read_erasures(one.directory)):
        raise UsageError(
            "the subject is in none of these folders: give the id as the inputs spell it (for DICOM, PatientID or "
            "PatientID@ISSUER), and the --salt-file and --subject-alias that preprocess had"
        )


def _find(shard_set: ShardSet, token: str) -> sets.Holdings:
    total = sum(entry.samples for entry in shard_set.manifest.splits.values())
    with Progress(total, f"{shard_set.directory}, records") as progress:
        return sets.find(shard_set, {token}, progress.advance)


def _looked(shard_set: ShardSet, holdings: sets.Holdings) -> Withdrawn:
    state = "found" if holdings.keys else "absent"
    notes = [f"{len(positions)} in split {name}" for name, positions in holdings.positions.items()]
    return Withdrawn(str(shard_set.directory), state, len(holdings.keys), notes=notes)


def _erase_one(
    shard_set: ShardSet, token: str, holdings: sets.Holdings, names: Collection[str], lineage: Lineage
) -> Withdrawn:
    """Erase from a set; from a buffer also all whom its set lost since the buffer was chosen, or they would stay."""
    directory, manifest = shard_set.directory, shard_set.manifest
    subjects, parent = [token] if holdings.keys else [], None
    if manifest.parent is not None:
        parent, since = lineage.get(manifest.parent.get("fingerprint", ""), (None, ()))
        subjects = list(dict.fromkeys([*(erasure.subject for erasure in since), *subjects]))
        if set(subjects) - {token}:
            holdings = sets.find(shard_set, {*subjects, token})
    if not subjects:
        earlier = any(erasure.subject == token for erasure in read_erasures(directory))
        state = "already erased" if earlier else "absent"
        return Withdrawn(str(directory), state, fingerprint=manifest.fingerprint)
    new, notes = sets.erase(shard_set, holdings, subjects, names=names, parent=parent)
    files = read_erasures(directory)[-1].files
    state = "erased" if holdings.keys else "updated"
    notes += [f"split {name} is empty now" for name in holdings.positions if not new.splits[name].samples]
    return Withdrawn(str(directory), state, len(holdings.keys), files, new.fingerprint, notes)


def _lineage(shard_sets: Sequence[ShardSet]) -> dict[str, tuple[str, tuple[Erasure, ...]]]:
    found: dict[str, tuple[str, tuple[Erasure, ...]]] = {}
    for one in shard_sets:
        earlier = predecessors(one.manifest, read_erasures(one.directory))
        found |= {fingerprint: (one.manifest.fingerprint, since) for fingerprint, since in earlier.items()}
    return found


def _update_run(run: Run, lineage: Lineage, result: Withdrawn) -> None:
    """Let a run's records name the sets and buffers as they are now."""
    for name in run.stage_names:
        record = run.done(name)
        if record is None:
            _drop_checkpoints(run, name, lineage, result)
            continue
        used = [("set", old) for old in record.get("sets", [])]
        used += [(f"buffer {other}", old) for other, old in record.get("buffers", {}).items()]
        changed = [
            {"source": source, "samples": sum(e.samples for e in lineage[old][1]), "before": old,
             "after": lineage[old][0]}
            for source, old in used if old in lineage
        ]  # fmt: skip
        if not changed:
            continue
        present = {old: new for old, (new, _) in lineage.items()}
        record["sets"] = [present.get(old, old) for old in record.get("sets", [])]
        record["buffers"] = {other: present.get(old, old) for other, old in record.get("buffers", {}).items()}
        record["erasures"] = [*record.get("erasures", []), *changed]
        run.write_done(name, record)
        result.state = "updated"
        result.notes.append(f"stage {name} was trained before the erasure: its model stays as it is, done.json says so")


def _drop_checkpoints(run: Run, name: str, lineage: Lineage, result: Withdrawn) -> None:
    """An unfinished stage cannot go on with other data: it begins anew, without the subject."""
    directory = run.checkpoints_directory(name)
    for path in sorted(directory.glob("*/checkpoint.json")):
        if set(json.loads(path.read_bytes())["inputs"].values()) & set(lineage):
            shutil.rmtree(directory)
            result.state = "updated"
            result.notes.append(
                f"stage {name} was begun before the erasure: its checkpoints are deleted, train it anew"
            )
            return


def _drop_traces(run: Run, stale: Collection[str]) -> Withdrawn:
    """Delete what a run keeps beside its records that shows samples or lists keys; all of it can be made again.

    `stale` are fingerprints of sets and buffers that hold, or held, the subject.
    """
    result = Withdrawn(str(run.directory), "absent")
    traces = [path for path in run.directory.rglob("*.safetensors") if _embedded_set(path) in stale]
    if stale:
        traces += [path for path in (run.directory / "buffers").glob(f"*{TEMPORARY_SUFFIX}") if path.is_dir()]
    if _used(run) & set(stale) and (run.directory / "report.html").exists():
        traces.append(run.directory / "report.html")
    for path in traces:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        result.state = "updated"
        result.notes.append(f"{path.relative_to(run.directory)} is deleted, for it may show samples or list their keys")
    return result


def _used(run: Run) -> set[str]:
    """Fingerprints of all sets and buffers that a run's records and buffers name."""
    records = [record for name in run.stage_names if (record := run.done(name)) is not None]
    used = {old for record in records for old in [*record.get("sets", []), *record.get("buffers", {}).values()]}
    return used | {read_manifest(path).fingerprint for path in _buffers(run)}


def _embedded_set(path: Path) -> str | None:
    """Fingerprint of the set whose embeddings a file holds, None if it holds none (weights, an unreadable file)."""
    try:
        with safe_open(path, framework="np") as file:
            stamps = json.loads((file.metadata() or {}).get("embeddings", "null"))
    except (OSError, SafetensorError, ValueError):
        return None
    return stamps.get("manifest_fingerprint") if isinstance(stamps, dict) else None
