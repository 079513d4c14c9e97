"""Linear datamodels: attribution scores calibrated on retrained models, with error bars.

For a query q and a training subset S the output of a model trained on S is predicted as
b_q + sum_{i in S} beta[q, i]. The scores tau [n_query, n_train] are the prior of beta, the bank of
M retrained models turns it into a posterior: beta ~ N(a tau + c, s^2 D), D = diag(|tau|/mean|tau|).
The ratio of prior to noise is chosen for all queries together by the exact leave-one-mask-out
error, and the prior alone is always among the candidates.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from attribution.evaluate import Bank, checked_scores, subset_sums
from attribution.statistics import ratio
from optimize.posterior import Float64, Points, Posterior, Spectrum, gram, gram_diagonal
from optimize.subsets import Subsets, checked_rho, checked_weights, query_weights, standard
from schemas.errors import ShapeError

if TYPE_CHECKING:
    from optimize.averaged import MeanDatamodel

MeanSd = tuple[Float64, Float64]
BoolArray = npt.NDArray[np.bool_]

# Noise of a mean output over that of the prior, lambda / (tr(K)/G). Measured best between 1 and 5
# (digits MLP and CNN, Fashion-MNIST; 25 to 400 retrainings), so infinity is last, not likeliest.
RHOS = (*(float(f"{rho:.3g}") for rho in np.geomspace(0.01, 100, 17)), np.inf)
# Sums of scores that vary less than this, relative to the scores, say nothing about the scale.
_FLAT = 1e-10


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearDatamodel:
    """Calibrated linear surrogates of n_query outputs.

    Attributes:
        tau: Float [n_query, n_train], the scores as they were given.
        scale: Float64 [n_query], a: the prior's slope; 0 where `dropped`.
        size_effect: Float64 [n_query], c: what one more row does whatever its score; 0 where the
            bank has one subset size.
        prior_sd: Float64 [n_query], s: how far the effect of a row of mean |tau| lies from a tau,
            a priori; 0 where the bank gave no reason to leave the prior.
        residual_sd: Float64 [n_query], the spread of one retraining about the surrogate: seed
            noise and lack of fit.
        lack_of_fit_sd: Float64 [n_query], the part of `residual_sd` that more seeds of one subset
            do not average away; all of it where no subset was trained twice.
        dof: Int [n_query], degrees of freedom: distinct subsets minus fitted columns.
        dropped: Bool [n_query], the scores' slope was left out, since it was negative or their
            sums do not vary.
        rho: The ratio chosen, lambda = sigma^2/s^2 over tr(K)/G; infinite for the prior alone.
        rhos: The ratios tried, infinity last.
        errors: Float64 [n_rho, n_query], mean squared leave-one-mask-out error of each of `rhos`
            over the variance of the outputs.
        bank: The bank that was fitted.
        row_weights: Float64 [M], the weight of each row in the fit.
        subsets: The bank's distinct subsets.
        chosen: What the predictions are computed from.
    """

    tau: npt.NDArray[np.floating]
    scale: Float64
    size_effect: Float64
    prior_sd: Float64
    residual_sd: Float64
    lack_of_fit_sd: Float64
    dof: npt.NDArray[np.intp]
    dropped: BoolArray
    rho: float
    rhos: tuple[float, ...]
    errors: Float64
    bank: Bank
    row_weights: Float64
    subsets: Subsets
    chosen: "Chosen"

    @functools.cached_property
    def weights(self) -> Float64:
        """What each row adds to each output, beta, float64 [n_query, n_train]."""
        pulled = self.subsets.points.spread(self.chosen.kappa * self.chosen.dual.T)
        beta = np.stack([_variances(row) for row in self.tau]) * pulled.T
        beta += self.scale[:, None] * self.tau
        return beta + self.size_effect[:, None]

    @functools.cached_property
    def intercept(self) -> Float64:
        """Float64 [n_query], the output of an empty training set, far outside the bank."""
        return self.chosen.centre - self.weights @ self.subsets.points.rows.mean(axis=0)

    @property
    def sizes(self) -> tuple[int, int]:
        """Smallest and largest subset of the bank; predictions outside are extrapolations."""
        return self.subsets.sizes

    @property
    def identifies_size(self) -> bool:
        """Whether sets of different sizes can be compared: the bank has more than one size."""
        return self.sizes[0] < self.sizes[1]

    @property
    def error(self) -> Float64:
        """Leave-one-mask-out error over the variance of the outputs at `rho`, [n_query]."""
        return self.errors[self.rhos.index(self.rho)]

    def diagnostics(self) -> dict[str, float]:
        """What was fitted, in numbers that are means over the queries.

        Returns:
            scale, rho, prior_sd, residual_sd, lack_of_fit_sd; error and prior_error, of the
            surrogate and of the scaled scores alone; explained, 1 - error, the share of the
            outputs' variance that a fit without the subset predicts; dof; dropped, a share.
        """
        means = {
            name: float(np.mean(getattr(self, name)))
            for name in ("scale", "prior_sd", "residual_sd", "lack_of_fit_sd", "dof", "dropped")
        }
        error, prior = float(self.error.mean()), float(self.errors[-1].mean())
        return means | {
            "rho": self.rho,
            "error": error,
            "prior_error": prior,
            "explained": 1 - error,
        }

    def predict(self, masks: npt.ArrayLike) -> MeanSd:
        """Outputs after training on each subset: mean and sd, float64 [M, n_query].

        The sd is that of one new retraining. It is infinite for a subset of another size than the
        bank's where the bank has one size only, since the effect of size is then unknown.

        Args:
            masks: Bool [M, n_train], or one mask [n_train].
        """
        chosen = self.checked(masks)
        mean = self.intercept + subset_sums(chosen, self.weights)
        points, size = Points(chosen, self.subsets.points.centre), chosen.sum(axis=1)
        variance = self.variance(points, size - self.subsets.mean_size, 1.0)
        return mean, np.sqrt(variance + self.residual_sd**2)

    def predict_change(
        self, before: npt.ArrayLike, after: npt.ArrayLike, *, seeds: int | None = None
    ) -> MeanSd:
        """Output after training on `after` minus that on `before`: mean and sd, [M, n_query].

        The sd covers the posterior and the noise of both sides, 2 sigma^2. With R models a side
        it does not become 2 sigma^2 / R, since sigma also holds lack of fit, which a new seed
        repeats. It is infinite for two sizes where the bank has one (see `predict`).

        Args:
            before: Bool [M, n_train] or [n_train].
            after: The same.
            seeds: Models averaged on each side. Their seed noise is divided by it, lack of fit is
                not; without effect where the bank trained no subset twice. None: one model a side.
        """
        points, grown = self.moves(before, after)
        mean = points.dot(self.weights.T)
        variance = self.variance(points, grown, 0.0)
        noise = noise_of_change(self.residual_sd, self.lack_of_fit_sd, seeds)
        return mean, np.sqrt(variance + noise)

    def interval(
        self, mean: npt.ArrayLike, sd: npt.ArrayLike, *, confidence: float = 0.9
    ) -> tuple[Float64, Float64]:
        """Bounds of what `predict` or `predict_change` returned, by quantiles of t."""
        return t_interval(mean, sd, self.dof, confidence)

    def averaged(self, queries: npt.ArrayLike | None = None) -> "MeanDatamodel":
        """The surrogate of a mean over queries: `optimize.averaged.MeanDatamodel`.

        Args:
            queries: Integer rows of the scores, a bool mask [n_query], or non-negative float
                weights [n_query], which are brought to sum 1. None: all queries alike.
        """
        from optimize.averaged import MeanDatamodel

        return MeanDatamodel.of(self, query_weights(queries, len(self.tau)))

    def covariance(
        self, query: int, points: Points, above: npt.ArrayLike, constant: float
    ) -> tuple[Float64, tuple[Float64, Float64]]:
        """Where new points stand in the posterior of one query, in units of sigma^2.

        Args:
            query: Its row.
            points: N masks or changes.
            above: [N], their sizes above `Subsets.mean_size`, or what a change adds.
            constant: 1 for masks, 0 for changes.

        Returns:
            kappa x'Dx [N], and the matrices L and U of `Posterior.parts`.
        """
        diagonal, kappa = _variances(self.tau[query]), float(self.chosen.kappa[query])
        own = self.subsets.points
        kernel, cross = np.zeros((len(own.rows),) * 2), np.zeros((len(own.rows), len(points.rows)))
        if kappa:
            kernel, cross = gram(own, own, diagonal), gram(own, points, diagonal)
        scores = standard(self.tau[query])[:, None] * self.chosen.unit[query]
        used = slice(None, -1) if self.dropped[query] else slice(None)
        columns = np.column_stack([self.subsets.shared(), own.dot(scores)])[:, used]
        posterior = Posterior.of(kernel, self.subsets.variances, columns, kappa)
        asked = np.column_stack([self.subsets.columns(above, constant), points.dot(scores)])
        return kappa * gram_diagonal(points, diagonal), posterior.parts(cross, asked[:, used])

    def checked(self, masks: npt.ArrayLike) -> BoolArray:
        """Masks as bool [M, n_train].

        Raises:
            ShapeError: They are not.
        """
        chosen = np.atleast_2d(np.asarray(masks))
        n_train = self.tau.shape[1]
        if chosen.ndim != 2 or chosen.shape[1] != n_train or chosen.dtype != np.bool_:
            raise ShapeError(
                f"masks are {chosen.dtype} of shape {chosen.shape}; give bool [M, {n_train}]"
            )
        return chosen

    def moves(self, before: npt.ArrayLike, after: npt.ArrayLike) -> tuple[Points, Float64]:
        """Changes from subsets to subsets as points, and how many rows each adds, [M]."""
        first, second = np.broadcast_arrays(self.checked(before), self.checked(after))
        moved = second.astype(np.int8) - first.astype(np.int8)
        return Points(moved, None), moved.sum(axis=1, dtype=np.float64)

    def variance(self, points: Points, above: npt.ArrayLike, constant: float) -> Float64:
        """Posterior variance of x'beta, [N, n_query]; infinite where the size is unknown."""
        found = np.empty((len(points.rows), len(self.tau)))
        for query in range(len(self.tau)):
            free, (explained, added) = self.covariance(query, points, above, constant)
            found[:, query] = free - (explained**2).sum(axis=0) + (added**2).sum(axis=0)
        found = np.maximum(found, 0.0) * self.chosen.noise
        if not self.identifies_size:
            found[np.abs(above) > 0.5] = np.inf
        return found


class Chosen(NamedTuple):
    """What prediction needs of each query.

    Attributes:
        kappa: s^2/sigma^2 [n_query].
        noise: sigma^2 of a mean with v = 1 [n_query].
        dual: C^-1 r, float64 [n_query, G].
        centre: The prediction at the mean mask [n_query].
        unit: Brings the sums of standardised scores to spread 1 over the bank [n_query].
        errors: Leave-one-mask-out errors, float64 [n_query, G].
        prior_errors: The same of the prior alone.
        standard: The first over their standard deviations, each query of mean square 1.
    """

    kappa: Float64
    noise: Float64
    dual: Float64
    centre: Float64
    unit: Float64
    errors: Float64
    prior_errors: Float64
    standard: Float64


def noise_of_change(residual_sd: Float64, lack_of_fit_sd: Float64, seeds: int | None) -> Float64:
    """Noise variance of a change between two subsets, `seeds` models a side.

    Raises:
        ShapeError: There is no model.
    """
    if seeds is not None and seeds < 1:
        raise ShapeError(f"seeds is {seeds}; give the number of models on each side")
    lack = lack_of_fit_sd**2
    return 2 * (lack + (residual_sd**2 - lack) / (seeds or 1))


def t_interval(
    mean: npt.ArrayLike, sd: npt.ArrayLike, dof: npt.ArrayLike, confidence: float
) -> tuple[Float64, Float64]:
    """Bounds mean -/+ t sd."""
    reach = stats.t.ppf((1 + confidence) / 2, dof) * np.asarray(sd)
    return np.asarray(mean) - reach, np.asarray(mean) + reach


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
        kernel = gram(own, own, _variances(tau[query]))
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


def _variances(tau: npt.NDArray[Any]) -> Float64:
    """The diagonal of D; scores that say nothing treat all rows alike."""
    magnitudes = np.abs(standard(tau))
    return magnitudes if magnitudes.any() else np.ones(len(magnitudes))
