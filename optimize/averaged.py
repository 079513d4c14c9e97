"""The surrogate of a mean over queries, with the error that one model makes on all of them.

Its effects are the mean of the queries' posterior effects: a mean of linear predictions. Its errors
are not those of a sum of independent parts, since one model makes them all; how they correlate is
read off the leave-one-mask-out errors, which every query has for the same masks.

Calibrating the averaged rows as one query, with one slope fitted to few of them, predicts worse.
Relative squared error for the mean margin of 20 to 100 queries after 100 retrainings, this against
that: digits MLP, three splits, 0.52 and 0.56, 0.62 and 0.67, 0.51 and 0.56; Fashion-MNIST 0.62 and
0.70; digits CNN 0.67 and 0.73.
"""

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from optimize.intervals import MeanSd, noise_of_change, t_interval
from optimize.posterior import Float64, Points
from optimize.subsets import Subsets

if TYPE_CHECKING:
    from optimize.datamodel import LinearDatamodel


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanDatamodel:
    """One output, a weighted mean of a surrogate's; the arrays of `LinearDatamodel`, n_query = 1.

    Attributes:
        parent: The surrogate of the queries.
        shares: Float64 [n_query], of sum 1.
        weights: Float64 [1, n_train].
        intercept: Float64 [1].
        residual_sd: Float64 [1], the spread of one retraining.
        lack_of_fit_sd: Float64 [1], the part of it that more seeds do not average away.
        dof: Int [1], the least of the queries'.
        error: Float64 [1], leave-one-mask-out error over the variance of the mean output.
        prior_error: Float64 [1], the same of the prior alone.
    """

    parent: "LinearDatamodel"
    shares: Float64
    weights: Float64
    intercept: Float64
    residual_sd: Float64
    lack_of_fit_sd: Float64
    dof: npt.NDArray[np.intp]
    error: Float64
    prior_error: Float64

    @classmethod
    def of(cls, parent: "LinearDatamodel", shares: Float64) -> "MeanDatamodel":
        """The mean of a surrogate's queries by shares [n_query] of sum 1."""
        own = _averaged(parent, shares)
        noise = _together(np.sqrt(parent.chosen.noise)[None], parent, shares)
        pooled = dataclasses.replace(parent.subsets, seed_variance=own.seed_variance)
        total, lack = pooled.spreads(noise)
        spread = float(own.outputs.var()) or 1.0
        used = shares > 0
        return cls(
            parent=parent,
            shares=shares,
            weights=(shares @ parent.weights)[None],
            intercept=np.array([shares @ parent.intercept]),
            residual_sd=np.sqrt(total),
            lack_of_fit_sd=np.sqrt(lack),
            dof=parent.dof[used].min(keepdims=True),
            error=_mean_square(shares @ parent.chosen.errors) / spread,
            prior_error=_mean_square(shares @ parent.chosen.prior_errors) / spread,
        )

    def expect(self, masks: npt.ArrayLike) -> Float64:
        """The means of `predict`, without the work that its sd takes: [M, 1]."""
        return self.intercept + Points(self.parent.checked(masks), None).dot(self.weights.T)

    def predict(self, masks: npt.ArrayLike) -> MeanSd:
        """The mean output after training on each subset, as `LinearDatamodel.predict`: [M, 1]."""
        chosen = self.parent.checked(masks)
        size = chosen.sum(axis=1) - self.parent.subsets.mean_size
        points = Points(chosen, self.parent.subsets.points.centre)
        return self.expect(chosen), np.sqrt(self._variance(points, size, 1.0) + self.residual_sd**2)

    def predict_change(
        self, before: npt.ArrayLike, after: npt.ArrayLike, *, seeds: int | None = None
    ) -> MeanSd:
        """The change of the mean output, as `LinearDatamodel.predict_change`: [M, 1]."""
        noise = noise_of_change(self.residual_sd, self.lack_of_fit_sd, seeds)
        points, grown = self.parent.moves(before, after)
        variance = self._variance(points, grown, 0.0)
        return points.dot(self.weights.T), np.sqrt(variance + noise)

    def interval(
        self, mean: npt.ArrayLike, sd: npt.ArrayLike, *, confidence: float = 0.9
    ) -> tuple[Float64, Float64]:
        """Bounds of what `predict` or `predict_change` returned, by quantiles of t."""
        return t_interval(mean, sd, self.dof, confidence)

    def diagnostics(self) -> dict[str, float]:
        """As `LinearDatamodel.diagnostics`; errors, spreads and dof are those of the mean."""
        means = {
            name: float(getattr(self, name)[0])
            for name in ("residual_sd", "lack_of_fit_sd", "dof", "error", "prior_error")
        }
        return self.parent.diagnostics() | means | {"explained": 1 - means["error"]}

    def _variance(self, points: Points, above: npt.ArrayLike, constant: float) -> Float64:
        """Posterior variance of the mean effect, [N, 1]."""
        single = self.parent.variance(points, above, constant)
        known = np.isfinite(single).all(axis=1)
        found = np.full((len(single), 1), np.inf)
        found[known, 0] = _together(np.sqrt(single[known]), self.parent, self.shares)
        return found


def _together(sds: Float64, parent: "LinearDatamodel", shares: Float64) -> Float64:
    """Variance of a mean over queries from their standard deviations [N, n_query]: [N].

    The correlations are those of the standardised leave-one-mask-out errors z [n_query, G],
    z z'/G, so that the variance is a mean of squares over masks and no matrix of queries is needed.
    """
    return np.asarray((((sds * shares) @ parent.chosen.standard) ** 2).mean(axis=1))


def _averaged(parent: "LinearDatamodel", shares: Float64) -> Subsets:
    """The bank's subsets with the mean output as their only one."""
    outputs = np.asarray(parent.bank.outputs).astype(np.float64) @ shares
    bank = SimpleNamespace(masks=parent.bank.masks, outputs=outputs[:, None], alpha=None)
    return Subsets.of(bank, parent.row_weights, (shares @ parent.tau)[None])


def _mean_square(errors: Float64) -> Float64:
    return np.array([float((errors**2).mean())])
