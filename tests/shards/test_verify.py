"""`verify` finds every flipped bit, and sets that were made wrongly though all their hashes fit."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medcoss.cli import main
from medcoss.shards import Manifest, Sample, ShardSet, unlisted, verify, write_manifest, write_split
from medcoss.shards.manifest import ShardFile, canonical_json, readable_json

SIZES = {"train": 6, "val": 0, "test": 3}
Build = Callable[..., Manifest]


def _with_statistics(directory: Path, manifest: Manifest) -> Manifest:
    content = canonical_json({"figures": {}})
    (directory / "statistics.json").write_bytes(content)
    (directory / "manifest.json").unlink()
    return _sign(directory, manifest, files={**manifest.files, "statistics.json": hashlib.sha256(content).hexdigest()})


def _sign(directory: Path, manifest: Manifest, **changes: object) -> Manifest:
    """Write the manifest anew with changes and a fingerprint that fits them."""
    fields = {name: getattr(manifest, name) for name in ("spec", "splits", "files", "settings", "inputs", "salt_id")}
    return write_manifest(directory, **(fields | changes))


def _resign(directory: Path, manifest: Manifest, name: str) -> Manifest:
    """Let the manifest list file `name` as it is now."""
    content = (directory / name).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if name in manifest.files:
        return _sign(directory, manifest, files={**manifest.files, name: sha256})
    splits = {}
    for split, entry in manifest.splits.items():
        shards = tuple(
            ShardFile(shard.file, shard.samples, len(content), sha256) if shard.file == name else shard
            for shard in entry.shards
        )
        splits[split] = type(entry)(entry.samples, entry.subjects, shards)
    return _sign(directory, manifest, splits=splits)


def test_a_flipped_bit_anywhere_is_found(tmp_path: Path, kind: str, build: Build) -> None:
    directory = tmp_path / "set"
    manifest = _with_statistics(directory, build(directory, kind, SIZES))
    assert verify(directory) == []
    made_by = json.dumps(manifest.created_by, indent=1)
    rng = random.Random(0)
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        content = path.read_bytes()
        places = {0, len(content) - 1, *(rng.randrange(len(content)) for _ in range(4))}
        if path.name == "manifest.json":
            # What made the set is told but not vouched for: versions are no part of the fingerprint.
            start = content.index(b'"created_by"')
            places = {p for p in range(0, len(content), 97) if not start <= p < start + len(made_by) + 40}
        for place in places:
            damaged = bytearray(content)
            damaged[place] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            found = [problem.file for problem in verify(directory)]
            assert path.relative_to(directory).as_posix() in found, (path, place)
        path.write_bytes(content)
    assert verify(directory) == []


def test_truncated_and_missing_files_are_named(tmp_path: Path, kind: str, build: Build) -> None:
    directory = tmp_path / "set"
    manifest = _with_statistics(directory, build(directory, kind, SIZES))
    names = [*manifest.files, *(shard.file for entry in manifest.splits.values() for shard in entry.shards)]
    for name in names:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[:-1])
        assert name in [problem.file for problem in verify(directory)]
        (directory / name).unlink()
        assert name in [problem.file for problem in verify(directory)]
        (directory / name).write_bytes(content)
    assert verify(directory) == []


def test_what_belongs_to_no_set_is_a_note_unless_a_reader_would_take_it_for_a_shard(
    tmp_path: Path, kind: str, build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path / "a", kind, SIZES)
    (tmp_path / "a" / "notes.txt").write_text("mine")
    (tmp_path / "a.private").mkdir()
    (tmp_path / "README.md").write_text("about")
    assert verify(tmp_path / "a") == [] and unlisted(tmp_path / "a") == ["notes.txt"]
    paths = sorted(str(path) for path in tmp_path.iterdir())
    assert main(["verify", *paths]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'a'}: sound\n"
    for note in ("a.private is no shard set", "README.md is no shard set", "notes.txt is not part of the set"):
        assert note in err
    assert main(["verify", str(tmp_path / "README.md")]) == 2
    stray = tmp_path / "a" / ("train.zarr/volume/c/9/0/0/0" if kind == "volume" else "train-000009.tar")
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_bytes(b"x")
    assert main(["verify", str(tmp_path / "a")]) == 1
    (tmp_path / "a" / ".erasing").mkdir()
    assert ".erasing" in [problem.file for problem in verify(tmp_path / "a")]


def _split(directory: Path, build: Build, kind: str, split: str, samples: list[Sample]) -> Manifest:
    """Write `samples` over a split of a set."""
    manifest = build(directory, kind, SIZES)
    (directory / "manifest.json").unlink()
    entry, files = write_split(directory, manifest.spec, split, iter(samples), len(samples), 4)
    kept = {name: sha for name, sha in manifest.files.items() if not name.startswith(split)}
    return _sign(directory, manifest, splits={**manifest.splits, split: entry}, files=kept | files)


def test_one_subject_or_key_in_two_splits(tmp_path: Path, kind: str, build: Build, samples_of) -> None:
    samples = samples_of(kind, "test", 3)
    samples[1].subject = "train-s2"
    _split(tmp_path / "subject", build, kind, "test", samples)
    assert [p.what for p in verify(tmp_path / "subject")] == [
        "subject train-s2 stands in split test and in split train"
    ]
    samples = samples_of(kind, "test", 3)
    samples.append(samples_of(kind, "train", 6)[5])
    samples[3].subject = "test-s9"
    _split(tmp_path / "key", build, kind, "test", samples)
    assert [p.what for p in verify(tmp_path / "key")] == ["key train-0005 stands in split test and in split train"]


def test_wrong_counts(tmp_path: Path, kind: str, build: Build) -> None:
    manifest = build(tmp_path / "set", kind, SIZES)
    entry = manifest.splits["train"]
    _sign(tmp_path / "set", manifest, splits={**manifest.splits, "train": type(entry)(6, 7, entry.shards)})
    assert [p.what for p in verify(tmp_path / "set")] == ["split train has 3 subjects, the manifest says 7"]
    shards = (ShardFile(**{**vars(entry.shards[0]), "samples": 3}), *entry.shards[1:])
    _sign(tmp_path / "set", manifest, splits={**manifest.splits, "train": type(entry)(5, 3, shards)})
    assert any("train" in p.what for p in verify(tmp_path / "set"))


def test_statistics_that_are_no_json(tmp_path: Path, build: Build) -> None:
    directory = tmp_path / "set"
    manifest = _with_statistics(directory, build(directory, "image", SIZES))
    (directory / "statistics.json").write_text("{")
    _resign(directory, manifest, "statistics.json")
    assert [p.file for p in verify(directory)] == ["statistics.json"]


def test_an_archive_that_contradicts_its_index_or_sidecar(tmp_path: Path, build: Build) -> None:
    directory = tmp_path / "set"
    manifest = build(directory, "image", SIZES)
    for name, change, what in (
        ("train-000000.idx", lambda text: text.replace(b"v1.2 4", b"v1.2 3"), "its index train-000000.idx differs"),
        ("train-000000.members.csv", lambda text: text.replace(b",jpg,512,", b",jpg,1024,"), "CRC32C"),
        ("train-000000.tar", lambda tar: b"\0" + tar[1:], "member train-0000.jpg"),
        ("train-000000.tar", lambda tar: tar + bytes(512), "has 1536 bytes behind its last member"),
    ):  # fmt: skip
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(change(content))
        _resign(directory, manifest, name)
        assert any(what in problem.what for problem in verify(directory)), (name, verify(directory))
        (directory / name).write_bytes(content)


def test_records_and_keys_that_do_not_fit(tmp_path: Path, build: Build) -> None:
    directory = tmp_path / "set"
    manifest = build(directory, "image", SIZES)
    shard, sidecar = directory / "train-000000.tar", directory / "train-000000.members.csv"
    content = shard.read_bytes().replace(b'"key":"train-0001"', b'"key":"train-0009"')
    shard.write_bytes(content)
    manifest = _resign(directory, manifest, shard.name)
    assert any("train-0001.json" in problem.what for problem in verify(directory))
    lines = sidecar.read_text().splitlines()
    assert lines[4].startswith("train-0001,json,")
    offset, size = map(int, lines[4].split(",")[2:4])
    import google_crc32c

    lines[4] = ",".join([*lines[4].split(",")[:4], f"{google_crc32c.value(content[offset : offset + size]):08x}"])
    sidecar.write_text("\n".join([*lines, ""]))
    _resign(directory, manifest, sidecar.name)
    assert any("its record names 'train-0009'" in problem.what for problem in verify(directory))


def test_a_volume_shard_with_a_gap(tmp_path: Path, build: Build) -> None:
    directory = tmp_path / "set"
    manifest = build(directory, "volume", SIZES)
    name = manifest.splits["train"].shards[0].file
    content = (directory / name).read_bytes()
    import google_crc32c

    index = np.frombuffer(content[-68:-4], "<u8").reshape(4, 2).copy()
    index[:, 0] += 8
    tail = index.tobytes()
    (directory / name).write_bytes(
        bytes(8) + content[:-68] + tail + google_crc32c.value(tail).to_bytes(4, "little")
    )  # fmt: skip
    _resign(directory, manifest, name)
    opened = ShardSet.open(directory)
    assert opened.split("train").read(0) is not None
    assert [problem.what for problem in verify(directory)] == ["the chunk of sample 0 starts at byte 8, not 0"]


def test_manifests_are_read_as_they_are_written(tmp_path: Path, build: Build) -> None:
    manifest = build(tmp_path / "set", "image", SIZES)
    assert (tmp_path / "set" / "manifest.json").read_bytes() == readable_json(manifest.to_json())
