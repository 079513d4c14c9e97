"""TRAK (Park et al. 2023): scores tau [q, n] from features at several checkpoints.

    scores    tau = mean_c [ phi_c(q)^T K_c^-1 Phi_c^T diag(Q_c) ]          (ours, default)
    features  tau = mean_c [ phi_c(q)^T K_c^-1 Phi_c^T ] diag(mean_c Q_c)   (as published)

tau[q, i] > 0: having i in training raises the query's output. With curvature "logistic" the unit
is the output's own, up to the slope that calibration finds; with "after-kernel" K lacks p(1-p) and
so do the scores. The [q, n] result is streamed by query blocks; [n, p] and [n, n] scores never
exist.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.damping import Damping, choose_damping, tune_damping
from attribution.estimators.features import (
    Features,
    batch_rows,
    check_features,
    featurize,
    own_output,
)
from attribution.estimators.gaussnewton import GGN_CLASSES
from attribution.estimators.kernel import Curvature, Gram, leverage_factor, working_dtype
from attribution.estimators.request import Clock, Record, Request, Sink, open_sink
from attribution.gradients import layout_of
from attribution.outputs import OutputLike, task_output
from attribution.projection import Projection, sketch_implementation
from attribution.rows import Rows
from schemas.errors import ShapeError

__all__ = [
    "Average",
    "Damping",
    "Features",
    "estimate",
    "featurize",
    "self_influence",
    "trak_scores",
    "tune_damping",
]

QUERY_BLOCK = 512


class Average(StrEnum):
    """How checkpoints are averaged."""

    SCORES = "scores"
    FEATURES = "features"


def estimate(
    request: Request,
    *,
    projection: Projection | Mapping[str, Any] | None = None,
    curvature: str = "logistic",
    damping: float | str = "auto",
    leverage: bool = False,
    average: str = Average.SCORES,
    ggn_classes: int = GGN_CLASSES,
) -> tuple[NDArray[np.float32], Record]:
    """TRAK from checkpoints and rows.

    Args:
        request: What is asked.
        projection: A `Projection` or its arguments; sparse and 2048 wide by default.
        curvature: "logistic", "after-kernel" (as published) or "ggn" (multi-class Gauss-Newton).
        damping: rho > 0 in mean non-zero eigenvalues of the curvature, or "auto": tuned on the
            bank, 1 without one.
        leverage: Newton step for removing each row, instead of its first-order influence.
        average: "scores" (mean of products) or "features" (product of means, as published).
        ggn_classes: Classes of each training row that "ggn" takes besides the row's own, one
            backward pass each.
    """
    sketcher = projection if isinstance(projection, Projection) else Projection(**projection or {})
    size = batch_rows(request.batch_size, layout_of(request.model).size)

    ggn = curvature == Curvature.GGN

    def features(source: Rows, of: OutputLike, ggn: bool = False) -> list[Features]:
        return [
            featurize(
                request.model,
                state,
                source,
                output=of,
                task=request.task,
                projection=sketcher,
                seed=request.seed,
                checkpoint=number,
                device=request.device,
                batch_size=size,
                dtype=request.dtype,
                ggn=ggn,
                ggn_classes=ggn_classes,
            )
            for number, state in enumerate(request.checkpoints)
        ]

    clock = Clock()
    train = features(request.train, str(task_output(request.task)), ggn)
    same = request.same and own_output(request.output, request.task)
    queries = train if same else features(request.queries, request.output)
    clock.stop("featurize")
    options: dict[str, Any] = {"curvature": curvature, "leverage": leverage, "average": average}
    chosen = choose_damping(
        damping, train, queries, request.bank, aggregate=request.aggregate, **options
    )
    clock.stop("tune")
    values = trak_scores(train, queries, damping=chosen.rho, out=request.out, **options)
    clock.stop("score")
    record = {
        "damping": chosen.rho,
        "damping_table": chosen.table,
        "chosen_from": chosen.chosen_from,
        "fingerprint": [own.fingerprint for own in train],
        "sketch": sketch_implementation(request.device, sketcher),
        "options": {
            **options,
            **({"ggn_classes": ggn_classes} if ggn else {}),
            "projection": asdict(sketcher),
            "seed": request.seed,
        },
        "batch_size": size,
        "seconds": clock.seconds,
    }
    return values, record


def trak_scores(
    train: Sequence[Features],
    queries: Sequence[Features],
    *,
    curvature: str = "logistic",
    damping: float = 1.0,
    leverage: bool = False,
    average: str = Average.SCORES,
    dtype: torch.dtype | None = None,
    out: NDArray[Any] | Sink | None = None,
) -> NDArray[np.float32]:
    """Scores of all training rows for all queries.

    Args:
        train: Training features, one item a checkpoint.
        queries: Query features of the same checkpoints, in the same order.
        curvature: "after-kernel", "logistic" or "ggn" (training features with ggn=True).
        damping: rho > 0, in mean non-zero eigenvalues of each checkpoint's curvature.
        leverage: Divide column i by 1 - R_i phi_i^T K^-1 phi_i (a Newton step for removing i).
        average: "scores" or "features", see the module.
        dtype: Of matrix products; by default float32, or float64 for damping below 0.01.
        out: A writable array [q, n], or a function that is called with each (slice of queries,
            block [b, n]).

    Returns:
        float32 [q, n]; `out` itself where it is an array; [0, n] where it is a function.

    Raises:
        ShapeError: Features do not fit together, or an option is out of range.
    """
    n_train, n_query = check_sides(train, queries, average)
    solved, columns, sides = [], [], []
    for own, asked in zip(train, queries, strict=True):
        kind = working_dtype(dtype, damping, own)
        gram = Gram(own, curvature=curvature, dtype=kind)
        inverse = gram.factor(damping)
        solved.append(inverse.apply(asked.sketch.to(kind)))
        scale = torch.ones_like(gram.weights)
        if leverage:
            scale = leverage_factor(gram, inverse)
        columns.append(scale * own.residual.to(kind) if average == Average.SCORES else scale)
        sides.append(own.sketch)
    final: Any = 1.0
    if average == Average.FEATURES:
        final = _mean([own.residual.double() for own in train])
    target, send = open_sink(out, n_query, n_train)
    for start in range(0, n_query, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, n_query))
        block: Any = 0.0
        for left, right, column in zip(solved, sides, columns, strict=True):
            block = block + (left[rows] @ right.to(left.dtype).T) * column
        send(rows, (block * final / len(solved)).to("cpu", torch.float32).numpy())
    return target


def self_influence(
    train: Sequence[Features],
    *,
    curvature: str = "logistic",
    damping: float = 1.0,
    leverage: bool = False,
    average: str = Average.SCORES,
    dtype: torch.dtype | None = None,
) -> NDArray[np.float32]:
    """tau[i, i] of each training row for its own output: [n], high for memorised labels.

    Arguments as those of `trak_scores`, whose diagonal it is where the queries are the training
    rows and the output is the task's own.
    """
    check_sides(train, train, average)
    parts, residuals = [], []
    for own in train:
        kind = working_dtype(dtype, damping, own)
        gram = Gram(own, curvature=curvature, dtype=kind)
        inverse = gram.factor(damping)
        quadratic = inverse.quadratic(gram.phi)
        if leverage:
            quadratic = quadratic * leverage_factor(gram, inverse)
        residuals.append(own.residual.to(kind))
        parts.append(quadratic)
    if average == Average.SCORES:
        values = _mean([part * own for part, own in zip(parts, residuals, strict=True)])
    else:
        values = _mean(parts) * _mean(residuals)
    return values.to("cpu", torch.float32).numpy()


def check_sides(
    train: Sequence[Features], queries: Sequence[Features], average: str
) -> tuple[int, int]:
    """Numbers of training rows and queries of features that fit together.

    Raises:
        ShapeError: They do not, or the average is unknown.
    """
    if average not in set(Average):
        raise ShapeError(f"unknown average {average!r}; say {' or '.join(Average)}")
    if not train or len(train) != len(queries):
        raise ShapeError(
            f"there are train features of {len(train)} checkpoints and query features of "
            f"{len(queries)}; give both for each of one checkpoint or more"
        )
    for own, asked in zip(train, queries, strict=True):
        check_features(own, asked)
    for side, name in ((train, "train"), (queries, "query")):
        lengths = sorted({len(features) for features in side})
        if len(lengths) != 1 or lengths[0] == 0:
            raise ShapeError(f"{name} features have {lengths} rows; each needs the same rows")
    prints = [features.fingerprint for features in train]
    if len(set(prints)) != len(prints):
        raise ShapeError(f"two checkpoints share the projection {prints[0]}; number them 0, 1, ...")
    return len(train[0]), len(queries[0])


def _mean(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).mean(0)
