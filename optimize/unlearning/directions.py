"""What forgetting does to every logit of every input: one direction in the space of parameters.

TRAK's score of a training row is linear in the query's gradient, and so is a sum of scores:

    sum_{i in F} tau[q, i] = grad f_q . w,   w = P K^-1 sum_{i in F} Q_i phi_i,

with the features phi, residuals Q and damped curvature K of the scores (`attribution.estimators.
trak`). So the unlearned logits z'(x) = z(x) - a J(x) w of any input cost one Jacobian-vector
product, and no score is formed. theta - w is the projected influence step itself.

Where the training loss is a mean, fewer rows also carry less weight decay: removing row i removes
grad l_i + wd theta, and at the minimum wd theta is minus the mean of all grad l. So a forget set is
best read against a random one of its size: `centred` subtracts |F| times the mean row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribution.estimators.features import featurize
from attribution.estimators.gaussnewton import GGN_CLASSES
from attribution.estimators.kernel import (
    Curvature,
    Gram,
    Inverse,
    leverage_factor,
    working_dtype,
)
from attribution.models import ModelLike
from attribution.outputs import task_of, task_output
from attribution.projection import Projection, ProjectionKind, backproject
from attribution.rows import Rows
from optimize.unlearning.models import ModelStack, States
from optimize.unlearning.request import Arrays, forget_rows
from schemas.errors import ShapeError


@dataclass(frozen=True, kw_only=True, eq=False)
class Directions:
    """w of several forget sets at each checkpoint.

    Attributes:
        flat: Float32 [sets, C, p], in the order of the flat gradient.
        sizes: Rows of each forget set.
        passes: Forward and backward passes over the training rows that each checkpoint took.
        n_train: Training rows.
    """

    flat: Tensor
    sizes: tuple[int, ...]
    passes: int
    n_train: int

    @property
    def cost(self) -> float:
        """Examples processed at each checkpoint, for all forget sets together."""
        return float(self.passes * self.n_train)


def forget_directions(
    model: ModelLike,
    states: Mapping[str, Tensor],
    *,
    train: Arrays,
    forget: Sequence[npt.ArrayLike],
    task: str | None = None,
    curvature: str = Curvature.GGN,
    damping: float = 1.0,
    leverage: bool = False,
    centred: bool = False,
    newton: bool = False,
    projection: Projection | Mapping[str, Any] | None = None,
    ggn_classes: int = GGN_CLASSES,
    device: str = "auto",
    seed: int = 0,
) -> Directions:
    """The direction of each forget set at each checkpoint; features are made once for all sets.

    Args:
        model: A module, or a factory of it.
        states: C checkpoints, stacked [C, ...].
        train: Inputs [n, ...] and targets [n].
        forget: One forget set or more: row numbers, or bool [n].
        task: By default what the targets' type says.
        curvature: As `attribution.estimators.trak`; ``"ggn"`` is the closest to output units.
        damping: rho, as the scores'.
        leverage: A Newton step for each row alone, as the scores'.
        centred: Sum of scores less that of a mean forget set of the same size. Without it, removing
            10 % of the digits at random is said to cost 0.33 of the margin, and costs 0.04.
        newton: K of the rows that stay (Guo et al. 2020; of "ggn" only the margin's part leaves),
            at the price of a solve [|F|, |F|]. Rows alike hold one another in place, which K of all
            rows does not see: on digits, predicted and retrained change of the forgotten rows
            correlate 0.94 to 0.98 instead of 0.79 to 0.90, and the slope is 0.8 to 1.0 instead of 4
            to 7 (damping 0.3; random rows, half a class).
        projection: As the scores'; "auto" is refused, for it names no matrix.
        ggn_classes: As the scores'.
        device: auto, cpu or cuda.
        seed: Seed of the projection; checkpoint c has the scores' projection of checkpoint c.

    Raises:
        ShapeError: A forget set is empty, holds rows that are not there or all of them; or an
            option is out of range.
    """
    stack = ModelStack.of(model, states, device=device)
    kind = task_of(torch.as_tensor(train[1])) if task is None else task
    sketcher = projection if isinstance(projection, Projection) else Projection(**projection or {})
    if sketcher.kind in (ProjectionKind.AUTO, ProjectionKind.FACTORED, ProjectionKind.HADAMARD):
        raise ShapeError(
            f"projection {sketcher.kind!r} cannot be turned back into parameters here; use "
            "'sparse', or 'none' for a small model"
        )
    rows = Rows(train, "train")
    members = np.zeros((len(forget), len(rows)), dtype=bool)
    for mask, own in zip(members, forget, strict=True):
        mask[forget_rows(own, len(rows))] = True
    ggn = curvature == Curvature.GGN
    found = []
    for checkpoint in range(len(stack)):
        features = featurize(
            stack.model,
            {name: value.cpu() for name, value in stack.state(checkpoint).items()},
            rows,
            output=str(task_output(kind)),
            task=kind,
            projection=sketcher,
            seed=seed,
            checkpoint=checkpoint,
            device=stack.device.type,
            ggn=ggn,
            ggn_classes=ggn_classes,
        )
        wide = working_dtype(None, damping, features)
        gram = Gram(features, curvature=curvature, dtype=wide)
        inverse = gram.factor(damping)
        weights = features.residual.to(wide)
        if leverage:
            weights = weights * leverage_factor(gram, inverse)
        asked = torch.from_numpy(members).to(weights)
        if centred:
            asked = asked - asked.mean(1, keepdim=True)
        asked = asked * weights
        pulls = asked @ gram.phi
        solved = inverse.apply(pulls)
        if newton:
            groups = [gram.weighted[torch.from_numpy(mask)] for mask in members]
            pairs = zip(groups, solved, strict=True)
            solved = torch.stack([without_rows(inverse, group, own) for group, own in pairs])
        p = sum(value[0].numel() for value in stack.params.values())
        found.append(
            torch.stack(
                [backproject(v, sketcher, seed=seed, checkpoint=checkpoint, p=p) for v in solved]
            )
        )
    return Directions(
        flat=torch.stack(found, dim=1).float().cpu(),
        sizes=tuple(int(count) for count in members.sum(axis=1)),
        passes=1 + (ggn_classes if ggn else 0),
        n_train=len(rows),
    )


def without_rows(inverse: Inverse, group: Tensor, solved: Tensor) -> Tensor:
    """(K - Psi^T Psi)^-1 b from K^-1 b [k], for rows Psi [g, k] that leave K (Woodbury).

    With leverages h = Psi K^-1 Psi^T it is K^-1 b + K^-1 Psi^T (I - h)^-1 Psi K^-1 b.
    """
    inner = inverse.apply(group)
    room = torch.eye(len(group), dtype=torch.float64) - (inner @ group.T).double().cpu()
    pulled = torch.linalg.solve(room, (group @ solved).double().cpu())
    return solved + pulled.to(inner) @ inner


def unlearned_logits(
    model: ModelLike,
    states: Mapping[str, Tensor],
    inputs: Tensor | npt.NDArray[Any],
    directions: Directions,
    *,
    forget_set: int = 0,
    scale: float | npt.ArrayLike = 1.0,
    shared: bool = False,
    device: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Logits of each model, and what they would be without the forget set.

    Args:
        model: A module, or a factory of it.
        states: The checkpoints of the directions, [C, ...].
        inputs: Any inputs [n, ...], of the training set or not.
        directions: Of `forget_directions`.
        forget_set: Which of its sets.
        scale: a, from calibration (`removal_slopes`): one number, or one for each input.
        shared: Take the mean change over checkpoints for every model, not each its own.
        device: auto, cpu or cuda.

    Returns:
        Two tensors [C, n, K] (or [C, n, T, K]).

    Raises:
        ShapeError: The directions belong to other checkpoints.
    """
    stack = ModelStack.of(model, states, device=device)
    if directions.flat.shape[1] != len(stack):
        raise ShapeError(
            f"directions of {directions.flat.shape[1]} checkpoints do not fit {len(stack)} models; "
            "make them from these states"
        )
    return shifted(stack, torch.as_tensor(inputs), directions.flat[forget_set], scale, shared)


def shifted(
    stack: ModelStack, inputs: Tensor, flat: Tensor, scale: Any, shared: bool
) -> tuple[Tensor, Tensor]:
    """Logits and z - a J w of a stack, for directions [M, p]."""
    along: States = stack.split(flat)
    logits, change = stack.pushed(inputs, along)
    if shared:
        change = change.mean(0, keepdim=True).expand_as(logits)
    factor = torch.as_tensor(scale, dtype=logits.dtype, device=logits.device)
    if factor.ndim:
        factor = factor.view(1, -1, *[1] * (logits.ndim - 2))
    return logits, logits - factor * change
