"""The retrain bank of a spec: what was drawn, what extended it, and the ids of its models."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.frozen import digest_of
from schemas.spec import CurationSpec
from store.artifacts import Artifacts, artifact_key
from tasks.bank_extension import Extension, read_extension
from tasks.bank_plan import BankPlan, draw_bank
from tasks.retrainings import Retrainings
from tasks.sets import IntArray
from tasks.stages.data import DataStage
from tasks.stages.training import TrainingStage
from tasks.versions import VERSIONS


@dataclass(frozen=True, kw_only=True, eq=False)
class BankStage:
    """Models retrained on subsets: the bank's, and any others, which go by the same names."""

    spec: CurationSpec
    artifacts: Artifacts
    data: DataStage
    training: TrainingStage
    acts: int | None = None
    """How many of the acts that extended the bank count; all, without a number."""

    @functools.cached_property
    def base(self) -> str:
        """Digest that names the bank of the spec, whatever extended it."""
        section = self.spec.bank.model_dump(mode="json")
        return digest_of([self.training.digest, section, self.spec.seed])

    @functools.cached_property
    def extension(self) -> Extension:
        """What extended the bank beyond its spec."""
        return read_extension(self.artifacts, self.base, acts=self.acts)

    @functools.cached_property
    def plan(self) -> BankPlan:
        """The bank's subsets and seeds, and what each is for."""
        return draw_bank(self.spec, self.data.n_train, name=self.id_of, extension=self.extension)

    @functools.cached_property
    def sealed(self) -> Retrainings:
        """The sealed retrainings of the workspace, observed on the test rows."""
        return Retrainings(self.artifacts, self.data.digests[self.data.n_train :])

    def id_of(
        self, mask: NDArray[np.bool_], seed: int, digests: Sequence[str] | None = None
    ) -> str:
        """Name of the model trained on the masked rows: training rows, or those of the digests."""
        known = self.data.digests if digests is None else digests
        rows = [known[row] for row in np.flatnonzero(mask).tolist()]
        parts = (self.training.model_digest, self.training.recipe_digest, seed, rows)
        return artifact_key("retraining", VERSIONS["bank"], *parts)

    def ids_of(
        self, masks: NDArray[np.bool_], seeds: IntArray, digests: Sequence[str] | None = None
    ) -> list[str]:
        """Names of the models trained on the rows of each mask [M, n], by their seeds [M]."""
        pairs = zip(masks, seeds.tolist(), strict=True)
        return [self.id_of(mask, seed, digests) for mask, seed in pairs]

    def missing(self) -> IntArray:
        """Rows of the bank that are not sealed, or not with the weights that are read."""
        known, serve = self.sealed.look(), self.plan.checkpoint_ids
        lacks = [
            known.logits(name) is None or (name in serve and known.weights(name) is None)
            for name in self.plan.ids
        ]
        return np.flatnonzero(lacks)
