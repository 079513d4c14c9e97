"""What every estimator is asked: a model, its checkpoints, rows, queries and an output.

An estimator is a function of a `Request` and of its own options by keyword. It returns float32
scores [n_query, n_train] and a record of what it chose.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attribution.estimators.tuning import (
    BankRows,
    Damping,
    Predict,
    bank_arrays,
    given_damping,
    tune_on_bank,
)
from attribution.outputs import OutputLike, output_name
from attribution.rows import Rows
from schemas.errors import ShapeError

Sink = Callable[[slice, NDArray[np.float32]], None]
Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """One call of `attribution.attribute`, checked.

    Attributes:
        model: Maps rows to logits [n, K]; never changed in place. An empty module, and no
            checkpoints, for an estimator that reads the bank alone.
        checkpoints: State dicts.
        train: The training rows, n of them.
        queries: The rows to be explained, m of them.
        same: Queries are the training rows themselves.
        task: "classification" or "regression".
        output: What is explained of each query.
        bank: Retrained models with this output on these queries, or None.
        aggregate: Weights [m] of the sum for which damping is tuned, or None.
        device: "cpu" or "cuda".
        batch_size: Rows at a time, or "auto".
        seed: Seed of whatever is random.
        dtype: Type of weights and gradients.
        out: A writable array [m, n], a function of (slice of queries, block), or None.
    """

    model: nn.Module
    checkpoints: Sequence[Mapping[str, Any]]
    train: Rows
    queries: Rows
    same: bool
    task: str
    output: OutputLike
    bank: BankRows | None
    aggregate: NDArray[Any] | None
    device: str
    batch_size: int | str
    seed: int
    dtype: torch.dtype
    out: NDArray[Any] | Sink | None


@dataclass(slots=True)
class Clock:
    """Seconds by stage, for the record."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def stop(self, stage: str) -> None:
        """What has passed since the last stop belongs to this stage."""
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._since, 3)
        self._since = now


def fitted_rows(request: Request) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Masks bool [M, n] and outputs float64 [M, m] of the bank that an estimator is fitted to.

    Raises:
        ShapeError: There is no bank, its rows or queries are others, or it holds another output.
    """
    if request.bank is None:
        raise ShapeError(
            "there is no bank; this method is fitted to retrained models: give bank=, as "
            "train_bank makes it"
        )
    asked, kept = output_name(request.output), getattr(request.bank, "output", None)
    if kept is not None and str(kept) != asked:
        raise ShapeError(
            f"the bank holds {str(kept)!r} and {asked!r} is asked for; ask for the bank's output"
        )
    return bank_arrays(request.bank, len(request.train), len(request.queries))


def damping_of(
    request: Request,
    damping: float | str,
    predict: Predict,
    *,
    grid: Sequence[float],
    default: float,
) -> Damping:
    """The damping that was given, or for "auto" what the request's bank chooses of a grid.

    Args:
        request: What is asked.
        damping: rho > 0 in mean eigenvalues, or "auto".
        predict: The estimator, at every rho of the grid; called where there is a bank to tune on.
        grid: Values of rho to try.
        default: What "auto" is without a bank.

    Raises:
        ShapeError: It is not above 0, or neither a number nor "auto"; or the bank does not fit.
    """
    chosen = given_damping(damping) or tune_on_bank(
        predict,
        request.bank,
        n_train=len(request.train),
        n_query=len(request.queries),
        grid=grid,
        aggregate=request.aggregate,
        default=default,
    )
    if not 0.0 < chosen.rho < float("inf"):
        raise ShapeError(
            f"damping is {chosen.rho}; give a positive number (1 is one mean eigenvalue)"
        )
    return chosen


def open_sink(
    out: NDArray[Any] | Sink | None, n_query: int, n_train: int
) -> tuple[NDArray[np.float32], Sink]:
    """What to return and where to send blocks of scores, for the `out` of a request.

    Raises:
        ShapeError: `out` is an array of another shape, or cannot be written to.
    """
    if out is None:
        out = np.empty((n_query, n_train), dtype=np.float32)
    if not isinstance(out, np.ndarray):
        return np.empty((0, n_train), dtype=np.float32), out
    if out.shape != (n_query, n_train) or not out.flags.writeable:
        raise ShapeError(
            f"out has shape {out.shape}, writeable={out.flags.writeable}; give a writable array "
            f"{(n_query, n_train)}"
        )
    array = out

    def write(rows: slice, block: NDArray[np.float32]) -> None:
        array[rows] = block

    return array, write
