"""Whether predicted changes are right in size, on models that were retrained but not fitted.

Two subsets of a bank make one change: what a surrogate predicts for going from one to the other
against what the models trained on them differ by. Slope 1, intercept 0 and a coverage equal to the
intervals' level are ideal.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import stats

from attribution.evaluate import Bank
from attribution.streams import Purpose, stream
from attribution.subsets import alpha_rows, mask_groups
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]
FEWEST_PAIRS = 3


class Predictor(Protocol):
    """What predicts changes, with their spread for one model on each side."""

    def predict_change(
        self, before: npt.ArrayLike, after: npt.ArrayLike
    ) -> tuple[FloatArray, FloatArray]:
        """Mean and sd of f(after) - f(before), float64 [M, n_query], of bool masks [M, n_train]."""

    def interval(
        self, mean: npt.ArrayLike, sd: npt.ArrayLike, *, confidence: float
    ) -> tuple[FloatArray, FloatArray]:
        """Bounds of what `predict_change` returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """Predicted and observed changes of all queries.

    Attributes:
        slope: Of observed on predicted changes, all queries in one line; 1 is ideal, above 1 the
            predictions are too small.
        slope_interval: 95 % interval of the slope, over pairs of subsets.
        intercept: Of the same line, in the output's unit; 0 is ideal.
        coverage: Share of the observed changes inside their predicted intervals.
        coverage_interval: 95 % interval of the coverage, over pairs of subsets.
        confidence: What the coverage should be.
        n_pairs: Pairs of subsets.
    """

    slope: float
    slope_interval: tuple[float, float]
    intercept: float
    coverage: float
    coverage_interval: tuple[float, float]
    confidence: float
    n_pairs: int


def calibration_report(
    predictor: Predictor, bank: Bank, *, confidence: float = 0.9, seed: int = 0
) -> CalibrationReport:
    """Compare predicted changes with those between a bank's subsets.

    Subsets of one share are paired at random, none twice, and one model stands for each, which is
    what the predicted spread is of. Queries share the pairs, so the intervals are over pairs: the
    slope's from the sandwich of the pairs' sums (Liang and Zeger 1986).

    Args:
        predictor: Has `predict_change` and `interval`; fitted to other models than these.
        bank: Retrained models.
        confidence: Level of the predicted intervals.
        seed: Key of the pairing.

    Raises:
        ShapeError: Fewer than three pairs, or no predicted change varies.
    """
    before, after = _pairs(bank, seed)
    masks, outputs = np.asarray(bank.masks), np.asarray(bank.outputs, dtype=np.float64)
    mean, sd = predictor.predict_change(masks[before], masks[after])
    low, high = predictor.interval(mean, sd, confidence=confidence)
    observed = outputs[after] - outputs[before]
    x, y = mean - mean.mean(), observed - observed.mean()
    total = float((x * x).sum())
    if total == 0:
        raise ShapeError("all predicted changes are alike; a slope needs them to vary")
    n_pairs = len(before)
    reach = float(stats.t.ppf(0.975, n_pairs - 1))
    slope = float((x * y).sum()) / total
    of_pairs = (x * (y - slope * x)).sum(axis=1)
    error = np.sqrt(n_pairs / (n_pairs - 1) * (of_pairs**2).sum()) / total
    inside = ((low <= observed) & (observed <= high)).mean(axis=1)
    covered, spread = float(inside.mean()), float(inside.std(ddof=1) / np.sqrt(n_pairs))
    return CalibrationReport(
        slope=slope,
        slope_interval=(slope - reach * float(error), slope + reach * float(error)),
        intercept=float(observed.mean() - slope * mean.mean()),
        coverage=covered,
        coverage_interval=(max(0.0, covered - reach * spread), min(1.0, covered + reach * spread)),
        confidence=confidence,
        n_pairs=n_pairs,
    )


def _pairs(bank: Bank, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of a bank, before and after: subsets of one share, each in one pair only."""
    before, after = [], []
    for number, (_, rows) in enumerate(alpha_rows(bank)):
        first = rows[mask_groups(bank.masks[rows])[1]]
        order = stream(seed, Purpose.CALIBRATION, number).permutation(first)
        half = len(order) // 2
        before.append(order[:half])
        after.append(order[half : 2 * half])
    found = np.concatenate(before), np.concatenate(after)
    if len(found[0]) < FEWEST_PAIRS:
        raise ShapeError(
            f"the bank's subsets make {len(found[0])} pairs of one share; calibration needs at "
            f"least {FEWEST_PAIRS}, and some 20 to say anything"
        )
    return found
