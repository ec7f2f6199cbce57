"""Which samples represent a set: k-means on embeddings, the nearest of every cluster. Only place that imports FAISS."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import faiss
import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from medcoss.contracts import UsageError, derive_seed

ITERATIONS = 30
"""Most k-means iterations; from k-means++ starts the inertia moves by less than 1 % after them."""

_SEEDING_ROWS = 10_000
_SEEDING_ROWS_PER_CLUSTER = 16


@dataclass(frozen=True)
class Selection:
    """The chosen samples, ascending: `indices` (n,) int64, their `cluster` and Euclidean `distance` to its centre.

    `filled` counts those taken in place of members that clusters with too few did not have. `inertia` is the sum of all
    samples' squared distances to their centres. Under the random policy clusters are -1, distances and inertia NaN.
    """

    indices: NDArray[np.int64]
    cluster: NDArray[np.int64]
    distance: NDArray[np.float32]
    filled: int
    inertia: float


def select(
    vectors: Float32[np.ndarray, "N width"],
    *,
    n: int,
    n_clusters: int,
    policy: Literal["kmeans", "random"],
    seed: int,
) -> Selection:
    """Choose exactly `n` rows of `vectors`; the same on every call.

    kmeans: the n // n_clusters rows nearest to each centre; what is still missing (the division's rest and clusters
    with fewer members) comes from the next nearest of the other clusters, one of each in turn, nearest first.
    Raises `UsageError` if there are fewer than `n` rows or if a number is not positive.
    """
    count = len(vectors)
    if not 1 <= n <= count or not 1 <= n_clusters <= count:
        raise UsageError(f"cannot choose {n} of {count} samples by {n_clusters} clusters: check ratio and centers")
    if policy == "random":
        rng = np.random.default_rng(derive_seed(seed, "random buffer"))
        indices = np.sort(rng.choice(count, n, replace=False)).astype(np.int64)
        return Selection(indices, np.full(n, -1), np.full(n, np.nan, np.float32), 0, math.nan)
    squared, cluster = cluster_rows(vectors, n_clusters, derive_seed(seed, "k-means"))
    rank = _rank_in_cluster(cluster, squared)
    chosen = np.sort(np.lexsort((squared, rank))[:n])
    sizes = np.bincount(cluster, minlength=n_clusters)
    filled = int(np.maximum(n // n_clusters - sizes, 0).sum())
    inertia = float(squared.sum(dtype=np.float64))
    return Selection(chosen, cluster[chosen], np.sqrt(squared[chosen]), filled, inertia)


def cluster_rows(
    vectors: Float32[np.ndarray, "N width"], n_clusters: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """k-means: squared distance to the nearest centre and that centre's number, for each row."""
    # Distances are differences of squared norms in float32: without the common offset they lose fewer digits.
    rows = np.ascontiguousarray(vectors - vectors.mean(axis=0, dtype=np.float64), np.float32)
    centres = _spread_centres(rows, n_clusters, np.random.default_rng(seed))
    squared, cluster = _nearest(rows, centres)
    for _ in range(ITERATIONS):
        previous = cluster
        centres = _means(rows, cluster, squared, n_clusters)
        squared, cluster = _nearest(rows, centres)
        if np.array_equal(cluster, previous):
            break
    return squared, cluster


def _nearest(rows: NDArray[np.float32], centres: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Squared distance to the nearest centre and its number, for each row: an exact search, on a GPU if FAISS has one.

    Its `Kmeans` is not used: it subsamples, starts from random rows, and its vectors of floats clash with those of
    SimpleITK where both are loaded in one process.
    """
    index: faiss.Index = faiss.IndexFlatL2(rows.shape[1])
    if faiss.get_num_gpus():
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(centres)
    squared, cluster = index.search(rows, 1)
    return np.maximum(squared[:, 0], 0), cluster[:, 0].astype(np.int64)


def _means(
    rows: NDArray[np.float32], cluster: NDArray[np.int64], squared: NDArray[np.float32], n_clusters: int
) -> NDArray[np.float32]:
    """Mean of each cluster's rows; clusters without rows start anew at the rows farthest from their centres."""
    sizes = np.bincount(cluster, minlength=n_clusters)
    order = np.argsort(cluster, kind="stable")
    starts = (np.cumsum(sizes) - sizes)[sizes > 0]
    centres = np.empty((n_clusters, rows.shape[1]), np.float32)
    sums = np.add.reduceat(rows[order], starts, axis=0, dtype=np.float64)
    centres[sizes > 0] = sums / sizes[sizes > 0, None]
    empty = np.flatnonzero(sizes == 0)
    centres[empty] = rows[np.argsort(-squared, kind="stable")[: len(empty)]]
    return centres


def _spread_centres(rows: NDArray[np.float32], n_clusters: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Greedy k-means++ starting centres (FAISS's own, plain random rows, end in a worse optimum).

    Drawn from at most 16 rows a cluster (or 10,000): more cost time and do not lower the final inertia.
    """
    limit = max(_SEEDING_ROWS, _SEEDING_ROWS_PER_CLUSTER * n_clusters)
    if len(rows) > limit:
        rows = rows[np.sort(rng.choice(len(rows), limit, replace=False))]
    norms = np.einsum("ij,ij->i", rows, rows)
    tries = 2 + int(math.log(n_clusters))
    centres = [int(rng.integers(len(rows)))]
    nearest = _squared_distances(rows, norms, centres)[:, 0]
    while len(centres) < n_clusters:
        cumulative = np.cumsum(nearest, dtype=np.float64)
        drawn = rng.random(tries) * cumulative[-1]
        candidates = np.minimum(np.searchsorted(cumulative, drawn, side="right"), len(rows) - 1).tolist()
        closer = np.minimum(_squared_distances(rows, norms, candidates), nearest[:, None])
        best = int(np.argmin(closer.sum(axis=0, dtype=np.float64)))
        centres.append(candidates[best])
        nearest = closer[:, best]
    return np.ascontiguousarray(rows[centres])


def _squared_distances(rows: NDArray[np.float32], norms: NDArray[np.float32], chosen: list[int]) -> NDArray[np.float32]:
    """(N, len(chosen)): from every row to the chosen rows; exactly 0 to itself."""
    distances = np.maximum(norms[:, None] - 2 * (rows @ rows[chosen].T) + norms[chosen], 0)
    distances[chosen, np.arange(len(chosen))] = 0
    return np.asarray(distances, np.float32)


def _rank_in_cluster(cluster: NDArray[np.int64], squared: NDArray[np.float32]) -> NDArray[np.int64]:
    """0 for the member nearest to its centre, 1 for the next, and so on; ties by row number."""
    order = np.lexsort((squared, cluster))
    sizes = np.bincount(cluster)
    starts = np.cumsum(sizes) - sizes
    rank = np.empty(len(cluster), np.int64)
    rank[order] = np.arange(len(cluster)) - starts[cluster[order]]
    return rank
