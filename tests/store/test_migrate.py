"""A ledger reaches the present tables once, whole, and everything in it says what it is."""

from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from schemas.arrivals import SCREENING_FRAMES
from schemas.errors import MigrationError
from schemas.frames import FRAMES
from store.connect import records, run, scalar, scratch
from store.migrate import apply_all, migrate, migration_names

# Every table, column, view and macro that a snapshot holds.
COMMENTS = """
SELECT 'table' AS kind, table_name AS name, NULL AS part, comment
FROM duckdb_tables() WHERE NOT internal
UNION ALL
SELECT 'view', view_name, NULL, comment FROM duckdb_views() WHERE NOT internal
UNION ALL
SELECT 'column', table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal
UNION ALL
SELECT
    'macro', function_name,
    '(' || array_to_string(parameters, ', ') || ')', comment
FROM duckdb_functions() WHERE NOT internal AND function_type LIKE '%macro'
ORDER BY kind, name, part
"""
EVERY = {**FRAMES, **SCREENING_FRAMES}
ONE = {"0001_a.sql": "CREATE TABLE a (i INTEGER); INSERT INTO a VALUES (1);"}


def published() -> list[dict[str, Any]]:
    with scratch() as opened:
        migrate(opened)
        return records(opened, COMMENTS)


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with scratch() as opened:
        yield opened


def test_migrating_twice_applies_once(connection: duckdb.DuckDBPyConnection) -> None:
    assert migrate(connection) == [*migration_names(), "views.sql"]
    assert migrate(connection) == []
    recorded = run(connection, "SELECT name FROM winnow_migrations ORDER BY name")
    assert [row[0] for row in recorded] == [*migration_names(), "views.sql"]


def test_every_frame_has_its_table_with_the_same_columns(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    migrate(connection)
    for table, schema in EVERY.items():
        sql = "SELECT column_name FROM duckdb_columns() WHERE table_name = ? ORDER BY column_index"
        columns = [row[0] for row in run(connection, sql, [table])]
        assert columns == list(schema.columns()), table


@pytest.mark.parametrize("row", published(), ids=lambda row: f"{row['name']}.{row['part']}")
def test_everything_published_says_what_it_is(row: dict[str, str]) -> None:
    assert row["comment"], f"say in schemas/sql what {row['kind']} {row['name']} means"


def test_the_published_names_are_these() -> None:
    names = {(row["kind"], row["name"]) for row in published() if row["kind"] != "column"}
    views = {
        "arms",
        "bank_by_kind",
        "closeness_by_arm",
        "contents",
        "damage_by_budget",
        "dropped_examples",
        "latest_attribution",
        "latest_solution",
        "lds_by_method",
        "mislabel_candidates",
        "poisoned_examples",
        "prices_by_constraint",
        "quarantined_rows",
        "selected_examples",
        "values_by_source",
    }
    macros = {
        "attribution_named",
        "harm",
        "harmful_examples",
        "slice_effects",
        "top_influences",
        "traces",
    }
    assert {name for kind, name in names if kind == "table"} == {*EVERY, "winnow_migrations"}
    assert {name for kind, name in names if kind == "view"} == views
    assert {name for kind, name in names if kind == "macro"} == macros


def test_a_changed_file_is_refused(connection: duckdb.DuckDBPyConnection) -> None:
    apply_all(connection, ONE, "")
    with pytest.raises(MigrationError, match=r"0001_a\.sql has changed.*write the change as a new"):
        apply_all(connection, {"0001_a.sql": "CREATE TABLE b (i INTEGER);"}, "")


def test_a_ledger_of_a_newer_version_is_refused(connection: duckdb.DuckDBPyConnection) -> None:
    apply_all(connection, {**ONE, "0002_b.sql": "CREATE TABLE b (i INTEGER);"}, "")
    with pytest.raises(MigrationError, match=r"0002_b\.sql, which this version does not know"):
        apply_all(connection, ONE, "")


def test_a_file_that_fails_leaves_no_trace(connection: duckdb.DuckDBPyConnection) -> None:
    broken = {**ONE, "0002_b.sql": "CREATE TABLE b (i INTEGER); INSERT INTO nothere VALUES (1);"}
    with pytest.raises(MigrationError, match=r"0002_b\.sql cannot be applied: .*nothere"):
        apply_all(connection, broken, "")
    tables = run(connection, "SELECT table_name FROM duckdb_tables() ORDER BY 1")
    assert [row[0] for row in tables] == ["a", "winnow_migrations"]
    assert scalar(connection, "SELECT count(*) FROM winnow_migrations") == 1


def test_views_follow_their_text_and_rows_stay(connection: duckdb.DuckDBPyConnection) -> None:
    apply_all(
        connection,
        ONE,
        "CREATE VIEW old AS FROM a; CREATE MACRO one() AS 1;"
        "CREATE MACRO ones() AS TABLE SELECT one() FROM old;",
    )
    assert apply_all(connection, ONE, "CREATE VIEW new AS FROM a;") == ["views.sql"]
    views = run(connection, "SELECT view_name FROM duckdb_views() WHERE NOT internal")
    assert views == [("new",)]
    assert run(connection, "SELECT 1 FROM duckdb_functions() WHERE NOT internal") == []
    assert run(connection, "FROM new") == [(1,)]
