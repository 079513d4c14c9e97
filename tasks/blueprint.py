"""Every artifact that a spec implies, named before anything is computed.

A blueprint knows the ids of the bank's retrainings and the keys of checkpoints, feature shards,
scores, solutions, verdicts, values and the run itself; tasks look up what is sealed and make what
is not, and `flows.plan` counts. Keys follow the data: a checkpoint's features are named by the
digest of its weights, so whatever lies behind a checkpoint must exist before what follows can be
named. `tasks.stages` holds what names each stage.
"""

from typing import TYPE_CHECKING

from schemas.errors import CorruptArtifact, RequestError
from schemas.manifest import Manifest
from schemas.methods import Output
from schemas.spec import AttributionSpec, LoadedSpec
from store.artifacts import Artifacts, artifact_key
from store.datasets import StoredDataset
from store.workspace import Workspace
from tasks.bank_plan import BankPlan
from tasks.sets import ExampleSets
from tasks.stages.bank import BankStage
from tasks.stages.data import DataStage
from tasks.stages.problems import ProblemStage
from tasks.stages.scores import ScoreStage
from tasks.stages.training import TrainingStage
from tasks.stages.values import ValueStage
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from torch import nn


class Blueprint:
    """What one spec asks for, on one data set, in one workspace.

    Args:
        loaded: The spec and where it lies.
        workspace: Where artifacts are.
        data: The sealed rows.
        upto: The last request to forget rows that counts; without one, those that were answered.
        acts: How many of the acts that extended the bank count; without a number, all.
    """

    def __init__(
        self,
        loaded: LoadedSpec,
        workspace: Workspace,
        data: Manifest,
        *,
        upto: int | None = None,
        acts: int | None = None,
    ) -> None:
        self.loaded = loaded
        self.spec = spec = loaded.spec
        self.workspace = workspace
        self.artifacts = artifacts = Artifacts(workspace.artifacts)
        self._upto = upto
        self._noted: dict[str, set[str]] = {}
        self.data = DataStage(spec=spec, artifacts=artifacts, manifest=data)
        self.training = TrainingStage(loaded=loaded, data=self.data)
        self.retraining = BankStage(
            spec=spec, artifacts=artifacts, data=self.data, training=self.training, acts=acts
        )
        self.scores = ScoreStage(
            spec=spec,
            artifacts=artifacts,
            data=self.data,
            training=self.training,
            retraining=self.retraining,
        )
        self.problems = ProblemStage(
            loaded=loaded,
            workspace=workspace,
            data=self.data,
            training=self.training,
            scores=self.scores,
            upto=upto,
        )
        self.values = ValueStage(spec=spec, data=self.data, training=self.training)

    def at(self, acts: int) -> "Blueprint":
        """The same after only so many of the acts that extended the bank."""
        return Blueprint(
            self.loaded, self.workspace, self.data.manifest, upto=self._upto, acts=acts
        )

    def before(self, request: int) -> "Blueprint":
        """The same as it was before a request to forget rows, and those after it."""
        return Blueprint(self.loaded, self.workspace, self.data.manifest, upto=request - 1)

    # --- what nearly every task reads -------------------------------------------------------------

    @property
    def dataset(self) -> StoredDataset:
        """The ingested rows."""
        return self.data.dataset

    @property
    def n_train(self) -> int:
        """Training rows."""
        return self.data.n_train

    @property
    def sets(self) -> ExampleSets:
        """The sets of examples."""
        return self.data.sets

    @property
    def bank(self) -> BankPlan:
        """The bank's subsets and seeds, and what each is for."""
        return self.retraining.plan

    def build_model(self) -> "nn.Module":
        """A new, untrained model of the spec."""
        return self.training.build_model()

    def output(self, attribution: AttributionSpec) -> Output:
        """The output that an attribution explains."""
        return self.scores.output(attribution)

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

    # --- the run and all that it is made from -----------------------------------------------------

    def run_key(self) -> str | None:
        """Digest of everything that a run commits, or None while something cannot be named."""
        parts = [*self.keys("lds"), *self.keys("verdict"), *self.keys("values")]
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

    def tracking_key(self) -> str | None:
        """Key of the receipt that MLflow has the run."""
        run = self.run_key()
        return run and artifact_key("tracking", VERSIONS["tracking"], run, self.spec.tracking.uri)

    def keys(self, stage: str) -> list[str | None]:
        """Keys of a stage's artifacts; None for those that cannot be named yet.

        Of the bank only what is sealed has a key: chunks hold what was missing when they were made.
        """
        spec, training, problems = self.spec, self.training, self.problems
        match stage:
            case "data":
                return [self.data.manifest.key]
            case "checkpoints":
                full = training.checkpoint_keys if training.needs_checkpoints else ()
                return [*full, *training.snapshots.values()]
            case "bank":
                chunks = self.retraining.sealed.look().chunks(self.bank.ids)
                return [chunk.key for chunk in chunks]
            case "features":
                return self.scores.feature_keys()
            case "scores":
                return [self.scores.key(attribution) for attribution in spec.attribution]
            case "lds":
                return [self.scores.lds_key(attribution) for attribution in spec.attribution]
            case "solution":
                return [problems.solution_key(problem) for problem in problems.decisions]
            case "verdict":
                return [problems.verdict_key(problem) for problem in problems.decisions]
            case "values":
                return [self.values.key(problem) for problem in spec.valuations]
            case "run":
                return [self.run_key()]
            case _:
                return [self.tracking_key()]
