"""Reads what a run found from the published database: the records of `tasks.reporting.findings`.

The one thing computed here is how well the harmful rows coincide with the labels known to be wrong
(precision, recall, AUROC).
"""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from schemas.errors import NotFound
from store.connect import frame, open_published
from store.statements import named_statements
from tasks.reporting.findings import (
    Answer,
    Arm,
    Detection,
    Fidelity,
    Findings,
    Method,
    Reasons,
    Row,
)
from tasks.reporting.forgetting import Unlearning, unlearning_of
from tasks.reporting.intervals import Interval
from tasks.reporting.poisoning import poisonings_of
from tasks.reporting.tracing import QUERIES_SHOWN, ROWS_SHOWN, Tracing, tracings_of
from tasks.reporting.worth import valuations_of

WORST_KEPT = 12  # enough for a gallery; the terminal shows fewer


@dataclass(frozen=True)
class Source:
    """An open published database."""

    path: Path
    connection: Any

    def query(self, sql: str, parameters: dict[str, Any]) -> pl.DataFrame:
        """Run one statement with named parameters."""
        return frame(self.connection, sql, parameters)


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open the published database read-only for the length of the block.

    Raises:
        NotFound: Nothing has been published.
    """
    with closing(open_published(path)) as connection:
        yield Source(path, connection)


def gather(source: Source, run_id: str | None = None) -> Findings:
    """Read one run; the last committed one if none is named.

    Raises:
        NotFound: There is no such run, or no run at all.
    """
    run_id = run_id or _latest(source)
    runs = _rows(source, "run", run=run_id)
    if not runs:
        raise NotFound(
            f"{source.path} has no run {run_id!r}; `winnow sql 'FROM runs'` lists those it has"
        )
    run = runs[0]
    dataset = run["dataset_id"]
    counts = _rows(source, "example_counts", dataset=dataset)[0]
    methods = _methods(source, run_id)
    scored = [method.attribution_id for method in methods]
    queries = _rows(source, "a_query", attributions=scored)
    return Findings(
        path=Path(source.path),
        run_id=run_id,
        dataset_id=dataset,
        spec_name=run["spec_name"],
        spec_digest=run["spec_digest"],
        status=run["status"] or "",
        seed=run["seed"],
        device=run["device"] or "",
        code_version=run["code_version"] or "",
        seconds=run["seconds"],
        n_train=counts["n_train"],
        n_test=counts["n_test"],
        n_flipped=counts["n_flipped"],
        methods=methods,
        answers=_answers(source, run_id, dataset),
        a_query=queries[0]["query_id"] if queries else None,
        valuations=valuations_of(
            _rows(source, "valuations", run=run_id), _rows(source, "player_values", run=run_id)
        ),
        tracings=_tracings(source, run_id),
        poisonings=poisonings_of(
            *(
                _rows(source, name, run=run_id)
                for name in ("poisonings", "poison_budgets", "poison_screens", "weak_spots")
            )
        ),
    )


def detection(harm: np.ndarray, flipped: np.ndarray, dropped: np.ndarray) -> Detection | None:
    """Compare what is dropped with what is known to be wrong; None if nothing is.

    Args:
        harm: [n] higher is more harmful.
        flipped: [n] bool, labels known to be wrong.
        dropped: [n] bool, rows that are not kept.
    """
    if not flipped.any():
        return None
    auroc = None
    if not flipped.all() and np.isfinite(harm).all():
        from attribution.evaluate import auroc as area  # the numerics stay out of `winnow --help`

        auroc = float(area(harm, flipped))
    return Detection(
        flipped=int(flipped.sum()),
        dropped=int(dropped.sum()),
        found=int((flipped & dropped).sum()),
        pool=flipped.size,
        auroc=auroc,
    )


def _latest(source: Source) -> str:
    rows = _rows(source, "latest_run")
    if not rows:
        raise NotFound(f"{source.path} holds no run yet; `winnow run SPEC` makes one")
    return rows[0]["run_id"]


def _methods(source: Source, run_id: str) -> tuple[Method, ...]:
    attributions = _rows(source, "attributions", run=run_id)
    fidelity: dict[str, list[Fidelity]] = {}
    for row in _rows(source, "lds", attributions=[row["attribution_id"] for row in attributions]):
        lds = _interval(row, "mean", "low", "high")
        names = ("alpha", "ceiling", "relative", "null_sd", "n_masks", "n_seeds", "n_queries")
        if lds is not None:
            key = row["attribution_id"]
            found = Fidelity(attribution_id=key, lds=lds, **{name: row[name] for name in names})
            fidelity.setdefault(key, []).append(found)
    return tuple(
        Method(
            attribution_id=row["attribution_id"],
            name=row["name"],
            method=row["method"],
            output=row["output"],
            damping=row["damping"],
            damping_from=row["damping_from"] or "",
            device=row["device"] or "",
            seconds=row["seconds"],
            n_query=row["n_query"] or 0,
            worst=_worst(
                _frame(source, "effects", attribution=row["attribution_id"], n=WORST_KEPT)
            ),
            fidelity=tuple(fidelity.get(row["attribution_id"], ())),
        )
        for row in attributions
    )


def _tracings(source: Source, run_id: str) -> tuple[Tracing, ...]:
    shown = {"queries": QUERIES_SHOWN, "rows": ROWS_SHOWN}
    return tracings_of(
        _rows(source, "tracings", run=run_id),
        _rows(source, "tracing_arms", run=run_id),
        _rows(source, "tracing_rows", run=run_id, **shown),
    )


def _answers(source: Source, run_id: str, dataset: str) -> tuple[Answer, ...]:
    arms: dict[str, list[Arm]] = {}
    for row in _rows(source, "verdicts", run=run_id):
        arms.setdefault(row["solution_id"], []).append(arm_of(row))
    forgotten = _unlearnings(source, run_id)
    answers = []
    for row in _rows(source, "solutions", run=run_id):
        key = row["solution_id"]
        rows = _frame(source, "solution_rows", dataset=dataset, solution=key)
        chosen = rows["chosen"].fill_null(value=False).to_numpy().astype(bool)
        wrong = (
            rows["true_target"].is_not_null() & (rows["true_target"] != rows["target"])
        ).fill_null(value=False)
        dropped = rows.filter(~pl.Series(chosen, dtype=pl.Boolean))
        utility = rows["utility"].cast(pl.Float64).fill_null(float("nan")).to_numpy()
        answers.append(
            Answer(
                solution_id=key,
                attribution_id=row["attribution_id"],
                problem=row["problem"],
                kind=row["kind"],
                status=row["status"] or "",
                output=row["output"] or "output",
                size=row["size"] or 0,
                pool=row["n_pool"] or rows.height,
                gap=row["gap"],
                predicted=_interval(row, "predicted_change", "predicted_low", "predicted_high"),
                targets=row["targets"] or "",
                sentence=row["sentence"] or "",
                dropped=dropped.height,
                worst=_worst(dropped),
                detection=detection(-utility, wrong.to_numpy().astype(bool), ~chosen),
                arms=tuple(arms.get(key, ())),
                unlearning=forgotten.get(key),
                prices={
                    each["constraint_name"]: each["price"]
                    for each in _rows(source, "solution_prices", solution=key)
                },
                reasons=_reasons(dropped) if row["kind"] == "select" else None,
            )
        )
    return tuple(answers)


def _unlearnings(source: Source, run_id: str) -> dict[str, Unlearning]:
    """What unlearning came to, by solution."""
    arms, closeness = (_rows(source, name, run=run_id) for name in ("unlearned", "closeness"))
    found = {}
    for row in _rows(source, "unlearnings", run=run_id):
        key = row["solution_id"]
        own = ([each for each in rows if each["solution_id"] == key] for rows in (arms, closeness))
        found[key] = unlearning_of(row, *own)
    return found


def arm_of(row: dict[str, Any]) -> Arm:
    """An arm from a row of `verdicts`."""
    return Arm(
        verdict_id=row["verdict_id"],
        name=row["arm"],
        n_rows=row["n_rows"] or 0,
        seeds=row["seeds"] or 0,
        output=row["output"] or "output",
        accuracy=_interval(row, "accuracy", "accuracy_low", "accuracy_high"),
        value=_interval(row, "value", "value_low", "value_high"),
        predicted=_interval(row, "predicted_change", "predicted_low", "predicted_high"),
        observed=_interval(row, "observed_change", "observed_low", "observed_high"),
        advantage=_interval(row, "advantage", "advantage_low", "advantage_high"),
        sentence=row["sentence"] or "",
        logprob=_interval(row, "logprob", "logprob_low", "logprob_high"),
        logprob_advantage=_interval(
            row, "logprob_advantage", "logprob_advantage_low", "logprob_advantage_high"
        ),
    )


def _reasons(dropped: pl.DataFrame) -> Reasons:
    harmful = dropped["utility"] < 0
    copies = ~harmful & dropped["copy_of"].is_not_null()
    counts = int(harmful.sum()), int(copies.sum())
    return Reasons(harmful=counts[0], copies=counts[1], no_room=dropped.height - sum(counts))


def _worst(rows: pl.DataFrame) -> tuple[Row, ...]:
    """The rows of lowest utility; the statements already sort by it."""
    return tuple(
        Row(
            example_id=row["example_id"],
            label=row["target"],
            true_label=row["true_target"],
            utility=math.nan if row["utility"] is None else float(row["utility"]),
            copy_of=row.get("copy_of"),
        )
        for row in rows.head(WORST_KEPT).iter_rows(named=True)
    )


def _interval(row: dict[str, Any], mean: str, low: str, high: str) -> Interval | None:
    if row[mean] is None or not math.isfinite(row[mean]):
        return None
    bounds = [math.nan if row[name] is None else float(row[name]) for name in (low, high)]
    return Interval(mean=float(row[mean]), low=bounds[0], high=bounds[1])


def _frame(source: Source, statement: str, **parameters: Any) -> pl.DataFrame:
    return source.query(named_statements("findings.sql")[statement], parameters)


def _rows(source: Source, statement: str, **parameters: Any) -> list[dict[str, Any]]:
    return _frame(source, statement, **parameters).to_dicts()


def preview(source: Source, dataset_id: str, split: str) -> pl.DataFrame:
    """Read up to 1,000 rows of a split (example_id, split, target), in order of their ids."""
    return _frame(source, "preview", dataset=dataset_id, split=split)
