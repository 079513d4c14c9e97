"""Requests to forget rows: recorded whole, answered once each, in order, whatever interrupts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import CorruptArtifact, InfeasibleProblem, NotFound, RequestError
from schemas.unlearning import ForgetRequest
from store.connect import run_sql
from store.requests import recorded
from tasks.blueprint import Blueprint
from tasks.forget import conclude, job_upto, record_request, request_states, waiting
from tasks.job import Job, blueprint
from tasks.preflight import open_job, preflight
from tasks.requests import receipt, rows_named
from tests.tasks.forgetful import written
from tests.tasks.pipeline import run_job, run_stages

ONLY_REQUESTS = ('forget = "withdrawn"\n', "")


def ask(job: Job, sql: str, note: str = "") -> ForgetRequest:
    where = f"SELECT example_id FROM examples WHERE split = 'train' {sql}"
    return record_request(job, where=where, note=note, problem=None)


def answer(job: Job) -> None:
    """What the flow does, without a server."""
    for number in waiting(job):
        one = job_upto(job, number)
        run_job(one)
        conclude.fn(one)


def opened(spec: Path, folder: Path) -> Job:
    return preflight(open_job(spec, folder / "work"))


def gone(plan: Blueprint) -> list[int]:
    return np.flatnonzero(plan.problems.forgotten(plan.spec.unlearnings[0])).tolist()


def verdicts(plan: Blueprint) -> list[str]:
    """What the verdict that each request led to says."""
    receipts = [receipt(plan.artifacts, request) for request in plan.problems.requests]
    keys = [found.inputs["verdict"] for found in receipts if found]
    return [str(plan.sealed("verdict", key).facts["sentence"]) for key in keys]


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Three requests after their answers: five rows, five others, and three of the first again."""
    folder = tmp_path_factory.mktemp("requests")
    job = opened(written(folder, ONLY_REQUESTS), folder)
    ask(job, "ORDER BY example_id LIMIT 5", "a <b>letter</b> of 3 May")
    ask(job, "ORDER BY example_id LIMIT 5 OFFSET 5")
    ask(job, "ORDER BY example_id LIMIT 3")
    answer(job)
    return opened(job.spec, folder)


def test_a_problem_without_a_set_waits_for_requests(tmp_path: Path) -> None:
    plan = blueprint(opened(written(tmp_path, ONLY_REQUESTS), tmp_path))
    assert plan.problems.decisions == ()
    assert plan.keys("verdict") == []


def test_each_request_adds_its_rows_to_those_before_it(answered: Job) -> None:
    states = request_states(blueprint(answered))
    assert [state["state"] for state in states] == ["answered"] * 3
    assert [state["new rows"] for state in states] == [5, 5, 0]
    for sentence, state in zip(verdicts(blueprint(answered)), states, strict=True):
        assert sentence.lower().startswith(state["verdict"])
    assert gone(blueprint(answered)) == list(range(10))
    runs = run_sql(
        blueprint(answered).workspace.published,
        "SELECT n_forgotten, u.requests FROM unlearnings AS u JOIN solutions USING (solution_id) "
        "ORDER BY n_forgotten",
    ).rows
    assert runs == [(5, 1), (10, 2)]


def test_each_has_its_own_certificate(answered: Job) -> None:
    plan = blueprint(answered)
    pages = [
        (plan.workspace.root / state["certificate"]).read_text() for state in request_states(plan)
    ]
    assert "5 of 107 training rows" in pages[0]
    assert "a &lt;b&gt;letter&lt;/b&gt; of 3 May" in pages[0]
    assert "10 of 107 training rows" in pages[1]
    assert "had been processed already" in pages[2]
    assert "had been processed already" not in pages[1]
    for page, state in zip(pages, request_states(plan), strict=True):
        assert f"request {state['request']}</p>" in re.sub(r"<br>.*?</p>", "</p>", page)


def test_rows_that_are_gone_already_cost_nothing(answered: Job) -> None:
    plan = blueprint(answered)
    receipts = [receipt(plan.artifacts, each) for each in plan.problems.requests]
    assert len(plan.artifacts.keys("verdict")) == 2
    assert receipts[1].inputs == receipts[2].inputs  # type: ignore[union-attr]


def test_after_that_a_run_has_nothing_to_do(answered: Job) -> None:
    plan = blueprint(answered)
    for stage in ("solution", "verdict", "run"):
        assert all(key and plan.artifacts.find(stage, key) for key in plan.keys(stage))


def test_none_is_answered_twice(answered: Job) -> None:
    plan = blueprint(answered)
    before = {each.key: each.created_at for each in plan.artifacts.manifests("request")}
    assert waiting(answered) == []
    conclude.fn(job_upto(answered, 2))
    assert before == {each.key: each.created_at for each in plan.artifacts.manifests("request")}


def test_a_request_that_waits_changes_no_run(tmp_path: Path) -> None:
    job = opened(written(tmp_path), tmp_path)
    before = gone(blueprint(job))
    ask(job, "ORDER BY example_id DESC LIMIT 2")
    again = blueprint(opened(job.spec, tmp_path))
    assert gone(again) == before == list(range(9))
    assert gone(blueprint(job_upto(job, 1))) == [*range(9), again.n_train - 2, again.n_train - 1]


def test_an_answer_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    job = opened(written(tmp_path, ONLY_REQUESTS), tmp_path)
    ask(job, "ORDER BY example_id LIMIT 4")
    one = job_upto(job, 1)
    run_job(one, until="verdict")  # and then the process is killed
    chunks = blueprint(one).artifacts.keys("bank")
    assert waiting(job) == [1]
    answer(job)
    assert waiting(job) == []
    assert blueprint(one).artifacts.keys("bank") == chunks


def test_numbers_rise_and_a_file_holds_each(tmp_path: Path) -> None:
    job = opened(written(tmp_path), tmp_path)
    made = [ask(job, f"ORDER BY example_id LIMIT {count}") for count in (1, 2, 3)]
    folder = blueprint(job).workspace.requests
    assert [each.number for each in made] == [1, 2, 3]
    assert sorted(path.stem for path in folder.glob("*.json")) == [each.id for each in made]
    assert recorded(folder) == made
    assert not list(folder.glob("*.draft"))


def test_a_request_that_was_edited_or_removed_is_refused(tmp_path: Path) -> None:
    job = opened(written(tmp_path), tmp_path)
    first, _ = (ask(job, f"ORDER BY example_id LIMIT {count}") for count in (3, 4))
    path = blueprint(job).workspace.requests / f"{first.id}.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"note": "and much more"}))
    with pytest.raises(CorruptArtifact, match="is not what was recorded"):
        waiting(job)
    path.unlink()
    with pytest.raises(CorruptArtifact, match="request 1 is gone"):
        waiting(job)
    path.write_text(text)
    assert waiting(job) == [1, 2]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("AND false", "--where: no example matches"),
        ("OR split = 'test'", "--where: example .* is a test row"),
        ("", "--where: all 107 training rows"),
        ("AND nonsense = 3", "--where: .*nonsense"),
    ],
)
def test_a_wrong_request_is_refused_at_once(tmp_path: Path, sql: str, message: str) -> None:
    job = opened(written(tmp_path), tmp_path)
    with pytest.raises(RequestError, match=message):
        ask(job, sql)
    assert recorded(blueprint(job).workspace.requests) == []


def test_requests_that_leave_no_row_are_refused_together(tmp_path: Path) -> None:
    job = opened(written(tmp_path, ONLY_REQUESTS), tmp_path)
    ask(job, "ORDER BY example_id LIMIT 60")
    with pytest.raises(InfeasibleProblem, match="would forget all 107"):
        ask(job, "ORDER BY example_id OFFSET 60")
    assert len(recorded(blueprint(job).workspace.requests)) == 1


def test_a_spec_that_forgets_nothing_answers_no_request(tmp_path: Path) -> None:
    text = written(tmp_path).read_text()
    spec = tmp_path / "wines.toml"
    spec.write_text(re.sub(r"\[\[problem\]\].*?(?=\[verdict\])", "", text, flags=re.DOTALL))
    with pytest.raises(NotFound, match="has no problem of kind 'unlearn'"):
        ask(opened(spec, tmp_path), "LIMIT 1")


def test_a_row_is_known_by_its_digest_and_not_by_its_number(tmp_path: Path) -> None:
    job = opened(written(tmp_path), tmp_path)
    made = ask(job, "ORDER BY example_id LIMIT 2 OFFSET 3")
    plan = blueprint(job)
    digests, ids = list(plan.data.digests[: plan.n_train]), plan.dataset.train.example_ids
    assert rows_named([made], digests, ids) == {3, 4}
    # Row 3 has moved to the end; row 4 is in the data no more.
    moved = [*digests[:3], "other", "another", *digests[5:-1], digests[3]]
    assert rows_named([made], moved, ids) == {plan.n_train - 1}
    # A copy of row 3 stays, as its owner did not ask.
    copied = [*digests[:-1], digests[3]]
    assert rows_named([made], copied, ids) == {3, 4}


def test_a_set_and_requests_are_forgotten_together(tmp_path: Path) -> None:
    job = run_stages(written(tmp_path), tmp_path / "work", until="checkpoints")
    ask(job, "ORDER BY example_id LIMIT 2 OFFSET 8")
    assert gone(blueprint(job_upto(job, 1))) == list(range(10))
