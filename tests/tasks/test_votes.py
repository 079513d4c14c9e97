"""Certified votes of a spec's rows: of nothing but their own cells, however columns were scaled."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from flows.certifying import said
from schemas.errors import InfeasibleProblem
from tasks.blueprint import Blueprint
from tasks.job import blueprint
from tasks.preflight import open_job, preflight
from tasks.votes import RADII_FILE, certified_votes, check_votes
from tests.tasks.arriving import written


def opened(spec: Path) -> Blueprint:
    return blueprint(preflight(open_job(spec, spec.parent / "work")))


def correct_radii(plan: Blueprint, models: int = 7) -> np.ndarray:
    manifest = certified_votes(plan, models=models, spread=1, judged="holdout")
    return np.load(plan.artifacts.folder(manifest) / RADII_FILE)


@pytest.mark.parametrize("drop", [1, 3])
def test_rows_that_are_taken_out_change_no_answer_that_is_certified_against_it(
    tmp_path: Path, drop: int
) -> None:
    """The truth of a certificate: poison the file itself, and read it in anew.

    The rows that go are far out, so that anything standardised by the training rows would move.
    """
    spec = written(tmp_path)
    rows = pl.read_csv(tmp_path / "stones.csv")
    far = rows.with_columns(
        pl.when(pl.int_range(pl.len()) < drop).then(500.0).otherwise("weight").alias("weight")
    )
    far.write_csv(tmp_path / "stones.csv")
    before = correct_radii(opened(spec))
    far[drop:].write_csv(tmp_path / "stones.csv")
    after = correct_radii(opened(spec))
    certain = before >= drop
    assert certain.mean() > 0.3
    assert (after[certain] >= 0).all()


def test_the_curve_is_the_share_of_radii_and_begins_at_the_accuracy(tmp_path: Path) -> None:
    plan = opened(written(tmp_path))
    manifest = certified_votes(plan, models=5, spread=2, judged="holdout")
    radii = np.load(plan.artifacts.folder(manifest) / RADII_FILE)
    assert manifest.facts["models"] == 10
    curve = [
        float((radii >= changes).mean()) for changes in range(len(manifest.facts["certified"]))
    ]
    assert manifest.facts["certified"] == pytest.approx(curve)
    assert certified_votes(plan, models=5, spread=2, judged="holdout") == manifest


def test_a_regression_and_too_many_models_are_refused(tmp_path: Path) -> None:
    plan = opened(written(tmp_path))
    with pytest.raises(InfeasibleProblem, match="1 models with spread 1"):
        check_votes(plan, 1, 1)
    with pytest.raises(InfeasibleProblem, match="make 300 cells for 250 training rows"):
        check_votes(plan, 100, 3)


def test_what_is_said_is_what_the_curve_says() -> None:
    facts = {
        "models": 20, "each": 25.4, "rows": 500, "n_judged": 205, "judged": "holdout",
        "certified": [0.8, 0.7, 0.4, 0.39, 0.0], "whole": 0.9,
    }  # fmt: skip
    voters, reach = said(facts)
    assert "20 models vote, each trained on about 25 of 500 rows" in voters
    assert "right for 80.0 %, models of all rows for 90.0 %" in voters
    assert "Whatever 2 training rows" in reach
