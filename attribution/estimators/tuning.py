"""Choosing a damping rho on retrained models, for any estimator that can try a grid of them.

For every rho the linear datamodel's predictions on the bank's masks, sums of scores [M, q], are
ranked against the outputs that retraining gave (damping decides accuracy more than anything).
Estimators never need [q, n] scores for it: they fold the masks in first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from attribution.statistics import group_means
from attribution.subsets import mask_groups
from schemas.errors import ShapeError

GRID: tuple[float, ...] = (0.03, 0.065, 0.14, 0.3, 0.65, 1.4, 3.0, 6.5, 14.0, 30.0)
DEFAULT_RHO = 1.0

# Different masks [M, n] -> sums of scores over each mask for each rho, [grid, M, q]; NaN where
# the estimator has no scores at that rho.
Predict = Callable[[NDArray[np.bool_]], NDArray[np.float64]]


class BankRows(Protocol):
    """What is needed of a retrain bank: masks bool [M, n], outputs [M, q]."""

    @property
    def masks(self) -> NDArray[np.bool_]: ...  # noqa: D102

    @property
    def outputs(self) -> NDArray[Any]: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Damping:
    """The damping that was chosen, and from what.

    Attributes:
        rho: In mean non-zero eigenvalues of the curvature.
        table: (rho, rank correlation) for every value tried; empty without a bank.
        chosen_from: One sentence for the record.
    """

    rho: float
    table: tuple[tuple[float, float], ...]
    chosen_from: str


def tune_on_bank(
    predict: Predict,
    bank: BankRows | None,
    *,
    n_train: int,
    n_query: int,
    grid: Sequence[float] = GRID,
    aggregate: NDArray[Any] | None = None,
    default: float = DEFAULT_RHO,
) -> Damping:
    """Choose rho by LDS (Park et al. 2023) on bank rows that no report uses.

    Seeds of one mask are averaged; masks of different sizes are ranked apart, for scores say
    nothing of the number of rows.

    Args:
        predict: The estimator: masks [M, n_train] to sums of scores [grid, M, n_query].
        bank: Retrained models, or None for the default.
        n_train: Training rows.
        n_query: Queries.
        grid: Values of rho to try, as `predict` does.
        aggregate: Weights [q]: rank the weighted sum over queries instead of each query (a
            problem about a target set wants the damping of that sum).
        default: What is taken without a bank.

    Raises:
        ShapeError: The bank has other rows or queries, or no rho of the grid has scores.
    """
    if bank is None:
        return Damping(rho=default, table=(), chosen_from="default: there is no bank")
    masks, outputs = bank_arrays(bank, n_train, n_query)
    if not grid:
        raise ShapeError("the grid of dampings is empty; give one value or more")
    check_aggregate(aggregate, n_query)
    group, first = mask_groups(masks)
    masks, outputs = masks[first], group_means(outputs, group)
    groups = _by_size(masks)
    totals = predict(masks)
    if aggregate is not None:
        weights = np.asarray(aggregate, dtype=np.float64)
        outputs = outputs @ weights[:, None]
        totals = totals @ weights[:, None]
    table = [
        (float(rho), _rank_correlation(predicted, outputs, groups))
        for rho, predicted in zip(grid, totals, strict=True)
        if np.isfinite(predicted).all()
    ]
    if not table:
        raise ShapeError(
            f"no damping of the grid {list(grid)} gives scores; give a larger damping, or use a "
            "curvature that is never negative"
        )
    best, score = max(table, key=lambda row: row[1])
    kind = "the weighted sum of" if aggregate is not None else "each of"
    return Damping(
        rho=best,
        table=tuple(table),
        chosen_from=(
            f"LDS {score:.3f} over {len(masks)} masks ({len(bank.masks)} models), "
            f"{kind} {n_query} queries"
        ),
    )


def given_damping(damping: float | str) -> Damping | None:
    """The damping that was given, or None for "auto".

    Raises:
        ShapeError: It is neither a number nor "auto".
    """
    if damping == "auto":
        return None
    if isinstance(damping, str):
        raise ShapeError(f"damping is {damping!r}; give a positive number or 'auto'")
    return Damping(rho=float(damping), table=(), chosen_from="given")


def _by_size(masks: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    sizes = masks.sum(axis=1)
    groups = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    large = [group for group in groups if len(group) >= 3]
    if large:
        return large
    if len(masks) < 3:
        raise ShapeError(
            f"the bank has {len(masks)} different masks; tuning needs three or more of one size"
        )
    return [np.arange(len(masks))]  # Bernoulli masks: hardly two of one size


def _rank_correlation(
    predicted: NDArray[np.float64],
    observed: NDArray[np.float64],
    groups: list[NDArray[np.intp]],
) -> float:
    """Spearman over the masks of each group, averaged over queries and groups."""
    values = []
    for rows in groups:
        a, b = rankdata(predicted[rows], axis=0), rankdata(observed[rows], axis=0)
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
        # A constant column ranks nothing.
        ratio = np.divide((a * b).sum(axis=0), norm, out=np.zeros_like(norm), where=norm > 0)
        values.append(float(ratio.mean()))
    return float(np.mean(values))


def bank_arrays(
    bank: BankRows, n_train: int, n_query: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """A bank's masks bool [M, n_train] and outputs float64 [M, n_query].

    Raises:
        ShapeError: The bank has other rows or queries, or outputs that are not finite.
    """
    masks = np.asarray(bank.masks, dtype=bool)
    outputs = np.asarray(bank.outputs, dtype=np.float64)
    if masks.ndim != 2 or masks.shape[1] != n_train:
        raise ShapeError(
            f"the bank's masks have shape {masks.shape} and there are {n_train} training rows; "
            "use the bank of this training set"
        )
    if outputs.shape != (len(masks), n_query):
        raise ShapeError(
            f"the bank's outputs have shape {outputs.shape}, expected {(len(masks), n_query)}: "
            "one column for each query, in the same order"
        )
    if not np.isfinite(outputs).all():
        raise ShapeError("the bank's outputs hold NaN or infinity; drop those models")
    return masks, outputs


def check_aggregate(aggregate: NDArray[Any] | None, n_query: int) -> None:
    """Refuse weights that are not one for each query.

    Raises:
        ShapeError: They are not.
    """
    if aggregate is not None and np.shape(aggregate) != (n_query,):
        raise ShapeError(
            f"aggregate has shape {np.shape(aggregate)}; give one weight for each of the "
            f"{n_query} queries"
        )
