"""Retrainings near a choice: made once, kept, in the tables, and never what judges."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize.curve import SizeCurve
from schemas.errors import SpecError
from schemas.spec import load_spec
from store.connect import run_sql
from tasks.aiming import curve_facts, made_for, predictor
from tasks.bank import open_bank
from tasks.blueprint import Blueprint
from tasks.job import blueprint
from tasks.problems.select import size_sentence
from tasks.reporting.curve_figures import size_curve
from tests.tasks.pipeline import TINY, run_stages

BEST = 'size = "best"\naimed = 24'


def edited(folder: Path, size: str) -> Path:
    text = TINY.read_text()
    problem = text[text.index("[[problem]]") : text.index("[verdict]")]
    old = [line for line in problem.splitlines() if line.startswith(("size", "aimed"))]
    path = folder / "spec.toml"
    path.write_text(text.replace("\n".join(old), size))
    return path


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    """The tiny example with the predicted best size."""
    folder = tmp_path_factory.mktemp("best")
    return blueprint(run_stages(edited(folder, BEST), folder / "work"))


def facts_of(plan: Blueprint) -> dict[str, Any]:
    (problem,) = plan.spec.selections
    return plan.sealed("solution", plan.problems.solution_key(problem)).facts


def test_the_best_size_is_the_top_of_a_curve_that_reaches_all_rows(best: Blueprint) -> None:
    facts = facts_of(best)
    curve = facts["curve"]
    assert facts["size"] == curve["best"]
    assert curve["sizes"][0] == best.bank.masks.sum(axis=1).min()
    assert curve["sizes"][-1] == best.n_train
    assert curve["output"] == "logprob"
    place = curve["sizes"].index(curve["best"])
    assert place == int(np.argmax(curve["predicted"]))
    assert curve["lost"][place] == [0, 0, 0]
    assert f"{curve['best']} rows have the best predicted logprob" in facts["sentence"]
    assert f"No other choice of {curve['best']:,} rows has" in facts["sentence"]


@pytest.mark.parametrize(
    ("change", "rising", "said"),
    [
        ((0.3, 0.1, 0.5), True, "; against all 90 rows it changes by +0.30 [+0.10, +0.50]"),
        ((-0.1, -0.3, 0.1), True, ", but no size is predicted to beat all 90 rows: at 60 it chan"),
        ((0.1, -0.1, 0.3), True, ", but no size is sure to beat all 90 rows: at 60 it changes by"),
        ((-0.3, -0.5, -0.1), False, "; against all 90 rows it changes by -0.30 [-0.50, -0.10]"),
        ((0.1, -0.1, 0.3), False, ", but no size is predicted to beat all 90 rows: at 60 it chan"),
    ],
)
def test_a_size_is_said_to_beat_all_rows_only_where_it_is_predicted_to(
    change: tuple[float, ...], rising: bool, said: str
) -> None:
    curve = SizeCurve(
        sizes=np.array([60]),
        output=np.zeros(1),
        change=np.array([change]),
        lost=np.zeros((1, 3)),
        best=0,
        rising=rising,
    )
    assert f"60 rows have the best predicted logprob{said}" in size_sentence("logprob", curve, 90)
    assert "beat them" in size_sentence("logprob", curve, 60)
    title = size_curve(curve_facts("logprob", curve)).axes[0].get_title(loc="left")
    assert ("No size is sure to beat all rows" in title) == ("but no size" in said)


def test_a_size_that_was_sought_has_no_price(best: Blueprint) -> None:
    facts = facts_of(best)
    assert "size" not in facts["prices"]
    assert "last row" not in facts["sentence"]
    assert "more row" not in facts["sentence"]


def test_the_curve_is_a_table_and_a_picture(best: Blueprint) -> None:
    curve = facts_of(best)["curve"]
    rows = run_sql(
        best.workspace.published,
        "SELECT n_rows, predicted, change_low, lost_high, best FROM size_curves ORDER BY n_rows",
        limit=None,
    ).rows
    assert [row[0] for row in rows] == curve["sizes"]
    assert [row[1] for row in rows] == pytest.approx(curve["predicted"])
    assert [row[2] for row in rows] == pytest.approx([low for _, low, _ in curve["change"]])
    assert [row[3] for row in rows] == pytest.approx([high for *_, high in curve["lost"]])
    assert [row[0] for row in rows if row[4]] == [curve["best"]]
    figure = size_curve(curve)
    assert str(curve["best"]) in figure.axes[0].get_title(loc="left")
    (line, *_) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), curve["sizes"])


def test_aimed_models_are_in_the_table_and_never_judge(best: Blueprint) -> None:
    (problem,) = best.spec.selections
    made = made_for(best, problem)
    assert made is not None
    rows = run_sql(
        best.workspace.published,
        f"SELECT retrain_id, seed FROM bank WHERE kind = 'aimed:{problem.name}'",
        limit=None,
    ).rows
    # All rows are among them four times, with a seed of their own each.
    assert len(rows) == len(made) > 20
    assert made.masks.all(axis=1).sum() >= 4
    verdict = best.sealed("verdict", best.problems.verdict_key(problem))
    judging: Any = verdict.facts["retrainings"]
    assert not {name for name, _ in rows} & set(judging)
    solution = best.sealed("solution", best.problems.solution_key(problem))
    choice = np.load(best.artifacts.folder(solution) / "choice.npy")
    assert not (made.masks == choice).all(axis=1).any()


def test_the_verdict_predicts_what_the_solution_did(best: Blueprint) -> None:
    (problem,) = best.spec.selections
    verdict: Any = best.sealed("verdict", best.problems.verdict_key(problem)).facts
    (chosen,) = (arm for arm in verdict["arms"] if arm["arm"] == "chosen")
    assert chosen["predicted_change"] == pytest.approx(facts_of(best)["predicted"])


def test_predictions_of_the_evaluating_bank_stay_as_good(best: Blueprint) -> None:
    (problem,) = best.spec.selections
    judged = best.spec.verdict.judge_on
    line = predictor(best, problem, judged, None)
    bent = predictor(best, problem, judged, made_for(best, problem))
    bank = open_bank(best, "evaluate", best.sets.ids(judged), "margin")
    seen = bank.outputs.mean(axis=1, keepdims=True)
    errors = [np.abs(each.expect(bank.masks) - seen).mean() for each in (line, bent)]
    assert errors[1] < 1.5 * errors[0]


def test_without_aimed_models_the_line_predicts(tmp_path: Path) -> None:
    spec = edited(tmp_path, "size = 0.9\naimed = 0")
    plan = blueprint(run_stages(spec, tmp_path / "work", until="solution"))
    (problem,) = plan.spec.selections
    assert made_for(plan, problem) is None
    assert facts_of(plan)["curve"] is None


@pytest.mark.parametrize("size", ['size = "best"\naimed = 12', "size = 0.5\naimed = 3"])
def test_too_few_aimed_models_are_refused(tmp_path: Path, size: str) -> None:
    with pytest.raises(SpecError, match="or more, not"):
        load_spec(edited(tmp_path, size))
