"""The distinct subsets of a bank, each with its mean outputs and how noisy they are.

Models of one subset share its lack of fit, so only their mean carries information: the fit sees
G subsets instead of M retrainings, and noise var(mean) = sigma^2 v with v = psi + (1 - psi)/R, R
models a subset and psi the share of lack of fit in the noise of one retraining.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from attribution.evaluate import Bank, mask_groups
from attribution.statistics import group_means
from optimize.posterior import Float64, Points
from schemas.errors import ShapeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Subsets:
    """What the surrogates of all queries are fitted to.

    Attributes:
        points: The distinct subsets, less their mean mask.
        outputs: Float64 [G, n_query], means over the models of each subset.
        variances: Float64 [G], v: the noise of each mean, relative to sigma^2.
        size_scale: Spread of the subset sizes; 0 where the bank has one size.
        sizes: Smallest and largest subset.
        seed_variance: Float64 [n_query], between models of one subset; None where no subset was
            trained twice.
        inverse_models: Mean of 1/R over the subsets.
    """

    points: Points
    outputs: Float64
    variances: Float64
    size_scale: float
    sizes: tuple[int, int]
    seed_variance: Float64 | None
    inverse_models: float

    @classmethod
    def of(cls, bank: Bank, weights: Float64, tau: npt.NDArray[np.floating]) -> "Subsets":
        """The subsets of a bank's rows that count.

        Args:
            bank: Masks and outputs.
            weights: Float64 [M], of the rows; those of weight 0 are left out.
            tau: Scores [n_query, n_train], from whose residuals psi is estimated.

        Raises:
            ShapeError: There are too few distinct subsets to fit anything.
        """
        used = weights > 0
        masks, w = np.asarray(bank.masks, dtype=bool)[used], weights[used, None]
        outputs = np.asarray(bank.outputs)[used].astype(np.float64)
        group, first = mask_groups(masks)
        distinct, models = masks[first], np.bincount(group)
        size = distinct.sum(axis=1)
        columns = 3 if np.ptp(size) > 0 else 2
        if len(first) <= columns:
            raise ShapeError(
                f"the bank has {len(first)} distinct subsets; fitting {columns} coefficients and "
                f"their error needs retrainings of at least {columns + 1}, and some 50 to be useful"
            )
        heavy = group_means(w, group)
        means = group_means(w * outputs, group) / heavy
        seed_variance = None
        if len(group) > len(first):
            spread = (w * (outputs - means[group]) ** 2).sum(axis=0)
            seed_variance = spread / (len(group) - len(first))
        found = cls(
            points=Points(distinct, distinct.mean(axis=0)),
            outputs=means,
            variances=1 / heavy[:, 0],
            size_scale=float(size.std()),
            sizes=(int(size.min()), int(size.max())),
            seed_variance=seed_variance,
            inverse_models=float((1 / models).mean()),
        )
        if np.ptp(models) == 0:
            return found  # psi changes the unit of sigma^2 only
        share = found._lack_share(tau)
        return replace(found, variances=found.variances * (share + (1 - share) / models))

    @property
    def mean_size(self) -> float:
        """Mean number of rows over the distinct subsets."""
        centre = self.points.centre
        return 0.0 if centre is None else float(centre.sum())

    def columns(self, size: npt.ArrayLike, constant: float) -> Float64:
        """The columns of F that all queries share, for sizes [N] above the mean: [N, 1 or 2]."""
        above = np.asarray(size, dtype=np.float64)
        ones = np.full(len(above), constant)
        if self.size_scale:
            return np.stack([ones, above / self.size_scale], axis=1)
        return ones[:, None]

    def shared(self) -> Float64:
        """Those columns at the bank's own subsets."""
        return self.columns(self.points.rows.sum(axis=1) - self.mean_size, 1.0)

    def _lack_share(self, tau: npt.NDArray[np.floating]) -> float:
        """psi: lack of fit over the variance of one retraining about the scaled scores.

        One number for all queries, by the moments of a one-way layout. The surrogate will fit
        better than the scaled scores, so it is on the large side: models of one subset count less.
        """
        shared = self.shared()
        lack = seed = 0.0
        for query, row in enumerate(tau):
            columns = np.column_stack([shared, self.points.dot(standard(row)[:, None])])
            outputs = self.outputs[:, query]
            residual = outputs - columns @ np.linalg.lstsq(columns, outputs)[0]
            between = residual @ residual / (len(outputs) - columns.shape[1])
            within = 0.0 if self.seed_variance is None else float(self.seed_variance[query])
            lack += between - within * self.inverse_models
            seed += within
        return lack / (lack + seed) if lack > 0 else 0.0

    def spreads(self, noise: Float64) -> tuple[Float64, Float64]:
        """Variance of one retraining and its lack-of-fit part, from sigma^2; each [n_query].

        Lack of fit is what the spread of subsets about the surrogate exceeds seed noise by; where
        no subset was trained twice all of the noise counts as lack of fit.
        """
        of_mean = noise * self.variances.mean()
        if self.seed_variance is None:
            return of_mean, of_mean
        total = of_mean + (1 - self.inverse_models) * self.seed_variance
        lack = of_mean - self.inverse_models * self.seed_variance
        return total, np.clip(lack, 0.0, total)


def standard(tau: npt.NDArray[Any]) -> Float64:
    """One query's scores, of mean magnitude 1, so that their unit cannot matter."""
    row = tau.astype(np.float64)
    magnitude = np.abs(row).mean()
    return row / magnitude if magnitude > 0 else row


def checked_rho(rho: float) -> float:
    """A ratio of noise to prior: positive, infinity included."""
    if not rho > 0:
        raise ShapeError(f"rho is {rho}; give a positive number, or infinity for the prior alone")
    return float(rho)


def checked_weights(weights: npt.ArrayLike | None, n_rows: int) -> Float64:
    """Row weights, of mean 1 over the rows that count."""
    if weights is None:
        return np.ones(n_rows)
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (n_rows,) or not (given >= 0).all() or not 0 < given.sum() < np.inf:
        raise ShapeError(
            f"weights have shape {given.shape}; give a non-negative number for each of the bank's "
            f"{n_rows} rows"
        )
    return given * (np.count_nonzero(given) / given.sum())


def query_weights(queries: npt.ArrayLike | None, n_query: int) -> Float64:
    """Weights of sum 1 over the queries, [n_query]."""
    if queries is None:
        return np.full(n_query, 1 / n_query)
    given: npt.NDArray[Any] = np.asarray(queries)
    if given.dtype.kind in "iu" and given.ndim == 1 and len(given):
        if given.min() < 0 or given.max() >= n_query:
            raise ShapeError(f"query rows must lie in 0..{n_query - 1}; got {given.max()}")
        weights = np.bincount(given, minlength=n_query).astype(np.float64)
    else:
        weights = given.astype(np.float64)
    if weights.shape != (n_query,) or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise ShapeError(
            f"queries have shape {given.shape}; give row numbers, a mask or non-negative weights "
            f"of the {n_query} queries, at least one of them counting"
        )
    return weights / weights.sum()
