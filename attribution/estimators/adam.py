"""What Adam makes of a row's gradient g, given the moments m and v that it kept.

With m' = b1 m + (1 - b1) g and v' = b2 v + (1 - b2) g^2, after t steps:

    "less"      m' / sqrt(v' + eps)                                    (Xia et al. 2024, their code)
    "step"      m' / (1 - b1^(t+1)) / (sqrt(v' / (1 - b2^(t+1))) + eps)   the optimiser's own step
    "diagonal"  g / (sqrt(v) + eps)                                    linear in the gradient

LESS keeps eps inside the root and corrects no bias. Its m is the same for every row: it shifts all
scores of a query nearly alike. On the digits MLP the second moments helped most inside a cosine
(LDS 0.29, raw 0.20; of inner products 0.31 and 0.27).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from attribution.gradients import layout_of
from schemas.errors import CheckpointError, ShapeError

BETAS = (0.9, 0.999)
EPS = 1e-8


class Preconditioner(StrEnum):
    """Which of the three."""

    LESS = "less"
    STEP = "step"
    DIAGONAL = "diagonal"


@dataclass(frozen=True, kw_only=True, eq=False)
class Adam:
    """The optimiser at one checkpoint; call it on blocks of gradients.

    Attributes:
        first: m [p], in the order of the flat gradient.
        second: v [p].
        step: Steps t done.
        kind: A `Preconditioner`.
        betas: b1 and b2.
        eps: Added in or beside the root.
    """

    first: Tensor
    second: Tensor
    step: float
    kind: str
    betas: tuple[float, float]
    eps: float

    def __call__(self, columns: slice, block: Tensor) -> Tensor:
        """What takes the place of gradients [B, columns]."""
        first, second = self.first[columns], self.second[columns]
        if self.kind == Preconditioner.DIAGONAL:
            return block / (second.sqrt() + self.eps)
        b1, b2 = self.betas
        first = b1 * first + (1 - b1) * block
        second = b2 * second + (1 - b2) * block**2
        if self.kind == Preconditioner.LESS:
            return first / (second + self.eps).sqrt()
        root = (second / (1 - b2 ** (self.step + 1))).sqrt() + self.eps
        return first / (1 - b1 ** (self.step + 1)) / root


def read_states(
    states: Sequence[Mapping[str, Any]],
    model: nn.Module,
    *,
    n_checkpoints: int,
    kind: str,
    betas: tuple[float, float] | None,
    eps: float | None,
    device: str,
    dtype: torch.dtype,
) -> list[Adam]:
    """The optimiser at each checkpoint, from what it kept there.

    Args:
        states: One for each checkpoint: ``{"exp_avg": {name: tensor}, "exp_avg_sq": {name:
            tensor}, "step": t}``, as `TrainingState.moments` gives, or the ``state_dict()`` of a
            `torch.optim` Adam over the model's parameters in their order.
        model: Whose parameters the names are.
        n_checkpoints: How many there must be.
        kind: "less", "step" or "diagonal".
        betas: b1 and b2; by default the state dict's own, else 0.9 and 0.999.
        eps: By default the state dict's own, else 1e-8.
        device: "cpu" or "cuda".
        dtype: Of the gradients.

    Raises:
        ShapeError: There are not as many as checkpoints, or an option is out of range.
        CheckpointError: A moment is missing, of another shape, NaN, infinite or negative.
    """
    if kind not in set(Preconditioner):
        raise ShapeError(f"unknown preconditioner {kind!r}; say {', '.join(Preconditioner)}")
    if len(states) != n_checkpoints:
        raise ShapeError(
            f"there are {len(states)} optimizer_states and {n_checkpoints} checkpoints; give the "
            "optimiser's state at each checkpoint, in the same order"
        )
    found = []
    for number, state in enumerate(states):
        group = (state.get("param_groups") or [{}])[0]
        named = _by_name(state, model, number) if "state" in state else state
        b1, b2 = betas or group.get("betas", BETAS)
        if not (0 <= b1 < 1 and 0 <= b2 < 1):
            raise ShapeError(f"betas are {(b1, b2)}; each must lie in [0, 1)")
        step = float(named.get("step", 0))
        if kind == Preconditioner.STEP and step < 1:
            raise CheckpointError(
                f"optimizer state {number} does not say how many steps were done; add 'step', or "
                "use preconditioner='less'"
            )
        first, second = (
            _flat(named, moment, model, number).to(device, dtype)
            for moment in ("exp_avg", "exp_avg_sq")
        )
        if bool((second < 0).any()):
            raise CheckpointError(
                f"exp_avg_sq of optimizer state {number} has negative entries; it holds squares"
            )
        found.append(
            Adam(
                first=first,
                second=second,
                step=step,
                kind=kind,
                betas=(float(b1), float(b2)),
                eps=float(group.get("eps", EPS) if eps is None else eps),
            )
        )
    return found


def _by_name(state: Mapping[str, Any], model: nn.Module, number: int) -> dict[str, Any]:
    """Moments by the parameters' names, from a `torch.optim` state dict, which numbers them."""
    order = [place for group in state["param_groups"] for place in group["params"]]
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    if len(order) != len(names):
        names = [name for name, _ in model.named_parameters()]
    if len(order) != len(names):
        raise CheckpointError(
            f"optimizer state {number} has {len(order)} parameters and the model {len(names)}; "
            "give the state of an optimiser over all parameters of this model"
        )
    kept = {name: state["state"].get(place, {}) for place, name in zip(order, names, strict=True)}
    steps = [float(entry["step"]) for entry in kept.values() if "step" in entry]
    return {
        "step": max(steps, default=0.0),
        **{
            moment: {name: entry[moment] for name, entry in kept.items() if moment in entry}
            for moment in ("exp_avg", "exp_avg_sq")
        },
    }


def _flat(state: Mapping[str, Any], moment: str, model: nn.Module, number: int) -> Tensor:
    layout, named = layout_of(model), state.get(moment, {})
    parts = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in named:
            raise CheckpointError(
                f"optimizer state {number} has no {moment} of {name!r}; give the state of Adam "
                "after a step or more, or {'exp_avg': {name: tensor}, 'exp_avg_sq': {...}}"
            )
        value = torch.as_tensor(named[name]).detach()
        if value.shape != shape or not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{moment} of {name!r} in optimizer state {number} has shape "
                f"{tuple(value.shape)} for {tuple(shape)}, or holds NaN; give that of this model"
            )
        parts.append(value.flatten())
    return torch.cat(parts)
