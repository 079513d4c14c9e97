"""Datamodels (Ilyas et al. 2022): outputs of retrained models regressed on their masks.

    f_q(S) = b_q + c_q |S| + sum_{i in S} tau[q, i] + noise

by LASSO or ridge on standardised masks; c is there only where subsets differ in size, and never
penalised. Scores are the weights tau in mask units: what having row i in the subset adds to the
output beside its part in the size. Lambda is chosen for each query on masks that are held out.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from attribution.estimators.request import Clock, Record, Request, fitted_rows, open_sink
from attribution.estimators.resampling.design import Design
from attribution.estimators.resampling.lasso import FOLDS, PATH, Lasso, lasso_errors
from attribution.estimators.resampling.ridge import GRID, Spectrum
from attribution.estimators.tuning import check_aggregate
from attribution.evaluate import subset_sums
from schemas.errors import ShapeError


class Penalty(StrEnum):
    """What keeps the weights small."""

    LASSO = "lasso"
    RIDGE = "ridge"


# On the digits perceptron with 400 half-subsets LASSO reached an LDS of 0.62, 0.55 and 0.61 (three
# seeds) on 60 others, ridge 0.30, 0.29 and 0.33, empirical influence less: a query's output hangs
# on some dozens of the 1,400 rows.
DEFAULT_PENALTY = Penalty.LASSO
# Distinct masks beyond the unpenalised columns without which none can be held out.
FEWEST_MORE = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Datamodel:
    """Linear functions of the training subset, fitted to retrained models.

    Attributes:
        weights: float64 [m, n], in mask units; 0 for rows that are in every mask or in none.
        intercept: float64 [m].
        size_effect: float64 [m], what one more row does whatever its weight; 0 where the masks
            have one size.
        strengths: float64 [m], the relative lambda of each query.
        unexplained: float64 [m], mean squared error on held-out masks, as a share of what the
            output varies at given sizes; NaN where the strength was given.
        n_masks: Distinct masks.
    """

    weights: NDArray[np.float64]
    intercept: NDArray[np.float64]
    size_effect: NDArray[np.float64]
    strengths: NDArray[np.float64]
    unexplained: NDArray[np.float64]
    n_masks: int

    def predict(self, masks: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Outputs of models trained on the masks bool [M, n]: [M, m]."""
        sizes = np.asarray(masks).sum(axis=1)[:, None]
        return self.intercept + self.size_effect * sizes + subset_sums(masks, self.weights)


def estimate(
    request: Request,
    *,
    penalty: str = DEFAULT_PENALTY,
    strength: ArrayLike = "auto",
    folds: int = FOLDS,
) -> tuple[NDArray[np.float32], Record]:
    """Datamodel weights on a request's bank.

    Args:
        request: What is asked; of it only the bank is read, and the aggregate for whose sum the
            strength is chosen.
        penalty: "lasso" or "ridge".
        strength: "auto", a number, or one for each query; see `fit_datamodel`.
        folds: In how many parts masks are held out, for the LASSO.
    """
    clock = Clock()
    masks, outputs = fitted_rows(request)
    check_aggregate(request.aggregate, outputs.shape[1])
    fitted = fit_datamodel(
        masks,
        outputs,
        penalty=penalty,
        strength=strength,
        folds=folds,
        aggregate=request.aggregate,
        seed=request.seed,
        device=request.device,
    )
    values, write = open_sink(request.out, *fitted.weights.shape)
    write(slice(0, len(fitted.weights)), fitted.weights.astype(np.float32))
    clock.stop("fit")
    chosen = "given"
    if isinstance(strength, str):
        left_out = f"{folds} folds" if penalty == Penalty.LASSO else "each left out"
        target = "each" if request.aggregate is None else "the weighted sum"
        chosen = (
            f"held-out masks ({left_out} of {fitted.n_masks}; {len(masks)} models), for {target} "
            f"of {len(fitted.weights)} queries: {1 - fitted.unexplained.mean():.0%} explained"
        )
    return values, {
        "penalty": str(penalty),
        "strength": _summary(fitted.strengths),
        "chosen_from": chosen,
        "fitted_to": f"{fitted.n_masks} masks ({len(masks)} models)",
        "n_masks": fitted.n_masks,
        "size_effect": bool(fitted.size_effect.any()),
        "nonzero": float(np.count_nonzero(fitted.weights, axis=1).mean()),
        "seconds": clock.seconds,
    }


def fit_datamodel(
    masks: NDArray[np.bool_],
    outputs: NDArray[np.floating],
    *,
    penalty: str = DEFAULT_PENALTY,
    strength: ArrayLike = "auto",
    folds: int = FOLDS,
    aggregate: NDArray[Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Datamodel:
    """Regress outputs on masks, all queries at once.

    Held are the smaller of n x n and M x M (ridge), or n x n or n x M (LASSO, see there), and some
    arrays n x m; standardised masks only pass in blocks.

    Args:
        masks: bool [M, n]; rows that share a mask are held out together.
        outputs: [M, m].
        penalty: "lasso" or "ridge".
        strength: Lambda, as a number or one a query: for the LASSO as a share of the smallest one
            at which all weights are 0 (so below 1), for ridge in mean eigenvalues of the kernel.
            "auto" chooses it for each query, so that no query's outputs choose for another. One
            for all had an LDS 0.008 lower and 0.001 higher with the LASSO (digits, two seeds), and
            the same within 0.004 with ridge (three).
        folds: In how many parts masks are held out, for the LASSO; ridge leaves out each in turn.
        aggregate: Weights [m]: choose one strength, for the weighted sum of the outputs.
        seed: Key of the folds.
        device: "cpu" or "cuda".

    Raises:
        ShapeError: Shapes do not fit, masks are too few, or an option has no such value.
    """
    if penalty not in set(Penalty):
        raise ShapeError(f"penalty is {penalty!r}; say 'lasso' or 'ridge'")
    if folds < 2:
        raise ShapeError(f"folds is {folds}; it takes at least 2 to hold masks out")
    design = Design.of(masks, outputs, device=device)
    m = design.outputs.shape[1]
    unexplained = np.full(m, np.nan)
    spectrum = Spectrum.of(design) if penalty == Penalty.RIDGE else None
    if isinstance(strength, str):
        strengths, unexplained = _chosen(design, spectrum, strength, folds, aggregate, seed)
    else:
        strengths = _given(strength, m, penalty)
    weights = (spectrum or Lasso.of(design)).weights(strengths)
    intercept, size_effect = design.unpenalised(weights)
    return Datamodel(
        weights=weights.T.cpu().numpy(),
        intercept=intercept.cpu().numpy(),
        size_effect=size_effect.cpu().numpy(),
        strengths=strengths,
        unexplained=unexplained,
        n_masks=design.n_masks,
    )


def _chosen(
    design: Design,
    spectrum: Spectrum | None,
    strength: str,
    folds: int,
    aggregate: NDArray[Any] | None,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The strength that predicts held-out masks best and its unexplained share, [m] each."""
    if strength != "auto":
        raise ShapeError(f"strength is {strength!r}; give a positive number or 'auto'")
    if design.n_masks < len(design.mixing) + FEWEST_MORE:
        raise ShapeError(
            f"there are {design.n_masks} distinct subsets; choosing a strength needs at least "
            f"{len(design.mixing) + FEWEST_MORE}: retrain on more, or give a strength"
        )
    tuned = design
    if aggregate is not None:
        weights = torch.from_numpy(np.asarray(aggregate, dtype=np.float64))
        tuned = replace(design, outputs=design.outputs @ weights[:, None].to(design.outputs))
        spectrum = spectrum and Spectrum.of(tuned)
    if spectrum is not None:
        grid, errors = np.array(GRID), spectrum.errors()
    else:
        grid, errors = np.array(PATH), lasso_errors(tuned, folds=folds, seed=seed)
    best = errors.argmin(axis=0)
    left = errors[best, np.arange(len(best))]
    varies = tuned.residuals.square().mean(0).cpu().numpy()
    share = np.divide(left, varies, out=np.ones_like(left), where=varies > 0)
    m = design.outputs.shape[1]
    return np.broadcast_to(grid[best], m).copy(), np.broadcast_to(share, m).copy()


def _given(strength: ArrayLike, m: int, penalty: str) -> NDArray[np.float64]:
    given = np.asarray(strength, dtype=np.float64)
    most = 1.0 if penalty == Penalty.LASSO else np.inf
    if given.shape not in ((), (m,)) or not ((given > 0) & (given < np.inf)).all():
        raise ShapeError(
            f"strength is {strength!r}; give a positive number, or one for each of {m} queries"
        )
    if (given > most).any():
        raise ShapeError(
            f"strength is {given.max():g}; a LASSO's is a share of the strength at which all "
            "weights are 0: give at most 1"
        )
    return np.broadcast_to(given, m).copy()


def _summary(strengths: NDArray[np.float64]) -> dict[str, float]:
    low, median, high = np.quantile(strengths, [0.0, 0.5, 1.0])
    return {"low": float(low), "median": float(median), "high": float(high)}
