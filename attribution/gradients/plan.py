"""Which parameters layer hooks cover, found by running the model on one and on two rows.

A parameter is covered when all its uses go through hooked layers. Everything else (functional
uses, layers without a rule, layers that see the batch in another axis) goes the general way. The
probe also refuses models whose rows are not independent, and names the layer where it can.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attribution.gradients.layers import rule_of, takes_batch
from attribution.rows import Inputs, call, n_rows, take
from schemas.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each parameter lies in the flat gradient: order of ``named_parameters``."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    size: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How each parameter's gradient is found.

    Attributes:
        layers: Hooked modules.
        uses: For each covered parameter, the modules and the role ("weight" or "bias") it has.
        general: Parameters that need ``torch.func``.
    """

    layers: tuple[nn.Module, ...]
    uses: dict[str, tuple[tuple[nn.Module, str], ...]]
    general: tuple[str, ...]


def layout_of(model: nn.Module) -> Layout:
    """The flat gradient of the parameters that require one.

    Raises:
        RecipeError: There is none.
    """
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    if not named:
        raise RecipeError("no parameter of the model requires a gradient; unfreeze at least one")
    offsets, size = [], 0
    for _, value in named:
        offsets.append(size)
        size += value.numel()
    return Layout(
        names=tuple(name for name, _ in named),
        shapes=tuple(value.shape for _, value in named),
        offsets=tuple(offsets),
        size=size,
    )


def make_plan(model: nn.Module, inputs: Inputs) -> Plan:
    """Decide for each parameter, by probing the model in eval mode.

    Args:
        model: A private copy, in eval mode, whose parameters require gradients as they should.
        inputs: A batch of one row or more.

    Raises:
        RecipeError: A row's output depends on the other rows, or changes from call to call.
    """
    _refuse_shared_statistics(model)
    one, two = take(inputs, slice(1)), _two_rows(inputs)
    names = {id(value): name for name, value in model.named_parameters() if value.requires_grad}
    layers = [module for module in model.modules() if rule_of(module) is not None]
    while True:
        first, second = _Probe(model, layers, one), _Probe(model, layers, two)
        misplaced = first.misplaced | second.misplaced
        if not misplaced:
            break
        # Not cut there any more, these layers' parameters are now reached as any other.
        layers = [module for module in layers if module not in misplaced]
    if _differ(first.logits, second.logits):
        _refuse_dependent_rows(model, one, two)
    outside = first.reached(names) | second.reached(names)
    uses: dict[str, list[tuple[nn.Module, str]]] = {}
    for module in layers:
        for role, value in module._parameters.items():
            name = names.get(id(value))
            if name is not None and name not in outside:
                uses.setdefault(name, []).append((module, role))
    hooked = {module for pairs in uses.values() for module, _ in pairs}
    return Plan(
        layers=tuple(module for module in layers if module in hooked),
        uses={name: tuple(pairs) for name, pairs in uses.items()},
        general=tuple(name for name in names.values() if name in outside),
    )


class _Probe:
    """One forward pass with the graph cut behind every hooked layer.

    What is still reachable from the pieces (the layers' inputs and the logits) is used outside
    the hooked layers.
    """

    def __init__(self, model: nn.Module, layers: list[nn.Module], inputs: Inputs) -> None:
        self.misplaced: set[nn.Module] = set()
        self._ends: list[Tensor] = []
        self._parameters = dict(model.named_parameters())
        self._n_batch = n_rows(inputs)
        handles = [register(module, self._cut) for module in layers]
        try:
            logits = call(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        self._ends.append(logits)
        self.logits = logits.detach()

    def _cut(self, module: nn.Module, given: Tensor, returned: Tensor) -> Tensor:
        if not takes_batch(module, given, self._n_batch):
            self.misplaced.add(module)
        self._ends.append(given)
        # The copy lets the model write into what it got, as it may in a real pass.
        return returned.detach().requires_grad_().clone()

    def reached(self, names: dict[int, str]) -> set[str]:
        ends = [end.sum() for end in self._ends if end.requires_grad]
        if not ends:
            return set()
        wanted = [value for value in self._parameters.values() if id(value) in names]
        found = torch.autograd.grad(sum(ends[1:], ends[0]), wanted, allow_unused=True)
        pairs = zip(wanted, found, strict=True)
        return {names[id(value)] for value, gradient in pairs if gradient is not None}


def register(
    module: nn.Module, hook: Callable[[nn.Module, Tensor, Tensor], Tensor]
) -> torch.utils.hooks.RemovableHandle:
    """A forward hook that runs before any of the user's and sees (module, input, output)."""

    def forward(
        owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Tensor
    ) -> Tensor:
        return hook(owner, args[0] if args else kwargs["input"], returned)

    return module.register_forward_hook(forward, prepend=True, with_kwargs=True)


def _two_rows(inputs: Inputs) -> Inputs:
    if n_rows(inputs) >= 2:
        return take(inputs, slice(2))
    if isinstance(inputs, dict):
        return {name: torch.cat([values, values]) for name, values in inputs.items()}
    return torch.cat([inputs, inputs])


def _refuse_shared_statistics(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise RecipeError(
                f"layer {name!r} normalises with the statistics of the batch, so no example has a "
                "gradient of its own; use track_running_stats=True, GroupNorm or LayerNorm"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.scale_grad_by_freq:
            raise RecipeError(
                f"layer {name!r} scales gradients by how often a token is in the batch, so no "
                "example has a gradient of its own; use scale_grad_by_freq=False"
            )


def _differ(one: Tensor, two: Tensor) -> bool:
    """Whether the first row of an output is not the same with and without a second row."""
    if not bool(torch.isfinite(two).all()):
        return False  # the features are checked where they are made, with a better message
    scale = max(float(two.abs().max()), 1e-12) if two.numel() else 1.0
    # Rounding depends on the batch: bfloat16 has 8 bits.
    tolerance = 0.1 if two.dtype in (torch.bfloat16, torch.float16) else 1e-3
    return bool(((one[0] - two[0]).abs() > tolerance * scale).any())


def _refuse_dependent_rows(model: nn.Module, one: Inputs, two: Inputs) -> None:
    first, second = _outputs(model, one), _outputs(model, two)
    where = ""
    for (name, alone), (other, beside) in zip(first, second, strict=False):
        if name != other or alone.shape[1:] != beside.shape[1:] or len(alone) == len(beside):
            continue
        if alone.is_floating_point() and _differ(alone, beside):
            where = f" (first seen after layer {name!r})"
            break
    raise RecipeError(
        f"a row's output changes with the other rows of its batch, or from call to call, in "
        f"eval mode{where}; per-example gradients need independent rows and no randomness"
    )


def _outputs(model: nn.Module, inputs: Inputs) -> list[tuple[str, Tensor]]:
    """What each innermost module returned, in the order of the calls."""
    found: list[tuple[str, Tensor]] = []
    handles = []
    for name, module in model.named_modules():
        if name and not any(module.children()):

            def keep(_: nn.Module, __: Any, returned: Any, name: str = name) -> None:
                if isinstance(returned, Tensor) and returned.ndim:
                    found.append((name, returned.detach()))

            handles.append(module.register_forward_hook(keep))
    try:
        call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found
