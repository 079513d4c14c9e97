"""Stacked parameters, and the rules that move them.

M models of p parameters live in one flat buffer, tensor-major: [M, *shape0], [M, *shape1], ... so
that each parameter is one contiguous batch for a batched product, and one update is one pass over
the whole. Only a prefix of m <= M models takes a step (models are sorted by subset size).
Compiled code, which trains one model after the other, keeps each in one row of its own layout.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.training.recipe import Optimizer, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the tensors of one model lie in its row: offset and strides by name.

    Args:
        size: Numbers in a row; those that no tensor covers stay zero.
        places: Offset and strides of each tensor.
    """

    size: int
    places: Mapping[str, tuple[int, tuple[int, ...]]]


class Stack:
    """M sets of tensors, all zero at first.

    Args:
        shapes: Shape of each tensor of one model, by its name.
        n_models: M.
        dtype: Of every tensor.
        device: Where they live.
        layout: Of one row for each model; by default the stack is tensor-major.
    """

    def __init__(
        self,
        shapes: Mapping[str, torch.Size],
        n_models: int,
        *,
        dtype: torch.dtype,
        device: str,
        layout: Layout | None = None,
    ) -> None:
        self.n_models = n_models
        self.shapes = dict(shapes)
        self.layout = layout
        self.tensors: dict[str, Tensor]
        if layout is not None:
            self.flat = torch.zeros(n_models * layout.size, dtype=dtype, device=device)
            self.tensors = {
                name: self.flat.as_strided((n_models, *shape), (layout.size, *strides), offset)
                for name, shape in shapes.items()
                for offset, strides in [layout.places[name]]
            }
            return
        sizes = [n_models * math.prod(shape) for shape in shapes.values()]
        self.flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
        pieces = self.flat.split(sizes)
        self.tensors = {
            name: piece.view(n_models, *shape)
            for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
        }

    def like(self) -> "Stack":
        """Zeros of the same layout."""
        return Stack(
            self.shapes,
            self.n_models,
            dtype=self.flat.dtype,
            device=str(self.flat.device),
            layout=self.layout,
        )

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Copy values [M, ...] in, by name."""
        for name, tensor in self.tensors.items():
            tensor.copy_(values[name])

    def parts(self, n_active: int, *, whole: bool) -> list[Tensor]:
        """The first models' numbers: the flat buffer where that is allowed, else [m, size]."""
        if whole and n_active == self.n_models:
            return [self.flat]
        return [tensor[:n_active].view(n_active, -1) for tensor in self.tensors.values()]


Coefficient = float | Tensor
"""One number for all active models, or one for each: [m, 1]."""


class Sgd:
    """Momentum without dampening, weight decay in the gradient (as ``torch.optim.SGD``)."""

    def __init__(self, recipe: Recipe, params: Stack) -> None:
        self.recipe = recipe
        self.params = params
        heavy_ball = recipe.momentum > 0 and not recipe.nesterov
        # Heavy ball: the backward products are accumulated straight into the velocity
        # (beta = momentum), which saves a gradient buffer and one pass over it.
        self.accumulator = params.like()
        self.beta = recipe.momentum if heavy_ball else 0.0
        self.slots: dict[str, Stack] = {}
        if heavy_ball:
            self.slots["velocity"] = self.accumulator
        elif recipe.nesterov:
            self.slots["velocity"] = params.like()

    def step(self, n_active: int, rates: Sequence[float], steps: Sequence[int]) -> None:  # noqa: ARG002
        """Move the first models; their gradients are in the accumulator."""
        rate = self._coefficient(rates)
        decay = self.recipe.weight_decay
        for param, grad, velocity in self._parts(n_active, whole=isinstance(rate, float)):
            if decay:
                grad.add_(param, alpha=decay)
            move = grad
            if self.recipe.nesterov:
                velocity.mul_(self.recipe.momentum).add_(grad)
                move = grad.add_(velocity, alpha=self.recipe.momentum)
            if isinstance(rate, float):
                param.add_(move, alpha=-rate)
            else:
                param.addcmul_(move, rate, value=-1.0)

    def _parts(self, n_active: int, *, whole: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        velocity = self.slots.get("velocity", self.accumulator)
        stacks = (self.params, self.accumulator, velocity)
        return zip(*(stack.parts(n_active, whole=whole) for stack in stacks), strict=True)

    def _coefficient(self, values: Sequence[float]) -> Coefficient:
        return _coefficient(values, self.params.flat)


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019; as ``torch.optim.AdamW``)."""

    def __init__(self, recipe: Recipe, params: Stack) -> None:
        self.recipe = recipe
        self.params = params
        self.accumulator = params.like()
        self.beta = 0.0
        self.slots = {"first_moment": params.like(), "second_moment": params.like()}

    def step(self, n_active: int, rates: Sequence[float], steps: Sequence[int]) -> None:
        """Move the first models; ``steps`` are their own 0-based counts (bias correction)."""
        beta1, beta2 = self.recipe.betas
        moves = [rate / (1 - beta1 ** (step + 1)) for rate, step in zip(rates, steps, strict=True)]
        roots = [1 / math.sqrt(1 - beta2 ** (step + 1)) for step in steps]
        keeps = [1 - rate * self.recipe.weight_decay for rate in rates]
        move, root, keep = (
            _coefficient(values, self.params.flat) for values in (moves, roots, keeps)
        )
        whole = all(isinstance(value, float) for value in (move, root, keep))
        stacks = (self.params, self.accumulator, *self.slots.values())
        parts = (stack.parts(n_active, whole=whole) for stack in stacks)
        for param, grad, first, second in zip(*parts, strict=True):
            param.mul_(keep)
            first.lerp_(grad, 1 - beta1)
            second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            scale = second.sqrt().mul_(root).add_(self.recipe.eps)
            if isinstance(move, float):
                param.addcdiv_(first, scale, value=-move)
            else:
                param.addcdiv_(first * move, scale, value=-1.0)


def make_optimizer(recipe: Recipe, params: Stack) -> Sgd | AdamW:
    """The rule that a recipe names, with zero state."""
    return Sgd(recipe, params) if recipe.optimizer == Optimizer.SGD else AdamW(recipe, params)


def _coefficient(values: Sequence[float], like: Tensor) -> Coefficient:
    if all(value == values[0] for value in values):
        return float(values[0])
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1)
