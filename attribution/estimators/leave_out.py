"""Leave-one-out in closed form, of models with one linear layer: tau[q, i] = f_q(U) - f_q(U - i).

    alo         by one Newton step on the rows that remain (Pregibon 1981; Rad and Maleki 2020);
                exact for least squares, nearer with every further step
    jackknife   by the derivative in the row's weight (Jaeckel 1972; Giordano et al. 2018)

The output is evaluated at the moved weights by `alo`, and to first order by `jackknife`. Both need
weights at the minimum of the training loss; `stationarity` in the record says how near they are.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.request import Clock, Record, Request, open_sink
from attribution.linear_fit import LinearFit, features_of
from attribution.outputs import evaluate
from schemas.errors import ShapeError

# Float64 numbers in a block of moved logits: 128 MB.
BLOCK = 2**24


def estimate_alo(
    request: Request,
    *,
    ridge: float = 0.0,
    weight_decay: float = 0.0,
    penalise_bias: bool = False,
    steps: int = 0,
) -> tuple[NDArray[np.float32], Record]:
    """Approximate leave-one-out: the output's fall when each row is left out.

    Args:
        request: What is asked; its model is one linear layer.
        ridge: Penalty lambda of sum l + lambda/2 |w|^2: 1/C of scikit-learn's logistic regression,
            2 alpha of its ridge regression.
        weight_decay: Penalty of the mean loss, of which each row's share goes with the row.
        penalise_bias: Whether they act on the bias too.
        steps: Further Newton steps for each row, each n^2 times the square of the parameters.
    """
    penalties = {"ridge": ridge, "weight_decay": weight_decay, "penalise_bias": penalise_bias}
    return _estimate(request, penalties, steps)


def estimate_jackknife(
    request: Request,
    *,
    ridge: float = 0.0,
    weight_decay: float = 0.0,
    penalise_bias: bool = False,
) -> tuple[NDArray[np.float32], Record]:
    """Infinitesimal jackknife: the output's derivative in each row's weight.

    Args:
        request: What is asked; its model is one linear layer.
        ridge: As `estimate_alo`, like all that follow.
        weight_decay: Likewise.
        penalise_bias: Likewise.
    """
    penalties = {"ridge": ridge, "weight_decay": weight_decay, "penalise_bias": penalise_bias}
    return _estimate(request, penalties, None)


def _estimate(
    request: Request, penalties: dict[str, Any], steps: int | None
) -> tuple[NDArray[np.float32], Record]:
    n_train, n_query = len(request.train), len(request.queries)
    target, send = open_sink(request.out, n_query, n_train)
    total, gaps, clock = np.zeros((n_query, n_train)), [], Clock()
    for state in request.checkpoints:
        fit = LinearFit.of(request.model, state, request.train, task=request.task, **penalties)
        gaps.append(fit.stationarity())
        features, targets = features_of(fit, request.queries)
        if steps is None:
            total += _derivative(request, fit, features, targets)
        else:
            for rows, change in fit.without_each(steps=steps):
                total[:, rows] += _falls(request, fit, change, features, targets)
    send(slice(0, n_query), (total / len(request.checkpoints)).astype(np.float32))
    clock.stop("score")
    record = {
        "stationarity": max(gaps),
        "options": {**penalties, "steps": steps},
        "seconds": clock.seconds,
    }
    return target, record


def _falls(
    request: Request, fit: LinearFit, change: Tensor, features: Tensor, targets: Tensor
) -> NDArray[np.float64]:
    """f_q at the fit less f_q at each of the moved weights, [m, b]."""
    now = evaluate(request.output, features @ fit.weights.T, targets)
    found = torch.empty(len(targets), len(change), dtype=torch.float64)
    block = max(1, BLOCK // (len(targets) * fit.shape[0]))
    for start in range(0, len(change), block):
        part = fit.weights + change[start : start + block]
        logits = features @ part.transpose(1, 2)
        moved = evaluate(request.output, logits, targets.expand(len(part), -1))
        found[:, start : start + block] = (now - moved).T
    return found.numpy()


def _derivative(
    request: Request, fit: LinearFit, features: Tensor, targets: Tensor
) -> NDArray[np.float64]:
    """-grad f_q . H^-1 grad l_i, [m, n]."""
    logits = (features @ fit.weights.T).requires_grad_()
    (slope,) = torch.autograd.grad(evaluate(request.output, logits, targets).sum(), logits)
    if not bool(torch.isfinite(slope).all()):
        raise ShapeError("the output has no finite derivative at some query; choose another")
    queries = (slope[:, :, None] * features[:, None, :]).flatten(1)
    return -(queries @ fit.jackknife().flatten(1).T).numpy()
