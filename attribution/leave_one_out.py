"""Leave-one-out correlation: scores against the change that a single row really makes.

It is meaningful for convex models, whose minimiser without a row is a function of the data; there
it is found to convergence, and no model is trained by steps. On a network the effect of one row
drowns in the noise of the seed, and the correlation measures nothing but that.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution.linear_fit import LinearFit, features_of, linear_layer
from attribution.models import fresh
from attribution.retraining import Retraining, checked_for
from attribution.rows import Rows
from attribution.statistics import anova_reliability, spearman_columns
from attribution.training import Optimizer
from schemas.errors import RecipeError, ShapeError

FloatArray = npt.NDArray[np.float64]


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
    inputs = retraining.train[0]
    exact = (
        isinstance(inputs, Tensor)
        and linear_layer(fresh(retraining.model, 0), inputs.shape[1:]) is not None
    )
    reliability: float | None = 1.0
    if exact:
        effects = exact_effects(retraining, left_out)
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
        exact=exact,
    )


def exact_effects(retraining: Retraining, left_out: npt.NDArray[np.intp]) -> FloatArray:
    """f_q(U) - f_q(U without i) of a linear model, float64 [n_query, len(left_out)].

    At the minimisers of the mean loss + weight decay / 2 |theta|^2 over the rows that stay.

    Raises:
        RecipeError: There is no unique minimiser.
        TrainingDiverged: A minimum was not reached.
    """
    recipe = retraining.training
    if recipe.optimizer != Optimizer.SGD:
        raise RecipeError(
            f"weight decay of {recipe.optimizer} is no part of the loss, so its models have no "
            "exact refit; use sgd"
        )
    if recipe.weight_decay == 0:
        raise RecipeError(
            "weight_decay is 0 and the loss has no unique minimum; set it above 0 for leave-one-out"
        )
    model = fresh(retraining.model, 0)
    fit = LinearFit.of(
        model,
        model.state_dict(),
        Rows(retraining.train, "train"),
        task=retraining.kind,
        weight_decay=recipe.weight_decay,
        penalise_bias=True,
    ).minimised()
    features, _ = features_of(fit, Rows(retraining.queries, "queries"))

    def outputs(weights: Tensor) -> FloatArray:
        return retraining.outputs_of((features @ weights.transpose(1, 2)).numpy())

    whole = outputs(fit.weights[None])[0]
    effects = np.empty((len(whole), len(left_out)))
    for rows, weights in fit.refits(torch.from_numpy(left_out.astype(np.int64))):
        effects[:, rows] = (whole - outputs(weights)).T
    return effects


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
