"""Whether the predicted change of each query is the one that retraining makes.

Two groups of models stand on either side of one change of the training rows, several seeds each;
a query's observed change is the difference of its means. Queries share the models, so the numbers
describe these queries and say nothing of others.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.statistics import calibration_line
from schemas.errors import ShapeError

FEWEST_QUERIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Predicted against observed changes over queries.

    Attributes:
        observed: Float64 [q], mean output after minus mean output before.
        correlation: Pearson's over queries; NaN where one of the two does not vary.
        ceiling: What a prediction of the expected change would correlate at most, for observed
            changes carry the noise of training; NaN where that noise explains all their variance.
        slope: Of observed on predicted changes, 1 is ideal; NaN where predictions do not vary.
        slope_interval: Its 95 % interval, over queries.
        error: Root mean square of observed minus predicted.
        error_unchanged: The same of predicting that nothing changes.
    """

    observed: npt.NDArray[np.float64]
    correlation: float
    ceiling: float
    slope: float
    slope_interval: tuple[float, float]
    error: float
    error_unchanged: float


def agreement(predicted: npt.ArrayLike, before: npt.ArrayLike, after: npt.ArrayLike) -> Agreement:
    """Compare predicted changes with those between two groups of models.

    The variance over queries of observed changes is that of expected ones plus the variance of the
    means, estimated within each group; its share without the noise is the reliability, whose root
    bounds a correlation with anything that knows nothing of the seeds.

    Args:
        predicted: [q].
        before: Outputs [M, q] of models before the change, M >= 2.
        after: Outputs [M', q] of models after it.

    Raises:
        ShapeError: The shapes do not fit, or a side has fewer than two models.
    """
    asked = np.asarray(predicted, dtype=np.float64)
    first, second = (np.asarray(side, dtype=np.float64) for side in (before, after))
    if asked.ndim != 1 or {first.shape[1:], second.shape[1:]} != {asked.shape}:
        raise ShapeError(
            f"changes of shape {asked.shape} are predicted and outputs are {first.shape} and "
            f"{second.shape}; give [q], [M, q] and [M', q]"
        )
    if min(len(first), len(second)) < 2:
        raise ShapeError(
            f"{len(first)} and {len(second)} models; noise takes two at least on each side"
        )
    observed = second.mean(axis=0) - first.mean(axis=0)
    noise = float(sum((side.var(axis=0, ddof=1) / len(side)).mean() for side in (first, second)))
    spread = float(observed.var(ddof=1)) if len(observed) > 1 else 0.0
    reliability = 1 - noise / spread if spread > 0 else 0.0
    line = None
    if len(asked) >= FEWEST_QUERIES and np.ptp(asked) > 0:
        line = calibration_line(asked, observed)
    return Agreement(
        observed=observed,
        correlation=line.correlation if line and spread > 0 else math.nan,
        ceiling=math.sqrt(reliability) if reliability > 0 else math.nan,
        slope=line.slope if line else math.nan,
        slope_interval=line.slope_interval if line else (math.nan, math.nan),
        error=float(np.sqrt(((observed - asked) ** 2).mean())),
        error_unchanged=float(np.sqrt((observed**2).mean())),
    )
