"""A measured number as reports carry it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with its 95 % interval; NaN bounds where none is known."""

    mean: float
    low: float
    high: float

    @property
    def is_known(self) -> bool:
        """Whether both bounds are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)
