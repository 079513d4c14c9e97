"""How a model is trained: optimizer, learning rate in time, epochs and batches.

A recipe names no data and no model. Time is counted in steps of one model: a model with a smaller
subset takes fewer steps, and its schedule ends with its own last step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from attribution.streams import Purpose, stream
from schemas.errors import RecipeError


class Optimizer(StrEnum):
    """Rules that move the parameters."""

    SGD = "sgd"
    ADAMW = "adamw"


class Schedule(StrEnum):
    """How the learning rate falls after the warm-up."""

    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"
    STEP = "step"


STEP_MILESTONES = (0.5, 0.75)
STEP_FACTOR = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A training recipe; the loss is the mean over each batch.

    Args:
        optimizer: ``sgd`` (weight decay is added to the gradient, as in ``torch.optim.SGD``) or
            ``adamw`` (weight decay is decoupled; Loshchilov and Hutter 2019).
        lr: Peak learning rate.
        momentum: Momentum of sgd, without dampening.
        nesterov: Nesterov's form of the momentum.
        weight_decay: Per step, on every trainable parameter.
        betas: Decay of the two moments of adamw.
        eps: Added to the root of adamw's second moment.
        schedule: ``constant``; ``cosine`` or ``linear`` down to zero; ``step``, times 0.1 at half
            and again at three quarters of the steps that follow the warm-up.
        warmup: Epochs over which the learning rate climbs linearly to its peak.
        epochs: Passes over the model's own subset.
        batch_size: Rows in a step; the last batch of an epoch may be smaller, and is used.

    Raises:
        RecipeError: A value is out of range.
    """

    optimizer: str = Optimizer.SGD
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: str = Schedule.CONSTANT
    warmup: float = 0.0
    epochs: int = 30
    batch_size: int = 50

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, tuple(Optimizer))
        _one_of("schedule", self.schedule, tuple(Schedule))
        positive = {
            "lr": self.lr,
            "eps": self.eps,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
        }
        for name, value in positive.items():
            if not (math.isfinite(value) and value > 0):
                raise RecipeError(f"{name} = {value}; it must be a number above 0")
        for name, value in {"weight_decay": self.weight_decay, "warmup": self.warmup}.items():
            if not (math.isfinite(value) and value >= 0):
                raise RecipeError(f"{name} = {value}; it must be 0 or more")
        for value in (self.momentum, *self.betas):
            if not 0 <= value < 1:
                raise RecipeError(f"momentum and betas must lie in [0, 1); found {value}")
        if self.nesterov and self.optimizer == Optimizer.SGD and self.momentum == 0:
            raise RecipeError("nesterov = true needs momentum above 0")
        if self.warmup >= self.epochs:
            raise RecipeError(
                f"warmup = {self.warmup:g} epochs of {self.epochs}; write fewer than epochs"
            )

    def steps_per_epoch(self, n_rows: int) -> int:
        """Batches in one pass over a subset of this many rows."""
        return -(-n_rows // self.batch_size)

    def rate(self, step: int, n_rows: int) -> float:
        """The learning rate of a 0-based step of a model with ``n_rows`` training rows."""
        per_epoch = self.steps_per_epoch(n_rows)
        warm = round(self.warmup * per_epoch)
        if step < warm:
            return self.lr * (step + 1) / warm
        return self.lr * self._decay((step - warm) / (per_epoch * self.epochs - warm))

    def _decay(self, elapsed: float) -> float:
        match self.schedule:
            case Schedule.COSINE:
                return 0.5 * (1 + math.cos(math.pi * elapsed))
            case Schedule.LINEAR:
                return 1 - elapsed
            case Schedule.STEP:
                return STEP_FACTOR ** sum(elapsed >= milestone for milestone in STEP_MILESTONES)
            case _:
                return 1.0


def exposures(recipe: Recipe, n_rows: int, epochs: Sequence[int]) -> list[float]:
    """How far each snapshot's gradients stand for the steps since the one before.

    The learning rate that one row's gradient is multiplied with, summed over the epochs up to the
    snapshot and since the last, divided by the batch size (the loss is a mean) and by 1 - momentum
    (each step is taken 1 / (1 - momentum) times in the end): TracIn's weights in output units
    (Pruthi et al. 2020). Of adamw, whose steps are no multiple of the gradient, only the rates.

    Args:
        recipe: The recipe of the run.
        n_rows: Rows that were trained on.
        epochs: Epochs after which snapshots were taken, ascending.
    """
    per_epoch = recipe.steps_per_epoch(n_rows)
    share = float(recipe.batch_size * per_epoch)
    if recipe.optimizer == Optimizer.SGD:
        share *= 1 - recipe.momentum
    bounds = [0, *epochs]
    return [
        sum(recipe.rate(step, n_rows) for step in range(first * per_epoch, last * per_epoch))
        / share
        for first, last in pairwise(bounds)
    ]


def epoch_order(seed: int, epoch: int, n_rows: int) -> npt.NDArray[np.int64]:
    """The order in which a model visits its own rows: a pure function of (seed, epoch, n_rows).

    17 us for 700 rows, 2 % of a stacked training; hence no cleverer generator.
    """
    return stream(seed, Purpose.ORDER, epoch).permutation(n_rows)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise RecipeError(f"{name} = {value!r}; it must be one of {', '.join(known)}")
