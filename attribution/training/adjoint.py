"""One optimizer step of one model and its adjoint, by hand, on flat vectors.

A state is (parameters [p], slots [p] each); its adjoints, one for each of Q outputs, are [Q, p].
The gradient g of a step enters as a number like any other: what passes through it, a product with
the Hessian, is added by whoever can differentiate the loss (`attribution.training.weighted`).
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attribution.training.recipe import Optimizer, Recipe


class State(NamedTuple):
    """What a step reads and writes: parameters and the optimizer's slots, each [..., p]."""

    params: Tensor
    slots: tuple[Tensor, ...]


class Rule(Protocol):
    """A rule that moves parameters, and the way back.

    Steps are 0-based; the rate is the step's learning rate.
    """

    def start(self, params: Tensor) -> State:
        """The state before the first step."""

    def move(self, before: State, gradient: Tensor, rate: float, step: int) -> State:
        """The state after a step along this gradient."""

    def pull(
        self, after_bar: State, after: State, gradient: Tensor, rate: float, step: int
    ) -> tuple[Tensor, State]:
        """The adjoint of a step.

        Args:
            after_bar: Adjoints [Q, p] of the state after the step.
            after: The state after the step.
            gradient: What the step followed, [p].
            rate: Its learning rate.
            step: Its number.

        Returns:
            Adjoints [Q, p] of the gradient, and those of the state before the step for a gradient
            that stays as it is.
        """


class SgdRule:
    """As ``torch.optim.SGD``: decay joins the gradient, heavy ball or Nesterov, no dampening."""

    def __init__(self, recipe: Recipe) -> None:
        self.momentum, self.decay = recipe.momentum, recipe.weight_decay
        self.nesterov = recipe.nesterov

    def start(self, params: Tensor) -> State:
        """Velocity 0, or no slot without momentum."""
        return State(params, (torch.zeros_like(params),) if self.momentum else ())

    def move(self, before: State, gradient: Tensor, rate: float, step: int) -> State:  # noqa: ARG002
        """One step."""
        total = torch.add(gradient, before.params, alpha=self.decay)
        if not self.momentum:
            return State(torch.sub(before.params, total, alpha=rate), ())
        velocity = torch.add(total, before.slots[0], alpha=self.momentum)
        along = torch.add(total, velocity, alpha=self.momentum) if self.nesterov else velocity
        return State(torch.sub(before.params, along, alpha=rate), (velocity,))

    def pull(
        self,
        after_bar: State,
        after: State,  # noqa: ARG002 - the step is linear in all but the gradient
        gradient: Tensor,  # noqa: ARG002
        rate: float,
        step: int,  # noqa: ARG002
    ) -> tuple[Tensor, State]:
        """The adjoint of one step."""
        along = -rate * after_bar.params
        slots: tuple[Tensor, ...] = ()
        total = along
        if self.momentum:
            share = self.momentum if self.nesterov else 1.0
            velocity = torch.add(after_bar.slots[0], along, alpha=share)
            total = along + velocity if self.nesterov else velocity
            slots = (self.momentum * velocity,)
        return total, State(torch.add(after_bar.params, total, alpha=self.decay), slots)


class AdamWRule:
    """As ``torch.optim.AdamW`` (Loshchilov and Hutter 2019): two moments, decoupled decay."""

    def __init__(self, recipe: Recipe) -> None:
        self.betas, self.eps, self.decay = recipe.betas, recipe.eps, recipe.weight_decay

    def start(self, params: Tensor) -> State:
        """Both moments 0."""
        return State(params, (torch.zeros_like(params), torch.zeros_like(params)))

    def move(self, before: State, gradient: Tensor, rate: float, step: int) -> State:
        """One step."""
        beta1, beta2 = self.betas
        first = before.slots[0].lerp(gradient, 1 - beta1)
        second = torch.addcmul(beta2 * before.slots[1], gradient, gradient, value=1 - beta2)
        along = first / self._scale(second, step)
        kept = (1 - rate * self.decay) * before.params
        return State(kept.sub_(along, alpha=rate / (1 - beta1 ** (step + 1))), (first, second))

    def pull(
        self, after_bar: State, after: State, gradient: Tensor, rate: float, step: int
    ) -> tuple[Tensor, State]:
        """The adjoint of one step."""
        beta1, beta2 = self.betas
        first, second = after.slots
        scale = self._scale(second, step)
        along = after_bar.params * (-rate / (1 - beta1 ** (step + 1)))
        first_bar = after_bar.slots[0] + along / scale
        # The root has no derivative at 0, where the gradient and hence the first moment have
        # been 0 so far: there the step does not depend on the second moment.
        slope = torch.where(second > 0, 0.5 * first / (second.sqrt() * scale**2), 0.0)
        second_bar = after_bar.slots[1] - along * (self._root(step) * slope)
        gradient_bar = (1 - beta1) * first_bar + (2 * (1 - beta2)) * gradient * second_bar
        before_bar = State(
            (1 - rate * self.decay) * after_bar.params, (beta1 * first_bar, beta2 * second_bar)
        )
        return gradient_bar, before_bar

    def _scale(self, second: Tensor, step: int) -> Tensor:
        return second.sqrt().mul_(self._root(step)).add_(self.eps)

    def _root(self, step: int) -> float:
        return 1 / math.sqrt(1 - self.betas[1] ** (step + 1))


def rule_of(recipe: Recipe) -> Rule:
    """The rule that a recipe names."""
    return SgdRule(recipe) if recipe.optimizer == Optimizer.SGD else AdamWRule(recipe)
