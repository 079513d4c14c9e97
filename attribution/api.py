"""`attribute`: from checkpoints and rows to scores, in one call.

It chooses nothing silently: device, damping and batch size are in the record that the scores
carry.
"""

import difflib
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from attribution.devices import resolve
from attribution.estimators import EstimatorDescription, Reads, describe
from attribution.estimators.damping import BankRows
from attribution.estimators.request import Record, Request, Sink
from attribution.outputs import OutputLike, Task, output_name, task_of, task_output
from attribution.rows import Rows
from schemas.errors import NotFound, ShapeError

Estimator = Callable[..., tuple[NDArray[np.float32], Record]]


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
    model: nn.Module | None,
    checkpoints: Sequence[Mapping[str, Any]] | None,
    *,
    train: Any,
    queries: Any,
    output: OutputLike | None = None,
    bank: BankRows | None = None,
    task: str | None = None,
    aggregate: NDArray[Any] | None = None,
    device: str = "auto",
    batch_size: int | str = "auto",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    out: NDArray[Any] | Sink | None = None,
    **options: Any,
) -> Scores:
    """Score every training row for every query.

    Args:
        method: A name listed by `attribution.estimators()`.
        model: Maps rows to logits [n, K]; its weights are replaced by each checkpoint's in a copy.
            None for a method that reads no model, such as "datamodel".
        checkpoints: State dicts of independently trained models; none for a method that reads the
            bank or rows alone, or trains itself.
        train: (inputs [n, ...], targets [n]), or a map-style Dataset of (input, target).
        queries: The same for the examples to be explained.
        output: What is explained: "margin", "loss", "logprob", "logit", "prediction",
            "squared_error" or a function of (logits, targets); by default the task's own.
        bank: Retrained models whose outputs [M, n_query] are this output; tunes the damping, or
            is what a method is fitted to.
        task: "classification" or "regression"; by default read from the targets' type.
        aggregate: Weights [n_query] of the sum for which the damping is tuned.
        device: "auto", "cpu" or "cuda".
        batch_size: Rows at a time, or "auto" (bounded memory).
        seed: Seed of whatever is random, such as the projection.
        dtype: float32, or float64 for tests.
        out: A writable array [n_query, n_train], or a function that is called with each (slice of
            queries, block); then the result is empty and only carries the record.
        options: The method's own, such as ``projection``, ``curvature`` and ``damping``; see the
            function that `attribution.estimators()` names as its home.

    Returns:
        float32 [n_query, n_train] in the output's unit, with a `record`.

    Raises:
        NotFound: The method is unknown, or has no such option.
        ShapeError: Arrays, targets or options do not fit together.
        DataError: An input or a gradient is NaN or infinite.
        CheckpointError: A state dict does not fit the model.
        RecipeError: The model has no per-example gradient.
        DeviceUnavailable: CUDA was asked for and is not there.
    """
    known = _known(method)
    estimate = _estimator(known, options)
    if model is None and known.reads in (Reads.CHECKPOINTS, Reads.RECIPE):
        raise ShapeError(f"{method} needs a model; give the module that was trained")
    if not checkpoints and known.reads is Reads.CHECKPOINTS:
        raise ShapeError("there is no checkpoint; give the state dict of one model or more")
    if known.reads is not Reads.CHECKPOINTS:
        checkpoints = ()
    rows, asked = Rows(train, "train"), Rows(queries, "queries")
    kind = str(Task(task)) if task is not None else str(task_of(rows.batch(0, 1)[1]))
    request = Request(
        model=model if model is not None else nn.Module(),
        checkpoints=checkpoints or (),
        train=rows,
        queries=asked,
        same=queries is train,
        task=kind,
        output=output if output is not None else str(task_output(kind)),
        bank=bank,
        aggregate=aggregate,
        device=resolve(device),
        batch_size=batch_size,
        seed=seed,
        dtype=dtype,
        out=out,
    )
    started = time.perf_counter()
    values, record = estimate(request, **options)
    common = {
        "method": method,
        "output": output_name(request.output),
        "task": kind,
        "device": request.device,
        "seconds": {"total": round(time.perf_counter() - started, 3)},
    }
    seconds = common["seconds"] | record.get("seconds", {})
    return Scores(values, common | record | {"seconds": seconds})


def _known(method: str) -> EstimatorDescription:
    known = {each.name: each for each in describe()}
    if method not in known:
        raise NotFound(f"there is no estimator {method!r}{_nearest(method, list(known))}")
    return known[method]


def _estimator(description: EstimatorDescription, options: Mapping[str, Any]) -> Estimator:
    module, _, name = description.home.partition(":")
    estimate: Estimator = getattr(import_module(module), name)
    known = [
        parameter.name
        for parameter in inspect.signature(estimate).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for option in options:
        if option not in known:
            raise NotFound(f"{description.name} has no option {option!r}{_nearest(option, known)}")
    return estimate


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; choose one of {', '.join(known)}" if known else "; it has none"
