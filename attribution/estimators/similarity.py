"""Gradient similarity: inner products of a query's gradient with those of the training losses.

    GradDot   tau = -mean_c <grad f_q, grad l_i>
    GradCos   tau = -mean_c cos(grad f_q, grad l_i)
    TracIn    tau = -sum_c eta_c <grad f_q, grad l_i>   (Pruthi et al. 2020, checkpoints of one run)

The minus makes tau > 0 mean that a step on row i raises f_q. Exact by default: gradients pass in
blocks, and [n, p] never exists. No curvature, so nothing to damp; models trained with Adam are
mis-ranked by raw gradients (Xia et al. 2024).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.features import batch_rows, featurize
from attribution.estimators.gradient_products import Normalise, RowGradients
from attribution.estimators.request import Clock, Record, Request, open_sink
from attribution.gradients import layout_of
from attribution.outputs import Output, OutputLike
from attribution.projection import Projection, ProjectionKind
from attribution.rows import Rows
from schemas.errors import ShapeError

# Entries of a block of query gradients (256 MiB of float32).
BLOCK_ENTRIES = 2**26
QUERY_BLOCK = 512


def estimate_graddot(
    request: Request, *, projection: Projection | Mapping[str, Any] | None = None
) -> tuple[NDArray[np.float32], Record]:
    """Inner products, averaged over checkpoints.

    Args:
        request: What is asked.
        projection: A sketch of the gradients (a `Projection` or its arguments); exact if None.
    """
    weights = [1 / len(request.checkpoints)] * len(request.checkpoints)
    return _estimate(request, weights, Normalise.NONE, projection)


def estimate_gradcos(
    request: Request,
    *,
    normalise: str = Normalise.WHOLE,
    projection: Projection | Mapping[str, Any] | None = None,
) -> tuple[NDArray[np.float32], Record]:
    """Cosines, averaged over checkpoints: in -1..1, without a unit.

    Args:
        request: What is asked.
        normalise: "whole", or "layer": a sum over layers of their cosines, as in GAS (Hammoudeh &
            Lowd 2022, whose checkpoints are those of one run).
        projection: A sketch of the gradients (a `Projection` or its arguments); exact if None.
    """
    if normalise not in (Normalise.WHOLE, Normalise.LAYER):
        raise ShapeError(f"normalise is {normalise!r}; say 'whole' or 'layer'")
    weights = [1 / len(request.checkpoints)] * len(request.checkpoints)
    return _estimate(request, weights, normalise, projection)


def estimate_tracin(
    request: Request,
    *,
    weights: Sequence[float] | None = None,
    normalise: str = Normalise.NONE,
    projection: Projection | Mapping[str, Any] | None = None,
) -> tuple[NDArray[np.float32], Record]:
    """TracInCP (Pruthi et al. 2020): a weighted sum over checkpoints of one run.

    Args:
        request: What is asked; its checkpoints are snapshots of one training run, in order.
        weights: eta_c of each checkpoint. Scores are in output units only if it is learning rate
            x epochs that the checkpoint stands for / batch size (each epoch moves the weights by
            -rate / batch size for each row's gradient); divided by 1 - momentum with momentum.
            1 by default: then only the ranking means something.
        normalise: "none"; "whole" or "layer" for GAS (Hammoudeh & Lowd 2022).
        projection: A sketch of the gradients (a `Projection` or its arguments); exact if None.
    """
    count = len(request.checkpoints)
    chosen = [1.0] * count if weights is None else [float(value) for value in weights]
    if len(chosen) != count or not np.isfinite(chosen).all() or min(chosen) < 0:
        raise ShapeError(
            f"weights are {chosen}; give one learning rate, 0 or more, for each of the {count} "
            "checkpoints"
        )
    if normalise not in set(Normalise):
        raise ShapeError(f"normalise is {normalise!r}; say {', '.join(Normalise)}")
    return _estimate(request, chosen, normalise, projection)


def _estimate(
    request: Request,
    weights: Sequence[float],
    normalise: str,
    projection: Projection | Mapping[str, Any] | None,
) -> tuple[NDArray[np.float32], Record]:
    if projection is None:
        sketcher = Projection(kind=ProjectionKind.NONE)
    else:
        sketcher = projection if isinstance(projection, Projection) else Projection(**projection)
    exact = sketcher.kind == ProjectionKind.NONE
    if normalise == Normalise.LAYER and not exact:
        raise ShapeError("a sketch mixes the layers; use projection=None with normalise='layer'")
    n_query, n_train = len(request.queries), len(request.train)
    target, send = open_sink(request.out, n_query, n_train)
    clock = Clock()
    scores = np.zeros((n_query, n_train), dtype=np.float32)
    prints = []
    for number, weight in enumerate(weights):
        if exact:
            _add_exact(scores, request, number, weight, normalise)
            prints.append(f"exact:checkpoint={number}")
        else:
            prints.append(_add_sketched(scores, request, number, weight, normalise, sketcher))
    for start in range(0, n_query, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, n_query))
        send(rows, scores[rows])
    clock.stop("score")
    record = {
        "damping": None,
        "chosen_from": "there is nothing to damp",
        "fingerprint": prints,
        "options": {
            "weights": list(weights),
            "normalise": str(normalise),
            "projection": None if exact else asdict(sketcher),
            "seed": request.seed,
        },
        "batch_size": request.batch_size,
        "seconds": clock.seconds,
    }
    return target, record


def _add_exact(
    scores: NDArray[np.float32], request: Request, number: int, weight: float, normalise: str
) -> None:
    def gradients(rows: Rows, output: OutputLike) -> RowGradients:
        return RowGradients(
            request.model,
            request.checkpoints[number],
            rows,
            output=output,
            device=request.device,
            dtype=request.dtype,
            batch_size=request.batch_size,
        )

    train = gradients(request.train, Output.LOSS)
    queries = gradients(request.queries, request.output)
    step = max(1, min(QUERY_BLOCK, BLOCK_ENTRIES // queries.size))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        vectors = queries.rows(rows.start, rows.stop)
        if normalise == Normalise.NONE:
            found = train.project(vectors)
        else:
            found = train.cosines(vectors, normalise)
        scores[rows] -= weight * found.T.to("cpu").numpy()


def _add_sketched(
    scores: NDArray[np.float32],
    request: Request,
    number: int,
    weight: float,
    normalise: str,
    projection: Projection,
) -> str:
    size = batch_rows(request.batch_size, layout_of(request.model).size)
    sides, prints = [], []
    for rows, output in ((request.queries, request.output), (request.train, Output.LOSS)):
        features = featurize(
            request.model,
            request.checkpoints[number],
            rows,
            output=output,
            task=request.task,
            projection=projection,
            seed=request.seed,
            checkpoint=number,
            device=request.device,
            batch_size=size,
            dtype=request.dtype,
        )
        sides.append(_unit(features.sketch) if normalise != Normalise.NONE else features.sketch)
        prints.append(features.fingerprint)
    for start in range(0, len(scores), QUERY_BLOCK):
        rows_of = slice(start, start + QUERY_BLOCK)
        scores[rows_of] -= weight * (sides[0][rows_of] @ sides[1].T).to("cpu").numpy()
    return prints[0]


def _unit(rows: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(length > 0, rows / length, torch.zeros_like(rows))
