"""Exact Shapley values of a K-nearest-neighbour vote (Jia et al. 2019).

For a query, u(S) is the share of correct labels among the K nearest rows of S (a row that is
missing because S is smaller counts as wrong). With rows sorted nearest first and c_i = 1 where
row i has the query's label,

    s_n = c_n min(K, n) / (n K),    s_i = s_(i+1) + (c_i - c_(i+1)) / K * min(K, i) / i,

so all n values of a query cost one sort. Rows at one distance keep the order of their numbers.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from attribution.estimators.hidden import HiddenLayer
from attribution.estimators.request import Clock, Record, Request, open_sink
from attribution.outputs import Output, Task
from attribution.rows import Rows
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]

# Distances that are held at once (64 MiB of float64).
BLOCK_ENTRIES = 2**23
NEIGHBOURS = 5


def knn_shapley(
    features: npt.ArrayLike,
    targets: npt.ArrayLike,
    query_features: npt.ArrayLike,
    query_targets: npt.ArrayLike,
    *,
    k: int = NEIGHBOURS,
) -> FloatArray:
    """The Shapley value of every row for every query, by Euclidean distance.

    Args:
        features: [n, d]; further axes are flattened.
        targets: Class indices [n].
        query_features: [m, d].
        query_targets: Class indices [m].
        k: Neighbours that vote.

    Returns:
        float64 [m, n]; a query's values sum to the share of its K nearest rows that are correct.

    Raises:
        ShapeError: Shapes do not fit, a feature is not finite, or k is less than 1.
    """
    values = np.empty((len(np.asarray(query_targets)), len(np.asarray(targets))))
    for rows, block in _blocks(features, targets, query_features, query_targets, k):
        values[rows] = block
    return values


def estimate(
    request: Request,
    *,
    k: int = NEIGHBOURS,
    layer: str | None = None,
    features: tuple[Any, Any] | None = None,
) -> tuple[npt.NDArray[np.float32], Record]:
    """kNN-Shapley on the last hidden layer of each checkpoint, averaged, or on given features.

    Args:
        request: What is asked, of a classification. For the output "loss" the sign is turned, so
            that > 0 still says that the row raises the output; values are shares of correct
            neighbours, never in the output's unit.
        k: Neighbours that vote.
        layer: The module whose input measures distance; the last linear layer by default.
        features: (train [n, d], queries [m, d]) to measure distances in; then no model is run.

    Raises:
        ShapeError: It is a regression, the output is a function, or shapes do not fit.
        RecipeError: The model has no last hidden layer.
        NotFound: It has no such layer.
    """
    if request.task != Task.CLASSIFICATION:
        raise ShapeError(f"knn_shapley counts correct labels, and the task is {request.task}")
    if not isinstance(request.output, str):
        raise ShapeError(
            "knn_shapley cannot tell whether that function should rise; name an output"
        )
    sign = -1.0 if request.output == Output.LOSS else 1.0
    clock = Clock()
    sides = [features] if features is not None else _hidden(request, layer)
    clock.stop("featurize")
    labels = [_targets(rows) for rows in (request.train, request.queries)]
    target, send = open_sink(request.out, len(request.queries), len(request.train))
    walks = [_blocks(own, labels[0], asked, labels[1], k) for own, asked in sides]
    for blocks in zip(*walks, strict=True):
        mean = np.mean([values for _, values in blocks], axis=0)
        send(blocks[0][0], (sign * mean).astype(np.float32))
    clock.stop("score")
    record: dict[str, Any] = {
        "damping": None,
        "chosen_from": "there is nothing to damp",
        "fingerprint": [],
        "options": {
            "k": k,
            "features": (layer or "last hidden layer") if features is None else "given",
        },
        "unit": f"share of the {k} nearest rows that have the query's label",
        "batch_size": request.batch_size,
        "seconds": clock.seconds,
    }
    return target, record


def values_in_order(agrees: FloatArray, k: int) -> FloatArray:
    """Values of rows that are sorted nearest first.

    Args:
        agrees: 1 where the row has the query's label, else 0, [m, n].
        k: Neighbours that vote.
    """
    n = agrees.shape[1]
    place = np.arange(1, n + 1)
    steps = agrees * np.minimum(k, place) / (k * place)
    steps[:, :-1] -= agrees[:, 1:] * np.minimum(k, place[:-1]) / (k * place[:-1])
    return steps[:, ::-1].cumsum(axis=1)[:, ::-1]


def _blocks(
    features: Any, targets: Any, query_features: Any, query_targets: Any, k: int
) -> Iterator[tuple[slice, FloatArray]]:
    rows, labels = _checked(features, targets, "train")
    queries, asked = _checked(query_features, query_targets, "query")
    if rows.shape[1] != queries.shape[1]:
        raise ShapeError(
            f"train features have {rows.shape[1]} columns and query features {queries.shape[1]}; "
            "give both from one source"
        )
    if k < 1:
        raise ShapeError(f"k is {k}; let at least one neighbour vote")
    # About their mean the squares below lose no digits to a common offset.
    centre = rows.mean(axis=0)
    rows, queries = rows - centre, queries - centre
    lengths = (rows**2).sum(axis=1)
    step = max(1, BLOCK_ENTRIES // len(rows))
    for start in range(0, len(queries), step):
        part = slice(start, min(start + step, len(queries)))
        nearest = np.argsort(lengths - 2 * queries[part] @ rows.T, axis=1, kind="stable")
        agrees = (labels[nearest] == asked[part, None]).astype(np.float64)
        values = np.empty_like(agrees)
        np.put_along_axis(values, nearest, values_in_order(agrees, k), axis=1)
        yield part, values


def _hidden(request: Request, layer: str | None) -> list[tuple[FloatArray, FloatArray]]:
    pairs = []
    for state in request.checkpoints:
        hidden = HiddenLayer.of(request, state, layer=layer)
        train, queries = (
            hidden.run(rows, request.batch_size).inputs.double().cpu().numpy()
            for rows in (request.train, request.queries)
        )
        pairs.append((train, queries))
    return pairs


def _targets(rows: Rows) -> npt.NDArray[np.int64]:
    return np.concatenate([targets.numpy() for _, _, targets in rows.batches(1024)])


def _checked(features: Any, targets: Any, name: str) -> tuple[FloatArray, npt.NDArray[Any]]:
    table, labels = np.asarray(features, dtype=np.float64), np.asarray(targets)
    if table.ndim < 2 or labels.shape != (len(table),) or table.size == 0:
        raise ShapeError(
            f"{name} features have shape {table.shape} and targets {labels.shape}; give [n, d] "
            "and one class index for each row"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ShapeError(f"{name} targets are {labels.dtype}; kNN-Shapley needs class indices")
    table = table.reshape(len(table), -1)
    bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
    if len(bad):
        raise ShapeError(f"{name} features of row {bad[0]} are NaN or infinite; drop that row")
    return table, labels
