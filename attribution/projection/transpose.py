"""From a sketch's columns back to parameters: P v for a projection P [p, k] that is never stored.

If s = P^T g then s . v = g . (P v), so a score that is linear in a sketch is a direction in the
space of the parameters. The bits are those of the reference, on the host; it is done once a vector.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.gradients import OuterLayer
from attribution.projection.factored import allocate, sides_reference
from attribution.projection.kinds import Projection, ProjectionKind
from attribution.projection.reference import entries, matrix
from attribution.streams import checked_seed
from schemas.errors import ShapeError

# Entries of P that are drawn at a time: 32 MiB in float64.
DRAWN_ENTRIES = 2**22


def backproject(
    vector: Tensor,
    projection: Projection,
    *,
    seed: int,
    checkpoint: int,
    p: int,
    layers: Sequence[OuterLayer] = (),
) -> Tensor:
    """P v, in the order of the flat gradient.

    Args:
        vector: v [k].
        projection: As the features were made with; "auto" must be settled first.
        seed: Seed of the projection.
        checkpoint: Index of the checkpoint.
        p: Parameters in all.
        layers: The model's layers with two sides, for "factored".

    Returns:
        [p], of the vector's type and on its device.

    Raises:
        ShapeError: The vector does not fit, or the projection is "auto".
    """
    if projection.kind == ProjectionKind.AUTO:
        raise ShapeError("projection 'auto' names no matrix; give the kind that was chosen")
    if vector.shape != (projection.width(p),):
        raise ShapeError(
            f"the vector has shape {tuple(vector.shape)}; expected ({projection.width(p)},), one "
            "number for each column of the sketch"
        )
    if projection.kind == ProjectionKind.NONE:
        return vector.clone()
    values = vector.detach().double().cpu().numpy()
    key = {"seed": checked_seed(seed), "checkpoint": checkpoint}
    if projection.kind == ProjectionKind.FACTORED:
        found = _factored(values, layers, p, **key)
    elif projection.kind == ProjectionKind.SPARSE:
        found = _sparse(values, p, projection.nonzeros, **key)
    else:
        found = np.empty(p)
        step = max(1, DRAWN_ENTRIES // len(values))
        for start in range(0, p, step):
            stop = min(start + step, p)
            rows = matrix(start, stop, kind=str(projection.kind), dim=projection.dim, **key)
            found[start:stop] = rows @ values
    return torch.from_numpy(found).to(vector.device, vector.dtype)


def _sparse(
    values: NDArray[np.float64], p: int, nonzeros: int, *, seed: int, checkpoint: int
) -> NDArray[np.float64]:
    found = np.empty(p)
    step = max(1, DRAWN_ENTRIES // (16 * nonzeros))
    for start in range(0, p, step):
        stop = min(start + step, p)
        columns, signs = entries(
            start, stop, dim=len(values), nonzeros=nonzeros, seed=seed, checkpoint=checkpoint
        )
        found[start:stop] = (values[columns] * signs).sum(axis=1) / np.sqrt(nonzeros)
    return found


def _factored(
    values: NDArray[np.float64],
    layers: Sequence[OuterLayer],
    p: int,
    *,
    seed: int,
    checkpoint: int,
) -> NDArray[np.float64]:
    allocation = allocate(layers, p, len(values))
    found, inside = np.zeros(p), np.zeros(p, dtype=bool)
    for part in allocation.parts:
        layer = part.layer
        piece = values[part.first :][: part.rows * part.columns].reshape(part.rows, part.columns)
        rows, columns, bias = sides_reference(part, seed=seed, checkpoint=checkpoint)
        left = piece if rows is None else rows @ piece
        weight = left[:, : layer.columns] if columns is None else left @ columns.T
        span = slice(layer.offset, layer.offset + layer.rows * layer.columns)
        found[span], inside[span] = weight.ravel(), True
        if layer.bias_offset is not None and bias is not None:
            span = slice(layer.bias_offset, layer.bias_offset + layer.rows)
            found[span], inside[span] = left @ bias, True
    loose, rest = np.flatnonzero(~inside), values[allocation.rest_first :]
    if len(loose) <= len(rest):
        found[loose] = rest[: len(loose)]
    else:
        found[loose] = _sparse(rest, p, 1, seed=seed, checkpoint=checkpoint)[loose]
    return found
