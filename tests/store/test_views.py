"""What an analyst asks by name gives the right rows, and a wrong question says so."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.errors import QueryError
from store.connect import open_ledger, run_sql
from store.publish import publish
from store.writer import commit_run
from tests.store.bundles import CORRUPTED, N_TRAIN, QUERIES, WHEN, bundle, scores


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run r1 (attribution a1), then r2 (a2, scores half a unit higher)."""
    folder = tmp_path_factory.mktemp("published")
    ledger = folder / "ledger.duckdb"
    commit_run(ledger, bundle(folder / "b"))
    later = WHEN + timedelta(days=1)
    commit_run(ledger, bundle(folder / "b", run_id="r2", attribution="a2", offset=0.5, when=later))
    publish(ledger, folder / "winnow.duckdb")
    return folder / "winnow.duckdb"


def ask(published: Path, sql: str) -> list[dict[str, Any]]:
    result = run_sql(published, sql)
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def test_top_influences_are_the_strongest_of_the_latest_attribution(published: Path) -> None:
    rows = ask(published, "FROM top_influences(101, n := 4)")
    row = scores(0.5)[QUERIES.index(101)]
    strongest = np.argsort(-np.abs(row), kind="stable")[:4]
    assert [r["train_id"] for r in rows] == strongest.tolist()
    assert [r["rank"] for r in rows] == [1, 2, 3, 4]
    np.testing.assert_allclose([r["score"] for r in rows], row[strongest])
    assert {r["attribution_id"] for r in rows} == {"a2"}
    assert {r["query_target"] for r in rows} == {"ant"}
    assert list(rows[0]) == [
        "rank", "train_id", "score", "target", "true_target", "query_target", "name", "output",
        "attribution_id",
    ]  # fmt: skip


def test_a_macro_that_is_asked_for_as_a_table_says_how_it_is_called(published: Path) -> None:
    with pytest.raises(QueryError, match=r"is a macro: write harmful_examples\(\), as in") as told:
        run_sql(published, "FROM harmful_examples LIMIT 8")
    assert str(told.value).endswith("its parameters are n, attribution")
    with pytest.raises(QueryError, match="mislabel_candidates is a view: write FROM mislabel_cand"):
        run_sql(published, "FROM mislabel_candidates()")
    for unknown in ("FROM nothing", "FROM nothing()"):
        with pytest.raises(QueryError, match="nothing does not exist"):
            run_sql(published, unknown)


def test_an_attribution_may_be_asked_for_by_id_or_by_name(published: Path) -> None:
    by_id = ask(published, "FROM top_influences(query := 100, n := 1, attribution := 'a1')")
    assert by_id[0]["score"] == pytest.approx(np.abs(scores()[0]).max() * -1)
    by_name = ask(published, "FROM top_influences(100, attribution := 'trak')")
    assert {row["attribution_id"] for row in by_name} == {"a2"}
    assert len(by_name) == N_TRAIN


def test_a_query_that_was_not_scored_says_which_were(published: Path) -> None:
    with pytest.raises(QueryError, match="query 17 was not scored by attribution a2") as caught:
        run_sql(published, "FROM top_influences(17)")
    hint = str(caught.value).split("scored queries: ")[1]
    assert sorted(run_sql(published, hint).rows) == [(query,) for query in QUERIES]
    with pytest.raises(QueryError, match="there is no attribution nope; known: trak"):
        run_sql(published, "FROM top_influences(100, attribution := 'nope')")


def test_harmful_examples_come_first(published: Path) -> None:
    rows = ask(published, "FROM harmful_examples(n := 3)")
    assert {row["example_id"] for row in rows[:2]} == set(CORRUPTED)
    assert rows[0]["harm"] > 0 > rows[2]["harm"]
    assert all(row["harm"] == -row["mean_score"] for row in rows)
    every = ask(published, "FROM mislabel_candidates")
    assert [row["suspicion"] for row in every] == list(range(1, N_TRAIN + 1))
    assert [row["example_id"] for row in every[:3]] == [row["example_id"] for row in rows]


def test_dropped_and_selected_examples_are_the_whole_pool(published: Path) -> None:
    dropped = ask(published, "FROM dropped_examples")
    assert {row["example_id"] for row in dropped} == set(CORRUPTED)
    assert all(row["corrupted"] for row in dropped)
    assert dropped[0]["utility"] < dropped[1]["utility"]
    selected = ask(published, "FROM selected_examples")
    assert not any(row["corrupted"] for row in selected)
    assert len(selected) == N_TRAIN - len(CORRUPTED)
    assert {row["solution_id"] for row in dropped + selected} == {"s-r2"}


def test_nobody_says_that_a_label_is_right_where_none_is_known(tmp_path: Path) -> None:
    commit_run(tmp_path / "l.duckdb", bundle(tmp_path / "b"))
    with open_ledger(tmp_path / "l.duckdb") as connection:
        connection.execute("UPDATE examples SET true_target = NULL")
    publish(tmp_path / "l.duckdb", tmp_path / "w.duckdb")
    for view in ("dropped_examples", "selected_examples"):
        known = run_sql(tmp_path / "w.duckdb", f"SELECT DISTINCT corrupted FROM {view}").rows
        assert known == [(None,)]


def test_arms_say_what_each_reached_in_few_columns(published: Path) -> None:
    rows = ask(published, "FROM arms")
    told = ask(
        published,
        "SELECT arm, accuracy, advantage, value, observed_change FROM verdicts WHERE run_id = 'r2'",
    )
    assert list(rows[0]) == ["problem", "arm", "n_rows", "accuracy", "value", "change", "points"]
    assert [row["arm"] for row in rows[:2]] == ["chosen", "all"]
    assert len(rows) == len(told)
    for row in rows:
        (one,) = [each for each in told if each["arm"] == row["arm"]]
        assert row["accuracy"] == pytest.approx(100 * one["accuracy"])
        assert (row["value"], row["change"]) == (one["value"], one["observed_change"])
        points = None if one["advantage"] is None else pytest.approx(100 * one["advantage"])
        assert row["points"] == points


def test_arms_that_another_run_committed_last_are_shown_too(tmp_path: Path) -> None:
    commit_run(tmp_path / "l.duckdb", bundle(tmp_path / "b"))
    with open_ledger(tmp_path / "l.duckdb") as connection:
        connection.execute("UPDATE verdicts SET run_id = 'another'")
    publish(tmp_path / "l.duckdb", tmp_path / "w.duckdb")
    assert ask(tmp_path / "w.duckdb", "SELECT arm FROM arms")[0] == {"arm": "chosen"}


def test_lds_by_method_and_the_bank_are_there(published: Path) -> None:
    rows = ask(published, "SELECT name, alpha, attribution_id FROM lds_by_method")
    assert [(row["attribution_id"], row["alpha"]) for row in rows] == [
        ("a2", None),
        ("a2", 0.5),
        ("a1", None),
        ("a1", 0.5),
    ]
    (bank,) = ask(published, "SELECT kind, models, masks FROM bank_by_kind")
    assert bank == {"kind": "verdict:chosen", "models": 2, "masks": 1}


@pytest.mark.parametrize(("output", "sign"), [("loss", 1), ("squared_error", 1), ("margin", -1)])
def test_harm_knows_which_way_an_output_is_good(published: Path, output: str, sign: int) -> None:
    rows = run_sql(published, f"SELECT harm('{output}', 2.0), harm('prediction', 2.0)").rows
    assert rows == [(sign * 2, None)]


def test_an_output_without_a_good_direction_is_refused(tmp_path: Path) -> None:
    commit_run(tmp_path / "l.duckdb", bundle(tmp_path / "b", output="prediction"))
    publish(tmp_path / "l.duckdb", tmp_path / "w.duckdb")
    with pytest.raises(QueryError, match="output prediction of attribution trak has no good dir"):
        run_sql(tmp_path / "w.duckdb", "FROM harmful_examples()")
    suspects = run_sql(tmp_path / "w.duckdb", "SELECT harm FROM mislabel_candidates").rows
    assert suspects == [(None,)] * N_TRAIN


def test_contents_name_all_that_there_is_to_ask_and_say_what_it_is(published: Path) -> None:
    rows = ask(published, "FROM contents")
    asked = {
        "SELECT view_name FROM duckdb_views() WHERE NOT internal": "view",
        "SELECT table_name FROM duckdb_tables() WHERE NOT internal": "table",
    }
    for sql, kind in asked.items():
        known = {name for (name,) in run_sql(published, sql).rows}
        assert {row["name"] for row in rows if row["kind"] == kind} == known
    macros = [row["name"] for row in rows if row["kind"] == "macro"]
    assert "top_influences(query, n, attribution)" in macros
    assert [row["name"] for row in rows[: len(macros)]] == sorted(macros)
    assert all(row["comment"] for row in rows)


def test_an_empty_snapshot_says_that_nothing_was_attributed(tmp_path: Path) -> None:
    from store.ledger import Ledger

    with Ledger(tmp_path / "l.duckdb"):
        pass
    publish(tmp_path / "l.duckdb", tmp_path / "w.duckdb")
    with pytest.raises(QueryError, match="nothing has been attributed yet"):
        run_sql(tmp_path / "w.duckdb", "FROM top_influences(1)")
    with pytest.raises(QueryError, match="nothing has been attributed yet"):
        run_sql(tmp_path / "w.duckdb", "FROM harmful_examples()")


def test_prices_of_the_latest_run_come_first_and_the_dearest_before_others(
    published: Path,
) -> None:
    rows = ask(published, "SELECT solution_id, constraint_name, price FROM prices_by_constraint")
    assert [row["solution_id"] for row in rows] == ["s-r2", "s-r2", "s-r1", "s-r1"]
    assert [row["constraint_name"] for row in rows[:2]] == ["class ant", "size"]
    assert rows[0]["price"] == -0.5
