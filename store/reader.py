"""Typed questions to a published snapshot: what the report and the command line show.

Rows come back as dictionaries under the names of their tables' columns. Nothing here writes.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb
import numpy as np
import numpy.typing as npt

from schemas.errors import NotFound
from store.connect import open_published, records, scalar, scratch
from store.migrate import migrate
from store.statements import named_statements

Row = dict[str, Any]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detection:
    """Does harm find the labels that were corrupted on purpose? One entry a training example.

    Attributes:
        example_ids: int64 [n], ascending.
        harm: float64 [n]; NaN where the output has no good direction.
        self_influence: float64 [n]; NaN where it was not computed.
        corrupted: bool [n].
    """

    example_ids: Array
    harm: Array
    self_influence: Array
    corrupted: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunSummary:
    """One run, as its report tells it.

    Attributes:
        run: Its row of `runs`, times as text.
        attributions: Those it made or used.
        lds: Their rows of `lds`, with name, method and output; alpha None first.
        solutions: Its rows of `solutions`.
        verdicts: Its rows of `verdicts` with the problem's name; the arm chosen first.
        dropped: For each solution: problem, solution_id, n_dropped, n_dropped_corrupted,
            n_corrupted (in the whole pool), n_pool.
    """

    run: Row
    attributions: list[Row]
    lds: list[Row]
    solutions: list[Row]
    verdicts: list[Row]
    dropped: list[Row]


class Published:
    """An open snapshot; use it in a `with` block, and not for long: a newer one may appear.

    Raises:
        NotFound: Nothing has been published.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = open_published(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()

    def runs(self) -> list[Row]:
        """Every committed run, the latest first."""
        return self._ask("runs")

    def run_summary(self, run_id: str | None = None) -> RunSummary:
        """What is known of one run, by default the latest.

        Raises:
            NotFound: There is no such run.
        """
        chosen = run_id or scalar(self._connection, named_statements("report.sql")["latest_run"])
        rows = self._ask("run", run=chosen) if chosen else []
        if not rows:
            wanted = f"run {run_id}" if run_id else "a run"
            raise NotFound(f"{self._path.name} does not hold {wanted}; `winnow status` lists them")
        attributions = self._ask("attributions", run=chosen)
        ids = [row["attribution_id"] for row in attributions]
        return RunSummary(
            run=rows[0],
            attributions=attributions,
            lds=self._ask("lds", attributions=ids),
            solutions=self._ask("solutions", run=chosen),
            verdicts=self._ask("verdicts", run=chosen),
            dropped=self._ask("dropped", run=chosen),
        )

    def detection(self, attribution_id: str) -> Detection:
        """Harm and corrupted labels of an attribution's training examples, for AUROC.

        Raises:
            NotFound: The attribution has no example effects.
        """
        rows = self._ask("detection", attribution=attribution_id)
        if not rows:
            raise NotFound(f"{self._path.name} has no effects of attribution {attribution_id}")

        def column(name: str, dtype: type) -> Array:
            return np.array([row[name] for row in rows], dtype=dtype)

        return Detection(
            example_ids=column("example_id", np.int64),
            harm=column("harm", np.float64),
            self_influence=column("self_influence", np.float64),
            corrupted=column("corrupted", np.bool_),
        )

    def harmful(self, attribution_id: str, *, n: int = 20) -> list[Row]:
        """The rows of harmful_examples; none where the output has no good direction."""
        found = self._ask("detection", attribution=attribution_id)
        if not found or found[0]["harm"] is None:
            return []
        return self._ask("harmful", n=n, attribution=attribution_id)

    def comments(self) -> list[Row]:
        """Every table, column, view and macro with its comment: kind, name, part, comment."""
        return self._ask("comments")

    def _ask(self, name: str, **parameters: Any) -> list[Row]:
        sql = named_statements("report.sql")[name]
        return records(self._connection, sql, parameters or None)


def published_views() -> list[Row]:
    """What every snapshot holds, with its comments, as `Published.comments`: for the docs."""
    with contextlib.closing(_empty()) as connection:
        return records(connection, named_statements("report.sql")["comments"])


def _empty() -> duckdb.DuckDBPyConnection:
    connection = scratch()
    migrate(connection)
    return connection
