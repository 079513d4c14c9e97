"""MRR and recall against enumeration of ties; their intervals; the choice of rows."""

import itertools

import numpy as np
import pytest

from attribution.api import Scores
from attribution.streams import stream
from attribution.tracing import (
    expected_recall,
    expected_reciprocal_rank,
    retrieval,
    top_rows_of,
)
from schemas.errors import ShapeError


def every_order(scores: np.ndarray) -> list[tuple[int, ...]]:
    """All orders of the rows in which no row stands before one of a higher score."""
    orders = itertools.permutations(range(len(scores)))
    return [order for order in orders if np.all(np.diff(scores[list(order)]) <= 0)]


@pytest.mark.parametrize("number", range(40))
def test_ties_count_as_the_mean_over_all_their_orders(number: int) -> None:
    rng = stream(number)
    scores = rng.integers(0, 3, 7).astype(float)
    proponent = rng.random(7) < 0.4
    proponent[rng.integers(7)] = True
    orders = every_order(scores)
    ranks = [1 + min(order.index(row) for row in np.flatnonzero(proponent)) for order in orders]
    want = np.mean([1 / rank for rank in ranks])
    assert expected_reciprocal_rank(scores, proponent) == pytest.approx(want)
    for k in (1, 3, 7):
        found = [proponent[list(order[:k])].sum() / proponent.sum() for order in orders]
        assert expected_recall(scores, proponent, k) == pytest.approx(np.mean(found))


def test_scores_that_know_nothing_gain_nothing_by_where_the_proponents_lie() -> None:
    proponents = np.zeros((3, 50), dtype=bool)
    proponents[0, :5], proponents[1, -5:], proponents[2, 20:25] = True, True, True
    found = retrieval(np.zeros((3, 50)), proponents, k=10)
    assert np.ptp(found.reciprocal_rank) == 0
    np.testing.assert_allclose(found.recall, 10 / 50)


def test_without_ties_they_are_the_textbook_numbers() -> None:
    scores = -np.tile(np.arange(20.0), (2, 1))
    found = retrieval(scores, [[3, 8], [0, 1, 15]], k=5)
    np.testing.assert_allclose(found.reciprocal_rank, [1 / 4, 1])
    np.testing.assert_allclose(found.recall, [1 / 2, 2 / 3])
    assert found.mrr[0] == pytest.approx(5 / 8)


def test_queries_without_a_proponent_are_left_out() -> None:
    found = retrieval(stream(0).random((3, 9)), [[1], [], [2, 3]], k=2)
    np.testing.assert_array_equal(found.queries, [0, 2])


def test_a_loss_ranks_from_its_lowest_score() -> None:
    tau = stream(1).standard_normal((4, 30))
    truth = stream(2).random((4, 30)) < 0.2
    turned = retrieval(Scores(-tau, {"output": "loss"}), truth)
    assert turned.mrr == retrieval(tau, truth).mrr
    np.testing.assert_array_equal(
        top_rows_of(Scores(-tau, {"output": "loss"}), 5), top_rows_of(tau, 5)
    )


def test_intervals_hold_the_true_mean_about_as_often_as_they_say() -> None:
    """Samples of queries are judged, and the mean of the population they come from is known."""
    rng = stream(0)
    scores, truth = rng.standard_normal((1_000, 40)), np.zeros((1_000, 40), dtype=bool)
    truth[:, 0] = True
    scores[:, 0] += 2 * rng.random(1_000)
    mean, held = retrieval(scores, truth).mrr[0], 0
    for seed in range(60):
        drawn = stream(seed, 1).integers(1_000, size=40)
        _, low, high = retrieval(scores[drawn], truth[drawn]).mrr
        held += low <= mean <= high
    assert held / 60 >= 0.85
    assert held < 60


def test_a_pairing_by_query_knows_more_than_two_intervals() -> None:
    rng = stream(3)
    truth = rng.random((80, 60)) < 0.05
    base = rng.standard_normal((80, 60)) + rng.random((80, 1)) * 4 * truth
    good, worse = retrieval(base + 0.3 * truth, truth), retrieval(base, truth)
    (gain, low, high), _ = good.minus(worse)
    assert gain == pytest.approx(good.mrr[0] - worse.mrr[0])
    assert high - low < 0.5 * (good.mrr[2] - good.mrr[1])
    with pytest.raises(ShapeError, match="other queries or for another k"):
        good.minus(retrieval(base, truth, k=3))


def test_rows_of_one_score_are_taken_at_random_and_higher_ones_first() -> None:
    scores = np.zeros((200, 30))
    scores[:, 29] = 1
    rows = top_rows_of(scores, 3)
    assert (rows[:, 0] == 29).all()
    counts = np.bincount(rows[:, 1:].ravel(), minlength=30)[:29]
    assert counts.min() > 0
    assert counts.max() < 40
    np.testing.assert_array_equal(rows, top_rows_of(scores, 3))


@pytest.mark.parametrize(
    ("scores", "proponents", "k", "match"),
    [
        (np.zeros(3), [[0]], 1, "give \\[n_query, n_train\\]"),
        (np.full((1, 3), np.nan), [[0]], 1, "finite"),
        (np.zeros((1, 3)), [[0], [1]], 1, "one each"),
        (np.zeros((1, 3)), [[3]], 1, "are no rows"),
        (np.zeros((1, 3)), [[]], 1, "no query has a proponent"),
        (np.zeros((1, 3)), np.zeros((2, 3), dtype=bool), 1, "proponents have shape"),
        (np.zeros((1, 3)), [[0]], 4, "between 1 and 3"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    scores: np.ndarray, proponents: object, k: int, match: str
) -> None:
    with pytest.raises(ShapeError, match=match):
        retrieval(scores, proponents, k=k)  # type: ignore[arg-type]
