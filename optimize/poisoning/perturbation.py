"""Inputs moved a little, labels kept: what a contributor could do who may not touch a label.

`perturb` follows the gradient of a row's effect on the targets with respect to its input, by sign
steps inside a ball of largest change and a valid range (Koh and Liang 2017). `match_gradients`
moves rows until training on them pulls the parameters where mislabelled targets would (Geiping et
al. 2021). Both look at fixed checkpoints; only retraining tells what they do.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from attribution.estimators.shortcuts import jacobian_product
from attribution.gradients.perexample import private_copy
from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.floating]

# Steps reach the edge of the ball from its middle two and a half times (Madry et al. 2018).
_REACH = 2.5
# Shares of the steps after which gradient matching slows down tenfold (Geiping et al. 2021).
_FALLS = (1 / 2.667, 1 / 1.6, 1 / 1.142)


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbed:
    """Inputs after the attack.

    Attributes:
        inputs: Float32 [m, ...].
        before: Float64 [m], effect of each row on the targets as it was.
        after: Float64 [m], and as it is now.
    """

    inputs: FloatArray
    before: npt.NDArray[np.float64]
    after: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """Inputs after gradient matching.

    Attributes:
        inputs: Float32 [m, ...].
        alignment: Cosine between the poisons' gradient and the targets', mean over checkpoints.
        before: The same of the inputs as they were.
    """

    inputs: FloatArray
    alignment: float
    before: float


def perturb(
    model: nn.Module,
    checkpoints: Sequence[Mapping[str, Any]],
    rows: tuple[FloatArray, npt.NDArray[np.integer[Any]]],
    directions: Sequence[Tensor],
    *,
    radius: float,
    low: npt.ArrayLike = -np.inf,
    high: npt.ArrayLike = np.inf,
    steps: int = 20,
    better: int = 1,
) -> Perturbed:
    """Move inputs so that training on them harms the targets most, to first order.

    Args:
        model: Maps inputs [m, ...] to logits [m, K].
        checkpoints: State dicts.
        rows: Inputs float [m, ...] and labels [m]; the labels stay.
        directions: `parameter_directions` of the targets' vectors, [p] each.
        radius: Largest change of a coordinate, in the inputs' unit.
        low: Least valid value, one for all coordinates or for each.
        high: Largest valid value.
        steps: Sign steps; the best inputs on the way are kept, row by row.
        better: +1 where a better model has more of the targets' output, -1 for a loss.

    Raises:
        ShapeError: The radius or the steps are not positive, or the arrays do not fit.
    """
    start, labels, box = _checked(rows, radius, low, high, steps)
    if len(checkpoints) != len(directions):
        raise ShapeError(
            f"there are {len(checkpoints)} checkpoints and {len(directions)} directions; give one "
            "for each"
        )
    nets = list(_nets(model, checkpoints))
    rate = _REACH * radius / steps
    moved, best = start.clone(), start.clone()
    lowest = torch.full((len(start),), torch.inf, dtype=torch.float64)
    before = lowest
    for step in range(steps + 1):
        moved.requires_grad_()
        effect = better * _effects(nets, directions, moved, labels)
        (slope,) = torch.autograd.grad(effect.sum(), moved)
        found = effect.detach().double()
        before = found if step == 0 else before
        gained = found < lowest
        lowest[gained], best[gained] = found[gained], moved.detach()[gained]
        if step < steps:
            moved = _inside(moved.detach() - rate * slope.sign(), start, radius, box)
    return Perturbed(
        inputs=best.numpy(), before=better * before.numpy(), after=better * lowest.numpy()
    )


def match_gradients(
    model: nn.Module,
    checkpoints: Sequence[Mapping[str, Any]],
    poisons: tuple[FloatArray, npt.NDArray[np.integer[Any]]],
    targets: tuple[FloatArray, int],
    *,
    radius: float,
    low: npt.ArrayLike = -np.inf,
    high: npt.ArrayLike = np.inf,
    steps: int = 100,
    restarts: int = 4,
    seed: int = 0,
) -> Matched:
    """Move inputs so that their training gradient points where mislabelled targets' would.

    Args:
        model: Maps inputs [m, ...] to logits [m, K].
        checkpoints: State dicts, an ensemble to match at.
        poisons: Inputs float [m, ...] and their labels [m], which stay.
        targets: Inputs [q, ...] and the label that the models should give them.
        radius: Largest change of a coordinate.
        low: Least valid value, one for all coordinates or for each.
        high: Largest valid value.
        steps: Adam steps on the sign of the gradient, for each restart.
        restarts: Random starts inside the ball; the best aligned is kept.
        seed: Of the starts.

    Raises:
        ShapeError: The radius, the steps or the restarts are not positive, or arrays do not fit.
    """
    start, labels, box = _checked(poisons, radius, low, high, steps)
    if restarts < 1:
        raise ShapeError(f"restarts is {restarts}; start at least once")
    nets = list(_nets(model, checkpoints))
    goal = torch.as_tensor(np.array(targets[0], dtype=np.float32))
    asked = torch.full((len(goal),), int(targets[1]))
    wanted = [_flat_gradient(net, goal, asked, create_graph=False) for net in nets]
    before = _alignment(nets, wanted, start, labels).item()
    best, highest = start, before
    for number in range(restarts):
        draw = stream(seed, Purpose.POISON, number).uniform(-radius, radius, start.shape)
        moved = _inside(start + torch.as_tensor(draw, dtype=start.dtype), start, radius, box)
        moved = _align(nets, wanted, moved, labels, start, radius, box, steps)
        reached = _alignment(nets, wanted, moved, labels).item()
        if reached > highest:
            best, highest = moved, reached
    return Matched(inputs=best.detach().numpy(), alignment=highest, before=before)


def _align(
    nets: list[nn.Module],
    wanted: list[Tensor],
    moved: Tensor,
    labels: Tensor,
    start: Tensor,
    radius: float,
    box: tuple[Tensor, Tensor],
    steps: int,
) -> Tensor:
    moved = moved.clone().requires_grad_()
    adam = torch.optim.Adam([moved], lr=0.2 * radius)
    falls = [int(share * steps) for share in _FALLS]
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, falls)
    for _ in range(steps):
        (slope,) = torch.autograd.grad(-_alignment(nets, wanted, moved, labels), moved)
        moved.grad = slope.sign()
        adam.step()
        schedule.step()
        with torch.no_grad():
            moved.copy_(_inside(moved, start, radius, box))
    return moved.detach()


def _alignment(
    nets: list[nn.Module], wanted: list[Tensor], inputs: Tensor, labels: Tensor
) -> Tensor:
    """Cosine of the summed training gradient and the wanted one, mean over nets."""
    cosines = [
        torch.cosine_similarity(_flat_gradient(net, inputs, labels), goal, dim=0)
        for net, goal in zip(nets, wanted, strict=True)
    ]
    return torch.stack(cosines).mean()


def _flat_gradient(
    net: nn.Module, inputs: Tensor, labels: Tensor, *, create_graph: bool = True
) -> Tensor:
    loss = cross_entropy(net(inputs), labels, reduction="sum")
    weights = [value for value in net.parameters() if value.requires_grad]
    found = torch.autograd.grad(loss, weights, create_graph=create_graph)
    return torch.cat([part.flatten() for part in found])


def _effects(
    nets: list[nn.Module], directions: Sequence[Tensor], inputs: Tensor, labels: Tensor
) -> Tensor:
    """tau(x, y) = u_y - sum_c p_c u_c with u = J_x d, mean over nets, [m]; see `effects`."""
    total: Any = 0.0
    for net, direction in zip(nets, directions, strict=True):
        pull = jacobian_product(net, inputs, direction, create_graph=True)
        chances = torch.softmax(net(inputs), dim=-1)
        own = pull.gather(1, labels.unsqueeze(1)).squeeze(1)
        total = total + own - (chances * pull).sum(1)
    return total / len(nets)


def _inside(moved: Tensor, start: Tensor, radius: float, box: tuple[Tensor, Tensor]) -> Tensor:
    """The nearest point of the ball and of the valid range; the start itself must be valid."""
    within = torch.minimum(torch.maximum(moved, start - radius), start + radius)
    return torch.minimum(torch.maximum(within, box[0]), box[1])


def _nets(model: nn.Module, checkpoints: Sequence[Mapping[str, Any]]) -> Iterator[nn.Module]:
    for state in checkpoints:
        yield private_copy(model, state, device="cpu", dtype=torch.float32)


def _checked(
    rows: tuple[FloatArray, npt.NDArray[np.integer[Any]]],
    radius: float,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    steps: int,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    inputs = torch.as_tensor(np.array(rows[0], dtype=np.float32))
    labels = torch.as_tensor(np.asarray(rows[1], dtype=np.int64))
    if len(inputs) == 0 or labels.shape != (len(inputs),):
        raise ShapeError(
            f"there are {len(inputs)} inputs and labels of shape {tuple(labels.shape)}; give one "
            "label for each input, and at least one"
        )
    if not 0 < radius < np.inf or steps < 1:
        raise ShapeError(f"radius is {radius} and steps {steps}; both must be positive")
    least, most = (torch.as_tensor(np.asarray(edge, dtype=np.float32)) for edge in (low, high))
    outside = (inputs < least) | (inputs > most)
    if bool(outside.any()):
        row = int(outside.flatten(1).any(1).nonzero()[0])
        raise ShapeError(f"input {row} lies outside the valid range; widen low and high")
    return inputs, labels, (least, most)
