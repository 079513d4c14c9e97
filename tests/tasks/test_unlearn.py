"""Problems of kind unlearn: from rows that must go to a certificate, and what is refused."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from attribution.outputs import of_models
from attribution.training import predict
from schemas.errors import RequestError
from store.connect import run_sql
from tasks.bank import logits_of, outputs_of
from tasks.blueprint import Blueprint
from tasks.job import blueprint
from tasks.outbox import certificates, pictures
from tasks.preflight import open_job, preflight
from tasks.reporting.entries import entries, refuse_undeclared
from tasks.reporting.forgetting import from_facts, queries_sentence
from tasks.reporting.report import read_findings, summary_json, summary_text
from tasks.unlearning.certify import certified
from tasks.unlearning.handover import checkpoints
from tasks.unlearning.removals import removal_sizes
from tasks.unlearning.unlearners import recipe
from tests.tasks.forgetful import written
from tests.tasks.pipeline import run_stages

COUNT = 8


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    """The spec after all its stages."""
    folder = tmp_path_factory.mktemp("wines")
    return blueprint(run_stages(written(folder), folder / "work"))


@pytest.fixture(scope="module")
def facts(done: Blueprint) -> dict[str, Any]:
    return dict(verdict_of(done).facts)


def verdict_of(plan: Blueprint) -> Any:
    return plan.sealed("verdict", plan.problems.verdict_key(plan.spec.unlearnings[0]))


def folder_of(plan: Blueprint) -> Path:
    return plan.artifacts.folder(verdict_of(plan))


def rows(plan: Blueprint, sql: str) -> Sequence[tuple[Any, ...]]:
    return run_sql(plan.workspace.published, sql, limit=None).rows


def test_exactly_the_rows_of_the_set_leave(done: Blueprint) -> None:
    gone = rows(done, "SELECT example_id FROM solution_rows WHERE NOT chosen ORDER BY example_id")
    assert [row[0] for row in gone] == done.dataset.train.example_ids[:9].tolist()
    ((sentence,),) = rows(done, "SELECT sentence FROM solutions")
    assert sentence.startswith("Without these 9 rows the mean margin on 'holdout' is predicted")


def test_newton_steps_predict_and_the_solution_says_so(done: Blueprint) -> None:
    solution = done.sealed("solution", done.problems.solution_key(done.spec.unlearnings[0]))
    facts, folder = solution.facts, done.artifacts.folder(solution)
    assert "Predicted by Newton steps from 2 checkpoints, sized on 10 subsets" in facts["sentence"]
    told = facts["predicted_by"]
    assert (told["method"], told["checkpoints"], set(told["sets"])) == (
        "newton",
        2,
        {"queries", "holdout"},
    )
    for file, name in (("targets.npy", "queries"), ("judged.npy", "holdout")):
        change, sd = np.load(folder / file)
        assert len(change) == len(done.sets.ids(name))
        assert (sd > 0).all()
    mean, low, high = facts["predicted"]
    assert mean == pytest.approx(change.mean())
    assert low < mean < high
    assert told["sets"]["holdout"]["slope"] > 0


NO_NEWTON = [
    (
        ('kind = "sparse", dim = 32', 'kind = "hadamard", dim = 32'),
        "the projection 'hadamard' cannot be turned back into parameters",
    ),
    (("models = 40", "models = 24"), "6 subsets of the bank hold most rows, and 8 are needed"),
    (("alpha = [0.5, 0.8]", "alpha = [0.3]"), "0 subsets of the bank hold most rows"),
]


@pytest.mark.parametrize(("change", "why"), NO_NEWTON)
def test_where_newton_steps_lack_something_the_surrogate_predicts_and_says_why(
    tmp_path: Path, change: tuple[str, str], why: str
) -> None:
    spec = written(
        tmp_path,
        change,
        ('forget = "withdrawn"', 'forget = "withdrawn"\nmethod = "finetune"'),
        ('compare = ["finetune"]', "compare = []"),
    )
    plan = blueprint(run_stages(spec, tmp_path / "work", until="solution"))
    facts = plan.sealed("solution", plan.problems.solution_key(plan.spec.unlearnings[0])).facts
    assert facts["predicted_by"]["method"] == "surrogate"
    assert f"Predicted by the linear surrogate, for {why}" in facts["sentence"]


def test_oracles_never_saw_the_rows_and_share_no_seed_with_the_others(done: Blueprint) -> None:
    found = rows(done, "SELECT kind, mask::VARCHAR, seed FROM bank WHERE kind LIKE 'verdict:%'")
    oracles = [(mask, seed) for kind, mask, seed in found if kind == "verdict:retrained"]
    whole = [(mask, seed) for kind, mask, seed in found if kind == "verdict:all"]
    assert (len(oracles), len(whole)) == (2 * COUNT, COUNT)
    assert all(mask[:9] == "0" * 9 and set(mask[9:]) == {"1"} for mask, _ in oracles)
    assert len({seed for _, seed in oracles + whole}) == 3 * COUNT


def test_the_change_that_retraining_made_is_that_of_the_sealed_retrainings(
    done: Blueprint, facts: dict[str, Any]
) -> None:
    names = facts["retrainings"]
    ids = done.sets.ids("holdout")
    outputs = outputs_of(done, logits_of(done, names), ids, "margin")
    expected = outputs[COUNT:].mean(axis=0) - outputs[:COUNT].mean(axis=0)
    found = rows(
        done, "SELECT query_id, observed FROM query_changes WHERE aim = 'judging' ORDER BY query_id"
    )
    assert [row[0] for row in found] == sorted(ids.tolist())
    np.testing.assert_allclose([row[1] for row in found], expected[np.argsort(ids)], atol=1e-4)
    ((mean,),) = rows(done, "SELECT observed_change FROM verdicts WHERE arm = 'retrained'")
    assert mean == pytest.approx(expected.mean(), abs=1e-4)
    assert rows(done, "SELECT count(*) FROM query_changes WHERE aim = 'targets'") == [(40,)]


def test_every_arm_is_measured_on_every_group_beside_one_null(done: Blueprint) -> None:
    found = rows(
        done, "SELECT arm, rows, klom, null_klom, klom_p95, null_p95 FROM closeness_by_arm"
    )
    arms, groups = {row[0] for row in found}, {row[1] for row in found}
    assert arms == {"all", "retrained", "chosen", "finetune"}
    assert groups == {"forgotten", "retained", "judging"}
    assert len(found) == len(arms) * len(groups)
    for group in groups:
        assert len({(row[3], row[5]) for row in found if row[1] == group}) == 1
    assert all(row[2] == row[3] and row[4] == row[5] for row in found if row[0] == "retrained")


def test_costs_are_counted_in_examples_of_one_retraining(done: Blueprint) -> None:
    costs = dict(rows(done, "SELECT arm, cost FROM closeness_by_arm WHERE rows = 'forgotten'"))
    assert (costs["all"], costs["retrained"]) == (0, 1)
    # One of six epochs, on the rows that stay.
    assert costs["finetune"] == pytest.approx(1 / 6)
    ((examples, scoring),) = rows(
        done,
        "SELECT examples, scoring FROM unlearned JOIN verdicts USING (verdict_id) "
        "WHERE arm = 'chosen'",
    )
    # Features take one pass over all training rows.
    assert scoring == done.n_train < examples


def test_matching_works_from_the_scores_and_takes_its_sizes_from_the_bank(
    done: Blueprint, facts: dict[str, Any]
) -> None:
    own = next(each for each in facts["unlearned"] if each["arm"] == "chosen")
    told = json.loads(own["options"])
    assert (told["curvature"], told["projection"]["dim"]) == ("logistic", 32)
    # Without rows outputs move as is predicted, those of the rows themselves most of all.
    assert 0 < told["scale"] < told["forgotten_scale"]
    assert f"{told['scale']:.2g} of what is predicted" in facts["sized"]
    assert facts["sized"] in (folder_of(done) / "certificate.html").read_text()


def test_steps_that_overshoot_the_bank_keep_their_own_size(done: Blueprint) -> None:
    (problem,) = done.spec.unlearnings
    told = recipe(done, problem, "matching")
    whole = checkpoints(done).states
    assert removal_sizes(done, told, whole).options
    far = dataclasses.replace(told, damping=1e-9)  # type: ignore[arg-type]
    sizes = removal_sizes(done, far, whole)
    assert sizes.options == {}
    assert "too little to tell a size" in sizes.sentence


def test_predictions_that_are_worse_than_none_are_not_to_be_used(facts: dict[str, Any]) -> None:
    found = dataclasses.replace(from_facts(facts), error=1.82, error_unchanged=0.58)
    warning = "Do not use the predictions of single queries: they are further off than"
    figures = "predictions is 1.82; had no change been predicted, it would be 0.58."
    assert queries_sentence(found).startswith(warning)
    assert queries_sentence(found).endswith(figures)
    better = dataclasses.replace(found, error=0.4)
    assert queries_sentence(better).startswith("Over ")
    unordered = dataclasses.replace(found, correlation=None, slope=None)
    assert queries_sentence(unordered).startswith(warning)
    assert queries_sentence(unordered).endswith(figures)


def test_what_is_handed_over_is_what_is_said_of_it(done: Blueprint, facts: dict[str, Any]) -> None:
    page = (folder_of(done) / "certificate.html").read_text()
    assert len(facts["checkpoints"]) == done.spec.train.seeds
    train = done.dataset.train
    for each in facts["checkpoints"]:
        path = folder_of(done) / each["file"]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == each["sha256_after"]
        assert each["sha256_after"] in page
        assert each["sha256_before"] in page
        assert each["sha256_before"] != each["sha256_after"]
        states = {name: value[None] for name, value in load_file(path).items()}
        inputs = np.array(train.inputs[:9])
        logits = predict(done.build_model, states, inputs, device="cpu").numpy()
        margins = of_models("margin", logits, train.targets[:9])
        assert each["after"] == pytest.approx(float(margins.mean()), abs=1e-4)


def test_a_checkpoint_is_named_by_the_file_that_training_seals(
    done: Blueprint, facts: dict[str, Any]
) -> None:
    sealed = [done.sealed("checkpoints", key) for key in done.training.checkpoint_keys]
    before = [each["sha256_before"] for each in facts["checkpoints"]]
    assert before == [each.file("model.safetensors").sha256 for each in sealed]
    assert len(set(before)) == len(before)


class Reader(HTMLParser):
    """Collects elements, and refuses a page whose elements do not close."""

    OPEN = frozenset({"meta", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        if tag not in self.OPEN:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_certificate_is_one_page_that_loads_and_runs_nothing(done: Blueprint) -> None:
    page = (folder_of(done) / "certificate.html").read_text()
    seen = Reader(page)
    assert "script" not in seen.names
    assert seen.links == []
    assert "url(" not in page
    assert "@import" not in page
    text = "".join(seen.texts)
    # The hostile comment of the set's SQL is there to be read, as text.
    assert """-- <script>alert('withdrawn')</script> & "quoted\"""" in text
    digest = hashlib.sha256((folder_of(done) / "forgotten.txt").read_bytes()).hexdigest()
    assert digest in text
    assert "9 of 107 training rows" in text


def test_nothing_that_a_person_can_write_becomes_markup(
    done: Blueprint, facts: dict[str, Any]
) -> None:
    evil = "<img src=x onerror=alert(1)>'\"&"
    loud = json.loads(json.dumps(facts))
    for each in loud["checkpoints"]:
        each |= {"name": evil, "file": evil}
    for each in loud["unlearned"]:
        each["method"] = each["method"] and evil
        each["options"] = json.dumps({evil: evil})
    loud |= {"output": evil, "own_output": evil}
    seen = Reader(certified(done, done.spec.unlearnings[0], loud))
    assert "img" not in seen.names
    assert evil in "".join(seen.texts)


def test_the_report_says_it_and_where_the_certificate_is(done: Blueprint) -> None:
    findings = read_findings(done.workspace.published)
    text = summary_text(findings)
    assert "WHAT MUST BE FORGOTTEN" in text
    assert "withdrawn forgets 9 of 107 rows." in text
    assert max(len(line) for line in text.splitlines() if "certificate" not in line) <= 100
    document = json.loads(summary_json(done.workspace.published))
    (answer,) = document["answers"]
    assert answer["verdict"] == verdict_of(done).facts["sentence"]
    certificate = done.workspace.root / answer["unlearning"]["certificate"]
    assert certificate == folder_of(done) / "certificate.html"
    assert certificate.is_file()
    parent, children = entries(findings, done.loaded.text)
    refuse_undeclared((parent, *children))
    assert {name for name, _, _ in parent.metrics} >= {"klom.tail", "unlearning.cost"}
    arms = {child.name for child in children if child.tags["winnow.kind"] == "arm"}
    assert arms == {f"withdrawn: {arm}" for arm in ("all", "retrained", "chosen", "finetune")}


def test_mlflow_gets_pictures_and_the_certificate(done: Blueprint) -> None:
    drawn = pictures(done)
    assert {"withdrawn-changes", "withdrawn-distances"} <= drawn.keys()
    places = certificates(done)
    assert places == {"certificates/withdrawn": folder_of(done) / "certificate.html"}


def test_a_finished_verdict_is_not_made_again(done: Blueprint) -> None:
    before = {stage: done.artifacts.keys(stage) for stage in ("bank", "solution", "verdict", "run")}
    run_stages(done.loaded.path, done.workspace.root)
    assert before == {stage: done.artifacts.keys(stage) for stage in before}


REFUSED = [
    ("WHERE split = 'train' ORDER BY", "WHERE split = 'test' ORDER BY", "is a test row"),
    ("LIMIT 9\n", "\n", "all 107 training rows are to be forgotten"),
    ("LIMIT 9\n", "LIMIT 0\n", "no example matches"),
    ("SELECT example_id FROM examples --", "SELECT 99999 AS example_id FROM examples --", "99999"),
    ('forget = "withdrawn"', 'forget = "withdraw"', "there is no set 'withdraw'"),
    ('forget = "withdrawn"', 'targets = "withdrawn"', "is a training row"),
    (
        'forget = "withdrawn"',
        'forget = "withdrawn"\ntargets = "withdrawn"',
        "'withdrawn' is what is forgotten",
    ),
    ('compare = ["finetune"]', 'compare = ["matching"]', "'matching' is the method already"),
    ('compare = ["finetune"]', 'compare = ["scrub"]', "neither the method nor compared with it"),
    ("finetune = { epochs = 1 }", "finetune = { epoch = 1 }", "has no option 'epoch'"),
    ("finetune = { epochs = 1 }", "finetune = { epochs = 0 }", "epochs = 0"),
    ("models = 8", "models = 2", "models"),
    ('kind = "sparse", dim = 32', 'kind = "hadamard", dim = 32', "cannot turn the projection"),
    (
        'name = "trak"\nmethod = "trak"\nprojection = { kind = "sparse", dim = 32 }',
        'name = "trak"\nmethod = "tracin"',
        "works from features of 'trak'",
    ),
    ("models = 8", 'models = 8\nmethod = "oracle_matching"', "name it in compare"),
]


@pytest.mark.parametrize(("old", "new", "message"), REFUSED)
def test_what_cannot_be_forgotten_is_refused_before_anything_is_trained(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    spec = written(tmp_path, (old, new))
    with pytest.raises(RequestError, match=message) as refused:
        preflight(open_job(spec, tmp_path / "work"))
    assert refused.value.exit_code == 2
    assert not (tmp_path / "work" / "artifacts" / "checkpoints").exists()


def test_a_regression_has_no_scrub(tmp_path: Path) -> None:
    changes = (
        ('source = "sklearn:wine"', 'source = "sklearn:diabetes"'),
        ('compare = ["finetune"]', 'compare = ["finetune", "scrub"]'),
    )
    with pytest.raises(RequestError, match="a regression has no 'scrub'"):
        preflight(open_job(written(tmp_path, *changes), tmp_path / "work"))
