"""Every artifact that a spec implies, named before anything is computed.

A blueprint knows the ids of the bank's retrainings and the keys of checkpoints, feature shards,
scores, solutions, verdicts, values and the run itself; tasks look up what is sealed and make what
is not, and `flows.plan` counts. Keys follow the data: a checkpoint's features are named by the
digest of its weights, so whatever lies behind a checkpoint must exist before what follows can be
named.
"""

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray

from schemas.errors import CorruptArtifact, RequestError
from schemas.frozen import digest_of
from schemas.manifest import Manifest
from schemas.recipe import TEXT_MODELS
from schemas.spec import (
    AttributionSpec,
    DebugSpec,
    DecisionSpec,
    LoadedSpec,
    RunMethodSpec,
    SelectSpec,
    TraceSpec,
    TrakSpec,
    UnlearnSpec,
    ValueSpec,
    attributions_of,
    target_sets,
)
from schemas.unlearning import ForgetRequest
from store.artifacts import Artifacts, artifact_key
from store.datasets import StoredDataset, load_dataset
from store.workspace import Workspace
from tasks.bank_extension import Extension, read_extension
from tasks.bank_plan import BankPlan, draw_bank
from tasks.constraints import Limits, limits_of
from tasks.feature_plan import FEATURES_VERSION, FeatureShard, blocks, feature_shards
from tasks.ingest import SCALING_FILE
from tasks.intake.recipes import recipe_digest
from tasks.players import Players, players_of
from tasks.requests import answered, requests_of, rows_named
from tasks.retrainings import BANK_VERSION, STATES_FILE, Retrainings
from tasks.sets import ExampleSets

if TYPE_CHECKING:
    from torch import nn

    from attribution.training import Recipe

# Raised when the numbers that a stage makes change; old artifacts then simply no longer match.
VERSIONS = {
    "checkpoints": 2,
    "bank": BANK_VERSION,
    "features": FEATURES_VERSION,
    "scores": 3,
    "lds": 2,
    "solution": 5,
    "verdict": 5,
    "values": 1,
    "run": 2,
    "tracking": 1,
}
STAGES = ("data", *VERSIONS)

# Of the calibrating subsets, what a method without checkpoints is fitted to where a problem uses
# it. The others calibrate its surrogate: on subsets that weights were fitted to they look too good.
FITTED_SHARE = 0.75

# Arms of a verdict that models of all rows choose.
OF_CHECKPOINTS = frozenset({"highest_loss", "lowest_loss", "similar"})

IntArray = NDArray[np.int64]


class Weights(NamedTuple):
    """Where one checkpoint's parameters are: a model of a sealed stack."""

    manifest: Manifest
    place: int
    digest: str


class Blueprint:
    """What one spec asks for, on one data set, in one workspace."""

    def __init__(
        self,
        loaded: LoadedSpec,
        workspace: Workspace,
        data: Manifest,
        *,
        upto: int | None = None,
    ) -> None:
        self.loaded = loaded
        self.spec = loaded.spec
        self.workspace = workspace
        self.artifacts = Artifacts(workspace.artifacts)
        self.data = data
        self._upto = upto
        self._noted: dict[str, set[str]] = {}
        self._players: dict[str, Players] = {}
        self._forgotten: dict[str, NDArray[np.bool_]] = {}
        self._limits: dict[str, Limits] = {}

    # --- what everything is made from -------------------------------------------------------------

    @functools.cached_property
    def dataset(self) -> StoredDataset:
        """The ingested rows."""
        return load_dataset(self.artifacts.folder(self.data))

    @functools.cached_property
    def row_digests(self) -> tuple[str, ...]:
        """Digest of each row as the model sees it, label included, training rows first."""
        dataset = self.dataset
        # Content hashes are those of the raw inputs; standardised rows are others.
        scaling = next((f.sha256 for f in self.data.files if f.name == SCALING_FILE), "")
        return tuple(
            hashlib.sha256(f"{scaling}\n{content}\n{target}".encode()).hexdigest()
            for content, target in zip(dataset.hashes, dataset.targets.tolist(), strict=True)
        )

    @functools.cached_property
    def metadata_digest(self) -> str:
        """Digest of the metadata of the training rows, which no other key depends on."""
        rows = self.dataset.examples.filter(split="train").sort("example_id")
        return digest_of(rows["metadata"].to_list())

    @property
    def n_train(self) -> int:
        """Training rows."""
        return self.dataset.facts.n_train

    @functools.cached_property
    def model_digest(self) -> str:
        """Digest of the model's definition: builder, options, recipe file, shapes."""
        facts, path = self.dataset.facts, self.loaded.model_path
        code = recipe_digest(path) if path else ""
        model = self.spec.model
        parts = [model.build, model.options, code, facts.input_shape, facts.classes]
        # A text model is as wide as its vocabulary, which its options do not say.
        return digest_of([*parts, facts.n_tokens] if facts.n_tokens else parts)

    @functools.cached_property
    def recipe_digest(self) -> str:
        """Digest of the training recipe, whatever the number of seeds."""
        return digest_of(self.spec.train.model_dump(mode="json", exclude={"seeds"}))

    def build_model(self) -> "nn.Module":
        """A new, untrained model of the spec."""
        from tasks.intake.recipes import build_user_model

        model, facts = self.spec.model, self.dataset.facts
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

    def training(self) -> "Recipe":
        """The training recipe as the numerics take it."""
        from attribution.training import Recipe

        return Recipe(**self.spec.train.model_dump(exclude={"seeds"}))

    def sealed(self, stage: str, key: str | None) -> Manifest:
        """The manifest of an artifact that an earlier task has sealed.

        Raises:
            CorruptArtifact: It is no longer there, or what it is named by is not.
        """
        manifest = self.artifacts.find(stage, key) if key else None
        if manifest is None:
            raise CorruptArtifact(f"artifact {stage}/{key} disappeared; run again to rebuild it")
        return manifest

    def count_done(self, stage: str, key: str) -> int:
        """Note that an artifact is sealed; how many of its stage are, as far as noted."""
        noted = self._noted.setdefault(stage, set())
        noted.add(key)
        return len(noted)

    @functools.cached_property
    def sets(self) -> ExampleSets:
        """The sets of examples."""
        return ExampleSets(self.spec, self.dataset)

    @functools.cached_property
    def test_digest(self) -> str:
        """Digest of the rows on which retrained models are observed: all test rows."""
        return digest_of(self.row_digests[self.n_train :])

    @functools.cached_property
    def train_digest(self) -> str:
        """Digest of the training rows."""
        return digest_of(self.row_digests[: self.n_train])

    # --- checkpoints ------------------------------------------------------------------------------

    def training_seeds(self, count: int) -> tuple[int, ...]:
        """The first so many training seeds of models of all rows, or of any fixed rows."""
        from attribution.streams import SEED_LIMIT, Purpose, stream

        return tuple(
            int(stream(self.spec.seed, Purpose.SEEDS, place).integers(SEED_LIMIT))
            for place in range(count)
        )

    @functools.cached_property
    def checkpoint_seeds(self) -> tuple[int, ...]:
        """Training seed of each checkpoint."""
        return self.training_seeds(self.spec.train.seeds)

    @functools.cached_property
    def checkpoint_keys(self) -> tuple[str, ...]:
        """Keys of the checkpoints trained on all rows, or of one's own weights.

        The rows are no part of the key: a checkpoint stays pinned while rows are appended, until
        it is refreshed. What it was trained on is among its facts.
        """
        version = VERSIONS["checkpoints"]
        if self.loaded.checkpoint_paths:
            return tuple(
                artifact_key("checkpoints", version, self.model_digest, file_digest(path))
                for path in self.loaded.checkpoint_paths
            )
        parts = (self.model_digest, self.recipe_digest, self.spec.data)
        return tuple(
            artifact_key("checkpoints", version, *parts, seed) for seed in self.checkpoint_seeds
        )

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
    def snapshots(self) -> dict[int, str]:
        """Key of each snapshot of the first training run that an attribution asks for, by epoch."""
        if self.loaded.checkpoint_paths:
            return {}
        epochs = self.spec.train.epochs
        runs = [a for a in self.spec.attribution if isinstance(a, RunMethodSpec)]
        wanted = [attribution.snapshots(epochs) for attribution in runs]
        parts = (self.model_digest, self.recipe_digest, self.spec.data, self.checkpoint_seeds[0])
        version = VERSIONS["checkpoints"]
        return {
            epoch: artifact_key("checkpoints", version, *parts, f"epoch {epoch}")
            for epoch in sorted({epoch for group in wanted for epoch in group})
        }

    def _own_checkpoint_keys(self, attribution: AttributionSpec) -> list[str]:
        if isinstance(attribution, RunMethodSpec) and not self.loaded.checkpoint_paths:
            epochs = attribution.snapshots(self.spec.train.epochs)
            return [self.snapshots[epoch] for epoch in epochs]
        return list(self.checkpoint_keys)

    def weights(self, attribution: AttributionSpec) -> tuple[Weights, ...] | None:
        """The checkpoints of an attribution, or None while one is missing; some need none."""
        if attribution.checkpoints == "none":
            return ()
        if attribution.checkpoints == "bank":
            return self._bank_weights()
        keys = self._own_checkpoint_keys(attribution)
        found = [self.artifacts.find("checkpoints", key) for key in keys]
        sealed = [manifest for manifest in found if manifest]
        if len(sealed) < len(found):
            return None
        name = "model.safetensors"
        return tuple(Weights(manifest, 0, manifest.file(name).sha256) for manifest in sealed)

    def n_checkpoints(self, attribution: AttributionSpec) -> int:
        """How many checkpoints an attribution averages over."""
        if attribution.checkpoints == "none":
            return 0
        if attribution.checkpoints == "bank":
            return len(self.bank.checkpoint_rows)
        return len(self._own_checkpoint_keys(attribution))

    def fitted_share(self, attribution: AttributionSpec) -> float:
        """The share of the bank's calibrating subsets that an attribution is fitted to."""
        if not attribution.bank_only:
            return 0.0
        used = any(attribution.name in attributions_of(each) for each in self.spec.decisions)
        return FITTED_SHARE if used else 1.0

    # --- the retrain bank -------------------------------------------------------------------------

    @functools.cached_property
    def bank(self) -> BankPlan:
        """The bank's subsets and seeds, and what each is for."""
        return draw_bank(self.spec, self.n_train, name=self.retrain_id, extension=self.extension)

    @functools.cached_property
    def extension(self) -> Extension:
        """What extended the bank beyond its spec."""
        return read_extension(self.artifacts, self.bank_base)

    def at(self, acts: int) -> "Blueprint":
        """The same after only so many of the acts that extended the bank."""
        earlier = Blueprint(self.loaded, self.workspace, self.data, upto=self._upto)
        earlier.extension = read_extension(self.artifacts, self.bank_base, acts=acts)
        return earlier

    @functools.cached_property
    def trained_by(self) -> str:
        """Digest of what all retrainings share: the training rows, the model and the recipe."""
        return digest_of([self.train_digest, self.model_digest, self.recipe_digest])

    @functools.cached_property
    def bank_base(self) -> str:
        """Digest that names the bank of the spec, whatever extended it."""
        section = self.spec.bank.model_dump(mode="json")
        return digest_of([self.trained_by, section, self.spec.seed])

    @functools.cached_property
    def retrainings(self) -> Retrainings:
        """The sealed retrainings of the workspace, observed on the test rows."""
        return Retrainings(self.artifacts, self.row_digests[self.n_train :])

    def retrain_id(self, mask: NDArray[np.bool_], seed: int) -> str:
        """Name of the model trained on the masked rows."""
        rows = [self.row_digests[row] for row in np.flatnonzero(mask)]
        parts = (self.model_digest, self.recipe_digest, seed, rows)
        return artifact_key("retraining", VERSIONS["bank"], *parts)

    def missing(self) -> IntArray:
        """Rows of the bank that are not sealed, or not with the weights that are read."""
        known, serve = self.retrainings.look(), self.bank.checkpoint_ids
        lacks = [
            known.logits(name) is None or (name in serve and known.weights(name) is None)
            for name in self.bank.ids
        ]
        return np.flatnonzero(lacks)

    def _bank_weights(self) -> tuple[Weights, ...] | None:
        known = self.retrainings.look()
        names = self.bank.ids_of(self.bank.checkpoint_rows)
        places = [place for name in names if (place := known.weights(name))]
        if len(places) < len(names):
            return None
        return tuple(
            Weights(chunk, row, f"{chunk.file(STATES_FILE).sha256}:{row}") for chunk, row in places
        )

    # --- features, scores, decisions --------------------------------------------------------------

    def output(self, attribution: AttributionSpec) -> str:
        """The output that an attribution explains."""
        return attribution.output_for(self.dataset.facts.task)

    def features(self, attribution: AttributionSpec) -> tuple[FeatureShard, ...] | None:
        """The feature shards of an attribution, or None while a checkpoint is missing.

        There are none for a method that keeps no sketches.
        """
        weights = self.weights(attribution)
        if weights is None:
            return None
        if not is_sketched(attribution):
            return ()
        return tuple(feature_shards(self, attribution, [each.digest for each in weights]))

    def n_features(self, attribution: AttributionSpec) -> int:
        """How many feature shards an attribution needs."""
        if not is_sketched(attribution):
            return 0
        shards = len(blocks(self.n_train)) + len(blocks(len(self.sets.scored)))
        return self.n_checkpoints(attribution) * shards

    def scores_key(self, attribution: AttributionSpec) -> str | None:
        """Key of an attribution's scores, or None while its features cannot be named."""
        features, weights = self.features(attribution), self.weights(attribution)
        if features is None or weights is None:
            return None
        section = attribution.model_dump(mode="json", exclude={"name"})
        tuning = self.bank.ids_of(self.bank.rows("calibrate"))
        aimed = self.sets.ids(self.sets.tuning).tolist()
        made_from: list[Any] = [shard.key for shard in features] or [
            [each.digest for each in weights],
            self.model_digest,
            self.train_digest,
            [self.row_digests[row] for row in self.dataset.positions(self.sets.scored)],
        ]
        if attribution.bank_only:
            made_from.append(self.fitted_share(attribution))
        elif attribution.rows_only:
            made_from.append(self.dataset.facts.dataset_id)
        elif attribution.checkpoints == "none":
            made_from += [self.recipe_digest, self.checkpoint_seeds]
        parts = (section, made_from, tuning, aimed, self.spec.seed)
        return artifact_key("scores", VERSIONS["scores"], *parts)

    def lds_key(self, attribution: AttributionSpec) -> str | None:
        """Key of an attribution's evaluation."""
        scores = self.scores_key(attribution)
        rows = self.bank.ids_of(self.bank.rows("evaluate"))
        return scores and artifact_key("lds", VERSIONS["lds"], scores, rows)

    @functools.cached_property
    def requests(self) -> tuple[ForgetRequest, ...]:
        """The requests to forget rows that count: those answered, or all up to the one at hand."""
        if self._upto is None:
            return answered(self.workspace, self.spec.name)
        known = requests_of(self.workspace, self.spec.name)
        return tuple(request for request in known if request.number <= self._upto)

    def forgotten(self, problem: UnlearnSpec) -> NDArray[np.bool_]:
        """The training rows that a problem's models must forget, by its set and by requests.

        Raises:
            QueryError: The set cannot be used.
        """
        found = self._forgotten.get(problem.name)
        if found is None:
            found = np.zeros(self.n_train, dtype=bool)
            if problem.forget is not None:
                found[self.dataset.positions(self.sets.train_ids(problem.forget))] = True
            own = [request for request in self.requests if request.problem == problem.name]
            digests = self.row_digests[: self.n_train]
            found[list(rows_named(own, digests, self.dataset.train.example_ids))] = True
            self._forgotten[problem.name] = found
        return found

    @functools.cached_property
    def decisions(self) -> tuple[DecisionSpec, ...]:
        """The problems to solve and to judge; one that waits for requests is none yet."""
        return tuple(
            problem
            for problem in self.spec.decisions
            if not isinstance(problem, UnlearnSpec) or self.forgotten(problem).any()
        )

    def solution_key(self, problem: DecisionSpec) -> str | None:
        """Key of a problem's solution."""
        used = [self.spec.attribution_named(name) for name in attributions_of(problem)]
        scores = [self.scores_key(attribution) for attribution in used]
        if None in scores:
            return None
        version = VERSIONS["solution"]
        if isinstance(problem, TraceSpec):
            # What links queries and rows is metadata, of which the rows' own digests know nothing.
            traced = self.sets.ids(problem.targets).tolist()
            parts = (problem, scores, traced, self.dataset.facts.dataset_id)
            return artifact_key("solution", version, *parts)
        names = (*target_sets(problem), self.spec.verdict.judge_on)
        aims: list[Any] = [self.sets.ids(name).tolist() for name in names]
        if isinstance(problem, UnlearnSpec):
            aims.append(np.flatnonzero(self.forgotten(problem)).tolist())
        if isinstance(problem, DebugSpec):
            aims.append(self.metadata_digest)  # it names slices by what no model sees
        if isinstance(problem, SelectSpec):
            aims.append(self.limits(problem).digest)
        return artifact_key("solution", version, problem, scores[0], aims)

    def limits(self, problem: SelectSpec) -> Limits:
        """What a selection is bound by, on the training rows.

        Raises:
            RequestError: A name leads nowhere, or rows do not fit it.
        """
        if problem.name not in self._limits:
            self._limits[problem.name] = limits_of(self.dataset, self.sets, problem)
        return self._limits[problem.name]

    def verdict_key(self, problem: DecisionSpec) -> str | None:
        """Key of the retrainings that judge a solution."""
        solution = self.solution_key(problem)
        parts: list[Any] = [solution, self.spec.verdict, self.test_digest, self.spec.seed]
        if isinstance(problem, UnlearnSpec) and self.loaded.checkpoint_paths:
            parts.append(self.checkpoint_keys)  # what is handed over is made from one's own weights
        if isinstance(problem, SelectSpec) and self.arms_need_checkpoints:
            parts.append(self.checkpoint_keys)
        return solution and artifact_key("verdict", VERSIONS["verdict"], *parts)

    def values_key(self, problem: ValueSpec) -> str:
        """Key of what sources or rows are worth; no score and no bank is read for it."""
        aimed = self.dataset.positions(self.sets.ids(problem.targets))
        parts = (
            problem.model_dump(mode="json", exclude={"name", "max_retrainings"}),
            self.trained_by,
            self.players(problem).digest,
            [self.row_digests[row] for row in aimed],
            self.spec.seed,
        )
        return artifact_key("values", VERSIONS["values"], *parts)

    def players(self, problem: ValueSpec) -> Players:
        """Who is valued: the sources of the training rows, or the rows themselves.

        Raises:
            NotFound: The rows have no such column.
            DataError: Some row has no source.
        """
        if problem.name not in self._players:
            self._players[problem.name] = players_of(self.dataset, problem)
        return self._players[problem.name]

    def run_key(self) -> str | None:
        """Digest of everything that a run commits, or None while something cannot be named."""
        parts = [
            *(self.lds_key(attribution) for attribution in self.spec.attribution),
            *(self.verdict_key(problem) for problem in self.decisions),
            *(self.values_key(problem) for problem in self.spec.valuations),
        ]
        if None in parts:
            return None
        names = [a.name for a in self.spec.attribution] + [p.name for p in self.spec.problem]
        store = self.spec.store.max_rows
        return artifact_key("run", VERSIONS["run"], self.spec.name, names, parts, store)

    def run_id(self) -> str:
        """Name of the run in the ledger: the spec's name and twelve characters of its key.

        Raises:
            RequestError: Something that comes before it has not been made yet.
        """
        key = self.run_key()
        if key is None:
            raise RequestError("the run cannot be named before its checkpoints exist; run it first")
        return f"{self.spec.name}-{key[:12]}"

    def keys(self, stage: str) -> list[str | None]:
        """Keys of a stage's artifacts; None for those that cannot be named yet.

        Of the bank only what is sealed has a key: chunks hold what was missing when they were made.
        """
        spec = self.spec
        match stage:
            case "data":
                return [self.data.key]
            case "checkpoints":
                full = self.checkpoint_keys if self.needs_checkpoints else ()
                return [*full, *self.snapshots.values()]
            case "bank":
                chunks = self.retrainings.look().chunks(self.bank.ids)
                return [chunk.key for chunk in chunks]
            case "features":
                return self._feature_keys()
            case "scores":
                return [self.scores_key(attribution) for attribution in spec.attribution]
            case "lds":
                return [self.lds_key(attribution) for attribution in spec.attribution]
            case "solution":
                return [self.solution_key(problem) for problem in self.decisions]
            case "verdict":
                return [self.verdict_key(problem) for problem in self.decisions]
            case "values":
                return [self.values_key(problem) for problem in spec.valuations]
            case "run":
                return [self.run_key()]
            case _:
                return [self.tracking_key()]

    def _feature_keys(self) -> list[str | None]:
        named: dict[str, None] = {}
        unnamed = 0
        for attribution in self.spec.attribution:
            shards = self.features(attribution)
            named |= {shard.key: None for shard in shards or ()}
            unnamed += 0 if shards else self.n_features(attribution)
        return [*named, *[None] * unnamed]

    def tracking_key(self) -> str | None:
        """Key of the receipt that MLflow has the run."""
        run = self.run_key()
        return run and artifact_key("tracking", VERSIONS["tracking"], run, self.spec.tracking.uri)


def is_sketched(attribution: AttributionSpec) -> TypeGuard[TrakSpec]:
    """Whether a method works from sketches, which are kept and serve new queries.

    The multi-class curvature keeps a sketch of every logit of every row; it is made in one go.
    """
    return isinstance(attribution, TrakSpec) and attribution.curvature != "ggn"


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
