"""Shards one by one: tar headers to the byte, volumes that come compressed, what a writer leaves behind."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from medcoss.contracts import Field, MedcossError
from medcoss.shards import SplitWriter, compress_volume, decompress_volume, write_shard, write_split
from medcoss.shards.tar import _header


@pytest.mark.parametrize("size", [0, 1, 511, 512, 77_777, 8**7, 8**11 - 1])
@pytest.mark.parametrize("name", ["a.txt", "k" * 95 + ".json", "0123456789abcdef-0001x0002.jpg"])
def test_headers_are_those_of_the_standard_library(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, 0
    assert _header(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


def test_headers_refuse_what_they_cannot_hold() -> None:
    with pytest.raises(MedcossError, match="too long"):
        _header("k" * 97 + ".txt", 1)
    with pytest.raises(MedcossError, match="at most 8589934591"):
        _header("k.txt", 8**11)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "float16", "float32"])
def test_compressed_volumes_come_back(dtype: str) -> None:
    volume = (np.random.default_rng(0).normal(0, 30, (5, 7, 9))).astype(dtype)
    turned = np.asfortranarray(volume)
    chunk = compress_volume(volume)
    assert compress_volume(turned) == chunk
    back = decompress_volume(chunk, volume.dtype, volume.shape)
    assert back.dtype == volume.dtype and back.flags.writeable
    assert np.array_equal(back, volume)


def test_a_compressed_volume_is_stored_as_the_volume_itself(tmp_path: Path, specs, samples_of) -> None:
    samples = samples_of("volume", "train", 5)
    write_split(tmp_path / "plain", specs["volume"], "train", samples, 5, 2)
    for sample in samples:
        sample.data = compress_volume(sample.data)
    write_split(tmp_path / "compressed", specs["volume"], "train", samples, 5, 2)
    trees = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "plain", tmp_path / "compressed")
    ]
    assert trees[0] == trees[1]
    assert len(trees[0]) > 5


def test_bytes_that_are_no_volume_of_the_spec_are_refused(tmp_path: Path, specs, samples_of) -> None:
    sample = samples_of("volume", "train", 1)[0]
    chunk = compress_volume(sample.data)
    other = compress_volume(sample.data[:, :, :-1])
    wider = compress_volume(sample.data.astype(np.int32)[:, :, : sample.data.shape[2] // 2])
    for data in (b"", chunk[:10], chunk[:-1], chunk + b"\0", other, wider):
        sample.data = data
        with pytest.raises(MedcossError, match="expected a compressed volume int16"):
            write_split(tmp_path, specs["volume"], "train", [sample], 1, 4)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_shards_in_any_order_make_the_same_split(tmp_path: Path, kind, specs, samples_of) -> None:
    samples = samples_of(kind, "train", 10)
    expected = write_split(tmp_path / "in_order", specs[kind], "train", samples, 10, 4)
    folder = tmp_path / "backwards"
    with SplitWriter(folder, specs[kind], "train", 10, 4) as writer:
        for _ in writer.noted(samples):
            pass
        written = {n: write_shard(folder, specs[kind], "train", n, 4, samples[4 * n : 4 * n + 4]) for n in (2, 0, 1)}
        found = writer.close([written[n] for n in range(writer.shards)])
    assert found == expected
    assert writer.shards == 3


def test_a_writer_that_is_not_closed_leaves_nothing(tmp_path: Path, kind, specs, samples_of) -> None:
    samples = samples_of(kind, "train", 3)
    with SplitWriter(tmp_path, specs[kind], "train", 3, 4) as writer:
        for _ in writer.noted(samples):
            pass
        write_shard(tmp_path, specs[kind], "train", 0, writer.shard_size, samples)
        assert any(path.is_file() for path in tmp_path.rglob("*"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_stock_zarr_reads_floats_whose_bytes_were_shuffled(tmp_path: Path, specs, samples_of) -> None:
    spec = replace(specs["volume"], fields=(Field("volume", "zarr", "float16"),))
    samples = samples_of("volume", "train", 5)
    for number, sample in enumerate(samples):
        sample.data = np.random.default_rng(number).normal(0, 1, sample.data.shape).astype(np.float16)
    write_split(tmp_path, spec, "train", samples, 5, 2)
    stock = zarr.open_array(tmp_path / "train.zarr" / "volume", mode="r")
    assert np.array_equal(stock[:], np.stack([sample.data for sample in samples]))
    stored = json.loads((tmp_path / "train.zarr" / "volume" / "zarr.json").read_text())["codecs"][0]["configuration"]
    assert stored["codecs"][1]["configuration"]["shuffle"] == "shuffle"
