"""Similarity of representations: what a query and a training row look like to the model.

    dot     tau =  s <h_q, h_i>                  (h: the last hidden layer, or embeddings one has)
    cosine  tau =  s cos(h_q, h_i)
    l2      tau = -s |h_q - h_i|^2               (Hanawa et al. 2021; Charpiat et al. 2019)

s is -1 for outputs that training lowers (a loss), else 1: similar rows are taken to help. It is a
corroborating measure without the output's unit, and no estimate of what training on a row does;
with labels="same" rows of other labels do nothing.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.hidden import HiddenLayer
from attribution.estimators.request import Clock, Record, Request, Sink, open_sink
from attribution.outputs import Output, Task
from schemas.errors import DataError, ShapeError

QUERY_BLOCK = 512
FALLING = (Output.LOSS, Output.SQUARED_ERROR)


class Measure(StrEnum):
    """How two representations are compared."""

    DOT = "dot"
    COSINE = "cosine"
    L2 = "l2"


class SameLabels(StrEnum):
    """Which training rows count."""

    ANY = "any"
    SAME = "same"


def estimate_similarity(
    request: Request,
    *,
    measure: str = Measure.COSINE,
    layer: str | None = None,
    labels: str = SameLabels.ANY,
) -> tuple[NDArray[np.float32], Record]:
    """Similarity on the last hidden layer, averaged over checkpoints.

    Args:
        request: What is asked.
        measure: "cosine", "dot" or "l2".
        layer: The module whose input is compared, by name; by default the linear layer that is
            called last. Of several positions of a row the mean is taken; of a document's tokens
            of those whose prediction is asked for, otherwise of padding too.
        labels: "any", or "same": rows with another label than the query's score 0 (with "l2", as
            the farthest row).

    Raises:
        ShapeError: An option is unknown, or "same" is asked of rows without a class.
        NotFound: There is no module of that name.
        RecipeError: The layer is not found or not called once.
    """
    _check(measure, labels, request)
    clock = Clock()
    sides, names = [], []
    for state in request.checkpoints:
        found = HiddenLayer.of(request, state, layer=layer)
        names.append(found.name)
        sides.append(
            (
                found.run(request.queries, request.batch_size).inputs,
                found.run(request.train, request.batch_size).inputs,
            )
        )
    clock.stop("hidden")
    return _compare(request, sides, measure, labels, clock, {"layer": names})


def estimate_embedding(
    request: Request,
    *,
    train_embeddings: Any = None,
    query_embeddings: Any = None,
    measure: str = Measure.COSINE,
    labels: str = SameLabels.ANY,
) -> tuple[NDArray[np.float32], Record]:
    """Similarity of embeddings that one has; model and checkpoints are not used.

    Args:
        request: What is asked.
        train_embeddings: [n, d], one for each training row.
        query_embeddings: [m, d], one for each query.
        measure: "cosine", "dot" or "l2".
        labels: "any" or "same", as in `estimate_similarity`.

    Raises:
        ShapeError: Embeddings are missing or have other shapes, or an option is unknown.
        DataError: An embedding is NaN or infinite.
    """
    _check(measure, labels, request)
    clock = Clock()
    queries = _embeddings(query_embeddings, len(request.queries), "query_embeddings", request)
    train = _embeddings(train_embeddings, len(request.train), "train_embeddings", request)
    if queries.shape[1] != train.shape[1]:
        raise ShapeError(
            f"query_embeddings have {queries.shape[1]} columns and train_embeddings "
            f"{train.shape[1]}; embed both with the same model"
        )
    return _compare(request, [(queries, train)], measure, labels, clock, {"width": train.shape[1]})


def _check(measure: str, labels: str, request: Request) -> None:
    if measure not in set(Measure):
        raise ShapeError(f"unknown measure {measure!r}; say {', '.join(Measure)}")
    if labels not in set(SameLabels):
        raise ShapeError(f"unknown labels {labels!r}; say {' or '.join(SameLabels)}")
    if labels == SameLabels.SAME and Task(request.task) is not Task.CLASSIFICATION:
        raise ShapeError(f"rows of a {request.task} task have no class to share; use labels='any'")


def _embeddings(values: Any, count: int, name: str, request: Request) -> Tensor:
    if values is None:
        raise ShapeError(f"'embedding' needs {name}, one row [d] for each of {count} rows")
    found = torch.as_tensor(np.asarray(values)).to(request.device, request.dtype)
    if found.ndim != 2 or len(found) != count:
        raise ShapeError(
            f"{name} have shape {tuple(found.shape)}; give [{count}, d], one for each row"
        )
    bad = ~torch.isfinite(found).all(1)
    if bool(bad.any()):
        raise DataError(
            f"row {int(bad.nonzero()[0, 0])} (counted from 0) of {name} holds NaN or infinity; "
            "embed it again or drop it"
        )
    return found


def _compare(
    request: Request,
    sides: list[tuple[Tensor, Tensor]],
    measure: str,
    labels: str,
    clock: Clock,
    chosen: dict[str, Any],
) -> tuple[NDArray[np.float32], Record]:
    if measure == Measure.COSINE:
        sides = [(_unit(queries), _unit(train)) for queries, train in sides]
    sign = -1.0 if request.output in FALLING else 1.0
    others = _targets(request) if labels == SameLabels.SAME else None
    send: Sink
    target, send = open_sink(request.out, len(request.queries), len(request.train))
    for start in range(0, len(request.queries), QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, len(request.queries)))
        block = sum(_similar(queries[rows], train, measure) for queries, train in sides)
        block = block / len(sides)
        if others is not None:
            asked, own = others
            least = block.amin(1, keepdim=True) if measure == Measure.L2 else block.new_zeros(1)
            block = torch.where(asked[rows].unsqueeze(1) == own, block, least)
        send(rows, (sign * block).to("cpu", torch.float32).numpy())
    clock.stop("score")
    return target, {
        "damping": None,
        "chosen_from": "there is nothing to damp",
        "fingerprint": [f"representation/1:checkpoint={number}" for number in range(len(sides))],
        "options": {"measure": str(measure), "labels": str(labels), "sign": sign, **chosen},
        "batch_size": request.batch_size,
        "seconds": clock.seconds,
    }


def _similar(queries: Tensor, train: Tensor, measure: str) -> Any:
    if measure != Measure.L2:
        return queries @ train.T
    # Differences of squares would lose the digits of close neighbours.
    return -(torch.cdist(queries, train, compute_mode="donot_use_mm_for_euclid_dist") ** 2)


def _targets(request: Request) -> tuple[Tensor, Tensor]:
    def of(rows: Any) -> Iterator[Tensor]:
        for _, _, targets in rows.batches(1024):
            yield targets

    asked, own = (torch.cat(list(of(rows))) for rows in (request.queries, request.train))
    return asked.to(request.device), own.to(request.device)


def _unit(rows: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(length > 0, rows / length, torch.zeros_like(rows))
