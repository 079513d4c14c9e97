"""Which projection a batch gets when the user says "auto", and what names it afterwards.

The sparse projection writes most gradient entries down and adds each of them somewhere; the
factored one forms no gradient. At one width sparse keeps a little more: LDS 0.216 / 0.228 / 0.236
for widths 256 / 512 / 2048, against 0.206 / 0.221 / 0.225 for factored (three draws each, their sd
0.003 to 0.009; an 18k-parameter MLP on 600 digits, four checkpoints), and no difference that could
be told from the draws' on a CNN. So "auto" takes sparse as long as it costs at most half a forward
and backward pass more, and factored beyond.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from attribution.gradients import GradientBlocks
from attribution.projection.factored import allocation_of
from attribution.projection.kinds import Projection, ProjectionKind, fingerprint
from schemas.errors import ShapeError

# Adding one gradient entry takes as long as this many operations of a matrix product: 0.35 to 0.45
# ns, and 100 operations a ns, on one core with AVX-512.
ADD_OPERATIONS = 40
# So does forming and adding one entry of a gradient that sums several positions (convolutions,
# tokens), row by row, where a plain backward pass sums the whole batch: 2 to 5 ns on nets of a
# million parameters, whose sparse features cost 1.5 to 2.3 passes and factored ones 1.0 to 1.2.
FORM_OPERATIONS = 500


def two_sided(blocks: Any, projection: Projection) -> GradientBlocks:
    """The batch itself.

    Raises:
        ShapeError: It is a plain stream of blocks, which has no sides to project.
    """
    if not isinstance(blocks, GradientBlocks):
        raise ShapeError(
            f"projection {projection.kind!r} needs a model's gradients, not blocks of numbers; "
            "use kind='sparse'"
        )
    return blocks


def settled(blocks: Iterable[Any], projection: Projection, *, p: int) -> Projection:
    """The projection with "auto" replaced by what was chosen, on the first batch of a model.

    Args:
        blocks: A batch of gradients.
        projection: As the user wrote it.
        p: Parameters in all.
    """
    if projection.kind != ProjectionKind.AUTO:
        return projection
    batch = two_sided(blocks, projection)
    key = ("choice", projection.dim)
    if key not in batch.memo:
        batch.memo[key] = replace(projection, kind=_choose(batch, projection.dim, p))
    chosen: Projection = batch.memo[key]
    return chosen


def fingerprint_of(
    blocks: Iterable[Any], projection: Projection, *, seed: int, checkpoint: int, p: int
) -> str:
    """`fingerprint`, with what "auto" chose and who has which columns of a factored sketch."""
    projection = settled(blocks, projection, p=p)
    name = fingerprint(projection, seed=seed, checkpoint=checkpoint, p=p)
    if projection.kind != ProjectionKind.FACTORED:
        return name
    allocation = allocation_of(two_sided(blocks, projection), p, projection.dim)
    return f"{name},layers={allocation.digest()}"


def _choose(batch: GradientBlocks, dim: int, p: int) -> ProjectionKind:
    layers = batch.outer_layers()
    if not layers or dim < len(layers) + 1 or p <= dim:
        return ProjectionKind.SPARSE
    passes = sum(6 * layer.size * batch.positions(layer) for layer in layers)
    formed = sum(layer.size for layer in layers if batch.positions(layer) > 1)
    spent = ADD_OPERATIONS * (p - formed) + FORM_OPERATIONS * formed
    return ProjectionKind.SPARSE if spent <= 0.5 * passes else ProjectionKind.FACTORED
