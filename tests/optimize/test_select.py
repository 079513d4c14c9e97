import itertools
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from optimize.problem import Partition, Selection, Solution, Status
from optimize.select import balanced_subset, random_subset, select, solve_selection
from optimize.selection import thresholds
from optimize.selection.programme import Programme
from schemas.errors import InfeasibleProblem, ShapeError


@st.composite
def problems(draw: st.DrawFn) -> dict:
    """Small pools with ties, and quotas that need not be feasible."""
    n = draw(st.integers(1, 11))
    n_groups = draw(st.integers(1, 4))
    quota = st.dictionaries(st.integers(0, n_groups - 1), st.integers(0, 5), max_size=n_groups)
    return {
        "utility": np.array(draw(st.lists(st.integers(-4, 4), min_size=n, max_size=n)), float),
        "size": draw(st.integers(1, n)),
        "groups": np.array(draw(st.lists(st.integers(0, n_groups - 1), min_size=n, max_size=n))),
        "minimum": draw(quota),
        "maximum": draw(quota),
    }


def partitioned(
    utility: object, size: object, groups: object = None, minimum=None, maximum=None, names=None
) -> Solution:
    """The selection of a problem with one partition."""
    parts = []
    if groups is not None:
        parts = [Partition("class", groups, minimum or {}, maximum or {}, names or {})]
    return select(utility, size=size, partitions=parts)


def feasible_choices(problem: dict) -> list[tuple[int, ...]]:
    def fits(rows: tuple[int, ...]) -> bool:
        chosen = problem["groups"][list(rows)].tolist()
        return all(chosen.count(g) >= low for g, low in problem["minimum"].items()) and all(
            chosen.count(g) <= high for g, high in problem["maximum"].items()
        )

    every = itertools.combinations(range(len(problem["utility"])), problem["size"])
    return [rows for rows in every if fits(rows)]


@settings(max_examples=400, deadline=None)
@given(problems())
def test_the_choice_is_the_best_of_all_choices_or_none_exists(problem: dict) -> None:
    choices = feasible_choices(problem)
    if not choices:
        with pytest.raises(InfeasibleProblem):
            partitioned(**problem)
        return
    solution = partitioned(**problem)
    assert tuple(np.flatnonzero(solution.choice)) in choices
    best = max(problem["utility"][list(rows)].sum() for rows in choices)
    assert solution.value == best
    assert solution.status is Status.OPTIMAL
    assert solution.gap == 0
    assert solution.bound == solution.value
    assert solution.size == problem["size"]


@settings(max_examples=200, deadline=None)
@given(problems())
def test_prices_support_the_choice(problem: dict) -> None:
    """A chosen row is worth its threshold or more, a rejected one its threshold or less."""
    assume(feasible_choices(problem))
    solution = partitioned(**problem)
    groups = problem["groups"]
    price = np.array([solution.prices.get(f"class {g}", 0.0) for g in groups])
    surplus = problem["utility"] - solution.prices["size"] - price
    assert (surplus[solution.choice] >= -1e-12).all()
    assert (surplus[~solution.choice] <= 1e-12).all()
    for group in np.unique(groups):
        taken = int(solution.choice[groups == group].sum())
        worth = solution.prices.get(f"class {group}", 0.0)
        if worth > 0:
            assert taken == problem["maximum"][group]
        if worth < 0:
            assert taken == problem["minimum"][group]


@settings(max_examples=100, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_the_value_does_not_depend_on_the_order_of_the_rows(problem: dict, random: Random) -> None:
    assume(feasible_choices(problem))
    order = list(range(len(problem["utility"])))
    random.shuffle(order)
    moved = {
        **problem,
        "utility": problem["utility"][order],
        "groups": problem["groups"][order],
    }
    assert partitioned(**moved).value == partitioned(**problem).value


def test_without_quotas_the_choice_is_the_top_rows_and_ties_go_to_the_lower_index() -> None:
    solution = select([1.0, 3.0, 2.0, 2.0, 2.0], size=3)
    assert solution.choice.tolist() == [False, True, True, True, False]
    assert solution.prices == {"size": 2.0}
    assert "last row kept is worth 2" in solution.sentence


def test_a_size_that_was_sought_too_is_given_no_price() -> None:
    sought = select([1.0, 3.0, 2.0, 2.0, 2.0], size=3, size_priced=False)
    assert sought.choice.tolist() == [False, True, True, True, False]
    assert sought.prices == {}
    assert "worth" not in sought.sentence
    assert sought.sentence.startswith("No other choice of 3 rows has a higher")


def test_a_row_more_that_would_harm_is_said_to_cost() -> None:
    duplicates = np.arange(5)
    harmful = select([-1.0, 3.0, -2.0, 2.0, -4.0], size=3, duplicates=duplicates)
    assert harmful.prices["size"] < 0
    assert f"One more row would cost at least {-harmful.prices['size']:.3g}." in harmful.sentence
    useful = select([1.0, 3.0, 2.0, 2.0, 2.0], size=3, duplicates=duplicates)
    assert "One more row would add up to 2." in useful.sentence


def test_the_same_problem_gives_the_same_choice_every_time() -> None:
    utility = np.random.default_rng(0).integers(0, 3, 500).astype(float)
    groups = np.arange(500) % 7
    first = partitioned(utility, size=100, groups=groups, minimum={2: 20}, maximum={0: 3})
    again = partitioned(utility, size=100, groups=groups, minimum={2: 20}, maximum={0: 3})
    np.testing.assert_array_equal(first.choice, again.choice)


def test_a_binding_maximum_is_worth_what_one_more_place_gains() -> None:
    utility, groups = np.array([9.0, 8.0, 7.0, 4.0, 3.0, 1.0]), np.array([0, 0, 0, 1, 1, 1])
    tight = partitioned(utility, size=3, groups=groups, maximum={0: 1})
    loose = partitioned(utility, size=3, groups=groups, maximum={0: 2})
    assert tight.prices["class 0"] == loose.value - tight.value == 5.0


def test_a_binding_minimum_has_a_negative_price() -> None:
    solution = partitioned(
        [9.0, 8.0, 7.0, 1.0], size=3, groups=[0, 0, 0, 1], minimum={1: 1}, names={1: "seven"}
    )
    assert solution.choice.tolist() == [True, True, False, True]
    assert solution.prices["class seven"] == -7.0
    assert "class seven costs up to 7" in solution.sentence


def test_large_real_valued_pools_have_no_gap() -> None:
    rng = np.random.default_rng(1)
    utility, groups = rng.standard_normal(200_000) * 1e-6 - 3, rng.integers(0, 50, 200_000)
    solution = partitioned(
        utility,
        size=80_000,
        groups=groups,
        minimum=dict.fromkeys(range(10), 2_000),
        maximum=dict.fromkeys(range(5, 30), 2_500),
    )
    assert solution.status is Status.OPTIMAL
    assert solution.gap == 0


def test_the_bound_would_expose_a_wrong_choice() -> None:
    problem = Selection(utility=np.array([3.0, 2.0, 1.0]), size=1)
    programme = Programme.of(problem, problem.pieces)
    pool = thresholds._Pool.of(programme)
    assert pool is not None
    wrong = pool.prices(np.array([False, True, False]))
    assert programme.bound(wrong, np.ones(1)) > 2.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 7}, "size 7 is larger than the pool of 6"),
        ({"size": 0}, "size is 0; choose at least 1 row"),
        (
            {"minimum": {0: 2, 1: 2}},
            "classes ask for at least 4 rows, size is 3",
        ),
        ({"minimum": {1: 4}, "size": 5}, "class 1 has 3 rows, quota asks for at least 4"),
        ({"minimum": {9: 1}}, "class 9 has 0 rows, quota asks for at least 1"),
        ({"minimum": {0: 2}, "maximum": {0: 1}}, "minimum of 2 and a maximum of 1"),
        ({"maximum": {0: 1, 1: 1}}, "classes allow at most 2 rows, size is 3"),
    ],
)
def test_an_infeasible_problem_names_its_conflict(changes: dict, message: str) -> None:
    problem = {"utility": np.arange(6.0), "size": 3, "groups": np.array([0, 0, 0, 1, 1, 1])}
    with pytest.raises(InfeasibleProblem, match=message):
        partitioned(**{**problem, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"utility": [1.0, np.nan, 2.0]}, "utility of row 1 is nan"),
        ({"utility": [1.0, 2.0, np.inf]}, "utility of row 2 is inf"),
        ({"utility": [[[1.0, 2.0, 3.0]]]}, "one number for each row"),
        ({"size": 1.5}, "size is 1.5; give a whole number"),
        ({"size": -1}, "size is -1"),
        ({"groups": [0, 1]}, "the pool has 3 rows; give one integer for each row"),
        ({"groups": [0.0, 1.0, 2.0]}, "one integer for each row"),
        ({"size": (1, 2, 3)}, "give a number, or the least and the most"),
    ],
)
def test_a_malformed_problem_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        partitioned(**{"utility": [1.0, 2.0, 3.0], "size": 1, **changes})


def test_a_solution_is_frozen_and_its_gap_is_relative() -> None:
    solution = Solution(status=Status.FEASIBLE, choice=np.array([True]), value=90.0, bound=100.0)
    assert solution.gap == pytest.approx(0.1)
    with pytest.raises(AttributeError):
        solution.value = 1.0  # type: ignore[misc]


def test_a_problem_can_be_stated_before_it_is_solved() -> None:
    problem = Selection(utility=np.array([1.0, 2.0]), size=1)
    assert problem.kind == "select"
    assert solve_selection(problem).choice.tolist() == [False, True]


def test_random_arms_have_the_size_of_the_choice_they_are_compared_with() -> None:
    """Trap 28: a selected set is judged against random sets of equal size."""
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], [50, 5, 20])
    for size in (1, 14, 30, 75):
        assert random_subset(75, size, rng).sum() == size
        assert balanced_subset(groups, size, rng).sum() == size


def test_every_row_is_as_likely_in_a_random_arm() -> None:
    rng = np.random.default_rng(1)
    often = np.mean([random_subset(20, 5, rng) for _ in range(4_000)], axis=0)
    np.testing.assert_allclose(often, 0.25, atol=0.04)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.data())
def test_balanced_arms_are_as_equal_as_the_pool_allows(
    rows: list[int], data: st.DataObject
) -> None:
    assume(sum(rows))
    groups = np.repeat(np.arange(len(rows)), rows)
    size = data.draw(st.integers(1, len(groups)))
    chosen = balanced_subset(groups, size, np.random.default_rng(0))
    taken = np.bincount(groups[chosen], minlength=len(rows))
    assert taken.sum() == size
    unfilled = taken[taken < rows]
    if len(unfilled):
        assert taken.max() - unfilled.min() <= 1


def test_a_balanced_arm_draws_its_rows_at_random_within_each_class() -> None:
    rng = np.random.default_rng(2)
    groups = np.repeat([0, 1], [4, 16])
    often = np.mean([balanced_subset(groups, 8, rng) for _ in range(3_000)], axis=0)
    np.testing.assert_allclose(often, np.repeat([1.0, 0.25], [4, 16]), atol=0.04)


def test_arms_larger_than_the_pool_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InfeasibleProblem, match="larger than the pool of 3"):
        random_subset(3, 4, rng)
    with pytest.raises(InfeasibleProblem, match="larger than the pool of 3"):
        balanced_subset([0, 0, 1], 4, rng)
    with pytest.raises(ShapeError, match="at least 1"):
        random_subset(3, 0, rng)
