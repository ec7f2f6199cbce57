"""What every format promises: what was written is read back, the same bytes come twice, damage is named."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medcoss.contracts import MedcossError, UsageError
from medcoss.shards import ShardSet, read_manifest, verify, write_split

SIZES = {"train": 10, "val": 0, "test": 3}


def _tree(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def test_reads_back_what_was_written(tmp_path, kind, build, samples_of):
    build(tmp_path / "set", kind, SIZES)
    opened = ShardSet.open(tmp_path / "set")
    split = opened.split("train")
    assert (len(opened), len(split), split.shard_sizes) == (10, 10, (4, 4, 2))
    expected = samples_of(kind, "train", 10)
    assert split.keys == [sample.key for sample in expected]
    for index, sample in enumerate(expected):
        found = opened[index]
        assert found.record() == sample.record()
        assert list(found.labels) == ["zeta", "alpha"], "the order of labels is kept"
        if kind == "volume":
            assert (
                np.array_equal(found.data, sample.data) and found.data.dtype == np.int16 and found.data.flags.writeable
            )
        else:
            assert found.data == sample.data
    assert [sample.key for sample in opened] == split.keys
    with pytest.raises(IndexError):
        split.read(10)
    with pytest.raises(IndexError):
        split.read(-1)


def test_empty_split_has_no_shards(tmp_path, kind, build):
    manifest = build(tmp_path / "set", kind, SIZES)
    assert manifest.splits["val"].samples == 0 and manifest.splits["val"].shards == ()
    split = ShardSet.open(tmp_path / "set").split("val")
    assert len(split) == 0 and split.keys == []
    assert not list((tmp_path / "set").glob("val*"))


def test_same_bytes_twice(tmp_path, kind, build):
    build(tmp_path / "one", kind, SIZES)
    build(tmp_path / "two", kind, SIZES)
    assert _tree(tmp_path / "one") == _tree(tmp_path / "two")


def test_manifest_lists_every_file_and_counts_subjects(tmp_path, kind, build):
    manifest = build(tmp_path / "set", kind, SIZES)
    listed = dict(manifest.files)
    for entry in manifest.splits.values():
        listed |= {shard.file: shard.sha256 for shard in entry.shards}
    found = _tree(tmp_path / "set")
    del found["manifest.json"]
    assert listed == found
    assert manifest.splits["train"].subjects == 5
    assert [shard.bytes for shard in manifest.splits["train"].shards] == [
        (tmp_path / "set" / shard.file).stat().st_size for shard in manifest.splits["train"].shards
    ]


def test_whole_set_verifies(tmp_path, kind, build):
    build(tmp_path / "set", kind, SIZES)
    seen: list[int] = []
    assert verify(tmp_path / "set", seen.append) == []
    assert sum(seen) == sum(
        p.stat().st_size for p in (tmp_path / "set").rglob("*") if p.name != "manifest.json" and p.is_file()
    )


def test_flipped_byte_is_found_on_read_and_by_verify(tmp_path, kind, build):
    manifest = build(tmp_path / "set", kind, SIZES)
    shard = manifest.splits["train"].shards[1]
    # In a tar the first member lies behind its 512-byte header; a Zarr shard starts with its first chunk.
    _flip(tmp_path / "set" / shard.file, 50 if kind == "volume" else 520)
    opened = ShardSet.open(tmp_path / "set")
    with pytest.raises(MedcossError, match=f"train-0004.*{shard.file}") as caught:
        opened.split("train").read(4)
    assert caught.value.exit_code == 1 and "\n" not in str(caught.value)
    assert opened.split("train").read(5) is not None, "its neighbours are still readable"
    problems = verify(tmp_path / "set")
    assert [problem.file for problem in problems] == [shard.file]
    assert "train-0004" in problems[0].what


def test_cut_and_missing_shards_are_named(tmp_path, kind, build):
    manifest = build(tmp_path / "set", kind, SIZES)
    first, second = (tmp_path / "set" / shard.file for shard in manifest.splits["train"].shards[:2])
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    split = ShardSet.open(tmp_path / "set").split("train")
    for index, shard in ((0, first), (4, second)):
        with pytest.raises(MedcossError, match=str(shard)):
            split.read(index)
    assert {problem.file for problem in verify(tmp_path / "set")} == {
        shard.file for shard in manifest.splits["train"].shards[:2]
    }


def test_damaged_side_file_is_named(tmp_path, kind, build):
    manifest = build(tmp_path / "set", kind, SIZES)
    for name in manifest.files:
        path = tmp_path / "set" / name
        content = path.read_bytes()
        _flip(path, len(content) // 2)
        assert name in [problem.file for problem in verify(tmp_path / "set")]
        with pytest.raises(MedcossError, match=name):
            ShardSet.open(tmp_path / "set").file(name)
        path.write_bytes(content)


def test_altered_manifest_is_refused(tmp_path, kind, build):
    build(tmp_path / "set", kind, SIZES)
    path = tmp_path / "set" / "manifest.json"
    data = json.loads(path.read_text())
    data["settings"]["size"] = [64, 64]
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="fingerprint"):
        ShardSet.open(tmp_path / "set")
    assert [problem.file for problem in verify(tmp_path / "set")] == ["manifest.json"]


def test_versions_of_the_writer_do_not_change_the_fingerprint(tmp_path, build):
    manifest = build(tmp_path / "set", "image", SIZES)
    assert replace(manifest, created_by={"medcoss": "9"}).computed_fingerprint() == manifest.fingerprint
    assert replace(manifest, salt_id="other").computed_fingerprint() != manifest.fingerprint
    assert read_manifest(tmp_path / "set") == manifest


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", "a/../../b", "a\\b", "./a", ""])
def test_names_that_leave_the_folder_are_refused(tmp_path, build, name):
    build(tmp_path / "set", "image", SIZES)
    path = tmp_path / "set" / "manifest.json"
    data = json.loads(path.read_text())
    data["files"][name] = "0" * 64
    path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="may leave its folder"):
        ShardSet.open(tmp_path / "set")


def test_strays_and_duplicate_keys_are_problems(tmp_path, kind, build):
    build(tmp_path / "set", kind, {"train": 3})
    (tmp_path / "set" / "train-000007.tar").write_bytes(b"left over")
    assert [problem.file for problem in verify(tmp_path / "set")] == ["train-000007.tar"]


@pytest.mark.parametrize("key", ["../../x", "a.b", "A", "a/b", ""])
def test_unsafe_keys_are_refused(tmp_path, kind, samples_of, specs, key):
    sample = samples_of(kind, "train", 1)[0]
    sample.key = key
    with pytest.raises(UsageError, match="key"):
        write_split(tmp_path, specs[kind], "train", [sample], 1, 4)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("order", "count", "message"),
    [
        ([1, 0], 2, "ascending"),
        ([0, 0], 2, "ascending"),
        ([0, 1], 3, "2 samples came"),
        ([0, 1, 2], 2, "one more"),
    ],
)
def test_wrong_order_and_number_leave_nothing(tmp_path, kind, samples_of, specs, order, count, message):
    samples = samples_of(kind, "train", 3)
    with pytest.raises(MedcossError, match=message):
        write_split(tmp_path, specs[kind], "train", [samples[i] for i in order], count, 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_finished_set_is_not_written_over(tmp_path, kind, build):
    build(tmp_path, kind, {"train": 3})
    before = _tree(tmp_path)
    with pytest.raises(UsageError, match="finished shard set"):
        build(tmp_path, kind, {"train": 4})
    assert _tree(tmp_path) == before


_WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
import conftest
samples = conftest.make_samples({kind!r}, "train", 10)
def slow():
    for number, sample in enumerate(samples):
        if number == 6:
            print("half way", flush=True)
            time.sleep(60)
        yield sample
from medcoss.shards import write_split
write_split(Path({out!r}), conftest.SPECS[{kind!r}], "train", slow(), 10, 4)
"""


def test_killed_writer_commits_nothing_and_the_next_run_gives_the_same_bytes(tmp_path, kind, build):
    code = _WRITER.format(here=str(Path(__file__).parent), kind=kind, out=str(tmp_path / "set"))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "half way\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with pytest.raises(UsageError, match="no finished shard set"):
        ShardSet.open(tmp_path / "set")
    complete = [
        p for p in (tmp_path / "set").rglob("*") if p.name in ("train-000001.tar",) or str(p).endswith("c/1/0/0/0")
    ]
    assert complete == [], "the shard that was being written does not carry its final name"
    build(tmp_path / "set", kind, SIZES)
    build(tmp_path / "whole", kind, SIZES)
    assert _tree(tmp_path / "set") == _tree(tmp_path / "whole")


def test_many_threads_read_the_same_set(tmp_path, kind, build, samples_of):
    build(tmp_path / "set", kind, {"train": 40}, shard_size=3)
    split = ShardSet.open(tmp_path / "set").split("train")
    split._shards._files._limit = 2  # force eviction of files that other threads are reading
    expected = samples_of(kind, "train", 40)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(split.read, [i % 40 for i in range(400)]))
    assert all(np.array_equal(found[i], expected[i % 40].data) for i in range(400))


def test_shards_do_not_import_torch():
    code = "import sys, medcoss.shards; assert 'torch' not in sys.modules and 'zarr' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)
