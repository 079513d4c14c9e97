"""Moved inputs from rows to tables: where they go, what they do, and what is refused."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import softmax

from attribution.bank import train_bank_models
from flows.summary import meaning
from schemas.errors import InfeasibleProblem, SpecError
from schemas.spec import load_spec
from store.connect import run_sql
from tasks.bank import logits_of
from tasks.blueprint import Blueprint
from tasks.export import write_poisoned
from tasks.job import blueprint
from tasks.outbox import pictures
from tasks.poisoning.scene import MODELS
from tasks.preflight import open_job, preflight
from tasks.reporting.entries import entries, refuse_undeclared
from tasks.reporting.report import read_findings, summary_text
from tests.tasks.pipeline import run_stages
from tests.tasks.test_poison import attack_of, made, scene_of, sealed, spec_of

RADIUS = 0.6
PERTURB = {
    "budget = [0.05, 20]": f'budget = [10, 40]\nmove = "perturb"\nradius = {RADIUS}',
    'by = ["class", "vendor"]\n': "",
}
MATCH = {
    "target = 'b'": "target = 'a'",
    "budget = [0.05, 20]": 'budget = 40\nmove = "match"\nradius = 1.5\ntaken_for = "c"',
    'by = ["class", "vendor"]\n': "",
    "stealth = 1.5\n": "",
    "rounds = 1": "rounds = 0",
}


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    return made(tmp_path_factory.mktemp("moved"), PERTURB)


@pytest.fixture(scope="module")
def matched(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    return made(tmp_path_factory.mktemp("matched"), MATCH)


# --- what is moved --------------------------------------------------------------------------------


def test_inputs_stay_in_the_ball_and_in_the_range_and_labels_stay(
    moved: Blueprint, matched: Blueprint
) -> None:
    for plan, budgets, radius in ((moved, (10, 40), RADIUS), (matched, (40,), 1.5)):
        scene = scene_of(plan)
        inputs, labels = scene.train
        rng = np.random.default_rng(0)
        random = [scene.random(30, rng, inside=inside) for inside in (False, True)]
        for moves in (*random, *(attack_of(plan, budget) for budget in budgets)):
            assert len(np.unique(moves.rows)) == len(moves)
            np.testing.assert_array_equal(moves.labels, labels[moves.rows])
            change = np.abs(moves.inputs - inputs[moves.rows])
            assert 0 < change.max() <= radius + 1e-6
            assert (moves.inputs >= inputs.min(axis=0)).all()
            assert (moves.inputs <= inputs.max(axis=0)).all()
        assert np.isin(labels[random[1].rows], scene.reach.classes).all()
    assert (scene.labels[attack_of(matched, 40).rows] == 2).all()


def test_a_valid_range_may_be_given(tmp_path: Path) -> None:
    low, high = -9.0, 9.0
    changes = PERTURB | {"stealth = 1.5": f"valid = [{low}, {high}]"}
    plan = blueprint(preflight(open_job(spec_of(tmp_path, changes), tmp_path / "work")))
    moves = scene_of(plan).random(200, np.random.default_rng(0))
    change = np.abs(moves.inputs - scene_of(plan).train[0][moves.rows])
    np.testing.assert_allclose(change, RADIUS, atol=1e-5)  # nothing is cut off


def test_moved_models_are_those_of_rows_with_other_inputs(moved: Blueprint) -> None:
    """The slow way: the clean rows without the moved ones, then these where they went."""
    scene, moves = scene_of(moved), attack_of(moved, 10)
    order = np.argsort(moves.rows)
    inputs, labels = scene.train
    kept = np.setdiff1d(np.arange(len(labels)), moves.rows)
    poisoned = (
        np.concatenate([inputs[kept], moves.inputs[order]]),
        np.concatenate([labels[kept], moves.labels[order]]),
    )
    seeds = scene.seeds(MODELS, 9, count=1)
    (name,) = scene.models([moves], seeds)
    _, slow = train_bank_models(
        moved.build_model,
        poisoned,
        eval_inputs=np.array(moved.dataset.test.inputs),
        masks=np.ones((1, len(labels)), dtype=bool),
        seeds=seeds,
        training=moved.training.recipe(),
        task="classification",
    )
    np.testing.assert_allclose(logits_of(moved, [name])[0], slow[0], atol=1e-4)
    # What other sets there are changes neither rows nor names.
    others = [scene.random(5, np.random.default_rng(each)) for each in range(2)]
    assert scene.models([others[0], moves, others[1]], np.repeat(seeds, 3))[1] == name
    assert name not in scene.models([None, others[0]], np.repeat(seeds, 2))


# --- what it does ---------------------------------------------------------------------------------


def test_planned_moves_raise_the_loss_more_than_random_ones_of_the_same_radius(
    moved: Blueprint,
) -> None:
    record = sealed(moved, "verdict")["budgets"][-1]
    assert record["exceeds"]
    assert record["observed"][1] > max(record["rivals"].values())


def test_matched_rows_pull_the_targets_towards_their_class(matched: Blueprint) -> None:
    facts = sealed(matched, "verdict")
    (record,) = facts["budgets"]
    assert record["observed"][0] > max(record["rivals"].values())
    places = matched.dataset.positions(scene_of(matched).reach.targets) - matched.n_train
    shares = []
    for names, said in ((facts["retrainings"][:3], facts), (facts["retrainings"][3:6], record)):
        logits = logits_of(matched, names)[:, places]
        taken = (logits.argmax(axis=-1) == 2).mean()
        assert np.atleast_1d(said["taken"])[0] == pytest.approx(taken)
        shares.append(softmax(logits, axis=-1)[..., 2].mean())
    assert shares[1] > shares[0]


# --- again ----------------------------------------------------------------------------------------


def test_a_second_run_makes_nothing_again(moved: Blueprint) -> None:
    stages = ("bank", "poisons", "solution", "verdict", "run")
    before = {stage: moved.artifacts.keys(stage) for stage in stages}
    assert len(before["poisons"]) == 4  # two budgets, two rounds
    run_stages(moved.loaded.path, moved.workspace.root)
    assert {stage: moved.artifacts.keys(stage) for stage in stages} == before


def test_a_killed_run_finds_its_attacks_and_trains_nothing_twice(tmp_path: Path) -> None:
    """As after a kill while the last attack was sought: it and the answer are not sealed."""
    budget = 'budget = 10\nmove = "perturb"\nradius = 0.3'
    plan = made(tmp_path, PERTURB | {"budget = [0.05, 20]": budget})
    (problem,) = plan.spec.poisonings
    facts = sealed(plan, "verdict")
    before = plan.artifacts.keys("bank")
    last = max(
        plan.artifacts.manifests("poisons"),
        key=lambda sealed: (sealed.facts["budget"], sealed.facts["round"]),
    )
    for stage, key in (
        ("verdict", plan.problems.verdict_key(problem)),
        ("solution", plan.problems.solution_key(problem)),
        ("poisons", last.key),
    ):
        plan.artifacts.discard(stage, str(key))
    again = blueprint(run_stages(plan.loaded.path, plan.workspace.root))
    assert again.artifacts.keys("bank") == before
    assert sealed(again, "verdict")["budgets"] == facts["budgets"]


# --- what is told ---------------------------------------------------------------------------------


def test_tables_hold_changes_and_no_linear_prediction(moved: Blueprint) -> None:
    published = moved.workspace.published
    sql = """SELECT count(*), bool_and(label = poisoned_label), max(largest_change) <= 0.6001,
        bool_and(mean_change <= largest_change), count(poisoned_share)
        FROM poisoned_examples WHERE poisoned_budget = 40"""
    assert run_sql(published, sql).rows == [(40, True, True, True, 0)]
    sql = "SELECT count(*), count(linear), count(bound), count(inside_linear) FROM poison_budgets"
    assert run_sql(published, sql).rows == [(2, 0, 0, 0)]
    sql = "SELECT move, radius, taken_for, scale FROM poisonings"
    assert run_sql(published, sql).rows == [("perturb", RADIUS, None, None)]


def test_the_report_says_how_far_and_that_nothing_was_foreseen(
    moved: Blueprint, matched: Blueprint
) -> None:
    findings = read_findings(moved.workspace.published)
    words = " ".join(summary_text(findings).split())
    assert (
        "moves the inputs of at most 10 or 40 of 200 rows, each input by at most 0.6, to make"
        in words
    )
    assert "40 rows with moved inputs raise the mean loss of 20 targets by" in words
    assert "What moved inputs do has no linear prediction." in words
    assert "would hurt most" not in words
    parent, children = entries(findings, moved.loaded.text)
    refuse_undeclared((parent, *children))
    said = " ".join(summary_text(read_findings(matched.workspace.published)).split())
    assert "test rows worse and taken for 'c'" in said
    assert "are taken for 'c'," in said
    assert pictures(moved)["attack-damage"].axes
    meant = dict(meaning(matched.loaded))["problem attack"]
    assert "40 rows with moved inputs (each by at most 1.5)" in meant


def test_exported_rows_hold_where_inputs_went(moved: Blueprint, tmp_path: Path) -> None:
    (problem,) = moved.spec.poisonings
    _, second = write_poisoned(moved, problem, tmp_path / "out")
    assert second.name == "poisoned-attacked-attack-40.parquet"
    frame, moves = pl.read_parquet(second).sort("example_id"), attack_of(moved, 40)
    order = np.argsort(moves.rows)
    np.testing.assert_array_equal(frame["poisoned_inputs"].to_numpy(), moves.inputs[order])


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({f"radius = {RADIUS}": ""}, "radius: missing; say how far"),
        ({f"radius = {RADIUS}": "radius = 0"}, "radius"),
        ({'"perturb"': '"flip"'}, "'flip' leaves inputs as they are"),
        ({'"perturb"': '"match"'}, "taken_for: missing"),
        ({"stealth = 1.5": 'taken_for = "c"'}, "only 'match' aims at a class"),
        ({"stealth = 1.5": "valid = [1, 1]"}, "holds no values"),
        ({"stealth = 1.5": 'pool = "dunes"'}, "'perturb' adds no rows"),
        ({"stealth = 1.5": 'by = ["class"]'}, "weak spots are of labels"),
    ],
)
def test_specs_that_cannot_be_are_refused(
    tmp_path: Path, changes: dict[str, str], match: str
) -> None:
    spec = spec_of(tmp_path, PERTURB)
    text = spec.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    spec.write_text(text)
    with pytest.raises(SpecError, match=match):
        load_spec(spec)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (MATCH | {"budget = [0.05, 20]":
            'budget = 90\nmove = "match"\nradius = 1\ntaken_for = "c"'},
         "rows of class 'c' that may be moved"),
        (MATCH | {"budget = [0.05, 20]":
            'budget = 9\nmove = "match"\nradius = 1\ntaken_for = "a"'}, "are 'a' already"),
        (MATCH | {"budget = [0.05, 20]":
            'budget = 9\nmove = "match"\nradius = 1\ntaken_for = "x"'}, "there is no class 'x'"),
        (PERTURB | {"stealth = 1.5": "valid = [0, 1]"}, "lie outside 0 to 1; widen valid"),
    ],
)  # fmt: skip
def test_what_the_rows_cannot_answer_is_refused_before_training(
    tmp_path: Path, changes: dict[str, str], match: str
) -> None:
    with pytest.raises(InfeasibleProblem, match=match):
        preflight(open_job(spec_of(tmp_path, changes), tmp_path / "work"))


def test_words_are_not_moved_a_little(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, PERTURB)
    text = spec.read_text()
    for old, new in (
        ('metadata = ["vendor"]', 'text = { column = "words" }'),
        ('build = "mlp"\noptions = { hidden = [8] }', 'build = "bag"'),
    ):
        assert old in text
        text = text.replace(old, new)
    spec.write_text(text)
    with pytest.raises(SpecError, match="between two words there is nothing"):
        load_spec(spec)
