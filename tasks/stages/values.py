"""Problems that ask what sources or rows are worth: who is valued, and the keys of the answers."""

from dataclasses import dataclass, field

from schemas.spec import CurationSpec, ValueSpec
from store.artifacts import artifact_key
from tasks.players import Players, players_of
from tasks.stages.data import DataStage
from tasks.stages.training import TrainingStage
from tasks.versions import VERSIONS

STAGE = "values"


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueStage:
    """Valuations, for which no score and no bank is read."""

    spec: CurationSpec
    data: DataStage
    training: TrainingStage
    _players: dict[str, Players] = field(default_factory=dict, init=False, repr=False)

    def players(self, problem: ValueSpec) -> Players:
        """Who is valued: the sources of the training rows, or the rows themselves.

        Raises:
            NotFound: The rows have no such column.
            DataError: Some row has no source.
        """
        if problem.name not in self._players:
            self._players[problem.name] = players_of(self.data.dataset, problem)
        return self._players[problem.name]

    def key(self, problem: ValueSpec) -> str:
        """Key of what sources or rows are worth."""
        aimed = self.data.dataset.positions(self.data.sets.ids(problem.targets))
        parts = (
            problem.model_dump(mode="json", exclude={"name", "max_retrainings"}),
            self.training.digest,
            self.players(problem).digest,
            [self.data.digests[row] for row in aimed],
            self.spec.seed,
        )
        return artifact_key(STAGE, VERSIONS[STAGE], *parts)
