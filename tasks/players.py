"""Who is valued: the sources of the training rows, or the rows themselves."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from schemas.errors import DataError, NotFound
from schemas.frozen import digest_of, nearest
from schemas.spec import ValueSpec
from store.datasets import StoredDataset


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
        labels = np.array(_sources(dataset, problem.name, problem.by))
    names, sizes = np.unique(labels, return_counts=True)
    return Players(
        by=problem.by,
        labels=labels,
        names=tuple(str(name) for name in names.tolist()),
        sizes=sizes.astype(np.int64),
    )


def _sources(dataset: StoredDataset, name: str, column: str) -> list[str]:
    rows = dataset.examples.filter(pl.col("split") == "train").sort("example_id")
    texts = rows["metadata"].to_list()
    metadata: list[dict[str, Any]] = [json.loads(text) if text else {} for text in texts]
    known = set().union(*metadata)
    if column not in known:
        hint = nearest(column, known) or "; name the column in data.metadata"
        raise NotFound(f"problem '{name}': there is no metadata column '{column}'{hint}")
    values = [entry.get(column) for entry in metadata]
    if lacking := [row for row, value in enumerate(values) if value in (None, "")]:
        raise DataError(
            f"problem '{name}': {len(lacking)} training rows have no '{column}', example "
            f"{rows['example_id'][lacking[0]]} among them; name the source of each"
        )
    return [value if isinstance(value, str) else json.dumps(value) for value in values]


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
