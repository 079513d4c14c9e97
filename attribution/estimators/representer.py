"""Representer points (Yeh et al. 2018): the logits as a sum over training rows.

Where the last layer W is stationary for sum_i l_i + lambda/2 |W|^2, W = (1/lambda) sum_i r_i h_i^T
with r_i = -dl_i/dz (e_y - p for cross-entropy) and h_i the last hidden representation. Each row's
share of a query's logits, times df_q/dz, is its score:

    tau[q, i] = mean_c (1/lambda) (r_i . df_q/dz) <h_i, h_q>

A bias is one more column of W with h = 1. How far a checkpoint is from stationary is in the record;
`refit` moves its last layer there first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from attribution.estimators.hidden import Hidden, HiddenLayer
from attribution.estimators.request import Clock, Record, Request, open_sink
from attribution.outputs import Task, evaluate, training_loss
from schemas.errors import RecipeError, ShapeError

QUERY_BLOCK = 512
ITERATIONS = 5_000
# A refitted layer farther from stationary than this is refused.
FARTHEST = 1e-3


@dataclass(frozen=True, kw_only=True)
class _Head:
    """One checkpoint, in float64.

    ``weight`` is W [K, d], ``train`` [n, d] and ``queries`` [m, d] what it is given (the bias's 1
    included), ``residuals`` are r [n, K], and ``distance`` is |sum grad l + lambda W| / |lambda W|.
    """

    weight: Tensor
    train: Tensor
    queries: Tensor
    query_targets: Tensor
    residuals: Tensor
    ridge: float
    distance: float
    name: str


def estimate(
    request: Request, *, weight_decay: float | None = None, refit: bool = False
) -> tuple[NDArray[np.float32], Record]:
    """Representer points of the last linear layer.

    Args:
        request: What is asked.
        weight_decay: lambda / n, that of a recipe of mean loss + weight decay / 2 |theta|^2. By
            default the one for which each checkpoint is nearest to stationary.
        refit: First minimise sum l + lambda/2 |W|^2 over the last layer, in float64, the hidden
            layers as they are; it needs a weight decay.

    Raises:
        ShapeError: The weight decay is not above 0, none makes a checkpoint stationary, or the rows
            are documents.
        RecipeError: The model does not end in a linear layer with one position a row.
    """
    if weight_decay is not None and not 0 < weight_decay < float("inf"):
        raise ShapeError(f"weight_decay is {weight_decay}; give a number above 0")
    if Task(request.task) is Task.LANGUAGE:
        raise ShapeError(
            "representer points need one prediction a row; use 'similarity' or 'ekfac'"
        )
    if refit and weight_decay is None:
        raise ShapeError("refit=True needs the weight_decay to fit with; give that of the recipe")
    clock = Clock()
    heads = [_head(request, state, weight_decay, refit) for state in request.checkpoints]
    clock.stop("hidden")
    n_query, n_train = len(request.queries), len(request.train)
    target, send = open_sink(request.out, n_query, n_train)
    for start in range(0, n_query, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, n_query))
        block = torch.zeros(rows.stop - rows.start, n_train, dtype=torch.float64)
        for head in heads:
            asked = head.queries[rows]
            along = _output_gradient(request, asked @ head.weight.T, head.query_targets[rows])
            shares = (along @ head.residuals.T) * (asked @ head.train.T) / head.ridge
            block += shares.cpu() / len(heads)
        send(rows, block.to(torch.float32).numpy())
    clock.stop("score")
    distances = [head.distance for head in heads]
    return target, {
        "damping": None,
        "chosen_from": (
            f"{'refitted' if refit else 'as trained'}; |sum of gradients + lambda W| / |lambda W| "
            f"is {max(distances):.3g} at most, 0 where the last layer is stationary"
        ),
        "fingerprint": [f"representer/1:checkpoint={number}" for number in range(len(heads))],
        "options": {
            "weight_decay": [head.ridge / n_train for head in heads],
            "refit": refit,
            "layer": [head.name for head in heads],
            "distance_from_stationary": distances,
        },
        "batch_size": request.batch_size,
        "seconds": clock.seconds,
    }


def _head(
    request: Request, state: Mapping[str, Any], weight_decay: float | None, refit: bool
) -> _Head:
    found = HiddenLayer.of(request, state)
    layer = found.module
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"the last linear layer is a {type(layer).__name__}")
    sides = [
        found.run(rows, request.batch_size, with_logits=True)
        for rows in (request.train, request.queries)
    ]
    weight = layer.weight.detach().double()
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias.detach().double().unsqueeze(1)], dim=1)
    train, queries = (_wide(side, layer) for side in sides)
    logits = train @ weight.T
    scale = float(sides[0].logits.abs().max()) + 1e-12
    if logits.shape != sides[0].logits.shape or not torch.allclose(
        logits, sides[0].logits.double(), atol=1e-3 * scale
    ):
        raise RecipeError(
            f"what the model returns is not what its last linear layer {found.name!r} gives for "
            "one position a row; representer points need a linear head, use 'similarity'"
        )
    targets = [
        side.targets.double() if side.targets.is_floating_point() else side.targets
        for side in sides
    ]
    ridge = None if weight_decay is None else weight_decay * len(train)
    if refit and ridge is not None:
        weight = _fit(request.task, weight, train, targets[0], ridge)
    pull = _pull(request.task, weight, train, targets[0])
    if ridge is None:
        # W is nearest to stationary, in the sense of least squares, at this lambda.
        ridge = float((pull * weight).sum() / (weight * weight).sum())
        if not ridge > 0:
            raise ShapeError(
                "no weight decay makes this checkpoint's last layer stationary; give weight_decay "
                "and refit=True"
            )
    distance = float((ridge * weight - pull).norm() / (ridge * weight).norm())
    return _Head(
        weight=weight,
        train=train,
        queries=queries,
        query_targets=targets[1],
        residuals=_residuals(request.task, train @ weight.T, targets[0]),
        ridge=ridge,
        distance=distance,
        name=found.name,
    )


def _wide(side: Hidden, layer: nn.Linear) -> Tensor:
    inputs = side.inputs.double()
    if layer.bias is None:
        return inputs
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)


def _fit(task: str, weight: Tensor, inputs: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """The minimum of sum l + ridge/2 |W|^2, by L-BFGS from the checkpoint's W."""
    shape, device = weight.shape, weight.device

    def value(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = torch.from_numpy(flat.copy()).reshape(shape).to(device)
        loss = training_loss(task, inputs @ w.T, targets, "sum") + ridge / 2 * (w * w).sum()
        slope = ridge * w - _pull(task, w, inputs, targets)
        return float(loss) / len(inputs), (slope.flatten() / len(inputs)).cpu().numpy()

    start = weight.flatten().cpu().numpy()
    found = minimize(
        value,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "ftol": 0.0, "gtol": 1e-10},
    )
    fitted = torch.from_numpy(found.x).reshape(shape).to(device)
    slope = ridge * fitted - _pull(task, fitted, inputs, targets)
    distance = float(slope.norm() / (ridge * fitted).norm())
    if not distance < FARTHEST:
        raise ShapeError(
            f"refitting the last layer stopped at a relative distance of {distance:.2g} from "
            f"stationary ({found.message}); give a larger weight_decay"
        )
    return fitted


def _pull(task: str, weight: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """sum_i r_i h_i^T [K, d]: minus the gradient of the summed loss."""
    return _residuals(task, inputs @ weight.T, targets).T @ inputs


def _residuals(task: str, logits: Tensor, targets: Tensor) -> Tensor:
    """r_i = -dl_i/dz, [n, K]."""
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(training_loss(task, leaf, targets, "sum"), leaf)
    return -slope


def _output_gradient(request: Request, logits: Tensor, targets: Tensor) -> Tensor:
    """df_q/dz, [b, K]."""
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(evaluate(request.output, leaf, targets).sum(), leaf)
    return slope
