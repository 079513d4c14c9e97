"""Debugging: the planted cause is found, named and confirmed; where none is, none is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from attribution.statistics import auroc
from schemas.errors import QueryError
from schemas.questions import DebugSpec
from store.connect import run_sql
from tasks.bank import logits_of, outputs_of
from tasks.blueprint import Blueprint
from tasks.job import blueprint
from tasks.problems import debug
from tasks.problems.evidence import Evidence, gather
from tasks.problems.look import without_matched
from tasks.problems.shape import CHOICE_FILE, UTILITY_FILE
from tasks.reporting.diagnosis import ids_shown, render_diagnosis
from tasks.reporting.entries import entries, refuse_undeclared
from tasks.reporting.glimpse import glimpses
from tasks.reporting.report import read_findings, summary_text
from tasks.slices import columns_of, slices_of
from tests.tasks.pipeline import run_stages

SPURIOUS = Path(__file__).parents[2] / "examples" / "spurious" / "spurious.toml"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    """The example after all its stages."""
    return blueprint(run_stages(SPURIOUS, tmp_path_factory.mktemp("spurious")))


def marked(plan: Blueprint) -> np.ndarray:
    """Rows with the mark in their corner, of all rows."""
    return (np.array(plan.dataset.inputs)[:, :2, :2] == 3.0).all(axis=(1, 2))


def asked(plan: Blueprint, query: int | str, **options: Any) -> Evidence:
    """The evidence about a query of the example."""
    return gather(plan, DebugSpec(kind="debug", uses="trak", query=query, **options))


def text_of(renderable: RenderableType) -> str:
    """What a terminal would show."""
    console = Console(width=100, no_color=True, force_terminal=False, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def sealed(plan: Blueprint) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Folder and facts of the example's proposal, and the facts of its verdict."""
    problem = plan.spec.diagnoses[0]
    solution = plan.sealed("solution", plan.problems.solution_key(problem))
    verdict = plan.sealed("verdict", plan.problems.verdict_key(problem))
    return plan.artifacts.folder(solution), dict(solution.facts), dict(verdict.facts)


def test_the_planted_rows_are_named_and_retraining_confirms_them(done: Blueprint) -> None:
    folder, facts, verdict = sealed(done)
    planted = marked(done)[: done.n_train]
    np.testing.assert_array_equal(np.load(folder / CHOICE_FILE), ~planted)
    assert "scanner = 'scan-b' and class '3'" in str(facts["sentence"])
    assert verdict["verdict"] == "confirmed"
    chosen, everything, random = verdict["arms"]
    assert (chosen["n_rows"], everything["n_rows"], random["n_rows"]) == (408, 420, 408)
    assert random["advantage"][1] > 0
    assert everything["advantage"][1] > 0
    # Rows that share what they do are worth more together than one by one, so it is a floor.
    assert 0 < facts["value"] < chosen["observed_change"][0]
    assert facts["value"] <= facts["bound"]


def test_the_planted_rows_are_on_top(done: Blueprint) -> None:
    folder, _, _ = sealed(done)
    harm, planted = -np.load(folder / UTILITY_FILE), marked(done)[: done.n_train]
    assert auroc(harm, planted) > 0.9
    assert planted[np.argsort(-harm)[:2]].all()


def test_single_marked_digits_lead_to_the_mark_and_others_to_nothing(done: Blueprint) -> None:
    test = done.dataset.test
    scored = np.isin(test.example_ids, done.sets.scored)
    has_mark, three = marked(done)[done.n_train :], test.targets == 0
    wronged = test.example_ids[has_mark & ~three & scored]
    plain = test.example_ids[~has_mark & scored]
    causes = [asked(done, int(query)).cause for query in wronged[:4]]
    found = [cause.name for cause in causes if cause]
    assert found.count("scanner = 'scan-b' and class '3'") >= 3
    nothing = [asked(done, int(query)) for query in plain[:5]]
    assert sum(each.cause is None for each in nothing) >= 4
    quiet = next(each for each in nothing if each.cause is None)
    assert quiet.sentence.startswith("No clear cause for the margin of row")
    assert quiet.report["hypothesis"] is None


def test_a_query_that_models_get_right_is_said_to_need_little(done: Blueprint) -> None:
    rows = done.bank.rows("calibrate")
    logits = logits_of(done, done.bank.ids_of(rows))
    losses = outputs_of(done, logits, done.sets.scored, "loss").mean(axis=0)
    right, wrong = (int(done.sets.scored[pick(losses)]) for pick in (np.argmin, np.argmax))
    assert "Models give it its label already: the mean loss is 0.0" in asked(done, right).sentence
    assert "label already" not in asked(done, wrong).sentence


def test_shuffled_metadata_names_no_cause(done: Blueprint, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = columns_of(done.dataset)
    rng = np.random.default_rng(0)
    order = rng.permutation(done.n_train)
    shuffled = {name: [texts[row] for row in order] for name, texts in columns.items()}
    monkeypatch.setattr("tasks.problems.look.columns_of", lambda _: shuffled)
    query = str(done.spec.diagnoses[0].query)
    assert asked(done, query).cause is None


def test_the_evidence_adds_up(done: Blueprint) -> None:
    folder, facts, _ = sealed(done)
    report = json.loads((folder / debug.EVIDENCE_FILE).read_text())
    utility = np.load(folder / UTILITY_FILE)
    cause, first = report["hypothesis"], report["slices"][0]
    ids = done.dataset.train.example_ids
    member = np.isin(ids, cause["ids"])
    assert cause["change"][0] == pytest.approx(-utility[member].sum())
    assert first["effect"] == pytest.approx(utility[member].sum())
    assert cause["beyond"][0] == pytest.approx(cause["change"][0] - cause["random"][0])
    assert first["standing"] == min(each["standing"] for each in report["slices"])
    assert [row["id"] for row in report["harmful"]] == ids[np.argsort(utility)[:10]].tolist()
    assert facts["predicted"] == cause["change"]
    shares = [share for _, share in report["query"]["predictions"]]
    assert 0 < sum(shares) <= 1 + 1e-9


def test_random_controls_are_as_many_rows_of_the_same_classes(done: Blueprint) -> None:
    member = marked(done)[: done.n_train]
    labels = done.dataset.train.targets
    for mask in without_matched(done, member, 4, ()):
        np.testing.assert_array_equal(np.bincount(labels[~mask]), np.bincount(labels[member]))


def test_a_second_look_makes_nothing_again(done: Blueprint) -> None:
    stages = ("bank", "solution", "verdict", "run", "scores")
    before = {stage: done.artifacts.keys(stage) for stage in stages}
    run_stages(SPURIOUS, done.workspace.root)
    assert {stage: done.artifacts.keys(stage) for stage in stages} == before


def test_a_question_beside_the_spec_rescores_nothing(done: Blueprint) -> None:
    job = run_stages(SPURIOUS, done.workspace.root, until="lds")
    ask = DebugSpec(kind="debug", name="aside", uses="trak", query=44)
    beside = blueprint(job.model_copy(update={"ask": ask}))
    assert beside.spec.decision_named("aside") == ask
    (attribution,) = done.spec.attribution
    assert beside.scores.key(attribution) == done.scores.key(attribution)
    assert beside.problems.solution_key(ask) not in done.artifacts.keys("solution")


def test_tables_report_and_mlflow_show_a_diagnosis(done: Blueprint) -> None:
    published = done.workspace.published
    (row,) = run_sql(published, "SELECT kind, status, size, n_pool, sentence FROM solutions").rows
    assert row[:4] == ("debug", "feasible", 408, 420)
    arms = run_sql(published, "SELECT arm, sentence FROM verdicts ORDER BY verdict_id").rows
    assert [arm for arm, _ in arms] == ["chosen", "all", "random"]
    assert arms[0][1].startswith("Confirmed: without these 12 rows the margin is")
    findings = read_findings(published)
    text = summary_text(findings)
    assert "WHAT HOLDS IT DOWN" in text
    assert "Confirmed: without these 12 rows" in " ".join(text.split())
    parent, children = entries(findings, done.loaded.text)
    refuse_undeclared((parent, *children))
    assert parent.tags["winnow.verdict"] == "confirmed"


def test_slice_effects_are_sums_of_scores_by_metadata(done: Blueprint) -> None:
    rows = run_sql(
        done.workspace.published,
        "SELECT key, value, n_rows, effect FROM slice_effects(44) WHERE value = 'scan-b'",
    ).rows
    query = "SELECT train_id, score FROM scores WHERE query_id = 44 ORDER BY train_id"
    scores = dict(run_sql(done.workspace.published, query).rows)
    hers = np.array(columns_of(done.dataset)["scanner"]) == "scan-b"
    wanted = [scores[int(row)] for row in done.dataset.train.example_ids[hers]]
    assert rows == [("scanner", "scan-b", int(hers.sum()), pytest.approx(np.sum(wanted)))]


def test_a_diagnosis_shows_rows_pictures_and_the_verdict(done: Blueprint) -> None:
    found = asked(done, 44)
    report = json.loads(json.dumps(found.report))
    pictures = glimpses(done.dataset, done.spec.data, ids_shown(report))
    text = text_of(render_diagnosis(report, found.sentence, sealed(done)[2], pictures))
    assert "ASKED ABOUT: ROW 44, LABELLED '9'" in text
    assert "@@@@" in text  # the mark
    assert "all but the slice" in text
    assert "scanner = 'scan-b'" in text
    unjudged = text_of(render_diagnosis(report, found.sentence, None, {}))
    assert "not retrained yet" in unjudged


def test_whether_it_held_is_decided_by_intervals() -> None:
    surely, no = (1.0, 0.8, 1.2), (0.0, -0.2, 0.2)
    assert debug.decide(surely, surely, 1.0) == "confirmed"
    assert debug.decide(surely, no, 1.0) == "undecided"
    assert debug.decide(no, no, 1.0) == "refuted"
    assert debug.decide(no, no, 0.3) == "undecided"
    assert debug.decide((-1.0, -1.2, -0.8), no, 1.0) == "refuted"


def test_what_cannot_be_asked_is_refused(done: Blueprint) -> None:
    train = int(done.dataset.train.example_ids[0])
    for query, found in (
        (train, "it is a training row"),
        (10**6, "there is no such example"),
        ("SELECT example_id FROM examples WHERE split = 'train'", "is a training row"),
        ("SELECT 1 AS wrong", "return one column example_id"),
    ):
        with pytest.raises(QueryError, match=found):
            debug.check(done, DebugSpec(kind="debug", uses="trak", query=query))


TABLE = """
name = "table"
data = {{ source = "csv:rows.csv", target = "y", test_fraction = 0.4{metadata} }}
model.build = "linear"
train = {{ epochs = 5, lr = 0.05, batch_size = 8, seeds = 2 }}
bank = {{ models = 24, alpha = [0.5], seeds = 1 }}

[[attribution]]
method = "trak"
output = "squared_error"
projection = {{ kind = "sparse", dim = 16 }}

[[problem]]
kind = "debug"
uses = "trak"
query = "holdout"
seeds = 3
smallest = 4
"""


def table(folder: Path, metadata: str) -> Blueprint:
    """Rows of two sensors, one of which is off by far, and a line through both."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=120)
    off = np.arange(120) % 8 == 0
    y = x + 0.1 * rng.normal(size=120) + 6 * off
    lines = [f"{a:.4f},{b:.4f},{'old' if c else 'new'}" for a, b, c in zip(x, y, off, strict=True)]
    (folder / "rows.csv").write_text("\n".join(["x,y,sensor", *lines]) + "\n")
    (folder / "table.toml").write_text(TABLE.format(metadata=metadata))
    return blueprint(run_stages(folder / "table.toml", folder / "w"))


def test_of_an_error_the_rows_that_raise_it_are_the_harmful_ones(tmp_path: Path) -> None:
    plan = table(tmp_path, ', metadata = ["sensor"]')
    found = gather(plan, plan.spec.diagnoses[0])
    assert found.output == "squared_error"
    assert found.report["harmful"][0]["effect"] > 0
    # One size of subsets says nothing of the effect of fewer rows, only of which rows.
    assert all(each["change"][1] is None for each in found.report["slices"])
    text = text_of(render_diagnosis(found.report, found.sentence, None, {}))
    assert "THEY RAISE THE SQUARED_ERROR" in text


def test_without_metadata_nothing_is_named_and_nothing_retrained(tmp_path: Path) -> None:
    rows = "\n".join(f"{row / 10},{row}.5" for row in range(60))
    (tmp_path / "rows.csv").write_text(f"x,y\n{rows}\n")
    (tmp_path / "table.toml").write_text(TABLE.format(metadata=""))
    plan = blueprint(run_stages(tmp_path / "table.toml", tmp_path / "w"))
    _, facts, verdict = sealed(plan)
    assert "list columns under data.metadata" in str(facts["sentence"])
    assert (facts["status"], verdict["arms"], verdict["retrainings"]) == ("none", [], [])
    assert run_sql(plan.workspace.published, "SELECT count(*) FROM verdicts").rows == [(0,)]
    assert "No clear cause" not in summary_text(read_findings(plan.workspace.published))


def test_numbers_are_cut_at_their_quartiles_and_small_slices_left_out() -> None:
    columns = {"of": ["a"] * 6 + ["b"] * 2 + [""] * 4}
    classes = ["x"] * 5 + ["y"] * 7
    found = slices_of(columns, classes, {}, smallest=3)
    names = {each.name: each.size for each in found}
    assert names == {"class 'y'": 7, "of = 'a'": 6, "class 'x'": 5}
    # "of = 'a' and class 'x'" is the class itself, and counts once.
