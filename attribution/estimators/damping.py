"""Choosing the damping of TRAK on retrained models.

Only [M, q] predictions are ever formed: the masks are folded into the features first, so a rho
costs one factorisation and a few thin products.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.features import Features, check_features
from attribution.estimators.kernel import Gram, leverage_factor
from attribution.estimators.tuning import (
    DEFAULT_RHO,
    GRID,
    BankRows,
    Damping,
    given_damping,
    tune_on_bank,
)
from schemas.errors import ShapeError

__all__ = ["DEFAULT_RHO", "GRID", "BankRows", "Damping", "choose_damping", "tune_damping"]


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
    """Choose rho by the LDS of TRAK's scores on bank rows that no report uses.

    Args:
        train: Training features, one item a checkpoint.
        queries: Query features, whose output is the bank's.
        bank: Retrained models, or None for the default rho = 1.
        curvature: "after-kernel", "logistic" or "ggn".
        leverage: As in `trak_scores`.
        average: As in `trak_scores`.
        grid: Values of rho to try.
        aggregate: Weights [q], see `tune_on_bank`.

    Raises:
        ShapeError: The bank has other rows or queries than the features.
    """
    if not train or len(train) != len(queries):
        raise ShapeError(
            f"there are train features of {len(train)} checkpoints and query features of "
            f"{len(queries)}; give both for each checkpoint"
        )
    return tune_on_bank(
        lambda masks: _predictions(train, queries, masks, grid, curvature, leverage, average),
        bank,
        n_train=len(train[0]),
        n_query=len(queries[0]),
        grid=grid,
        aggregate=aggregate,
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
    return given_damping(damping) or tune_damping(train, queries, bank, **options)


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


def _host(values: Tensor) -> NDArray[np.float64]:
    return values.to("cpu", torch.float64).numpy()
