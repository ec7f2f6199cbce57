"""Programs that know nothing of medcoss read its shards."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile

import numpy as np
import pytest
from PIL import Image

from medcoss.contracts import Field, Geometry, Kind, ModalitySpec
from medcoss.shards import Sample, ShardSet, write_split


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the library leaves closing to the collector
def test_webdataset_reads_the_tars(tmp_path, build, samples_of):
    import webdataset

    build(tmp_path, "image", {"train": 10})
    urls = [str(path) for path in sorted(tmp_path.glob("train-*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    expected = samples_of("image", "train", 10)
    assert [sample["__key__"] for sample in found] == [sample.key for sample in expected]
    for sample, want in zip(found, expected, strict=True):
        assert sample["jpg"] == want.data
        assert json.loads(sample["json"]) == want.record()


def test_tarfile_and_gnu_tar_read_the_tars(tmp_path, build):
    build(tmp_path, "sequence", {"train": 3})
    with tarfile.open(tmp_path / "train-000000.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members][:2] == ["train-0000.txt", "train-0000.json"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    listed = subprocess.run(
        ["tar", "tf", str(tmp_path / "train-000000.tar")], check=True, capture_output=True, text=True
    )
    assert listed.stdout.split() == [member.name for member in members] and listed.stderr == ""


def test_dali_reads_the_tars_by_our_index(tmp_path, build, samples_of):
    fn = pytest.importorskip("nvidia.dali.fn", reason="DALI is not installed")
    from nvidia.dali import pipeline_def

    build(tmp_path, "image", {"train": 10})
    tars = sorted(tmp_path.glob("train-*.tar"))

    @pipeline_def(batch_size=5, num_threads=1, device_id=None)
    def pipeline():
        jpeg, record = fn.readers.webdataset(
            paths=[str(path) for path in tars],
            index_paths=[str(path.with_suffix(".idx")) for path in tars],
            ext=["jpg", "json"],
            name="reader",
        )
        return jpeg, record, fn.decoders.image(jpeg)

    pipe = pipeline()
    pipe.build()
    assert pipe.epoch_size("reader") == 10
    expected = samples_of("image", "train", 10)
    for batch in range(2):
        jpegs, records, images = pipe.run()
        for place in range(5):
            want = expected[5 * batch + place]
            assert jpegs.at(place).tobytes() == want.data
            assert json.loads(records.at(place).tobytes()) == want.record()
            reference = np.asarray(Image.open(io.BytesIO(want.data)))
            assert np.abs(images.at(place).astype(int) - reference).mean() < 2


def test_dali_index_equals_dalis_own_tool(tmp_path, build):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    import shutil
    import sys
    from pathlib import Path

    tool = shutil.which("wds2idx", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("wds2idx is not installed")
    build(tmp_path, "image", {"train": 4})
    subprocess.run(
        [tool, str(tmp_path / "train-000000.tar"), str(tmp_path / "own.idx")], check=True, capture_output=True
    )
    assert (tmp_path / "train-000000.idx").read_text().split() == (tmp_path / "own.idx").read_text().split()


@pytest.mark.parametrize("dtype", ["int16", "float16"])
def test_zarr_reads_the_volumes(tmp_path, dtype):
    import zarr

    spec = ModalitySpec("scan", Kind.VOLUME, Geometry((1, 4, 8, 8)), (Field("volume", "zarr", dtype),), "as stored")
    rng = np.random.default_rng(0)
    samples = [
        Sample(f"k{i:02d}-0", (1000 * rng.standard_normal((4, 8, 8))).astype(dtype), f"s{i}", {"t": "ä"})
        for i in range(7)
    ]
    entry, _ = write_split(tmp_path, spec, "train", samples, 7, 3)
    group = zarr.open_group(tmp_path / "train.zarr", mode="r")
    assert group["volume"].shape == (7, 4, 8, 8) and group["volume"].dtype == dtype
    assert group["volume"].chunks == (1, 4, 8, 8) and group["volume"].shards == (3, 4, 8, 8)
    assert np.array_equal(group["volume"][:], np.stack([sample.data for sample in samples]))
    assert group["key"][:].tolist() == [sample.key for sample in samples]
    assert [json.loads(text) for text in group["meta"][:].tolist()] == [sample.record() for sample in samples]
    assert [shard.file for shard in entry.shards] == [f"train.zarr/volume/c/{i}/0/0/0" for i in range(3)]


def test_stock_zarr_finds_a_flipped_byte(tmp_path, build):
    import zarr

    manifest = build(tmp_path, "volume", {"train": 3})
    path = tmp_path / manifest.splits["train"].shards[0].file
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_group(tmp_path / "train.zarr", mode="r")["volume"][0]


def test_volumes_of_another_layout_are_refused(tmp_path, build):
    import hashlib
    from dataclasses import replace

    from medcoss.contracts import UsageError
    from medcoss.shards.reader import Split

    manifest = build(tmp_path, "volume", {"train": 3})
    name = "train.zarr/volume/zarr.json"
    altered = (tmp_path / name).read_bytes().replace(b'"blosc"', b'"gzip"')
    (tmp_path / name).write_bytes(altered)
    listed = replace(manifest, files=manifest.files | {name: hashlib.sha256(altered).hexdigest()})
    with pytest.raises(UsageError, match="layout"):
        Split("train", tmp_path, listed)
    assert ShardSet.open(tmp_path).spec == manifest.spec
