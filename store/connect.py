"""The one door to DuckDB.

Every connection of winnow is opened here, and every statement runs through the functions here:
DuckDB 2 streams its results and refuses the next statement while one is unfinished, so results
are always drained. A connection belongs to one thread; another thread takes a `cursor()` of it.

Three kinds of connection: `open_ledger` writes and excludes every other process, `open_published`
reads the snapshot and can do nothing else, `scratch` is an empty database in memory.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from schemas.errors import CorruptArtifact, LedgerHeld, NotFound, QueryError, StorageError

Parameters = Mapping[str, Any] | Sequence[Any] | None

# Off for every connection: a name in SQL must never mean a Python variable of the caller.
_NO_PYTHON = {"python_enable_replacements": "false"}
_LOCKED = {
    **_NO_PYTHON,
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "enable_external_access": "false",
    "lock_configuration": "true",
}
_HOLDER = re.compile(r"\(PID (\d+)\)")
_READS = frozenset({duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN})


def open_ledger(path: Path) -> duckdb.DuckDBPyConnection:
    """Open the ledger for writing; created if it does not exist.

    Raises:
        LedgerHeld: Another process has it open; the message names its pid.
        CorruptArtifact: The file is not a DuckDB database.
        StorageError: The file cannot be created.
    """
    try:
        return duckdb.connect(str(path), config=dict(_NO_PYTHON))  # noqa: TID251 - the door
    except duckdb.ConnectionException as error:
        raise LedgerHeld(
            f"{path} is open in this process (pid {os.getpid()}) in another way; "
            "close that connection first"
        ) from error
    except duckdb.IOException as error:
        holder = _HOLDER.search(str(error))
        if holder is not None:
            raise LedgerHeld(
                f"{path} is held by process {holder.group(1)}; "
                "wait until that run ends, or stop that process"
            ) from error
        if "not a valid DuckDB" in str(error):
            raise CorruptArtifact(
                f"{path} is not a DuckDB database; move it away and run `winnow run SPEC`"
            ) from error
        raise StorageError(f"cannot open {path}: {one_line(error)}") from error


def open_published(path: Path) -> duckdb.DuckDBPyConnection:
    """Open the published snapshot: read-only, without files, network or settings.

    It never blocks a run and is never blocked by one. While it is open, further connections of
    the same process see the same snapshot, even after a newer one was published.

    Raises:
        NotFound: Nothing has been published.
        QueryError: This process has the file open with other settings.
        CorruptArtifact: The file is not a DuckDB database.
    """
    if not path.is_file():
        raise NotFound(f"{path} does not exist; run `winnow run SPEC` first")
    try:
        return duckdb.connect(  # noqa: TID251 - the door
            str(path), read_only=True, config=dict(_LOCKED)
        )
    except duckdb.ConnectionException as error:
        raise QueryError(
            f"{path} is open in this process with other settings; close that connection first"
        ) from error
    except duckdb.IOException as error:
        if _HOLDER.search(str(error)):
            raise QueryError(
                f"{path} is open for writing elsewhere; open it read-only there"
            ) from error
        raise CorruptArtifact(
            f"{path} cannot be read ({one_line(error)}); "
            "remove it, and `winnow run SPEC` writes it again"
        ) from error


def scratch() -> duckdb.DuckDBPyConnection:
    """An empty database in memory, which never spills to the working directory."""
    return duckdb.connect(  # noqa: TID251 - the door
        ":memory:", config={**_NO_PYTHON, "temp_directory": ""}
    )


def lock_down(connection: duckdb.DuckDBPyConnection) -> None:
    """Take files, network and settings away from a connection; there is no way back."""
    run(connection, "SET enable_external_access = false")
    run(connection, "SET lock_configuration = true")


def run(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters = None
) -> list[tuple[Any, ...]]:
    """Execute one statement and return all its rows."""
    return connection.execute(sql, parameters).fetchall()


def records(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters = None
) -> list[dict[str, Any]]:
    """Execute one statement and return its rows as dictionaries."""
    result = connection.execute(sql, parameters)
    names = [column[0] for column in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def scalar(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters = None) -> Any:
    """The first column of the first row, or None where there is no row."""
    rows = run(connection, sql, parameters)
    return rows[0][0] if rows else None


def frame(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Parameters = None
) -> pl.DataFrame:
    """Execute one query and return its rows, in their order, as a frame."""
    return connection.sql(sql, params=parameters).pl()


@contextlib.contextmanager
def registered(connection: duckdb.DuckDBPyConnection, **frames: pl.DataFrame) -> Iterator[None]:
    """Let SQL see these frames under their names for the length of the block."""
    for name, value in frames.items():
        # One chunk: a frame in 100,000 chunks took half a minute to hand over (polars 2.1.0).
        connection.register(name, value.rechunk())
    try:
        yield
    except duckdb.Error:
        # A transaction that failed takes nothing but its rollback, and this is not to hide why.
        with contextlib.suppress(duckdb.TransactionException):
            _unregister(connection, frames)
        raise
    _unregister(connection, frames)


def _unregister(connection: duckdb.DuckDBPyConnection, names: Iterable[str]) -> None:
    for name in names:
        connection.unregister(name)


@contextlib.contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Commit what the block did, or none of it."""
    connection.begin()
    try:
        yield
    except BaseException:
        # After a fatal error the database refuses even this; it rolls back when it is next opened.
        with contextlib.suppress(duckdb.Error):
            connection.rollback()
        raise
    connection.commit()


def one_line(error: BaseException) -> str:
    """DuckDB's error text without its kind, its caret drawing and its line breaks."""
    text = re.split(r"\n\s*\nLINE \d+:", str(error))[0]
    text = re.sub(r"^(\w+ )*Error: ", "", text.strip())
    return re.sub(r"\s*\n\s*", " ", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryResult:
    """What a user's query gave.

    Attributes:
        columns: Names, in order.
        types: DuckDB's names of the columns' types.
        rows: At most as many as were asked for.
        truncated: There were more.
    """

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    truncated: bool


def run_guarded(
    connection: duckdb.DuckDBPyConnection,
    sql: str,
    *,
    name: str = "query",
    limit: int | None = None,
) -> QueryResult:
    """Run SQL that a user wrote on a connection that is locked down.

    Args:
        connection: From `open_published`, or after `lock_down`.
        sql: One SELECT (or FROM, WITH, VALUES, DESCRIBE, SHOW, EXPLAIN).
        name: What the query is called, for errors.
        limit: The most rows to return; None for all.

    Raises:
        QueryError: It is not one reading statement, cannot run, or asks for what it may not have.
    """
    try:
        statements = connection.extract_statements(sql)
        kinds = [statement.type for statement in statements]
        if len(kinds) != 1:
            raise QueryError(f"{name}: found {len(kinds)} statements; write exactly one SELECT")
        if kinds[0] not in _READS:
            raise QueryError(
                f"{name}: {kinds[0].name} is not allowed here; only a SELECT can be run"
            )
        result = connection.execute(statements[0])
        description = result.description or ()
        if limit is None:
            rows, truncated = result.fetchall(), False
        else:
            rows = result.fetchmany(limit + 1)
            truncated = len(rows) > limit
    except duckdb.Error as error:
        said = _called_otherwise(connection, error) or one_line(error)
        raise QueryError(f"{name}: {said}") from error
    except RuntimeError as error:
        # DuckDB 2.0 raises what its own optimiser did not expect as a plain RuntimeError.
        raise QueryError(f"{name}: {one_line(error)}") from error
    return QueryResult(
        columns=tuple(column[0] for column in description),
        types=tuple(str(column[1]) for column in description),
        rows=rows if limit is None else rows[:limit],
        truncated=truncated,
    )


def _called_otherwise(connection: duckdb.DuckDBPyConnection, error: duckdb.Error) -> str | None:
    """How to ask for a macro that was named as a table, or for a view that was called."""
    missing = re.match(r"Catalog Error: Table (Function )?with name (\w+) does not", str(error))
    if missing is None:
        return None
    called, wanted = missing.groups()
    if called:
        seen = run(connection, "SELECT 1 FROM duckdb_views() WHERE view_name = ?", [wanted])
        return f"{wanted} is a view: write FROM {wanted}" if seen else None
    found = run(
        connection,
        "SELECT array_to_string(parameters, ', '), comment FROM duckdb_functions() "
        "WHERE NOT internal AND function_type = 'table_macro' AND function_name = ?",
        [wanted],
    )
    if not found:
        return None
    parameters, comment = found[0]
    example = re.search(rf"FROM {wanted}\(.*\)", comment or "")
    asked = f"{wanted}(), as in {example[0]}" if example else f"{wanted}({parameters})"
    return f"{wanted} is a macro: write {asked}; its parameters are {parameters}"


def run_sql(published: Path, sql: str, *, limit: int | None = 1_000) -> QueryResult:
    """Run a user's SQL on the published snapshot.

    Args:
        published: The snapshot's path.
        sql: One reading statement.
        limit: The most rows to return; None for all.

    Raises:
        NotFound: Nothing has been published.
        QueryError: As `run_guarded`.
    """
    with contextlib.closing(open_published(published)) as connection:
        return run_guarded(connection, sql, limit=limit)
