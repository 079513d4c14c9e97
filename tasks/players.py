"""Who is valued: the sources of the training rows, or the rows themselves."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.frozen import digest_of
from schemas.spec import ValueSpec
from store.datasets import StoredDataset
from tasks.columns import texts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Players:
    """The players of a game, in the order of their sorted names, or of their rows.

    Attributes:
        by: The metadata column that names sources; None where rows are valued.
        labels: Whose each training row is: names of sources, or example ids [n_train].
        names: The players, as text.
        sizes: Rows of each, int64 [n_players].
    """

    by: str | None
    labels: NDArray[Any]
    names: tuple[str, ...]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """Sixteen hex characters that name whose every row is."""
        return digest_of([self.by, self.labels.tolist()])


def players_of(dataset: StoredDataset, problem: ValueSpec) -> Players:
    """The players of a problem.

    Raises:
        NotFound: The rows have no such column.
        DataError: Some training row has no source.
    """
    labels = dataset.train.example_ids
    if problem.by is not None:
        labels = np.array(
            texts(
                dataset,
                problem.by,
                asker=f"problem '{problem.name}'",
                advice="name the source of each",
            )
        )
    names, sizes = np.unique(labels, return_counts=True)
    return Players(
        by=problem.by,
        labels=labels,
        names=tuple(str(name) for name in names.tolist()),
        sizes=sizes.astype(np.int64),
    )


def most_retrainings(problem: ValueSpec, n_players: int) -> int:
    """The most models that a problem can take to answer; convergence may stop it earlier."""
    from attribution.valuation.semivalues import MOST_PLAYERS

    if problem.method == "leave_one_out":
        coalitions = n_players + 1
    elif n_players <= MOST_PLAYERS:
        coalitions = 2**n_players - 1
    elif problem.method == "banzhaf":
        coalitions = problem.draws + 1
    else:
        coalitions = problem.draws * (n_players - 1) + 1
    return coalitions * problem.seeds
