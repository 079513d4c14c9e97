"""Rows that are the same, or nearly: group numbers for selections of at most one row a group.

A group is whatever a chain of pairs connects, so that its ends may be less alike than a pair must
be. Groups are numbered in the order of their first rows.
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
    """
    values = np.asarray(rows)
    if values.ndim < 1 or values.dtype.kind not in "biufU":
        raise ShapeError(f"rows are {values.dtype} of shape {values.shape}; give numbers [n, ...]")
    if values.dtype.kind == "f":
        values = values + values.dtype.type(0)
    values = np.ascontiguousarray(values)
    digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in values]
    return _in_order(np.unique(np.array(digests, dtype="V16"), return_inverse=True)[1])


def near_duplicates(features: npt.ArrayLike, threshold: float) -> IntArray:
    """Groups of rows whose features' cosine reaches a threshold: [n] from [n, d].

    Every pair is looked at: n^2 d / 2 multiply-adds in float32, some 60 s for 100,000 rows of 512
    features on two cores, and 16 MiB beside a float32 copy of the features. A row of zeros is like
    no other.

    Args:
        features: Float [n, d], finite.
        threshold: Cosine, in (0, 1].

    Raises:
        ShapeError: The features are no finite matrix, or the threshold is no such cosine.
    """
    values = np.asarray(features, dtype=np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ShapeError(f"features have shape {values.shape}; give finite numbers [n, d]")
    if not 0 < threshold <= 1:
        raise ShapeError(f"threshold is {threshold}; give a cosine above 0, 1 at most")
    lengths = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    units = np.divide(values, lengths, out=np.zeros_like(values), where=lengths > 0)
    group = np.arange(len(units), dtype=np.int64)
    found: list[npt.NDArray[np.intp]] = []
    for start in range(0, len(units), _BLOCK):
        for other in range(start, len(units), _BLOCK):
            cosines = units[start : start + _BLOCK] @ units[other : other + _BLOCK].T
            pairs = np.argwhere(cosines >= threshold - _ROUNDING) + np.array([start, other])
            found.append(pairs[pairs[:, 0] < pairs[:, 1]])
            if sum(map(len, found)) > _PAIRS:
                group, found = _merged(group, found), []
    return _in_order(_merged(group, found))


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
