"""The kNN probe against hand-made answers and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from medcoss.contracts import Field, Geometry, Kind, MedcossError, ModalitySpec
from medcoss.evaluate.probe import NoTask, ProbeTask, knn_accuracy, knn_predict, probe_task
from medcoss.shards import Sample, ShardSet, write_manifest, write_split

BANK = np.array([[1, 0], [2, 0.1], [0, 1], [0, 3]], dtype=np.float32)


def test_by_hand():
    queries = np.array([[5, 0.1], [0.1, 9]], dtype=np.float32)
    assert knn_predict(BANK, ["a", "a", "b", "b"], queries, 2) == ["a", "b"]
    assert knn_accuracy(BANK, ["a", "a", "b", "b"], queries, ["a", "a"], 2) == 0.5


def test_length_of_vectors_does_not_count():
    queries = np.array([[100, 1], [0.001, 0.1]], dtype=np.float32)
    assert knn_predict(BANK, ["a", "a", "b", "b"], queries, 1) == ["a", "b"]


def test_ties_go_to_the_nearer_class_then_to_the_first_name():
    bank = np.array([[1, 0], [0, 1]], dtype=np.float32)
    assert knn_predict(bank, ["b", "a"], np.array([[2, 1]], dtype=np.float32), 2) == ["b"]
    assert knn_predict(bank, ["b", "a"], np.array([[1, 1]], dtype=np.float32), 2) == ["a"]


def test_equally_near_neighbours_are_taken_in_order():
    bank = np.ones((6, 3), dtype=np.float32)
    labels = ["x", "y", "y", "x", "x", "x"]
    assert knn_predict(bank, labels, bank[:1], 3) == ["y"]


def test_more_neighbours_than_bank():
    assert knn_predict(BANK, ["a", "a", "a", "b"], BANK[3:], 50) == ["a"]


def test_equals_scikit_learn():
    neighbours = pytest.importorskip("sklearn.neighbors")
    rng = np.random.default_rng(0)
    bank, queries = (rng.standard_normal((n, 8)).astype(np.float32) for n in (700, 600))
    labels = rng.integers(0, 2, 700).tolist()  # two classes and an odd k: no ties
    reference = neighbours.KNeighborsClassifier(7, metric="cosine").fit(bank, labels).predict(queries)
    assert knn_predict(bank, labels, queries, 7) == reference.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_diverged_embeddings_are_an_error(bad):
    queries = np.array([[bad, 0]], dtype=np.float32)
    with pytest.raises(MedcossError, match="diverged"):
        knn_accuracy(BANK, ["a", "a", "b", "b"], queries, ["a"], 1)


def test_zero_vectors_are_no_error():
    assert knn_predict(BANK, ["a", "a", "b", "b"], np.zeros((1, 2), dtype=np.float32), 1) == ["a"]


def _set(directory, train, test) -> ShardSet:
    spec = ModalitySpec("note", Kind.SEQUENCE, Geometry((8,)), (Field("text", "utf8", "utf8"),), "text", vocabulary=9)
    splits, files = {}, {}
    for split, labels in (("train", train), ("test", test)):
        samples = [Sample(f"{split}-{i:03d}", b"x", f"s{i}", label) for i, label in enumerate(labels)]
        splits[split], extra = write_split(directory, spec, split, samples, len(samples), 100)
        files |= extra
    write_manifest(directory, spec=spec, splits=splits, files=files, settings={}, inputs={}, salt_id="t")
    return ShardSet.open(directory)


def test_task_takes_the_fullest_column_and_skips_what_is_unlabelled(tmp_path):
    train = [{"z": "n", "a": 1}, {"z": None, "a": 1}, {"z": "p"}, {"a": 2}, {"z": ""}, {"z": "p"}, {"z": "n"}]
    test = [{"z": "p"}] * 3 + [{"z": "other"}, {"a": 1}, {"z": "n"}, {"z": "p"}]
    task = probe_task(_set(tmp_path, train, test))
    assert isinstance(task, ProbeTask) and task.column == "z"
    assert task.bank.tolist() == [0, 2, 5, 6] and task.bank_labels == ("n", "p", "p", "n")
    assert task.queries.tolist() == [0, 1, 2, 5, 6] and task.query_labels == ("p", "p", "p", "n", "p")
    assert task.chance == 0.8


@pytest.mark.parametrize(("train", "test", "reason"), [
    ([{"y": "a"}], [], "no test split"),
    ([{}], [{"y": "a"}], "no labels"),
    ([{"y": "a"}] * 9, [{"y": "a"}] * 9, "one class only"),
    ([{"y": [1, 2]}] * 9, [{"y": [1]}] * 9, "not one class"),
    ([{"y": 0.5}] * 9, [{"y": 0.5}] * 9, "not one class"),
    ([{"y": i} for i in range(9)], [{"y": 1}] * 9, "9 values for 9 samples"),
    ([{"y": i % 2} for i in range(9)], [{"y": 1}] * 4, "4 labelled test samples"),
])  # fmt: skip
def test_no_task_says_why(tmp_path, train, test, reason):
    task = probe_task(_set(tmp_path, train, test))
    assert isinstance(task, NoTask) and reason in task.reason


def test_the_column_that_labels_most_is_predicted_whatever_sample_comes_first(tmp_path):
    rare, common = [{"rare": "a"}, {"rare": "b"}], [{"common": "p"}, {"common": "n"}] * 8
    for place, train in enumerate((rare + common, common + rare)):
        task = probe_task(_set(tmp_path / str(place), train, common))
        assert isinstance(task, ProbeTask)
        assert task.column == "common"
