"""What a linear model becomes without some of its rows, in closed form.

A fit minimises sum_i [l(W x_i, y_i) + wd |W|^2 / 2] + ridge |W|^2 / 2, with x_i the row's inputs
and a constant, and l cross-entropy or squared error. The ridge stays whatever rows go; weight decay
acts on a mean loss, so that a row's share goes with the row. With H the Hessian of that sum, the
shares of G left out of it, and A_i = B_i B_i^T the Hessian of l in the logits (diag p - p p^T, or
2), removing a group G moves the parameters by one Newton step on the rows that remain,

    (H - U U^T)^-1 sum_G grad_i,    U = [B_i (x) x_i for i in G],

by Woodbury's identity: the leave-one-out of least squares, exactly, and the approximate
leave-one-out of generalised linear models (Pregibon 1981; Rad and Maleki 2020), here for any number
of classes. Further Newton steps come nearer to the refit, and `refits` goes all the way.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attribution.outputs import Task
from attribution.rows import Rows
from attribution.training.stacked import Layer, layers_of
from schemas.errors import DataError, RecipeError, ShapeError, TrainingDiverged

# Parameters of a dense Hessian: 3 GB in float64, and minutes for its eigenvectors.
LARGEST = 20_000
# Eigenvalues below this share of the largest count as 0: along them the fit is not determined
# (the common shift of all logits, say), no gradient points there and nothing moves.
FLAT = 1e-10
# A leverage this near to 1 means that the row alone decides a direction of the fit.
ALONE = 1e-8
# Float64 numbers in a block of logits or of Hessians: 128 MB.
BLOCK = 2**24
# A step this small, relative to the parameters, ends a fit; so many steps do not reach one.
CLOSE, STEPS = 1e-11, 200


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearFit:
    """A linear model at its minimum, with the rows that it was fitted to; all on the CPU.

    Attributes:
        features: float64 [n, d], the constant in the last column if the model has a bias.
        targets: int64 [n] classes, or float64 [n] numbers.
        weights: float64 [K, d].
        ridge: float64 [d], the penalty of each column of the weights that stays with every row.
        decay: float64 [d], the penalty that each row brings.
        task: "classification" or "regression".
    """

    features: Tensor
    targets: Tensor
    weights: Tensor
    ridge: Tensor
    decay: Tensor
    task: Task

    @classmethod
    def of(
        cls,
        model: nn.Module,
        state: Mapping[str, Any],
        rows: Rows,
        *,
        task: str,
        ridge: float = 0.0,
        weight_decay: float = 0.0,
        penalise_bias: bool = False,
    ) -> "LinearFit":
        """The fit that a model with one linear layer is, at some weights.

        Args:
            model: One linear layer, with or without a bias, over vectors or flattened inputs.
            state: Its state dict, after training to convergence.
            rows: The training rows.
            task: "classification" or "regression".
            ridge: Penalty lambda of sum l + lambda/2 |w|^2: 1/C of scikit-learn's logistic
                regression, 2 alpha of its ridge regression.
            weight_decay: Penalty of the mean loss, as of torch's optimizers.
            penalise_bias: Whether the bias is penalised too (weight decay of torch's optimizers
                does, scikit-learn does not).

        Raises:
            RecipeError: The model is anything else.
            ShapeError: A penalty is negative, or there are too many parameters.
        """
        for name, value in {"ridge": ridge, "weight_decay": weight_decay}.items():
            if not (np.isfinite(value) and value >= 0):
                raise ShapeError(f"{name} is {value}; give the penalty of the fit, 0 or more")
        inputs, targets = _all_rows(rows)
        layer = linear_layer(model, inputs.shape[1:])
        if layer is None:
            raise RecipeError(
                "leaving rows out in closed form needs a model of one linear layer; this one is "
                f"{type(model).__name__}: use 'trak' or 'influence'"
            )
        weights = torch.as_tensor(state[layer.weight]).detach().cpu().double()
        if layer.bias is not None:
            bias = torch.as_tensor(state[layer.bias]).detach().cpu().double()
            weights = torch.cat([weights, bias[:, None]], dim=1)
        penalised = torch.ones(weights.shape[1], dtype=torch.float64)
        if layer.bias is not None and not penalise_bias:
            penalised[-1] = 0.0
        if weights.numel() > LARGEST:
            raise ShapeError(
                f"the Hessian of {weights.numel()} parameters is too large to write down (at most "
                f"{LARGEST}); use 'influence'"
            )
        kind = Task(task)
        return cls(
            features=_features(inputs, layer.bias is not None),
            targets=targets.double() if kind is Task.REGRESSION else targets,
            weights=weights,
            ridge=float(ridge) * penalised,
            decay=float(weight_decay) * penalised,
            task=kind,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(K, d)."""
        return int(self.weights.shape[0]), int(self.weights.shape[1])

    @cached_property
    def inverse(self) -> Tensor:
        """H^-1 [K d, K d], and 0 in directions that rows and penalties leave open."""
        return _inverted(self.hessian(self.weights))

    @cached_property
    def inverse_without_share(self) -> Tensor:
        """The same without one row's share of the weight decay."""
        return (
            _inverted(self.hessian(self.weights, removed=1)) if self.decay.any() else self.inverse
        )

    def penalty(self, removed: int = 0) -> Tensor:
        """What weighs on each column of the weights once some rows are gone, [d]."""
        return self.ridge + (len(self.features) - removed) * self.decay

    def slopes(self, weights: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Derivative of each row's loss by its logits, [..., n, K], at weights [..., K, d]."""
        logits = self.features[rows] @ weights.transpose(-1, -2)
        if self.task is Task.REGRESSION:
            return 2 * (logits - self.targets[rows, None])
        own = nn.functional.one_hot(self.targets[rows], logits.shape[-1])
        return logits.softmax(-1) - own

    def roots(self, weights: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """B with B B^T the Hessian of each row's loss in its logits, [..., n, K, K]."""
        logits = self.features[rows] @ weights.transpose(-1, -2)
        if self.task is Task.REGRESSION:
            return torch.full((*logits.shape, 1), 2.0**0.5, dtype=logits.dtype)
        p = logits.softmax(-1)
        return torch.diag_embed(p.sqrt()) - p[..., :, None] * p.sqrt()[..., None, :]

    def hessian(self, weights: Tensor, *, removed: int = 0) -> Tensor:
        """Hessian of the objective at weights [K, d]: [K d, K d].

        Of `removed` rows the share of the weight decay is left out, their losses are not.
        """
        root = self.roots(weights)
        curved = root @ root.transpose(-1, -2)
        n_outputs, width = self.shape
        whole = torch.empty(n_outputs, width, n_outputs, width, dtype=torch.float64)
        for one in range(n_outputs):
            for two in range(one, n_outputs):
                part = self.features.T @ (curved[:, one, two, None] * self.features)
                whole[one, :, two] = part
                whole[two, :, one] = part
        matrix = whole.reshape(n_outputs * width, -1)
        matrix.diagonal().add_(self.penalty(removed).repeat(n_outputs))
        return matrix

    def stationarity(self) -> float:
        """Length of the objective's gradient beside that of the typical row's: 0 at a minimum."""
        slopes = self.slopes(self.weights)
        whole = slopes.T @ self.features + self.weights * self.penalty()
        each = slopes.norm(dim=1) * self.features.norm(dim=1)
        return float(whole.norm() / each.square().mean().sqrt().clamp(min=1e-300))

    def minimised(self) -> "LinearFit":
        """The fit at its minimum, by Newton steps from here; of a regression one is enough.

        Of cross-entropy, Newton's decrement bounds the length of a step that is safe
        (self-concordance; Nesterov and Nemirovskii 1994).

        Raises:
            TrainingDiverged: It is not reached.
        """
        weights = self.weights
        for _ in range(STEPS):
            gradient = self.slopes(weights).T @ self.features + weights * self.penalty()
            step = (_inverted(self.hessian(weights)) @ gradient.flatten()).view_as(weights)
            decrement = float((gradient * step).sum().clamp(min=0).sqrt())
            near = decrement < 0.25 or self.task is Task.REGRESSION
            weights = weights - step / (1 if near else 1 + decrement)
            if float(step.abs().max()) <= CLOSE * (1 + float(weights.abs().max())):
                return replace(self, weights=weights)
        raise TrainingDiverged(
            f"the linear model has not converged after {STEPS} Newton steps; scale its inputs or "
            "raise the penalty"
        )

    def refits(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Weights at the minimum without each of some rows alone, [b, K, d], block by block.

        By steps with the Hessian of all rows: they contract by about one n-th each.

        Args:
            rows: Row numbers [b].

        Raises:
            TrainingDiverged: A refit is not reached.
        """
        step = max(1, BLOCK // (len(self.features) * self.shape[0]))
        for start in range(0, len(rows), step):
            part = slice(start, min(start + step, len(rows)))
            yield part, self._refitted(rows[part])

    def _refitted(self, rows: Tensor) -> Tensor:
        weights = self.weights.expand(len(rows), -1, -1)
        gone = torch.arange(len(rows)), rows
        for _ in range(STEPS):
            slopes = self.slopes(weights)
            slopes[gone] = 0.0
            gradient = slopes.transpose(1, 2) @ self.features + weights * self.penalty(1)
            step = (gradient.flatten(1) @ self.inverse_without_share).view_as(weights)
            weights = weights - step
            if float(step.abs().max()) <= CLOSE * (1 + float(weights.abs().max())):
                return weights
        raise TrainingDiverged(
            f"a refit without one row has not converged after {STEPS} steps; raise the penalty"
        )

    def jackknife(self) -> Tensor:
        """-d theta / d w_i = H^-1 grad_i of every row, [n, K, d] (Jaeckel 1972).

        The first-order change on leaving each row out, without its own curvature.
        """
        moved = self._gradients(slice(None)).flatten(1) @ self.inverse
        return moved.unflatten(1, self.shape)

    def without(self, group: Sequence[int] | Tensor, *, steps: int = 0) -> Tensor:
        """Change of the weights on removing a group of rows at once, [K, d].

        Args:
            group: Row numbers, each once.
            steps: Further Newton steps on the rows that remain.

        Raises:
            ShapeError: The group is empty, repeats a row or leaves none, or steps is negative.
            DataError: The rows that remain do not determine the fit.
        """
        rows = torch.as_tensor(group, dtype=torch.int64)
        n_rows = len(self.features)
        if len(rows) == 0 or len(rows.unique()) < len(rows) or len(rows) >= n_rows:
            raise ShapeError(
                f"a group of {len(rows)} rows out of {n_rows} cannot be removed; give row "
                "numbers, each once, and leave some"
            )
        if int(rows.min()) < 0 or int(rows.max()) >= n_rows:
            raise ShapeError(f"rows lie in 0..{n_rows - 1}; got {int(rows.max())}")
        return self._remove(rows[None], steps)[0]

    def without_each(self, *, steps: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Change of the weights on removing each row alone: (rows, [b, K, d]), block by block.

        Raises:
            ShapeError: steps is negative.
            DataError: The rows that remain do not determine the fit.
        """
        n_rows, (n_outputs, width) = len(self.features), self.shape
        numbers = n_outputs * width * (n_outputs + (n_outputs * width if steps else 0))
        if steps:
            numbers += n_rows * n_outputs**2
        block = max(1, BLOCK // numbers)
        for start in range(0, n_rows, block):
            rows = torch.arange(start, min(start + block, n_rows))
            yield slice(start, int(rows[-1]) + 1), self._remove(rows[:, None], steps)

    def _gradients(self, rows: Tensor | slice) -> Tensor:
        """Gradient of each row's loss and of its share of the weight decay, [b, K, d]."""
        losses = self.slopes(self.weights, rows)[:, :, None] * self.features[rows][:, None, :]
        return losses + self.weights * self.decay

    def _remove(self, groups: Tensor, steps: int) -> Tensor:
        """Change of the weights on removing each group [b, g]: [b, K, d]."""
        if steps < 0:
            raise ShapeError(f"steps is {steps}; give 0 or more")
        count, size = groups.shape
        flat = groups.flatten()
        gradient = self._gradients(flat).unflatten(0, (count, size)).sum(1).flatten(1)
        root = self.roots(self.weights, flat)
        # U [b, K d, g K]: column (i, c) is B_i[:, c] (x) x_i.
        outer = root[:, :, None, :] * self.features[flat][:, None, :, None]
        update = outer.unflatten(0, (count, size)).permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)
        inverse = self.inverse_without_share
        if size > 1 and self.decay.any():
            inverse = _inverted(self.hessian(self.weights, removed=size))
        moved, spread = gradient @ inverse, inverse @ update
        core = torch.eye(update.shape[2], dtype=torch.float64) - update.transpose(1, 2) @ spread
        right = update.transpose(1, 2) @ moved[:, :, None]
        try:
            solved = torch.linalg.solve(core, right)
        except RuntimeError as error:
            raise _undetermined() from error
        change = (moved + (spread @ solved)[:, :, 0]).unflatten(1, self.shape)
        for _ in range(steps):
            change = change - self._newton(change, groups)
        return change

    def _newton(self, change: Tensor, groups: Tensor) -> Tensor:
        """One Newton step on the remaining rows, at each group's own weights, [b, K, d]."""
        weights = self.weights + change
        stay = torch.ones(len(groups), len(self.features), dtype=torch.float64)
        stay.scatter_(1, groups, 0.0)
        slopes = self.slopes(weights) * stay[:, :, None]
        penalty = self.penalty(groups.shape[1])
        gradient = slopes.transpose(1, 2) @ self.features + weights * penalty
        root = self.roots(weights)
        curved = root @ root.transpose(-1, -2) * stay[:, :, None, None]
        n_outputs, width = self.shape
        whole = torch.empty(len(groups), n_outputs, width, n_outputs, width, dtype=torch.float64)
        for one in range(n_outputs):
            for two in range(one, n_outputs):
                left = self.features.T * curved[:, None, :, one, two]
                whole[:, one, :, two] = left @ self.features
                whole[:, two, :, one] = whole[:, one, :, two]
        matrix = whole.reshape(len(groups), n_outputs * width, -1)
        matrix.diagonal(dim1=1, dim2=2).add_(penalty.repeat(n_outputs))
        step = torch.linalg.pinv(matrix, rtol=FLAT, hermitian=True) @ gradient.flatten(1)[..., None]
        return step[..., 0].unflatten(1, self.shape)


def linear_layer(model: nn.Module, input_shape: torch.Size) -> Layer | None:
    """The one linear layer that a model is, or None: then its loss may not be convex."""
    layers = layers_of(model, input_shape)
    return layers[0] if layers is not None and len(layers) == 1 else None


def _inverted(matrix: Tensor) -> Tensor:
    """The inverse, and 0 in directions in which the matrix is flat."""
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > FLAT * values[-1].clamp(min=torch.finfo(values.dtype).tiny)
    inverted = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    return (vectors * inverted) @ vectors.T


def _undetermined() -> DataError:
    return DataError(
        "without some row the remaining rows do not determine the fit; give the penalty that it "
        "was trained with, or more rows than parameters"
    )


def _all_rows(rows: Rows) -> tuple[Tensor, Tensor]:
    inputs, targets = rows.batch(0, len(rows))
    if not isinstance(inputs, Tensor):
        raise RecipeError("leaving rows out in closed form needs one tensor of inputs")
    return inputs, targets


def _features(inputs: Tensor, bias: bool) -> Tensor:
    flat = inputs.flatten(1).double().cpu()
    return torch.cat([flat, torch.ones_like(flat[:, :1])], dim=1) if bias else flat


def features_of(fit: LinearFit, rows: Rows) -> tuple[Tensor, Tensor]:
    """Features [m, d] and targets [m] of other rows, as the fit's own are."""
    inputs, targets = _all_rows(rows)
    flat = inputs.flatten(1)
    found = _features(inputs, flat.shape[1] + 1 == fit.features.shape[1])
    if found.shape[1] != fit.features.shape[1]:
        raise ShapeError(f"queries have {flat.shape[1]} inputs; the fit has {fit.shape[1]} columns")
    return found, targets.double() if fit.task is Task.REGRESSION else targets
