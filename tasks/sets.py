"""The spec's sets of examples, as ids: which rows are asked about, aimed at, judged on, bound.

All are test rows but those that must be chosen, left out or forgotten, which are training rows.
"""

import functools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from schemas.errors import DataError, QueryError
from schemas.questions import DEFAULT_SETS
from schemas.spec import (
    CurationSpec,
    DebugSpec,
    DecisionSpec,
    PoisonSpec,
    ScreenSpec,
    TraceSpec,
    target_sets,
)
from store.datasets import StoredDataset, select_ids

IntArray = NDArray[np.int64]


class ExampleSets:
    """The sets of one spec on one data set; each set's SQL runs once, when it is first needed."""

    def __init__(self, spec: CurationSpec, dataset: StoredDataset) -> None:
        self._spec = spec
        self._dataset = dataset
        self._found: dict[str, IntArray] = {}

    def ids(self, name: str) -> IntArray:
        """Ids of a set: test rows, in the order of the set's SQL.

        Args:
            name: Of the set; or the id of a row, which stands for itself; or SQL.

        Raises:
            QueryError: The SQL fails, or finds a training row.
        """
        found = self._found.get(name)
        if found is None:
            found = self._select(name)
            n_train = self._dataset.facts.n_train
            inside = found[self._dataset.positions(found) < n_train]
            if len(inside):
                raise QueryError(
                    f"{self._title(name)}: example {inside[0]} is a training row ({len(inside)} of "
                    f"{len(found)} are); choose from split = 'test'"
                )
            self._found[name] = found
        return found

    def train_ids(self, name: str, *, whole: bool = False) -> IntArray:
        """Ids of a named set of training rows, ascending.

        Args:
            name: The set.
            whole: Whether it may hold every training row.

        Raises:
            QueryError: The SQL fails, or finds a test row or every training row.
        """
        sql = self._spec.sets[name]
        return training_ids(self._dataset, sql, name=f"sets.{name}", whole=whole)

    def holds(self, name: str) -> bool:
        """Whether the spec has a set of that name."""
        return name in self._spec.sets

    def sql(self, name: str) -> str:
        """The SQL of a set, or what is no name of one as it is."""
        return self._spec.sets.get(name, name)

    def _select(self, name: str) -> IntArray:
        if name.isdigit():
            return self._single(int(name))
        sql = self.sql(name)
        try:
            return select_ids(self._dataset, sql, name=self._title(name))
        except QueryError as error:
            if sql == DEFAULT_SETS.get(name):  # the user wrote no such set
                raise QueryError(
                    f"there are too few test rows ({self._dataset.facts.n_test}) to halve them "
                    f"into 'queries' and 'holdout'; give more rows or a larger data.test_fraction"
                ) from error
            raise

    def _single(self, example: int) -> IntArray:
        found = np.array([example], dtype=np.int64)
        try:
            place = self._dataset.positions(found)[0]
        except DataError:
            raise QueryError(
                f"query {example}: there is no such example; ask about a test row"
            ) from None
        if place < self._dataset.facts.n_train:
            raise QueryError(f"query {example}: it is a training row; ask about a test row")
        return found

    def _title(self, name: str) -> str:
        """What an error calls a set."""
        if self.holds(name):
            return f"sets.{name}"
        return f"query {name}" if name.isdigit() else "query"

    @functools.cached_property
    def scored(self) -> IntArray:
        """Every test row that some set in use asks about, ascending: row j of every score.

        Raises:
            QueryError: A set cannot be used, or the judging rows are targets too.
        """
        self._refuse_overlap()
        return np.unique(np.concatenate([self.ids(name) for name in dict.fromkeys(self._used())]))

    @property
    def tuning(self) -> str:
        """The set whose single outputs tune and evaluate the attributions."""
        return next(self._used())

    def places(self, name: str) -> IntArray:
        """Places of a set's rows among `scored`."""
        return np.searchsorted(self.scored, self.ids(name)).astype(np.int64)

    def _used(self) -> Iterator[str]:
        asked = [each for each in self._spec.decisions if not isinstance(each, DebugSpec)]
        if "queries" in self._spec.sets:
            yield "queries"
        for problem in (*asked, *self._spec.screens):
            yield from target_sets(problem)
        if self._judged_apart or not (asked or "queries" in self._spec.sets):
            yield self._spec.verdict.judge_on
        # Last, so that a single query never tunes, and adds no set but its own.
        for diagnosis in self._spec.diagnoses:
            yield diagnosis.targets

    @property
    def _judged_apart(self) -> list[DecisionSpec | ScreenSpec]:
        """The problems whose answers are judged on other rows than those they were solved for."""
        beside = TraceSpec | DebugSpec | PoisonSpec
        decided = [each for each in self._spec.decisions if not isinstance(each, beside)]
        return [*decided, *self._spec.screens]

    def _refuse_overlap(self) -> None:
        judged = self._spec.verdict.judge_on
        for problem in self._judged_apart:
            aimed = np.concatenate([self.ids(name) for name in target_sets(problem)])
            shared = np.intersect1d(aimed, self.ids(judged))
            if len(shared):
                raise QueryError(
                    f"sets.{judged}: {len(shared)} rows, example {shared[0]} among them, are "
                    f"targets of problem '{problem.name}'; judge on rows that the solver never saw"
                )


def training_ids(dataset: StoredDataset, sql: str, *, name: str, whole: bool = False) -> IntArray:
    """Ids of some training rows by SQL, ascending.

    Args:
        dataset: The rows.
        sql: As `store.datasets.select_ids` takes it.
        name: What to call it in an error.
        whole: Whether it may find every training row.

    Raises:
        QueryError: The SQL fails, finds none, or finds a test row or every training row.
    """
    found = np.sort(select_ids(dataset, sql, name=name))
    n_train = dataset.facts.n_train
    outside = found[dataset.positions(found) >= n_train]
    if len(outside):
        raise QueryError(
            f"{name}: example {outside[0]} is a test row ({len(outside)} of {len(found)} are), and "
            "only what is trained on can be chosen or forgotten; choose from split = 'train'"
        )
    if len(found) == n_train and not whole:
        raise QueryError(
            f"{name}: all {n_train:,} training rows are to be forgotten; nothing would be left to "
            "train on, so an untrained model is the answer"
        )
    return found
