"""`traces` puts each method's rows side by side, with texts, truth and what retraining said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas.errors import DataError, QueryError
from store.connect import run_sql
from store.publish import publish
from store.writer import RunBundle, commit_run
from tests.store.bundles import bundle, frame

METHODS = ("trak", "bm25")


def traced(folder: Path, *, run_id: str = "r1") -> RunBundle:
    """Two queries; of query 100 'bm25' names rows that state the fact, and 'trak' none."""
    made = bundle(folder, run_id=run_id)
    examples = made.tables["examples"]
    assert isinstance(examples, pl.DataFrame)
    metadata = [
        f'{{"my text": "words of {example}", "fact": "{example % 4}"}}'
        for example in examples["example_id"]
    ]
    own = {"tracing_id": "t1"}
    rows = {
        "tracings": [
            own
            | {"run_id": run_id, "dataset_id": "d1", "problem": "why", "targets": "queries"}
            | {"text_column": "my text", "truth": "fact", "top": 2, "n_queries": 2}
            | {"with_truth": 2, "judged": 1, "removed": 4, "output": "margin", "value": 1.0}
            | {"sentence": "It was them."}
        ],
        "tracing_arms": [
            own | {"place": place, "arm": arm, "models": 3, "value": 0.5, "change": -0.5}
            for place, arm in enumerate([*METHODS, "random"])
        ],
        "tracing_effects": [
            own | {"arm": arm, "query_id": 100, "change": change}
            for arm, change in zip(METHODS, (-2.0, -1.0), strict=True)
        ],
        "tracing_rows": [
            own
            | {"arm": arm, "query_id": query, "rank": rank, "train_id": row, "score": 1.0 / rank}
            for arm, first in zip(METHODS, (3, 4), strict=True)
            for query in (100, 101)
            for rank, row in ((1, first), (2, first + 4))
        ],
    }
    tables = {name: frame(name, entries) for name, entries in rows.items()}
    tables["examples"] = examples.with_columns(metadata=pl.Series(metadata))
    return replace(made, tables={**made.tables, **tables})


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    commit_run(folder / "ledger.duckdb", traced(folder / "b"))
    publish(folder / "ledger.duckdb", folder / "winnow.duckdb")
    return folder / "winnow.duckdb"


def ask(published: Path, sql: str) -> list[dict[str, Any]]:
    result = run_sql(published, sql)
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def test_each_methods_rows_stand_side_by_side(published: Path) -> None:
    rows = ask(published, "FROM traces(100)")
    assert [(row["method"], row["rank"], row["train_id"]) for row in rows] == [
        ("trak", 1, 3), ("trak", 2, 7), ("bm25", 1, 4), ("bm25", 2, 8),
    ]  # fmt: skip
    assert [row["states"] for row in rows] == [False, False, True, True]
    assert rows[0]["text"] == "words of 3"
    assert {row["query_text"] for row in rows} == {"words of 100"}
    assert {row["method"]: row["change_without"] for row in rows} == {"trak": -2.0, "bm25": -1.0}
    assert len(ask(published, "FROM traces(query := 100, n := 1)")) == 2


def test_a_query_that_retraining_did_not_judge_has_no_change(published: Path) -> None:
    rows = ask(published, "FROM traces(101, tracing := 'why')")
    assert {row["change_without"] for row in rows} == {None}


def test_a_wrong_question_says_so(published: Path) -> None:
    with pytest.raises(QueryError, match="query 7 was not traced"):
        run_sql(published, "FROM traces(7)")
    with pytest.raises(QueryError, match="nothing has been traced"):
        run_sql(published, "FROM traces(100, tracing := 'another')")


def test_a_commit_again_leaves_the_same_rows(tmp_path: Path) -> None:
    for _ in range(2):
        counts = commit_run(tmp_path / "ledger.duckdb", traced(tmp_path / "b"))
    publish(tmp_path / "ledger.duckdb", tmp_path / "winnow.duckdb")
    assert counts["tracing_rows"] == 8
    assert len(ask(tmp_path / "winnow.duckdb", "FROM tracing_rows")) == 8
    assert len(ask(tmp_path / "winnow.duckdb", "FROM tracings")) == 1


def test_rows_of_an_unknown_tracing_are_refused(tmp_path: Path) -> None:
    made = traced(tmp_path / "b")
    others = {**made.tables, "tracings": frame("tracings", [])}
    with pytest.raises(DataError, match="refers to t1, which is not in tracings"):
        commit_run(tmp_path / "ledger.duckdb", replace(made, tables=others))
