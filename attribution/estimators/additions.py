"""Rows that no model has trained on: what having one more of them would do.

A model whose training rows give K = Phi^T diag(R) Phi + lambda I takes row b in by the step that
lowers its own loss l and keeps the other rows' loss, as K has it, low:

    tau[q, b] = phi_q^T K^-1 phi_b g_b,   g_b = -l'(f_b + h_b g_b),   h_b = phi_b^T K^-1 phi_b:

the row's residual is taken where the step ends. Of squared errors g_b = Q_b / (1 + h_b), and the
step is exact where features do not move (Sherman and Morrison 1950), as its twin for a row that
leaves is (`estimators.kernel.leverage_factor`). Of classes g_b = 1 / (1 + exp(f_b + h_b g_b)), for
the loss of a margin f is log(1 + exp(-f)). Taken where the step begins (a gradient step, Q_b), or
by R_b (a Newton step, Q_b / (1 + R_b h_b)), the step of a row that the model is sure of and wrong
about is far too long: there Q_b is 1 and R_b next to 0.

Rows that join together share what they do: g then solves all equations at once, with h_b g_b
replaced by sum_a phi_b^T K^-1 phi_a g_a.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.features import Features, check_features
from attribution.estimators.kernel import Curvature, Gram, weights_of, working_dtype
from attribution.outputs import Task

NEWTON_STEPS, TOLERANCE = 100, 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Additions:
    """Rows as one model that did not train on them would take them in.

    Attributes:
        sketch: phi_b [n, k].
        solved: K^-1 phi_b [n, k].
        residual: Q_b [n].
        weight: R_b [n].
        gain: g_b of each row by itself [n].
        implicit: Whether g solves the equation of classes, or one Newton step.
    """

    sketch: Tensor
    solved: Tensor
    residual: Tensor
    weight: Tensor
    gain: Tensor
    implicit: bool

    def effects(self, queries: Features) -> NDArray[np.float64]:
        """tau[q, b] of each row for each query's output, [n_query, n]."""
        asked = queries.sketch.to(self.solved.dtype)
        return ((asked @ self.solved.T) * self.gain).double().cpu().numpy()

    def together(self, rows: NDArray[np.bool_], queries: Features) -> NDArray[np.float64]:
        """What some of the rows do together to each query's output, [n_query].

        Args:
            rows: Bool [n], those that join; their squared number is held in float64.
            queries: Features of the queries.
        """
        own = torch.from_numpy(np.flatnonzero(rows))
        solved = self.solved[own].double()
        gram = self.sketch[own].double() @ solved.T
        residual, weight = self.residual[own].double(), self.weight[own].double()
        if self.implicit:
            gain = _jointly(residual, (gram + gram.T) / 2)
        else:
            identity = torch.eye(len(own), dtype=gram.dtype)
            gain = torch.linalg.solve(identity + weight.unsqueeze(1) * gram, residual)
        return (queries.sketch.double() @ (solved.T @ gain)).cpu().numpy()

    def own(self) -> NDArray[np.float64]:
        """|tau[b, b]|, by how far a row would move its own output, [n]."""
        quadratic = (self.sketch * self.solved).sum(dim=1)
        return (quadratic * self.gain.abs()).double().cpu().numpy()

    def weighed(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Two factors [n, k]: row i of one times row j of the other is what i and j do together.

        It is by how much, to first order, the loss of either falls when the other is trained on.
        """
        column = self.gain.unsqueeze(1)
        left, right = self.sketch * column, self.solved * column
        return left.double().cpu().numpy(), right.double().cpu().numpy()


def additions(
    trained: Features,
    rows: Features,
    *,
    curvature: str = Curvature.LOGISTIC,
    damping: float = 1.0,
    task: str = Task.CLASSIFICATION,
) -> Additions:
    """Take in rows by a model.

    Args:
        trained: Features of the rows that the model was trained on, and of no others.
        rows: Features of rows that it was not trained on, of the task's own output.
        curvature: "logistic" or "after-kernel". The latter has no unit of outputs, so its step is
            Newton's.
        damping: rho > 0, in mean non-zero eigenvalues of the curvature.
        task: "classification"; for other tasks the step is Newton's, exact of squared errors.

    Raises:
        ShapeError: The features do not belong together, or an option is out of range.
    """
    check_features(trained, rows)
    kind = working_dtype(None, damping, trained)
    inverse = Gram(trained, curvature=curvature, dtype=kind).factor(damping)
    sketch = rows.sketch.to(kind)
    solved = torch.cat([inverse.apply(part) for part in sketch.split(1_024)])
    leverage, residual = (sketch * solved).sum(dim=1), rows.residual.to(kind)
    weight = weights_of(rows, curvature).to(kind)
    implicit = Task(task) is Task.CLASSIFICATION and curvature == Curvature.LOGISTIC
    gain = _alone(residual, leverage) if implicit else residual / (1.0 + weight * leverage)
    return Additions(
        sketch=sketch,
        solved=solved,
        residual=residual,
        weight=weight,
        gain=gain,
        implicit=implicit,
    )


def _margin(residual: Tensor) -> tuple[Tensor, Tensor]:
    """F and Q in float64, where Q = 1 / (1 + exp(f))."""
    top = residual.double().clamp(1e-300, 1 - 1e-16)
    return torch.log1p(-top) - torch.log(top), top


def _alone(residual: Tensor, leverage: Tensor) -> Tensor:
    """The root g of g = 1 / (1 + exp(f + h g)) of each row.

    It lies between 0 and the residual, and the right side falls as g grows: halved in float64.
    """
    margin, top = _margin(residual)
    h, low, high = leverage.double(), torch.zeros_like(top), top.clone()
    for _ in range(60):
        middle = (low + high) / 2
        too_small = torch.sigmoid(-(margin + h * middle)) > middle
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return ((low + high) / 2).to(residual.dtype)


def _jointly(residual: Tensor, gram: Tensor) -> Tensor:
    """The g of g_b = 1 / (1 + exp(f_b + sum_a gram_ba g_a)), by Newton steps that are halved.

    It is unique: g minimises sum_b l_b(f + gram g) + g^T gram g / 2, which is convex, as far as
    anything depends on it.
    """
    margin, gain = _margin(residual)
    identity = torch.eye(len(gain), dtype=gram.dtype)

    def lack(at: Tensor) -> Tensor:
        return at - torch.sigmoid(-(margin + gram @ at))

    error = lack(gain)
    for _ in range(NEWTON_STEPS):
        if float(error.abs().max()) < TOLERANCE:
            break
        expected = torch.sigmoid(-(margin + gram @ gain))
        slope = identity + (expected * (1 - expected)).unsqueeze(1) * gram
        step, length = torch.linalg.solve(slope, -error), 1.0
        before = float(error.norm())
        while float((error := lack(gain + length * step)).norm()) > (1 - length / 10) * before:
            length /= 2
            if length < TOLERANCE:
                return gain
        gain = gain + length * step
    return gain
