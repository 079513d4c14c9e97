"""Slices against all as large sets of rows, and against random ones."""

import itertools

import numpy as np
import pytest

from attribution.slices import matched_rows, slice_test
from attribution.streams import stream
from schemas.errors import ShapeError


def test_expectation_and_spread_are_those_of_all_equally_many_rows_of_the_strata() -> None:
    rng = stream(0, "labels", 1)
    effects, strata = rng.standard_normal(9), np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    member = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0], dtype=bool)
    sums = [
        effects[list(pair)].sum() + effects[4 + one]
        for pair in itertools.combinations(range(4), 2)
        for one in range(5)
    ]
    found = slice_test(effects, member[None], strata=strata, permutations=200)
    assert found.expected[0] == pytest.approx(np.mean(sums))
    assert found.spread[0] == pytest.approx(np.std(sums))
    assert found.effect[0] == pytest.approx(effects[member].sum())
    assert found.standing[0] == pytest.approx((found.effect - found.expected)[0] / np.std(sums))


def test_the_p_value_of_one_slice_is_its_share_of_all_permutations() -> None:
    effects = np.array([3.0, -1.0, 0.5, 2.0, -4.0, 0.2, 1.0])
    member = np.array([0, 1, 0, 0, 1, 0, 0], dtype=bool)
    sums = [effects[list(pair)].sum() for pair in itertools.combinations(range(7), 2)]
    found = slice_test(effects, member[None], permutations=4_000)
    assert found.p_low[0] == pytest.approx(
        np.mean(np.array(sums) <= effects[member].sum()), abs=0.01
    )
    assert found.p_high[0] == pytest.approx(1.0, abs=1e-3)


def test_the_best_of_many_random_slices_is_surprising_as_rarely_as_it_says() -> None:
    rng = stream(3, "labels", 1)
    surprises = 0
    for trial in range(120):
        effects = rng.standard_t(3, 200) + np.repeat([0.0, 5.0], 100)
        members = rng.random((25, 200)) < 0.1
        strata = np.repeat([0, 1], 100)
        found = slice_test(effects, members, strata=strata, permutations=199, seed=trial)
        surprises += found.p_low.min() <= 0.05
    # Binomial(120, 0.05) exceeds 14 once in 500.
    assert surprises <= 14


def test_a_harmful_slice_stands_out_and_a_whole_class_does_not() -> None:
    rng = stream(4, "labels", 1)
    strata = np.repeat([0, 1, 2], 60)
    effects = np.array([1.0, -1.0, 0.0])[strata] + 0.5 * rng.standard_normal(180)
    planted = np.zeros(180, dtype=bool)
    planted[60:75] = True
    effects[planted] -= 0.8
    others = rng.random((20, 180)) < 0.15
    found = slice_test(effects, np.vstack([planted, strata == 1, others]), strata=strata)
    assert found.p_low[0] < 0.01
    assert found.standing[1] == 0.0
    assert found.p_low[1] > 0.9
    assert found.p_low[2:].min() > 0.05
    # Against any random rows, a rival class would be to blame for what classes do.
    assert slice_test(effects, (strata == 1)[None]).p_low[0] < 0.01


def test_slices_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="one of each"):
        slice_test(np.zeros(4), np.ones((2, 5), dtype=bool))
    with pytest.raises(ShapeError, match="no row"):
        slice_test(np.zeros(4), np.zeros((2, 4), dtype=bool))


def test_matched_rows_are_as_many_of_each_class() -> None:
    strata = np.repeat([0, 1, 2], (5, 50, 20))
    member = np.zeros(75, dtype=bool)
    member[[0, 1, 2, 3, 4, 10, 11]] = True
    drawn = [matched_rows(member, strata, stream(0, "arms", number)) for number in range(20)]
    counts = np.array([np.bincount(strata[rows], minlength=3) for rows in drawn])
    assert (counts == [5, 2, 0]).all()
    assert len({rows.tobytes() for rows in drawn}) > 1
