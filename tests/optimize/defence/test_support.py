import itertools

import numpy as np
import pytest

from optimize.defence.support import _best_swap, _swap, self_supporting, support_of
from schemas.errors import ShapeError


def naive(matrix: np.ndarray, subset: tuple[int, ...]) -> float:
    """F from its formula, entry by entry."""
    n, s = len(matrix), len(subset)
    total = 0.0
    for i in subset:
        total -= s / n * sum(matrix[i, j] for j in range(n) if j != i)
        total += sum(matrix[i, j] for j in subset if j != i)
    return total


def tied(matrix: np.ndarray, subset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A + A^T without diagonal, and s_x of every row, computed anew."""
    both = matrix + matrix.T
    np.fill_diagonal(both, 0.0)
    received = matrix.sum(axis=1) - matrix.diagonal()
    return both, both[:, subset].sum(axis=1) - subset.sum() / len(matrix) * received


def test_the_value_is_that_of_the_formula() -> None:
    matrix = np.random.default_rng(0).standard_normal((9, 9))
    for subset in ((1,), (0, 4, 8), (2, 3, 5, 7)):
        inside = np.isin(np.arange(9), subset)
        assert support_of(matrix, inside) == pytest.approx(naive(matrix, subset))


def test_updated_sums_after_many_swaps_are_those_computed_anew() -> None:
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((30, 30))
    inside = np.arange(30) < 8
    both, ties = tied(matrix, inside)
    for _ in range(200):
        a, r = rng.choice(np.flatnonzero(~inside)), rng.choice(np.flatnonzero(inside))
        before = support_of(matrix, inside)
        gain = ties[a] - ties[r] - both[r, a]
        _swap(both, ties, inside, a, r)
        assert support_of(matrix, inside) - before == pytest.approx(gain, abs=1e-9)
        np.testing.assert_allclose(ties, tied(matrix, inside)[1], atol=1e-9)
    assert inside.sum() == 8


def test_the_best_swap_is_the_best_of_all_swaps_of_rows_that_may_move() -> None:
    rng = np.random.default_rng(2)
    matrix = rng.standard_normal((12, 12))
    inside, moved = np.arange(12) < 4, np.isin(np.arange(12), [0, 7])
    both, ties = tied(matrix, inside)
    gains = {}
    for a, r in itertools.product(range(4, 12), range(4)):
        if not moved[a] and not moved[r]:
            after = inside.copy()
            after[[a, r]] = True, False
            gains[a, r] = support_of(matrix, after) - support_of(matrix, inside)
    a, r, gain = _best_swap(both, ties, inside, moved)
    assert gain == pytest.approx(max(gains.values()))
    assert gains[a, r] == pytest.approx(gain)


@pytest.mark.parametrize("seed", range(4))
def test_the_best_subset_of_a_few_rows_is_found(seed: int) -> None:
    matrix = np.random.default_rng(seed).standard_normal((12, 12))
    found = self_supporting(matrix, sizes=[2, 4], restarts=10)
    for size, value, subset in zip(found.sizes, found.values, found.subsets, strict=True):
        best = max(naive(matrix, rows) for rows in itertools.combinations(range(12), size))
        assert subset.sum() == size
        assert value == pytest.approx(best)
        assert support_of(matrix, subset) == pytest.approx(value)


def test_a_planted_group_that_supports_only_itself_is_most_suspicious() -> None:
    rng = np.random.default_rng(3)
    matrix, planted = rng.standard_normal((150, 150)), rng.permutation(150) < 15
    matrix[np.ix_(planted, planted)] += 2
    # An easy row is supported by everyone: by a random set as much as by its own.
    matrix[np.flatnonzero(~planted)[0]] += 3
    found = self_supporting(matrix, sizes=[15, 30], restarts=5)
    assert set(np.argsort(-found.suspicion)[:15]) == set(np.flatnonzero(planted))
    again = self_supporting(matrix, sizes=[15, 30], restarts=5)
    np.testing.assert_array_equal(found.suspicion, again.suspicion)


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ShapeError, match="finite effects"):
        self_supporting(np.zeros((3, 4)))
    with pytest.raises(ShapeError, match="none below half of 6 rows"):
        self_supporting(np.zeros((6, 6)), sizes=[3])
