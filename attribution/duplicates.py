"""Rows that are the same, or nearly: the groups that share credit.

Copies split their credit, so that leaving out one does nothing while leaving out all of them does;
what a group does is the sum of its rows' scores (`attribution.sanity.cluster_scores`). A group is
whatever a chain of pairs connects, as the frames of one film are, so that its ends may be less
alike than a pair must be. Groups are numbered in the order of their first rows; a row that is like
no other is alone in its own.
"""

import hashlib

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from schemas.errors import ShapeError

IntArray = npt.NDArray[np.int64]

# Rows of one block of cosines, 16 MiB of them; pairs that are kept before they are merged.
_BLOCK, _PAIRS = 2_048, 1 << 20
# Of a cosine in float32: identical rows must pass a threshold of 1.
_ROUNDING = 2e-6


def same_content(rows: npt.ArrayLike) -> IntArray:
    """Groups of rows with equal values, by BLAKE2 digests of 16 bytes: [n] from [n, ...].

    One pass over the values; 0 and -0 are equal.

    Raises:
        ShapeError: The rows are neither numbers nor texts.
    """
    values = np.asarray(rows)
    if values.ndim < 1 or values.dtype.kind not in "biufU":
        raise ShapeError(f"rows are {values.dtype} of shape {values.shape}; give numbers [n, ...]")
    if values.dtype.kind == "f":
        values = values + values.dtype.type(0)
    values = np.ascontiguousarray(values)
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in values]
    return _in_order(np.unique(np.array(digests, dtype="V16"), return_inverse=True)[1])


def near_duplicates(
    features: npt.ArrayLike, threshold: float = 0.98, *, centred: bool = True
) -> IntArray:
    """Groups of rows whose cosine reaches a threshold: [n] from [n, ...].

    Every pair is looked at: n^2 d / 2 multiply-adds in float32, and 16 MiB beside two copies of the
    features.

    Args:
        features: Float [n, ...], finite: inputs, or any representation; flattened.
        threshold: Cosine, in (0, 1].
        centred: Take the mean row off first. Pictures and counts lie in one orthant, where any two
            are alike.

    Raises:
        ShapeError: No rows, values that are not finite, or no such threshold.
    """
    rows = np.asarray(features)
    if rows.ndim < 2 or len(rows) == 0:
        raise ShapeError(f"features have shape {rows.shape}; give numbers [n, ...]")
    if not 0 < threshold <= 1:
        raise ShapeError(f"threshold is {threshold}; give a cosine above 0, 1 at most")
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    if not np.isfinite(flat).all():
        raise ShapeError("features hold NaN or infinite values; compare only finite features")
    if centred:
        flat -= flat.mean(axis=0)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    units = np.divide(flat, lengths, out=np.zeros_like(flat), where=lengths > 0)
    units = units.astype(np.float32)
    group = np.arange(len(units), dtype=np.int64)
    # Rows at the origin have no direction, and are copies of each other.
    origin = np.flatnonzero(lengths[:, 0] == 0)
    found = [np.stack([origin[:-1], origin[1:]], axis=1)]
    for start in range(0, len(units), _BLOCK):
        for other in range(start, len(units), _BLOCK):
            cosines = units[start : start + _BLOCK] @ units[other : other + _BLOCK].T
            pairs = np.argwhere(cosines >= threshold - _ROUNDING) + np.array([start, other])
            found.append(pairs[pairs[:, 0] < pairs[:, 1]])
            if sum(map(len, found)) > _PAIRS:
                group, found = _merged(group, found), []
    return _in_order(_merged(group, found))


def groups_of(labels: npt.ArrayLike, *, at_least: int = 2) -> list[npt.NDArray[np.intp]]:
    """The rows of each group of some size, the largest group first."""
    of_rows = np.asarray(labels)
    sizes = np.bincount(of_rows)
    large = np.flatnonzero(sizes >= at_least)
    ordered = large[np.argsort(-sizes[large], kind="stable")]
    return [np.flatnonzero(of_rows == group) for group in ordered]


def _merged(group: IntArray, found: list[npt.NDArray[np.intp]]) -> IntArray:
    """Groups once the pairs found are in one."""
    left, right = np.concatenate([*found, np.zeros((0, 2), np.intp)]).T
    n = len(group)
    edges = sparse.coo_array((np.ones(len(left), bool), (group[left], group[right])), shape=(n, n))
    return connected_components(edges, directed=False)[1].astype(np.int64)[group]


def _in_order(group: npt.NDArray[np.integer]) -> IntArray:
    """The same groups, numbered in the order of their first rows."""
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.int64)
    place[np.argsort(first)] = np.arange(len(first))
    return place[number]
