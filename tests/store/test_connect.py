"""One door: who may write, what a user's SQL may do, and what the refusals say."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pytest

from schemas.errors import CorruptArtifact, LedgerHeld, NotFound, QueryError, StorageError
from store.connect import (
    open_ledger,
    open_published,
    records,
    registered,
    run,
    run_sql,
    scalar,
    scratch,
    transaction,
)

ROOT = Path(__file__).parents[2]

OPENS = """
import sys, pathlib
from schemas.errors import LedgerHeld
from store.connect import open_ledger
try:
    open_ledger(pathlib.Path(sys.argv[1]))
except LedgerHeld as error:
    print(error)
"""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "winnow.duckdb"
    with open_ledger(path) as connection:
        run(connection, "CREATE TABLE t AS SELECT range AS i FROM range(5)")
    return path


def test_a_held_ledger_names_the_process_that_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.duckdb"
    with open_ledger(path):
        done = subprocess.run(
            [sys.executable, "-c", OPENS, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    assert f"is held by process {os.getpid()}" in done.stdout


def test_a_ledger_open_for_reading_in_this_process_is_held_too(published: Path) -> None:
    with open_published(published), pytest.raises(LedgerHeld, match=f"pid {os.getpid()}"):
        open_ledger(published)


def test_files_that_are_no_database_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.duckdb"
    path.write_bytes(b"x" * 5_000)
    with pytest.raises(CorruptArtifact, match="not a DuckDB database"):
        open_ledger(path)
    with pytest.raises(CorruptArtifact, match="remove it, and `winnow run SPEC` writes it again"):
        open_published(path)
    with pytest.raises(StorageError, match="cannot open"):
        open_ledger(tmp_path / "nowhere" / "x.duckdb")


def test_nothing_published_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="run `winnow run SPEC` first"):
        run_sql(tmp_path / "winnow.duckdb", "SELECT 1")


def test_a_query_gives_columns_types_and_rows(published: Path) -> None:
    result = run_sql(published, "SELECT i, i * 0.5 AS half FROM t ORDER BY i DESC", limit=2)
    assert result.columns == ("i", "half")
    assert result.types[0] == "BIGINT"
    assert [row[0] for row in result.rows] == [4, 3]
    assert result.truncated
    assert not run_sql(published, "FROM t", limit=5).truncated
    assert len(run_sql(published, "FROM t", limit=None).rows) == 5
    assert run_sql(published, "DESCRIBE t").rows
    assert run_sql(published, "EXPLAIN FROM t").rows


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM t",
        "CREATE TEMP TABLE u (i INTEGER)",
        "COPY t TO 'out.csv'",
        "ATTACH 'other.duckdb'",
        "INSTALL httpfs",
        "SET lock_configuration = false",
        "EXPLAIN ANALYZE DELETE FROM t",
        "SELECT * FROM read_csv('/etc/passwd')",
        "FROM read_parquet('https://example.org/x.parquet')",
        "SELECT * FROM glob('/*')",
        "SELECT 1; SELECT 2",
        "FROM nothere",
        "SELECT 1 / ",
    ],
)
def test_what_is_not_reading_is_refused_in_one_line(published: Path, sql: str) -> None:
    with pytest.raises(QueryError) as caught:
        run_sql(published, sql)
    assert "\n" not in str(caught.value)
    assert run_sql(published, "SELECT count(*) FROM t").rows == [(5,)]


def test_a_python_variable_is_not_a_table() -> None:
    rows = pl.DataFrame({"i": [1]})
    with scratch() as connection:
        with registered(connection, named=rows):
            assert scalar(connection, "SELECT i FROM named") == 1
        for name in ("rows", "named"):
            with pytest.raises(Exception, match="does not exist"):
                run(connection, f"FROM {name}")


def test_a_transaction_commits_all_or_nothing() -> None:
    with scratch() as connection:
        run(connection, "CREATE TABLE t (i INTEGER)")
        with transaction(connection):
            run(connection, "INSERT INTO t VALUES (1)")

        def fail() -> None:
            with transaction(connection):
                run(connection, "INSERT INTO t VALUES (2)")
                raise KeyError("oops")

        with pytest.raises(KeyError, match="oops"):
            fail()
        assert records(connection, "FROM t") == [{"i": 1}]
        assert scalar(connection, "SELECT i FROM t WHERE i = 9") is None


def test_threads_read_through_cursors_of_their_own(published: Path) -> None:
    seen = []
    with open_published(published) as connection:

        def read() -> None:
            with connection.cursor() as cursor:
                seen.append(scalar(cursor, "SELECT sum(i) FROM t, range(20000)"))

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [200_000] * 4
