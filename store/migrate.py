"""Brings a ledger to the tables and views that this version of winnow expects.

Numbered files of `schemas/sql` are applied once, each in a transaction together with its record
in `winnow_migrations`. `views.sql` holds no rows, so it replaces all views and macros each time
it differs from what was applied last.
"""

import hashlib

import duckdb

from schemas.errors import MigrationError
from store.connect import one_line, run, scalar, transaction
from store.statements import sql_files, sql_text

VIEWS = "views.sql"


def migration_names() -> list[str]:
    """The numbered files, in the order in which they are applied."""
    return [name for name in sql_files() if name[:4].isdecimal()]


def migrate(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Apply what is missing; returns the names of the files that were applied.

    Raises:
        MigrationError: An applied file has changed since, the ledger was made by a newer
            version, or a statement failed.
    """
    migrations = {name: sql_text(name) for name in migration_names()}
    return apply_all(connection, migrations, sql_text(VIEWS))


def apply_all(
    connection: duckdb.DuckDBPyConnection, migrations: dict[str, str], views: str
) -> list[str]:
    """Apply these files, in the order of their names, and then the views.

    Args:
        connection: A connection that may write.
        migrations: Text by name of every numbered file.
        views: Text that creates every view and macro.

    Raises:
        MigrationError: As `migrate`.
    """
    _record_table(connection)
    applied = dict(run(connection, "SELECT name, sha256 FROM winnow_migrations"))
    unknown = sorted(set(applied) - set(migrations) - {VIEWS})
    if unknown:
        raise MigrationError(
            f"the ledger has migration {unknown[-1]}, which this version does not know; "
            "install the version of winnow that made it"
        )
    done = []
    for name in sorted(migrations):
        digest = _digest(migrations[name])
        if name not in applied:
            _apply(connection, name, migrations[name], digest)
            done.append(name)
        elif applied[name] != digest:
            raise MigrationError(
                f"{name} has changed since it was applied to this ledger; "
                "restore its text and write the change as a new file"
            )
    if done or applied.get(VIEWS) != _digest(views):
        _replace_views(connection, views)
        done.append(VIEWS)
    return done


def _record_table(connection: duckdb.DuckDBPyConnection) -> None:
    with transaction(connection):
        for statement in connection.extract_statements(_RECORDS):
            connection.execute(statement).fetchall()


def _apply(connection: duckdb.DuckDBPyConnection, name: str, text: str, digest: str) -> None:
    try:
        with transaction(connection):
            for statement in connection.extract_statements(text):
                connection.execute(statement).fetchall()
            run(connection, "DELETE FROM winnow_migrations WHERE name = ?", [name])
            run(connection, "INSERT INTO winnow_migrations VALUES (?, ?, now())", [name, digest])
    except duckdb.Error as error:
        raise MigrationError(f"{name} cannot be applied: {one_line(error)}") from error


def _replace_views(connection: duckdb.DuckDBPyConnection, text: str) -> None:
    drops = scalar(connection, _DROPS) or ""
    _apply(connection, VIEWS, drops + "\n" + text, _digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


_RECORDS = """
CREATE TABLE IF NOT EXISTS winnow_migrations (
    name VARCHAR NOT NULL,
    sha256 VARCHAR NOT NULL,
    applied_at TIMESTAMPTZ NOT NULL
);
COMMENT ON TABLE winnow_migrations IS 'One row is one file of SQL that shaped this database.';
COMMENT ON COLUMN winnow_migrations.name IS 'The file''s name.';
COMMENT ON COLUMN winnow_migrations.sha256 IS 'Digest of its text as it was applied.';
COMMENT ON COLUMN winnow_migrations.applied_at IS 'When it was applied.';
"""

# The names come from DuckDB's own catalogue, quoted by it.
_DROPS = """
SELECT string_agg(statement, '')
FROM (
    SELECT format('DROP VIEW IF EXISTS "{}" CASCADE;', replace(view_name, '"', '""')) AS statement
    FROM duckdb_views() WHERE NOT internal
    UNION ALL
    SELECT DISTINCT format(
        'DROP MACRO {} IF EXISTS "{}" CASCADE;',
        CASE WHEN function_type = 'table_macro' THEN 'TABLE' ELSE '' END,
        replace(function_name, '"', '""')
    )
    FROM duckdb_functions() WHERE NOT internal AND function_type LIKE '%macro'
)
"""
