"""Writes a finished run into the ledger: all of it, once, or nothing.

A commit replaces partitions. What this run alone committed before, and what the attributions,
models, solutions, verdicts, valuations, tracings and poisonings of the bundle had, is deleted and
written anew in one transaction; so a retry, or the same bundle again, ends with the same rows. Runs
share what their specs have in common: `run_parts` says which parts each has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dataframely as dy
import duckdb
import polars as pl

from schemas.arrivals import SCREENING_FRAMES
from schemas.errors import DataError
from schemas.frames import FRAMES
from store.connect import records, registered, run
from store.ledger import Ledger
from store.statements import named_statements

# The parts of a run: the key of each, and the tables whose rows come and go with it.
_OWNERS = {
    "attributions": ("attribution_id", ("scores", "example_effects", "lds")),
    "solutions": (
        "solution_id",
        (
            "solution_rows",
            "solution_prices",
            "size_curves",
            "unlearnings",
            "query_changes",
        ),
    ),
    "verdicts": ("verdict_id", ("unlearned", "closeness")),
    "valuations": ("valuation_id", ("player_values",)),
    "tracings": ("tracing_id", ("tracing_arms", "tracing_effects", "tracing_rows")),
    "poisonings": (
        "poisoning_id",
        (
            "poison_budgets",
            "poison_curve",
            "poison_draws",
            "poisoned_rows",
            "poison_screens",
            "weak_spots",
        ),
    ),
}

# Tables that a bundle does not hold: scores come as segments, parts follow from the others.
_NOT_GIVEN = {"scores", "run_parts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBundle:
    """Everything that one run commits.

    Attributes:
        tables: Rows by table, as a frame or as Parquet files, with the columns of
            `schemas.frames.FRAMES`. "runs" has exactly one row; tables may be absent. "scores"
            is not one of them, nor is "run_parts", which follows from the others.
        scores: Segments by attribution_id (columns query_id, train_id, score), in query order.
    """

    tables: Mapping[str, pl.DataFrame | Sequence[Path]]
    scores: Mapping[str, Sequence[Path]] = field(default_factory=dict)


def commit_run(ledger_path: Path, bundle: RunBundle) -> dict[str, int]:
    """Write a run into the ledger and checkpoint it.

    Args:
        ledger_path: The ledger; created if it does not exist.
        bundle: What to write.

    Returns:
        The number of rows written, by table.

    Raises:
        DataError: Rows are not as their schema says, or refer to what the bundle does not hold.
        LedgerHeld: Another process has the ledger open.
        StorageError: The disk is full or refuses; the bundle is committed whole or not at all, and
            committing it again is safe.
    """
    frames = _validated(bundle)
    run_id = frames["runs"]["run_id"].item()
    _check_references(frames, bundle.scores, run_id)
    frames["run_parts"] = _parts(frames, run_id)
    with Ledger(ledger_path) as ledger:
        with ledger.transaction() as connection:
            _delete(connection, frames, run_id)
            counts = {name: _insert(connection, name, rows) for name, rows in frames.items()}
            kept = dict(frames["attributions"].select("attribution_id", "kept").iter_rows())
            counts["scores"] = sum(
                _insert_scores(connection, name, paths, kept[name])
                for name, paths in bundle.scores.items()
            )
        ledger.checkpoint()
    return counts


def commit_screening(ledger_path: Path, tables: Mapping[str, pl.DataFrame]) -> None:
    """Write the answer to one batch into the ledger, in place of an earlier one, and checkpoint it.

    Args:
        ledger_path: The ledger; created if it does not exist.
        tables: Rows of every table of `schemas.arrivals.SCREENING_FRAMES`, all of one
            screening_id.

    Raises:
        DataError: Rows are not as their schema says, or are of several screenings.
        LedgerHeld: Another process has the ledger open.
        StorageError: The disk is full or refuses; nothing was written.
    """
    frames = {name: _valid(name, schema, tables[name]) for name, schema in SCREENING_FRAMES.items()}
    ids = {key for rows in frames.values() for key in rows["screening_id"]}
    if len(ids) != 1:
        raise DataError(f"the answer to a batch holds {len(ids)} screenings; write one at a time")
    sql = named_statements("commit.sql")
    with Ledger(ledger_path) as ledger:
        with ledger.transaction() as connection:
            for name, rows in frames.items():
                run(connection, sql[f"delete_{name}"], {"screening": min(ids)})
                _insert(connection, name, rows)
        ledger.checkpoint()


def _validated(bundle: RunBundle) -> dict[str, pl.DataFrame]:
    unknown = sorted(set(bundle.tables) - set(FRAMES) | _NOT_GIVEN & set(bundle.tables))
    if unknown:
        raise DataError(f"{unknown[0]!r} is not a table of a bundle")
    frames: dict[str, pl.DataFrame] = {}
    for name, schema in FRAMES.items():
        if name in _NOT_GIVEN:
            continue
        rows = bundle.tables.get(name)
        if rows is None:
            frames[name] = schema.create_empty()
            continue
        if not isinstance(rows, pl.DataFrame):
            rows = pl.read_parquet(list(rows))
        frames[name] = _valid(name, schema, rows)
    if frames["runs"].height != 1:
        raise DataError(f"a bundle holds one run and this one holds {frames['runs'].height}")
    return frames


def _valid(name: str, schema: type[dy.Schema], rows: pl.DataFrame) -> pl.DataFrame:
    try:
        return schema.validate(rows)
    except (dy.exc.SchemaError, dy.exc.ValidationError) as error:
        raise DataError(f"rows for {name}: {' '.join(str(error).split())}") from error


def _check_references(
    frames: Mapping[str, pl.DataFrame], scores: Mapping[str, Sequence[Path]], run_id: str
) -> None:
    for name in _OWNERS:
        others = frames[name].filter(pl.col("run_id") != run_id)
        if others.height:
            raise DataError(f"{name} has rows of run {others['run_id'][0]} in a bundle of {run_id}")
    unknown = set(frames["verdicts"]["solution_id"]) - set(frames["solutions"]["solution_id"])
    if unknown:
        raise DataError(f"verdicts refers to {min(unknown)}, which is not in solutions")
    for owner, (key, tables) in _OWNERS.items():
        known = set(frames[owner][key])
        found = {table: set(frames[table][key]) for table in tables if table != "scores"}
        if "scores" in tables:
            found["scores"] = set(scores)
        for table, ids in found.items():
            if ids - known:
                raise DataError(f"{table} refers to {min(ids - known)}, which is not in {owner}")


def _delete(
    connection: duckdb.DuckDBPyConnection, frames: Mapping[str, pl.DataFrame], run_id: str
) -> None:
    sql = named_statements("commit.sql")

    def ids(table: str, key: str) -> set[str]:
        return set(frames[table][key])

    parameters: dict[str, dict[str, Any]] = {
        "runs": {"run": run_id},
        "run_parts": {"run": run_id},
        "examples": {"datasets": sorted(ids("examples", "dataset_id"))},
        "bank": {"retrains": sorted(ids("bank", "retrain_id"))},
    }
    for owner, (key, tables) in _OWNERS.items():
        asked = {"run": run_id, "kind": owner}
        before = {row[0] for row in run(connection, sql["owned"], asked)}
        owned = {owner: sorted(before | ids(owner, key))}
        parameters |= dict.fromkeys((owner, *tables), owned)
    for table, values in parameters.items():
        run(connection, sql[f"delete_{table}"], values)
    with registered(connection, incoming=frames["bank_outputs"]):
        run(connection, sql["delete_bank_outputs"])


def _parts(frames: Mapping[str, pl.DataFrame], run_id: str) -> pl.DataFrame:
    """The rows of `run_parts` of one run."""
    parts = [
        (run_id, owner, part)
        for owner, (key, _) in _OWNERS.items()
        for part in frames[owner][key].unique(maintain_order=True)
    ]
    rows = pl.DataFrame(parts, schema=["run_id", "kind", "part_id"], orient="row")
    return _valid("run_parts", FRAMES["run_parts"], rows.cast(pl.String))


def _insert(connection: duckdb.DuckDBPyConnection, table: str, rows: pl.DataFrame) -> int:
    with registered(connection, incoming=rows):
        run(connection, named_statements("commit.sql")[f"insert_{table}"])
    return rows.height


def _insert_scores(
    connection: duckdb.DuckDBPyConnection, attribution: str, paths: Sequence[Path], kept: int
) -> int:
    sql = named_statements("commit.sql")
    segments = [str(path) for path in paths]
    if not segments:
        return 0
    (found,) = records(connection, sql["check_scores"], {"segments": segments})
    if found["bad"]:
        raise DataError(f"scores of {attribution}: {found['bad']} are NULL, NaN or infinite")
    if found["n"] != kept:
        raise DataError(
            f"scores of {attribution}: the segments hold {found['n']:,} rows "
            f"and the attribution says {kept:,} were kept"
        )
    run(connection, sql["insert_scores"], {"attribution": attribution, "segments": segments})
    return int(found["n"])
