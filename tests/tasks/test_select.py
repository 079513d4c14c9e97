"""Selections of a spec: constraints by name, several targets, caution, and the verdict's arms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import ttest_1samp, ttest_ind

from schemas.errors import InfeasibleProblem, ShapeError
from store.connect import run_sql
from tasks.bank import logits_of
from tasks.blueprint import Blueprint
from tasks.constraints import duplicates_of
from tasks.job import blueprint
from tasks.preflight import open_job, preflight
from tasks.problems.arms import masks_of, training_losses
from tasks.problems.objective import objective, surrogates_of, targets_of, utility_at
from tasks.problems.select import bounds_of
from tasks.score import load_scores
from tests.tasks.pipeline import exchanged, run_stages

SPEC = """
name = "stones"
seed = 0

[data]
source = "csv:stones.csv"
target = "kind"
id = "id"
metadata = ["quarry", "grams"]
test_fraction = 0.4
corrupt = { labels = 0.15 }

[sets]
queries = "SELECT example_id FROM examples WHERE split = 'test' AND example_id % 2 = 0"
hard = "SELECT example_id FROM examples WHERE split = 'test' AND example_id % 4 = 1"
holdout = "SELECT example_id FROM examples WHERE split = 'test' AND example_id % 4 = 3"
proven = "SELECT example_id FROM examples WHERE split = 'train' ORDER BY example_id LIMIT 5"
barred = "SELECT example_id FROM examples WHERE metadata->>'quarry' = 'east' AND split = 'train'"

[model]
build = "linear"

[train]
lr = 0.05
epochs = 8
batch_size = 16
seeds = 2

[bank]
models = 32
alpha = [0.4, 0.8]
seeds = 2

[[attribution]]
method = "trak"
projection = { kind = "sparse", dim = 32 }

[[problem]]
name = "bound"
kind = "select"
uses = "trak"
size = 40
aimed = 0
budget = [{ column = "grams", most = 180 }, { column = "rows", most = 60 }]
include = "proven"
duplicates = "content"
quotas = { quarry = { east = { max = 6 }, north = { min = 12 } }, class = { ore = { min = 15 } } }

[[problem]]
name = "worst"
kind = "select"
uses = "trak"
size = { min = 30, max = 60 }
aimed = 0
targets = { queries = 1, hard = 3 }
combine = "worst"
caution = 0.5
exclude = ["barred"]

[[problem]]
name = "mean"
kind = "select"
uses = "trak"
size = 0.5
aimed = 12
targets = { queries = 1, hard = 3 }

[[problem]]
name = "best"
kind = "select"
uses = "trak"
size = "best"
aimed = 24
budget = { column = "grams", most = 250 }
exclude = "barred"
quotas = { class = { clay = { max = 30 } } }

[verdict]
seeds = 2
arms = ["all", "random", "balanced", "similar", "highest_loss", "lowest_loss", "clean"]
"""


def stones(folder: Path) -> Path:
    rng = np.random.default_rng(5)
    lines = ["id,a,b,c,quarry,grams,kind"]
    kept: list[str] = []
    for row in range(160):
        ore = row % 2
        values = ",".join(f"{x:.3f}" for x in rng.standard_normal(3) + ore)
        values = kept[row // 2] if row % 10 == 9 else values
        kept.append(values)
        quarry, grams = ("north", "east", "west")[row % 3], 2 + row % 5
        lines.append(f"{row},{values},{quarry},{grams},{('clay', 'ore')[ore]}")
    (folder / "stones.csv").write_text("\n".join(lines) + "\n")
    (folder / "stones.toml").write_text(SPEC)
    return folder / "stones.toml"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    folder = tmp_path_factory.mktemp("stones")
    return blueprint(run_stages(stones(folder), folder / "work"))


def choice(plan: Blueprint, name: str) -> np.ndarray:
    problem = plan.spec.decision_named(name)
    manifest = plan.sealed("solution", plan.problems.solution_key(problem))
    return np.load(plan.artifacts.folder(manifest) / "choice.npy")


def column(plan: Blueprint, key: str) -> np.ndarray:
    rows = run_sql(
        plan.workspace.published,
        f"SELECT metadata->>'{key}' FROM examples WHERE split = 'train' ORDER BY example_id",
        limit=None,
    ).rows
    return np.array([row[0] for row in rows])


def test_a_choice_keeps_to_all_that_binds_it(done: Blueprint) -> None:
    chosen = choice(done, "bound")
    quarry, grams = column(done, "quarry"), column(done, "grams").astype(float)
    assert chosen.sum() == 40
    assert grams[chosen].sum() <= 180
    assert (quarry[chosen] == "east").sum() <= 6
    assert (quarry[chosen] == "north").sum() >= 12
    assert (done.dataset.train.targets[chosen] == done.dataset.classes.index("ore")).sum() >= 15
    assert chosen[:5].all()
    rows = np.asarray(done.dataset.train.inputs)[chosen]
    assert len(np.unique(rows, axis=0)) == 40


def test_no_relaxation_of_the_constraints_is_better_than_the_bound(done: Blueprint) -> None:
    problem = done.spec.decision_named("bound")
    facts = done.sealed("solution", done.problems.solution_key(problem)).facts
    utility = surrogates_of(done, problem, targets_of(done, problem))[0].weights[0]
    bounds, groups = bounds_of(done, problem), duplicates_of(done.dataset, problem)
    assert groups is not None
    assert groups.max() + 1 < done.n_train
    ore, quarry = done.dataset.train.targets == 1, column(done, "quarry")
    rows = [
        (column(done, "grams").astype(float), 180),
        (quarry == "east", 6),
        (-1.0 * (quarry == "north"), -12),
        (-1.0 * ore, -15),
        *((groups == group, 1) for group in range(groups.max() + 1)),
    ]
    solved = linprog(
        -utility,
        A_ub=np.array([row for row, _ in rows], dtype=float),
        b_ub=[limit for _, limit in rows],
        A_eq=np.ones((1, done.n_train)),
        b_eq=[40],
        bounds=[(float(must), 1.0) for must in bounds["include"]],
    )
    assert facts["value"] <= facts["bound"] + 1e-9
    assert facts["bound"] <= -solved.fun + 1e-9


def test_prices_are_in_the_ledger_by_the_names_of_the_spec(done: Blueprint) -> None:
    rows = run_sql(
        done.workspace.published,
        "SELECT constraint_name, price FROM prices_by_constraint WHERE problem = 'bound'",
    ).rows
    problem = done.spec.decision_named("bound")
    facts = done.sealed("solution", done.problems.solution_key(problem)).facts
    assert dict(rows) == facts["prices"]
    assert {name for name, _ in rows} == {
        "size", "class ore", "quarry east", "quarry north", "grams", "rows", "must include",
        "duplicates",
    }  # fmt: skip
    assert dict(rows)["must include"] <= 0 <= dict(rows)["quarry east"]
    assert dict(rows)["rows"] == 0


def test_the_mean_of_several_sets_weighs_each_by_its_weight(done: Blueprint) -> None:
    problem = done.spec.decision_named("mean")
    (surrogate,) = surrogates_of(done, problem, targets_of(done, problem))
    attribution = done.spec.attribution[0]
    scores = load_scores(done, attribution)
    shares = np.zeros(len(scores))
    for name, weight in (("queries", 0.25), ("hard", 0.75)):
        places = done.sets.places(name)
        shares[places] += weight / len(places)
    used = shares > 0
    np.testing.assert_allclose(surrogate.shares, shares[used], rtol=1e-12)
    np.testing.assert_allclose(
        surrogate.weights[0], shares[used] @ surrogate.parent.weights, rtol=1e-9
    )
    stated = objective(problem, [surrogate], "margin")
    assert choice(done, "mean").sum() == round(0.5 * done.n_train)
    best = np.sort(stated["utility"][0])[::-1][: choice(done, "mean").sum()].sum()
    assert stated["utility"][0][choice(done, "mean")].sum() == pytest.approx(best)


def test_the_worst_of_several_sets_counts_by_its_cautious_prediction(done: Blueprint) -> None:
    problem = done.spec.decision_named("worst")
    chosen = choice(done, "worst")
    assert 30 <= chosen.sum() <= 60
    assert not (column(done, "quarry") == "east")[chosen].any()
    surrogates = surrogates_of(done, problem, targets_of(done, problem))
    stated = objective(problem, surrogates, "margin")
    values = [
        float(each.expect(chosen[None])[0, 0]) - 0.5 * spread.sd(chosen)
        for each, spread in zip(surrogates, stated["spreads"], strict=True)
    ]
    facts = done.sealed("solution", done.problems.solution_key(problem)).facts
    assert facts["value"] == pytest.approx(min(values))
    plain = [float(each.expect(chosen[None])[0, 0]) for each in surrogates]
    np.testing.assert_array_equal(
        utility_at(stated, chosen), surrogates[int(np.argmin(plain))].weights[0]
    )


def test_the_best_size_is_one_that_the_constraints_allow(done: Blueprint) -> None:
    chosen = choice(done, "best")
    problem = done.spec.decision_named("best")
    curve = done.sealed("solution", done.problems.solution_key(problem)).facts["curve"]
    grams, barred = column(done, "grams").astype(float), column(done, "quarry") == "east"
    clay = done.dataset.train.targets == done.dataset.classes.index("clay")
    # The most rows are the lightest, clay among them only while there is room.
    free = np.flatnonzero(~barred)
    order = free[np.argsort(grams[free], kind="stable")]
    order = order[~clay[order] | (np.cumsum(clay[order]) <= 30)]
    most = int((np.cumsum(grams[order]) <= 250).sum())
    assert max(curve["sizes"]) >= most
    assert chosen.sum() == curve["best"]
    assert grams[chosen].sum() <= 250
    assert not barred[chosen].any()
    assert clay[chosen].sum() <= 30


def test_a_loss_is_to_fall_and_its_utility_is_the_effect_with_its_sign_changed(
    done: Blueprint,
) -> None:
    problem = done.spec.decision_named("worst").model_copy(update={"caution": 0.0})
    surrogates = surrogates_of(done, problem, targets_of(done, problem))
    up, down = (objective(problem, surrogates, output) for output in ("margin", "loss"))
    np.testing.assert_array_equal(down["utility"], -up["utility"])
    np.testing.assert_array_equal(down["base"], -up["base"])


def test_arms_are_of_the_choices_size_but_all_and_clean(done: Blueprint) -> None:
    chosen = choice(done, "bound")
    masks = masks_of(done, done.spec.selections[0], chosen, ())
    clean = done.dataset.train.targets == done.dataset.train.true_targets
    assert set(masks) == {"chosen", *done.spec.verdict.arms}
    for arm, subsets in masks.items():
        expected = {"all": done.n_train, "clean": clean.sum()}.get(arm, 40)
        assert (subsets.sum(axis=1) == expected).all()
    np.testing.assert_array_equal(masks["clean"][0], clean)
    rows = run_sql(
        done.workspace.published,
        "SELECT arm, n_rows FROM verdicts JOIN solutions USING (solution_id) "
        "WHERE problem = 'bound'",
    ).rows
    assert dict(rows)["clean"] == clean.sum()
    assert len(rows) == 8


def test_arms_by_loss_hold_the_ends_of_the_losses(done: Blueprint) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    from tasks.featurize import load_weights

    weights = done.scores.weights(done.spec.attribution[0])
    assert weights
    states = [load_weights(done, each) for each in weights]
    model, train = done.build_model(), done.dataset.train
    inputs, targets = torch.from_numpy(np.array(train.inputs)), torch.from_numpy(train.targets)
    slow = np.zeros(done.n_train)
    for state in states:
        model.load_state_dict(state)
        with torch.no_grad():
            slow += cross_entropy(model(inputs), targets, reduction="none").numpy() / len(states)
    losses = training_losses(done, states)
    np.testing.assert_allclose(losses, slow, rtol=1e-4, atol=1e-5)
    masks = masks_of(done, done.spec.selections[0], choice(done, "bound"), ())
    assert losses[masks["highest_loss"][0]].min() >= losses[~masks["highest_loss"][0]].max()
    assert losses[masks["lowest_loss"][0]].max() <= losses[~masks["lowest_loss"][0]].min()


def test_similar_rows_have_the_highest_mean_cosine_with_the_targets(done: Blueprint) -> None:
    problem = done.spec.selections[0]
    chosen = choice(done, "bound")
    mask = masks_of(done, problem, chosen, ())["similar"][0]
    # A linear model's last hidden layer is its input.
    rows = np.asarray(done.dataset.train.inputs, dtype=float)
    aimed = np.asarray(done.dataset.subset(done.sets.ids("queries")).inputs, dtype=float)
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (rows, aimed)]
    likeness = (unit[0] @ unit[1].T).mean(axis=1)
    assert likeness[mask].min() >= likeness[~mask].max() - 1e-6


def edited(folder: Path, old: str, new: str) -> Path:
    spec = stones(folder)
    spec.write_text(exchanged(SPEC, (old, new)))
    return spec


def test_other_metadata_makes_another_solution(done: Blueprint, tmp_path: Path) -> None:
    spec = stones(tmp_path)
    rows = (tmp_path / "stones.csv").read_text().splitlines()
    (tmp_path / "stones.csv").write_text(
        "\n".join(line.replace(",6,", ",5,") for line in rows) + "\n"
    )
    other = blueprint(preflight(open_job(spec, tmp_path / "work")))
    mine, theirs = (plan.spec.selections for plan in (done, other))
    assert done.problems.limits(mine[0]).digest != other.problems.limits(theirs[0]).digest
    assert done.problems.limits(mine[2]).digest == other.problems.limits(theirs[2]).digest


def test_a_conflict_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    spec = edited(tmp_path, "most = 180", "most = 60")
    with pytest.raises(InfeasibleProblem, match=r"problem 'bound': these cannot all hold: .*grams"):
        preflight(open_job(spec, tmp_path / "work"))
    made = {each.name for each in (tmp_path / "work" / "artifacts").iterdir()}
    assert made <= {"data", "unfinished"}


def test_dropped_copies_name_the_row_that_was_chosen(done: Blueprint) -> None:
    rows = run_sql(
        done.workspace.published,
        "SELECT r.example_id, r.copy_of FROM solution_rows AS r JOIN solutions USING (solution_id) "
        "WHERE problem = 'bound' ORDER BY r.example_id",
        limit=None,
    ).rows
    chosen, inputs = choice(done, "bound"), np.asarray(done.dataset.train.inputs)
    place = {row: number for number, (row, _) in enumerate(rows)}
    same = (inputs[:, None] == inputs[None]).all(axis=-1)
    for row, copied in rows:
        twins = np.flatnonzero(same[place[row]] & chosen)
        if chosen[place[row]] or not len(twins):
            assert copied is None
        else:
            assert [place[copied]] == twins.tolist()
    assert any(copied is not None for _, copied in rows)


def test_the_log_probability_of_an_arm_is_that_of_its_models(done: Blueprint) -> None:
    from scipy.special import log_softmax

    problem = done.spec.decision_named("bound")
    facts: Any = done.sealed("verdict", done.problems.verdict_key(problem)).facts
    judged = done.sets.ids("holdout")
    places = done.dataset.positions(judged) - done.n_train
    logits = logits_of(done, facts["retrainings"])[:, places].astype(np.float64)
    labels = done.dataset.test.targets[places]
    found = log_softmax(logits, axis=-1)[:, np.arange(len(labels)), labels].mean(axis=1)
    found = found.reshape(-1, done.spec.verdict.seeds)
    rows = run_sql(
        done.workspace.published,
        "SELECT arm, logprob, logprob_low, logprob_high, logprob_advantage, "
        "logprob_advantage_low, logprob_advantage_high FROM verdicts "
        "JOIN solutions USING (solution_id) WHERE problem = 'bound'",
    ).rows
    stored = {arm: values for arm, *values in rows}
    for record, own in zip(facts["arms"], found, strict=True):
        interval = ttest_1samp(own, 0.0).confidence_interval(0.95)
        expected = [own.mean(), interval.low, interval.high]
        assert stored[record["arm"]][:3] == pytest.approx(expected, rel=1e-4)
        if record["arm"] == "chosen":
            assert stored["chosen"][3:] == [None, None, None]
            continue
        against = ttest_ind(found[0], own, equal_var=False).confidence_interval(0.95)
        expected = [found[0].mean() - own.mean(), against.low, against.high]
        assert stored[record["arm"]][3:] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_texts_have_no_cosine(done: Blueprint) -> None:
    import dataclasses

    problem = done.spec.selections[0].model_copy(update={"duplicates": 0.99})
    assert duplicates_of(done.dataset, problem) is not None
    facts = done.dataset.facts.model_copy(update={"n_tokens": 9})
    with pytest.raises(ShapeError, match="token numbers have no cosine"):
        duplicates_of(dataclasses.replace(done.dataset, facts=facts), problem)
