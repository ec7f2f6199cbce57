"""The buffer's samples: the nearest of every cluster, exactly as many as asked for (METHOD, sections 4 and 7.3)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from medcoss.continual.select import select
from medcoss.contracts import UsageError


def blobs(sizes: list[int], *, width: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points near one of some distant centres, in random row order, and the number of each one's centre."""
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for number, size in enumerate(sizes):
        directions = rng.normal(size=(size, width))
        directions -= directions.mean(axis=0)
        rows.append(1000 * np.eye(len(sizes), width)[number] + directions)
        labels += [number] * size
    order = rng.permutation(sum(sizes))
    return np.concatenate(rows).astype(np.float32)[order], np.array(labels)[order]


def test_the_nearest_members_of_every_cluster_are_chosen() -> None:
    vectors, labels = blobs([30, 40, 50, 60])
    chosen = select(vectors, n=20, n_clusters=4, policy="kmeans", seed=0)
    expected: list[int] = []
    for blob in range(4):
        members = np.flatnonzero(labels == blob)
        distance = np.linalg.norm(vectors[members] - vectors[members].mean(axis=0), axis=1)
        expected += members[np.argsort(distance)[:5]].tolist()
    assert chosen.indices.tolist() == sorted(expected)
    assert chosen.filled == 0
    for index, cluster, distance in zip(chosen.indices, chosen.cluster, chosen.distance, strict=True):
        members = labels == labels[index]
        assert abs(distance - np.linalg.norm(vectors[index] - vectors[members].mean(axis=0))) < 0.01
        assert set(labels[chosen.indices[chosen.cluster == cluster]]) == {labels[index]}


def test_clusters_with_too_few_members_are_filled_from_the_others() -> None:
    vectors, labels = blobs([2, 1, 40, 40])
    chosen = select(vectors, n=20, n_clusters=4, policy="kmeans", seed=0)
    assert len(set(chosen.indices.tolist())) == 20
    assert chosen.filled == 3 + 4
    counts = np.bincount(labels[chosen.indices])
    assert counts[:2].tolist() == [2, 1] and sorted(counts[2:]) == [8, 9]


def test_a_division_with_a_rest_is_not_called_filling() -> None:
    vectors, labels = blobs([30, 30, 30])
    chosen = select(vectors, n=17, n_clusters=3, policy="kmeans", seed=0)
    assert sorted(np.bincount(labels[chosen.indices])) == [5, 6, 6] and chosen.filled == 0


@given(
    count=st.integers(1, 120), share=st.floats(0, 1), centres=st.floats(0, 1), seed=st.integers(0, 9),
    policy=st.sampled_from(["kmeans", "random"]), distinct=st.integers(1, 120),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_request_gives_exactly_that_many_distinct_rows(
    count: int, share: float, centres: float, seed: int, policy: str, distinct: int
) -> None:
    rng = np.random.default_rng(seed)
    distinct = min(distinct, count)
    vectors = rng.normal(size=(distinct, 8)).astype(np.float32)[rng.integers(0, distinct, count)]
    n, n_clusters = max(1, round(share * count)), max(1, round(centres * count))
    chosen = select(vectors, n=n, n_clusters=n_clusters, policy=policy, seed=seed)  # type: ignore[arg-type]
    assert len(chosen.indices) == n and (np.diff(chosen.indices) > 0).all()
    assert chosen.indices.min() >= 0 and chosen.indices.max() < count


def test_selection_is_deterministic_and_seeded() -> None:
    vectors = np.random.default_rng(0).normal(size=(3000, 32)).astype(np.float32)
    for policy in ("kmeans", "random"):
        first, again, other = (select(vectors, n=150, n_clusters=30, policy=policy, seed=seed) for seed in (1, 1, 2))
        assert np.array_equal(first.indices, again.indices) and not np.array_equal(first.indices, other.indices)
        assert np.array_equal(first.distance, again.distance, equal_nan=True)
    assert (first.cluster == -1).all() and np.isnan(first.inertia)


@pytest.mark.parametrize("clumps", [0, 90])
def test_inertia_is_as_good_as_scikit_learns(clumps: int) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(6000, 48)).astype(np.float32)
    if clumps:
        vectors += 4 * rng.normal(size=(clumps, 48)).astype(np.float32)[rng.integers(0, clumps, 6000)]
    vectors += 100  # an offset must not cost precision
    reference = min(KMeans(60, n_init=1, random_state=seed).fit(vectors).inertia_ for seed in range(2))
    assert select(vectors, n=300, n_clusters=60, policy="kmeans", seed=0).inertia <= 1.02 * reference


def test_impossible_requests_are_refused() -> None:
    vectors = np.zeros((5, 4), np.float32)
    for n, n_clusters in ((6, 1), (0, 1), (2, 0), (2, 6)):
        with pytest.raises(UsageError, match="cannot choose"):
            select(vectors, n=n, n_clusters=n_clusters, policy="kmeans", seed=0)
