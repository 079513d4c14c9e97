"""A commit is everything or nothing, and doing it again changes nothing."""

import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas.errors import DataError
from schemas.frames import FRAMES
from store.connect import open_ledger, run, scalar
from store.publish import publish
from store.writer import RunBundle, commit_run
from tasks.reporting.gathering import gather, open_source
from tests.store.bundles import N_TRAIN, QUERIES, bundle, scores

ROOT = Path(__file__).parents[2]


def contents(ledger: Path) -> dict[str, list[tuple[Any, ...]]]:
    with open_ledger(ledger) as connection:
        return {table: sorted(run(connection, f"FROM {table}"), key=repr) for table in FRAMES}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.duckdb"


def test_a_commit_writes_every_table(ledger: Path, tmp_path: Path) -> None:
    counts = commit_run(ledger, bundle(tmp_path / "b"))
    rows = contents(ledger)
    assert {table: len(rows[table]) for table in FRAMES} == counts
    assert counts["scores"] == N_TRAIN * len(QUERIES)
    assert not (tmp_path / "ledger.duckdb.wal").exists()


def test_scores_are_exact_and_in_query_order(ledger: Path, tmp_path: Path) -> None:
    commit_run(ledger, bundle(tmp_path / "b"))
    with open_ledger(ledger) as connection:
        rows = run(connection, "SELECT query_id, train_id, score FROM scores ORDER BY rowid")
    block = scores()
    expected = [
        (query, train, float(block[i, train]))
        for i, query in enumerate(QUERIES)
        for train in range(N_TRAIN)
    ]
    assert rows == expected


def test_committing_the_same_bundle_twice_gives_identical_tables(
    ledger: Path, tmp_path: Path
) -> None:
    commit_run(ledger, bundle(tmp_path / "b"))
    before = contents(ledger)
    commit_run(ledger, bundle(tmp_path / "b"))
    assert contents(ledger) == before


def test_a_run_that_comes_again_replaces_what_it_had(ledger: Path, tmp_path: Path) -> None:
    commit_run(ledger, bundle(tmp_path / "b", attribution="old"))
    commit_run(ledger, bundle(tmp_path / "b", attribution="new", offset=0.5, keep=4))
    rows = contents(ledger)
    assert {row[0] for row in rows["attributions"]} == {"new"}
    assert {row[0] for row in rows["scores"]} == {"new"}
    assert len(rows["scores"]) == 4 * len(QUERIES)
    assert len(rows["example_effects"]) == N_TRAIN
    assert len(rows["verdicts"]) == 3


def test_another_run_leaves_the_first_alone(ledger: Path, tmp_path: Path) -> None:
    commit_run(ledger, bundle(tmp_path / "b"))
    before = contents(ledger)
    commit_run(ledger, bundle(tmp_path / "b", run_id="r2", attribution="a2"))
    after = contents(ledger)
    for table in ("runs", "scores", "attributions", "solutions", "solution_rows", "verdicts"):
        assert len(after[table]) == 2 * len(before[table])
        assert set(before[table]) <= set(after[table])
    # The data set and the retrained models are the same ones, so they are there once.
    for table in ("examples", "bank", "bank_outputs"):
        assert after[table] == before[table]


def of_run(whole: RunBundle, run_id: str) -> RunBundle:
    """What another spec commits that asks the same, and no more."""
    tables = {
        name: rows.with_columns(run_id=pl.lit(run_id)) if "run_id" in rows.columns else rows
        for name, rows in whole.tables.items()
        if isinstance(rows, pl.DataFrame)
    }
    return replace(whole, tables=tables)


def test_what_two_specs_ask_alike_is_part_of_both_runs(ledger: Path, tmp_path: Path) -> None:
    whole, published = bundle(tmp_path / "b"), tmp_path / "winnow.duckdb"
    commit_run(ledger, whole)
    once = contents(ledger)
    commit_run(ledger, of_run(whole, "r2"))
    twice = contents(ledger)
    for table in ("scores", "solution_rows", "bank_outputs", "lds"):
        assert twice[table] == once[table]
    assert {row[1:] for row in twice["run_parts"] if row[0] == "r2"} == {
        row[1:] for row in once["run_parts"]
    }
    publish(ledger, published)
    for run_id in ("r1", "r2"):
        with open_source(published) as source:
            found = gather(source, run_id)
        assert [answer.problem for answer in found.answers] == ["clean"]
        assert {arm.name for arm in found.answers[0].arms} == {"chosen", "all", "random"}
        assert [method.name for method in found.methods] == ["trak"]
    # The second run comes again and asks something else: what it shared is still the first's.
    commit_run(ledger, bundle(tmp_path / "c", run_id="r2", attribution="a2"))
    after = contents(ledger)
    assert {row[0] for row in after["attributions"]} == {"a1", "a2"}
    assert [row for row in after["run_parts"] if row[0] == "r1"] == once["run_parts"]
    assert {row[2] for row in after["run_parts"] if row[0] == "r2"}.isdisjoint(
        {row[2] for row in once["run_parts"]}
    )


def test_a_retrained_model_keeps_its_outputs_on_other_queries(ledger: Path, tmp_path: Path) -> None:
    first = bundle(tmp_path / "b")
    commit_run(ledger, first)
    outputs = first.tables["bank_outputs"]
    assert isinstance(outputs, pl.DataFrame)
    more = outputs.with_columns(query_id=pl.col("query_id") + 1, value=pl.lit(7.0, pl.Float32))
    commit_run(ledger, replace(first, tables={**first.tables, "bank_outputs": more}))
    rows = contents(ledger)["bank_outputs"]
    assert {(query, value) for _, query, _, value in rows} == {
        (100, 1.0),
        (101, 7.0),
        (102, 7.0),
        (103, 7.0),
    }
    assert len(rows) == 8


def test_tables_may_come_as_parquet(ledger: Path, tmp_path: Path) -> None:
    whole = bundle(tmp_path / "b")
    examples = whole.tables["examples"]
    assert isinstance(examples, pl.DataFrame)
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    examples[:5].write_parquet(paths[0])
    examples[5:].write_parquet(paths[1])
    commit_run(ledger, replace(whole, tables={**whole.tables, "examples": paths}))
    assert len(contents(ledger)["examples"]) == examples.height


def test_masks_keep_their_bits_in_order(ledger: Path, tmp_path: Path) -> None:
    commit_run(ledger, bundle(tmp_path / "b"))
    with open_ledger(ledger) as connection:
        assert scalar(connection, "SELECT typeof(mask) FROM bank LIMIT 1") == "BIT"
        zeros = "SELECT list_filter(range(12), lambda i: get_bit(mask, i::INT) = 0) FROM bank"
        assert scalar(connection, zeros) == [3, 8]


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("attributions", {"run_id": "r9"}, "attributions has rows of run r9 in a bundle of r1"),
        ("lds", {"attribution_id": "zz"}, "lds refers to zz, which is not in attributions"),
        ("verdicts", {"solution_id": "zz"}, "verdicts refers to zz, which is not in solutions"),
        ("attributions", {"kept": 35}, "the segments hold 36 rows and the attribution says 35"),
        ("runs", {"device": "tpu"}, "rows for runs: .*device"),
        ("examples", {"example_id": 1}, "rows for examples: .*primary_key"),
    ],
)
def test_a_bundle_that_contradicts_itself_is_refused_and_nothing_written(
    ledger: Path, tmp_path: Path, table: str, change: dict[str, Any], message: str
) -> None:
    whole = bundle(tmp_path / "b")
    rows = whole.tables[table]
    assert isinstance(rows, pl.DataFrame)
    changed = rows.with_columns(
        **{name: pl.lit(value).cast(rows.schema[name]) for name, value in change.items()}
    )
    with pytest.raises(DataError, match=message) as caught:
        commit_run(ledger, replace(whole, tables={**whole.tables, table: changed}))
    assert "\n" not in str(caught.value)
    if ledger.exists():
        assert not any(contents(ledger).values())


def test_an_unknown_table_is_refused(ledger: Path, tmp_path: Path) -> None:
    whole = bundle(tmp_path / "b")
    with pytest.raises(DataError, match="'winners' is not a table"):
        commit_run(ledger, replace(whole, tables={**whole.tables, "winners": pl.DataFrame()}))


DIES = """
    import os, signal, sys, pathlib
    from store import ledger as module, writer
    from tests.store.bundles import bundle

    folder, moment = pathlib.Path(sys.argv[1]), sys.argv[2]

    def die(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "inserted":
        writer._insert_scores = die
    else:
        module.Ledger.checkpoint = die
    writer.commit_run(folder / "ledger.duckdb", bundle(folder / "b", run_id="r2", attribution="a2"))
"""


@pytest.mark.parametrize(("moment", "runs"), [("inserted", ["r1"]), ("committed", ["r1", "r2"])])
def test_a_kill_keeps_what_was_committed_and_nothing_else(
    ledger: Path, tmp_path: Path, moment: str, runs: list[str]
) -> None:
    commit_run(ledger, bundle(tmp_path / "b"))
    before = contents(ledger)
    code = textwrap.dedent(DIES)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), moment], cwd=ROOT, capture_output=True
    )
    assert done.returncode == -9, done.stderr
    after = contents(ledger)
    assert sorted(row[0] for row in after["runs"]) == runs
    if moment == "inserted":
        assert after == before
    commit_run(ledger, bundle(tmp_path / "b", run_id="r2", attribution="a2"))
    assert len(contents(ledger)["scores"]) == 2 * N_TRAIN * len(QUERIES)


FULL = """
    import resource, sys, pathlib
    from schemas.errors import StorageError
    from store.writer import commit_run
    from tests.store.bundles import bundle

    folder, limit = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    whole = bundle(folder / "b", run_id="r2", attribution="a2")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        commit_run(folder / "ledger.duckdb", whole)
    except StorageError as error:
        print(error)
"""


def test_a_full_disk_is_a_storage_error_and_loses_nothing(ledger: Path, tmp_path: Path) -> None:
    # The log is what the limit stops: the commit itself is refused.
    commit_run(ledger, bundle(tmp_path / "b"))
    before = contents(ledger)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path), "4000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "free some space and run again" in done.stdout, done.stderr
    assert contents(ledger) == before


def test_a_disk_that_fills_up_after_the_commit_keeps_the_run(ledger: Path, tmp_path: Path) -> None:
    commit_run(ledger, bundle(tmp_path / "b"))
    size = str(ledger.stat().st_size)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path), size],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "checkpoint" in done.stdout, done.stderr
    assert len(contents(ledger)["runs"]) == 2
