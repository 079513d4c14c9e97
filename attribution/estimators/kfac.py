"""Influence functions with the Fisher matrix in Kronecker factors: K-FAC and EK-FAC.

    tau[q, i] = -mean_c < grad f_q, (Lambda_c + lambda)^-1 grad l_i > / n    in layer eigenbases

(Martens and Grosse 2015; George et al. 2018; Grosse et al. 2023). Each gradient is rotated into
the eigenbases once; a damping then costs one division of the queries. Nothing of size [n, p] is
kept beyond a fixed amount: what does not fit is computed again.
"""

from collections.abc import Iterator
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.diagonal import (
    KEPT_ENTRIES,
    diagonal_damping,
    diagonal_scores,
    inverse,
)
from attribution.estimators.factors import Factors, fit_factors
from attribution.estimators.features import batch_rows
from attribution.estimators.labels import Labels
from attribution.estimators.request import Clock, Record, Request
from attribution.gradients import PerExampleGradients, layout_of
from attribution.outputs import Output, OutputLike
from attribution.rows import Rows
from schemas.errors import DataError, ShapeError

DEFAULT_RHO = 0.3
# LDS of EK-FAC on the digits MLP, one checkpoint: labels sampled once 0.51 (rho 0.03: few draws of
# a net that fits its rows are surprising, and those rule); random signs once, twice, four times
# 0.557, 0.565, 0.570; every class 0.574.
SAMPLES = 4


class Per(StrEnum):
    """Whose mean eigenvalue damping counts in."""

    LAYER = "layer"
    MODEL = "model"


def estimate_ekfac(
    request: Request,
    *,
    damping: float | str = "auto",
    damping_per: str = Per.LAYER,
    labels: str = Labels.SIGNS,
    samples: int = SAMPLES,
) -> tuple[NDArray[np.float32], Record]:
    """EK-FAC: eigenvalues corrected to the second moments of the rotated gradients.

    Args:
        request: What is asked.
        damping: rho > 0, in mean eigenvalues of the Fisher matrix, or "auto": tuned on the bank.
        damping_per: "layer": each layer's own mean eigenvalue; "model": the mean over all (LDS
            0.574 and 0.573 on the digits MLP).
        labels: "signs", "sampled", "all" or "observed", see `Labels`.
        samples: Passes with fresh draws, for the first two.
    """
    return _estimate(request, True, damping, damping_per, labels, samples)


def estimate_kfac(
    request: Request,
    *,
    damping: float | str = "auto",
    damping_per: str = Per.LAYER,
    labels: str = Labels.SIGNS,
    samples: int = SAMPLES,
) -> tuple[NDArray[np.float32], Record]:
    """K-FAC: eigenvalues are products of the factors'. Options as those of `estimate_ekfac`."""
    return _estimate(request, False, damping, damping_per, labels, samples)


def _estimate(
    request: Request,
    corrected: bool,
    damping: float | str,
    damping_per: str,
    labels: str,
    samples: int,
) -> tuple[NDArray[np.float32], Record]:
    if damping_per not in set(Per):
        raise ShapeError(f"unknown damping_per {damping_per!r}; say {' or '.join(Per)}")
    clock = Clock()
    size = batch_rows(request.batch_size, layout_of(request.model).size)
    sides = []
    for number, state in enumerate(request.checkpoints):
        factors = fit_factors(
            request.model,
            state,
            request.train,
            task=request.task,
            labels=labels,
            samples=samples,
            seed=request.seed,
            checkpoint=number,
            device=request.device,
            batch_size=size,
            dtype=request.dtype,
        )
        sides.append(_Side(request, number, factors, corrected, damping_per == Per.LAYER, size))
    clock.stop("factors")
    chosen = diagonal_damping(damping, request, sides, default=DEFAULT_RHO)
    clock.stop("tune")
    values = diagonal_scores(request, sides, chosen.rho)
    clock.stop("score")
    return values, {
        "damping": chosen.rho,
        "damping_table": chosen.table,
        "chosen_from": chosen.chosen_from,
        "fingerprint": [
            f"fisher/1:labels={labels},samples={samples},seed={request.seed},checkpoint={number}"
            for number in range(len(sides))
        ],
        "options": {
            "damping_per": damping_per,
            "labels": labels,
            "samples": samples,
            "seed": request.seed,
        },
        "batch_size": size,
        "seconds": clock.seconds,
    }


class _Side:
    """One checkpoint: rotated gradients of training losses and of query outputs.

    Attributes:
        n_parameters: p.
    """

    def __init__(
        self,
        request: Request,
        number: int,
        factors: Factors,
        corrected: bool,
        per_layer: bool,
        batch_size: int,
    ) -> None:
        self._request, self._number, self._factors = request, number, factors
        self._size = batch_size
        self._eigenvalues = factors.corrected if corrected else factors.factored
        self._unit = factors.unit(self._eigenvalues, per_layer)
        self.n_parameters = len(self._eigenvalues)
        rows = len(request.train) + len(request.queries)
        self._keep = rows * self.n_parameters * len(request.checkpoints) <= KEPT_ENTRIES
        self._kept: dict[str, list[tuple[slice, Tensor]]] = {}

    def train(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, gradients of the loss [B, p])."""
        return self._rotated("train", self._request.train, Output.LOSS, 0, len(self._request.train))

    def queries(self, start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
        """(queries, gradients of the output [B, p]) from start to stop."""
        request = self._request
        return self._rotated(f"q{start}", request.queries, request.output, start, stop)

    def solved(self, gradients: Tensor, rho: float) -> Tensor:
        """Gradients [b, p] divided by n times the damped eigenvalues."""
        damped = self._eigenvalues + rho * self._unit
        return gradients * inverse(damped, len(self._request.train)).to(gradients.dtype)

    def _rotated(
        self, key: str, rows: Rows, output: OutputLike, start: int, stop: int
    ) -> Iterator[tuple[slice, Tensor]]:
        if key in self._kept:
            yield from self._kept[key]
            return
        request, done = self._request, []
        owner = PerExampleGradients(
            request.model,
            request.checkpoints[self._number],
            output=output,
            device=request.device,
            dtype=request.dtype,
        )
        for first in range(start, stop, self._size):
            part = slice(first, min(first + self._size, stop))
            inputs, targets = rows.batch(part.start, part.stop)
            found = self._factors.rotate(owner.run(inputs, targets).blocks())
            good = torch.isfinite(found).all(1)
            if not bool(good.all()):
                row = part.start + int((~good).nonzero()[0, 0])
                raise DataError(
                    f"the gradient of {rows.name} row {row} (counted from 0) is NaN or infinite; "
                    "the model overflows on it: look at the row, or train the checkpoint again"
                )
            if self._keep:
                done.append((part, found))
            yield part, found
        if self._keep:
            self._kept[key] = done
