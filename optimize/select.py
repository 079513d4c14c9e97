"""Choosing rows within constraints, and the arms that a choice is judged by.

Utilities are float [n_pool] or [n_target, n_pool]; a choice is bool [n_pool]. Nothing here retrains
or predicts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from optimize.problem import (
    DUPLICATES,
    EXCLUDE,
    INCLUDE,
    SIZE,
    BoolArray,
    Budget,
    Partition,
    Selection,
    Solution,
    Status,
)
from optimize.selection import caution as cautious
from optimize.selection import thresholds
from optimize.selection.certificate import violated
from optimize.selection.conflicts import conflict, refuse_conflicts
from optimize.selection.integer import round_off
from optimize.selection.pricing import prices
from optimize.selection.programme import Programme
from optimize.selection.relaxation import relax
from schemas.errors import InfeasibleProblem, ShapeError, WinnowError

if TYPE_CHECKING:
    from optimize.spread import Spread

__all__ = [
    "balanced_subset",
    "random_subset",
    "refuse_conflicts",
    "select",
    "solve_selection",
]

# Primal and dual values are sums of the same numbers in another order; they differ by rounding.
_ROUNDING = 1e-11
# HiGHS's tolerances, relative to the numbers it was given.
_SOLVED = 1e-9
# A budget may be overdrawn within HiGHS's tolerance; it is then tightened and solved again.
_REPAIRS = 5


def select(
    utility: npt.ArrayLike,
    *,
    size: int | tuple[int, int] | None = None,
    size_priced: bool = True,
    partitions: Sequence[Partition] = (),
    budgets: Sequence[Budget] = (),
    duplicates: npt.ArrayLike | None = None,
    include: npt.ArrayLike | None = None,
    exclude: npt.ArrayLike | None = None,
    combine: Literal["mean", "worst"] = "mean",
    weights: npt.ArrayLike | None = None,
    base: npt.ArrayLike | None = None,
    caution: float = 0.0,
    spreads: Sequence["Spread"] = (),
    gap: float = 1e-6,
    seconds: float = 60.0,
) -> Solution:
    """The rows of the largest total utility within all constraints.

    See `Selection` for the arguments and errors, `solve_selection` for the methods.
    """
    problem = Selection(
        utility=np.asarray(utility, dtype=np.float64),
        size=size,
        size_priced=size_priced,
        partitions=tuple(partitions),
        budgets=tuple(budgets),
        duplicates=None if duplicates is None else np.asarray(duplicates),
        include=None if include is None else np.asarray(include),
        exclude=None if exclude is None else np.asarray(exclude),
        combine=combine,
        weights=None if weights is None else np.asarray(weights, dtype=np.float64),
        base=None if base is None else np.asarray(base, dtype=np.float64),
        caution=caution,
        spreads=tuple(spreads),
    )
    return solve_selection(problem, gap=gap, seconds=seconds)


def solve_selection(
    problem: Selection, *, gap: float = 1e-6, seconds: float = 60.0, nodes: int = 20_000
) -> Solution:
    """The best choice that can be found, what no choice exceeds, and prices.

    Where only the size and one partition are limited: sorted thresholds, exact in O(n log n), ties
    going to the row of lower index. Otherwise the linear relaxation, in full or by sifting, and an
    exact integer programme over the rows nearest to doubt; with caution, by cuts. The choice is
    checked against the problem itself, and no bound lies below it.

    Args:
        problem: The problem.
        gap: Stop when bound and value differ by less than this, relative to the bound where that
            exceeds 1.
        seconds: Stop when one integer programme takes as long.
        nodes: Stop when one integer programme branches as often.

    Raises:
        InfeasibleProblem: No choice satisfies the constraints; the message names the conflict.
    """
    limits = {"gap": gap, "seconds": seconds, "nodes": nodes}
    asked = problem
    for _ in range(_REPAIRS):
        answer = _answer(asked, limits)
        broken = {demand.name for demand in violated(problem, answer.choice)}
        if not broken:
            return answer
        over = _tightened(problem, answer.choice, broken)
        asked = replace(asked, budgets=tuple(over.get(b.name, b) for b in asked.budgets))
    raise WinnowError(
        f"no choice keeps to {' and '.join(sorted(broken))}, by rounding errors alone"
    )


def _answer(problem: Selection, limits: dict[str, Any]) -> Solution:
    if problem.sizes[1] < 1:
        raise InfeasibleProblem(conflict(problem))
    solve = _by_cuts if problem.caution else _by_lines
    choice, bound, named = solve(problem, limits)
    if not problem.size_priced:
        named.pop(SIZE, None)
    value = problem.value(choice)
    gains, offsets = problem.pieces
    scale = float(np.abs(gains).sum(axis=1).max() + np.abs(offsets).max())
    optimal = bound - value <= max(_ROUNDING * scale, _SOLVED * max(1.0, abs(bound)))
    return Solution(
        status=Status.OPTIMAL if optimal else Status.FEASIBLE,
        choice=choice,
        value=value,
        bound=value if optimal else bound,
        prices=named,
        sentence=_sentence(problem, value, named, optimal=optimal),
    )


def _by_lines(
    problem: Selection, limits: dict[str, Any]
) -> tuple[BoolArray, float, dict[str, float]]:
    """Linear pieces: thresholds, or the relaxation and its core."""
    pieces = problem.pieces
    programme = Programme.of(problem, pieces)
    if thresholds.suffices(problem, programme):
        exact = thresholds.choose(programme)
        if exact is None:
            raise InfeasibleProblem(conflict(problem))
        on, found = exact
        bound, weights = programme.bound(found, np.ones(1)), np.ones(1)
    else:
        if programme.clash or (relaxed := relax(programme)).slack:
            raise InfeasibleProblem(conflict(problem))
        whole = round_off(programme, relaxed, **limits)
        if whole.on is None:
            raise InfeasibleProblem(conflict(problem))
        on, bound, found, weights = whole.on, whole.bound, relaxed.prices, relaxed.weights
    return programme.choice(problem, on), bound, prices(problem, programme, found, pieces, weights)


def _by_cuts(
    problem: Selection, limits: dict[str, Any]
) -> tuple[BoolArray, float, dict[str, float]]:
    """Concave pieces."""
    if Programme.of(problem, problem.pieces).clash:
        raise InfeasibleProblem(conflict(problem))
    found = cautious.maximise(problem, **limits)
    if found.choice is None:
        raise InfeasibleProblem(conflict(problem))
    last = found.relaxed
    named = prices(problem, found.programme, last.prices, found.pieces, last.weights)
    return found.choice, found.bound, named


def _tightened(problem: Selection, choice: BoolArray, broken: set[str]) -> dict[str, Budget]:
    """Broken budgets with limits that are lower by twice what a choice exceeds them by."""
    found = {}
    for budget in problem.budgets:
        if budget.name in broken:
            over = float(budget.costs[choice].sum()) - budget.limit
            found[budget.name] = replace(budget, limit=max(budget.limit - 2 * over, 0.0))
    return found


def random_subset(n: int, size: int, rng: np.random.Generator) -> BoolArray:
    """`size` of n rows, each subset equally likely, bool [n]."""
    _check_size(n, size)
    chosen = np.zeros(n, dtype=bool)
    chosen[rng.choice(n, size, replace=False)] = True
    return chosen


def balanced_subset(groups: npt.ArrayLike, size: int, rng: np.random.Generator) -> BoolArray:
    """`size` random rows, as equally many of each group as the pool allows, bool [n].

    A group smaller than its share gives all its rows and the others share the rest; places that
    do not divide evenly go to groups drawn at random.
    """
    _, group, rows = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    _check_size(len(group), size)
    level = _level(rows, size)
    quota = np.minimum(rows, level)
    spare = np.flatnonzero(rows > level)
    quota[rng.choice(spare, size - int(quota.sum()), replace=False)] += 1
    order = np.lexsort((rng.random(len(group)), group))
    starts = np.cumsum(rows) - rows
    rank = np.empty(len(group), dtype=np.intp)
    rank[order] = np.arange(len(group)) - starts[group[order]]
    return rank < quota[group]


def _level(rows: npt.NDArray[np.intp], size: int) -> int:
    """The largest level such that min(rows, level) over all groups does not exceed the size."""
    low, high = 0, int(rows.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(rows, middle).sum() <= size:
            low = middle
        else:
            high = middle - 1
    return low


def _check_size(n: int, size: int) -> None:
    if size < 1:
        raise ShapeError(f"size is {size}; choose at least 1 row")
    if size > n:
        raise InfeasibleProblem(f"size {size} is larger than the pool of {n}; ask for fewer rows")


def _sentence(
    problem: Selection, value: float, named: Mapping[str, float], *, optimal: bool
) -> str:
    least, most = problem.sizes
    # A size that was sought is none that anybody knows.
    others = " of this size" if problem.size_priced else f" of {most:,} rows"
    others = others if least == most else ""
    within = " within the quotas" if any(each.limited for each in problem.partitions) else ""
    if problem.budgets or any(
        each is not None for each in (problem.duplicates, problem.include, problem.exclude)
    ):
        within = " within the constraints"
    what = {
        "mean": "total utility" if len(problem.utility) == 1 else "mean over the targets",
        "worst": "output of the worst target",
    }[problem.combine]
    if problem.caution:
        what += f", {problem.caution:g} sd taken off,"
    claim = "No other choice" if optimal else "Perhaps another choice"
    parts = [f"{claim}{others}{within} has a higher {what} ({value:.4g})."]
    if SIZE in named and least == most < problem.n_pool:
        price = named[SIZE]
        parts.append(
            f"The last row kept is worth {price:.3g}."
            if not within
            else f"One more row would add up to {price:.3g}."
            if price >= 0
            else f"One more row would cost at least {-price:.3g}."
        )
    parts += [_priced(problem, name, price) for name, price in named.items() if price]
    return " ".join(part for part in parts if part)


def _priced(problem: Selection, name: str, price: float) -> str:
    """What a price means."""
    least, most = problem.sizes
    if name == SIZE:
        more = f"One more row would add up to {price:.3g}."
        return "" if least == most else more if price > 0 else f"The last row costs {-price:.3g}."
    if any(name == budget.name for budget in problem.budgets):
        return f"One more of {name} would add {price:.3g}."
    if name == INCLUDE:
        return f"The rows that must be chosen cost up to {-price:.3g}."
    if name == EXCLUDE:
        return f"The rows that must not be chosen would add up to {price:.3g}."
    if name == DUPLICATES:
        return f"One more row of each duplicate group would add up to {price:.3g}."
    if price > 0:
        return f"One more place in {name} would add up to {price:.3g}."
    return f"The last row demanded of {name} costs up to {-price:.3g}."
