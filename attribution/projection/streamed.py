"""Sketching a stream of gradient blocks, each at its place in the flat gradient."""

from collections.abc import Iterable

import torch
from torch import Tensor

from attribution.projection.implementation import adder
from attribution.projection.kinds import Projection, ProjectionKind
from attribution.streams import checked_seed
from schemas.errors import ShapeError


def sketch_blocks(
    blocks: Iterable[tuple[int, Tensor]],
    projection: Projection,
    *,
    seed: int,
    checkpoint: int,
    p: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Sketch one batch of per-example gradients, block by block.

    Args:
        blocks: (offset in the flat gradient, [B, entries]) in any order and of any sizes.
        projection: What the sketch looks like.
        seed: Seed of the projection, 0 <= seed < 2**63.
        checkpoint: Index of the checkpoint: each has a matrix of its own.
        p: Length of the flat gradient.
        dtype: Of the result; float32, or the blocks' own where that is float64.

    Returns:
        [B, k] on the blocks' device.

    Raises:
        ShapeError: A block reaches over the end, batches differ, or no block came.
    """
    seed, width = checked_seed(seed), projection.width(p)
    if not 0 <= checkpoint < 2**32:
        raise ShapeError(f"checkpoint index {checkpoint} is out of range; give one in [0, 2**32)")
    out: Tensor | None = None
    for offset, block in blocks:
        if out is None:
            kind = dtype or (torch.float64 if block.dtype == torch.float64 else torch.float32)
            out = torch.zeros(block.shape[0], width, dtype=kind, device=block.device)
        if block.ndim != 2 or block.shape[0] != out.shape[0]:
            raise ShapeError(
                f"a gradient block has shape {tuple(block.shape)}; expected {out.shape[0]} rows"
            )
        if not 0 <= offset <= offset + block.shape[1] <= p:
            raise ShapeError(
                f"a gradient block covers {offset}..{offset + block.shape[1]} of {p} parameters"
            )
        values = block.detach().to(out.dtype)
        if projection.kind == ProjectionKind.NONE:
            out[:, offset : offset + block.shape[1]] = values
        else:
            _add(values, out, projection, offset, seed, checkpoint)
    if out is None:
        raise ShapeError("there is no gradient block to sketch; the model has no parameters")
    if projection.scale != 1.0:
        out *= projection.scale
    return out


def _add(
    values: Tensor, out: Tensor, projection: Projection, offset: int, seed: int, checkpoint: int
) -> None:
    if not values.numel():
        return
    add_sketch = adder(out.device, projection)
    add_sketch(
        values,
        out,
        kind=str(projection.kind),
        nonzeros=projection.nonzeros,
        offset=offset,
        seed=seed,
        checkpoint=checkpoint,
    )
