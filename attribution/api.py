"""`attribute`: from checkpoints and rows to scores, in one call.

It chooses nothing silently: device, damping and batch size are in the record that the scores
carry.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attribution.devices import resolve
from attribution.estimators import describe
from attribution.estimators.damping import BankRows, Damping, tune_damping
from attribution.estimators.features import Features, batch_rows, featurize, own_output
from attribution.estimators.trak import trak_scores
from attribution.gradients import layout_of
from attribution.outputs import OutputLike, Task, output_name, task_of, task_output
from attribution.projection import Projection
from attribution.rows import Rows
from schemas.errors import NotFound, ShapeError

Sink = Callable[[slice, NDArray[np.float32]], None]


class Scores(np.ndarray):
    """Scores float32 [n_query, n_train]; > 0 means that training on the row raises the output.

    Attributes:
        record: How they were made: method, output, task, damping, chosen_from, device,
            fingerprint (one for each checkpoint), options and seconds by stage.
    """

    record: dict[str, Any]

    def __new__(cls, values: NDArray[Any], record: Mapping[str, Any]) -> "Scores":
        """A view of the values that carries a record."""
        scores = np.asarray(values).view(cls)
        scores.record = dict(record)
        return scores

    def __array_finalize__(self, source: Any) -> None:
        """Views and copies keep the record."""
        self.record = getattr(source, "record", {})


def attribute(
    method: str,
    model: nn.Module,
    checkpoints: Sequence[Mapping[str, Any]],
    *,
    train: Any,
    queries: Any,
    output: OutputLike | None = None,
    bank: BankRows | None = None,
    task: str | None = None,
    projection: Projection | Mapping[str, Any] | None = None,
    curvature: str = "logistic",
    damping: float | str = "auto",
    leverage: bool = False,
    average: str = "scores",
    aggregate: NDArray[Any] | None = None,
    device: str = "auto",
    batch_size: int | str = "auto",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    out: NDArray[Any] | Sink | None = None,
) -> Scores:
    """Score every training row for every query.

    Args:
        method: A name listed by `attribution.estimators()`.
        model: Maps rows to logits [n, K]; its weights are replaced by each checkpoint's in a copy.
        checkpoints: State dicts of independently trained models.
        train: (inputs [n, ...], targets [n]), or a map-style Dataset of (input, target).
        queries: The same for the examples to be explained.
        output: What is explained: "margin", "loss", "logprob", "logit", "prediction",
            "squared_error" or a function of (logits, targets); by default the task's own.
        bank: Retrained models whose outputs [M, n_query] are this output; tunes the damping.
        task: "classification" or "regression"; by default read from the targets' type.
        projection: A `Projection` or its arguments; sparse and 2048 wide by default.
        curvature: "logistic" or "after-kernel" (as published).
        damping: rho > 0 in mean non-zero eigenvalues of the curvature, or "auto": tuned on the
            bank, 1 without one.
        leverage: Newton step for removing each row, instead of its first-order influence.
        average: "scores" (mean of products) or "features" (product of means, as published).
        aggregate: Weights [n_query] of the sum for which the damping is tuned.
        device: "auto", "cpu" or "cuda".
        batch_size: Rows at a time, or "auto" (bounded memory).
        seed: Seed of the projection.
        dtype: float32, or float64 for tests.
        out: A writable array [n_query, n_train], or a function that is called with each (slice of
            queries, block); then the result is empty and only carries the record.

    Returns:
        float32 [n_query, n_train] in the output's unit, with a `record`.

    Raises:
        NotFound: The method is unknown.
        ShapeError: Arrays, targets or options do not fit together.
        DataError: An input or a gradient is NaN or infinite.
        CheckpointError: A state dict does not fit the model.
        RecipeError: The model has no per-example gradient.
        DeviceUnavailable: CUDA was asked for and is not there.
    """
    names = [known.name for known in describe()]
    if method not in names:
        raise NotFound(f"there is no estimator {method!r}; choose one of {', '.join(names)}")
    if not checkpoints:
        raise ShapeError("there is no checkpoint; give the state dict of one model or more")
    place = resolve(device)
    rows, asked = Rows(train, "train"), Rows(queries, "queries")
    kind = str(Task(task)) if task is not None else str(task_of(rows.batch(0, 1)[1]))
    wanted = output if output is not None else str(task_output(kind))
    sketcher = projection if isinstance(projection, Projection) else Projection(**projection or {})
    size = batch_rows(batch_size, layout_of(model).size)

    def features(source: Rows, of: OutputLike) -> list[Features]:
        return [
            featurize(
                model,
                state,
                source,
                output=of,
                task=kind,
                projection=sketcher,
                seed=seed,
                checkpoint=number,
                device=place,
                batch_size=size,
                dtype=dtype,
            )
            for number, state in enumerate(checkpoints)
        ]

    clock = _Clock()
    train_features = features(rows, str(task_output(kind)))
    same = own_output(wanted, kind) and queries is train
    query_features = train_features if same else features(asked, wanted)
    clock.stop("featurize")
    options: dict[str, Any] = {"curvature": curvature, "leverage": leverage, "average": average}
    chosen = _damping(damping, train_features, query_features, bank, aggregate, options)
    clock.stop("tune")
    values = trak_scores(train_features, query_features, damping=chosen.rho, out=out, **options)
    clock.stop("score")
    record = {
        "method": method,
        "output": output_name(wanted),
        "task": kind,
        "damping": chosen.rho,
        "damping_table": chosen.table,
        "chosen_from": chosen.chosen_from,
        "device": place,
        "fingerprint": [own.fingerprint for own in train_features],
        "options": {**options, "projection": asdict(sketcher), "seed": seed},
        "batch_size": size,
        "seconds": clock.seconds,
    }
    return Scores(values, record)


def _damping(
    damping: float | str,
    train: list[Features],
    queries: list[Features],
    bank: BankRows | None,
    aggregate: NDArray[Any] | None,
    options: dict[str, Any],
) -> Damping:
    if damping == "auto":
        return tune_damping(train, queries, bank, aggregate=aggregate, **options)
    if isinstance(damping, str):
        raise ShapeError(f"damping is {damping!r}; give a positive number or 'auto'")
    return Damping(rho=float(damping), table=(), chosen_from="given")


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def stop(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = round(now - self._since, 3)
        self._since = now
