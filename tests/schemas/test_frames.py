"""What the commit task lets into the ledger, and what it does not."""

from typing import Any

import dataframely as dy
import polars as pl
import pytest

from schemas.arrivals import SCREENING_FRAMES
from schemas.frames import (
    FRAMES,
    AttributionFrame,
    BankFrame,
    ExampleFrame,
    LdsFrame,
    ScoreFrame,
)
from store.connect import records, scratch
from store.migrate import migrate

EVERY = {**FRAMES, **SCREENING_FRAMES}
BANK = {
    "retrain_id": "r1",
    "dataset_id": "d1",
    "kind": "verdict:random",
    "alpha": 0.5,
    "seed": 3,
    "n_rows": 2,
    "mask": "0101",
}
EXAMPLE = {
    "dataset_id": "d1",
    "example_id": 0,
    "split": "train",
    "target": "3",
    "true_target": "8",
    "content_hash": "00ff",
    "source_id": None,
    "metadata": None,
}
LDS = {
    "attribution_id": "a1",
    "alpha": None,
    "mean": 0.4,
    "low": 0.3,
    "high": 0.5,
    "ceiling": None,
    "relative": None,
    "null_sd": 0.05,
    "n_masks": 30,
    "n_seeds": 1,
    "n_queries": 100,
}
SCORE = {"attribution_id": "a1", "query_id": 1, "train_id": 2, "score": -0.5}


def checked(schema: type[dy.Schema], *rows: dict[str, Any]) -> pl.DataFrame:
    return schema.validate(pl.DataFrame(list(rows)), cast=True)


@pytest.mark.parametrize("table", EVERY)
def test_an_empty_table_is_valid_and_described(table: str) -> None:
    schema = EVERY[table]
    assert schema.is_valid(schema.create_empty())
    assert (schema.__doc__ or "").startswith("One row: ")


@pytest.mark.parametrize(
    ("schema", "row"),
    [(BankFrame, BANK), (ExampleFrame, EXAMPLE), (LdsFrame, LDS), (ScoreFrame, SCORE)],
)
def test_a_sound_row_enters(schema: type[dy.Schema], row: dict[str, Any]) -> None:
    assert checked(schema, row).height == 1


@pytest.mark.parametrize(
    ("schema", "row", "changes"),
    [
        (ScoreFrame, SCORE, {"score": float("nan")}),
        (ScoreFrame, SCORE, {"score": float("inf")}),
        (ScoreFrame, SCORE, {"score": None}),
        (ScoreFrame, SCORE, {"train_id": -1}),
        (BankFrame, BANK, {"mask": "0111"}),
        (BankFrame, BANK, {"mask": "0201"}),
        (BankFrame, BANK, {"kind": "other"}),
        (BankFrame, BANK, {"alpha": 1.5}),
        (ExampleFrame, EXAMPLE, {"split": "valid"}),
        (ExampleFrame, EXAMPLE, {"target": None}),
        (LdsFrame, LDS, {"mean": 1.5}),
    ],
)
def test_a_row_that_cannot_be_is_refused(
    schema: type[dy.Schema], row: dict[str, Any], changes: dict[str, Any]
) -> None:
    with pytest.raises(dy.exc.ValidationError):
        checked(schema, {**row, **changes})


def test_an_example_enters_once() -> None:
    assert checked(ExampleFrame, EXAMPLE, {**EXAMPLE, "example_id": 1}).height == 2
    with pytest.raises(dy.exc.ValidationError):
        checked(ExampleFrame, EXAMPLE, EXAMPLE)


def test_an_attribution_has_one_lds_for_each_size_and_one_for_all() -> None:
    half = {**LDS, "alpha": 0.5}
    assert checked(LdsFrame, LDS, half, {**LDS, "attribution_id": "a2"}).height == 3
    with pytest.raises(dy.exc.ValidationError):
        checked(LdsFrame, LDS, half, LDS)


ATTRIBUTION = {
    "attribution_id": "a1",
    "run_id": "r1",
    "dataset_id": "d1",
    "name": "trak",
    "method": "trak",
    "output": "margin",
    "options": "{}",
    "n_train": 10,
    "n_query": 3,
    "fingerprint": "f",
    "damping": 1.0,
    "damping_from": "given",
    "device": "cpu",
    "seconds": 0.1,
    "kept": 30,
}


def test_no_more_scores_are_kept_than_there_are_pairs() -> None:
    assert checked(AttributionFrame, ATTRIBUTION).height == 1
    with pytest.raises(dy.exc.ValidationError, match="kept_is_no_more_than_all"):
        checked(AttributionFrame, {**ATTRIBUTION, "kept": 31})


DUCKDB_TYPES = {
    "Bool": {"BOOLEAN"},
    "Datetime": {"TIMESTAMP WITH TIME ZONE"},
    "Float32": {"FLOAT"},
    "Float64": {"DOUBLE"},
    "Int32": {"INTEGER"},
    "Int64": {"BIGINT", "INTEGER"},
    "String": {"VARCHAR", "JSON", "BIT"},
}


@pytest.mark.parametrize("table", EVERY)
def test_a_frame_fits_its_table(table: str) -> None:
    ledger = scratch()
    migrate(ledger)
    columns = records(
        ledger,
        "SELECT column_name, data_type, is_nullable FROM duckdb_columns() "
        "WHERE table_name = ? AND NOT internal ORDER BY column_index",
        [table],
    )
    frame = EVERY[table].columns()
    assert [column["column_name"] for column in columns] == list(frame)
    for column in columns:
        declared = frame[column["column_name"]]
        assert column["data_type"] in DUCKDB_TYPES[type(declared).__name__]
        # The door may be narrower than the table, never wider.
        assert column["is_nullable"] or not declared.nullable, column["column_name"]
