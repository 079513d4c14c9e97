"""The answer to a batch in the ledger: whole, in place of an earlier one, and of one batch only."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas.arrivals import SCREENING_FRAMES
from schemas.errors import DataError
from store.connect import open_ledger, records, run
from store.writer import commit_run, commit_screening
from tests.store.bundles import bundle


def answer(key: str = "gate-1", *, held: int = 1, when: int = 3) -> dict[str, pl.DataFrame]:
    """A batch of three rows, the first so many of which are held up."""
    screening = {
        "screening_id": key, "spec_name": "stones", "problem": "gate", "dataset_id": "d1",
        "batch": f"{key}.csv", "batch_digest": "ab", "n_rows": 3, "accepted": 3 - held,
        "quarantined": held, "screened_out": held, "expected": 0.1, "n_trusted": 100,
        "output": "margin", "targets": "queries", "accepted_file": "a", "quarantined_file": "b",
        "sentence": "said", "verified": None,
        "screened_at": datetime(2026, 1, when, tzinfo=UTC),
    }  # fmt: skip
    rows = [
        {"screening_id": key, "batch_row": row, "label": "flint", "accepted": row > held,
         "reasons": "why" if row <= held else "", "codes": "loss" if row <= held else "",
         "effect": None}
        for row in (1, 2, 3)
    ]  # fmt: skip
    values = [
        {"screening_id": key, "batch_row": row, "screen": screen, "value": 1.0,
         "place": place / row, "rate": 0.02}
        for row in (1, 2, 3) for screen, place in (("loss", 0.03), ("harm", 0.3))
    ]  # fmt: skip
    given = {"screenings": [screening], "screened_rows": rows, "screened_values": values}
    return {
        name: pl.DataFrame(given.get(name, []), schema=schema.create_empty().schema)
        for name, schema in SCREENING_FRAMES.items()
    }


def count(ledger: Path, table: str) -> int:
    with open_ledger(ledger) as connection:
        return int(run(connection, f"SELECT count(*) FROM {table}")[0][0])


def test_an_answer_replaces_an_earlier_one_and_leaves_runs_and_others_alone(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.duckdb"
    commit_run(ledger, bundle(tmp_path / "b"))
    commit_screening(ledger, answer("gate-1"))
    commit_screening(ledger, answer("gate-2"))
    commit_screening(ledger, answer("gate-2", held=2))
    assert count(ledger, "screenings") == 2
    assert count(ledger, "screened_values") == 12
    commit_run(ledger, bundle(tmp_path / "b"))
    assert (count(ledger, "runs"), count(ledger, "screened_rows")) == (1, 6)


def test_quarantined_rows_begin_with_the_latest_batch_and_its_most_suspicious_row(
    tmp_path: Path,
) -> None:
    ledger = tmp_path / "ledger.duckdb"
    commit_screening(ledger, answer("gate-1", when=5))
    commit_screening(ledger, answer("gate-2", held=2, when=7))
    with open_ledger(ledger) as connection:
        found = records(connection, "FROM quarantined_rows", {})
    assert [(row["batch"], row["batch_row"]) for row in found] == [
        ("gate-2.csv", 2),
        ("gate-2.csv", 1),
        ("gate-1.csv", 1),
    ]
    assert [row["place"] for row in found] == pytest.approx([0.015, 0.03, 0.03])


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("screened_rows", {"screening_id": "gate-9"}, "holds 2 screenings"),
        ("screenings", {"accepted": 3}, "every_row_is_let_in_or_held_up"),
        ("screened_values", {"place": 0.0}, "place"),
    ],
)
def test_an_answer_that_does_not_agree_with_itself_is_refused(
    tmp_path: Path, table: str, change: dict[str, Any], message: str
) -> None:
    tables = answer()
    own = tables[table]
    dtypes = own.schema
    tables[table] = own.with_columns(
        pl.lit(value, dtype=dtypes[name]).alias(name) for name, value in change.items()
    )
    with pytest.raises(DataError, match=message):
        commit_screening(tmp_path / "ledger.duckdb", tables)
    assert not (tmp_path / "ledger.duckdb").exists()
