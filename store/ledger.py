"""The ledger: one DuckDB file with one writer, and everything that was ever committed.

Opening it takes the file's lock and brings its tables up to date; leaving gives the lock back.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import duckdb

from schemas.errors import DataError, StorageError
from store import connect
from store.migrate import migrate


class Ledger:
    """An open ledger; use it in a `with` block, from one thread.

    Attributes:
        connection: The connection, for `store.connect`'s functions.

    Raises:
        LedgerHeld: Another process has it open.
        MigrationError: It was made by another version.
        StorageError: The disk is full or refuses.
    """

    def __init__(self, path: Path) -> None:
        self.connection = connect.open_ledger(path)
        try:
            with writing(path):
                migrate(self.connection)
        except BaseException:
            self.connection.close()
            raise
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Commit what the block does through the connection, or none of it.

        Raises:
            StorageError: The disk is full or refuses.
            DataError: Rows do not fit their tables.
        """
        with writing(self._path), connect.transaction(self.connection):
            yield self.connection

    def checkpoint(self) -> None:
        """Move everything committed from the write-ahead log into the file."""
        with writing(self._path):
            connect.run(self.connection, "CHECKPOINT")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn DuckDB's refusals to write into errors of winnow."""
    try:
        yield
    except (duckdb.IOException, duckdb.FatalException, duckdb.OutOfMemoryException) as error:
        raise StorageError(
            f"cannot write {path}: {connect.one_line(error)}; "
            "free some space and run again, what was committed before is kept"
        ) from error
    except duckdb.TransactionException as error:
        # What the disk refuses at the commit itself arrives as this (duckdb 2.0.0).
        if "write file" not in str(error):
            raise
        raise StorageError(
            f"cannot commit to {path}: {connect.one_line(error)}; "
            "free some space and run again, what was committed before is kept"
        ) from error
    except (duckdb.ConstraintException, duckdb.ConversionException) as error:
        raise DataError(f"rows do not fit {path.name}: {connect.one_line(error)}") from error
