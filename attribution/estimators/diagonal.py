"""Scores -mean_c <grad f_q, (Lambda_c + lambda)^-1 grad l_i> / n in bases where Lambda is diagonal.

A `Side` is one checkpoint: gradients of both sides in its basis, and what the damped Lambda makes
of a query's. A damping costs one division of the queries and one product; tuning folds the bank's
masks into the training gradients first, so no [q, n] scores are needed for it.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.request import Request, damping_of, open_sink
from attribution.estimators.tuning import Damping

# Gradients that are kept for a second use, and that one block may hold (1 GiB of float32).
KEPT_ENTRIES = 2**28
QUERY_BLOCK = 512
GRID = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Side(Protocol):
    """One checkpoint.

    Attributes:
        n_parameters: Length p of a gradient in the basis.
    """

    n_parameters: int

    def train(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, gradients of the loss [B, p])."""
        ...

    def queries(self, start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
        """(queries, gradients of the output [B, p]) from start to stop."""
        ...

    def solved(self, gradients: Tensor, rho: float) -> Tensor:
        """Gradients [b, p] divided by n times the damped eigenvalues."""
        ...


def inverse(damped: Tensor, n_train: int) -> Tensor:
    """1 / (n damped), and 0 where no row, at any label that the model gives, has a gradient."""
    return torch.where(damped > 0, 1.0 / (n_train * damped), torch.zeros_like(damped))


def diagonal_damping(
    damping: float | str, request: Request, sides: Sequence[Side], *, default: float
) -> Damping:
    """The damping that was given, or for "auto" the bank's choice, the default without a bank.

    Raises:
        ShapeError: It is not above 0, or neither a number nor "auto".
    """
    predict = partial(_predictions, request, sides)
    return damping_of(request, damping, predict, grid=GRID, default=default)


def diagonal_scores(request: Request, sides: Sequence[Side], rho: float) -> NDArray[np.float32]:
    """Scores of all rows for all queries, sent to the request's sink by blocks of queries."""
    n_train, n_query = len(request.train), len(request.queries)
    target, send = open_sink(request.out, n_query, n_train)
    for rows in _query_blocks(request, sides[0].n_parameters):
        block = torch.zeros(rows.stop - rows.start, n_train, dtype=request.dtype)
        for side in sides:
            asked = torch.cat([part for _, part in side.queries(rows.start, rows.stop)])
            solved = side.solved(asked, rho)
            for columns, gradients in side.train():
                block[:, columns] -= (solved @ gradients.T).cpu() / len(sides)
        send(rows, block.to(torch.float32).numpy())
    return target


def _query_blocks(request: Request, n_parameters: int) -> Iterator[slice]:
    step = max(1, min(QUERY_BLOCK, KEPT_ENTRIES // n_parameters))
    for start in range(0, len(request.queries), step):
        yield slice(start, min(start + step, len(request.queries)))


def _predictions(
    request: Request, sides: Sequence[Side], masks: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Sums of scores over each mask: [grid, M, q]. The masks are folded in first."""
    totals = np.zeros((len(GRID), len(masks), len(request.queries)))
    step = max(1, KEPT_ENTRIES // sides[0].n_parameters)
    for start in range(0, len(masks), step):
        chosen = torch.from_numpy(masks[start : start + step]).to(request.device, request.dtype)
        for side in sides:
            folded = torch.zeros(
                len(chosen), side.n_parameters, dtype=request.dtype, device=request.device
            )
            for rows, gradients in side.train():
                folded -= chosen[:, rows] @ gradients
            for block in _query_blocks(request, side.n_parameters):
                for rows, asked in side.queries(block.start, block.stop):
                    for index, rho in enumerate(GRID):
                        product = folded @ side.solved(asked, rho).T
                        totals[index, start : start + step, rows] += (
                            product.double().cpu().numpy() / len(sides)
                        )
    return totals
