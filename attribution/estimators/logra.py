"""LoGra (Choe et al. 2024): influence in a two-sided projection of each layer's gradient.

    tau[q, i] = -mean_c < phi_c(q), (F_c + lambda)^-1 phi_c(i) > / n

phi is the factored sketch: of a layer's gradient sum_t delta_t a_t^T the part R^T G C, both sides
being projected before they meet. F = E[phi phi^T] is the Fisher matrix of the training loss in the
projected space, a mean over rows: at labels drawn from the model (the Gauss-Newton matrix of the
multi-class loss) or, as published, at the labels that are there.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.diagonal import diagonal_damping, diagonal_scores, inverse
from attribution.estimators.features import batch_rows, featurize
from attribution.estimators.fisher_blocks import refuse_overflow
from attribution.estimators.kfac import SAMPLES
from attribution.estimators.labels import LabelPasses, Labels
from attribution.estimators.request import Clock, Record, Request
from attribution.gradients import PerExampleGradients, layout_of
from attribution.outputs import Output, OutputLike
from attribution.projection import Projection, ProjectionKind, sketch
from attribution.projection.factored import allocation_of
from attribution.rows import Rows
from schemas.errors import ShapeError

DEFAULT_RHO = 0.1
# Rows of the Fisher matrix are added in float64 this many at a time.
GATHERED_ROWS = 4096


class Blocks(StrEnum):
    """Which entries of the Fisher matrix are kept."""

    LAYER = "layer"
    MODEL = "model"


def estimate(
    request: Request,
    *,
    dim: int = 2048,
    damping: float | str = "auto",
    blocks: str = Blocks.LAYER,
    labels: str = Labels.SIGNS,
    samples: int = SAMPLES,
) -> tuple[NDArray[np.float32], Record]:
    """LoGra from checkpoints and rows.

    Args:
        request: What is asked.
        dim: Columns of the sketch, shared by the layers in equal parts; at most as many as
            parameters, and then nothing is lost.
        damping: rho > 0, in mean eigenvalues of each block, or "auto": tuned on the bank, 0.1
            without one.
        blocks: "layer": one block a layer, as published; "model": all of F, at three times the
            cost (LDS 0.501 and 0.504 on the digits MLP, one checkpoint).
        labels: "signs", "sampled", "all" or, as published, "observed" (0.463); see `Labels`.
        samples: Passes with fresh draws, for the first two.

    Raises:
        ShapeError: An option is out of range, or the sketch has fewer columns than layers.
    """
    if blocks not in set(Blocks):
        raise ShapeError(f"unknown blocks {blocks!r}; say {' or '.join(Blocks)}")
    p = layout_of(request.model).size
    projection = Projection(kind=ProjectionKind.FACTORED, dim=min(dim, p))
    size = batch_rows(request.batch_size, p)
    clock = Clock()
    sides = []
    for number in range(len(request.checkpoints)):
        matrix, spans = _fisher(request, number, projection, labels, samples, size)
        spans = spans if blocks == Blocks.LAYER else [slice(0, len(matrix))]
        sides.append(_Side(request, number, projection, matrix, spans, size))
    clock.stop("featurize")
    chosen = diagonal_damping(damping, request, sides, default=DEFAULT_RHO)
    clock.stop("tune")
    values = diagonal_scores(request, sides, chosen.rho)
    clock.stop("score")
    return values, {
        "damping": chosen.rho,
        "damping_table": chosen.table,
        "chosen_from": chosen.chosen_from,
        "fingerprint": [side.fingerprint for side in sides],
        "options": {
            "dim": projection.dim,
            "blocks": str(blocks),
            "labels": str(labels),
            "samples": samples,
            "seed": request.seed,
        },
        "batch_size": size,
        "seconds": clock.seconds,
    }


class _Side:
    """One checkpoint: sketches in the eigenbasis of the projected Fisher matrix.

    Attributes:
        n_parameters: Columns of the sketch.
        fingerprint: Of the projection.
    """

    def __init__(
        self,
        request: Request,
        number: int,
        projection: Projection,
        matrix: Tensor,
        spans: list[slice],
        batch_size: int,
    ) -> None:
        self._request, self._number, self._projection = request, number, projection
        self._size, self._spans = batch_size, spans
        self.n_parameters, self.fingerprint = len(matrix), ""
        self._eigenvalues = matrix.new_zeros(len(matrix))
        self._unit = torch.zeros_like(self._eigenvalues)
        self._bases: list[Tensor] = []
        for span in spans:
            values, vectors = torch.linalg.eigh(matrix[span, span])
            self._eigenvalues[span] = values.clamp(min=0)
            used = int((matrix[span, span].diagonal() > 0).sum())  # rounding leaves columns empty
            self._unit[span] = values.clamp(min=0).sum() / max(1, used)
            self._bases.append(vectors)
        self._train = self._rotated(request.train, Output.LOSS)
        self._queries = self._rotated(request.queries, request.output)

    def train(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, sketches of the loss's gradients [B, k])."""
        yield slice(0, len(self._train)), self._train

    def queries(self, start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
        """(queries, sketches of the output's gradients [B, k]) from start to stop."""
        yield slice(start, stop), self._queries[start:stop]

    def solved(self, gradients: Tensor, rho: float) -> Tensor:
        """Sketches divided by n times the damped eigenvalues."""
        damped = self._eigenvalues + rho * self._unit
        return gradients * inverse(damped, len(self._request.train)).to(gradients.dtype)

    def _rotated(self, rows: Rows, output: OutputLike) -> Tensor:
        request = self._request
        features = featurize(
            request.model,
            request.checkpoints[self._number],
            rows,
            output=output,
            task=request.task,
            projection=self._projection,
            seed=request.seed,
            checkpoint=self._number,
            device=request.device,
            batch_size=self._size,
            dtype=request.dtype,
        )
        self.fingerprint = features.fingerprint
        found = features.sketch
        for span, basis in zip(self._spans, self._bases, strict=True):
            found[:, span] = found[:, span] @ basis.to(found.dtype)
        return found


def _fisher(
    request: Request,
    number: int,
    projection: Projection,
    labels: str,
    samples: int,
    batch_size: int,
) -> tuple[Tensor, list[slice]]:
    """E[phi phi^T] per training row [k, k] in float64, and the columns of each layer."""
    passes = LabelPasses(
        request.task,
        labels=labels,
        samples=samples,
        n_rows=len(request.train),
        seed=request.seed,
        checkpoint=number,
    )
    state: Mapping[str, Any] = request.checkpoints[number]
    owner = PerExampleGradients(
        request.model, state, output=passes.output, device=request.device, dtype=request.dtype
    )
    p = owner.layout.size
    matrix = torch.zeros(0)
    waiting: list[Tensor] = []
    spans: list[slice] = []

    def add() -> None:
        nonlocal matrix
        joined = torch.cat(waiting)
        if not len(matrix):
            matrix = joined.new_zeros(joined.shape[1], joined.shape[1], dtype=torch.float64)
        matrix += (joined.T @ joined).double() / len(request.train)
        waiting.clear()

    for positions, inputs, targets in request.train.batches(batch_size):
        for drawn in passes.each(positions, targets):
            batch = owner.run(inputs, drawn)
            passes.n_outputs = batch.logits.shape[-1]
            found = batch.blocks()
            waiting.append(sketch(found, projection, seed=request.seed, checkpoint=number, p=p))
            if not spans:
                allocation = allocation_of(found, p, waiting[0].shape[1])
                spans = [
                    slice(part.first, part.first + part.rows * part.columns)
                    for part in allocation.parts
                ]
                if allocation.rest_size:
                    spans.append(slice(allocation.rest_first, waiting[0].shape[1]))
            if sum(map(len, waiting)) >= GATHERED_ROWS:
                add()
    if waiting:
        add()
    refuse_overflow(matrix)
    return matrix, spans
