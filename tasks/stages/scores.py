"""The checkpoints and sketches that an attribution works from, and the keys of its scores."""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from schemas.manifest import Manifest
from schemas.methods import Output
from schemas.spec import AttributionSpec, CurationSpec, TrakSpec, attributions_of
from store.artifacts import Artifacts, artifact_key
from tasks.retrainings import STATES_FILE
from tasks.stages.bank import BankStage
from tasks.stages.data import DataStage
from tasks.stages.features import FeatureShard, FeatureStage
from tasks.stages.training import STAGE as CHECKPOINTS
from tasks.stages.training import TrainingStage
from tasks.versions import VERSIONS

# Of the calibrating subsets, what a method without checkpoints is fitted to where a problem uses
# it. The others calibrate its surrogate: on subsets that weights were fitted to they look too good.
FITTED_SHARE = 0.75


class Weights(NamedTuple):
    """Where one checkpoint's parameters are: a model of a sealed stack."""

    manifest: Manifest
    place: int
    digest: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreStage:
    """Attributions: what each explains, is made from, and is named by."""

    spec: CurationSpec
    artifacts: Artifacts
    data: DataStage
    training: TrainingStage
    retraining: BankStage

    def output(self, attribution: AttributionSpec) -> Output:
        """The output that an attribution explains."""
        return attribution.output_for(self.data.dataset.facts.task)

    def fitted_share(self, attribution: AttributionSpec) -> float:
        """The share of the bank's calibrating subsets that an attribution is fitted to."""
        if not attribution.bank_only:
            return 0.0
        used = any(attribution.name in attributions_of(each) for each in self.spec.decisions)
        return FITTED_SHARE if used else 1.0

    # --- checkpoints and sketches -----------------------------------------------------------------

    def weights(self, attribution: AttributionSpec) -> tuple[Weights, ...] | None:
        """The checkpoints of an attribution, or None while one is missing; some need none."""
        if attribution.checkpoints == "none":
            return ()
        if attribution.checkpoints == "bank":
            return self._bank_weights()
        keys = self.training.keys_of(attribution)
        found = [self.artifacts.find(CHECKPOINTS, key) for key in keys]
        sealed = [manifest for manifest in found if manifest]
        if len(sealed) < len(found):
            return None
        name = "model.safetensors"
        return tuple(Weights(manifest, 0, manifest.file(name).sha256) for manifest in sealed)

    def _bank_weights(self) -> tuple[Weights, ...] | None:
        known, bank = self.retraining.sealed.look(), self.retraining.plan
        names = bank.ids_of(bank.checkpoint_rows)
        places = [place for name in names if (place := known.weights(name))]
        if len(places) < len(names):
            return None
        return tuple(
            Weights(chunk, row, f"{chunk.file(STATES_FILE).sha256}:{row}") for chunk, row in places
        )

    def n_checkpoints(self, attribution: AttributionSpec) -> int:
        """How many checkpoints an attribution averages over."""
        if attribution.checkpoints == "none":
            return 0
        if attribution.checkpoints == "bank":
            return len(self.retraining.plan.checkpoint_rows)
        return len(self.training.keys_of(attribution))

    def features(self, attribution: AttributionSpec) -> tuple[FeatureShard, ...] | None:
        """The feature shards of an attribution, or None while a checkpoint is missing.

        There are none for a method that keeps no sketches.
        """
        weights = self.weights(attribution)
        if weights is None:
            return None
        if not is_sketched(attribution):
            return ()
        return tuple(self._sketches.shards(attribution, [each.digest for each in weights]))

    def n_features(self, attribution: AttributionSpec) -> int:
        """How many feature shards an attribution needs."""
        if not is_sketched(attribution):
            return 0
        return self._sketches.count(self.n_checkpoints(attribution))

    def feature_keys(self) -> list[str | None]:
        """Keys of the feature shards of all attributions; None for each that has no name yet."""
        named: dict[str, None] = {}
        unnamed = 0
        for attribution in self.spec.attribution:
            shards = self.features(attribution)
            named |= {shard.key: None for shard in shards or ()}
            unnamed += 0 if shards else self.n_features(attribution)
        return [*named, *[None] * unnamed]

    @property
    def _sketches(self) -> FeatureStage:
        return FeatureStage(spec=self.spec, data=self.data, training=self.training)

    # --- scores and their evaluation --------------------------------------------------------------

    def key(self, attribution: AttributionSpec) -> str | None:
        """Key of an attribution's scores, or None while its features cannot be named."""
        features, weights = self.features(attribution), self.weights(attribution)
        if features is None or weights is None:
            return None
        data, bank = self.data, self.retraining.plan
        section = attribution.model_dump(mode="json", exclude={"name"})
        tuning = bank.ids_of(bank.rows("calibrate"))
        aimed = data.sets.ids(data.sets.tuning).tolist()
        made_from: list[Any] = [shard.key for shard in features] or [
            [each.digest for each in weights],
            self.training.model_digest,
            data.train_digest,
            [data.digests[row] for row in data.dataset.positions(data.sets.scored)],
        ]
        if attribution.bank_only:
            made_from.append(self.fitted_share(attribution))
        elif attribution.rows_only:
            made_from.append(data.dataset.facts.dataset_id)
        elif attribution.checkpoints == "none":
            made_from += [self.training.recipe_digest, self.training.checkpoint_seeds]
        parts = (section, made_from, tuning, aimed, self.spec.seed)
        return artifact_key("scores", VERSIONS["scores"], *parts)

    def lds_key(self, attribution: AttributionSpec) -> str | None:
        """Key of an attribution's evaluation."""
        scores, bank = self.key(attribution), self.retraining.plan
        rows = bank.ids_of(bank.rows("evaluate"))
        return scores and artifact_key("lds", VERSIONS["lds"], scores, rows)


def is_sketched(attribution: AttributionSpec) -> TypeGuard[TrakSpec]:
    """Whether a method works from sketches, which are kept and serve new queries.

    The multi-class curvature keeps a sketch of every logit of every row; it is made in one go.
    """
    return isinstance(attribution, TrakSpec) and attribution.curvature != "ggn"
