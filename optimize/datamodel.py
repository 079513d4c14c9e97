"""Linear datamodels: what training on any subset does to outputs, with error bars.

For a query q and a training subset S the output of a model trained on S is predicted as
b_q + sum_{i in S} beta[q, i], with beta [n_query, n_train] known up to a posterior covariance. How
it is fitted is `optimize.surrogate`; here it predicts.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from attribution.evaluate import Bank, subset_sums
from optimize.averaged import MeanDatamodel
from optimize.intervals import MeanSd, noise_of_change, t_interval
from optimize.posterior import Float64, Points, Posterior, gram, gram_diagonal
from optimize.subsets import Subsets, query_weights, standard
from schemas.errors import ShapeError

BoolArray = npt.NDArray[np.bool_]


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
        beta = np.stack([variances_of(row) for row in self.tau]) * pulled.T
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

    def expect(self, masks: npt.ArrayLike) -> Float64:
        """The means of `predict`, without the work that its sd takes: [M, n_query]."""
        return self.intercept + subset_sums(self.checked(masks), self.weights)

    def predict(self, masks: npt.ArrayLike) -> MeanSd:
        """Outputs after training on each subset: mean and sd, float64 [M, n_query].

        The sd is that of one new retraining. It is infinite for a subset of another size than the
        bank's where the bank has one size only, since the effect of size is then unknown.

        Args:
            masks: Bool [M, n_train], or one mask [n_train].
        """
        chosen = self.checked(masks)
        points, size = Points(chosen, self.subsets.points.centre), chosen.sum(axis=1)
        variance = self.variance(points, size - self.subsets.mean_size, 1.0)
        return self.expect(chosen), np.sqrt(variance + self.residual_sd**2)

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

    def averaged(self, queries: npt.ArrayLike | None = None) -> MeanDatamodel:
        """The surrogate of a mean over queries: `optimize.averaged.MeanDatamodel`.

        Args:
            queries: Integer rows of the scores, a bool mask [n_query], or non-negative float
                weights [n_query], which are brought to sum 1. None: all queries alike.
        """
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
        diagonal, kappa = self.prior_variances(query), float(self.chosen.kappa[query])
        own = self.subsets.points
        cross = (
            gram(own, points, diagonal) if kappa else np.zeros((len(own.rows), len(points.rows)))
        )
        posterior, scores = self.posterior(query)
        asked = np.column_stack([self.subsets.columns(above, constant), points.dot(scores)])
        return kappa * gram_diagonal(points, diagonal), posterior.parts(cross, asked)

    def posterior(self, query: int) -> tuple[Posterior, Float64]:
        """The posterior of one query, and the scores in it: [n_train, 1], or 0 columns if dropped.

        Args:
            query: Its row.
        """
        own, kappa = self.subsets.points, float(self.chosen.kappa[query])
        kernel = np.zeros((len(own.rows),) * 2)
        if kappa:
            kernel = gram(own, own, self.prior_variances(query))
        scores = standard(self.tau[query])[:, None] * self.chosen.unit[query]
        scores = scores[:, : 0 if self.dropped[query] else 1]
        columns = np.column_stack([self.subsets.shared(), own.dot(scores)])
        return Posterior.of(kernel, self.subsets.variances, columns, kappa), scores

    def prior_variances(self, query: int) -> Float64:
        """The diagonal of D of one query, [n_train]."""
        return variances_of(self.tau[query])

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


def variances_of(tau: npt.NDArray[Any]) -> Float64:
    """The diagonal of D; scores that say nothing treat all rows alike."""
    magnitudes = np.abs(standard(tau))
    return magnitudes if magnitudes.any() else np.ones(len(magnitudes))
