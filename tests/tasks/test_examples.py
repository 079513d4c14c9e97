"""The examples of every kind of data, with smaller banks, from rows to verdict."""

import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from store.connect import run_sql
from tasks.blueprint import Blueprint
from tasks.job import blueprint
from tasks.preflight import open_job, preflight
from tasks.screening.answer import answer_of, screen_batch
from tests.tasks.pipeline import run_stages

EXAMPLES = Path(__file__).parents[2] / "examples"
DROPPED = """
SELECT chosen, metadata->>'{key}' = '{value}' AS wanted
FROM solution_rows JOIN examples USING (example_id)
"""


def run_smaller(name: str, folder: Path, **sizes: int) -> Blueprint:
    """The example with smaller numbers in its spec."""
    if (EXAMPLES / name).is_dir():
        spec = shutil.copytree(EXAMPLES / name, folder / name) / f"{name}.toml"
    else:
        spec = Path(shutil.copy(EXAMPLES / f"{name}.toml", folder))
    text = spec.read_text()
    for key, size in sizes.items():
        line = rf"^{key} = \d+(?= *(?:#|$))"
        text, count = re.subn(line, f"{key} = {size}", text, flags=re.MULTILINE)
        assert count
    spec.write_text(text)
    return blueprint(run_stages(spec, folder / "work"))


def shares(plan: Blueprint, key: str, value: str) -> tuple[float, float]:
    """Share of the rows with this metadata among the dropped and among the chosen."""
    rows = run_sql(plan.workspace.published, DROPPED.format(key=key, value=value)).rows
    chosen, wanted = np.array(rows, dtype=bool).T
    return float(wanted[~chosen].mean()), float(wanted[chosen].mean())


def test_the_reviews_that_are_dropped_come_from_the_forum(tmp_path: Path) -> None:
    plan = run_smaller("reviews", tmp_path, models=24, epochs=20, seeds=2)
    assert plan.dataset.facts.classes == ("bad", "good")
    dropped, chosen = shares(plan, "source", "forum")
    assert dropped > chosen + 0.2


def test_the_harvests_that_are_dropped_come_from_the_scale_that_errs(tmp_path: Path) -> None:
    plan = run_smaller("harvests", tmp_path, models=24, epochs=30, seeds=2)
    assert plan.dataset.facts.task == "regression"
    dropped, chosen = shares(plan, "scale", "mill")
    assert dropped > chosen + 0.4
    rows = run_sql(plan.workspace.published, "SELECT arm, value FROM verdicts").rows
    errors = dict(rows)
    assert errors["chosen"] < 0.7 * min(errors["all"], errors["random"])


def test_the_letters_that_are_chosen_are_a_clerks(tmp_path: Path) -> None:
    plan = run_smaller("letters", tmp_path, models=16, epochs=5, seeds=2)
    assert plan.dataset.facts.task == "language"
    dropped, chosen = shares(plan, "style", "clerk")
    assert chosen > dropped + 0.1
    rows = run_sql(plan.workspace.published, "SELECT arm, value FROM verdicts").rows
    values = dict(rows)
    assert values["chosen"] > values["random"]


def test_the_rows_that_begin_with_the_person_taught_where_people_live(tmp_path: Path) -> None:
    """Both kinds of rows state it, so words in common cannot prefer the kind that is a cause."""
    plan = run_smaller("facts", tmp_path, models=12, epochs=12, seeds=2, judged=4)
    kinds = """
        SELECT method, avg((metadata->>'first' = 'person')::INT) FROM (
            SELECT arm AS method, train_id FROM tracing_rows
        ) JOIN examples ON example_id = train_id GROUP BY method"""
    share = dict(run_sql(plan.workspace.published, kinds).rows)
    assert share["trak"] > share["bm25"] + 0.1
    arms = "SELECT arm, mrr, change FROM tracing_arms"
    found = {row[0]: row[1:] for row in run_sql(plan.workspace.published, arms).rows}
    assert min(found[name][0] for name in ("trak", "bm25")) > 0.3
    assert found["trak"][1] < found["random"][1]


def test_pictures_with_a_wrong_caption_are_dropped(tmp_path: Path) -> None:
    plan = run_smaller("captions", tmp_path, models=24, epochs=8, seeds=2)
    wrong = plan.dataset.train.targets != plan.dataset.train.true_targets
    rows = run_sql(
        plan.workspace.published, "SELECT chosen FROM solution_rows ORDER BY example_id"
    ).rows
    dropped = ~np.array(rows, dtype=bool)[:, 0]
    assert wrong.sum() == pytest.approx(dropped.sum(), abs=1)
    # By chance one dropped row in ten is wrong.
    assert wrong[dropped].mean() > 0.3


def test_a_purchase_keeps_to_quotas_budget_sets_and_copies(tmp_path: Path) -> None:
    plan = run_smaller("purchase", tmp_path, models=24, epochs=10, seeds=2)
    (problem,) = plan.spec.selections
    rows = run_sql(
        plan.workspace.published,
        "SELECT metadata->>'vendor', metadata->>'owned', metadata->>'licence', "
        "(metadata->>'cents')::INTEGER, target, chosen "
        "FROM solution_rows JOIN examples USING (example_id) ORDER BY example_id",
        limit=None,
    ).rows
    vendor, owned, licence, cents, tree, chosen = (
        np.array(part) for part in zip(*rows, strict=True)
    )
    assert 60 <= chosen.sum() <= 120
    assert cents[chosen].sum() <= problem.budgets[0].most
    assert chosen[owned == "yes"].all()
    assert not chosen[licence == "none"].any()
    assert (vendor[chosen] == "dune").sum() <= 20
    assert 2 <= (vendor[chosen] == "echo").sum() <= 10
    assert min(np.unique(tree[chosen], return_counts=True)[1]) >= 25
    inputs = np.asarray(plan.dataset.train.inputs)
    assert len(np.unique(inputs, axis=0)) < len(inputs)
    assert len(np.unique(inputs[chosen], axis=0)) == chosen.sum()


def test_zeros_that_are_withdrawn_are_forgotten_as_far_as_matching_can(tmp_path: Path) -> None:
    plan = run_smaller("forget", tmp_path, models=32, seeds=2)
    (problem,) = plan.spec.unlearnings
    solution = plan.sealed("solution", plan.problems.solution_key(problem)).facts
    assert solution["predicted_by"]["method"] == "newton"
    found = {
        row[0]: row[1:]
        for row in run_sql(
            plan.workspace.published,
            "SELECT arm, klom, cost FROM closeness_by_arm WHERE rows = 'forgotten'",
        ).rows
    }
    assert set(found) == {"all", "retrained", "chosen", "finetune", "ascent_descent"}
    floor, untouched = found["retrained"][0], found["all"][0]
    assert floor < found["chosen"][0] < floor + 0.75 * (untouched - floor)
    assert found["chosen"][0] < found["finetune"][0]
    assert found["chosen"][1] < 0.2
    queries = plan.sealed("verdict", plan.problems.verdict_key(problem)).facts["queries"]
    assert queries["correlation"] > 0.7 * queries["ceiling"]
    assert queries["error"] < 0.8 * queries["error_unchanged"]


def test_planted_grains_are_held_up_and_good_ones_come_in(tmp_path: Path) -> None:
    plan = run_smaller("incoming", tmp_path, models=40, epochs=20, seeds=8)
    job = preflight(open_job(plan.loaded.path, plan.workspace.root))
    held = {}
    for name in ("monday", "tuesday"):
        path = plan.loaded.path.parent / "batches" / f"{name}.csv"
        rows = answer_of(plan.artifacts, screen_batch.fn(job, "incoming", path))["rows"]
        planted = pl.read_csv(path, schema_overrides={"planted": pl.String})["planted"].fill_null(
            ""
        )
        for what, row in zip(planted, rows, strict=True):
            held.setdefault((name, what), []).append(not row["accepted"])
    assert np.mean(held["monday", ""]) < 0.1
    assert np.mean(held["tuesday", ""]) < 0.1
    assert np.mean(held["tuesday", "mislabel"]) > 0.6
    assert np.mean(held["tuesday", "mark"]) > 0.9
    assert all(np.all(held["tuesday", what]) for what in ("copy", "test copy", "unknown kind"))
