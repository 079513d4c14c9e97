import math

import numpy as np
import pytest

from attribution.api import Scores
from attribution.bank import RetrainBank
from attribution.outputs import FALLING
from attribution.removal import removal_curve, smallest_flip
from attribution.training import Recipe, train_one_reference
from schemas.errors import ShapeError
from schemas.methods import FALLING as FALLING_IN_SPECS
from tests.attribution.linear_problem import M, N, leave_one_out, refit, refitted_logits, retraining


def test_changes_are_those_of_refits_without_the_rows() -> None:
    """At the minimum of a convex loss seeds do not matter, so refits are the truth."""
    problem, tau = retraining(seeds=2), leave_one_out()
    curve = removal_curve(tau, problem, sizes=[3, 10], random_sets=2)
    everything = np.ones(N, dtype=bool)
    for effects, order in (
        (curve.helpful, np.argsort(-tau, axis=1)),
        (curve.harmful, np.argsort(tau, axis=1)),
    ):
        for place, effect in enumerate(effects):
            # against_all = against_random + random_against_all
            found = effect.per_query + curve.random[place].per_query
            for query in range(M):
                kept = everything.copy()
                kept[order[query, : effect.size]] = False
                want = refit(kept)[query] - refit(everything)[query]
                assert found[query] == pytest.approx(want, abs=5e-3)


def test_without_helpful_rows_margins_fall_and_without_harmful_ones_they_rise() -> None:
    curve = removal_curve(leave_one_out(), retraining(), sizes=[6])
    assert curve.helpful[0].interval[1] < 0
    assert curve.harmful[0].interval[0] > 0
    assert curve.output == "margin"


def test_a_helpful_row_lowers_a_loss() -> None:
    curve = removal_curve(-leave_one_out(), retraining(output="loss"), sizes=[6])
    assert curve.helpful[0].interval[0] > 0
    assert curve.harmful[0].interval[1] < 0


def test_random_scores_do_no_more_than_random_removal() -> None:
    scores = np.random.default_rng(0).standard_normal((M, N))
    (effect,) = removal_curve(scores, retraining(), sizes=[6], random_sets=8).helpful
    assert effect.interval[0] < 0 < effect.interval[1]


def test_the_interval_against_random_removal_covers_no_effect_as_often_as_it_says() -> None:
    """Sets, models and queries that differ by noise alone, 400 times."""
    from attribution.removal import _against_control

    rng, inside = np.random.default_rng(1), 0
    for _ in range(400):
        control = rng.standard_normal((5, 1)) + 0.5 * rng.standard_normal((5, 20))
        own = rng.standard_normal((1, 20)) + 0.5 * rng.standard_normal((3, 20))
        low, high = _against_control(4, own, control, 0.95).interval
        inside += low <= 0 <= high
    assert 0.91 <= inside / 400 <= 0.99


def test_all_models_come_back_as_bank_rows_that_were_trained_as_said() -> None:
    problem = retraining(seeds=2, training=Recipe(epochs=3, batch_size=20))
    bank = removal_curve(leave_one_out(), problem, sizes=[5], random_sets=2).bank
    assert isinstance(bank, RetrainBank)
    assert len(bank) == 2 * (1 + 2 + 2 * M)
    assert bank.masks[:2].all()
    assert (bank.masks[2:].sum(axis=1) == N - 5).all()
    assert len(set(bank.seeds.tolist())) == len(bank)
    state, _ = train_one_reference(
        problem.model,
        problem.train,
        mask=bank.masks[7],
        seed=int(bank.seeds[7]),
        training=problem.training,
    )
    logits = problem.queries[0].numpy() @ state["weight"].numpy().T
    np.testing.assert_allclose(problem.outputs_of(logits[None])[0], bank.outputs[7], atol=1e-4)


def test_the_smallest_flip_is_found_by_refitting_one_row_at_a_time() -> None:
    problem, tau = retraining(seeds=1), leave_one_out()
    found = smallest_flip(tau, problem, sizes=[4, 16, 32], refine=True)
    everything = np.ones(N, dtype=bool)
    for query in range(M):
        order = np.argsort(-tau[query], kind="stable")
        want = math.inf
        for size in range(33):
            kept = everything.copy()
            kept[order[:size]] = False
            if refitted_logits(kept)[query].argmax() != problem.queries[1][query]:
                want = size
                break
        assert found.smallest[query] == want


def test_the_grid_gives_the_next_size_up_and_counts_what_was_wrong_before() -> None:
    tau = leave_one_out()
    exact = smallest_flip(tau, retraining(seeds=1), sizes=[4, 16, 32], refine=True)
    grid = smallest_flip(tau, retraining(seeds=1), sizes=[32, 4, 16])
    for fine, coarse in zip(exact.smallest, grid.smallest, strict=True):
        assert coarse == (0 if fine == 0 else next((k for k in (4, 16, 32) if k >= fine), math.inf))
    assert ((grid.smallest == 0) == ~grid.right).all()
    assert grid.share(32) >= grid.share(4)
    assert grid.random_share < grid.share(32)
    assert exact.models > grid.models


def test_the_outputs_that_should_fall_are_those_of_specs() -> None:
    assert FALLING == FALLING_IN_SPECS


def test_removing_everything_nothing_or_one_random_set_is_refused() -> None:
    for sizes in ([], [0], [N]):
        with pytest.raises(ShapeError, match="remove between 1 and 59"):
            removal_curve(leave_one_out(), retraining(), sizes=sizes)
    with pytest.raises(ShapeError, match="two or more"):
        removal_curve(leave_one_out(), retraining(), sizes=[1], random_sets=1)


def test_scores_of_another_output_are_refused() -> None:
    scores = Scores(leave_one_out(), {"output": "loss"})
    with pytest.raises(ShapeError, match="'loss' and 'margin' is retrained"):
        removal_curve(scores, retraining(), sizes=[1])


def test_a_regression_has_no_prediction_to_flip() -> None:
    train = retraining().train[0], np.zeros(N, dtype=np.float32)
    with pytest.raises(ShapeError, match="no class"):
        smallest_flip(leave_one_out(), retraining(train=train), sizes=[1])
