"""What samplers of values share: running moments, and when to stop.

Draws are independent; the value is their mean, and its standard error is the root of the sample
variance over the number of draws. Sampling stops when, over all players and queries,

    root mean square of the standard errors <= tolerance * root mean square of the values.
"""

import math

import numpy as np

from attribution.valuation.game import FloatArray
from schemas.errors import ShapeError

# Standard errors from fewer draws are too noisy to stop at.
FEWEST_DRAWS = 10


class Moments:
    """Mean and variance of arrays that arrive in batches (Chan, Golub & LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: FloatArray = np.zeros(())
        self._squares: FloatArray = np.zeros(())

    def add(self, draws: FloatArray) -> None:
        """Some more draws, [count, ...]."""
        mean = draws.mean(axis=0)
        total = self.count + len(draws)
        shift = mean - self.mean
        self._squares = (
            self._squares
            + ((draws - mean) ** 2).sum(axis=0)
            + shift**2 * (self.count * len(draws) / total)
        )
        self.mean = self.mean + shift * (len(draws) / total)
        self.count = total

    def standard_error(self) -> FloatArray:
        """Of the mean; infinite for fewer than two draws."""
        if self.count < 2:
            return np.full(self.mean.shape, math.inf)
        return np.sqrt(self._squares / (self.count - 1) / self.count)


def relative_error(values: FloatArray, errors: FloatArray) -> float:
    """Root mean square of the standard errors, as a share of that of the values."""
    noise, size = (float(np.sqrt(np.mean(part**2))) for part in (errors, values))
    if noise == 0:
        return 0.0
    return noise / size if size > 0 else math.inf


def check_sampling(draws: int, at_once: int, tolerance: float, truncation: float) -> None:
    """Refuse a sampling plan that cannot be followed.

    Raises:
        ShapeError: A number is out of range.
    """
    if draws < 2 * FEWEST_DRAWS or at_once < 1:
        raise ShapeError(
            f"draws is {draws} and at_once {at_once}; give at least {2 * FEWEST_DRAWS} draws, and "
            "1 or more at once"
        )
    for name, number in {"tolerance": tolerance, "truncation": truncation}.items():
        if not 0 <= number < 1:
            raise ShapeError(f"{name} is {number}; give a share from 0 to below 1")
