"""Products of per-example gradients with vectors, streamed over rows.

G [n, p] holds the gradient of one output for each row at one checkpoint. G v, G^T w and some of
its rows are formed block by block; G itself never exists. Vectors are rows: [b, p].
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from attribution.estimators.features import batch_rows
from attribution.gradients import Layout, PerExampleGradients, layout_of
from attribution.outputs import OutputLike
from attribution.rows import Rows
from schemas.errors import DataError, ShapeError


class Normalise(StrEnum):
    """Which parts of a gradient get length one before they are multiplied."""

    NONE = "none"
    WHOLE = "whole"
    LAYER = "layer"


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

    Attributes:
        layout: Where each parameter lies.
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
    ) -> None:
        self.layout: Layout = layout_of(model)
        self._rows, self._pull = rows, pull
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
            for offset, block in self._owner.run(*self._rows.batch(first, last)).blocks():
                out[first - start : last - start, offset : offset + block.shape[1]] = block
        if self._pull is not None:
            out += self._pull
        return _finite(out, self._rows.name, start)

    def combine(self, weights: Tensor) -> Tensor:
        """Weighted sums of the gradients: weights [M, n] to [M, p]."""
        weights = weights.to(self._like)
        out = self._like.new_zeros(len(weights), self.size)
        for positions, inputs, targets in self._rows.batches(self._batch):
            chosen = weights[:, positions]
            for offset, block in self._owner.run(inputs, targets).blocks():
                out[:, offset : offset + block.shape[1]] += chosen @ block
        if self._pull is not None:
            out += weights.sum(1, keepdim=True) * self._pull
        return _finite(out, "sum", 0)

    def project(self, vectors: Tensor) -> Tensor:
        """Inner products of each row's gradient with vectors [b, p], as [n, b]."""
        out = self._like.new_zeros(len(self), len(vectors))
        for positions, inputs, targets in self._rows.batches(self._batch):
            for offset, block in self._owner.run(inputs, targets).blocks():
                out[positions] += block @ vectors[:, offset : offset + block.shape[1]].T
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
        own = [name.rpartition(".")[0] for name in self.layout.names]
        parts = own if normalise == Normalise.LAYER else [""] * len(own)
        part_at = dict(zip(self.layout.offsets, parts, strict=True))
        lengths: dict[str, Tensor] = {}
        for part, offset, shape in zip(parts, self.layout.offsets, self.layout.shapes, strict=True):
            square = (vectors[:, offset : offset + shape.numel()] ** 2).sum(1)
            lengths[part] = lengths.get(part, 0.0) + square
        out = self._like.new_zeros(len(self), len(vectors))
        for positions, inputs, targets in self._rows.batches(self._batch):
            dots: dict[str, Tensor] = {}
            squares: dict[str, Tensor] = {}
            part = ""
            for offset, block in self._owner.run(inputs, targets).blocks():
                part = part_at.get(offset, part)  # blocks after a parameter's first carry on
                side = vectors[:, offset : offset + block.shape[1]]
                dots[part] = dots.get(part, 0.0) + block @ side.T
                squares[part] = squares.get(part, 0.0) + (block**2).sum(1)
            for part, dot in dots.items():
                scale = torch.outer(squares[part].sqrt(), lengths[part].sqrt())
                out[positions] += torch.where(scale > 0, dot / scale, torch.zeros_like(dot))
        return out


def _finite(values: Tensor, name: str, start: int) -> Tensor:
    bad = ~torch.isfinite(values).all(1)
    if bool(bad.any()):
        row = start + int(bad.nonzero()[0, 0])
        raise DataError(
            f"the gradient of {name} row {row} (counted from 0) is NaN or infinite; the model "
            "overflows on it: look at the row, or train the checkpoint again"
        )
    return values
