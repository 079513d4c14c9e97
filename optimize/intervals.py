"""From standard deviations to intervals: the noise of retrainings, quantiles of Student's t."""

import numpy as np
import numpy.typing as npt
from scipy import stats

from optimize.posterior import Float64
from schemas.errors import ShapeError

MeanSd = tuple[Float64, Float64]


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
