"""Fine-tuning of many models at once on shared batches, with targets of their own.

A `Table` holds the rows that models are tuned on; an epoch is a list of steps, each some rows of
the table and a loss. Adam and SGD work number by number, so M stacked models move as they would
alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from attribution.streams import Purpose, stream
from optimize.unlearning.models import ModelStack, States
from optimize.unlearning.recipes import Tuning
from schemas.errors import TrainingDiverged

# (logits [b, K] or [b, T, K], labels, forgotten bool [b], reference) to one number, of one model.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Step = tuple[Tensor, Loss]


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Rows to tune on.

    Attributes:
        inputs: [r, ...].
        labels: [r] or [r, T].
        forgotten: Bool [r], the row is to be forgotten.
        reference: [M, r, ...], what each model is compared with; [M, r] of zeros where nothing is.
    """

    inputs: Tensor
    labels: Tensor
    forgotten: Tensor
    reference: Tensor

    def __len__(self) -> int:
        return len(self.inputs)


def fine_tune(
    stack: ModelStack, table: Table, epochs: Sequence[Sequence[Step]], tuning: Tuning
) -> tuple[ModelStack, float]:
    """The tuned models, and the examples that each of them processed.

    Args:
        stack: Where to start.
        table: Rows.
        epochs: The steps of each epoch.
        tuning: Optimizer, learning rate and its decay.

    Raises:
        TrainingDiverged: A parameter became NaN or infinite.
    """
    params = {name: value.clone() for name, value in stack.params.items()}
    moving = stack.with_params(params)
    optimizer = _optimizer(tuning, list(params.values()))
    processed = 0
    for number, epoch in enumerate(epochs):
        for group in optimizer.param_groups:
            group["lr"] = tuning.lr * tuning.decay**number
        for rows, loss in epoch:
            gradient = _gradient(moving, table, rows, loss)
            for name, value in params.items():
                value.grad = gradient[name]
            optimizer.step()
            processed += len(rows)
    for name, value in params.items():
        value.grad = None
        bad = ~torch.isfinite(value.flatten(1)).all(1)
        if bool(bad.any()):
            raise TrainingDiverged(
                f"{name} of model {int(bad.nonzero()[0, 0])} became NaN or infinite while it "
                "unlearned; lower the learning rate"
            )
    return moving, float(processed)


def batches(
    rows: Tensor, batch_size: int, *, seed: int, epoch: int, part: int = 0
) -> Iterator[Tensor]:
    """Rows in an order of their own for (seed, epoch, part), cut into batches."""
    order = stream(seed, Purpose.FORGET, 2, epoch, part).permutation(len(rows))
    yield from rows[torch.from_numpy(order)].split(batch_size)


def _gradient(stack: ModelStack, table: Table, rows: Tensor, loss: Loss) -> States:
    inputs, labels = table.inputs[rows], table.labels[rows]
    forgotten = table.forgotten[rows]

    def of_model(params: States, fixed: States, reference: Tensor) -> Tensor:
        return loss(stack.call(params, fixed, inputs), labels, forgotten, reference)

    found: States = stack.each(grad(of_model), table.reference[:, rows])
    return found


def _optimizer(tuning: Tuning, params: list[Tensor]) -> torch.optim.Optimizer:
    if tuning.optimizer == "adam":
        return torch.optim.Adam(params, lr=tuning.lr, weight_decay=tuning.weight_decay)
    return torch.optim.SGD(
        params, lr=tuning.lr, momentum=tuning.momentum, weight_decay=tuning.weight_decay
    )
