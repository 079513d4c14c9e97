"""Which blocks of sketched gradients an attribution needs: of which rows, under which key."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.spec import TrakSpec
from store.artifacts import artifact_key

if TYPE_CHECKING:
    from tasks.blueprint import Blueprint

FEATURES_VERSION = 2
# Rows of one feature shard: what a killed run can lose.
SHARD_ROWS = 8_192

IntArray = NDArray[np.int64]


class FeatureShard(NamedTuple):
    """One checkpoint's sketches of one block of rows.

    Attributes:
        key: The artifact's key.
        attribution: Name of an attribution that needs it; others may share it.
        checkpoint: Place of the checkpoint among the attribution's own.
        side: "train" or "query".
        start: First row of the block, among the training rows or the scored queries.
        stop: One past its last row.
    """

    key: str
    attribution: str
    checkpoint: int
    side: str
    start: int
    stop: int


def feature_shards(
    plan: "Blueprint", attribution: TrakSpec, weights: Sequence[str]
) -> Iterator[FeatureShard]:
    """The shards of a sketched attribution, checkpoint by checkpoint.

    Args:
        plan: The blueprint.
        attribution: What needs them.
        weights: Digest of each checkpoint's weights.
    """
    queries = plan.dataset.positions(plan.sets.scored)
    sides = (("train", np.arange(plan.n_train)), ("query", queries))
    for place, digest in enumerate(weights):
        for side, rows in sides:
            for start, stop in blocks(len(rows)):
                key = _key(plan, attribution, place, digest, side, rows[start:stop])
                yield FeatureShard(key, attribution.name, place, side, start, stop)


def blocks(rows: int) -> list[tuple[int, int]]:
    """First row of each shard, and one past its last."""
    return [(start, min(start + SHARD_ROWS, rows)) for start in range(0, rows, SHARD_ROWS)]


def _key(
    plan: "Blueprint", attribution: TrakSpec, place: int, digest: str, side: str, rows: IntArray
) -> str:
    output = plan.output(attribution) if side == "query" else "training"
    return artifact_key(
        "features",
        FEATURES_VERSION,
        attribution.projection,
        output,
        digest,
        place,
        plan.spec.seed,
        plan.model_digest,
        [plan.row_digests[row] for row in rows],
    )
