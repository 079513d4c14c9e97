"""How large predicted removals really are: the scale of scores, from retrained models.

Scores are right in order and wrong in size (a slope of 3 to 4 on small networks), so absolute
predictions take their scale from a bank. Effects shrink as the subset grows: removals from all rows
are to be calibrated on subsets near all rows, of several sizes, so that what any row does whatever
its score is told from what the scores say.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.subsets import subset_sums
from optimize.datamodel import LinearDatamodel
from optimize.unlearning.request import forget_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalScale:
    """What calibration says of one removal.

    Attributes:
        slope: a, pooled over queries: what sums of scores are multiplied with.
        per_query: Float64 [n_query], a of each query.
        size_effect: Mean over queries of what one row less does whatever its score.
        change: Float64 [n_query], predicted change of each query's output.
        sd: Float64 [n_query], of that change, many models a side.
    """

    slope: float
    per_query: npt.NDArray[np.float64]
    size_effect: float
    change: npt.NDArray[np.float64]
    sd: npt.NDArray[np.float64]


def removal_scale(
    surrogate: LinearDatamodel, forget: npt.ArrayLike, *, seeds: int | None = None
) -> RemovalScale:
    """The scale a of scores, and the change that removing rows makes, with its error.

    A query's own slope is noisy where its scores' sums hardly vary over the bank, so the pooled
    one weighs each by their variance: least squares with one slope for all queries.

    Args:
        surrogate: `optimize.surrogate.calibrate` of the scores, best on a bank near all rows.
        forget: Row numbers, or bool [n_train].
        seeds: Models on each side of the change; None: one, as `predict_change`.

    Raises:
        ShapeError: The forget set is empty, everything, or not among the rows.
    """
    rows = forget_rows(forget, surrogate.tau.shape[1])
    whole = np.ones(surrogate.tau.shape[1], dtype=bool)
    left = whole.copy()
    left[rows] = False
    change, sd = surrogate.predict_change(whole, left, seeds=seeds)
    sums = subset_sums(surrogate.bank.masks, surrogate.tau)
    power = sums.var(axis=0)
    return RemovalScale(
        slope=float(surrogate.scale @ power / power.sum()) if power.any() else 0.0,
        per_query=surrogate.scale,
        size_effect=-float(surrogate.size_effect.mean()),
        change=change[0],
        sd=sd[0],
    )
