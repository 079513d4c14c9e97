"""Products of per-example gradients with vectors, streamed over rows.

G [n, p] holds the gradient of one output for each row at one checkpoint. G v, G^T w and some of
its rows are formed block by block; G itself never exists. Vectors are rows: [b, p]. A layer is a
module that owns parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from attribution.estimators.features import batch_rows
from attribution.gradients import Layout, PerExampleGradients, layout_of
from attribution.outputs import OutputLike
from attribution.rows import Inputs, Rows
from schemas.errors import DataError, ShapeError


class Normalise(StrEnum):
    """Which parts of a gradient get length one before they are multiplied."""

    NONE = "none"
    WHOLE = "whole"
    LAYER = "layer"


# What becomes of a block of gradients: (its columns among the p, [B, columns]) to [B, columns].
Change = Callable[[slice, Tensor], Tensor]


class RowGradients:
    """Gradients of an output for each row, at one checkpoint.

    Args:
        model: Maps rows to logits; copied, in eval mode.
        state: The checkpoint.
        rows: n of them.
        output: What is differentiated.
        device: "cpu" or "cuda".
        dtype: Of gradients and products.
        batch_size: Rows at a time, or "auto".
        pull: Added to every row's gradient (a row's share of weight decay), [p], or None.
        change: Entry by entry, what is used in each gradient's place; or None.

    Attributes:
        layout: Where each parameter lies.
        layers: Names of the layers, in order.
        layer_sizes: Their parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        state: Mapping[str, Any],
        rows: Rows,
        *,
        output: OutputLike,
        device: str,
        dtype: torch.dtype,
        batch_size: int | str = "auto",
        pull: Tensor | None = None,
        change: Change | None = None,
    ) -> None:
        self.layout: Layout = layout_of(model)
        owners = [name.rpartition(".")[0] for name in self.layout.names]
        self.layers = tuple(dict.fromkeys(owners))
        self._layer_of = [self.layers.index(owner) for owner in owners]
        self.layer_sizes = [0] * len(self.layers)
        for layer, shape in zip(self._layer_of, self.layout.shapes, strict=True):
            self.layer_sizes[layer] += shape.numel()
        self._rows, self._pull, self._change = rows, pull, change
        self._batch = batch_rows(batch_size, self.layout.size)
        self._owner = PerExampleGradients(model, state, output=output, device=device, dtype=dtype)
        self._like = torch.empty(0, device=device, dtype=dtype)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def size(self) -> int:
        """Parameters p."""
        return self.layout.size

    def rows(self, start: int, stop: int) -> Tensor:
        """Gradients of rows start..stop, [stop - start, p]."""
        out = self._like.new_empty(stop - start, self.size)
        for first in range(start, stop, self._batch):
            last = min(first + self._batch, stop)
            for _, columns, block in self._blocks(*self._rows.batch(first, last)):
                out[first - start : last - start, columns] = block
        if self._pull is not None:
            out += self._pull
        return _finite(out, self._rows.name, start)

    def combine(self, weights: Tensor) -> Tensor:
        """Weighted sums of the gradients: weights [M, n] to [M, p]."""
        weights = weights.to(self._like)
        out = self._like.new_zeros(len(weights), self.size)
        for positions, inputs, targets in self._rows.batches(self._batch):
            chosen = weights[:, positions]
            for _, columns, block in self._blocks(inputs, targets):
                out[:, columns] += chosen @ block
        if self._pull is not None:
            out += weights.sum(1, keepdim=True) * self._pull
        return _finite(out, "sum", 0)

    def combine_by_layer(self, weights: Tensor) -> Tensor:
        """Sums with weights of their own for each layer: [layers, b, n] to [b, p]."""
        weights = weights.to(self._like)
        out = self._like.new_zeros(weights.shape[1], self.size)
        for positions, inputs, targets in self._rows.batches(self._batch):
            for layer, columns, block in self._blocks(inputs, targets):
                out[:, columns] += weights[layer][:, positions] @ block
        return _finite(out, "sum", 0)

    def project(self, vectors: Tensor) -> Tensor:
        """Inner products of each row's gradient with vectors [b, p], as [n, b]."""
        out = self._like.new_zeros(len(self), len(vectors))
        for positions, inputs, targets in self._rows.batches(self._batch):
            for _, columns, block in self._blocks(inputs, targets):
                out[positions] += block @ vectors[:, columns].T
        if self._pull is not None:
            out += vectors @ self._pull
        return out

    def cosines(self, vectors: Tensor, normalise: str) -> Tensor:
        """Inner products after both sides got length one, as [n, b].

        Args:
            vectors: [b, p].
            normalise: "whole": the cosine of the whole gradients; "layer": the sum over layers
                (modules that own parameters) of their cosines. A part of length 0 adds 0.
        """
        if normalise not in (Normalise.WHOLE, Normalise.LAYER):
            raise ShapeError(f"unknown normalisation {normalise!r}; say 'whole' or 'layer'")
        lengths = self.layer_squares(vectors)
        if normalise == Normalise.WHOLE:
            lengths = lengths.sum(0, keepdim=True)
        out = self._like.new_zeros(len(self), len(vectors))
        for positions, inputs, targets in self._rows.batches(self._batch):
            dots, squares = self._batch_by_layer(inputs, targets, vectors)
            if normalise == Normalise.WHOLE:
                dots, squares = dots.sum(0, keepdim=True), squares.sum(0, keepdim=True)
            for dot, square, length in zip(dots, squares, lengths, strict=True):
                scale = torch.outer(square.sqrt(), length.sqrt())
                out[positions] += torch.where(scale > 0, dot / scale, torch.zeros_like(dot))
        return out

    def by_layer(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Inner products with vectors [b, p] and squared lengths, of each layer apart.

        Returns:
            [layers, n, b] and [layers, n].
        """
        dots = self._like.new_zeros(len(self.layers), len(self), len(vectors))
        squares = self._like.new_zeros(len(self.layers), len(self))
        for positions, inputs, targets in self._rows.batches(self._batch):
            dots[:, positions], squares[:, positions] = self._batch_by_layer(
                inputs, targets, vectors
            )
        return dots, squares

    def layer_squares(self, vectors: Tensor) -> Tensor:
        """Squared lengths of the layers' parts of vectors [b, p], as [layers, b]."""
        out = vectors.new_zeros(len(self.layers), len(vectors))
        for layer, columns in self._columns():
            out[layer] += (vectors[:, columns] ** 2).sum(1)
        return out

    def scale_layers(self, vectors: Tensor, factors: Tensor) -> Tensor:
        """Vectors [b, p] whose layers are multiplied by factors [layers]."""
        out = torch.empty_like(vectors)
        for layer, columns in self._columns():
            out[:, columns] = vectors[:, columns] * factors[layer]
        return out

    def _columns(self) -> Iterator[tuple[int, slice]]:
        """(layer, columns) of each parameter."""
        places = zip(self._layer_of, self.layout.offsets, self.layout.shapes, strict=True)
        for layer, offset, shape in places:
            yield layer, slice(offset, offset + shape.numel())

    def _batch_by_layer(
        self, inputs: Inputs, targets: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        dots = self._like.new_zeros(len(self.layers), len(targets), len(vectors))
        squares = self._like.new_zeros(len(self.layers), len(targets))
        for layer, columns, block in self._blocks(inputs, targets):
            dots[layer] += block @ vectors[:, columns].T
            squares[layer] += (block**2).sum(1)
        return dots, squares

    def _blocks(self, inputs: Inputs, targets: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
        """(layer, columns, entries [B, columns]) of one batch, in order."""
        layer_at = dict(zip(self.layout.offsets, self._layer_of, strict=True))
        layer = 0
        for offset, block in self._owner.run(inputs, targets).blocks():
            layer = layer_at.get(offset, layer)  # blocks after a parameter's first carry on
            columns = slice(offset, offset + block.shape[1])
            yield layer, columns, block if self._change is None else self._change(columns, block)


def _finite(values: Tensor, name: str, start: int) -> Tensor:
    bad = ~torch.isfinite(values).all(1)
    if bool(bad.any()):
        row = start + int(bad.nonzero()[0, 0])
        raise DataError(
            f"the gradient of {name} row {row} (counted from 0) is NaN or infinite; the model "
            "overflows on it: look at the row, or train the checkpoint again"
        )
    return values
