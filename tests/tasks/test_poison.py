"""Poisoning from rows to tables: what is found, trained, seen by screens, and refused."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from attribution.bank import train_bank_models
from flows.summary import meaning
from optimize.poisoning.moves import Moves
from schemas.errors import InfeasibleProblem, NotFound, QueryError, RequestError, SpecError
from schemas.spec import PoisonSpec, load_spec
from store.connect import run_sql
from tasks.bank import logits_of, outputs_of
from tasks.blueprint import Blueprint
from tasks.export import write_poisoned
from tasks.job import blueprint
from tasks.outbox import pictures
from tasks.poisoning.attacks import PREDICTING, _chosen, find_attacks, harms
from tasks.poisoning.practice import CLEAN, REPEATS, clean_models, practice_sets, practised
from tasks.poisoning.scene import MODELS, Scene
from tasks.poisoning.suspicion import suspicion_of
from tasks.preflight import open_job, preflight
from tasks.problems.poison import attacks_of
from tasks.reporting.entries import NOTE_TAG, entries, refuse_undeclared
from tasks.reporting.report import read_findings, summary_json, summary_text
from tests.tasks.pipeline import run_stages

SPEC = """
name = "attacked"

[data]
source = "csv:rows.csv"
target = "kind"
split = "side"
metadata = ["vendor"]

[sets]
aimed = "SELECT example_id FROM examples WHERE split = 'test' AND target = 'b' LIMIT 20"
others = "SELECT example_id FROM examples WHERE split = 'test'"
dunes = "SELECT example_id FROM examples WHERE split = 'train' AND metadata->>'vendor' = 'dune'"

[model]
build = "mlp"
options = { hidden = [8] }

[train]
lr = 0.1
epochs = 12
batch_size = 20
weight_decay = 2e-2
seeds = 2

[bank]
models = 24
alpha = [0.5, 0.9]
seeds = 2

[[attribution]]
method = "trak"
projection = { dim = 64 }

[[problem]]
kind = "poison"
name = "attack"
uses = "trak"
targets = "aimed"
budget = [0.05, 20]
stealth = 1.5
by = ["class", "vendor"]
rounds = 1
checkpoints = 2

[verdict]
seeds = 3
judge_on = "others"
"""
INSERTS = {
    "budget = [0.05, 20]": 'budget = 15\nmove = "insert"\npool = "dunes"',
    "stealth = 1.5\n": "",
    'by = ["class", "vendor"]': "by = []",
}


def spec_of(folder: Path, changes: dict[str, str] | None = None) -> Path:
    """Three overlapping clouds of points from two vendors, and the spec, some of it exchanged."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 3, 320)
    centres = 1.6 * rng.standard_normal((3, 5))
    points = (centres[kinds] + rng.standard_normal((320, 5))).round(4)
    frame = pl.DataFrame(points, schema=[f"x{number}" for number in range(5)]).with_columns(
        kind=np.array(["a", "b", "c"])[kinds],
        side=np.where(np.arange(320) < 200, "train", "test"),
        vendor=np.where(rng.random(320) < 0.5, "dune", "elm"),
    )
    frame.write_csv(folder / "rows.csv")
    text = SPEC
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    path = folder / "attacked.toml"
    path.write_text(text, encoding="utf-8")
    return path


def made(folder: Path, changes: dict[str, str] | None = None) -> Blueprint:
    return blueprint(run_stages(spec_of(folder, changes), folder / "work"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    return made(tmp_path_factory.mktemp("flipped"))


@pytest.fixture(scope="module")
def inserted(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    return made(tmp_path_factory.mktemp("inserted"), INSERTS)


def scene_of(plan: Blueprint) -> Scene:
    (problem,) = plan.spec.poisonings
    return Scene(plan, problem)


def sealed(plan: Blueprint, stage: str) -> dict:
    (problem,) = plan.spec.poisonings
    keys = {"solution": plan.problems.solution_key, "verdict": plan.problems.verdict_key}
    return dict(plan.sealed(stage, keys[stage](problem)).facts)


def attack_of(plan: Blueprint, budget: int) -> Moves:
    (problem,) = plan.spec.poisonings
    solution = plan.sealed("solution", plan.problems.solution_key(problem))
    return attacks_of(scene_of(plan), solution)[budget]


# --- what is trained ------------------------------------------------------------------------------


def test_poisoned_models_are_those_of_rows_with_other_labels(plan: Blueprint) -> None:
    """The slow way: the clean rows without the flipped ones, then these under their new labels."""
    scene, moves = scene_of(plan), attack_of(plan, 10)
    assert len(np.unique(moves.rows)) == len(moves) == 10
    assert (moves.labels != scene.labels[moves.rows]).all()
    order = np.lexsort((moves.labels, moves.rows))
    inputs, labels = scene.train
    kept = np.setdiff1d(np.arange(len(labels)), moves.rows)
    poisoned = (
        np.concatenate([inputs[kept], inputs[moves.rows[order]]]),
        np.concatenate([labels[kept], moves.labels[order]]),
    )
    seeds = scene.seeds(MODELS, 9, count=2)
    found = logits_of(plan, scene.models([moves, None], seeds))
    for place, train in enumerate((poisoned, scene.train)):
        _, slow = train_bank_models(
            plan.build_model,
            train,
            eval_inputs=np.array(plan.dataset.test.inputs),
            masks=np.ones((1, len(train[1])), dtype=bool),
            seeds=seeds[place : place + 1],
            training=plan.training.recipe(),
            task="classification",
        )
        np.testing.assert_allclose(found[place], slow[0], atol=1e-4)


def test_a_poisoned_models_name_is_that_of_the_same_rows_elsewhere(plan: Blueprint) -> None:
    scene, moves = scene_of(plan), attack_of(plan, 10)
    seeds = scene.seeds(MODELS, 9, count=2)
    clean, poisoned = scene.models([None, moves], seeds)
    whole = np.ones(plan.n_train, dtype=bool)
    assert clean == plan.retraining.id_of(whole, int(seeds[0]))
    assert poisoned != plan.retraining.id_of(whole, int(seeds[1]))
    # What other sets there are changes neither rows nor names.
    rng = np.random.default_rng(0)
    beside = scene.models([scene.random(5, rng), moves], np.array([1, seeds[1]]))
    assert beside[1] == poisoned


def test_insertions_add_rows_of_the_pool_and_take_none_away(inserted: Blueprint) -> None:
    scene, moves = scene_of(inserted), attack_of(inserted, 15)
    rows, poisoned = scene.poisoned(moves)
    assert len(rows.targets) == inserted.n_train + 15
    assert poisoned.sum() == 15 == len(np.unique(moves.rows))
    np.testing.assert_array_equal(rows.targets[~poisoned], scene.labels)
    added = inserted.dataset.subset(inserted.dataset.example_ids[scene.place_of(moves)])
    np.testing.assert_array_equal(
        np.sort(np.asarray(rows.inputs)[poisoned], axis=0), np.sort(added.inputs, axis=0)
    )
    sources = "SELECT DISTINCT metadata->>'vendor' FROM poisoned_examples"
    assert run_sql(inserted.workspace.published, sources).rows == [("dune",)]


def test_random_moves_fill_up_the_classes_of_the_targets_first(plan: Blueprint) -> None:
    scene, rng = scene_of(plan), np.random.default_rng(0)
    own = int((scene.labels == 1).sum())
    for budget in (8, own + 7):
        moves = scene.random(budget, rng, inside=True)
        assert len(np.unique(moves.rows)) == budget
        assert (moves.labels != scene.labels[moves.rows]).all()
        assert (scene.labels[moves.rows] == 1).sum() == min(budget, own)
    assert len(np.unique(scene.labels[scene.random(60, rng).rows])) == 3


# --- what is predicted ----------------------------------------------------------------------------


def test_practice_holds_linear_predictions_and_what_training_said(plan: Blueprint) -> None:
    scene = scene_of(plan)
    manifest, practice = practised(scene)
    sets = practice_sets(scene, scene.better * practice.target)
    assert manifest.facts["sets"] == len(sets) == 45  # 15 of each of 5, 10 and 20 rows
    assert manifest.facts["models"] == REPEATS * len(sets) + CLEAN
    for place, moves in enumerate(sets[::7]):
        change = sum(
            practice.target[row, label] - practice.target[row, scene.labels[row]]
            for row, label in zip(moves.rows, moves.labels, strict=True)
        )
        assert practice.predicted[0, 7 * place] == pytest.approx(change)
    seeds = scene.seeds(MODELS, 1, count=REPEATS * len(sets))
    names = scene.models([sets[3]] * REPEATS, seeds[3 * REPEATS : 4 * REPEATS])
    ids = scene.reach.targets
    values, clean = (
        outputs_of(plan, logits_of(plan, own), ids, "margin").mean()
        for own in (names, clean_models(scene))
    )
    assert practice.observed[0, 3] == pytest.approx(values - clean, abs=1e-5)
    assert np.corrcoef(practice.predicted[0], practice.observed[0])[0, 1] > 0.5


def test_practice_flips_even_rows_whose_own_label_is_worst(plan: Blueprint) -> None:
    scene = scene_of(plan)
    worth = np.zeros((len(scene.labels), 3))
    worth[np.arange(len(worth)), scene.labels] = -1.0
    for moves in practice_sets(scene, worth):
        assert (moves.labels != scene.labels[moves.rows]).all()


def test_a_prediction_is_of_models_that_chose_nothing(plan: Blueprint) -> None:
    """Against t by hand, from the same models."""
    scene, facts = scene_of(plan), sealed(plan, "solution")
    attacks = [attack_of(plan, budget) for budget in (10, 20)]
    seeds = scene.seeds(MODELS, 3, count=2 * PREDICTING)
    names = scene.models([one for one in attacks for _ in range(PREDICTING)], seeds)
    values = scene.seen(names).loss.reshape(2, -1)
    clean = scene.seen(clean_models(scene)).loss
    for own, record in zip(values, facts["budgets"], strict=True):
        mean, low, high = record["predicted"]
        assert mean == pytest.approx(own.mean() - clean.mean())
        # As wide as these models alone would have it, give or take what the others add.
        noise = own.var(ddof=1) * (1 / PREDICTING + 1 / 3) + clean.var(ddof=1) * (1 / CLEAN + 1 / 3)
        half = stats.t.ppf(0.975, PREDICTING - 1) * np.sqrt(noise)
        assert half / 2.5 < high - mean < 2.5 * half
        assert mean - low == pytest.approx(high - mean)


def test_of_a_budgets_attacks_the_most_harmful_that_stays_unnoticed_is_chosen(
    plan: Blueprint,
) -> None:
    scene = scene_of(plan)
    loss, others = np.array([1.0, 3.0, 2.0]), np.array([0.0, -2.0, -1.0])
    margins = np.zeros(3)
    assert _chosen(scene, np.stack([margins, others, loss])) == 2  # the second loses more than 1.5
    assert _chosen(scene, np.stack([margins, others - 2.0, loss])) == 0  # none keeps to it
    free = scene.problem.model_copy(update={"stealth": None})
    assert _chosen(Scene(plan, free), np.stack([margins, others, loss])) == 1


def test_curves_rise_and_the_weakest_spot_is_named_first(plan: Blueprint) -> None:
    facts = sealed(plan, "solution")
    curve = facts["curve"]
    assert [curve[0]["budget"], curve[-1]["budget"]] == [5, 20]
    damage = [point["damage"] for point in curve]
    assert damage == sorted(damage)
    assert all(point["bound"] >= point["damage"] - 1e-9 for point in curve)
    for column, values in (("class", {"a", "b", "c"}), ("vendor", {"dune", "elm"})):
        spots = [spot for spot in facts["weak_spots"] if spot["column"] == column]
        assert {spot["value"] for spot in spots} == values
        assert sum(spot["rows"] for spot in spots) == plan.n_train
        assert [spot["damage"] for spot in spots] == sorted(
            (spot["damage"] for spot in spots), reverse=True
        )
        # No part can do more than all rows together.
        assert spots[0]["damage"] <= facts["budgets"][-1]["bound"] + 1e-9


def test_shares_of_the_damage_are_those_of_single_moves(plan: Blueprint) -> None:
    scene, moves = scene_of(plan), attack_of(plan, 20)
    _, practice = practised(scene)
    harm = harms(scene, practice, moves)
    sql = "SELECT poisoned_share FROM poisoned_rows WHERE poisoned_budget = 20"
    shares = [row[0] for row in run_sql(plan.workspace.published, sql).rows]
    np.testing.assert_allclose(sorted(shares), np.sort(harm / abs(harm.sum())))


# --- what is judged -------------------------------------------------------------------------------


def test_the_attack_does_more_than_random_moves(plan: Blueprint, inserted: Blueprint) -> None:
    for found in (plan, inserted):
        for record in sealed(found, "verdict")["budgets"]:
            assert record["observed"][0] > record["rivals"]["anywhere"]
        assert record["observed"][0] > record["rivals"]["inside"]
        assert record["exceeds"]
    query = (
        "SELECT budget, kind, count(*), quantile_cont(damage, 0.95) FROM poison_draws GROUP BY ALL"
    )
    rows = run_sql(plan.workspace.published, query).rows
    rivals = {record["budget"]: record["rivals"] for record in sealed(plan, "verdict")["budgets"]}
    assert len(rows) == 4
    for budget, kind, count, tail in rows:
        assert count == 20
        assert tail == pytest.approx(rivals[budget][kind])


def test_screens_look_at_the_poisoned_rows(plan: Blueprint) -> None:
    moves = attack_of(plan, 20)
    found = suspicion_of(scene_of(plan), moves, 1)
    assert found.poisoned.sum() == 20
    assert not found.left_out
    assert len(found.screens) == 10
    judged = {entry["screen"]: entry for entry in found.judged()}
    for name, suspicion in found.screens.items():
        assert judged[name]["auroc"] == pytest.approx(roc_auc_score(found.poisoned, suspicion))
        assert judged[name]["chance"] == pytest.approx(20 / 200)
    stored = [one for one in sealed(plan, "verdict")["screens"] if one["budget"] == 20]
    assert {one["screen"]: one["recall"] for one in stored} == {
        name: entry["recall"] for name, entry in judged.items()
    }
    # Flips stand beside rows of the label that they lost.
    assert judged["neighbours"]["auroc"] > 0.7


# --- again ----------------------------------------------------------------------------------------


def test_a_second_run_makes_nothing_again(plan: Blueprint) -> None:
    stages = ("bank", "poisons", "solution", "verdict", "run")
    before = {stage: plan.artifacts.keys(stage) for stage in stages}
    assert len(before["poisons"]) == 1
    run_stages(plan.loaded.path, plan.workspace.root)
    assert {stage: plan.artifacts.keys(stage) for stage in stages} == before


def test_a_killed_run_trains_only_what_it_had_not(tmp_path: Path) -> None:
    """As after a kill between two chunks: nothing of the answer is sealed, and one chunk is not."""
    plan = made(tmp_path, {"budget = [0.05, 20]": "budget = 10", "rounds = 1": "rounds = 0"})
    (problem,) = plan.spec.poisonings
    facts = sealed(plan, "verdict")
    before = {chunk.key: chunk for chunk in plan.artifacts.manifests("bank")}
    names = set(facts["retrainings"])
    lost = next(
        chunk
        for chunk in before.values()
        if names & set(chunk.facts["retrainings"]) and len(chunk.facts["retrainings"]) > 5
    )
    plan.artifacts.discard("bank", lost.key)
    for stage, key in (
        ("verdict", plan.problems.verdict_key(problem)),
        ("solution", plan.problems.solution_key(problem)),
        ("poisons", next(iter(plan.artifacts.keys("poisons")))),
    ):
        plan.artifacts.discard(stage, str(key))
    again = blueprint(run_stages(plan.loaded.path, plan.workspace.root))
    after = {chunk.key: chunk for chunk in again.artifacts.manifests("bank")}
    kept = {key: after[key] for key in before.keys() - {lost.key}}
    assert kept == {key: before[key] for key in kept}
    trained = {
        name for key in after.keys() - kept.keys() for name in after[key].facts["retrainings"]
    }
    assert trained == set(lost.facts["retrainings"])
    assert sealed(again, "verdict")["budgets"] == facts["budgets"]


def test_another_stealth_shares_the_practice(plan: Blueprint) -> None:
    scene = scene_of(plan)
    (problem,) = plan.spec.poisonings
    bolder = Scene(plan, problem.model_copy(update={"stealth": 9.0, "name": "bolder"}))
    assert practised(bolder)[0] == practised(scene)[0]
    found = find_attacks(bolder, practised(bolder)[1])
    assert [record["budget"] for record in found.records] == [10, 20]


# --- what is told ---------------------------------------------------------------------------------


def test_views_show_damage_and_poisoned_rows(plan: Blueprint) -> None:
    published = plan.workspace.published
    rows = run_sql(published, "SELECT budget, observed, best_recall FROM damage_by_budget").rows
    facts = sealed(plan, "verdict")
    for (budget, observed, recall), record in zip(rows, facts["budgets"], strict=True):
        assert (budget, observed) == (record["budget"], record["observed"][0])
        own = [one["recall"] for one in facts["screens"] if one["budget"] == budget]
        assert recall == max(own)
    sql = """SELECT count(*), count(DISTINCT example_id), bool_and(label <> poisoned_label),
        bool_and(metadata->>'vendor' IN ('dune', 'elm')) FROM poisoned_examples
        WHERE poisoned_budget = 20"""
    assert run_sql(published, sql).rows == [(20, 20, True, True)]


def test_the_bank_knows_nothing_of_poisoned_models(plan: Blueprint) -> None:
    kinds = run_sql(plan.workspace.published, "SELECT DISTINCT kind FROM bank ORDER BY kind").rows
    assert kinds == [("calibrate",), ("evaluate",)]


def test_the_report_says_what_was_done_and_whether_it_would_be_noticed(plan: Blueprint) -> None:
    findings = read_findings(plan.workspace.published)
    text = summary_text(findings)
    assert "WHAT A CONTRIBUTOR COULD DO: ATTACK" in text
    assert "…" not in text
    words = " ".join(text.split())
    assert "20 flipped labels raise the mean loss of 20 targets by" in words
    assert "Would one notice? Among the 20 rows" in words
    assert "would hurt most, by vendor" in words
    assert f"poisoning_id = '{findings.poisonings[0].poisoning_id}'" in words
    document = json.loads(summary_json(plan.workspace.published))
    assert len(document["poisonings"][0]["screens"]) == 20


def test_each_budget_is_a_run_in_mlflow_with_declared_metrics(plan: Blueprint) -> None:
    parent, children = entries(read_findings(plan.workspace.published), plan.loaded.text)
    refuse_undeclared((parent, *children))
    (found,) = (child for child in children if child.name == "attack: 20 rows")
    assert {"poison.observed.mean", "screen.recall"} <= {name for name, _, _ in found.metrics}
    assert "**attack**: 20 flipped labels" in parent.tags[NOTE_TAG]


def test_the_figure_shows_every_draw_and_each_budgets_attack(plan: Blueprint) -> None:
    left, right = pictures(plan)["attack-damage"].axes
    for axes in (left, right):
        lines = {line.get_label(): line for line in axes.lines}
        assert len(lines["random moves anywhere"].get_xdata()) == 40
    curve = lines["worst moves, foreseen"]
    assert curve.get_ydata()[-1] == sealed(plan, "solution")["curve"][-1]["damage"]


def test_a_spec_says_what_is_attacked(plan: Blueprint) -> None:
    said = dict(meaning(plan.loaded))["problem attack"]
    assert said.startswith("the worst that 5.0% or 20 flipped labels could do to 'aimed'")


def test_poisoned_rows_are_written_under_names_that_say_so(plan: Blueprint, tmp_path: Path) -> None:
    problem = plan.spec.problem_of(PoisonSpec)
    before = plan.loaded.path.with_name("rows.csv").read_bytes()
    first, second = write_poisoned(plan, problem, tmp_path / "out")
    assert [first.name, second.name] == [
        "poisoned-attacked-attack-10.parquet",
        "poisoned-attacked-attack-20.parquet",
    ]
    frame = pl.read_parquet(second)
    assert {"poisoned_label", "poisoned_budget", "poisoned_share"} <= set(frame.columns)
    moves = attack_of(plan, 20)
    ids = plan.dataset.train.example_ids[moves.rows]
    assert set(frame["example_id"].to_list()) == set(ids.tolist())
    assert plan.loaded.path.with_name("rows.csv").read_bytes() == before
    with pytest.raises(RequestError, match="is there already"):
        write_poisoned(plan, problem, tmp_path / "out")
    with pytest.raises(RequestError, match="must not touch"):
        write_poisoned(plan, problem, plan.loaded.path.with_name("rows.csv"))
    with pytest.raises(NotFound, match="no problem 'attak' of kind 'poison'"):
        plan.spec.problem_of(PoisonSpec, "attak")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"stealth = 1.5": "stealth = 0"}, "stealth: 0 is no number greater than 0|greater than 0"),
        ({"stealth = 1.5": 'move = "flop"'}, "flip"),
        ({"budget = [0.05, 20]": "budget = []"}, "budget"),
        ({"budget = [0.05, 20]": "budget = 1.5"}, "budget"),
        ({"rounds = 1": "draws = 5"}, "draws"),
        ({'targets = "aimed"': 'targets = "aimd"'}, "did you mean 'aimed'"),
        ({'uses = "trak"': 'uses = "track"'}, "there is no attribution 'track'"),
        ({'by = ["class", "vendor"]': 'by = ["vendr"]'}, "did you mean 'vendor'"),
        ({"stealth = 1.5": 'pool = "dunes"'}, "flips add no rows"),
        ({"stealth = 1.5": 'move = "insert"\nrows = "dunes"'}, "nobody's row yet"),
        ({"stealth = 1.5": 'rows = "dune"'}, "did you mean 'dunes'"),
        ({'method = "trak"': 'method = "trak"\ncurvature = "ggn"'}, "what other labels would do"),
        ({'judge_on = "others"': 'judge_on = "rest"'}, "there is no set 'rest'"),
        (
            {'metadata = ["vendor"]': 'metadata = ["vendor"]\ntask = "regression"'},
            "no labels to move",
        ),
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
        ({"[0.05, 20]": "201"}, InfeasibleProblem, "a budget of 201 of 200 rows"),
        ({"[0.05, 20]": "0.001"}, InfeasibleProblem, "is no row; allow at least 1"),
        (
            {"stealth = 1.5": "rows = \"SELECT example_id FROM examples WHERE target = 'a' AND "
             "split = 'train'\""},
            InfeasibleProblem,
            "has the class of a target",
        ),
        ({"stealth = 1.5": 'rows = "others"'}, QueryError, "is a test row"),
        ({'targets = "aimed"': 'targets = "dunes"'}, QueryError, "is a training row"),
        ({'judge_on = "others"': 'judge_on = "aimed"'}, InfeasibleProblem, "is a target"),
        (
            {"stealth = 1.5": 'move = "insert"\npool = "others"'},
            QueryError,
            "is a target or judges",
        ),
    ],
)  # fmt: skip
def test_what_the_rows_cannot_answer_is_refused_before_training(
    tmp_path: Path, changes: dict[str, str], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        preflight(open_job(spec_of(tmp_path, changes), tmp_path / "work"))


def test_numbers_have_no_labels_to_move(tmp_path: Path) -> None:
    changes = {
        'target = "kind"': 'target = "x4"',
        'metadata = ["vendor"]': 'metadata = ["vendor", "kind"]',
        "target = 'b'": "metadata->>'kind' = 'b'",
    }
    with pytest.raises(InfeasibleProblem, match="a regression has no labels to move"):
        preflight(open_job(spec_of(tmp_path, changes), tmp_path / "work"))


def test_targets_may_be_sql(tmp_path: Path) -> None:
    sql = "SELECT example_id FROM examples WHERE split = 'test' AND target = 'c' LIMIT 4"
    spec = spec_of(tmp_path, {'targets = "aimed"': f'targets = "{sql}"'})
    plan = blueprint(preflight(open_job(spec, tmp_path / "work")))
    reach = plan.problems.reach(plan.spec.poisonings[0])
    assert len(reach.targets) == 4
    assert not np.intersect1d(reach.targets, reach.elsewhere).size


@pytest.mark.parametrize(
    ("budget", "counts"), [(3, (3,)), (0.02, (4,)), ((0.02, 9, 4), (4, 9)), ((0.5, 1), (1, 100))]
)
def test_budgets_are_rows_ascending_each_once(
    budget: float | tuple[float, ...], counts: tuple[int, ...]
) -> None:
    problem = PoisonSpec(kind="poison", uses="trak", targets="aimed", budget=budget)
    assert problem.counts(200) == counts
