"""What `winnow plan` says of a spec whose rows are sealed and whose models are not trained."""

from pathlib import Path

from flows.plan import plan
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
