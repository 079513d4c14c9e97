"""SOURCE (Bae et al. 2024): influence through the training run, unrolled segment by segment.

The run is cut in L segments. In segment l the mean loss has curvature H_l and row i the gradient
g_{l,i}, both taken as constant (means over the segment's checkpoints); the weights drift for a time
t_l, the sum of its learning rates. With S_l = exp(-t_l H_l) and r_{l,i} = (I - S_l) H_l^-1 g_{l,i}

    tau[q, i] = -(1/n) grad f_q^T sum_l (S_L ... S_{l+1}) r_{l,i}

H_l is the Gauss-Newton matrix in EK-FAC's eigenbasis, plus the weight decay. Nothing is damped: a
direction without curvature has r = t g, so that without any curvature tau is TracIn's, and in time
without end it is influence functions'. The run is taken for gradient descent: Adam is not modelled.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.factors import Factors, fit_mean_factors
from attribution.estimators.features import batch_rows
from attribution.estimators.gradient_products import RowGradients
from attribution.estimators.kfac import SAMPLES
from attribution.estimators.labels import Labels
from attribution.estimators.request import Clock, Record, Request, open_sink
from attribution.estimators.similarity import checkpoint_weights
from attribution.gradients import layout_of
from attribution.outputs import Output
from schemas.errors import ShapeError

BLOCK_ENTRIES = 2**26
QUERY_BLOCK = 512
SEGMENTS = 3


@dataclass(frozen=True, kw_only=True)
class _Segment:
    """Checkpoints start..stop, the curvature's eigenvalues [p] and bases, and the time."""

    checkpoints: range
    factors: Factors
    eigenvalues: Tensor
    time: float

    def pull(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(I - S) H^-1 v and S v for vectors [b, p]; both matrices are symmetric."""
        turned = self.factors.turn(vectors).double()
        kept = torch.exp(-self.time * self.eigenvalues)
        shares = -torch.expm1(-self.time * self.eigenvalues) / self.eigenvalues
        # Exactly 0: the limit. Tiny ones are as good as that in float64.
        shares = torch.where(self.eigenvalues > 0, shares, torch.full_like(shares, self.time))
        answers = (turned * shares, turned * kept)
        here, before = (self.factors.turn_back(part.to(vectors.dtype)) for part in answers)
        return here, before


def estimate(
    request: Request,
    *,
    weights: Sequence[float] | None = None,
    segments: int | Sequence[int] | None = None,
    weight_decay: float = 0.0,
    labels: str = Labels.SIGNS,
    samples: int = SAMPLES,
) -> tuple[NDArray[np.float32], Record]:
    """SOURCE from the checkpoints of one run of (momentum) SGD.

    Args:
        request: What is asked; its checkpoints are snapshots of one run, in order, the last one
            its end.
        weights: What `training.recipe.exposures` gives, as for "tracin": the sum of the learning
            rates since the snapshot before, divided by n and by 1 - momentum. A segment's time is
            n times the sum of its checkpoints' weights.
        segments: How many equal ones, or how many checkpoints each has; 3 by default (as
            published), or as many as there are checkpoints.
        weight_decay: Of the recipe: it adds to every eigenvalue.
        labels: Of the Gauss-Newton matrix, as those of "ekfac".
        samples: As those of "ekfac".

    Raises:
        ShapeError: There are no weights, the segments do not add up to the checkpoints, or an
            option is out of range.
    """
    if weights is None:
        raise ShapeError(
            "'source' needs weights, how far each checkpoint's gradients moved the weights; give "
            "training.recipe.exposures(recipe, n_rows, epochs)"
        )
    moved = checkpoint_weights(request, weights)
    if not 0 <= weight_decay < float("inf"):
        raise ShapeError(f"weight_decay is {weight_decay}; give that of the recipe, 0 or more")
    clock = Clock()
    found = []
    for part in _parts(segments, len(moved)):
        time = len(request.train) * sum(moved[number] for number in part)
        found.append(_fit(request, part, time, weight_decay, labels, samples))
    clock.stop("factors")
    n_query, n_train = len(request.queries), len(request.train)
    target, send = open_sink(request.out, n_query, n_train)
    for rows, vectors in _query_blocks(request):
        send(rows, _scores(request, found, vectors))
    clock.stop("score")
    return target, {
        "damping": None,
        "chosen_from": "there is nothing to damp: time bounds every direction",
        "fingerprint": [
            f"source/1:checkpoints={part.checkpoints.start}-{part.checkpoints.stop - 1},"
            f"labels={labels},samples={samples},seed={request.seed}"
            for part in found
        ],
        "options": {
            "weights": moved,
            "segments": [len(part.checkpoints) for part in found],
            "times": [part.time for part in found],
            "weight_decay": weight_decay,
            "labels": str(labels),
            "samples": samples,
            "seed": request.seed,
        },
        "batch_size": request.batch_size,
        "seconds": clock.seconds,
    }


def _parts(segments: int | Sequence[int] | None, count: int) -> list[range]:
    """The checkpoints of each segment."""
    if segments is None:
        segments = min(SEGMENTS, count)
    if isinstance(segments, int):
        if not 1 <= segments <= count:
            raise ShapeError(
                f"segments is {segments}; give 1 to {count}, one checkpoint or more each"
            )
        sizes = [len(part) for part in np.array_split(np.arange(count), segments)]
    else:
        sizes = [int(size) for size in segments]
    if sum(sizes) != count or min(sizes, default=0) < 1:
        raise ShapeError(
            f"segments of {sizes} checkpoints do not make up the {count} that there are; give one "
            "checkpoint or more to each"
        )
    bounds = np.cumsum([0, *sizes])
    return [range(a, b) for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]


def _fit(
    request: Request, part: range, time: float, weight_decay: float, labels: str, samples: int
) -> _Segment:
    factors = fit_mean_factors(
        request.model,
        {number: request.checkpoints[number] for number in part},
        request.train,
        task=request.task,
        labels=labels,
        samples=samples,
        seed=request.seed,
        device=request.device,
        batch_size=batch_rows(request.batch_size, layout_of(request.model).size),
        dtype=request.dtype,
    )
    return _Segment(
        checkpoints=part,
        factors=factors,
        eigenvalues=factors.corrected + weight_decay,
        time=time,
    )


def _scores(request: Request, segments: list[_Segment], vectors: Tensor) -> NDArray[np.float32]:
    """[b, n]: the query's gradient goes back through the run, and meets the rows' on its way."""
    block = torch.zeros(len(vectors), len(request.train), dtype=request.dtype)
    for segment in reversed(segments):
        here, vectors = segment.pull(vectors)
        for number in segment.checkpoints:
            products = _gradients(request, number, train=True).project(here).T.cpu()
            block -= products / (len(segment.checkpoints) * len(request.train))
    return block.to(torch.float32).numpy()


def _query_blocks(request: Request) -> Iterator[tuple[slice, Tensor]]:
    """Gradients of the output at the end of the run, [b, p]."""
    queries = _gradients(request, len(request.checkpoints) - 1, train=False)
    step = max(1, min(QUERY_BLOCK, BLOCK_ENTRIES // queries.size))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        yield rows, queries.rows(rows.start, rows.stop)


def _gradients(request: Request, number: int, *, train: bool) -> RowGradients:
    return RowGradients(
        request.model,
        request.checkpoints[number],
        request.train if train else request.queries,
        output=Output.LOSS if train else request.output,
        device=request.device,
        dtype=request.dtype,
        batch_size=request.batch_size,
    )
