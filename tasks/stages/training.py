"""The model and the recipe of a spec, and the keys of checkpoints trained by it on all rows."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.frozen import digest_of
from schemas.recipe import TEXT_MODELS
from schemas.spec import AttributionSpec, CurationSpec, LoadedSpec, RunMethodSpec
from store.artifacts import artifact_key
from tasks.intake.recipes import recipe_digest
from tasks.stages.data import DataStage
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from torch import nn

    from attribution.training import Recipe

STAGE = "checkpoints"
# Arms of a verdict that models of all rows choose.
OF_CHECKPOINTS = frozenset({"highest_loss", "lowest_loss", "similar"})


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingStage:
    """How models are trained, and which are trained on all rows, or are one's own weights."""

    loaded: LoadedSpec
    data: DataStage

    @property
    def spec(self) -> CurationSpec:
        """The spec."""
        return self.loaded.spec

    # --- model and recipe -------------------------------------------------------------------------

    @functools.cached_property
    def model_digest(self) -> str:
        """Digest of the model's definition: builder, options, recipe file, shapes."""
        facts, path = self.data.dataset.facts, self.loaded.model_path
        code = recipe_digest(path) if path else ""
        model = self.spec.model
        parts = [model.build, model.options, code, facts.input_shape, facts.classes]
        # A text model is as wide as its vocabulary, which its options do not say.
        return digest_of([*parts, facts.n_tokens] if facts.n_tokens else parts)

    @functools.cached_property
    def recipe_digest(self) -> str:
        """Digest of the training recipe, whatever the number of seeds."""
        return digest_of(self.spec.train.model_dump(mode="json", exclude={"seeds"}))

    @functools.cached_property
    def digest(self) -> str:
        """Digest of what all retrainings share: the training rows, the model and the recipe."""
        return digest_of([self.data.train_digest, self.model_digest, self.recipe_digest])

    def build_model(self) -> "nn.Module":
        """A new, untrained model of the spec."""
        from tasks.intake.recipes import build_user_model

        model, facts = self.spec.model, self.data.dataset.facts
        options = dict(model.options)
        if model.build in TEXT_MODELS:
            options = {"vocabulary": facts.n_tokens} | options
        if facts.task == "language" and model.build == "transformer":
            options = {"causal": True} | options
        return build_user_model(
            model.build,
            options,
            facts.input_shape,
            facts.n_outputs,
            path=self.loaded.model_path,
        )

    def recipe(self) -> "Recipe":
        """The training recipe as the numerics take it."""
        from attribution.training import Recipe

        return Recipe(**self.spec.train.model_dump(exclude={"seeds"}))

    def seeds(self, count: int) -> tuple[int, ...]:
        """The first so many training seeds of models of all rows, or of any fixed rows."""
        from attribution.streams import SEED_LIMIT, Purpose, stream

        return tuple(
            int(stream(self.spec.seed, Purpose.SEEDS, place).integers(SEED_LIMIT))
            for place in range(count)
        )

    # --- checkpoints ------------------------------------------------------------------------------

    @property
    def needs_checkpoints(self) -> bool:
        """Whether an attribution or a verdict's arm reads models that were trained on all rows."""
        return self.arms_need_checkpoints or any(
            a.checkpoints == "full" for a in self.spec.attribution
        )

    @property
    def arms_need_checkpoints(self) -> bool:
        """Whether an arm of the verdicts is chosen by what models of all rows make of the rows."""
        return bool(self.spec.selections) and not OF_CHECKPOINTS.isdisjoint(self.spec.verdict.arms)

    @functools.cached_property
    def checkpoint_seeds(self) -> tuple[int, ...]:
        """Training seed of each checkpoint."""
        return self.seeds(self.spec.train.seeds)

    @functools.cached_property
    def checkpoint_keys(self) -> tuple[str, ...]:
        """Keys of the checkpoints trained on all rows, or of one's own weights.

        The rows are no part of the key: a checkpoint stays pinned while rows are appended, until
        it is refreshed. What it was trained on is among its facts.
        """
        if self.loaded.checkpoint_paths:
            return tuple(
                artifact_key(STAGE, VERSIONS[STAGE], self.model_digest, file_digest(path))
                for path in self.loaded.checkpoint_paths
            )
        return tuple(self._key(seed) for seed in self.checkpoint_seeds)

    @functools.cached_property
    def snapshots(self) -> dict[int, str]:
        """Key of each snapshot of the first training run that an attribution asks for, by epoch."""
        if self.loaded.checkpoint_paths:
            return {}
        epochs = self.spec.train.epochs
        runs = [a for a in self.spec.attribution if isinstance(a, RunMethodSpec)]
        wanted = {epoch for attribution in runs for epoch in attribution.snapshots(epochs)}
        first = self.checkpoint_seeds[0]
        return {epoch: self._key(first, f"epoch {epoch}") for epoch in sorted(wanted)}

    def keys_of(self, attribution: AttributionSpec) -> list[str]:
        """Keys of the checkpoints that an attribution of models of all rows averages over."""
        if isinstance(attribution, RunMethodSpec) and not self.loaded.checkpoint_paths:
            epochs = attribution.snapshots(self.spec.train.epochs)
            return [self.snapshots[epoch] for epoch in epochs]
        return list(self.checkpoint_keys)

    def _key(self, seed: int, *snapshot: str) -> str:
        parts = (self.model_digest, self.recipe_digest, self.spec.data, seed, *snapshot)
        return artifact_key(STAGE, VERSIONS[STAGE], *parts)


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
