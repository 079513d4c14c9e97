import ctypes
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize.poisoning.damage import damage_curve, weak_spots
from optimize.poisoning.problem import Poisoning, solve_poisoning
from optimize.problem import Status
from schemas.errors import InfeasibleProblem, ShapeError


@st.composite
def problems(draw: st.DrawFn) -> Poisoning:
    """Few moves on fewer rows; whole numbers, so that sums are exact and ties are common."""
    n = draw(st.integers(1, 9))
    numbers = st.lists(st.integers(-5, 5), min_size=n, max_size=n)
    return Poisoning(
        damage=np.array(draw(numbers), float),
        side=np.array(draw(numbers), float),
        rows=np.array(draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))),
        budget=draw(st.integers(1, 4)),
        allowance=draw(st.one_of(st.integers(0, 8).map(float), st.just(np.inf))),
    )


def best_by_enumeration(problem: Poisoning) -> float:
    """The largest damage of all feasible sets of moves."""
    best, n = 0.0, len(problem.rows)
    for size in range(1, min(problem.budget, n) + 1):
        for moves in itertools.combinations(range(n), size):
            chosen = list(moves)
            fits = problem.side[chosen].sum() >= -problem.allowance
            if fits and len(set(problem.rows[chosen])) == size:
                best = max(best, float(problem.damage[chosen].sum()))
    return best


def refuse_infeasible(problem: Poisoning, choice: np.ndarray) -> None:
    assert choice.sum() <= problem.budget
    assert len(np.unique(problem.rows[choice])) == choice.sum()
    assert problem.side[choice].sum() >= -problem.allowance


@settings(max_examples=300, deadline=None)
@given(problems())
def test_the_moves_are_the_worst_of_all_feasible_moves(problem: Poisoning) -> None:
    solution = solve_poisoning(problem)
    refuse_infeasible(problem, solution.choice)
    assert solution.value == best_by_enumeration(problem)
    assert solution.status is Status.OPTIMAL
    assert solution.gap == 0


@pytest.mark.parametrize("allowance", [0.0, 0.5, 3.0, np.inf])
def test_real_valued_flips_of_many_rows_are_solved_to_the_end(allowance: float) -> None:
    rng = np.random.default_rng(0)
    problem = Poisoning(
        damage=rng.standard_normal(4_500),
        side=rng.standard_normal(4_500) - 1,
        rows=np.repeat(np.arange(500), 9),
        budget=30,
        allowance=allowance,
    )
    solution = solve_poisoning(problem)
    refuse_infeasible(problem, solution.choice)
    assert solution.status is Status.OPTIMAL
    assert solution.value == pytest.approx(problem.damage[solution.choice].sum())


def test_the_solver_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """On this problem HiGHS printed a line from C, past every option."""
    rng = np.random.default_rng(6)
    damage = rng.gamma(0.3, 1, (300, 9))
    side = 0.1 * rng.standard_normal((300, 9)) - damage * rng.uniform(0, 1, (300, 9))
    problem = Poisoning(
        damage=damage.ravel(),
        side=side.ravel(),
        rows=np.repeat(np.arange(300), 9),
        budget=30,
        allowance=rng.uniform(1, 20),
    )
    assert solve_poisoning(problem).status is Status.OPTIMAL
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == ""


def test_without_an_allowance_the_worst_moves_are_the_best_of_each_row() -> None:
    damage = np.array([1.0, 4.0, 3.0, 2.0, -1.0])
    problem = Poisoning(damage=damage, side=-damage, rows=np.array([0, 0, 1, 2, 3]), budget=2)
    solution = solve_poisoning(problem)
    assert solution.choice.tolist() == [False, True, True, False, False]
    assert solution.prices == {"budget": 2.0, "allowance": 0.0}
    assert "One more row would take about 2." in solution.sentence


def test_nothing_is_done_where_every_move_helps_the_targets() -> None:
    problem = Poisoning(
        damage=-np.ones(3), side=np.zeros(3), rows=np.arange(3), budget=2, allowance=0.0
    )
    solution = solve_poisoning(problem)
    assert solution.size == 0
    assert solution.value == solution.bound == 0


def test_more_budget_never_does_less_and_adds_less_and_less() -> None:
    rng = np.random.default_rng(1)
    problem = Poisoning(
        damage=rng.exponential(size=200), side=np.zeros(200), rows=np.arange(200), budget=1
    )
    curve = damage_curve(problem, [40, 10, 20, 30])
    assert curve.budgets == (10, 20, 30, 40)
    gained = np.diff(curve.predicted)
    assert (gained > 0).all()
    assert (np.diff(gained) < 0).all()
    np.testing.assert_array_equal(curve.predicted, curve.bounds)


def test_the_weakest_spot_is_the_group_that_could_do_most_alone() -> None:
    problem = Poisoning(
        damage=np.array([5.0, 1.0, 3.0, 3.0, 9.0]),
        side=np.zeros(5),
        rows=np.array([0, 1, 2, 3, 3]),
        budget=2,
    )
    spots = weak_spots(problem, [7, 7, 8, 8])
    assert list(spots) == [8, 7]
    assert [one.value for one in spots.values()] == [12.0, 6.0]
    assert np.flatnonzero(spots[8].choice).tolist() == [2, 4]


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"budget": 0}, InfeasibleProblem, "allow at least 1 row"),
        ({"budget": 1.5}, ShapeError, "a whole number of rows"),
        ({"allowance": -1.0}, InfeasibleProblem, "0 or more"),
        ({"allowance": np.nan}, InfeasibleProblem, "0 or more"),
        ({"damage": np.ones(2)}, ShapeError, "one number each"),
        ({"side": np.array([0, np.nan, 0])}, ShapeError, "the side of move 1 is nan"),
        ({"rows": np.zeros(3)}, ShapeError, "the row of each move"),
    ],
)
def test_what_cannot_be_solved_is_refused(
    changed: dict, error: type[Exception], message: str
) -> None:
    given = {"damage": np.ones(3), "side": np.zeros(3), "rows": np.arange(3), "budget": 1}
    with pytest.raises(error, match=message):
        Poisoning(**(given | changed))
