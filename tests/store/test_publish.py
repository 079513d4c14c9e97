"""Readers and the writer never wait for each other, and a reader never sees half a run."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import IO

import pytest

from schemas.errors import LedgerHeld, NotFound
from store.connect import open_ledger, run_sql
from store.publish import publish
from store.writer import commit_run
from tests.store.bundles import bundle

ROOT = Path(__file__).parents[2]

READS = """
    import sys, pathlib
    from store.connect import open_published, scalar

    connection = open_published(pathlib.Path(sys.argv[1]))
    for line in sys.stdin:
        print(scalar(connection, "SELECT count(*) FROM runs"), flush=True)
"""


class Reader:
    """Another process that keeps the snapshot open and counts its runs when asked."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(READS), str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def count(self) -> int:
        asked, answered = self.process.stdin, self.process.stdout
        assert isinstance(asked, IO) or asked is not None
        assert answered is not None
        asked.write("\n")
        asked.flush()
        return int(answered.readline())

    def close(self) -> None:
        self.process.communicate()


def test_an_open_reader_keeps_its_snapshot_and_a_new_one_sees_the_new(tmp_path: Path) -> None:
    ledger, published = tmp_path / "ledger.duckdb", tmp_path / "winnow.duckdb"
    commit_run(ledger, bundle(tmp_path / "b"))
    publish(ledger, published)
    early = Reader(published)
    try:
        assert early.count() == 1
        # The reader holds the snapshot: neither the commit nor the publication minds.
        commit_run(ledger, bundle(tmp_path / "b", run_id="r2", attribution="a2"))
        publish(ledger, published)
        assert early.count() == 1
        late = Reader(published)
        try:
            assert late.count() == 2
            assert early.count() == 1
        finally:
            late.close()
    finally:
        early.close()
    assert run_sql(published, "SELECT count(*) FROM runs").rows == [(2,)]
    assert sorted(path.name for path in tmp_path.glob("*duckdb*")) == [
        "ledger.duckdb",
        "winnow.duckdb",
    ]


def test_a_snapshot_is_written_under_the_ledgers_lock(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.duckdb"
    commit_run(ledger, bundle(tmp_path / "b"))
    code = """
        import sys, pathlib
        from store.publish import _settled
        with _settled(pathlib.Path(sys.argv[1])):
            print("ready", flush=True)
            sys.stdin.read()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(ledger)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(LedgerHeld, match=f"held by process {process.pid}"):
            open_ledger(ledger)
    finally:
        process.communicate()
    open_ledger(ledger).close()


def test_views_and_macros_are_published_with_the_rows(tmp_path: Path) -> None:
    ledger, published = tmp_path / "ledger.duckdb", tmp_path / "winnow.duckdb"
    commit_run(ledger, bundle(tmp_path / "b"))
    publish(ledger, published)
    assert len(run_sql(published, "FROM top_influences(100, n := 3)").rows) == 3


def test_what_a_killed_publication_left_is_swept(tmp_path: Path) -> None:
    ledger, published = tmp_path / "ledger.duckdb", tmp_path / "winnow.duckdb"
    commit_run(ledger, bundle(tmp_path / "b"))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    stale = tmp_path / f"winnow.duckdb.{gone.pid}.draft"
    stale.write_bytes(b"half")
    publish(ledger, published)
    assert not stale.exists()


def test_publishing_nothing_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="run `winnow run SPEC` first"):
        publish(tmp_path / "ledger.duckdb", tmp_path / "winnow.duckdb")
