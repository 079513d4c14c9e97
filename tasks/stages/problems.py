"""The problems that a verdict judges: rows they must forget, limits, and keys of the answers."""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spec import (
    DebugSpec,
    DecisionSpec,
    LoadedSpec,
    PoisonSpec,
    SelectSpec,
    TraceSpec,
    UnlearnSpec,
    attributions_of,
    target_sets,
)
from schemas.unlearning import ForgetRequest
from store.artifacts import artifact_key
from store.workspace import Workspace
from tasks.constraints import Limits, limits_of
from tasks.reach import Reach, reach_of
from tasks.requests import answered, requests_of, rows_named
from tasks.stages.data import DataStage
from tasks.stages.scores import ScoreStage
from tasks.stages.training import TrainingStage
from tasks.versions import VERSIONS

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class ProblemStage:
    """Selections, traces, diagnoses, unlearnings, poisonings, and what each is answered from."""

    loaded: LoadedSpec
    workspace: Workspace
    data: DataStage
    training: TrainingStage
    scores: ScoreStage
    upto: int | None = None
    """The last request to forget rows that counts; without one, those that have been answered."""
    _forgotten: dict[str, BoolArray] = field(default_factory=dict, init=False, repr=False)
    _limits: dict[str, Limits] = field(default_factory=dict, init=False, repr=False)
    _reach: dict[str, Reach] = field(default_factory=dict, init=False, repr=False)

    # --- what problems ask ------------------------------------------------------------------------

    @functools.cached_property
    def decisions(self) -> tuple[DecisionSpec, ...]:
        """The problems to solve and to judge; one that waits for requests is none yet."""
        return tuple(
            problem
            for problem in self.loaded.spec.decisions
            if not isinstance(problem, UnlearnSpec) or self.forgotten(problem).any()
        )

    @functools.cached_property
    def requests(self) -> tuple[ForgetRequest, ...]:
        """The requests to forget rows that count: those answered, or all up to the one at hand."""
        name = self.loaded.spec.name
        if self.upto is None:
            return answered(self.workspace, name)
        known = requests_of(self.workspace, name)
        return tuple(request for request in known if request.number <= self.upto)

    def forgotten(self, problem: UnlearnSpec) -> BoolArray:
        """The training rows that a problem's models must forget, by its set and by requests.

        Raises:
            QueryError: The set cannot be used.
        """
        found = self._forgotten.get(problem.name)
        if found is None:
            data = self.data
            found = np.zeros(data.n_train, dtype=bool)
            if problem.forget is not None:
                found[data.dataset.positions(data.sets.train_ids(problem.forget))] = True
            own = [request for request in self.requests if request.problem == problem.name]
            digests = data.digests[: data.n_train]
            found[list(rows_named(own, digests, data.dataset.train.example_ids))] = True
            self._forgotten[problem.name] = found
        return found

    def limits(self, problem: SelectSpec) -> Limits:
        """What a selection is bound by, on the training rows.

        Raises:
            RequestError: A name leads nowhere, or rows do not fit it.
        """
        if problem.name not in self._limits:
            self._limits[problem.name] = limits_of(self.data.dataset, self.data.sets, problem)
        return self._limits[problem.name]

    def reach(self, problem: PoisonSpec) -> Reach:
        """What a contributor can move, whom that is to harm, and where it should not show.

        Raises:
            RequestError: A name leads nowhere, or the rows do not fit it.
        """
        if problem.name not in self._reach:
            judged = self.loaded.spec.verdict.judge_on
            found = reach_of(self.data.dataset, self.data.sets, problem, judged)
            self._reach[problem.name] = found
        return self._reach[problem.name]

    # --- what names their answers -----------------------------------------------------------------

    def solution_key(self, problem: DecisionSpec) -> str | None:
        """Key of a problem's solution."""
        spec, data = self.loaded.spec, self.data
        used = [spec.attribution_named(name) for name in attributions_of(problem)]
        scores = [self.scores.key(attribution) for attribution in used]
        if None in scores:
            return None
        version = VERSIONS["solution"]
        if isinstance(problem, TraceSpec):
            # What links queries and rows is metadata, of which the rows' own digests know nothing.
            traced = data.sets.ids(problem.targets).tolist()
            parts = (problem, scores, traced, data.dataset.facts.dataset_id)
            return artifact_key("solution", version, *parts)
        if isinstance(problem, PoisonSpec):
            columns = data.metadata_digest if problem.by else ""
            judged = (self.reach(problem).digest, columns, data.test_digest)
            return artifact_key("solution", version, problem, scores, judged)
        names = (*target_sets(problem), spec.verdict.judge_on)
        aims: list[Any] = [data.sets.ids(name).tolist() for name in names]
        if isinstance(problem, UnlearnSpec):
            aims.append(np.flatnonzero(self.forgotten(problem)).tolist())
        if isinstance(problem, DebugSpec):
            aims.append(data.metadata_digest)  # it names slices by what no model sees
        if isinstance(problem, SelectSpec):
            aims.append(self.limits(problem).digest)
        return artifact_key("solution", version, problem, scores[0], aims)

    def verdict_key(self, problem: DecisionSpec) -> str | None:
        """Key of the retrainings that judge a solution."""
        spec, training, solution = self.loaded.spec, self.training, self.solution_key(problem)
        parts: list[Any] = [solution, spec.verdict, self.data.test_digest, spec.seed]
        if isinstance(problem, UnlearnSpec) and self.loaded.checkpoint_paths:
            parts.append(training.checkpoint_keys)  # what is handed over is made from own weights
        if isinstance(problem, SelectSpec) and training.arms_need_checkpoints:
            parts.append(training.checkpoint_keys)
        return solution and artifact_key("verdict", VERSIONS["verdict"], *parts)
