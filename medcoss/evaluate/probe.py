"""The k-nearest-neighbour probe: do samples of one class lie near each other in the encoder's space?

Nothing is trained, so the probe shows the representation and not a classifier's luck.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medcoss.contracts import MedcossError
from medcoss.shards.reader import ShardSet, Split

Label = str | int | bool

BANK_SPLIT, QUERY_SPLIT = "train", "test"
FEWEST_QUERIES = 5
"""Below this many labelled test samples an accuracy says nothing; it is left out, with that reason."""
_QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class ProbeTask:
    """What is predicted: a label column, and the labelled samples of both splits by position, with their labels."""

    column: str
    bank: NDArray[np.int64]
    bank_labels: tuple[Label, ...]
    queries: NDArray[np.int64]
    query_labels: tuple[Label, ...]

    @property
    def chance(self) -> float:
        """Accuracy of always naming the class that is most frequent among the queries."""
        return max(Counter(self.query_labels).values()) / len(self.query_labels)


@dataclass(frozen=True)
class NoTask:
    """Why a shard set has no probe."""

    reason: str


def probe_task(shard_set: ShardSet) -> ProbeTask | NoTask:
    """The probe that a shard set's labels allow; reads every record of the train and test split.

    The column that labels most train samples is predicted. Samples without that label, and queries of a class the
    train split lacks, take no part. Raises `MedcossError` for damaged records.
    """
    splits = shard_set.manifest.splits
    for name in (BANK_SPLIT, QUERY_SPLIT):
        if name not in splits or not splits[name].samples:
            return NoTask(f"no {name} split")
    bank, queries = shard_set.split(BANK_SPLIT), shard_set.split(QUERY_SPLIT)
    labels = [bank.record(index)["labels"] for index in range(len(bank))]
    column = _fullest_column(labels)
    if column is None:
        return NoTask("no labels")
    bank_places, bank_labels = _labelled(labels, column)
    query_places, query_labels = _labelled(_labels(queries), column)
    if not all(isinstance(label, str | int) for label in (*bank_labels, *query_labels)):
        return NoTask(f"label {column} is not one class a sample")
    classes = set(bank_labels)
    if len(classes) < 2:
        return NoTask(f"label {column} has one class only")
    if len(classes) > len(bank_labels) / 2:
        return NoTask(f"label {column} has {len(classes)} values for {len(bank_labels)} samples: no classes")
    known = [place for place, label in enumerate(query_labels) if label in classes]
    if len(known) < FEWEST_QUERIES:
        return NoTask(f"{len(known)} labelled test samples, fewer than {FEWEST_QUERIES}")
    return ProbeTask(
        column,
        np.array(bank_places, dtype=np.int64),
        tuple(bank_labels),
        np.array([query_places[place] for place in known], dtype=np.int64),
        tuple(query_labels[place] for place in known),
    )


def _labels(split: Split) -> Iterable[Mapping[str, Any]]:
    return (split.record(index)["labels"] for index in range(len(split)))


def _fullest_column(records: Iterable[Mapping[str, Any]]) -> str | None:
    """The column with a value in most records, of equals the one that comes first; None if there is no value at all."""
    filled = Counter(name for labels in records for name, value in labels.items() if value not in (None, ""))
    return max(filled, key=lambda name: filled[name], default=None)


def _labelled(records: Iterable[Mapping[str, Any]], column: str) -> tuple[list[int], list[Any]]:
    found = [(place, labels.get(column)) for place, labels in enumerate(records)]
    found = [(place, label) for place, label in found if label not in (None, "")]
    return [place for place, _ in found], [label for _, label in found]


def knn_predict(
    bank: NDArray[np.float32], bank_labels: Sequence[Label], queries: NDArray[np.float32], k: int
) -> list[Label]:
    """The class of each query (Q, D) by vote of its `k` nearest of the bank (N, D) in cosine similarity.

    Each neighbour has one vote. A tie goes to the class whose neighbours are more similar in sum, then to the class
    first in order of names; among equally similar neighbours the earlier in the bank counts. With fewer than `k` in the
    bank all vote. Raises `MedcossError` for an empty bank, lengths that differ, or numbers that are not finite.
    """
    if k < 1 or len(bank) == 0 or len(bank) != len(bank_labels):
        raise MedcossError(
            f"kNN probe: {len(bank)} vectors, {len(bank_labels)} labels, k = {k}: expected equal and > 0"
        )
    if not (np.isfinite(bank).all() and np.isfinite(queries).all()):
        raise MedcossError(
            "kNN probe: embeddings hold NaN or infinity: the model has diverged, lower the learning rate"
        )
    k = min(k, len(bank))
    classes = sorted(set(bank_labels), key=str)
    numbers = {label: number for number, label in enumerate(classes)}
    codes = np.array([numbers[label] for label in bank_labels], dtype=np.int64)
    directions = _unit(bank)
    predicted: list[Label] = []
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        similarity = _unit(queries[start : start + _QUERIES_AT_ONCE]) @ directions.T
        for row in similarity:
            nearest = _nearest(row, k)
            votes = np.bincount(codes[nearest], minlength=len(classes))
            # Rounded: sums of equal similarities in another order must stay equal.
            weight = np.bincount(codes[nearest], weights=row[nearest].astype(np.float64), minlength=len(classes)).round(
                9
            )
            predicted.append(classes[int(np.lexsort((np.arange(len(classes)), -weight, -votes))[0])])
    return predicted


def knn_accuracy(
    bank: NDArray[np.float32],
    bank_labels: Sequence[Label],
    queries: NDArray[np.float32],
    query_labels: Sequence[Label],
    k: int,
) -> float:
    """Share of queries whose class `knn_predict` names rightly, in [0, 1]; same errors, and one for no query at all."""
    if len(queries) == 0 or len(queries) != len(query_labels):
        raise MedcossError(f"kNN probe: {len(queries)} queries, {len(query_labels)} labels: expected equal and > 0")
    predicted = knn_predict(bank, bank_labels, queries, k)
    return sum(p == label for p, label in zip(predicted, query_labels, strict=True)) / len(queries)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, np.finfo(np.float32).tiny), dtype=np.float32)


def _nearest(similarity: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Places of the `k` largest values; of equal ones the first."""
    if k < len(similarity):
        threshold = np.partition(similarity, len(similarity) - k)[len(similarity) - k]
        candidates = np.flatnonzero(similarity >= threshold)
    else:
        candidates = np.arange(len(similarity))
    return candidates[np.argsort(-similarity[candidates], kind="stable")[:k]]
