"""Sketching one batch of gradients with any projection."""

from collections.abc import Iterable

import torch
from torch import Tensor

from attribution.projection import choice, rowwise
from attribution.projection.factored import factored_sketch
from attribution.projection.kinds import Projection, ProjectionKind
from attribution.projection.streamed import sketch_blocks


def sketch(
    blocks: Iterable[tuple[int, Tensor]],
    projection: Projection,
    *,
    seed: int,
    checkpoint: int,
    p: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Sketch one batch of per-example gradients.

    Args:
        blocks: (offset in the flat gradient, [B, entries]) in any order and of any sizes; for
            "factored" and "auto" a model's `GradientBlocks`.
        projection: What the sketch looks like.
        seed: Seed of the projection, 0 <= seed < 2**63.
        checkpoint: Index of the checkpoint: each has a matrix of its own.
        p: Length of the flat gradient.
        dtype: Of the result; float32, or the blocks' own where that is float64.

    Returns:
        [B, k] on the blocks' device.

    Raises:
        ShapeError: A block reaches over the end, batches differ, no block came, or a
            factored sketch is asked of plain blocks.
    """
    projection = choice.settled(blocks, projection, p=p)
    options = {"seed": seed, "checkpoint": checkpoint, "p": p}
    if projection.kind == ProjectionKind.FACTORED:
        batch = choice.two_sided(blocks, projection)
        return factored_sketch(batch, projection.dim, **options)
    if dtype is None and rowwise.suits(blocks, projection, p):
        batch = choice.two_sided(blocks, projection)
        return rowwise.sparse_sketch(batch, projection, **options)
    return sketch_blocks(blocks, projection, **options, dtype=dtype)
