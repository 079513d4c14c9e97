"""Leave-one-out correlation: scores against the change that a single row really makes.

It is meaningful for convex models, whose minimiser without a row is a function of the data; there
it is found to convergence, and no model is trained by steps. On a network the effect of one row
drowns in the noise of the seed, and the correlation measures nothing but that.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy import linalg
from scipy.special import softmax
from torch import nn

from attribution.models import fresh
from attribution.outputs import Task
from attribution.retraining import Retraining, checked_for
from attribution.statistics import anova_reliability, spearman_columns
from attribution.training import Optimizer
from schemas.errors import RecipeError, ShapeError, TrainingDiverged

FloatArray = npt.NDArray[np.float64]

_BLOCK = 2**24  # float64 numbers in the logits of the refits that advance together: 128 MB
_STEPS = 200
_CLOSE = 1e-11  # a Newton step this small, relative to the parameters, ends a refit


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveOneOut:
    """The correlation of scores with effects of single rows.

    Attributes:
        mean: Mean over queries of Spearman's correlation over rows.
        per_query: Float64 [n_query].
        effects: Float64 [n_query, n_rows], f_q(U) - f_q(U without i), in the output's unit.
        reliability: Share of the variance of the measured effects that is due to the row, averaged
            over queries; 1 for exact refits, None for one seed a row.
        exact: Whether the refits are minimisers to convergence.
    """

    mean: float
    per_query: FloatArray = field(repr=False)
    effects: FloatArray = field(repr=False)
    reliability: float | None
    exact: bool


def loo_correlation(
    scores: npt.ArrayLike,
    retraining: Retraining,
    *,
    rows: npt.ArrayLike | None = None,
    force: bool = False,
) -> LeaveOneOut:
    """Rank correlation of scores with leave-one-out effects, over rows, averaged over queries.

    Args:
        scores: Float [n_query, n_train], positive where training on the row raises the output.
        retraining: Data, recipe and output. For a linear model the recipe's loss and weight decay
            are minimised exactly; its steps and seeds do not matter.
        rows: Training rows to leave out; by default all.
        force: Retrain a model that is not linear, `seeds` times without each row, although it
            says little: read `reliability` beside the result.

    Raises:
        RecipeError: The model is not a linear one, or its recipe has no unique minimiser.
        ShapeError: Scores or rows do not fit.
        TrainingDiverged: A refit did not converge.
    """
    tau = checked_for(scores, retraining)
    left_out = np.arange(retraining.n_train) if rows is None else np.asarray(rows, dtype=np.intp)
    if left_out.ndim != 1 or len(left_out) < 3:
        raise ShapeError(f"{left_out.size} rows are left out; a rank correlation needs three")
    layer = linear_layer(fresh(retraining.model, 0))
    reliability: float | None = 1.0
    if layer is not None:
        effects = exact_effects(retraining, layer, left_out)
    elif force:
        effects, reliability = _retrained_effects(retraining, left_out)
    else:
        raise RecipeError(
            "leave-one-out correlation is for linear models: on a network one row moves an output "
            "less than another seed does, so that even good scores correlate near 0; use lds or "
            "removal_curve, or force=True to see it"
        )
    per_query = spearman_columns(tau[:, left_out].T, effects.T)
    return LeaveOneOut(
        mean=float(per_query.mean()),
        per_query=per_query,
        effects=effects,
        reliability=reliability,
        exact=layer is not None,
    )


def linear_layer(model: nn.Module) -> nn.Linear | None:
    """The one linear layer that a model consists of, or None: then its loss may not be convex.

    Only plain modules count; what a module of the user's own computes cannot be seen.
    """
    found = [
        module
        for module in model.modules()
        if type(module) not in (nn.Sequential, nn.Flatten, nn.Identity)
    ]
    if len(found) == 1 and type(found[0]) is nn.Linear:
        return found[0]
    return None


def exact_effects(
    retraining: Retraining, layer: nn.Linear, left_out: npt.NDArray[np.intp]
) -> FloatArray:
    """f_q(U) - f_q(U without i) of a linear model, float64 [n_query, len(left_out)].

    The minimiser of the mean loss + weight decay / 2 |theta|^2 over the rows that stay, by steps
    with the Hessian of all rows: they contract by about one n-th each, so that a few suffice.

    Raises:
        RecipeError: There is no unique minimiser.
        TrainingDiverged: The steps did not converge.
    """
    fit = _Fit.of(retraining, layer)
    whole = fit.minimise()
    features = _features(retraining.queries[0], layer)
    outputs = retraining.outputs_of((features @ whole)[None])[0]
    effects = np.empty((len(outputs), len(left_out)))
    step = max(1, _BLOCK // (len(fit.features) * whole.shape[1]))
    for start in range(0, len(left_out), step):
        part = slice(start, start + step)
        refitted = fit.without(left_out[part], whole)
        effects[:, part] = (outputs - retraining.outputs_of(features @ refitted)).T
    return effects


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """A linear model's training problem: features [n, D], targets [n, K], decay per row."""

    features: FloatArray
    targets: FloatArray
    decay: float
    task: Task

    @classmethod
    def of(cls, retraining: Retraining, layer: nn.Linear) -> "_Fit":
        recipe, kind = retraining.training, retraining.kind
        if recipe.optimizer != Optimizer.SGD:
            raise RecipeError(
                f"weight decay of {recipe.optimizer} is no part of the loss, so its models have no "
                "exact refit; use sgd"
            )
        if recipe.weight_decay == 0:
            raise RecipeError(
                "weight_decay is 0 and the loss has no unique minimum; set it above 0 for "
                "leave-one-out"
            )
        values = np.asarray(retraining.train[1])
        targets = values.reshape(-1, 1).astype(np.float64)
        if kind is Task.CLASSIFICATION:
            targets = np.eye(layer.out_features)[values]
        return cls(
            features=_features(retraining.train[0], layer),
            targets=targets,
            decay=recipe.weight_decay,
            task=kind,
        )

    def slopes(self, logits: FloatArray) -> FloatArray:
        """Derivatives of each row's loss with respect to its logits [..., n, K]."""
        if self.task is Task.CLASSIFICATION:
            return softmax(logits, axis=-1) - self.targets
        return 2 * (logits - self.targets)

    def gradient(self, theta: FloatArray) -> FloatArray:
        """Of the summed loss of all rows, without the decay, [..., D, K]."""
        return self.features.T @ self.slopes(self.features @ theta)

    def hessian(self, theta: FloatArray) -> FloatArray:
        """Of the summed loss and decay of all rows, [D K, D K]."""
        n, width = self.features.shape
        k = self.targets.shape[1]
        curvature = np.full((n, 1, 1), 2.0)
        if self.task is Task.CLASSIFICATION:
            p = softmax(self.features @ theta, axis=1)
            curvature = p[:, :, None] * (np.eye(k) - p[:, None, :])
        blocks = np.empty((width, k, width, k))
        for row in range(k):
            for column in range(k):
                weighted = curvature[:, row, column, None] * self.features
                blocks[:, row, :, column] = self.features.T @ weighted
        return blocks.reshape(width * k, width * k) + n * self.decay * np.eye(width * k)

    def minimise(self) -> FloatArray:
        """The minimiser over all rows, by damped Newton steps, [D, K]."""
        n = len(self.features)
        theta = np.zeros((self.features.shape[1], self.targets.shape[1]))
        for _ in range(_STEPS):
            gradient = self.gradient(theta) + n * self.decay * theta
            step = linalg.solve(self.hessian(theta), gradient.ravel(), assume_a="pos")
            # Newton's decrement far from the minimum bounds the safe length of a step
            # (self-concordance; Nesterov and Nemirovskii 1994).
            decrement = float(np.sqrt(max(0.0, gradient.ravel() @ step)))
            length = 1.0 if decrement < 0.25 else 1 / (1 + decrement)
            theta = theta - length * step.reshape(theta.shape)
            if np.abs(step).max() <= _CLOSE * (1 + np.abs(theta).max()):
                return theta
        raise TrainingDiverged(
            f"the linear model has not converged after {_STEPS} Newton steps; scale its inputs or "
            "raise weight_decay"
        )

    def without(self, rows: npt.NDArray[np.intp], whole: FloatArray) -> FloatArray:
        """The minimisers without each of some rows, [len(rows), D, K]."""
        factor = linalg.cho_factor(self.hessian(whole))
        theta = np.repeat(whole[None], len(rows), axis=0)
        own, kept = self.features[rows], (len(self.features) - 1) * self.decay
        for _ in range(_STEPS):
            slopes = self.slopes(self.features @ theta)
            gradient = self.features.T @ slopes + kept * theta
            left = slopes[np.arange(len(rows)), rows]
            gradient -= own[:, :, None] * left[:, None, :]
            flat = gradient.reshape(len(rows), -1)
            step = linalg.cho_solve(factor, flat.T).T.reshape(theta.shape)
            theta -= step
            if np.abs(step).max() <= _CLOSE * (1 + np.abs(theta).max()):
                return theta
        raise TrainingDiverged(
            f"a refit without one row has not converged after {_STEPS} steps; raise weight_decay"
        )


def _features(inputs: npt.ArrayLike, layer: nn.Linear) -> FloatArray:
    """Inputs as rows of the design matrix, float64 [n, D], a last 1 where there is a bias."""
    flat = np.asarray(inputs, dtype=np.float64).reshape(len(np.asarray(inputs)), -1)
    if flat.shape[1] != layer.in_features:
        raise ShapeError(
            f"inputs have {flat.shape[1]} numbers a row and the linear layer takes "
            f"{layer.in_features}"
        )
    return flat if layer.bias is None else np.hstack([flat, np.ones((len(flat), 1))])


def _retrained_effects(
    retraining: Retraining, left_out: npt.NDArray[np.intp]
) -> tuple[FloatArray, float | None]:
    """Effects by retraining, and their reliability."""
    everything: list[npt.NDArray[np.intp]] = [np.empty(0, dtype=np.intp)]
    found = retraining.on(retraining.without([*everything, *left_out[:, None]]))
    effects = found.outputs[0].mean(axis=0) - found.outputs[1:].mean(axis=1)
    group = np.repeat(np.arange(len(left_out)), retraining.seeds)
    reliability = anova_reliability(
        found.outputs[1:].reshape(len(group), retraining.n_query), group
    )
    return effects.T, None if reliability is None else float(reliability.mean())
