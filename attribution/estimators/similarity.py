"""Gradient similarity: inner products of a query's gradient with those of the training losses.

    GradDot   tau = -mean_c <grad f_q, grad l_i>
    GradCos   tau = -mean_c cos(grad f_q, grad l_i)
    TracIn    tau = -sum_c eta_c <grad f_q, grad l_i>   (Pruthi et al. 2020, checkpoints of one run)
    GAS       tau = -sum_c eta_c cos(grad f_q, grad l_i)               (Hammoudeh & Lowd 2022)
    LESS      tau = -sum_c eta_c cos(grad f_q, Gamma_i), Gamma what Adam makes of grad l_i
                                                                       (Xia et al. 2024)

The minus makes tau > 0 mean that a step on row i raises f_q. Exact by default: gradients pass in
blocks, and [n, p] never exists. No curvature, so nothing to damp; models trained with Adam are
mis-ranked by raw gradients, so GradDot and GradCos take the optimiser's moments too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.adam import Adam, Preconditioner, read_states
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


States = Sequence[Mapping[str, Any]]


def estimate_graddot(
    request: Request,
    *,
    projection: Projection | Mapping[str, Any] | None = None,
    optimizer_states: States | None = None,
    preconditioner: str = Preconditioner.LESS,
) -> tuple[NDArray[np.float32], Record]:
    """Inner products, averaged over checkpoints.

    Args:
        request: What is asked.
        projection: A sketch of the gradients (a `Projection` or its arguments); exact if None.
        optimizer_states: Adam's moments at each checkpoint, see `adam.read_states`; or None for
            raw gradients.
        preconditioner: What Adam's moments make of the training rows' gradients, see `adam`.
    """
    weights = [1 / len(request.checkpoints)] * len(request.checkpoints)
    adam = _adam(request, optimizer_states, preconditioner)
    return _estimate(request, weights, Normalise.NONE, projection, adam)


def estimate_gradcos(
    request: Request,
    *,
    normalise: str = Normalise.WHOLE,
    projection: Projection | Mapping[str, Any] | None = None,
    optimizer_states: States | None = None,
    preconditioner: str = Preconditioner.LESS,
) -> tuple[NDArray[np.float32], Record]:
    """Cosines, averaged over checkpoints: in -1..1, without a unit.

    Args:
        request: What is asked.
        normalise: "whole", or "layer": a sum over layers of their cosines.
        projection: A sketch of the gradients (a `Projection` or its arguments); exact if None.
        optimizer_states: As in `estimate_graddot`.
        preconditioner: As in `estimate_graddot`.
    """
    _check_unit(normalise)
    weights = [1 / len(request.checkpoints)] * len(request.checkpoints)
    adam = _adam(request, optimizer_states, preconditioner)
    return _estimate(request, weights, normalise, projection, adam)


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
        normalise: "none"; "whole" or "layer" are what "gas" does.
        projection: A sketch of the gradients (a `Projection` or its arguments); exact if None.
    """
    if normalise not in set(Normalise):
        raise ShapeError(f"normalise is {normalise!r}; say {', '.join(Normalise)}")
    return _estimate(request, checkpoint_weights(request, weights), normalise, projection)


def estimate_gas(
    request: Request,
    *,
    weights: Sequence[float] | None = None,
    normalise: str = Normalise.WHOLE,
    projection: Projection | Mapping[str, Any] | None = None,
) -> tuple[NDArray[np.float32], Record]:
    """GAS (Hammoudeh & Lowd 2022): TracInCP with gradients of length one.

    Args:
        request: What is asked; its checkpoints are snapshots of one training run.
        weights: Learning rate of each checkpoint; 1 by default.
        normalise: "whole", or "layer": each layer's gradient gets length one.
        projection: A sketch of the gradients (a `Projection` or its arguments); exact if None.
    """
    _check_unit(normalise)
    return _estimate(request, checkpoint_weights(request, weights), normalise, projection)


def estimate_less(
    request: Request,
    *,
    optimizer_states: States | None = None,
    weights: Sequence[float] | None = None,
    normalise: str = Normalise.WHOLE,
    preconditioner: str = Preconditioner.LESS,
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
) -> tuple[NDArray[np.float32], Record]:
    """LESS (Xia et al. 2024): the query's gradient against Adam's step on each training row.

    Args:
        request: What is asked; its checkpoints are snapshots of one run of Adam.
        optimizer_states: Adam's moments at each checkpoint, see `adam.read_states`.
        weights: Mean learning rate of the epochs each checkpoint stands for; 1 by default.
        normalise: "whole" as published; "layer", or "none" for inner products.
        preconditioner: "less" as published; "step" or "diagonal", see `adam`.
        betas: Of Adam; by default what the states say, else 0.9 and 0.999.
        eps: Of Adam; by default what the states say, else 1e-8.
    """
    if normalise not in set(Normalise):
        raise ShapeError(f"normalise is {normalise!r}; say {', '.join(Normalise)}")
    if optimizer_states is None:
        raise ShapeError(
            "'less' needs optimizer_states, Adam's moments at each checkpoint; keep them while "
            "training (TrainingState.moments), or use 'gradcos'"
        )
    adam = _adam(request, optimizer_states, preconditioner, betas, eps)
    return _estimate(request, checkpoint_weights(request, weights), normalise, None, adam)


def checkpoint_weights(request: Request, weights: Sequence[float] | None) -> list[float]:
    """One weight for each checkpoint of a run, 1 by default.

    Raises:
        ShapeError: There are more or fewer, or one is negative, NaN or infinite.
    """
    count = len(request.checkpoints)
    chosen = [1.0] * count if weights is None else [float(value) for value in weights]
    if len(chosen) != count or not np.isfinite(chosen).all() or min(chosen) < 0:
        raise ShapeError(
            f"weights are {chosen}; give one learning rate, 0 or more, for each of the {count} "
            "checkpoints"
        )
    return chosen


def _check_unit(normalise: str) -> None:
    if normalise not in (Normalise.WHOLE, Normalise.LAYER):
        raise ShapeError(f"normalise is {normalise!r}; say 'whole' or 'layer'")


def _adam(
    request: Request,
    states: States | None,
    preconditioner: str,
    betas: tuple[float, float] | None = None,
    eps: float | None = None,
) -> list[Adam] | None:
    if states is None:
        return None
    return read_states(
        states,
        request.model,
        n_checkpoints=len(request.checkpoints),
        kind=preconditioner,
        betas=betas,
        eps=eps,
        device=request.device,
        dtype=request.dtype,
    )


def _estimate(
    request: Request,
    weights: Sequence[float],
    normalise: str,
    projection: Projection | Mapping[str, Any] | None,
    adam: list[Adam] | None = None,
) -> tuple[NDArray[np.float32], Record]:
    if projection is None:
        sketcher = Projection(kind=ProjectionKind.NONE)
    else:
        sketcher = projection if isinstance(projection, Projection) else Projection(**projection)
    exact = sketcher.kind == ProjectionKind.NONE
    if normalise == Normalise.LAYER and not exact:
        raise ShapeError("a sketch mixes the layers; use projection=None with normalise='layer'")
    if adam and not exact:
        raise ShapeError("a sketch is of raw gradients; use projection=None with optimizer_states")
    n_query, n_train = len(request.queries), len(request.train)
    target, send = open_sink(request.out, n_query, n_train)
    clock = Clock()
    scores = np.zeros((n_query, n_train), dtype=np.float32)
    prints = []
    for number, weight in enumerate(weights):
        if exact:
            change = adam[number] if adam else None
            _add_exact(scores, request, number, weight, normalise, change)
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
            "preconditioner": str(adam[0].kind) if adam else None,
            "seed": request.seed,
        },
        "batch_size": request.batch_size,
        "seconds": clock.seconds,
    }
    return target, record


def _add_exact(
    scores: NDArray[np.float32],
    request: Request,
    number: int,
    weight: float,
    normalise: str,
    change: Adam | None,
) -> None:
    def gradients(rows: Rows, output: OutputLike, change: Adam | None = None) -> RowGradients:
        return RowGradients(
            request.model,
            request.checkpoints[number],
            rows,
            output=output,
            device=request.device,
            dtype=request.dtype,
            batch_size=request.batch_size,
            change=change,
        )

    train = gradients(request.train, Output.LOSS, change)
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
