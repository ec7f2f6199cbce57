"""Shard sets: samples in tars or Zarr arrays, under one manifest that is the contract with the trainer."""

from medcoss.shards.erasures import ERASURES, Erasure, content_mark, erasures_json, read_erasures
from medcoss.shards.manifest import (
    MANIFEST,
    Manifest,
    ShardFile,
    SplitEntry,
    canonical_json,
    hash_settings,
    read_manifest,
    sha256_file,
)
from medcoss.shards.reader import ShardSet, Split
from medcoss.shards.verify import Problem, set_folders, unlisted, verify
from medcoss.shards.writer import Sample, SplitWriter, WrittenShard, write_manifest, write_shard, write_split
from medcoss.shards.zarr import compress as compress_volume
from medcoss.shards.zarr import decompress as decompress_volume

__all__ = [
    "ERASURES",
    "MANIFEST",
    "Erasure",
    "Manifest",
    "Problem",
    "Sample",
    "ShardFile",
    "ShardSet",
    "Split",
    "SplitEntry",
    "SplitWriter",
    "WrittenShard",
    "canonical_json",
    "compress_volume",
    "content_mark",
    "decompress_volume",
    "erasures_json",
    "hash_settings",
    "read_erasures",
    "read_manifest",
    "set_folders",
    "sha256_file",
    "unlisted",
    "verify",
    "write_manifest",
    "write_shard",
    "write_split",
]
