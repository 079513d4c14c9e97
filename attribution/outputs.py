"""Model outputs f and the training loss, one number an example.

Logits are [..., K] with targets [...]: class indices (int64) for classification, float32 for
regression, where K = 1. An example of a language task is a document: logits [n, T, K] with a class
index for each of T tokens, and its output is the sum over those that are asked (`UNASKED` marks
padding and prompts). Nothing here averages over examples. The training loss is cross-entropy or
squared error; `tangent` gives its derivatives with respect to the task's own output f (margin for
classification, prediction for regression, log-probability of a document), which is all that TRAK
needs of a loss.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from schemas.errors import ShapeError


class Task(StrEnum):
    """What the model is trained for."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"
    LANGUAGE = "language"


# The target of a token whose prediction is not asked for, as in torch's cross-entropy.
UNASKED = -100


class Output(StrEnum):
    """A named output f(logits, target); the unit of every score that explains it."""

    MARGIN = "margin"
    LOSS = "loss"
    LOGPROB = "logprob"
    LOGIT = "logit"
    PREDICTION = "prediction"
    SQUARED_ERROR = "squared_error"


OutputFunction = Callable[[Tensor, Tensor], Tensor]
OutputLike = str | OutputFunction

OUTPUTS: dict[Output, str] = {
    Output.MARGIN: "z_y - logsumexp of the other logits = log p/(1-p), in nats",
    Output.LOSS: "the training loss: cross-entropy in nats, or squared error; lower is better",
    Output.LOGPROB: "log p(y|x), in nats",
    Output.LOGIT: "z_y, in nats",
    Output.PREDICTION: "the prediction of a regression, in the target's unit",
    Output.SQUARED_ERROR: "(y - prediction)^2, in the target's unit squared; lower is better",
}

_OWN_OUTPUT = {
    Task.CLASSIFICATION: Output.MARGIN,
    Task.REGRESSION: Output.PREDICTION,
    Task.LANGUAGE: Output.LOGPROB,
}

# Outputs that a better model has less of.
FALLING = frozenset({Output.LOSS, Output.SQUARED_ERROR})

_OF_CLASSES = (Output.MARGIN, Output.LOGPROB, Output.LOGIT)
_OF_NUMBERS = (Output.PREDICTION, Output.SQUARED_ERROR)


def task_of(targets: Tensor | np.ndarray[Any, Any]) -> Task:
    """Regression for floating targets, for integers classification [n] or language [n, T]."""
    sample = torch.as_tensor(targets[:0])
    if sample.dtype.is_floating_point:
        return Task.REGRESSION
    several = sample.ndim == 2 and sample.shape[1] > 1
    return Task.LANGUAGE if several else Task.CLASSIFICATION


def task_output(task: str) -> Output:
    """The output f through which a task's training loss is written."""
    return _OWN_OUTPUT[Task(task)]


def output_name(output: OutputLike) -> str:
    """The name under which scores of this output are stored.

    Raises:
        ShapeError: The name is not one of `OUTPUTS`.
    """
    if not isinstance(output, str):
        return f"callable:{getattr(output, '__name__', type(output).__name__)}"
    if output not in set(Output):
        raise ShapeError(f"unknown output {output!r}; it must be one of {', '.join(Output)}")
    return str(Output(output))


def evaluate(output: OutputLike, logits: Tensor, targets: Tensor) -> Tensor:
    """The output f of each example.

    Args:
        output: A name of `OUTPUTS`, or a function of (logits, targets) that returns one number
            for each example.
        logits: [..., K].
        targets: [...], class indices or numbers.

    Returns:
        [...], in the output's own unit.

    Raises:
        ShapeError: Shapes do not fit, a class index is outside 0..K-1, or the output does not
            exist for these targets (a margin needs two classes or more).
    """
    check_targets(logits, targets)
    return evaluate_unchecked(output, logits, targets)


def of_examples(output: OutputLike, logits: Tensor, targets: Tensor) -> Tensor:
    """The output f of each example, tokens summed: `evaluate` where a row may be a document.

    Args:
        output: A name, or a function that returns one number for each example.
        logits: [n, K], or [n, T, K].
        targets: [n], or [n, T] with `UNASKED` where no prediction is asked for.

    Returns:
        [n].

    Raises:
        ShapeError: As `evaluate`.
    """
    check_targets(logits, targets)
    return of_examples_unchecked(output, logits, targets)


def of_examples_unchecked(output: OutputLike, logits: Tensor, targets: Tensor) -> Tensor:
    """`of_examples` without looking at values, for use inside ``torch.func`` transforms."""
    if logits.ndim < 3:
        return evaluate_unchecked(output, logits, targets)
    if not isinstance(output, str):
        return _of_function(output, logits, targets, logits.shape[:-2])
    values = evaluate_unchecked(output, logits, targets.clamp(min=0))
    return torch.where(targets == UNASKED, 0.0, values).sum(-1)


def of_models(
    output: OutputLike, logits: npt.ArrayLike, targets: Any, *, task: str | None = None
) -> npt.NDArray[np.floating[Any]]:
    """The output f of each example under each of many models.

    Args:
        output: As in `of_examples`.
        logits: Of M models, [M, n, K] or [M, n, T, K].
        targets: [n] or [n, T].
        task: By default what the targets' type says.

    Returns:
        [M, n], in the logits' type.

    Raises:
        ShapeError: As `evaluate`.
    """
    asked = torch.as_tensor(targets).cpu()
    regression = (task_of(asked) if task is None else Task(task)) is Task.REGRESSION
    asked = asked.float().flatten() if regression else asked.long()
    many = torch.from_numpy(np.ascontiguousarray(logits))
    repeated = asked.repeat(len(many), *[1] * (asked.ndim - 1))
    return of_examples(output, many.flatten(0, 1), repeated).view(len(many), -1).numpy()


def evaluate_unchecked(output: OutputLike, logits: Tensor, targets: Tensor) -> Tensor:
    """`evaluate` without looking at values, for use inside ``torch.func`` transforms."""
    if not isinstance(output, str):
        return _of_function(output, logits, targets, targets.shape)
    kind = Output(output_name(output))
    regression = targets.is_floating_point()
    n_logits = logits.shape[-1]
    if regression and kind in _OF_CLASSES:
        raise ShapeError(
            f"output {kind!r} needs class targets, and these are {targets.dtype}; "
            "use 'prediction' or 'squared_error'"
        )
    if not regression and kind in _OF_NUMBERS:
        raise ShapeError(
            f"output {kind!r} needs floating targets, and these are {targets.dtype}; "
            "use 'margin', 'logprob', 'logit' or 'loss'"
        )
    if regression:
        prediction = _prediction(logits, targets)
        return prediction if kind is Output.PREDICTION else (targets - prediction) ** 2
    if n_logits < 2 and kind is not Output.LOGIT:
        raise ShapeError(
            f"output {kind!r} needs two logits or more and the model gives {n_logits}; "
            "give the model one output for each class, or floating targets"
        )
    if kind is Output.MARGIN:
        return _margin(logits, targets)
    if kind is Output.LOGIT:
        return _pick(logits, targets)
    logprob = _pick(torch.log_softmax(logits, dim=-1), targets)
    return logprob if kind is Output.LOGPROB else -logprob


def tangent(task: str, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of the training loss with respect to the task's output f.

    Returns:
        Q = -dl/df and R = d2l/df2, both [...]: 1 - p and p(1 - p) with p = p(y|x) for
        classification (f = margin; Park et al. 2023), 2(y - prediction) and 2 for regression; 1
        and 1 [n] for a document's log-probability: minus the loss itself, whose products are then
        the empirical Fisher matrix.
    """
    check_targets(logits, targets)
    if Task(task) is Task.LANGUAGE:
        ones = torch.ones_like(logits[:, 0, 0])
        return ones, ones
    if Task(task) is Task.REGRESSION:
        prediction = evaluate_unchecked(Output.PREDICTION, logits, targets)
        return 2 * (targets - prediction), torch.full_like(prediction, 2.0)
    margin = evaluate_unchecked(Output.MARGIN, logits, targets)
    # sigmoid(-f), not 1 - p: near p = 1 the difference keeps no digits.
    residual = torch.sigmoid(-margin)
    return residual, residual * torch.sigmoid(margin)


def training_loss(
    task: str,
    logits: Tensor,
    targets: Tensor,
    reduction: Literal["sum", "mean", "none"] = "sum",
) -> Tensor:
    """Cross-entropy (classification, summed over a document's tokens) or squared error.

    It checks no values, so that it can run inside ``torch.func`` transforms.
    """
    if (Task(task) is Task.REGRESSION) != targets.is_floating_point():
        raise ShapeError(
            f"task {task!r} was given targets of type {targets.dtype}; classification needs "
            "integer class indices, regression floating numbers"
        )
    losses = of_examples_unchecked(Output.LOSS, logits, targets)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def check_targets(logits: Tensor, targets: Tensor) -> None:
    """Refuse logits and targets that do not belong together.

    Raises:
        ShapeError: The leading shapes differ, a class index is outside 0..K-1 (a token's may be
            `UNASKED`), or a target is NaN or infinite.
    """
    if logits.ndim < 1 or logits.shape[:-1] != targets.shape:
        raise ShapeError(
            f"logits of shape {tuple(logits.shape)} do not fit targets of shape "
            f"{tuple(targets.shape)}; the model must return [n, outputs] for targets [n]"
        )
    if targets.numel() == 0:
        return
    if targets.is_floating_point():
        if not bool(torch.isfinite(targets).all()):
            raise ShapeError("a regression target is NaN or infinite; drop or repair that row")
        return
    asked = targets[targets != UNASKED] if logits.ndim > 2 else targets
    if asked.numel() == 0:
        raise ShapeError(f"every target is {UNASKED}; ask for at least one token")
    low, high = int(asked.min()), int(asked.max())
    if low < 0 or high >= logits.shape[-1]:
        raise ShapeError(
            f"class indices run from {low} to {high} and the model has {logits.shape[-1]} "
            f"outputs; indices must lie in 0..{logits.shape[-1] - 1}"
        )


def _of_function(
    output: OutputFunction, logits: Tensor, targets: Tensor, shape: torch.Size
) -> Tensor:
    values = output(logits, targets)
    if values.shape != shape:
        raise ShapeError(
            f"the output function returned shape {tuple(values.shape)} for targets of shape "
            f"{tuple(targets.shape)}; return one number for each example"
        )
    return values


def _margin(logits: Tensor, targets: Tensor) -> Tensor:
    classes = torch.arange(logits.shape[-1], device=logits.device)
    own = classes == targets.unsqueeze(-1)
    others = logits.masked_fill(own, -torch.inf)
    return _pick(logits, targets) - torch.logsumexp(others, dim=-1)


def _pick(values: Tensor, targets: Tensor) -> Tensor:
    return values.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)


def _prediction(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.shape[-1] != 1:
        raise ShapeError(
            f"a regression needs a model with one output and this one has {logits.shape[-1]}; "
            f"targets have shape {tuple(targets.shape)}"
        )
    return logits.squeeze(-1)
