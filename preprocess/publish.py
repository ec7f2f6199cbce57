"""From the list of samples to a finished set in DIR: made aside, moved in by renames, the manifest last."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medcoss.contracts import SPLITS, Kind, MedcossError, ModalitySpec
from medcoss.shards import Manifest, Sample, canonical_json, write_manifest, write_split
from medcoss.shards.manifest import SplitEntry
from preprocess import qc
from preprocess.assemble import Assembly, Placed
from preprocess.conversion import Modality, Rewriter
from preprocess.outcomes import OUTCOMES, count_statuses, write_outcomes
from preprocess.progress import Progress
from preprocess.sharding import as_sample, write_split_in_workers
from preprocess.staging import StagedData

MANIFEST = "manifest.json"
STATISTICS = "statistics.json"
STAGING = ".staging"
SHARD_SIZES = {Kind.SEQUENCE: 4096, Kind.IMAGE: 1024, Kind.VOLUME: 64}
"""Samples a shard unless --shard-size says otherwise: files of some tens of MB, enough of them to shuffle and share."""

_OURS = re.compile(
    r"(train|val|test)(-\d{6}\.[a-z.]+|\.zarr)(\.partial)?|manifest\.json|outcomes\.parquet|statistics\.json|qc"
)


def publish(
    modality: Modality, assembly: Assembly, staging: Path, out: Path, settings: dict[str, Any], *,
    executor: Executor, workers: int, salt_id: str, shard_size: int | None, with_qc: bool, carried: dict[str, bytes],
) -> tuple[Manifest, list[str]]:  # fmt: skip
    """Write the set into `staging`/set and move it into `out`, replacing what an earlier run made there. `carried` are
    files that go into the set as they are. The shards are written by the `workers` processes of `executor`.

    Returns the manifest and what the user should be told. Raises `MedcossError` or `OSError` with `out`
    unchanged, except while the finished files are being renamed.
    """
    made = staging / "set"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    data = StagedData(staging)
    try:
        spec, contents, rewriter = _finish(modality, assembly, data, settings)
        size = shard_size or SHARD_SIZES[spec.kind]
        progress = Progress(assembly.samples, spec.name, "samples written")
        try:
            written = _write_splits(assembly, data, staging, made, spec, size, rewriter, executor, workers, progress)
        finally:
            progress.close(always=False)
        manifest = _describe(assembly, made, spec, written, contents | carried, rewriter, settings, salt_id)
        notes = rewriter.notes() if rewriter is not None else []
        write_outcomes(made / OUTCOMES, assembly.fates.values())
        if with_qc:
            chosen = _evenly([placed for split in SPLITS for placed in assembly.splits[split]], qc.SHEET_SAMPLES)
            sheet = [_sample(placed, data, rewriter) for placed in chosen]
            inputs = _write_attachments(assembly, data, made / "qc" / "inputs")
            qc.write_qc(made / "qc", manifest, sheet, assembly, inputs)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    finally:
        data.close()
    _move_in(made, out)
    return manifest, notes


def _finish(
    modality: Modality, assembly: Assembly, data: StagedData, settings: dict[str, Any]
) -> tuple[ModalitySpec, dict[str, bytes], Rewriter | None]:
    """What the modality learns from the train split: the spec, files of the set, what changes the samples."""
    spec, contents = modality.finish(settings, (data.read(p.unit_id, p.sample) for p in assembly.splits["train"]))
    rewriter: Rewriter | None = modality.rewriter(settings, contents) if hasattr(modality, "rewriter") else None
    if rewriter is not None:
        _divide(assembly, data, rewriter)
    return spec, contents, rewriter


def _write_splits(
    assembly: Assembly, data: StagedData, staging: Path, made: Path, spec: ModalitySpec, size: int,
    rewriter: Rewriter | None, executor: Executor, workers: int, progress: Progress,
) -> dict[str, tuple[SplitEntry, dict[str, str]]]:  # fmt: skip
    """The manifest's entry of each split and the SHA-256 of the files beside its shards."""
    written = {}
    for split in SPLITS:
        placed = assembly.splits[split]
        if rewriter is None:
            written[split] = write_split_in_workers(
                executor, workers, staging, made, spec, split, placed, size, progress
            )
        else:
            samples = _counted((_sample(one, data, rewriter) for one in placed), progress)
            written[split] = write_split(made, spec, split, samples, len(placed), size)
    return written


def _counted(samples: Iterable[Sample], progress: Progress) -> Iterator[Sample]:
    for sample in samples:
        yield sample
        progress.advance()


def _describe(
    assembly: Assembly, made: Path, spec: ModalitySpec, written: dict[str, tuple[SplitEntry, dict[str, str]]],
    contents: dict[str, bytes], rewriter: Rewriter | None, settings: dict[str, Any], salt_id: str,
) -> Manifest:  # fmt: skip
    """Write the files that speak of the whole set, the manifest last."""
    splits = {split: entry for split, (entry, _) in written.items()}
    files = {name: digest for _, extra in written.values() for name, digest in extra.items()}
    if rewriter is not None:
        assembly.figures |= rewriter.figures()
    contents = contents | {STATISTICS: canonical_json(_statistics(assembly, spec, rewriter))}
    for name, content in contents.items():
        (made / name).write_bytes(content)
        files[name] = hashlib.sha256(content).hexdigest()
    inputs = count_statuses(assembly.fates.values())
    return write_manifest(
        made, spec=spec, splits=splits, files=files, settings=settings, inputs=inputs, salt_id=salt_id
    )


def _divide(assembly: Assembly, data: StagedData, rewriter: Rewriter) -> None:
    """Several samples in the place of one where the rewriter makes several; their file counts them all."""
    for split, placed in assembly.splits.items():
        divided: list[Placed] = []
        for one in placed:
            parts = rewriter.count(data.read(one.unit_id, one.sample))
            if parts == 1:
                divided.append(one)
                continue
            prefix, _, suffix = one.sample.key.rpartition("-")
            keys = [one.sample.key, *(f"{prefix}-{part:0{len(suffix)}}" for part in range(1, parts))]
            divided += [replace(one, sample=replace(one.sample, key=key), part=part) for part, key in enumerate(keys)]
            assembly.fates[one.sample.input_id].n_samples += parts - 1
        assembly.splits[split] = divided


def _write_attachments(assembly: Assembly, data: StagedData, folder: Path) -> list[str]:
    """One after the other, for those of a thousand slides would not fit into memory. Returns their names in order."""
    folder.mkdir(parents=True)
    names = sorted(assembly.attachments)
    for name in names:
        (folder / name).write_bytes(data.read_bytes(*assembly.attachments[name]))
    if not names:
        folder.rmdir()
    return names


def _sample(placed: Placed, data: StagedData, rewriter: Rewriter | None) -> Sample:
    content = data.read(placed.unit_id, placed.sample)
    return as_sample(placed, content if rewriter is None else rewriter(content, placed.part))


def _statistics(assembly: Assembly, spec: ModalitySpec, rewriter: Rewriter | None) -> dict[str, Any]:
    figures = {}
    for name, values in assembly.figures.items():
        array = np.asarray(values, dtype=np.float64)
        array = array[np.isfinite(array)]
        if array.size:
            quartiles = [float(value) for value in np.percentile(array, [0, 25, 50, 75, 100])]
            figures[name] = {"n": int(array.size), "mean": float(array.mean()), "quartiles": quartiles}
    return {
        "name": spec.name,
        "duplicates": assembly.duplicates,
        "conflicting_labels": assembly.conflicts,
        "samples_without_known_subject": assembly.unknown_subjects,
        "counts": assembly.counts,
        "figures": figures,
        **(rewriter.statistics() if rewriter is not None else {}),
    }


def _evenly(placed: Sequence[Placed], count: int) -> Iterator[Placed]:
    step = max(len(placed) / count, 1.0)
    yield from (placed[int(number * step)] for number in range(min(count, len(placed))))


def _move_in(made: Path, out: Path) -> None:
    """From here on a killed run finds its staged units again and repeats the whole; without a manifest it is no set."""
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
    for path in out.iterdir():
        if _OURS.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    names = sorted(path.name for path in made.iterdir())
    for name in [*(name for name in names if name != MANIFEST), MANIFEST]:
        target = out / name
        if target.is_dir():
            raise MedcossError(f"{target} is a folder where a file of the set belongs: move it away and run again")
        (made / name).replace(target)
