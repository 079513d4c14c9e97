"""Calibration: attribution scores and retrained models made into a posterior of every effect.

The scores tau [n_query, n_train] are the prior of the effects, the bank of M retrained models turns
it into a posterior: beta ~ N(a tau + c, s^2 D), D = diag(|tau|/mean|tau|), with a, c, s and the
noise sigma estimated. The ratio of noise to prior is chosen for all queries together by the exact
leave-one-mask-out error, and the prior alone is always among the candidates.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from attribution.evaluate import Bank, checked_scores
from attribution.statistics import ratio
from optimize.datamodel import BoolArray, Chosen, LinearDatamodel, variances_of
from optimize.posterior import Float64, Spectrum, gram
from optimize.subsets import Subsets, checked_rho, checked_weights, standard

__all__ = ["RHOS", "LinearDatamodel", "calibrate"]

# Noise of a mean output over that of the prior, lambda / (tr(K)/G). Measured best between 1 and 5
# (digits MLP and CNN, Fashion-MNIST; 25 to 400 retrainings), so infinity is last, not likeliest.
RHOS = (*(float(f"{rho:.3g}") for rho in np.geomspace(0.01, 100, 17)), np.inf)
# Sums of scores that vary less than this, relative to the scores, say nothing about the scale.
_FLAT = 1e-10


def calibrate(
    scores: npt.ArrayLike,
    bank: Bank,
    *,
    rho: float | None = None,
    weights: npt.ArrayLike | None = None,
) -> LinearDatamodel:
    """Turn scores and retrained models into a posterior of every row's effect, query by query.

    For each query one eigendecomposition [G, G] gives the fit and its exact leave-one-mask-out
    error at every ratio of `RHOS`; models of one subset leave together. One ratio serves all
    queries, for a query of its own over-fits: the largest whose pooled error lies within a standard
    error, over masks, of the least (Breiman et al. 1984). A negative slope of the scores is
    refused: the column is dropped, the rest fitted again, the query reported in `dropped`.

    Time grows as n_query G^2 (n_train + G); memory holds one kernel, and n_rho n_query G numbers.

    Args:
        scores: Float [n_query, n_train].
        bank: Rows that did not choose the scores' damping, if the intervals are to be honest. In a
            bank of several subset sizes the size is a column of its own.
        rho: The ratio, where it is known from elsewhere: for a single query from the pool that it
            belongs to. Infinity is the prior alone. None: chosen.
        weights: Float [M], non-negative precision of each row, to lean on subsets near those that
            will be asked about. `residual_sd` is then that of a row of average weight.

    Raises:
        ShapeError: The arrays do not fit, hold NaN, or there are too few distinct subsets.
    """
    tau = checked_scores(scores, bank)
    row_weights = checked_weights(weights, len(bank.masks))
    rhos = RHOS if rho is None else (checked_rho(rho), np.inf)
    subsets = Subsets.of(bank, row_weights, tau)
    found = _fit_all(tau, subsets, rhos)
    per_variance = ratio(np.ones(len(tau)), subsets.outputs.var(axis=0))
    squares = found.errors**2 * per_variance[:, None, None]
    best = _choose(squares) if rho is None else 0
    pick = np.arange(len(tau)), best
    noise, coefficients = found.noise[pick], found.coefficients[pick]
    total, lack = subsets.spreads(noise)
    sized = subsets.size_scale > 0
    return LinearDatamodel(
        tau=tau,
        scale=coefficients[:, -1] * ratio(found.unit, np.abs(tau).mean(axis=1, dtype=np.float64)),
        size_effect=coefficients[:, 1] / subsets.size_scale if sized else np.zeros(len(tau)),
        prior_sd=np.sqrt(found.kappa[pick] * noise),
        residual_sd=np.sqrt(total),
        lack_of_fit_sd=np.sqrt(lack),
        dof=len(subsets.outputs) - 2 - sized + found.dropped[pick],
        dropped=found.dropped[pick],
        rho=rhos[best],
        rhos=rhos,
        errors=squares.mean(axis=2).T,
        bank=bank,
        row_weights=row_weights,
        subsets=subsets,
        chosen=Chosen(
            kappa=found.kappa[pick],
            noise=noise,
            dual=found.dual[pick],
            centre=coefficients[:, 0],
            unit=found.unit,
            errors=found.errors[pick],
            prior_errors=found.errors[:, -1],
            standard=_of_mean_square_one(found.standard[pick]),
        ),
    )


class _Path(NamedTuple):
    """Every query at every ratio: [n_query, n_rho, ...]."""

    kappa: Float64
    noise: Float64
    coefficients: Float64
    dual: Float64
    errors: Float64
    standard: Float64
    dropped: BoolArray
    unit: Float64  # [n_query]


def _fit_all(tau: npt.NDArray[np.floating], subsets: Subsets, rhos: tuple[float, ...]) -> _Path:
    n_query, n_subsets = len(tau), len(subsets.outputs)
    shared, own = subsets.shared(), subsets.points
    grid = n_query, len(rhos)
    found = _Path(
        kappa=np.zeros(grid),
        noise=np.zeros(grid),
        coefficients=np.zeros((*grid, shared.shape[1] + 1)),
        dual=np.zeros((*grid, n_subsets)),
        errors=np.zeros((*grid, n_subsets)),
        standard=np.zeros((*grid, n_subsets)),
        dropped=np.zeros(grid, dtype=bool),
        unit=np.ones(n_query),
    )
    for query in range(n_query):
        row = standard(tau[query])
        sums = own.dot(row[:, None])
        off_line = sums - shared @ np.linalg.lstsq(shared, sums)[0]
        varies = bool(off_line.std() > _FLAT * np.abs(row).sum())
        if varies:
            found.unit[query] = 1 / off_line.std()
        columns = np.column_stack([shared, sums * found.unit[query]])
        kernel = gram(own, own, variances_of(tau[query]))
        level = float(np.trace(kernel)) / n_subsets
        kappas = 1 / (np.array(rhos) * level) if level > 0 else np.zeros(len(rhos))
        fits = Spectrum.of(kernel, subsets.variances).fit(
            columns, subsets.outputs[:, query], kappas, may_use=varies
        )
        found.kappa[query], found.noise[query], found.dropped[query] = (
            kappas,
            fits.noise,
            fits.dropped,
        )
        found.coefficients[query], found.dual[query] = fits.coefficients, fits.dual
        found.errors[query], found.standard[query] = fits.errors, fits.standard
    return found


def _choose(squares: Float64) -> int:
    """The largest ratio whose error is within a standard error of the least.

    Queries share the masks, so the error is averaged over queries first and varies over masks.
    In 16 banks of 25 retrainings each (digits, three splits; Fashion-MNIST) the worst gain over
    the prior was -0.007 by this rule and -0.015 by the least error; from 50 on they agree.
    """
    pooled = squares.mean(axis=0)
    mean = pooled.mean(axis=1)
    excess = pooled - pooled[int(mean.argmin())]
    allowed = excess.std(axis=1, ddof=1) / np.sqrt(excess.shape[1])
    return int(np.flatnonzero(excess.mean(axis=1) <= allowed).max())


def _of_mean_square_one(errors: Float64) -> Float64:
    size = np.sqrt((errors**2).mean(axis=1, keepdims=True))
    return ratio(errors, np.broadcast_to(size, errors.shape))
