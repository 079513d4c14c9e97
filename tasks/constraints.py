"""What a selection is bound by, on the training rows: a spec's quotas, budgets, sets, duplicates.

Names become arrays over the training rows, in the order of their ids; the solver takes these.
"""

import functools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import NotFound, ShapeError
from schemas.frozen import digest_of, nearest
from schemas.spec import SelectSpec
from store.datasets import StoredDataset
from tasks.columns import as_text, metadata_column, numbers
from tasks.sets import ExampleSets

if TYPE_CHECKING:
    from optimize.problem import Budget, Partition

# Columns of every data set: the label's class, and 1 for each row.
CLASS, ROWS = "class", "rows"


@dataclass(frozen=True, kw_only=True, eq=False)
class Limits:
    """The constraints of one selection; fields are those of `optimize.problem.Selection`.

    Duplicates are apart: to find them takes as long as all pairs of rows do.
    """

    size: int | tuple[int, int]
    partitions: tuple["Partition", ...]
    budgets: tuple["Budget", ...]
    include: NDArray[np.bool_] | None
    exclude: NDArray[np.bool_] | None

    def options(self) -> dict[str, Any]:
        """As keywords of `optimize.select.select`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @functools.cached_property
    def digest(self) -> str:
        """Sixteen hex characters that name what the rows have to do with the spec's names."""
        masks = (self.include, self.exclude)
        return digest_of(
            [
                *(part.labels.tolist() for part in self.partitions),
                *(budget.costs.tolist() for budget in self.budgets),
                *(None if mask is None else np.flatnonzero(mask).tolist() for mask in masks),
            ]
        )


def limits_of(dataset: StoredDataset, sets: ExampleSets, problem: SelectSpec) -> Limits:
    """The constraints of a selection.

    Raises:
        NotFound: There is no such column, class or value.
        DataError: A row has no cost, or one that is no number.
        QueryError: A set of training rows cannot be used.
    """
    return Limits(
        size=problem.rows(dataset.facts.n_train),
        partitions=tuple(_partition(dataset, problem, column) for column in problem.quotas),
        budgets=tuple(_budgets(dataset, problem)),
        include=_rows_of(dataset, sets, problem.included),
        exclude=_rows_of(dataset, sets, problem.excluded),
    )


def _partition(dataset: StoredDataset, problem: SelectSpec, column: str) -> "Partition":
    from optimize.problem import Partition

    asker = f"problem '{problem.name}'"
    if column == CLASS:
        names, labels = list(dataset.classes), dataset.train.targets
    else:
        values = metadata_column(dataset, column, asker=asker)
        # A row without a value is of a group that no quota can name.
        words = np.array(["" if value is None else as_text(value) for value in values])
        found, labels = np.unique(words, return_inverse=True)
        names = found.tolist()
    quotas = {}
    for name, quota in problem.quotas[column].items():
        if not name or name not in names:
            hint = nearest(name, names) if len(names) > 10 else ""
            listed = "; there are " + ", ".join(each for each in names if each)
            raise NotFound(f"{asker}: there is no {column} '{name}'{hint or listed}")
        quotas[names.index(name)] = quota
    return Partition(
        column,
        labels,
        {group: quota.min for group, quota in quotas.items() if quota.min is not None},
        {group: quota.max for group, quota in quotas.items() if quota.max is not None},
        dict(enumerate(names)),
    )


def _budgets(dataset: StoredDataset, problem: SelectSpec) -> "list[Budget]":
    from optimize.problem import Budget

    asker = f"problem '{problem.name}'"
    return [
        Budget(
            budget.column,
            np.ones(dataset.facts.n_train)
            if budget.column == ROWS
            else numbers(dataset, budget.column, asker=asker),
            budget.most,
        )
        for budget in problem.budgets
    ]


def duplicates_of(dataset: StoredDataset, problem: SelectSpec) -> NDArray[np.int64] | None:
    """Groups of training rows of which a selection may choose one each, or None for no groups.

    Raises:
        ShapeError: Texts are to be compared by cosine.
    """
    from attribution.duplicates import near_duplicates, same_content

    if problem.duplicates == "keep":
        return None
    inputs = np.asarray(dataset.train.inputs)
    if problem.duplicates == "content":
        return same_content(inputs)
    if dataset.facts.n_tokens:
        raise ShapeError(
            f"problem '{problem.name}': token numbers have no cosine; write duplicates = 'content'"
        )
    return near_duplicates(inputs, problem.duplicates)


def _rows_of(
    dataset: StoredDataset, sets: ExampleSets, names: tuple[str, ...]
) -> NDArray[np.bool_] | None:
    if not names:
        return None
    inside = np.zeros(dataset.facts.n_train, dtype=bool)
    for name in names:
        inside[dataset.positions(sets.train_ids(name, whole=True))] = True
    return inside
