"""Selections under everything at once, against enumeration and a linear programme written out."""

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from optimize.problem import Budget, Partition, Selection, Status
from optimize.select import refuse_conflicts, select, solve_selection
from optimize.selection import relaxation
from optimize.selection.certificate import demands, violated
from optimize.selection.conflicts import irreducible
from optimize.selection.programme import Demand, Programme
from optimize.selection.relaxation import relax
from optimize.spread import Spread
from schemas.errors import InfeasibleProblem, ShapeError

seeds = st.integers(0, 2**32 - 1)


def spread(n: int, rng: np.random.Generator) -> Spread:
    """A random positive semi-definite form."""
    diagonal = rng.random(n)
    turned = np.linalg.qr(rng.standard_normal((n, n)))[0][: n // 2]
    return Spread(
        reference=np.ones(n),
        diagonal=diagonal,
        explained=0.8 * turned * np.sqrt(diagonal),
        added=0.3 * rng.standard_normal((2, n)),
        constant=float(rng.random() < 0.5) * 0.1,
    )


def random_problem(seed: int, n: int | None = None) -> Selection:
    """Any mixture of constraints, feasible or not, with ties."""
    rng = np.random.default_rng(seed)
    n = n or int(rng.integers(1, 10))
    some = [bool(each) for each in rng.random(8) < 0.5]
    targets = int(rng.integers(1, 4))
    combine = "worst" if some[0] else "mean"
    partitions = []
    for noun in ("class", "source")[: int(rng.integers(0, 3))]:
        least = {g: int(rng.integers(0, 3)) for g in range(3) if rng.random() < 0.4}
        most = {g: int(rng.integers(0, 5)) for g in range(3) if rng.random() < 0.4}
        partitions.append(Partition(noun, rng.integers(0, 3, n), least, most))
    budgets = []
    for name in ("tokens", "money")[: int(rng.integers(0, 3))]:
        costs = rng.integers(0, 6, n) * (1.0 if name == "tokens" else 0.37)
        budgets.append(Budget(name, costs, float(rng.integers(0, 4 * n))))
    exactly = int(rng.integers(1, n + 1))
    include = rng.random(n) < 0.15
    cautious = some[4] and n > 1
    return Selection(
        utility=rng.integers(-8, 9, (targets, n)) / 4,
        size=[exactly, (exactly, n), (0, exactly), None][int(rng.integers(0, 4))],
        partitions=tuple(partitions),
        budgets=tuple(budgets),
        duplicates=rng.integers(0, max(1, n - 2), n) if some[1] else None,
        include=include if some[2] else None,
        exclude=(rng.random(n) < 0.2) & ~(include & some[5]) if some[3] else None,
        combine=combine,
        weights=rng.random(targets) + 0.1 if some[6] else None,
        base=rng.standard_normal(targets) if some[7] else None,
        caution=float(rng.random() * 2) if cautious else 0.0,
        spreads=tuple(spread(n, rng) for _ in range(targets if combine == "worst" else 1))
        if cautious
        else (),
    )


def enumerated(problem: Selection, asked: list[Demand] | None = None) -> np.ndarray:
    """Every choice that meets some demands, or all: bool [N, n]; the empty one is none."""
    n = problem.n_pool
    every = np.array(list(itertools.product([False, True], repeat=n)))
    wanted = set(demands(problem) if asked is None else asked)
    size = every.sum(axis=1)
    fits = np.ones(len(every), dtype=bool)
    if Demand("size", "least") in wanted:
        fits &= size >= problem.sizes[0]
    if Demand("size", "most") in wanted:
        fits &= size <= problem.sizes[1]
    for partition in problem.partitions:
        for group in range(3):
            taken = every[:, partition.labels == group].sum(axis=1)
            if Demand(partition.name(group), "least") in wanted:
                fits &= taken >= partition.minimum[group]
            if Demand(partition.name(group), "most") in wanted:
                fits &= taken <= partition.maximum[group]
    for budget in problem.budgets:
        if Demand(budget.name, "most") in wanted:
            fits &= every @ budget.costs <= budget.limit + 1e-9
    if Demand("must include", "") in wanted:
        fits &= every[:, problem.include].all(axis=1)
    if Demand("must exclude", "") in wanted:
        fits &= ~every[:, problem.exclude].any(axis=1)
    if Demand("duplicates", "") in wanted:
        for group in np.unique(problem.duplicates):
            fits &= every[:, problem.duplicates == group].sum(axis=1) <= 1
    return every[fits]


def written_out(
    problem: Selection, loosened: str = "", by: float = 0.0, side: str = ""
) -> float | None:
    """The relaxation's value by a plain linear programme, one limit moved; None if infeasible."""
    n = problem.n_pool
    gains, offsets = problem.pieces
    rows, limits = [], []

    def at_most(row: np.ndarray, limit: float) -> None:
        rows.append(np.append(row, 0.0))
        limits.append(limit)

    def moved(name: str, which: str) -> float:
        return by if name == loosened and (not side or which in side) else 0.0

    at_most(np.ones(n), problem.sizes[1] + moved("size", "most"))
    at_most(-np.ones(n), -problem.sizes[0] - moved("size", "least"))
    for partition in problem.partitions:
        for group in partition.limited:
            inside, name = (partition.labels == group).astype(float), partition.name(group)
            if group in partition.maximum:
                at_most(inside, partition.maximum[group] + moved(name, "most"))
            if group in partition.minimum:
                at_most(-inside, -partition.minimum[group] - moved(name, "least"))
    for budget in problem.budgets:
        at_most(budget.costs, budget.limit + moved(budget.name, "most"))
    if problem.duplicates is not None:
        for group in np.unique(problem.duplicates):
            at_most((problem.duplicates == group).astype(float), 1 + moved("duplicates", ""))
    low, high = np.zeros(n), np.ones(n)
    if problem.include is not None:
        low[problem.include] = 1 - moved("must include", "")
    if problem.exclude is not None:
        high[problem.exclude] = moved("must exclude", "")
    for gain, offset in zip(gains, offsets, strict=True):
        rows.append(np.append(-gain, 1.0))
        limits.append(offset)
    bounds = [*zip(low, high, strict=True), (None, None)]
    if (low > high).any():
        return None
    found = linprog(np.append(np.zeros(n), -1.0), np.array(rows), limits, bounds=bounds)
    return -found.fun if found.status == 0 else None


@settings(max_examples=150, deadline=None)
@given(seeds)
def test_the_choice_is_the_best_of_all_or_the_request_is_refused(seed: int) -> None:
    problem = random_problem(seed)
    every = enumerated(problem)
    if not len(every):
        with pytest.raises(InfeasibleProblem):
            solve_selection(problem, gap=0.0)
        return
    best = max(problem.value(each) for each in every)
    found = solve_selection(problem, gap=0.0)
    assert (every == found.choice).all(axis=1).any()
    assert found.value == pytest.approx(best, abs=2e-6)
    assert found.value == problem.value(found.choice)
    assert found.bound >= best - 1e-9
    assert violated(problem, found.choice) == []


@pytest.mark.parametrize("seed", range(12))
def test_fourteen_rows_are_chosen_as_enumeration_would(seed: int) -> None:
    problem = random_problem(seed + 9_000, n=14)
    every = enumerated(problem)
    if not len(every):
        with pytest.raises(InfeasibleProblem):
            solve_selection(problem)
        return
    found = solve_selection(problem, gap=0.0)
    assert found.value == pytest.approx(max(problem.value(each) for each in every), abs=2e-6)


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_a_conflict_cannot_be_satisfied_and_is_irreducible(seed: int) -> None:
    problem = random_problem(seed)
    if len(enumerated(problem)):
        refuse_conflicts(problem)
        return
    found = irreducible(problem)
    assert found
    assert not len(enumerated(problem, found))
    for demand in found:
        rest = [each for each in found if each != demand]
        assert len(enumerated(problem, rest)), f"without {demand} the rest still conflicts"
    with pytest.raises(InfeasibleProblem):
        refuse_conflicts(problem)


def large_problem(seed: int, n: int, **changes: Any) -> Selection:
    """Feasible, with every kind of constraint binding, and no ties."""
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 3, n)
    include = np.zeros(n, dtype=bool)
    include[rng.choice(n, n // 40, replace=False)] = True
    duplicates = np.arange(n)
    copies = rng.choice(np.flatnonzero(~include), n // 4, replace=False)
    duplicates[copies] = copies[rng.integers(0, len(copies) // 2, len(copies))]
    whole = {
        "utility": rng.standard_normal((1, n)) + 0.3,
        "size": n // 3,
        "partitions": (
            Partition("class", rng.integers(0, 4, n), {0: n // 8}, {1: n // 20}),
            Partition("source", source, {}, {0: n // 10}),
        ),
        "budgets": (Budget("tokens", rng.gamma(2, 1, n), 0.55 * n),),
        "duplicates": duplicates,
        "include": include,
        "exclude": ~include & (rng.random(n) < 0.1),
    }
    return Selection(**(whole | changes))


def two_targets(seed: int, n: int) -> dict[str, Any]:
    utility = np.random.default_rng(seed).standard_normal((2, n)) + 0.3
    return {"utility": utility, "combine": "worst", "base": np.array([0.0, 4.0])}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("worst", [False, True])
def test_prices_are_slopes_of_the_relaxation(seed: int, worst: bool) -> None:
    """Limits off whole numbers, where the value has no kinks: finite differences on both sides."""
    problem = large_problem(seed, 160, **(two_targets(seed, 160) if worst else {}))
    whole = Programme.of(problem, problem.pieces)
    moved = np.random.default_rng(seed).random(len(whole.low)) / 2
    programme = dataclasses.replace(whole, low=whole.low - moved, high=whole.high - moved)
    prices, step = relax(programme).prices, 1e-4
    assert np.count_nonzero(prices) >= 4

    def value(place: int, by: float) -> float:
        up = by * (np.arange(len(moved)) == place)
        return relax(
            dataclasses.replace(programme, low=programme.low + up, high=programme.high + up)
        ).value

    for place, price in enumerate(prices):
        slope = (value(place, step) - value(place, -step)) / (2 * step)
        assert price == pytest.approx(slope, abs=1e-5), programme.names[place]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("worst", [False, True])
def test_named_prices_lie_between_the_slopes_on_either_side(seed: int, worst: bool) -> None:
    problem = large_problem(seed, 160, **(two_targets(seed, 160) if worst else {}))
    prices, step, known = solve_selection(problem).prices, 1e-4, written_out(problem)
    assert known is not None
    names = {"size", "class 0", "class 1", "source 0", "tokens"}
    assert set(prices) == names | {"must include", "must exclude", "duplicates"}
    for name, price in prices.items():
        side = "most" if price > 0 else "least" if price < 0 else ""
        if name not in names:
            side = ""
        if name == "size":
            side = "most least"
        up, down = (written_out(problem, name, sign * step, side) for sign in (1, -1))
        gain = -price if name == "must include" else price
        assert up is not None
        assert up - known <= gain * step + 1e-8, name
        if down is not None:
            assert known - down >= gain * step - 1e-8, name
    assert prices["must include"] <= 0
    assert prices["must exclude"] > 0
    assert prices["duplicates"] > 0


@pytest.mark.parametrize("seed", range(4))
def test_rows_in_and_out_and_duplicates_are_priced_by_what_loosening_them_gains(seed: int) -> None:
    """With a budget alone, off whole numbers, the value has no kink but that of loosening."""
    problem = large_problem(seed, 160, size=None, partitions=())
    prices, step, known = solve_selection(problem).prices, 1e-4, written_out(problem)
    assert set(prices) == {"tokens", "must include", "must exclude", "duplicates"}
    for name, price in prices.items():
        loosened = written_out(problem, name, step)
        assert known is not None
        assert loosened is not None
        gain = -price if name == "must include" else price
        assert gain == pytest.approx((loosened - known) / step, abs=1e-5), name


def test_the_relaxation_of_some_agrees_with_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, changes in ((0, {}), (1, {"combine": "worst"}), (2, {"size": (1, 900)})):
        rng = np.random.default_rng(seed)
        if "combine" in changes:
            changes = changes | {"utility": rng.standard_normal((3, 3_000))}
        problem = large_problem(seed, 3_000, **changes)
        programme = Programme.of(problem, problem.pieces)
        want = relax(programme)
        monkeypatch.setattr(relaxation, "WHOLE", 100)
        monkeypatch.setattr(relaxation, "UNDECIDED", 100)
        monkeypatch.setattr(relaxation, "_SAMPLE", 200)
        found = relax(programme)
        monkeypatch.undo()
        assert found.value == pytest.approx(want.value, rel=1e-5)
        assert found.bound == pytest.approx(want.value, rel=1e-5)
        assert found.bound >= want.value - 1e-6
        assert found.slack == 0


def test_many_equal_utilities_are_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    utility = rng.standard_normal((1, 3_000)) * (rng.random(3_000) < 0.1)
    monkeypatch.setattr(relaxation, "WHOLE", 100)
    monkeypatch.setattr(relaxation, "UNDECIDED", 200)
    problem = large_problem(0, 3_000, utility=utility)
    found = solve_selection(problem, gap=1e-4)
    assert violated(problem, found.choice) == []
    assert found.gap < 1e-3


@pytest.mark.parametrize("changes", [{}, {"combine": "worst"}, {"caution": 1.0}])
def test_what_is_too_large_for_one_integer_programme_is_bounded(changes: dict) -> None:
    rng = np.random.default_rng(3)
    n = 4_000
    if "combine" in changes:
        changes = changes | {"utility": rng.standard_normal((2, n)), "base": [0.0, 50.0]}
    if "caution" in changes:
        form = Spread(
            reference=np.ones(n),
            diagonal=rng.random(n),
            explained=np.zeros((0, n)),
            added=0.05 * rng.standard_normal((3, n)),
        )
        changes = changes | {"spreads": (form,)}
    problem = large_problem(3, n, **changes)
    found = solve_selection(problem, gap=1e-3)
    assert violated(problem, found.choice) == []
    assert found.bound >= found.value == problem.value(found.choice)
    assert found.gap <= 1e-3


def test_caution_gives_up_mean_for_certainty() -> None:
    rng = np.random.default_rng(1)
    form, utility = spread(40, rng), rng.standard_normal(40)
    bold = select(utility, size=20)
    careful = select(utility, size=20, caution=1.5, spreads=[form], gap=1e-4)
    assert utility @ careful.choice <= utility @ bold.choice
    assert form.sd(careful.choice) < form.sd(bold.choice)
    assert careful.value > utility @ bold.choice - 1.5 * form.sd(bold.choice)


def test_the_worst_target_is_raised_above_what_the_mean_leaves_it() -> None:
    rng = np.random.default_rng(2)
    utility, base = rng.standard_normal((3, 60)), np.array([0.0, -5.0, 3.0])
    mean = select(utility, size=20, base=base)
    worst = select(utility, size=20, base=base, combine="worst")
    assert worst.value == pytest.approx((utility @ worst.choice + base).min())
    assert worst.value > (utility @ mean.choice + base).min()
    assert mean.value == pytest.approx((utility @ mean.choice + base).mean())


def test_weights_make_one_target_count_for_all() -> None:
    rng = np.random.default_rng(4)
    utility = rng.standard_normal((2, 30))
    both = select(utility, size=10, weights=[0, 3])
    np.testing.assert_array_equal(both.choice, select(utility[1], size=10).choice)


def test_a_free_size_takes_what_helps_and_a_range_no_more_than_it_allows() -> None:
    utility = [3.0, -1.0, 2.0, 1.0, -2.0]
    assert select(utility).choice.tolist() == [True, False, True, True, False]
    assert select(utility, size=(0, 2)).choice.tolist() == [True, False, True, False, False]
    assert select(utility, size=(4, 5)).choice.tolist() == [True, True, True, True, False]
    assert select([-1.0, -2.0]).choice.tolist() == [True, False]
    assert select(utility, size=(0, 2)).prices == {"size": 2.0}
    assert select(utility, size=(4, 5)).prices == {"size": -1.0}


def test_the_better_of_two_duplicates_is_kept_and_the_other_priced() -> None:
    found = select([5.0, 3.0, 2.0, 1.0], size=2, duplicates=[7, 7, 1, 2])
    assert found.choice.tolist() == [True, False, True, False]
    assert found.status is Status.OPTIMAL
    assert found.prices["duplicates"] == 1.0  # 3 instead of 2


CLASSES = Partition("class", np.repeat([0, 1], [6, 4]), {1: 3})
SOURCES = Partition("source", np.array([0, 0, 0, 1, 1, 1, 1, 1, 1, 0]), {}, {1: 1}, {1: "web"})


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        (
            {"size": 5, "partitions": [CLASSES, SOURCES]},
            (
                "these cannot all hold: class 1 needs at least 3 of its 4 rows (3 of them in "
                "source web) and source web allows at most 1 of its 6 rows; relax one of them"
            ),
        ),
        (
            {"size": 5, "partitions": [CLASSES], "exclude": np.arange(10) > 7},
            (
                "these cannot all hold: class 1 needs at least 3 of its 4 rows (2 of them "
                "excluded) and 2 rows must not be chosen; relax one of them"
            ),
        ),
        (
            {"size": 5, "budgets": [Budget("tokens", np.arange(10.0), 8.0)]},
            (
                "these cannot all hold: size asks for exactly 5 rows and tokens may be at most 8, "
                "the other demands cost at least 10; relax one of them"
            ),
        ),
        (
            {"size": 5, "duplicates": np.arange(10) // 3},
            (
                "these cannot all hold: size asks for exactly 5 rows and only one row of each "
                "duplicate group may be chosen"
            ),
        ),
        (
            {"size": 5, "partitions": [SOURCES], "include": np.arange(10) // 2 == 2},
            (
                "these cannot all hold: source web allows at most 1 of its 6 rows (2 of them must "
                "be chosen) and 2 rows must be chosen"
            ),
        ),
        ({"size": (6, 3)}, "size is at least 6 and at most 3; lower the one or raise the other"),
        (
            {"include": np.arange(10) < 2, "exclude": np.arange(10) < 1},
            "2 rows must be chosen and 1 rows must not be chosen",
        ),
    ],
)
def test_a_conflict_is_told_in_words_and_numbers(constraints: dict, words: str) -> None:
    with pytest.raises(InfeasibleProblem) as caught:
        select(np.arange(10.0), **constraints)
    assert words in str(caught.value)


def test_constraints_that_fractions_satisfy_and_rows_do_not_are_refused() -> None:
    # Pairs of rows share a duplicate group and all three must give one of two classes' halves.
    odd = Partition("class", np.array([0, 0, 1, 1]), {0: 1, 1: 1}, {0: 1, 1: 1})
    budget = Budget("tokens", np.array([3.0, 1.0, 3.0, 1.0]), 3.0)
    other = Partition("source", np.array([0, 1, 0, 1]), {0: 1}, {0: 1})
    with pytest.raises(InfeasibleProblem, match="these cannot all hold"):
        select(np.ones(4), size=2, partitions=[odd, other], budgets=[budget])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budgets": [Budget("size", np.ones(3), 1.0)]}, "two constraints are called 'size'"),
        ({"budgets": [Budget("tokens", np.ones(2), 1.0)]}, "the pool has 3 rows"),
        ({"include": [1, 0, 0]}, "give one true or false for each row"),
        ({"duplicates": [0.5, 1.0, 2.0]}, "give one integer for each row"),
        ({"weights": [1.0, 2.0]}, "each of the 1 targets"),
        ({"base": [np.nan]}, "give one number for each target"),
        ({"combine": "best"}, "choose 'mean' or 'worst'"),
        ({"caution": 1.0}, "caution needs 1 spread"),
        ({"caution": -1.0}, "give a finite number"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        select([1.0, 2.0, 3.0], **changes)


def test_costs_and_limits_must_be_numbers_from_zero_on() -> None:
    with pytest.raises(ShapeError, match=r"row 1 costs -1.0 tokens"):
        Budget("tokens", np.array([1.0, -1.0]), 3.0)
    with pytest.raises(ShapeError, match="budget of tokens is nan"):
        Budget("tokens", np.ones(2), np.nan)


def test_a_certificate_sees_every_broken_demand() -> None:
    problem = large_problem(0, 120)
    wrong = ~solve_selection(problem).choice
    names = {demand.name for demand in violated(problem, wrong)}
    assert {"size", "must include", "must exclude", "duplicates", "tokens"} <= names


def test_the_same_problem_gives_the_same_choice_every_time() -> None:
    problem = large_problem(5, 500)
    first, again = solve_selection(problem), solve_selection(dataclasses.replace(problem))
    np.testing.assert_array_equal(first.choice, again.choice)
