"""Parquet segments of scores, written block by block on the way to the ledger.

A segment holds rows (query_id, train_id, score) of consecutive queries, all or the strongest of
each. The commit task loads the segments of an attribution in their order.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from schemas.errors import ShapeError

Array = npt.NDArray[Any]


def kept_per_query(n_query: int, n_train: int, max_rows: int) -> int:
    """How many scores of each query the ledger keeps under the limit `store.max_rows`.

    All of them where they fit, else as many as fit, at least one.
    """
    if n_query * n_train <= max_rows:
        return n_train
    return max(1, max_rows // n_query)


def thin(query_x_train: Array, k: int) -> Array:
    """Which scores of each query are the k strongest by magnitude.

    Of equal magnitudes at the edge, those of lower column win, so the result depends on nothing
    but the scores.

    Args:
        query_x_train: Scores [b, n].
        k: How many to keep of each row.

    Returns:
        bool [b, n] with min(k, n) True in each row.
    """
    n = query_x_train.shape[1]
    if k >= n:
        return np.ones(query_x_train.shape, dtype=bool)
    strength = np.abs(query_x_train)
    edge = np.partition(strength, n - k, axis=1)[:, n - k, None]
    above = strength > edge
    tied = strength == edge
    missing = k - above.sum(axis=1, keepdims=True)
    return above | (tied & (np.cumsum(tied, axis=1) <= missing))


def write_segment(
    path: Path,
    query_x_train: Array,
    *,
    query_ids: Array,
    train_ids: Array,
    keep: int | None = None,
) -> int:
    """Write one block of scores as a segment; returns the number of rows.

    Args:
        path: The file to write.
        query_x_train: Finite scores [b, n].
        query_ids: example_id of each row [b].
        train_ids: example_id of each column [n].
        keep: The most scores to keep of each query; None for all.

    Raises:
        ShapeError: Shapes do not fit, or a score is NaN or infinite.
    """
    if query_x_train.shape != (len(query_ids), len(train_ids)):
        raise ShapeError(
            f"scores have shape {query_x_train.shape}, and there are {len(query_ids)} query ids "
            f"and {len(train_ids)} train ids"
        )
    if not np.isfinite(query_x_train).all():
        row = int(np.argwhere(~np.isfinite(query_x_train))[0, 0])
        raise ShapeError(f"scores of query {query_ids[row]} are NaN or infinite; raise the damping")
    rows, columns = np.nonzero(thin(query_x_train, len(train_ids) if keep is None else keep))
    frame = pl.DataFrame(
        {
            "query_id": np.asarray(query_ids, dtype=np.int32)[rows],
            "train_id": np.asarray(train_ids, dtype=np.int32)[columns],
            "score": query_x_train[rows, columns].astype(np.float32),
        }
    )
    frame.write_parquet(path, compression="zstd", compression_level=1, statistics=True)
    return frame.height
