"""Choosing the damping of TRAK on retrained models (damping decides accuracy more than anything).

For every rho of a grid the linear datamodel's predictions on the bank's masks are ranked against
the outputs that retraining gave. Only [M, q] predictions are ever formed: the masks are folded
into the features first, so a rho costs one factorisation and a few thin products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from attribution.estimators.features import Features, check_features
from attribution.estimators.kernel import Gram, leverage_factor
from schemas.errors import ShapeError

GRID: tuple[float, ...] = (0.03, 0.065, 0.14, 0.3, 0.65, 1.4, 3.0, 6.5, 14.0, 30.0)
DEFAULT_RHO = 1.0


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


def tune_damping(
    train: Sequence[Features],
    queries: Sequence[Features],
    bank: BankRows | None,
    *,
    curvature: str = "logistic",
    leverage: bool = False,
    average: str = "scores",
    grid: Sequence[float] = GRID,
    aggregate: NDArray[Any] | None = None,
) -> Damping:
    """Choose rho by LDS (Park et al. 2023) on bank rows that no report uses.

    Seeds of one mask are averaged; masks of different sizes are ranked apart, for scores say
    nothing of the number of rows.

    Args:
        train: Training features, one item a checkpoint.
        queries: Query features, whose output is the bank's.
        bank: Retrained models, or None for the default rho = 1.
        curvature: "after-kernel" or "logistic".
        leverage: As in `trak_scores`.
        average: As in `trak_scores`.
        grid: Values of rho to try.
        aggregate: Weights [q]: rank the weighted sum over queries instead of each query (a
            problem about a target set wants the damping of that sum).

    Raises:
        ShapeError: The bank has other rows or queries than the features.
    """
    if bank is None:
        return Damping(rho=DEFAULT_RHO, table=(), chosen_from="default: there is no bank")
    masks = np.asarray(bank.masks, dtype=bool)
    outputs = np.asarray(bank.outputs, dtype=np.float64)
    _check_bank(masks, outputs, train, queries, grid, aggregate)
    masks, outputs = _one_row_a_mask(masks, outputs)
    groups = _by_size(masks)
    totals = _predictions(train, queries, masks, grid, curvature, leverage, average)
    if aggregate is not None:
        weights = np.asarray(aggregate, dtype=np.float64)
        outputs = outputs @ weights[:, None]
        totals = totals @ weights[:, None]
    scores = [_rank_correlation(predicted, outputs, groups) for predicted in totals]
    best = int(np.argmax(scores))
    kind = "the weighted sum of" if aggregate is not None else "each of"
    return Damping(
        rho=float(grid[best]),
        table=tuple((float(rho), score) for rho, score in zip(grid, scores, strict=True)),
        chosen_from=(
            f"LDS {scores[best]:.3f} over {len(masks)} masks ({len(bank.masks)} models), "
            f"{kind} {len(queries[0])} queries"
        ),
    )


def choose_damping(
    damping: float | str,
    train: Sequence[Features],
    queries: Sequence[Features],
    bank: BankRows | None,
    **options: Any,
) -> Damping:
    """The damping that was given, or `tune_damping`'s choice for "auto".

    Raises:
        ShapeError: It is neither a number nor "auto".
    """
    if damping == "auto":
        return tune_damping(train, queries, bank, **options)
    if isinstance(damping, str):
        raise ShapeError(f"damping is {damping!r}; give a positive number or 'auto'")
    return Damping(rho=float(damping), table=(), chosen_from="given")


def _predictions(
    train: Sequence[Features],
    queries: Sequence[Features],
    masks: NDArray[np.bool_],
    grid: Sequence[float],
    curvature: str,
    leverage: bool,
    average: str,
) -> NDArray[np.float64]:
    """Sums of scores over each mask: [grid, M, q]."""
    totals = np.zeros((len(grid), len(masks), len(queries[0])))
    mean_residual = torch.stack([own.residual.double() for own in train]).mean(0)
    for own, asked in zip(train, queries, strict=True):
        check_features(own, asked)
        wide = own.sketch.dtype == torch.float64
        gram = Gram(own, curvature=curvature, dtype=torch.float64 if wide else torch.float32)
        residual = own.residual if average == "scores" else mean_residual
        chosen = torch.from_numpy(masks).to(gram.phi.device) * residual.to(gram.phi.dtype)
        right = asked.sketch.to(gram.phi.dtype)
        # Ten Cholesky factors cost what one eigendecomposition does (0.30 and 0.36 s for 1400 rows
        # on one core) and share their code with the scores. K is symmetric: the thinner side is
        # solved for.
        for index, rho in enumerate(grid):
            inverse = gram.factor(rho)
            columns = chosen
            if leverage:
                columns = chosen * leverage_factor(gram, inverse)
            folded = columns @ gram.phi
            if len(folded) <= len(right):
                product = inverse.apply(folded) @ right.T
            else:
                product = folded @ inverse.apply(right).T
            totals[index] += _host(product) / len(train)
    return totals


def _one_row_a_mask(
    masks: NDArray[np.bool_], outputs: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    _, first, group = np.unique(
        np.packbits(masks, axis=1), axis=0, return_index=True, return_inverse=True
    )
    group = group.reshape(-1)
    counts = np.bincount(group)
    means = np.zeros((len(first), outputs.shape[1]))
    np.add.at(means, group, outputs)
    return masks[first], means / counts[:, None]


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


def _check_bank(
    masks: NDArray[np.bool_],
    outputs: NDArray[np.float64],
    train: Sequence[Features],
    queries: Sequence[Features],
    grid: Sequence[float],
    aggregate: NDArray[Any] | None,
) -> None:
    if not train or len(train) != len(queries):
        raise ShapeError(
            f"there are train features of {len(train)} checkpoints and query features of "
            f"{len(queries)}; give both for each checkpoint"
        )
    if masks.ndim != 2 or masks.shape[1] != len(train[0]):
        raise ShapeError(
            f"the bank's masks have shape {masks.shape} and there are {len(train[0])} training "
            "rows; use the bank of this training set"
        )
    if outputs.shape != (len(masks), len(queries[0])):
        raise ShapeError(
            f"the bank's outputs have shape {outputs.shape}, expected "
            f"{(len(masks), len(queries[0]))}: one column for each query, in the same order"
        )
    if not np.isfinite(outputs).all():
        raise ShapeError("the bank's outputs hold NaN or infinity; drop those models")
    if not grid:
        raise ShapeError("the grid of dampings is empty; give one value or more")
    if aggregate is not None and np.shape(aggregate) != (len(queries[0]),):
        raise ShapeError(
            f"aggregate has shape {np.shape(aggregate)}; give one weight for each of the "
            f"{len(queries[0])} queries"
        )


def _host(values: Tensor) -> NDArray[np.float64]:
    return values.to("cpu", torch.float64).numpy()
