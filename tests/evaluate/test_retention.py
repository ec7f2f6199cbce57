"""The retention table: rows, reasons, forgetting, what is kept and what is computed again."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from medcoss.contracts import Field, Geometry, Kind, ModalitySpec, UsageError
from medcoss.evaluate.retention import RANDOM_SEEDS, Retention, add_row, column_names, read_retention
from medcoss.shards import Sample, ShardSet, write_manifest, write_split


def _set(directory, name, labels=("p", "n")) -> ShardSet:
    spec = ModalitySpec(name, Kind.SEQUENCE, Geometry((8,)), (Field("text", "utf8", "utf8"),), "text", vocabulary=9)
    splits, files = {}, {}
    for split, count in (("train", 40), ("test", 10)):
        samples = [Sample(f"{split}-{i:03d}", b"x", f"s{i}", {"y": labels[i % len(labels)]}) for i in range(count)]
        splits[split], extra = write_split(directory / name, spec, split, samples, count, 100)
        files |= extra
    write_manifest(directory / name, spec=spec, splits=splits, files=files, settings={}, inputs={}, salt_id="t")
    return ShardSet.open(directory / name)


class Fake:
    """Stands for encoders: `quality[modality]` is the share of queries that end up among their own class."""

    def __init__(self):
        self.calls: list[tuple[object, str, str]] = []

    def __call__(self, encoder, shard_set, split):
        self.calls.append((encoder, shard_set.manifest.name, split))
        vectors = np.zeros((len(shard_set.split(split)), 2), dtype=np.float32)
        for place in range(len(vectors)):
            right = split == "train" or place < encoder[shard_set.manifest.name] * len(vectors)
            vectors[place, place % 2 if right else 1 - place % 2] = 1
        return vectors


def _add(retention, stage, sets, quality, fake, neighbours=5):
    untrained = {0: 0.5, 1: 0.6, 2: 0.4}
    add_row(
        retention,
        stage,
        sets,
        encoder=quality,
        random_encoder=lambda shard_set, seed: {shard_set.manifest.name: untrained[seed]},
        embed=fake,
        neighbours=neighbours,
    )


def test_rows_forgetting_and_averages(tmp_path):
    one, two, three = (_set(tmp_path, name) for name in ("one", "two", "three"))
    table, fake = Retention(), Fake()
    _add(table, "a", {"one": one}, {"one": 0.9}, fake)
    _add(table, "b", {"one": one, "two": two}, {"one": 0.7, "two": 0.8}, fake)
    _add(table, "c", {"one": one, "two": two, "three": three}, {"one": 0.8, "two": 0.9, "three": 1.0}, fake)
    assert table.stages == ["a", "b", "c"] and table.modalities == ["one", "two", "three"]
    assert table.scores == {
        "a": {"one": 0.9},
        "b": {"one": 0.7, "two": 0.8},
        "c": {"one": 0.8, "two": 0.9, "three": 1.0},
    }
    forgetting = table.forgetting()
    assert math.isclose(forgetting["one"], 0.1) and math.isclose(forgetting["two"], -0.1)
    assert forgetting["three"] is None
    assert table.average() == {"a": 0.9, "b": pytest.approx(0.75), "c": pytest.approx(0.9)}
    assert table.chance == dict.fromkeys(table.modalities, 0.5)
    assert table.random_encoder["one"] == pytest.approx(0.5) and table.seeds == list(RANDOM_SEEDS)
    assert table.n_bank["one"] == 40 and table.n_query["one"] == 10 and table.labels["one"] == "y"
    assert Retention.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_random_encoders_are_scored_once_a_set(tmp_path):
    one = _set(tmp_path, "one")
    table, fake = Retention(), Fake()
    _add(table, "a", {"one": one}, {"one": 1.0}, fake)
    assert len(fake.calls) == 2 * (1 + len(RANDOM_SEEDS))
    fake.calls.clear()
    _add(table, "b", {"one": one}, {"one": 1.0}, fake)
    assert len(fake.calls) == 2
    fake.calls.clear()
    _add(table, "c", {"one": one}, {"one": 1.0}, fake, neighbours=3)
    assert len(fake.calls) == 2 * (1 + len(RANDOM_SEEDS)) and table.neighbours == 3


def test_no_score_has_a_reason(tmp_path):
    sets = {"same": _set(tmp_path, "same", labels=("x",)), "gone": None}
    table = Retention()
    _add(table, "a", sets, {}, Fake())
    assert table.scores["a"] == {"same": None, "gone": None}
    assert "one class" in table.reasons["a"]["same"] and "no longer there" in table.reasons["a"]["gone"]
    assert table.chance == {"same": None, "gone": None} and table.average() == {"a": None}
    assert table.forgetting() == {"same": None, "gone": None}


def test_a_repeated_stage_replaces_its_row_and_later_ones(tmp_path):
    one = _set(tmp_path, "one")
    table, fake = Retention(), Fake()
    for stage, quality in (("a", 0.5), ("b", 0.6), ("c", 0.7), ("b", 0.9)):
        _add(table, stage, {"one": one}, {"one": quality}, fake)
    assert table.stages == ["a", "b"] and table.scores == {"a": {"one": 0.5}, "b": {"one": 0.9}}


def test_column_names_stay_when_a_modality_comes_again():
    assert column_names([("first", "xray"), ("ct", "ct"), ("more", "xray")]) == ["xray", "ct", "more"]


def test_unreadable_tables_are_refused(tmp_path):
    path = tmp_path / "retention.json"
    assert read_retention(path) is None
    path.write_text("{")
    with pytest.raises(UsageError, match="not JSON"):
        read_retention(path)
    path.write_text('{"schema_version": 99}')
    with pytest.raises(UsageError, match="schema"):
        read_retention(path)
