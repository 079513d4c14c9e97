"""Chains of layers that the compiled kernels know, read from a module.

A link is one linear layer or convolution with the activation and the pooling that follow it. A
linear layer reads as a convolution whose window is its whole input.
"""

import math
from dataclasses import dataclass

from torch import nn

from attribution.training import kernels

Sides = tuple[int, int]

_ACTIVATIONS = {nn.ReLU: kernels.RELU, nn.Tanh: kernels.TANH}
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_PLAIN = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Linear, nn.Conv2d, *_POOLS, *_ACTIVATIONS)


@dataclass(kw_only=True)
class Link:
    """A linear layer or convolution, and what follows it.

    Args:
        name: Of the module, with a dot at its end.
        module: Whose parameters it has.
        channels: Of what it reads.
        sides: Height and width of what it reads.
        window: Height and width of its window.
        padding: Zeros above and left, as many below and right.
        stride: Steps of the window.
        outputs: Channels of what it makes.
        activation: A number of `kernels`.
        pool: Height and width of the pooling window, which moves by as much.
        averaged: Whether the pooled number is the window's mean; else it is its maximum.
    """

    name: str
    module: nn.Linear | nn.Conv2d
    channels: int
    sides: Sides
    window: Sides
    padding: Sides = (0, 0)
    stride: Sides = (1, 1)
    outputs: int
    activation: int = kernels.NO_ACTIVATION
    pool: Sides | None = None
    averaged: bool = False

    @property
    def made(self) -> Sides:
        """Height and width of what comes out, before pooling."""
        return (self._made(0), self._made(1))

    @property
    def pooled(self) -> Sides:
        """Height and width of what comes out in the end."""
        rows, columns = self.made
        return (
            (rows, columns)
            if self.pool is None
            else (rows // self.pool[0], columns // self.pool[1])
        )

    def _made(self, axis: int) -> int:
        side = self.sides[axis] + 2 * self.padding[axis] - self.window[axis]
        return side // self.stride[axis] + 1


def chain_of(model: nn.Module, shape: tuple[int, ...]) -> list[Link] | None:
    """The links of a model for inputs of a shape; None where it is no chain that is known.

    Known are `nn.Sequential` (nested or not) of Linear, Conv2d (zero padding, one group, no
    dilation), ReLU, Tanh, MaxPool2d and AvgPool2d (of windows that do not overlap), Flatten,
    Unflatten and Identity, without hooks, shared or frozen parameters.
    """
    modules = _leaves(model, "")
    parameters = list(model.parameters())
    if modules is None or any(not parameter.requires_grad for parameter in parameters):
        return None
    links: list[Link] = []
    for name, module in modules:
        after = _follow(links, name, module, shape)
        if after is None:
            return None
        shape = after
    shared = sum(len(list(link.module.parameters())) for link in links) != len(parameters)
    fits = links and len(shape) == 1 and links[-1].activation == kernels.NO_ACTIVATION
    return links if fits and not shared and links[-1].pool is None else None


def _follow(
    links: list[Link], name: str, module: nn.Module, shape: tuple[int, ...]
) -> tuple[int, ...] | None:
    """The shape after one more module, which is added to the links; None where it does not fit."""
    last = links[-1] if links else None
    match module:
        case nn.Identity():
            return shape
        case nn.Flatten():
            return (math.prod(shape),) if _flattens(module, len(shape)) else None
        case nn.Unflatten():
            sizes = tuple(module.unflattened_size)
            whole = module.dim in (1, -len(shape)) and -1 not in sizes
            return (*sizes, *shape[1:]) if last is None and whole else None
        case nn.Linear() if len(shape) == 1:
            picture = (shape[0], 1, 1) if last is None else (last.outputs, *last.pooled)
            links.append(_dense(name, module, picture))
            return (module.out_features,)
        case nn.Conv2d() if len(shape) == 3:
            link = _convolution(name, module, shape)
            if link is None:
                return None
            links.append(link)
            return (link.outputs, *link.made)
        case nn.MaxPool2d() | nn.AvgPool2d() if last and last.pool is None and len(shape) == 3:
            last.pool, last.averaged = _pool(module), isinstance(module, nn.AvgPool2d)
            fits = last.pool is not None and min(last.pooled) > 0
            return (last.outputs, *last.pooled) if fits else None
        case nn.ReLU() | nn.Tanh() if last is not None and not last.activation:
            # The largest of a window wins before ReLU as after; rounding may tie others, and
            # ReLU of a mean is no mean.
            if last.pool is not None and (last.averaged or not isinstance(module, nn.ReLU)):
                return None
            last.activation = _ACTIVATIONS[type(module)]
            return shape
    return None


def _dense(name: str, module: nn.Linear, picture: tuple[int, int, int]) -> Link:
    channels, *sides = picture
    return Link(
        name=name,
        module=module,
        channels=channels,
        sides=(sides[0], sides[1]),
        window=(sides[0], sides[1]),
        outputs=module.out_features,
    )


def _convolution(name: str, module: nn.Conv2d, shape: tuple[int, ...]) -> Link | None:
    """None where more than the taps of the window makes the convolution."""
    window, padding = _pair(module.kernel_size), _pair(module.padding)
    plain = module.groups == 1 and module.padding_mode == "zeros" and module.dilation == (1, 1)
    if not plain or padding is None or window is None:
        return None
    if any(pad >= side for pad, side in zip(padding, window, strict=True)):
        return None
    return Link(
        name=name,
        module=module,
        channels=shape[0],
        sides=(shape[1], shape[2]),
        window=window,
        padding=padding,
        stride=_pair(module.stride) or (1, 1),
        outputs=module.out_channels,
    )


def _flattens(module: nn.Flatten, n_axes: int) -> bool:
    return module.start_dim == 1 and module.end_dim in (-1, n_axes)


def _pool(module: nn.MaxPool2d | nn.AvgPool2d) -> Sides | None:
    """The window, where windows neither overlap nor reach over the edge."""
    window, stride = _pair(module.kernel_size), _pair(module.stride)
    apart = window == stride and _pair(module.padding) == (0, 0) and not module.ceil_mode
    if isinstance(module, nn.AvgPool2d):
        return window if apart and module.divisor_override is None else None
    plain = _pair(module.dilation) == (1, 1) and not module.return_indices
    return window if apart and plain else None


def _pair(value: object) -> Sides | None:
    """Height and width of an option that is one number or two."""
    if isinstance(value, int):
        return value, value
    return (value[0], value[1]) if isinstance(value, tuple) and len(value) == 2 else None


def _leaves(model: nn.Module, name: str) -> list[tuple[str, nn.Module]] | None:
    """The modules that run, in order; None where something else than a plain chain runs."""
    if model._forward_hooks or model._forward_pre_hooks or model._backward_hooks:
        return None
    if type(model) is not nn.Sequential:
        return [(name, model)] if type(model) in _PLAIN else None
    leaves: list[tuple[str, nn.Module]] = []
    # `named_children` would leave out a module's second place.
    for key, child in model._modules.items():
        below = None if child is None else _leaves(child, f"{name}{key}.")
        if below is None:
            return None
        leaves += below
    return leaves
