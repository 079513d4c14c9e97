"""Linear datamodels: attribution scores calibrated on retrained models, with error bars.

For a query q and a training subset S the output of a model trained on S is predicted as
b + a * sum_{i in S} tau[q, i] + c * |S|. Per query: tau [n_query, n_train] is given, a (scale), b
(intercept), c (size effect) and the residual spread are fitted to a bank of M retrained models.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from attribution.evaluate import Bank, checked_scores, mask_groups, subset_sums
from attribution.statistics import group_means
from schemas.errors import ShapeError

Float64 = npt.NDArray[np.float64]
MeanSd = tuple[Float64, Float64]

# Sums of scores that vary less than this, relative to the scores, say nothing about the scale.
_FLAT = 1e-10


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearDatamodel:
    """Calibrated linear surrogates of n_query outputs.

    Attributes:
        tau: Float [n_query, n_train], the scores as they were given.
        scale: Float64 [n_query], a; 0 where `dropped`.
        intercept: Float64 [n_query], b: the output of an empty training set, far outside the bank.
        size_effect: Float64 [n_query], c: what one more row does whatever its score; 0 where the
            bank has one subset size.
        residual_sd: Float64 [n_query], the spread of one retraining about the surrogate: seed
            noise and lack of fit.
        lack_of_fit_sd: Float64 [n_query], the part of `residual_sd` that more seeds of one subset
            do not average away; all of it where no subset was trained twice.
        dof: Int [n_query], degrees of freedom: distinct subsets minus fitted columns.
        dropped: Bool [n_query], the scores were left out, since their slope was negative or their
            sums do not vary.
        sizes: Smallest and largest subset of the bank. Predictions outside are extrapolations:
            effects shrink as subsets grow.
        coefficient_sd: Float64 [n_query], the spread with which the coefficients were fitted.
        design: What the leverage of a new subset is computed from.
        bank: The bank that was fitted.
        row_weights: Float64 [M], the weight of each row in the fit.
    """

    tau: npt.NDArray[np.floating]
    scale: Float64
    intercept: Float64
    size_effect: Float64
    residual_sd: Float64
    lack_of_fit_sd: Float64
    dof: npt.NDArray[np.intp]
    dropped: npt.NDArray[np.bool_]
    sizes: tuple[int, int]
    coefficient_sd: Float64
    design: "Design"
    bank: Bank
    row_weights: Float64

    @property
    def weights(self) -> Float64:
        """What each row adds to each output, a * tau + c, float64 [n_query, n_train]."""
        return self.scale[:, None] * self.tau + self.size_effect[:, None]

    @property
    def identifies_size(self) -> bool:
        """Whether sets of different sizes can be compared: the bank has more than one size."""
        return self.sizes[0] < self.sizes[1]

    def predict(self, masks: npt.ArrayLike) -> MeanSd:
        """Outputs after training on each subset: mean and sd, float64 [M, n_query].

        The sd is that of one new retraining. It is infinite for a subset of another size than the
        bank's where the bank has one size only, since the effect of size is then unknown.

        Args:
            masks: Bool [M, n_train], or one mask [n_train].
        """
        chosen = self._checked(masks)
        sums, size = subset_sums(chosen, self.tau), chosen.sum(axis=1).astype(np.float64)
        mean = self.intercept + self.scale * sums + self.size_effect * size[:, None]
        leverage = self.design.leverage(sums, self.design.basis(size), ~self.dropped)
        return mean, self._spread(leverage, self.residual_sd**2)

    def predict_change(
        self, before: npt.ArrayLike, after: npt.ArrayLike, *, seeds: int | None = None
    ) -> MeanSd:
        """Output after training on `after` minus that on `before`: mean and sd, [M, n_query].

        The sd covers the coefficients and the noise of both sides, 2 sigma^2. With R models a side
        it does not become 2 sigma^2 / R, since sigma also holds lack of fit, which a new seed
        repeats. It is infinite for two sizes where the bank has one (see `predict`).

        Args:
            before: Bool [M, n_train] or [n_train].
            after: The same.
            seeds: Models averaged on each side. Their seed noise is divided by it, lack of fit is
                not; without effect where the bank trained no subset twice. None: one model a side.
        """
        if seeds is not None and seeds < 1:
            raise ShapeError(f"seeds is {seeds}; give the number of models on each side")
        first, second = self._checked(before), self._checked(after)
        sums = subset_sums(second, self.tau) - subset_sums(first, self.tau)
        grown = second.sum(axis=1).astype(np.float64) - first.sum(axis=1)
        mean = self.scale * sums + self.size_effect * grown[:, None]
        leverage = self.design.leverage(sums, self.design.basis_change(grown), ~self.dropped)
        lack = self.lack_of_fit_sd**2
        return mean, self._spread(
            leverage, 2 * (lack + (self.residual_sd**2 - lack) / (seeds or 1))
        )

    def interval(
        self, mean: npt.ArrayLike, sd: npt.ArrayLike, *, confidence: float = 0.9
    ) -> tuple[Float64, Float64]:
        """Bounds of what `predict` or `predict_change` returned, by quantiles of t."""
        reach = stats.t.ppf((1 + confidence) / 2, self.dof) * np.asarray(sd)
        return np.asarray(mean) - reach, np.asarray(mean) + reach

    def averaged(self, queries: npt.ArrayLike | None = None) -> "LinearDatamodel":
        """The surrogate of a mean over queries, fitted anew to the averaged rows of the bank.

        The errors of different queries correlate, since one model makes them all, so the spread
        of a mean cannot be had from the spreads of its parts.

        Args:
            queries: Integer rows of the scores, a bool mask [n_query], or non-negative float
                weights [n_query], which are brought to sum 1. None: all queries alike.
        """
        weights = _query_weights(queries, len(self.tau))
        used = np.flatnonzero(weights)
        outputs = np.asarray(self.bank.outputs)[:, used].astype(np.float64) @ weights[used]
        tau = weights[used] @ self.tau[used].astype(np.float64)
        averaged = _Rows(
            masks=np.asarray(self.bank.masks), outputs=outputs[:, None], alpha=self.bank.alpha
        )
        return calibrate(tau[None], averaged, weights=self.row_weights)

    def _spread(self, leverage: Float64, noise: Float64) -> Float64:
        fitted = np.zeros_like(leverage)
        # A perfect fit (spread 0) of a size never seen would otherwise be 0 * infinity.
        np.multiply(self.coefficient_sd**2, leverage, out=fitted, where=np.isfinite(leverage))
        fitted[np.isinf(leverage)] = np.inf
        return np.sqrt(fitted + noise)

    def _checked(self, masks: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        chosen = np.atleast_2d(np.asarray(masks))
        n_train = self.tau.shape[1]
        if chosen.ndim != 2 or chosen.shape[1] != n_train or chosen.dtype != np.bool_:
            raise ShapeError(
                f"masks are {chosen.dtype} of shape {chosen.shape}; give bool [M, {n_train}]"
            )
        return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """The fitted columns 1, |S| (shared by all queries) and sum of scores (one per query).

    The sum of scores enters as its residual on the shared columns, which is uncorrelated with
    them, so the leverage of a new point is a sum of two parts.
    """

    mean_size: float
    size_scale: float  # 0 where the bank has one size
    shared: Float64  # inverse Gram matrix of the shared columns [r, r]
    gamma: Float64  # the sums of scores regressed on the shared columns [r, n_query]
    spread: Float64  # weighted squares of the residual sums of scores [n_query]

    @classmethod
    def of(cls, size: Float64, sums: Float64, weights: Float64) -> "Design":
        """From subset sizes [M], sums of scores [M, n_query] and row weights [M, 1]."""
        mean_size = float(np.average(size, weights=weights[:, 0]))
        empty = np.empty(0)
        bare = cls(
            mean_size=mean_size,
            size_scale=float(size.std()) if np.ptp(size) > 0 else 0.0,
            shared=empty,
            gamma=empty,
            spread=empty,
        )
        basis = bare.basis(size)
        shared = np.linalg.inv(basis.T @ (weights * basis)).astype(np.float64)
        gamma = shared @ (basis.T @ (weights * sums))
        spread = (weights * (sums - basis @ gamma) ** 2).sum(axis=0)
        return replace(bare, shared=shared, gamma=gamma, spread=spread)

    def basis(self, size: Float64) -> Float64:
        """Shared columns of subsets of these sizes, [M, r]; NaN rows where size is unknown."""
        return self._columns(np.ones(len(size)), size - self.mean_size)

    def basis_change(self, grown: Float64) -> Float64:
        """Shared columns of the change between two subsets, [M, r]."""
        return self._columns(np.zeros(len(grown)), grown)

    def _columns(self, ones: Float64, size: Float64) -> Float64:
        if self.size_scale:
            return np.stack([ones, size / self.size_scale], axis=1)
        return np.where(size == 0, ones, np.nan)[:, None]

    def leverage(
        self, sums: Float64, basis: Float64, uses_scores: npt.NDArray[np.bool_]
    ) -> Float64:
        """Leverage v' (X'X)^-1 v of new points, [M, n_query]; infinite for unknown sizes."""
        shared = np.einsum("mr,rs,ms->m", basis, self.shared, basis)
        residual = sums - basis @ self.gamma
        own = np.divide(residual**2, self.spread, out=np.zeros_like(sums), where=self.spread > 0)
        total = shared[:, None] + np.where(uses_scores, own, 0.0)
        total[np.isnan(basis).any(axis=1)] = np.inf
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The averaged rows of a bank, themselves a bank of one query."""

    masks: npt.NDArray[np.bool_]
    outputs: Float64
    alpha: npt.NDArray[np.floating] | None


def calibrate(
    scores: npt.ArrayLike, bank: Bank, *, weights: npt.ArrayLike | None = None
) -> LinearDatamodel:
    """Fit scale, intercept and, in a bank of several sizes, the size effect, query by query.

    Least squares over the rows of the bank. A negative scale is refused: the column is dropped,
    the rest fitted again, and the query reported in `dropped`. Rows that share a subset share its
    lack of fit, so the coefficients' spread comes from the subsets' mean residuals, on as many
    degrees of freedom as there are distinct subsets less columns, and the spread of one
    retraining is put together from between and within subsets (one-way random effects).

    Args:
        scores: Float [n_query, n_train].
        bank: Rows that did not choose the scores' damping, if the intervals are to be honest.
        weights: Float [M], non-negative weight of each row, to lean on subsets near those that
            will be asked about. `residual_sd` is then that of a row of average weight.

    Raises:
        ShapeError: The arrays do not fit, hold NaN, or there are too few distinct subsets.
    """
    tau = checked_scores(scores, bank)
    row_weights = _checked_weights(weights, len(bank.masks))
    used = row_weights > 0
    masks, w = np.asarray(bank.masks, dtype=bool)[used], row_weights[used, None]
    y = np.asarray(bank.outputs)[used].astype(np.float64)
    size = masks.sum(axis=1).astype(np.float64)
    group, first = mask_groups(masks)
    columns = 3 if np.ptp(size) > 0 else 2
    if len(first) <= columns:
        raise ShapeError(
            f"the bank has {len(first)} distinct subsets; fitting {columns} coefficients and their "
            f"error needs retrainings of at least {columns + 1}, and some 50 to be useful"
        )
    sums = subset_sums(masks, tau)
    design = Design.of(size, sums, w)
    basis = design.basis(size)
    plain = design.shared @ (basis.T @ (w * y))  # the fit without the scores
    magnitude = np.abs(tau).sum(axis=1, dtype=np.float64)
    varies = np.sqrt(design.spread) > _FLAT * magnitude * np.sqrt(w.sum())
    agreement = (w * (sums - basis @ design.gamma) * (y - basis @ plain)).sum(axis=0)
    scale = np.divide(agreement, design.spread, out=np.zeros(len(tau)), where=varies)
    dropped = ~varies | (scale < 0)
    scale[dropped] = 0.0
    coefficients = plain - design.gamma * scale
    residual = y - basis @ coefficients - scale * sums
    size_effect = coefficients[1] / design.size_scale if columns == 3 else np.zeros(len(tau))
    dof = len(first) - columns + dropped
    between, total, lack = _variances(residual, w[:, 0], group, dof)
    return LinearDatamodel(
        tau=tau,
        scale=scale,
        intercept=coefficients[0] - size_effect * design.mean_size,
        size_effect=size_effect,
        residual_sd=np.sqrt(total),
        lack_of_fit_sd=np.sqrt(lack),
        dof=dof,
        dropped=dropped,
        sizes=(int(size.min()), int(size.max())),
        coefficient_sd=np.sqrt(between),
        design=design,
        bank=bank,
        row_weights=row_weights,
    )


def _variances(
    residual: Float64, weights: Float64, group: npt.NDArray[np.intp], dof: npt.NDArray[np.intp]
) -> tuple[Float64, Float64, Float64]:
    """Mean square between subsets, variance of one retraining, its lack-of-fit part; [n_query].

    With R rows a subset the mean square between subsets is R lack^2 + seed^2 and that within is
    seed^2; R is the usual mean for unequal numbers.
    """
    heavy = np.bincount(group, weights=weights)
    sums = group_means(weights[:, None] * residual, group) * np.bincount(group)[:, None]
    means = sums / heavy[:, None]
    between = (heavy[:, None] * means**2).sum(axis=0) / dof
    count = np.bincount(group).astype(np.float64)
    within_dof = len(group) - len(count)
    if within_dof == 0:
        return between, between, between
    within = (weights[:, None] * (residual - means[group]) ** 2).sum(axis=0) / within_dof
    rows = (len(group) - (count**2).sum() / len(group)) / (len(count) - 1)
    total = (between + (rows - 1) * within) / rows
    return between, total, np.clip((between - within) / rows, 0.0, total)


def _query_weights(queries: npt.ArrayLike | None, n_query: int) -> Float64:
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


def _checked_weights(weights: npt.ArrayLike | None, n_rows: int) -> Float64:
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
