"""`winnow debug`: what it answers, that it answers twice for one price, what it refuses."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.server import recorded_server
from store.workspace import Workspace
from tasks.job import blueprint
from tests.flows.conftest import CHECKOUT
from tests.tasks.pipeline import run_stages

pytestmark = [pytest.mark.flow, pytest.mark.slow]

Winnow = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    shutil.copy(CHECKOUT / "examples/tiny.toml", tmp_path)
    return tmp_path / "tiny.toml"


def test_an_answer_is_made_once_and_then_only_shown(winnow: Winnow, spec: Path) -> None:
    workspace = Workspace(spec.parent / ".winnow")
    plan = blueprint(run_stages(spec, workspace.root, until="scores"))
    query = str(plan.sets.ids("queries")[0])
    scores = plan.artifacts.keys("scores")
    made = winnow("debug", spec, query, "--seeds", "2")
    assert made.returncode == 0, made.stderr
    assert f"ASKED ABOUT: ROW {query}" in made.stdout
    assert "HYPOTHESIS" in made.stdout
    assert recorded_server(workspace) is None
    assert plan.artifacts.keys("scores") == scores
    stages = ("solution", "verdict", "bank")
    before = {stage: plan.artifacts.keys(stage) for stage in stages}
    again = winnow("debug", spec, query, "--seeds", "2", "--json")
    assert again.returncode == 0, again.stderr
    assert {stage: plan.artifacts.keys(stage) for stage in stages} == before
    assert list(json.loads(again.stdout)) == [
        "output",
        "query",
        "helpful",
        "harmful",
        "slices",
        "copies",
        "component",
        "clusters",
        "doubts",
        "looked_at",
        "hypothesis",
        "sentence",
        "verdict",
    ]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("holdouts", "did you mean 'holdout'?"),
        ("999999", "there is no such example"),
        ("SELECT example_id FROM examples WHERE split = 'train'", "is a training row"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_in_one_line(
    winnow: Winnow, spec: Path, query: str, found: str
) -> None:
    done = winnow("debug", spec, query)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert found in done.stderr
    assert not (spec.parent / ".winnow" / "prefect").exists()
