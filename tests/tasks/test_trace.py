"""Tracing from rows to tables: what is named, what is retrained, and what cannot be asked."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from attribution import attribute
from attribution.outputs import UNASKED
from flows.summary import meaning
from schemas.errors import DataError, NotFound, ShapeError, SpecError
from schemas.recipe import TextSpec
from schemas.spec import TraceSpec, load_spec
from store.connect import run_sql
from tasks.bank import read_outputs
from tasks.bank_extension import load_rows
from tasks.blueprint import Blueprint
from tasks.intake.rows import Columns
from tasks.intake.sources import read_rows
from tasks.intake.tokens import ask_answers, next_tokens, tokenise
from tasks.job import blueprint
from tasks.preflight import open_job, preflight
from tasks.problems.trace import TOP_FILE, truth_of
from tasks.reporting.entries import NOTE_TAG, entries, refuse_undeclared
from tasks.reporting.report import read_findings, summary_json, summary_text
from tasks.score import load_scores
from tests.tasks.pipeline import exchanged, run_stages

EXAMPLE = Path(__file__).parents[2] / "examples" / "facts"
SMALLER = {"epochs": 2, "models": 12, "seeds": 2, "judged": 6, "dim": 8}


def spec_of(folder: Path, changes: dict[str, str] | None = None) -> Path:
    """The example, smaller, and with some of its text exchanged."""
    copied = shutil.copytree(EXAMPLE, folder / "facts")
    path = copied / "facts.toml"
    text = path.read_text(encoding="utf-8")
    for key, size in SMALLER.items():
        text = re.sub(rf"^{key} = \d+$", f"{key} = {size}", text, flags=re.MULTILINE)
    path.write_text(exchanged(text, *(changes or {}).items()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    folder = tmp_path_factory.mktemp("traced")
    return blueprint(run_stages(spec_of(folder), folder / "work"))


def problem_of(plan: Blueprint) -> TraceSpec:
    (problem,) = plan.spec.traces
    return problem


def test_of_a_query_the_answer_alone_is_asked(plan: Blueprint) -> None:
    asked = (plan.dataset.test.targets != UNASKED).sum(axis=1)
    assert (asked == 1).all()
    assert (plan.dataset.train.targets != UNASKED).sum(axis=1).min() >= 2


def test_truth_is_what_rows_and_queries_share(plan: Blueprint) -> None:
    truth = truth_of(plan, problem_of(plan))
    assert truth.shape == (40, 200)
    assert (truth.sum(axis=1) == 5).all()


def test_words_and_embeddings_are_those_of_the_texts(plan: Blueprint) -> None:
    rows = {
        row["example_id"]: json.loads(row["metadata"])["text"]
        for row in plan.dataset.examples.to_dicts()
    }
    train, queries = plan.dataset.train, plan.dataset.subset(plan.sets.scored)
    want = attribute(
        "bm25",
        None,
        None,
        train=(train.inputs, train.targets),
        queries=(queries.inputs, queries.targets),
        train_texts=[rows[row] for row in train.example_ids],
        query_texts=[rows[row] for row in plan.sets.scored],
    )
    got = load_scores(plan, plan.spec.attribution_named("bm25"))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    likeness = load_scores(plan, plan.spec.attribution_named("embedding"))
    assert np.corrcoef(likeness.ravel(), got.ravel())[0, 1] > 0.5


def test_models_lack_the_rows_that_are_named_and_changes_are_theirs(plan: Blueprint) -> None:
    problem = problem_of(plan)
    verdict = plan.sealed("verdict", plan.problems.verdict_key(problem))
    solution = plan.sealed("solution", plan.problems.solution_key(problem))
    top = np.load(plan.artifacts.folder(solution) / TOP_FILE)
    made = load_rows(plan.artifacts, verdict)
    names = list(verdict.facts["retrainings"])
    queries = plan.sets.ids(problem.targets)
    outputs = read_outputs(plan, names, queries, "logprob")
    base = outputs[made.origins == "verdict:all"].mean(axis=0)
    rows = run_sql(plan.workspace.published, "SELECT arm, query_id, change FROM tracing_effects")
    places = {method: place for place, method in enumerate(problem.uses)}
    checked = 0
    for arm, query, change in rows.rows:
        if arm not in places:
            continue
        place = int(np.flatnonzero(queries == query)[0])
        own = top[places[arm], place]
        lacks = ~made.masks[:, own].any(axis=1) & (made.origins == f"verdict:{arm}")
        assert lacks.sum() >= 2
        if lacks.sum() == 2:  # by chance another group may lack the same rows
            assert change == pytest.approx((outputs[lacks] - base)[:, place].mean(), abs=1e-4)
            checked += 1
    assert checked >= 10
    removed = (~made.masks).sum(axis=1)
    assert set(removed[made.origins != "verdict:all"].tolist()) == {verdict.facts["removed"]}


def test_a_run_again_does_nothing(plan: Blueprint) -> None:
    before = plan.artifacts.keys("bank")
    job = run_stages(plan.loaded.path, plan.workspace.root)
    assert blueprint(job).artifacts.keys("bank") == before


def test_the_report_says_what_was_traced(plan: Blueprint) -> None:
    findings = read_findings(plan.workspace.published)
    (tracing,) = findings.tracings
    text = summary_text(findings)
    assert "WHICH ROWS MADE THE MODEL SAY IT: WHY" in text
    assert "recall@3" in text
    first = tracing.queries[0].query_id
    assert f"FROM traces({first}, tracing := '{tracing.tracing_id}')" in text
    assert {named.arm for named in tracing.queries[0].named} == set(problem_of(plan).uses)
    document = json.loads(summary_json(plan.workspace.published))
    assert document["tracings"][0]["arms"][-1]["arm"] == "random"


def test_each_method_is_a_run_in_mlflow_with_declared_metrics(plan: Blueprint) -> None:
    parent, children = entries(read_findings(plan.workspace.published), plan.loaded.text)
    refuse_undeclared((parent, *children))
    (found,) = (child for child in children if child.name == "why: bm25")
    assert {name for name, _, _ in found.metrics} >= {"trace.mrr.mean", "trace.change.low"}
    assert found.params["top"] == "3"
    assert "**why**" in parent.tags[NOTE_TAG]


def test_a_spec_says_what_it_traces(plan: Blueprint) -> None:
    said = dict(meaning(plan.loaded))
    assert said["problem why"].startswith("trace the 3 rows behind each of 'queries' by 'trak'")
    assert "verdict" not in said


def test_a_trace_needs_no_judging_set_but_a_choice_does(tmp_path: Path) -> None:
    choice = '[[problem]]\nkind = "select"\nuses = "trak"\nsize = 0.9\n\n[verdict]'
    spec = spec_of(tmp_path, {"[verdict]": choice})
    with pytest.raises(SpecError, match="there is no set 'holdout'"):
        load_spec(spec)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({'uses = ["trak", ': 'uses = ["track", '}, "there is no attribution 'track'"),
        ({'uses = ["trak", "bm25", "embedding"]': "uses = []"}, "uses"),
        ({"dim = 8": 'column = "vector"'}, "there is no metadata column 'vector'"),
        ({"dim = 8": 'column = "fact"\ndim = 8'}, "leave it out"),
        ({'answer = "answer"': 'answer = "fact"'}, "has another role"),
    ],
)
def test_specs_that_cannot_be_are_refused(
    tmp_path: Path, changes: dict[str, str], match: str
) -> None:
    with pytest.raises(SpecError, match=match):
        load_spec(spec_of(tmp_path, changes))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"top = 3": "top = 101"}, ShapeError, "at most half"),
        ({'truth = "fact"': 'truth = "facts"'}, NotFound, "did you mean 'fact'"),
        ({'truth = "fact"': 'truth = "answer"'}, NotFound, "shares its 'answer'"),
        ({'method = "bm25"': 'method = "bm25"\noutput = "loss"'}, ShapeError, "one output"),
        ({"dim = 8": 'column = "fact"'}, DataError, "holds no list of some numbers"),
    ],
)
def test_what_the_rows_cannot_answer_is_refused_before_training(
    tmp_path: Path, changes: dict[str, str], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        preflight(open_job(spec_of(tmp_path, changes), tmp_path / "work"))


def test_embeddings_of_ones_own_are_read_from_their_column(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, {"dim = 8": 'column = "vector"', '"first"]': '"first", "vector"]'})
    path = spec.with_name("facts.jsonl")
    rng = np.random.default_rng(0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    vectors = rng.standard_normal((len(lines), 4)).round(3)
    rows = [line | {"vector": row.tolist()} for line, row in zip(lines, vectors, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plan = blueprint(run_stages(spec, tmp_path / "work", until="scores"))
    got = load_scores(plan, plan.spec.attribution_named("embedding"))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    want = unit[plan.sets.scored] @ unit[plan.dataset.train.example_ids].T
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_last_mention_of_an_answer_is_asked() -> None:
    spec = TextSpec(column="text", answer="answer", length=6, vocabulary=500)
    texts = ["new york is big in new york", "a b c", "one two"]
    _, targets = next_tokens(tokenise(texts, spec, following=True))
    found = ask_answers(targets, ["New York", "", "two"], spec)
    np.testing.assert_array_equal(np.flatnonzero(found[0] != UNASKED), [4, 5])
    np.testing.assert_array_equal(found[1], targets[1])
    np.testing.assert_array_equal(np.flatnonzero(found[2] != UNASKED), [0])
    with pytest.raises(DataError, match="row 3: 'three' of column 'answer' is not in"):
        ask_answers(targets, ["", "", "three"], spec)


def test_answers_are_read_beside_their_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"text": "ada lives in jena", "answer": "Jena"}, {"text": "a b", "answer": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = TextSpec(column="text", answer="answer", length=4)
    found = read_rows("jsonl:rows.jsonl", path, Columns(text=text))
    np.testing.assert_array_equal((found.targets != UNASKED).sum(axis=1), [1, 1])
    assert found.metadata is not None
    assert found.metadata[0] == rows[0]
