"""What each method lowers: one number from one model's logits on one batch.

Every loss takes (logits, labels, forgotten, reference); tokens of a document are summed, rows are
averaged, as the training loss does.
"""

import torch
from torch import Tensor

from attribution.outputs import UNASKED, Output, of_examples_unchecked, training_loss
from optimize.unlearning.tuning import Loss


def own_loss(task: str, sign: float = 1.0) -> Loss:
    """The training loss, or minus it."""

    def loss(logits: Tensor, labels: Tensor, _forgotten: Tensor, _reference: Tensor) -> Tensor:
        return sign * training_loss(task, logits, labels, "mean")

    return loss


def difference(task: str, retain: float) -> Loss:
    """Minus the forgotten rows' mean loss, plus that of the others."""

    def loss(logits: Tensor, labels: Tensor, forgotten: Tensor, _reference: Tensor) -> Tensor:
        losses = training_loss(task, logits, labels, "none")
        return -_mean(losses, forgotten) + retain * _mean(losses, ~forgotten)

    return loss


def preference(task: str, beta: float, retain: float) -> Loss:
    """NPO; the reference is each row's log-probability before unlearning, [b]."""

    def loss(logits: Tensor, labels: Tensor, forgotten: Tensor, reference: Tensor) -> Tensor:
        logprob = of_examples_unchecked(Output.LOGPROB, logits, labels)
        lost = -(2 / beta) * torch.nn.functional.logsigmoid(-beta * (logprob - reference))
        others = training_loss(task, logits, labels, "none")
        return _mean(lost, forgotten) + retain * _mean(others, ~forgotten)

    return loss


def away(temperature: float) -> Loss:
    """Minus the divergence from the teacher, whose logits are the reference."""

    def loss(logits: Tensor, labels: Tensor, _forgotten: Tensor, reference: Tensor) -> Tensor:
        return -_divergence(logits, reference, labels, temperature)

    return loss


def near(task: str, temperature: float, own: float, distillation: float) -> Loss:
    """Cross-entropy and divergence from the teacher."""

    def loss(logits: Tensor, labels: Tensor, _forgotten: Tensor, reference: Tensor) -> Tensor:
        plain = training_loss(task, logits, labels, "mean")
        return own * plain + distillation * _divergence(logits, reference, labels, temperature)

    return loss


def matching(logits: Tensor, labels: Tensor, _forgotten: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference from the reference's logits, over classes, tokens and rows."""
    squares = ((logits - reference) ** 2).mean(-1)
    if logits.ndim < 3:
        return squares.mean()
    asked = (labels != UNASKED).to(squares.dtype)
    return (squares * asked).sum() / asked.sum().clamp(min=1.0)


def _divergence(logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softened predictions, tokens summed, rows averaged."""
    ours = torch.log_softmax(logits / temperature, dim=-1)
    theirs = torch.log_softmax(teacher / temperature, dim=-1)
    values = (theirs.exp() * (theirs - ours)).sum(-1) * temperature**2
    if logits.ndim < 3:
        return values.mean()
    return torch.where(labels == UNASKED, 0.0, values).sum(-1).mean()


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    weights = chosen.to(values.dtype)
    return (values * weights).sum() / weights.sum().clamp(min=1.0)
