"""The two-sided (Kronecker) projection: gradients that are never formed.

The gradient of a weight [o, i] is G = sum_t delta_t a_t^T. Its part of the sketch is R^T G C =
sum_t (R^T delta_t)(C^T a_t)^T, for R [o, k_o] and C [i, k_i] of independent +-1/sqrt(k_o) and
+-1/sqrt(k_i): both sides are projected first (Choe et al. 2024, LoGra). A bias counts as one more
column of the weight. E[(R x C)(R x C)^T] = I holds for each layer, whatever its shape; a side that
is as narrow as its width is kept as it is. Everything else (norms, depthwise convolutions, loose
parameters) shares a sparse projection of its own.

Bits: row r of R is drawn as row of the rademacher kind, with the parameter index of the weight's
entry (r, 0) and kind code 4; row c of C with that of entry (0, c), or of the bias's first entry,
and kind code 5. The sparse part is the sparse kind, as wide as its columns, at its own indices.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.gradients import GradientBlocks, OuterLayer
from attribution.projection.kinds import Projection
from attribution.projection.reference import bit_signs, matrix, words
from attribution.projection.streamed import sketch_blocks
from attribution.streams import checked_seed
from schemas.errors import ShapeError

ROW_SIDE, COLUMN_SIDE = 4, 5  # kind codes beside those of `reference`


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One layer's share of the sketch: `rows * columns` columns from `first` on."""

    layer: OuterLayer
    first: int
    rows: int
    columns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Who has which columns of the sketch.

    Attributes:
        parts: Layers, in the order of the parameters.
        rest_first: First column of everything else, which has all columns from there on.
        rest_width: Their number.
        rest_size: Parameters that share them.
    """

    parts: tuple[Part, ...]
    rest_first: int
    rest_width: int
    rest_size: int

    @property
    def done(self) -> frozenset[str]:
        """Parameters that the layers cover."""
        names = {part.layer.name for part in self.parts}
        biases = {part.layer.bias_name for part in self.parts if part.layer.bias_name}
        return frozenset(names | biases)

    def digest(self) -> str:
        """Names the allocation: 12 hex digits."""
        columns = [
            (part.first, part.rows, part.columns, layer.offset, layer.bias_offset, layer.size)
            for part in self.parts
            for layer in [part.layer]
        ]
        text = repr([*columns, (self.rest_first, self.rest_width, self.rest_size)])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def allocate(layers: Sequence[OuterLayer], p: int, dim: int) -> Allocation:
    """Share the columns of a sketch between the layers of a model.

    Everyone has an equal share, whatever their size; who needs less (the whole gradient fits)
    returns the remainder to the others. Shares in proportion to the size or to its root did no
    better (LDS 0.222 and 0.229 against 0.225 at width 2048, see `choice`). A layer's two widths
    are as equal as their product and the weight's shape allow, for then the error is smallest;
    what rounding leaves over falls to the rest.

    Args:
        layers: The layers with two sides.
        p: Parameters in all.
        dim: Columns to share.

    Raises:
        ShapeError: There are fewer columns than layers.
    """
    rest_size = p - sum(layer.size for layer in layers)
    sizes = [layer.size for layer in layers] + [rest_size] * (rest_size > 0)
    if dim < len(sizes):
        raise ShapeError(
            f"projection dim is {dim}, and the model has {len(sizes)} layers to share it; give at "
            "least as many, or use kind='sparse'"
        )
    shares = equal_shares(sizes, dim)
    parts, first = [], 0
    for layer, share in zip(layers, shares, strict=False):
        full = layer.size // layer.rows
        rows = min(layer.rows, max(1, math.isqrt(share)))
        columns = min(full, share // rows)
        rows = min(layer.rows, share // columns)
        parts.append(Part(layer=layer, first=first, rows=rows, columns=columns))
        first += rows * columns
    return Allocation(
        parts=tuple(parts), rest_first=first, rest_width=dim - first, rest_size=rest_size
    )


def equal_shares(sizes: Sequence[int], dim: int) -> list[int]:
    """Equal shares of dim, none above its size; what is not needed goes to the others."""
    shares, left, waiting = [0] * len(sizes), dim, sorted(range(len(sizes)), key=sizes.__getitem__)
    for place, index in enumerate(waiting):
        shares[index] = min(sizes[index], left // (len(waiting) - place))
        left -= shares[index]
    return shares


def factored_sketch(
    blocks: GradientBlocks, dim: int, *, seed: int, checkpoint: int, p: int
) -> Tensor:
    """The sketch [B, dim] of one batch, float32, or float64 where the gradients are.

    Args:
        blocks: The batch.
        dim: Columns.
        seed: Of the projection.
        checkpoint: Its index.
        p: Parameters in all.
    """
    seed = checked_seed(seed)
    if not 0 <= checkpoint < 2**32:
        raise ShapeError(f"checkpoint index {checkpoint} is out of range; give one in [0, 2**32)")
    allocation = allocation_of(blocks, p, dim)
    pieces: list[Tensor | None] = []
    for part in allocation.parts:
        sides = _sides(blocks, part, dim, seed, checkpoint)
        pieces.append(blocks.project(part.layer, *sides))
    rest = list(blocks.rest(allocation.done)) if allocation.rest_size else []
    made = [piece for piece in pieces if piece is not None] + [block for _, block in rest]
    if not made:
        raise ShapeError("there is no gradient to sketch; the output uses no parameter")
    kind = torch.float64 if made[0].dtype == torch.float64 else torch.float32
    out = torch.zeros(blocks.n_rows, dim, dtype=kind, device=made[0].device)
    for part, piece in zip(allocation.parts, pieces, strict=True):
        if piece is not None:
            out[:, part.first : part.first + part.rows * part.columns] = piece.flatten(1)
    _add_rest(rest, allocation, out, seed, checkpoint)
    return out


def allocation_of(blocks: GradientBlocks, p: int, dim: int) -> Allocation:
    """`allocate` for the model of a batch."""
    key = ("allocation", dim)
    if key not in blocks.memo:
        blocks.memo[key] = allocate(blocks.outer_layers(), p, dim)
    found = blocks.memo[key]
    if not isinstance(found, Allocation):
        raise TypeError(f"the batch's memo holds {type(found).__name__} in the allocation's place")
    return found


def _sides(
    blocks: GradientBlocks, part: Part, dim: int, seed: int, checkpoint: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`sides_reference` as tensors; drawn once for all batches of a model.

    The scale is in the matrices, for a narrow type should not hold large sums.
    """
    key = ("sides", part.layer.name, dim, seed, checkpoint)
    if key not in blocks.memo:
        blocks.memo[key] = tuple(
            None if side is None else torch.from_numpy(side).to(blocks.device, blocks.dtype)
            for side in sides_reference(part, seed=seed, checkpoint=checkpoint)
        )
    rows, columns, bias = blocks.memo[key]
    return rows, columns, bias


def sides_reference(
    part: Part, *, seed: int, checkpoint: int
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """R [o, k_o], C [i, k_i] and the bias's row of C [k_i]; None for an identity or no bias.

    Where C is the identity and there is a bias, its row is the last one of the identity.
    """
    layer, full = part.layer, part.layer.size // part.layer.rows
    key = {"seed": seed, "checkpoint": checkpoint}
    rows = columns = bias = None
    if part.rows < layer.rows:
        index = layer.offset + layer.columns * np.arange(layer.rows)
        rows = signs(index, part.rows, kind=ROW_SIDE, **key) / math.sqrt(part.rows)
    if part.columns < full:
        index = layer.offset + np.arange(layer.columns)
        columns = signs(index, part.columns, kind=COLUMN_SIDE, **key) / math.sqrt(part.columns)
    if layer.bias_offset is not None:
        if columns is None:
            bias = np.eye(full)[-1]
        else:
            index = np.array([layer.bias_offset])
            bias = signs(index, part.columns, kind=COLUMN_SIDE, **key)[0] / math.sqrt(part.columns)
    return rows, columns, bias


def signs(
    index: NDArray[Any], width: int, *, kind: int, seed: int, checkpoint: int
) -> NDArray[np.float64]:
    """+1 and -1 [len(index), width]: bit c % 128 of the words of part c // 128 of each index."""
    key = {"kind": kind, "seed": seed, "checkpoint": checkpoint}
    parts = [
        bit_signs(words(index.astype(np.uint64), part, **key)) for part in range(-(-width // 128))
    ]
    return np.concatenate(parts, axis=1)[:, :width].astype(np.float64)


def factored_matrix(
    layers: Sequence[OuterLayer], p: int, dim: int, *, seed: int, checkpoint: int
) -> NDArray[np.float64]:
    """The definition: P [p, dim], all zeros included. For tests."""
    allocation = allocate(layers, p, dim)
    result = np.zeros((p, dim))
    inside = np.zeros(p, dtype=bool)
    for part in allocation.parts:
        layer, full = part.layer, part.layer.size // part.layer.rows
        rows, columns, bias = sides_reference(part, seed=seed, checkpoint=checkpoint)
        left = np.eye(layer.rows) if rows is None else rows
        right = np.eye(full)[: layer.columns] if columns is None else columns
        index = layer.offset + np.arange(layer.rows * layer.columns)
        span = slice(part.first, part.first + part.rows * part.columns)
        result[index, span] = np.kron(left, right)
        inside[index] = True
        if layer.bias_offset is not None and bias is not None:
            index = layer.bias_offset + np.arange(layer.rows)
            result[index, span] = np.kron(left, bias[None])
            inside[index] = True
    loose = np.flatnonzero(~inside)
    if len(loose):
        width = allocation.rest_width
        if len(loose) <= width:
            result[loose, allocation.rest_first :] = np.eye(len(loose), width)
        else:
            drawn = matrix(0, p, kind="sparse", dim=width, seed=seed, checkpoint=checkpoint)
            result[loose, allocation.rest_first :] = drawn[loose]
    return result


def _add_rest(
    rest: list[tuple[int, Tensor]], allocation: Allocation, out: Tensor, seed: int, checkpoint: int
) -> None:
    if not rest:
        return
    first, width = allocation.rest_first, allocation.rest_width
    if allocation.rest_size <= width:
        for _, block in rest:
            out[:, first : first + block.shape[1]] = block
            first += block.shape[1]
        return
    end = max(offset + block.shape[1] for offset, block in rest)
    out[:, first:] = sketch_blocks(
        rest, Projection(dim=width), seed=seed, checkpoint=checkpoint, p=end, dtype=out.dtype
    )
