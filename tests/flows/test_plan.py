"""What `winnow plan` says of a spec whose rows are sealed and whose models are not trained."""

from pathlib import Path

import pytest

from flows.plan import plan, say_cautions
from schemas.spec import load_spec
from store.workspace import Workspace
from tasks.preflight import ingested, open_job
from tests.tasks.forgetful import written

OTHERS = """
[[problem]]
name = "best"
kind = "select"
uses = "trak"
size = 0.9

[[problem]]
name = "again"
kind = "select"
uses = "trak"
size = 0.8

[[problem]]
name = "why"
kind = "debug"
uses = "trak"
query = "queries"
seeds = 4

[[problem]]
name = "learned"
kind = "trace"
uses = ["trak"]
top = 3

[verdict]
"""


def test_a_plan_says_what_each_kind_of_answer_retrains(tmp_path: Path) -> None:
    spec = written(tmp_path, ("[verdict]\n", OTHERS.lstrip()))
    ingested(open_job(spec, tmp_path / "work"))
    steps = {step.stage: step for step in plan(load_spec(spec), Workspace(tmp_path / "work"))}
    assert (steps["verdict"].done, steps["verdict"].total) == (0, 5)
    assert steps["verdict"].detail == (
        "answers checked by retraining: 8 of all rows, 16 without what is forgotten; "
        "3 of each arm; 4 of each arm of a diagnosis; "
        "3 of all rows, 3 without each method's rows of a query"
    )


def said(spec: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    say_cautions(load_spec(spec), Workspace(folder / "work"))
    return " ".join(capsys.readouterr().err.split())


def test_a_bank_far_from_all_rows_and_few_seeds_are_said_to_predict_poorly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(written(tmp_path / "poor"), tmp_path, capsys)
    assert "as little as 50% of the rows and 2 checkpoints predict" in text
    assert "write alpha = [0.8, 0.95] under [bank] and seeds = 10 under [train]" in text
    changes = (
        ("alpha = [0.5, 0.8]", "alpha = [0.8, 0.95]"),
        ("seeds = 2\n\n[bank]", "seeds = 10\n\n[bank]"),
    )
    assert said(written(tmp_path / "good", *changes), tmp_path, capsys) == ""


def test_a_step_that_may_cost_more_than_a_retraining_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newton = (
        ('compare = ["finetune"]', 'compare = ["newton"]'),
        ("finetune = { epochs = 1 }", "newton = { iterations = 60 }"),
    )
    wide = ('build = "linear"', 'build = "mlp"\noptions = { hidden = [400] }')
    for changes, costly in ((newton, False), ((*newton, wide), True)):
        spec = written(tmp_path, *changes)
        ingested(open_job(spec, tmp_path / "work"))
        # Two passes for each of 60 products, where a retraining has 6 epochs.
        found = "'newton' may cost as much as 20 retrainings" in said(spec, tmp_path, capsys)
        assert found is costly
