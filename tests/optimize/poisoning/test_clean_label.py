import numpy as np
import pytest

from optimize.poisoning.clean_label import (
    Ball,
    matching_inputs,
    moved_on,
    random_inputs,
    worst_inputs,
)
from optimize.poisoning.damage import train_poisoned
from optimize.poisoning.moves import Moves, Universe, joined
from optimize.poisoning.search import Lens
from schemas.errors import InfeasibleProblem, ShapeError
from tests.attribution.linear_problem import M, N, retraining, rows

TARGETS = np.arange(5)
WEIGHTS = np.isin(np.arange(M), TARGETS) / len(TARGETS)
RADIUS, BUDGET = 0.5, 12


@pytest.fixture(scope="module")
def lens() -> Lens:
    return Lens(retraining=retraining(), checkpoints=1)


@pytest.fixture(scope="module")
def ball() -> Ball:
    return Ball.within(rows(N, 1)[0], RADIUS)


def test_moved_inputs_raise_the_targets_loss_more_than_random_ones(lens: Lens, ball: Ball) -> None:
    """After retraining a logistic regression, against 20 random sets of as many rows."""
    first = worst_inputs(lens, WEIGHTS, ball=ball, budget=BUDGET)
    second = moved_on(lens, WEIGHTS, first, ball=ball, number=1)
    rng = np.random.default_rng(0)
    random = [random_inputs(rows(N, 1), ball, BUDGET, rng) for _ in range(20)]
    universe = Universe.of_perturbations(rows(N, 1), [first, second, *random])
    losses = train_poisoned(lens.retraining, universe).losses(TARGETS).mean(axis=1)
    assert losses[1:3].min() > losses[3:].max()
    assert losses[1:3].min() > losses[0]
    inputs, labels = rows(N, 1)
    for one in (first, second, *random):
        assert len(np.unique(one.rows)) == BUDGET
        np.testing.assert_array_equal(one.labels, labels[one.rows])
        assert np.abs(one.inputs - inputs[one.rows]).max() <= RADIUS + 1e-6
        assert (one.inputs >= ball.low).all()
        assert (one.inputs <= ball.high).all()


def test_only_a_contributors_rows_are_moved(lens: Lens, ball: Ball) -> None:
    own = np.arange(20, 40)
    moves = worst_inputs(lens, WEIGHTS, ball=ball, budget=5, rows=own)
    assert np.isin(moves.rows, own).all()
    labels = rows(N, 1)[1]
    found = matching_inputs(
        lens, rows(M, 2)[0][:1], 1, ball=ball, budget=3, rows=own, steps=5, restarts=1
    )
    assert np.isin(found.rows, own[labels[own] == 1]).all()
    with pytest.raises(InfeasibleProblem, match="21 rows are to be moved of 20"):
        worst_inputs(lens, WEIGHTS, ball=ball, budget=21, rows=own)


def test_a_universe_holds_each_moved_row_once_and_in_an_order_of_its_own(ball: Ball) -> None:
    train, rng = rows(N, 1), np.random.default_rng(0)
    one, other = (random_inputs(train, ball, 4, rng, rows=np.arange(6)) for _ in range(2))
    universe = Universe.of_perturbations(train, [one, other, one])
    inputs, labels = universe.train
    assert len(inputs) == N + 8
    order = np.argsort(one.rows)
    for place in (0, 2):
        mask = universe.masks[place]
        assert mask.sum() == N
        assert not mask[one.rows].any()
        np.testing.assert_array_equal(inputs[N:][mask[N:]], one.inputs[order])
        np.testing.assert_array_equal(labels[N:][mask[N:]], one.labels[order])


def test_moves_that_do_not_fit_are_refused(ball: Ball) -> None:
    train = rows(N, 1)
    moves = random_inputs(train, ball, 4, np.random.default_rng(0))
    with pytest.raises(ShapeError, match="a row twice or its label"):
        Universe.of_perturbations(train, [joined([moves, moves])])
    with pytest.raises(ShapeError, match="4 rows and 3 inputs"):
        Moves(rows=moves.rows, labels=moves.labels, inputs=moves.inputs[:3])
    with pytest.raises(ShapeError, match="some sets move inputs"):
        joined([moves, Moves(rows=moves.rows, labels=moves.labels)])
