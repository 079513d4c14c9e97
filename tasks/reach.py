"""What a contributor can move, whom that is to harm, and where it should not show.

Names of a spec become places of rows; what no attack could be made of is refused here, before
anything is trained.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InfeasibleProblem, QueryError
from schemas.frozen import digest_of, nearest
from schemas.spec import PoisonSpec
from store.datasets import StoredDataset, select_ids
from tasks.sets import ExampleSets, training_ids

IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Reach:
    """The rows of one poisoning.

    Attributes:
        places: Int64 [m], places among all rows of those that may be moved or inserted.
        targets: Int64, ids of the test rows whose outputs are to be worse.
        elsewhere: Int64, ids of the judging rows that are no targets.
        classes: Int64, the classes of the targets.
        budgets: Moves at most, ascending.
        taken_for: The class that targets should be taken for; None where none is wished for.
    """

    places: IntArray
    targets: IntArray
    elsewhere: IntArray
    classes: IntArray
    budgets: tuple[int, ...]
    taken_for: int | None = None

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hex characters that name what the rows have to do with the spec's names."""
        parts = (self.places, self.targets, self.elsewhere, self.classes)
        return digest_of([*(part.tolist() for part in parts), self.budgets, self.taken_for])


def reach_of(dataset: StoredDataset, sets: ExampleSets, problem: PoisonSpec, judged: str) -> Reach:
    """The rows of a poisoning.

    Args:
        dataset: The rows.
        sets: The spec's sets.
        problem: The problem.
        judged: The set that judges.

    Raises:
        QueryError: A set or its SQL cannot be used, or would train on what judges.
        InfeasibleProblem: There are no labels to move, no row of the targets' classes, nobody else
            to judge on, or fewer rows than the budget; or inputs are to move that are tokens or
            outside the valid range.
    """
    asker = f"problem '{problem.name}'"
    if not dataset.classes:
        raise InfeasibleProblem(
            f"{asker}: a {dataset.facts.task} has no labels to move; ask this of a classification"
        )
    targets = sets.ids(problem.targets)
    elsewhere = np.setdiff1d(sets.ids(judged), targets)
    if not len(elsewhere):
        raise InfeasibleProblem(
            f"{asker}: every row of sets.{judged} is a target; let judge_on hold others, on which "
            "the attack should not show"
        )
    places = _places(dataset, sets, problem, np.union1d(targets, elsewhere))
    classes = np.unique(dataset.targets[dataset.positions(targets)])
    if not np.isin(dataset.targets[places], classes).any():
        raise InfeasibleProblem(
            f"{asker}: none of the {len(places):,} rows that may be moved has the class of a "
            "target; let the contributor have some, or random moves inside the class say nothing"
        )
    taken_for, most = None, len(places)
    if problem.moves_inputs:
        _refuse_inputs(dataset, places, problem)
    if problem.taken_for is not None:
        taken_for = _class_named(dataset, problem.taken_for, classes, asker)
        most = int((dataset.targets[places] == taken_for).sum())
    budgets = problem.counts(dataset.facts.n_train)
    if not budgets[0]:
        raise InfeasibleProblem(
            f"{asker}: a budget of {min(problem.amounts):g} of {dataset.facts.n_train:,} training "
            "rows is no row; allow at least 1"
        )
    if budgets[-1] > most:
        own = "" if taken_for is None else f" of class '{problem.taken_for}'"
        raise InfeasibleProblem(
            f"{asker}: a budget of {budgets[-1]:,} of {most:,} rows{own} that may be moved; allow "
            "at most these"
        )
    return Reach(
        places=places,
        targets=targets,
        elsewhere=elsewhere,
        classes=classes,
        budgets=budgets,
        taken_for=taken_for,
    )


def _refuse_inputs(dataset: StoredDataset, places: IntArray, problem: PoisonSpec) -> None:
    """Refuse inputs that cannot move a little."""
    asker = f"problem '{problem.name}'"
    if dataset.facts.n_tokens or dataset.inputs.dtype.kind != "f":
        raise InfeasibleProblem(
            f"{asker}: these inputs are tokens, and between two of them there is nothing; use "
            "'flip' or 'insert'"
        )
    if problem.valid is not None:
        low, high = problem.valid
        own = np.asarray(dataset.inputs[places])
        outside = ((own < low) | (own > high)).reshape(len(places), -1).any(axis=1)
        if outside.any():
            raise InfeasibleProblem(
                f"{asker}: {outside.sum():,} of {len(places):,} rows that may be moved lie outside "
                f"{low:g} to {high:g}; widen valid, in the unit that models see"
            )


def _class_named(dataset: StoredDataset, name: str, classes: IntArray, asker: str) -> int:
    """The class that targets should be taken for, which none of them is of."""
    if name not in dataset.classes:
        raise InfeasibleProblem(
            f"{asker}: taken_for: there is no class '{name}'{nearest(name, dataset.classes)}"
        )
    found = dataset.classes.index(name)
    if found in classes:
        raise InfeasibleProblem(
            f"{asker}: some targets are '{name}' already; aim at rows that should be taken for it"
        )
    return found


def _places(
    dataset: StoredDataset, sets: ExampleSets, problem: PoisonSpec, seen: IntArray
) -> IntArray:
    """Where the rows are that may be moved, ascending."""
    asked = problem.rows or problem.pool
    if asked is None:
        return np.arange(dataset.facts.n_train)
    option = "rows" if problem.rows else "pool"
    title = f"sets.{asked}" if sets.holds(asked) else f"problem '{problem.name}', {option}"
    sql = sets.sql(asked)
    if option == "rows":
        return dataset.positions(training_ids(dataset, sql, name=title, whole=True))
    ids = np.sort(select_ids(dataset, sql, name=title))
    both = np.intersect1d(ids, seen)
    if len(both):
        raise QueryError(
            f"{title}: example {both[0]} is a target or judges ({len(both)} of {len(ids)} do); "
            "insert rows that the models are not asked about"
        )
    return dataset.positions(ids)
