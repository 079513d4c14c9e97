"""The flat gradient of one batch, in the form that a sketch wants it.

Either as blocks [B, entries] one after the other, or weight by weight as two sides whose product
it is, so that whoever projects both sides first never forms a weight's gradient.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from attribution.gradients.layers import (
    Use,
    cuts_by_rows,
    is_single,
    outer_shape,
    patch_entries,
    projected,
    role_blocks,
    sides,
)
from attribution.gradients.plan import Layout, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterLayer:
    """A weight [rows, columns] whose gradient has two sides, with its bias where it has one.

    Attributes:
        name: The weight's.
        bias_name: The bias's; None without one, or where others use it too.
        offset: Of the weight in the flat gradient.
        bias_offset: Of the bias.
        rows: Rows of the weight: outputs of a linear layer, entries of an embedding's table.
        columns: Columns of the flattened weight, the bias not counted.
    """

    name: str
    bias_name: str | None
    offset: int
    bias_offset: int | None
    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Entries of weight and bias."""
        return self.rows * (self.columns + (self.bias_name is not None))


@dataclass(frozen=True, kw_only=True)
class GradientBlocks:
    """One batch's gradients; iterate over it for (offset in the flat gradient, [B, entries]).

    Attributes:
        n_rows: Rows B of the batch.
        layout: Where each parameter lies.
        memo: A place, shared by all batches of one model, for what need be made only once.
        dtype: Type of activations and gradients.
        asked: bool [B, T], the tokens of each document that are predicted; None without tokens.
    """

    n_rows: int
    layout: Layout
    memo: dict[Any, Any] = field(repr=False)
    plan: Plan = field(repr=False)
    uses: Mapping[nn.Module, list[Use]] = field(repr=False)
    general: Mapping[str, Tensor] = field(repr=False)
    template: Tensor = field(repr=False)
    dtype: torch.dtype
    limit: int
    asked: Tensor | None = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        """Where the gradients are."""
        return self.template.device

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """All blocks in order, without gaps."""
        for name in self.layout.names:
            yield from self.parameter(name)

    def rest(self, done: Collection[str]) -> Iterator[tuple[int, Tensor]]:
        """The blocks of all parameters but the named ones."""
        for name in self.layout.names:
            if name not in done:
                yield from self.parameter(name)

    def parameter(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The blocks of one parameter."""
        place = self.layout.names.index(name)
        offset, shape = self.layout.offsets[place], self.layout.shapes[place]
        if name in self.general:
            yield offset, self.general[name].reshape(self.n_rows, -1)
            return
        found = self.uses_of(name)
        if not found:  # a parameter that the output does not depend on
            yield offset, self.template.new_zeros(self.n_rows, shape.numel())
            return
        # Uses that are cut in different ways can only be summed whole.
        alike = len(found) == 1 or all(cuts_by_rows(use, role) for use, role in found)
        limit = self.limit if alike else 2**62
        pieces = [role_blocks(use, role, limit) for use, role in found]
        for parts in zip(*pieces, strict=True):
            total = parts[0][1]
            for _, part in parts[1:]:
                total = total + part
            yield offset + parts[0][0], total

    def rows(self, chosen: slice) -> "GradientBlocks":
        """The gradients of some rows of the batch; nothing is copied."""
        return replace(
            self,
            n_rows=len(range(*chosen.indices(self.n_rows))),
            uses={
                module: [
                    Use(module=module, given=use.given[chosen], delta=use.delta[chosen])
                    for use in uses
                ]
                for module, uses in self.uses.items()
            },
            general={name: value[chosen] for name, value in self.general.items()},
            template=self.template[chosen],
            asked=None if self.asked is None else self.asked[chosen],
        )

    def entries(self, name: str) -> int:
        """Numbers that `parameter` writes down for each row, patches included."""
        size = self.layout.shapes[self.layout.names.index(name)].numel()
        return max(
            [size, *(patch_entries(use) for use, role in self.uses_of(name) if role != "bias")]
        )

    def single(self, name: str) -> tuple[Tensor, Tensor] | None:
        """(left [B, out], right [B, in]) where the gradient is one plain outer product."""
        found = self.uses_of(name) if name not in self.general else []
        if len(found) != 1 or found[0][1] != "weight" or not is_single(found[0][0]):
            return None
        left, right = sides(found[0][0])
        return left[:, 0, :, 0], right[:, 0, :, 0]

    def outer_layers(self) -> tuple[OuterLayer, ...]:
        """The weights whose gradients `project` gives; a function of the model alone."""
        return outer_layers(self.layout, self.plan)

    def positions(self, layer: OuterLayer) -> float:
        """How many products of two sides each example's gradient of this weight sums."""
        found = self.uses_of(layer.name)
        return sum(use.delta.numel() // max(1, use.n_outputs) for use, _ in found) / self.n_rows

    def project(
        self, layer: OuterLayer, rows: Tensor | None, columns: Tensor | None, bias: Tensor | None
    ) -> Tensor | None:
        """R^T G C of one weight [B, k_rows, k_columns]; see `layers.projected`. None for zero."""
        found = [projected(use, rows, columns, bias) for use, _ in self.uses_of(layer.name)]
        return None if not found else sum(found[1:], found[0])

    def uses_of(self, name: str) -> list[tuple[Use, str]]:
        """Each call of a layer that uses this parameter, with the parameter's role there."""
        return [
            (use, role)
            for module, role in self.plan.uses.get(name, ())
            for use in self.uses.get(module, ())
        ]


def outer_layers(layout: Layout, plan: Plan) -> tuple[OuterLayer, ...]:
    """The weights of a model whose gradients have two sides, in the order of the parameters."""
    layers = []
    places = dict(zip(layout.names, layout.offsets, strict=True))
    for name in layout.names:
        uses = plan.uses.get(name, ())
        shapes = {outer_shape(module) if role == "weight" else None for module, role in uses}
        shape = shapes.pop() if len(shapes) == 1 else None
        if shape is None:
            continue
        bias = _own_bias(plan, tuple(module for module, _ in uses))
        layers.append(
            OuterLayer(
                name=name,
                bias_name=bias,
                offset=places[name],
                bias_offset=None if bias is None else places[bias],
                rows=shape[0],
                columns=shape[1],
            )
        )
    return tuple(layers)


def _own_bias(plan: Plan, modules: tuple[nn.Module, ...]) -> str | None:
    """The bias that all of these modules use and no other module does."""
    wanted = {(module, "bias") for module in modules}
    for name, uses in plan.uses.items():
        if set(uses) == wanted:
            return name
    return None
