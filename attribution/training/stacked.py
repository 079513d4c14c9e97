"""Gradients of many multilayer perceptrons at once, by hand.

Weights are stacked, W_l: [M, out, in]; a batch of every model is one batched product. The backward
pass is written out: delta = (softmax - one hot) / batch at the top, W_l += delta_l^T a_(l-1) below.
There is no graph and no temporary. The top layer is kept class-major, [M, K, batch]: a softmax
over the last axis of ten classes took 16 times as long as one over the middle axis (164 against
10 us for 16 models, batch 50).

The slow truth is `attribution.training.train_one_reference`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from attribution.outputs import Task
from attribution.training.optimizers import Stack

_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh)
# Backward functions that read the activation's input; the others read its output.
_OF_INPUT = (nn.GELU, nn.SiLU)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One linear layer and the activation that follows it, by the names of its parameters."""

    weight: str
    bias: str | None
    n_in: int
    n_out: int
    activation: nn.Module | None


def layers_of(model: nn.Module, input_shape: torch.Size) -> tuple[Layer, ...] | None:
    """The layers of a plain perceptron, or None where the model is anything else.

    Plain means `nn.Sequential` (nested or not) of Flatten, Linear, ReLU, GELU, SiLU, Tanh and
    Identity, with at most one activation after each linear layer, none after the last, no hooks,
    no shared and no frozen parameters, over inputs that are vectors or flattened first.
    """
    modules = _leaves(model)
    if modules is None or any(not parameter.requires_grad for parameter in model.parameters()):
        return None
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    layers: list[Layer] = []
    flat = len(input_shape) == 1
    for module in modules:
        kind = type(module)
        if kind is nn.Identity:
            continue
        if isinstance(module, nn.Flatten) and not layers:
            flat = flat or (module.start_dim == 1 and module.end_dim in (-1, len(input_shape)))
        elif isinstance(module, nn.Linear) and flat:
            bias = None if module.bias is None else names[id(module.bias)]
            layers.append(
                Layer(
                    weight=names[id(module.weight)],
                    bias=bias,
                    n_in=module.in_features,
                    n_out=module.out_features,
                    activation=None,
                )
            )
        elif kind in _ACTIVATIONS and layers and layers[-1].activation is None:
            last = layers.pop()
            layers.append(
                Layer(
                    weight=last.weight,
                    bias=last.bias,
                    n_in=last.n_in,
                    n_out=last.n_out,
                    activation=module,
                )
            )
        else:
            return None
    n_tensors = sum(1 + (layer.bias is not None) for layer in layers)
    fits = layers and layers[0].n_in == math.prod(input_shape) and layers[-1].activation is None
    chained = all(one.n_out == two.n_in for one, two in pairwise(layers))
    return tuple(layers) if fits and chained and n_tensors == len(names) else None


def forward(layers: tuple[Layer, ...], params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Logits [M, n, K] of stacked parameters on the same inputs [n, d] for every model."""
    n_models = next(iter(params.values())).shape[0]
    hidden = inputs.expand(n_models, *inputs.shape)
    for layer in layers:
        weight = params[layer.weight].transpose(1, 2)
        if layer.bias is None:
            hidden = torch.bmm(hidden, weight)
        else:
            hidden = torch.baddbmm(params[layer.bias].unsqueeze(1), hidden, weight)
        if layer.activation is not None:
            hidden = layer.activation(hidden)
    return hidden


class StackedGradients:
    """Mean-loss gradients of the first m models of a stack, each on its own batch.

    Args:
        layers: From `layers_of`.
        params: The stacked parameters.
        into: Where gradients are accumulated, same layout.
        inputs: [n, d], shared by all models.
        targets: [n], class indices (int64) or numbers.
        task: Which loss.
        batch_size: Largest batch.
    """

    def __init__(
        self,
        layers: tuple[Layer, ...],
        params: Stack,
        into: Stack,
        *,
        inputs: Tensor,
        targets: Tensor,
        task: Task,
        batch_size: int,
    ) -> None:
        self.layers, self.params, self.into = layers, params, into
        self.inputs, self.targets, self.task = inputs, targets, task
        size = params.n_models * batch_size
        like = params.flat

        def room(width: int) -> Tensor:
            return torch.empty(size * width, dtype=like.dtype, device=like.device)

        self._input_room = room(layers[0].n_in)
        self._rooms = [room(layer.n_out) for layer in layers]
        self._delta_rooms = [room(layer.n_out) for layer in layers]
        self._before_rooms = [
            room(layer.n_out) if isinstance(layer.activation, _OF_INPUT) else None
            for layer in layers
        ]
        self._views: dict[tuple[int, int], _Views] = {}

    def accumulate(self, beta: float, index: Tensor, scale: float | Tensor) -> Tensor:
        """``into = beta * into + gradient`` for the first m models.

        Args:
            beta: What remains of the accumulator; 0 overwrites it.
            index: int64 [m, b], rows of the training data for each model.
            scale: 1/b, or [m, b] with 1/count in a model's own places and 0 in its padding.

        Returns:
            [m]: each model's summed loss, before any step.
        """
        n_active, width = index.shape
        views = self._views.get((n_active, width))
        if views is None:
            views = self._views[n_active, width] = _Views(self, n_active, width)
        flat = index.reshape(-1)
        torch.index_select(self.inputs, 0, flat, out=views.inputs.view(flat.shape[0], -1))
        self._forward(views)
        losses = self._head(views, flat, scale)
        self._backward(views, beta)
        if isinstance(scale, Tensor):
            losses.mul_(scale > 0)
        return losses.sum(1)

    def _forward(self, views: "_Views") -> None:
        hidden = views.inputs
        for place, layer in enumerate(self.layers[:-1]):
            before, after = views.before[place], views.after[place]
            if layer.bias is None:
                torch.bmm(hidden, views.weights_t[place], out=before)
            else:
                torch.baddbmm(views.biases[place], hidden, views.weights_t[place], out=before)
            _activate(layer.activation, before, after)
            hidden = after
        hidden_t = hidden.transpose(1, 2)
        if self.layers[-1].bias is None:
            torch.bmm(views.weights[-1], hidden_t, out=views.logits)
        else:
            bias = views.biases[-1].transpose(1, 2)
            torch.baddbmm(bias, views.weights[-1], hidden_t, out=views.logits)

    def _head(self, views: "_Views", flat: Tensor, scale: float | Tensor) -> Tensor:
        """Losses [m, b]; leaves the scaled derivative by the logits in ``views.top``."""
        n_active, _, width = views.logits.shape
        targets = self.targets.index_select(0, flat)
        factor = scale if isinstance(scale, float) else scale.unsqueeze(1)
        if self.task is Task.REGRESSION:
            torch.sub(views.logits, targets.view(n_active, 1, width), out=views.top)
            losses = views.top.square().squeeze(1)
            views.top.mul_(factor).mul_(2.0)
            return losses
        torch._log_softmax(views.logits, 1, False, out=views.top)
        top = views.top.view(-1)
        own = targets.mul_(width).add_(views.places)
        losses = top.index_select(0, own).neg_().view(n_active, width)
        top.exp_()
        top.index_add_(0, own, views.minus_one)
        views.top.mul_(factor)
        return losses

    def _backward(self, views: "_Views", beta: float) -> None:
        delta_t = views.top
        for place in range(len(self.layers) - 1, -1, -1):
            below = views.after[place - 1] if place else views.inputs
            views.weight_sums[place].baddbmm_(delta_t, below, beta=beta)
            bias_sum = views.bias_sums[place]
            if bias_sum is not None:
                if beta:
                    bias_sum.mul_(beta).add_(delta_t.sum(2))
                else:
                    torch.sum(delta_t, 2, out=bias_sum)
            if place:
                delta = views.delta[place - 1]
                torch.bmm(delta_t.transpose(1, 2), views.weights[place], out=delta)
                activation = self.layers[place - 1].activation
                _deactivate(activation, delta, views.before[place - 1], below)
                delta_t = delta.transpose(1, 2)


class _Views:
    """Views of the buffers for the first m models and a batch of b rows, made once a shape."""

    def __init__(self, owner: StackedGradients, n_active: int, width: int) -> None:
        def view(room: Tensor, *shape: int) -> Tensor:
            return room[: math.prod(shape)].view(shape)

        layers, params, into = owner.layers, owner.params.tensors, owner.into.tensors
        self.inputs = view(owner._input_room, n_active, width, layers[0].n_in)
        self.after = [
            view(room, n_active, width, layer.n_out)
            for room, layer in zip(owner._rooms, layers, strict=True)
        ]
        self.before = [
            after if room is None else view(room, *after.shape)
            for room, after in zip(owner._before_rooms, self.after, strict=True)
        ]
        self.delta = [
            view(room, n_active, width, layer.n_out)
            for room, layer in zip(owner._delta_rooms, layers, strict=True)
        ]
        n_outputs = layers[-1].n_out
        self.logits = view(owner._rooms[-1], n_active, n_outputs, width)
        self.top = view(owner._delta_rooms[-1], n_active, n_outputs, width)
        self.weights = [params[layer.weight][:n_active] for layer in layers]
        self.weights_t = [weight.transpose(1, 2) for weight in self.weights]
        self.biases = [
            self.inputs if layer.bias is None else params[layer.bias][:n_active].unsqueeze(1)
            for layer in layers
        ]
        self.weight_sums = [into[layer.weight][:n_active] for layer in layers]
        self.bias_sums = [
            None if layer.bias is None else into[layer.bias][:n_active] for layer in layers
        ]
        device = owner.params.flat.device
        models = torch.arange(n_active, device=device).mul_(n_outputs * width).unsqueeze(1)
        self.places = (models + torch.arange(width, device=device)).view(-1)
        self.minus_one = torch.full_like(self.top.view(-1)[:1], -1.0).expand(n_active * width)


def _activate(activation: nn.Module | None, before: Tensor, after: Tensor) -> None:
    aten = torch.ops.aten
    match activation:
        case nn.ReLU():
            after.relu_()
        case nn.Tanh():
            after.tanh_()
        case nn.GELU():
            aten.gelu.out(before, approximate=activation.approximate, out=after)
        case nn.SiLU():
            aten.silu.out(before, out=after)


def _deactivate(activation: nn.Module | None, delta: Tensor, before: Tensor, after: Tensor) -> None:
    """Multiply delta by the activation's derivative, in place."""
    aten = torch.ops.aten
    match activation:
        case nn.ReLU():
            aten.threshold_backward.grad_input(delta, after, 0, grad_input=delta)
        case nn.Tanh():
            aten.tanh_backward.grad_input(delta, after, grad_input=delta)
        case nn.GELU():
            kind = activation.approximate
            aten.gelu_backward.grad_input(delta, before, approximate=kind, grad_input=delta)
        case nn.SiLU():
            aten.silu_backward.grad_input(delta, before, grad_input=delta)


def _leaves(model: nn.Module) -> list[nn.Module] | None:
    """The modules that run, in order; None where something else than a plain chain runs."""
    if model._forward_hooks or model._forward_pre_hooks or model._backward_hooks:
        return None
    if type(model) is nn.Sequential:
        leaves: list[nn.Module] = []
        for child in model:
            below = _leaves(child)
            if below is None:
                return None
            leaves += below
        return leaves
    plain = (nn.Flatten, nn.Linear, nn.Identity, *_ACTIVATIONS)
    return [model] if type(model) in plain else None
