"""Which blocks of sketched gradients an attribution needs: of which rows, under which key."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from schemas.spec import CurationSpec, TrakSpec
from store.artifacts import artifact_key
from tasks.sets import IntArray
from tasks.stages.data import DataStage
from tasks.stages.training import TrainingStage
from tasks.versions import VERSIONS

STAGE = "features"
# Rows of one feature shard: what a killed run can lose.
SHARD_ROWS = 8_192


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


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureStage:
    """Shards of sketches: of each checkpoint, the training rows and the scored queries."""

    spec: CurationSpec
    data: DataStage
    training: TrainingStage

    def shards(self, attribution: TrakSpec, weights: Sequence[str]) -> Iterator[FeatureShard]:
        """The shards of a sketched attribution, checkpoint by checkpoint.

        Args:
            attribution: What needs them.
            weights: Digest of each checkpoint's weights.
        """
        queries = self.data.dataset.positions(self.data.sets.scored)
        sides = (("train", np.arange(self.data.n_train)), ("query", queries))
        for place, digest in enumerate(weights):
            for side, rows in sides:
                for start, stop in _blocks(len(rows)):
                    key = self._key(attribution, place, digest, side, rows[start:stop])
                    yield FeatureShard(key, attribution.name, place, side, start, stop)

    def count(self, n_checkpoints: int) -> int:
        """How many shards the sketches of so many checkpoints take."""
        sides = (self.data.n_train, len(self.data.sets.scored))
        return n_checkpoints * sum(len(_blocks(rows)) for rows in sides)

    def _key(
        self, attribution: TrakSpec, place: int, digest: str, side: str, rows: IntArray
    ) -> str:
        task = self.data.dataset.facts.task
        return artifact_key(
            STAGE,
            VERSIONS[STAGE],
            attribution.projection,
            attribution.output_for(task) if side == "query" else "training",
            digest,
            place,
            self.spec.seed,
            self.training.model_digest,
            [self.data.digests[row] for row in rows],
        )


def _blocks(rows: int) -> list[tuple[int, int]]:
    """First row of each shard, and one past its last."""
    return [(start, min(start + SHARD_ROWS, rows)) for start in range(0, rows, SHARD_ROWS)]
