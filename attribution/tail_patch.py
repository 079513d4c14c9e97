"""Tail patch: what one more step on a row does to a query, from the weights that training ended at.

    patch[q, i] = f_q(theta - rate grad l_i(theta)) - f_q(theta)

Chang et al. (2025) judge retrieved proponents by it. No model is retrained, so hundreds of pairs
cost seconds; but it asks what a row would teach *now*, of a model that has seen it already, and not
what it taught. As the rate falls, patch / rate becomes -<grad f_q, grad l_i>, the score of GradDot.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attribution.devices import resolve
from attribution.gradients.perexample import private_copy
from attribution.outputs import Output, OutputLike, of_examples, task_of, task_output
from attribution.rows import Rows, call, to
from schemas.errors import ShapeError


def tail_patch(
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    train: Any,
    queries: Any,
    rows: npt.ArrayLike,
    rate: float,
    output: OutputLike | None = None,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> npt.NDArray[np.float64]:
    """Change of each query's output by a gradient step on each of its rows, one row at a time.

    Args:
        model: Maps rows to logits; copied, in eval mode.
        state: The final checkpoint.
        train: (inputs [n, ...], targets), or a map-style Dataset.
        queries: The same for the m queries.
        rows: Intp [m, k], the training rows of each query.
        rate: Length of the step: the gradient of the row's summed loss is multiplied with it.
        output: What is asked of the queries; by default the task's own.
        device: "auto", "cpu" or "cuda".
        dtype: Of the weights.

    Returns:
        Float64 [m, k], in the output's unit; > 0 means that the step raised it.

    Raises:
        ShapeError: `rows` does not fit, or the rate is not above 0.
        CheckpointError: The state does not fit the model.
    """
    given, asked = Rows(train, "train"), Rows(queries, "queries")
    wanted = np.asarray(rows, dtype=np.intp)
    if wanted.ndim != 2 or len(wanted) != len(asked):
        raise ShapeError(f"rows have shape {wanted.shape}; give [{len(asked)}, k]")
    if wanted.size and (wanted.min() < 0 or wanted.max() >= len(given)):
        raise ShapeError(f"rows must lie in 0..{len(given) - 1}")
    if not (np.isfinite(rate) and rate > 0):
        raise ShapeError(f"rate is {rate}; give a number above 0")
    place = resolve(device)
    own = private_copy(model, state, device=place, dtype=dtype)
    weights = [value for value in own.parameters() if value.requires_grad]
    kept = [value.detach().clone() for value in weights]
    kind = output if output is not None else task_output(task_of(asked.batch(0, 1)[1]))

    def values(chosen: npt.NDArray[np.intp], source: Rows, of: OutputLike) -> Tensor:
        found = []
        for row in chosen.tolist():
            inputs, targets = source.batch(row, row + 1)
            if targets.is_floating_point():
                targets = targets.to(dtype)
            found.append(of_examples(of, call(own, to(inputs, place, dtype)), targets.to(place)))
        return torch.cat(found)

    with torch.no_grad():
        before = values(np.arange(len(asked)), asked, kind).double().cpu().numpy()
    patch = np.empty(wanted.shape)
    for row in np.unique(wanted):
        users, columns = np.nonzero(wanted == row)
        loss = values(np.array([row]), given, Output.LOSS).sum()
        steps = torch.autograd.grad(loss, weights, allow_unused=True)
        with torch.no_grad():
            for weight, step in zip(weights, steps, strict=True):
                if step is not None:
                    weight.sub_(step, alpha=rate)
            patch[users, columns] = values(users, asked, kind).double().cpu().numpy()
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
    return patch - before[:, None]
