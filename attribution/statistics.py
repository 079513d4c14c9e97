"""Statistics of measured values: rank correlation, ranking quality, intervals, reliability.

Vectors and [n_rows, n_columns] arrays of float64 in, plain numbers out. Nothing here knows of
scores or models.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from schemas.errors import ShapeError

BoolArray = npt.NDArray[np.bool_]
Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationLine:
    """Observed changes regressed on predicted ones; slope 1 and intercept 0 are ideal."""

    slope: float
    slope_interval: tuple[float, float]
    intercept: float
    correlation: float
    n: int


def spearman_columns(a: npt.ArrayLike, b: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Spearman's correlation of each column of a with the same column of b, [n_columns].

    Tied values get their average rank; a column that does not vary correlates 0 with anything.
    """
    x = stats.rankdata(np.asarray(a), axis=0)
    y = stats.rankdata(np.asarray(b), axis=0)
    x -= x.mean(axis=0)
    y -= y.mean(axis=0)
    return ratio((x * y).sum(axis=0), np.sqrt((x * x).sum(axis=0) * (y * y).sum(axis=0)))


def anova_reliability(
    outputs: npt.ArrayLike, group: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64] | None:
    """Reliability of a subset's mean output, by one-way ANOVA over its seeds, in [0, 1].

    With R models a subset, rho = (MSB - MSW)/(MSB + (R-1) MSW) is the reliability of one model and
    R rho/(1 + (R-1) rho) = 1 - MSW/MSB that of their mean, which is returned, clipped at 0. With
    unequal numbers of models the mean squares take their usual weights.

    Args:
        outputs: Float [M, n_query].
        group: Int [M], 0..G-1: the subset of each row.

    Returns:
        Float64 [n_query], or None where no subset was trained twice.
    """
    values = np.asarray(outputs, dtype=np.float64)
    count = np.bincount(group).astype(np.float64)
    within_dof, between_dof = len(values) - len(count), len(count) - 1
    if within_dof < 1 or between_dof < 1:
        return None
    means = group_means(values, group)
    within = ((values - means[group]) ** 2).sum(axis=0) / within_dof
    between = (count[:, None] * (means - values.mean(axis=0)) ** 2).sum(axis=0) / between_dof
    return np.clip(ratio(between - within, between), 0.0, 1.0)


def auroc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Chance that a positive row scores above a negative one, a tie counting one half.

    Raises:
        ShapeError: The arrays do not fit, or all labels are alike.
    """
    values, positive = _checked_labels(scores, labels)
    n_positive = int(positive.sum())
    rank_sum = stats.rankdata(values)[positive].sum()
    pairs = n_positive * (len(values) - n_positive)
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / pairs)


def average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Precision averaged over the recall gained at each distinct score, highest score first.

    Rows with one score enter together, so the order of ties cannot matter.

    Raises:
        ShapeError: The arrays do not fit, or all labels are alike.
    """
    values, positive = _checked_labels(scores, labels)
    order = np.argsort(-values, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    found = np.cumsum(positive[order])[last_of_tie]
    gained = np.diff(found, prepend=0) / found[-1]
    return float((gained * found / (last_of_tie + 1)).sum())


def mean_interval(values: npt.ArrayLike, *, confidence: float = 0.95) -> Triple:
    """Mean and Student's t-interval: (mean, low, high); NaN bounds for a single value."""
    sample = _checked_sample(values)
    mean = float(sample.mean())
    if len(sample) < 2:
        return mean, math.nan, math.nan
    reach = stats.t.ppf((1 + confidence) / 2, len(sample) - 1)
    half = float(reach * sample.std(ddof=1) / math.sqrt(len(sample)))
    return mean, mean - half, mean + half


def welch_interval(a: npt.ArrayLike, b: npt.ArrayLike, *, confidence: float = 0.95) -> Triple:
    """mean(a) - mean(b) with the t-interval of Welch (1947): (difference, low, high).

    NaN bounds where a side has a single value.
    """
    left, right = _checked_sample(a), _checked_sample(b)
    difference = float(left.mean() - right.mean())
    if min(len(left), len(right)) < 2:
        return difference, math.nan, math.nan
    parts = np.array([left.var(ddof=1) / len(left), right.var(ddof=1) / len(right)])
    variance = parts.sum()
    if variance == 0:
        return difference, difference, difference
    # Shares before squares: the squares of a small variance would underflow.
    share = parts / variance
    dof = 1 / (share**2 / np.array([len(left) - 1, len(right) - 1])).sum()
    half = float(stats.t.ppf((1 + confidence) / 2, dof) * math.sqrt(variance))
    return difference, difference - half, difference + half


def calibration_line(
    predicted: npt.ArrayLike, observed: npt.ArrayLike, *, confidence: float = 0.95
) -> CalibrationLine:
    """Least-squares line of observed on predicted changes, with the slope's t-interval.

    Raises:
        ShapeError: Fewer than three pairs, or all predictions alike.
    """
    x, y = _checked_sample(predicted), _checked_sample(observed)
    if len(x) != len(y) or len(x) < 3:
        raise ShapeError(
            f"a calibration line needs at least three pairs; got {len(x)} predicted and "
            f"{len(y)} observed changes"
        )
    if np.ptp(x) == 0:
        raise ShapeError("all predicted changes are alike; a calibration line needs them to vary")
    dx, dy = x - x.mean(), y - y.mean()
    slope = float(dx @ dy / (dx @ dx))
    residual = dy - slope * dx
    error = math.sqrt(residual @ residual / (len(x) - 2) / (dx @ dx))
    reach = float(stats.t.ppf((1 + confidence) / 2, len(x) - 2)) * error
    return CalibrationLine(
        slope=slope,
        slope_interval=(slope - reach, slope + reach),
        intercept=float(y.mean() - slope * x.mean()),
        correlation=float(ratio(dx @ dy, np.sqrt((dx @ dx) * (dy @ dy)))),
        n=len(x),
    )


def coverage(low: npt.ArrayLike, high: npt.ArrayLike, observed: npt.ArrayLike) -> float:
    """Share of the observed values that lie inside their intervals."""
    values = np.asarray(observed)
    return float(np.mean((np.asarray(low) <= values) & (values <= np.asarray(high))))


def group_means(
    values: npt.NDArray[np.float64], group: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64]:
    """Mean of the rows of each group, [n_groups, n_columns]."""
    count = np.bincount(group)
    sums = np.zeros((len(count), values.shape[1]))
    np.add.at(sums, group, values)
    return sums / count[:, None]


def ratio(top: npt.ArrayLike, bottom: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Top / bottom, and 0 where the bottom is 0."""
    below = np.asarray(bottom, dtype=np.float64)
    above = np.asarray(top, dtype=np.float64)
    return np.divide(above, below, out=np.zeros(below.shape), where=below > 0)


def _checked_sample(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64).ravel()
    if len(sample) == 0 or not np.isfinite(sample).all():
        raise ShapeError(f"{len(sample)} values, all finite, are needed; got {_preview(sample)}")
    return sample


def _checked_labels(
    scores: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], BoolArray]:
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    if values.ndim != 1 or values.shape != positive.shape:
        raise ShapeError(
            f"scores have shape {values.shape} and labels {positive.shape}; give two vectors of "
            "one length"
        )
    if not np.isfinite(values).all():
        raise ShapeError("scores hold NaN or infinite values; rank only finite scores")
    if positive.all() or not positive.any():
        raise ShapeError(
            f"all {len(positive)} labels are {bool(positive.any())}; ranking needs both kinds"
        )
    return values, positive


def _preview(values: Sequence[float] | npt.NDArray[np.float64]) -> str:
    return (
        "["
        + ", ".join(f"{value:g}" for value in values[:5])
        + (", ...]" if len(values) > 5 else "]")
    )
