"""Near-duplicates: groups of rows whose features point the same way.

Copies split their credit, so that leaving out one does nothing while leaving out all of them does;
what a group does is the sum of its rows' scores (`attribution.sanity.cluster_scores`).
"""

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from schemas.errors import ShapeError

IndexArray = npt.NDArray[np.intp]

_BLOCK = 1_024


def near_duplicates(
    features: npt.ArrayLike, *, threshold: float = 0.98, centred: bool = True
) -> IndexArray:
    """Groups of rows that are linked by cosines of at least `threshold`: int [n], 0..k-1.

    A group is a connected component: its ends may be less alike than the threshold, as frames of
    one film are. Numbered by first appearance; a row without a near-duplicate is alone in its own.

    Args:
        features: Float [n, ...]: inputs, or any representation; flattened.
        threshold: Least cosine of two near-duplicates, above 0 and up to 1.
        centred: Take the mean row off first. Pictures and counts lie in one orthant, where any two
            are alike.

    Raises:
        ShapeError: No rows, values that are not finite, or no such threshold.
    """
    rows = np.asarray(features)
    if rows.ndim < 1 or len(rows) == 0 or not 0 < threshold <= 1:
        raise ShapeError(
            f"features have shape {rows.shape} and the threshold is {threshold}; give rows and a "
            "cosine in (0, 1]"
        )
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    if not np.isfinite(flat).all():
        raise ShapeError("features hold NaN or infinite values; compare only finite features")
    if centred:
        flat -= flat.mean(axis=0)
    lengths = np.sqrt((flat**2).sum(axis=1, keepdims=True))
    # A row at the centre is like no other; its copies are found below, by equality.
    unit = np.divide(flat, lengths, out=np.zeros_like(flat), where=lengths > 0)
    least = threshold - 1e-9  # a row's cosine with its copy may round to just under 1
    pairs = [_linked(unit, start, least) for start in range(0, len(unit), _BLOCK)]
    origin = np.flatnonzero(lengths[:, 0] == 0)
    first = np.concatenate([*(left for left, _ in pairs), origin[:-1]])
    second = np.concatenate([*(right for _, right in pairs), origin[1:]])
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(len(unit),) * 2)
    labels = connected_components(graph, directed=False)[1]
    _, seen, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(seen))[inverse].astype(np.intp)


def groups_of(labels: npt.ArrayLike, *, at_least: int = 2) -> list[IndexArray]:
    """The rows of each group of some size, the largest group first."""
    of_rows = np.asarray(labels)
    sizes = np.bincount(of_rows)
    large = np.flatnonzero(sizes >= at_least)
    ordered = large[np.argsort(-sizes[large], kind="stable")]
    return [np.flatnonzero(of_rows == group) for group in ordered]


def _linked(
    unit: npt.NDArray[np.float64], start: int, least: float
) -> tuple[IndexArray, IndexArray]:
    """Pairs (i, j > i) with i in the block from `start`, as two arrays."""
    cosines = unit[start : start + _BLOCK] @ unit[start:].T
    left, right = np.nonzero(np.triu(cosines >= least, k=1))
    return left + start, right + start
