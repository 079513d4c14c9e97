import itertools
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from attribution.retraining import Retraining
from attribution.training import Recipe
from optimize.poisoning.damage import (
    DamageScale,
    changes_to_come,
    fit_scale,
    train_poisoned,
)
from optimize.poisoning.moves import Moves, Universe, flips, random_flips, worst_moves
from optimize.poisoning.problem import solve_poisoning
from schemas.errors import InfeasibleProblem, ShapeError
from tests.attribution.linear_problem import D, K, M, N, rows


def test_every_flip_moves_a_row_to_another_class_once() -> None:
    labels = np.array([0, 2, 1, 1])
    moves = flips(labels, 3, rows=[0, 1, 3])
    pairs = set(zip(moves.rows.tolist(), moves.labels.tolist(), strict=True))
    assert pairs == {(0, 1), (0, 2), (1, 0), (1, 1), (3, 0), (3, 2)}
    assert len(moves) == len(pairs)


def test_the_worst_flips_and_insertions_are_those_of_brute_force() -> None:
    """Every relabelling of six rows within the budget, and every insertion of six candidates."""
    rng = np.random.default_rng(0)
    labels, budget, allowance = rng.integers(0, 3, 6), 2, 0.4
    target, side = rng.standard_normal((2, 6, 3))
    for own in (labels, None):
        moves = flips(labels, 3) if own is not None else Moves(rows=np.arange(6), labels=labels)
        taken = np.zeros((2, 6)) if own is None else np.stack([target, side])[:, np.arange(6), own]
        best = 0.0
        choices = range(3) if own is not None else (0, 1)
        for chosen in itertools.product(choices, repeat=6):
            if own is not None:  # a label for each row
                moved = [row for row in range(6) if chosen[row] != labels[row]]
                new = np.array(chosen)
            else:  # whether each candidate is in
                moved, new = [row for row in range(6) if chosen[row]], labels
            if len(moved) > budget:
                continue
            change = [
                sum(effects[row, new[row]] - taken[place, row] for row in moved)
                for place, effects in enumerate((target, side))
            ]
            if change[1] >= -allowance:
                best = max(best, -change[0])
        problem = worst_moves(moves, target, side, budget=budget, own=own, allowance=allowance)
        assert solve_poisoning(problem).value == pytest.approx(best, abs=1e-12)


def test_random_flips_change_labels_and_may_stay_inside_a_class() -> None:
    labels = np.arange(40) % 4
    for inside in (None, 2):
        moves = random_flips(labels, 4, 9, np.random.default_rng(0), inside=inside)
        assert len(np.unique(moves.rows)) == 9
        assert (moves.labels != labels[moves.rows]).all()
        assert inside is None or (labels[moves.rows] == inside).all()
    mine = random_flips(labels, 4, 3, np.random.default_rng(0), inside=2, rows=[2, 3, 6, 7, 10])
    assert sorted(mine.rows.tolist()) == [2, 6, 10]
    with pytest.raises(InfeasibleProblem, match="11 flips are asked of 10 rows"):
        random_flips(labels, 4, 11, np.random.default_rng(0), inside=2)


def test_a_mask_of_the_universe_holds_exactly_the_poisoned_rows() -> None:
    train = rows(N, 1)
    sets = [random_flips(train[1], K, 5, np.random.default_rng(seed)) for seed in range(4)]
    universe = Universe.of_flips(train, [*sets, sets[0]])
    np.testing.assert_array_equal(universe.masks[0], universe.masks[4])
    assert len(universe.candidates) <= 20
    for mask, moves in zip(universe.masks, [*sets, sets[0]], strict=True):
        flipped = train[1].copy()
        flipped[moves.rows] = moves.labels
        kept = [part[mask] for part in universe.train]
        got = sorted(zip(kept[0].tolist(), kept[1].tolist(), strict=True))
        assert got == sorted(zip(train[0].tolist(), flipped.tolist(), strict=True))
    alone = Universe.of_flips(train, sets[:1])
    for part, whole in zip(alone.train, universe.train, strict=True):
        np.testing.assert_array_equal(part[alone.masks[0]], whole[universe.masks[0]])
    inserted = Universe.of_insertions(train, train[0] + 1, sets)
    assert inserted.masks.sum(axis=1).tolist() == [N + 5] * 4
    assert inserted.masks[:, :N].all()


def test_scores_of_the_universe_sum_to_the_gains_of_the_moves() -> None:
    rng = np.random.default_rng(1)
    train, effects = rows(N, 1), rng.standard_normal((N, K))
    sets = [random_flips(train[1], K, 6, rng) for _ in range(3)]
    universe = Universe.of_flips(train, sets)
    changes = (universe.masks.astype(float) - universe.clean) @ universe.effects(effects)
    want = [moves.gains(effects, train[1]).sum() for moves in sets]
    np.testing.assert_allclose(changes, want, rtol=1e-12)
    pool = rng.standard_normal((N, K))
    universe = Universe.of_insertions(train, train[0], sets)
    changes = (universe.masks.astype(float) - universe.clean) @ universe.effects(effects, pool)
    np.testing.assert_allclose(changes, [moves.gains(pool).sum() for moves in sets], rtol=1e-12)


def test_models_of_a_universe_are_models_of_the_flipped_labels() -> None:
    """Full-batch training forgets the order of rows, so both ways give one minimum."""
    train = rows(N, 1)
    retraining = Retraining(
        model=nn.Linear(D, K),
        train=train,
        queries=rows(M, 2),
        training=Recipe(lr=0.5, momentum=0.9, weight_decay=0.05, epochs=150, batch_size=N),
        seeds=2,
        device="cpu",
    )
    moves = random_flips(train[1], K, 8, np.random.default_rng(2))
    found = train_poisoned(retraining, Universe.of_flips(train, [moves]))
    flipped = train[1].copy()
    flipped[moves.rows] = moves.labels
    everything = np.ones((1, N), dtype=bool)
    for number, labels in enumerate((train[1], flipped)):
        alone = replace(retraining, train=(train[0], labels)).on(everything)
        np.testing.assert_allclose(found.found.outputs[number], alone.outputs[0], atol=5e-3)
    change = found.found.outputs[1].mean() - found.found.outputs[0].mean()
    assert found.changes(np.full(M, 1 / M)) == pytest.approx([change])
    logits = found.found.logits.astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(axis=3, keepdims=True)
    own = rows(M, 2)[1]
    want = -np.log(chances[:, :, np.arange(M), own]).mean(axis=2)
    np.testing.assert_allclose(found.losses(np.arange(M)), want, rtol=1e-6)
    right = (chances.argmax(axis=3) == own).mean(axis=2)
    np.testing.assert_allclose(found.accuracies(np.arange(M)), right)


def test_the_scale_of_saturating_effects_is_found() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.uniform(-20, 300, 60)
    observed = 0.35 * np.sign(predicted) * np.abs(predicted) ** 0.5
    found = fit_scale(predicted, observed)
    assert found.power == 0.5
    assert found.scale == pytest.approx(0.35)
    np.testing.assert_allclose(found(predicted), observed, rtol=1e-6)
    noisy = fit_scale(predicted, observed + rng.standard_normal(60))
    assert 0.8 < noisy.error < 1.2


def test_the_leave_one_out_error_is_that_of_fitting_without_the_set() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 9, 12), rng.uniform(1, 3, 12)
    found = fit_scale(x, y, powers=[0.5])
    left_out = []
    for number in range(12):
        rest = np.arange(12) != number
        alone = fit_scale(x[rest], y[rest], powers=[0.5])
        left_out.append(y[number] - alone(x[number]))
    assert found.error == pytest.approx(np.sqrt(np.mean(np.square(left_out))))


def test_predictions_that_point_the_wrong_way_predict_nothing() -> None:
    found = fit_scale([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0])
    assert found.scale == 0
    np.testing.assert_array_equal(found([5.0]), [0.0])


def test_what_a_calibrated_bound_allows_is_given_back_in_predicted_units() -> None:
    scale = DamageScale(scale=0.3, power=0.6, error=0.0, n=3)
    assert scale(scale.inverse(2.5)) == pytest.approx(2.5)
    assert DamageScale(scale=0.0, power=1.0, error=0.0, n=3).inverse(1.0) == np.inf


@pytest.mark.parametrize(
    ("predicted", "observed", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0], "three poisoned sets or more"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "three poisoned sets or more"),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], "0 of 3 predictions differ from 0"),
        ([0.0, 2.0, 0.0], [1.0, 2.0, 3.0], "1 of 3 predictions differ from 0"),
        ([1.0, np.nan, 0.0], [1.0, 2.0, 3.0], "2 of them and 3 observations are finite"),
    ],
)
def test_a_scale_of_too_little_is_refused(predicted: list, observed: list, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        fit_scale(predicted, observed)


def test_sets_that_flip_nothing_are_refused() -> None:
    train = rows(N, 1)
    with pytest.raises(ShapeError, match="to its own label"):
        Universe.of_flips(train, [Moves(rows=np.array([3]), labels=train[1][[3]])])
    with pytest.raises(ShapeError, match="one label for each row"):
        Moves(rows=np.arange(3), labels=np.arange(2))


@pytest.mark.parametrize("proportional", [False, True])
def test_expected_changes_hold_what_is_to_come_as_often_as_they_say(*, proportional: bool) -> None:
    """By simulation, of models whose spread is the same or grows with their mean."""
    rng, levels, held = np.random.default_rng(0), np.array([1.0, 2.0, 4.0]), []
    spread = 0.3 * (levels if proportional else np.ones(3))

    def models(count: int) -> np.ndarray:
        return levels[:, None] + spread[:, None] * rng.standard_normal((3, count))

    for _ in range(1_500):
        clean = 0.5 + 0.1 * rng.standard_normal(10)
        means, halves = changes_to_come(
            models(5), clean, others=models(3), coming=4, proportional=proportional
        )
        after = models(4).mean(axis=1) - (0.5 + 0.1 * rng.standard_normal(4)).mean()
        held.append(np.abs(after - means) < halves)
    share = np.mean(held, axis=0)
    assert share.min() > 0.92
    assert share.max() < 0.98
    with pytest.raises(ShapeError, match="give some models of each set"):
        changes_to_come(levels, clean, others=models(2), coming=2)
    with pytest.raises(ShapeError, match="need them above 0"):
        changes_to_come(-models(2), clean, others=models(2), coming=2, proportional=True)
