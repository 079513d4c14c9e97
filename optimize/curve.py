"""How much data to train on: the predicted output of the best subset of every size.

The best rows of each size are one family of subsets; along it a surrogate says what is won by rows
that help and lost by rows that hurt, and where the two meet. A curve is honest for queries that
did not rank the rows, so it is crossed: each half of the queries ranks for the other, and the two
curves are averaged. Nothing is retrained here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from optimize.intervals import MeanSd
from optimize.posterior import Float64
from schemas.errors import ShapeError

BoolArray = npt.NDArray[np.bool_]


class Predictor(Protocol):
    """The surrogate of one output: `MeanDatamodel` or `BentDatamodel`."""

    def expect(self, masks: npt.ArrayLike) -> Float64:
        """Outputs [M, 1]."""

    def predict_change(
        self, before: npt.ArrayLike, after: npt.ArrayLike, *, seeds: int | None = None
    ) -> MeanSd:
        """Change of the output from subsets to subsets, mean and sd [M, 1]."""

    def interval(
        self, mean: npt.ArrayLike, sd: npt.ArrayLike, *, confidence: float = 0.9
    ) -> tuple[Float64, Float64]:
        """Bounds of a change."""


class Family(NamedTuple):
    """One family of subsets and the surrogate that predicts it.

    Attributes:
        surrogate: Of the mean output over queries that did not rank the rows.
        choose: The subset of each size, bool [n_train].
    """

    surrogate: Predictor
    choose: Callable[[int], BoolArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeCurve:
    """What the best subset of each size is predicted to do; K sizes, ascending.

    Attributes:
        sizes: Int [K].
        output: Float64 [K], the predicted output.
        change: Float64 [K, 3], of the output against training on all rows, and its interval.
        lost: Float64 [K, 3], by how much a size is worse than the best one, and its interval;
            0 at the best.
        best: Place of the best size.
        rising: Whether the output should rise; False for a loss.
    """

    sizes: npt.NDArray[np.int64]
    output: Float64
    change: Float64
    lost: Float64
    best: int
    rising: bool = True

    @property
    def beats_all(self) -> bool:
        """Whether some size is better than all rows, by its interval."""
        _, low, high = self.change.T
        return bool((low > 0).any() if self.rising else (high < 0).any())

    @property
    def best_size(self) -> int:
        """The size at which the predicted output is best."""
        return int(self.sizes[self.best])

    @property
    def enough(self) -> int:
        """The smallest size whose loss against the best may be nothing, by its interval."""
        return int(self.sizes[int(np.flatnonzero(self.lost[:, 1] <= 0).min())])


def size_curve(
    families: Sequence[Family],
    sizes: Sequence[int],
    *,
    rising: bool = True,
    seeds: int | None = None,
    confidence: float = 0.9,
) -> SizeCurve:
    """Predict the best subset of each size.

    Several families are averaged; their errors are taken to be the same error, since they rest on
    the same retrainings, so that an interval is never narrower than theirs are on average.

    Args:
        families: One, or one for each half of the queries.
        sizes: Sizes in ascending order.
        rising: Whether the output should rise; False for a loss.
        seeds: Models that a size will be judged by, as `predict_change`.
        confidence: Of the intervals.

    Raises:
        ShapeError: There is no size or no family, or the sizes do not ascend.
    """
    wanted = np.asarray(sizes, dtype=np.int64)
    if wanted.ndim != 1 or not len(wanted) or (np.diff(wanted) <= 0).any():
        raise ShapeError(f"sizes are {list(sizes)}; give one or more, in ascending order")
    if not families:
        raise ShapeError("there is no family of subsets; give one or more")
    chosen = [
        np.stack([np.asarray(family.choose(size), dtype=bool) for size in wanted.tolist()])
        for family in families
    ]
    pairs = list(zip(families, chosen, strict=True))
    output = np.mean([family.surrogate.expect(masks)[:, 0] for family, masks in pairs], axis=0)
    best = int((output if rising else -output).argmax())

    def against(befores: Sequence[BoolArray]) -> Float64:
        found = []
        for (family, masks), before in zip(pairs, befores, strict=True):
            start = np.broadcast_to(before, masks.shape)
            mean, sd = family.surrogate.predict_change(start, masks, seeds=seeds)
            low, high = family.surrogate.interval(mean, sd, confidence=confidence)
            found.append(np.concatenate([mean, low, high], axis=1))
        return np.asarray(np.mean(found, axis=0))

    gained = against([masks[best] for masks in chosen])
    lost = -gained[:, [0, 2, 1]] if rising else gained
    lost[best] = 0.0
    return SizeCurve(
        sizes=wanted,
        output=output,
        change=against([np.ones(masks.shape[1], dtype=bool) for masks in chosen]),
        lost=lost,
        best=best,
        rising=rising,
    )


def best_rows(utility: npt.ArrayLike) -> Callable[[int], BoolArray]:
    """The rows of largest utility, float [n_train], for any size; ties go to the lower index."""
    values = np.asarray(utility, dtype=np.float64)
    rank = np.empty(len(values), dtype=np.intp)
    rank[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return lambda size: rank < size


def size_grid(least: int, most: int, steps: int = 20) -> list[int]:
    """Sizes from the least to the most, evenly spaced and distinct.

    Raises:
        ShapeError: They are not 1 <= least <= most.
    """
    if not 1 <= least <= most:
        raise ShapeError(f"there are no sizes from {least} to {most}; give 1 <= least <= most")
    return [int(size) for size in np.unique(np.linspace(least, most, steps + 1).round())]
