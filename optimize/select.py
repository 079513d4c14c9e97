"""Choosing rows: exact selection under a size and quotas per group, and the arms it is judged by.

Utilities are float [n_pool]; a choice is bool [n_pool]. Nothing here retrains or predicts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimize.problem import Selection, Solution, Status
from schemas.errors import InfeasibleProblem, ShapeError

BoolArray = npt.NDArray[np.bool_]

# Primal and dual values are sums of the same numbers in another order; they differ by rounding.
_ROUNDING = 1e-11


def select(
    utility: npt.ArrayLike,
    *,
    size: int,
    groups: npt.ArrayLike | None = None,
    minimum: Mapping[int, int] | None = None,
    maximum: Mapping[int, int] | None = None,
    noun: str = "class",
    names: Mapping[int, str] | None = None,
) -> Solution:
    """The `size` rows of the largest total utility within quotas per group; exact, O(n log n).

    See `Selection` for the arguments and errors, `solve_selection` for the method.
    """
    problem = Selection(
        utility=np.asarray(utility, dtype=np.float64),
        size=size,
        groups=None if groups is None else np.asarray(groups),
        minimum=minimum or {},
        maximum=maximum or {},
        noun=noun,
        names=names or {},
    )
    return solve_selection(problem)


def solve_selection(problem: Selection) -> Solution:
    """An optimal choice, ties going to the row of lower index.

    Method: take each group's best rows up to its minimum; fill what is left of the size with the
    best of all other rows, no group beyond its maximum.

    Why it is optimal: with k rows from a group its best k are best, so the value is a sum over
    groups of F_g(k_g), F_g concave (it adds sorted utilities). A sum of concave functions under
    sum k_g = size and l_g <= k_g <= h_g is maximised by giving each unit beyond the minimums to the
    group whose next row is worth most. The bound does not lean on this argument: it is the value of
    the dual of the linear relaxation at the prices read off the choice, so a wrong choice would
    show as a gap.

    Prices: "size" is the utility of the weakest row that was chosen freely (the best one left out,
    where all were demanded by minimums). A group's price is what a place in it is worth beyond
    that: positive where its maximum binds (one more place would gain up to this much), negative
    where its minimum binds (one demanded row fewer would gain up to as much), else 0.
    """
    pool = _Pool.of(problem)
    chosen = pool.fill(problem.size)
    size_price, group_prices = pool.prices(chosen)
    value = float(problem.utility[chosen].sum())
    bound = pool.dual_value(problem.size, size_price, group_prices)
    scale = float(np.abs(problem.utility).sum() + abs(size_price) * problem.size)
    optimal = bound - value <= _ROUNDING * scale
    prices = {"size": size_price}
    for group, price in zip(pool.labels, group_prices, strict=True):
        if group in problem.minimum or group in problem.maximum:
            prices[problem.name(group)] = float(price)
    return Solution(
        status=Status.OPTIMAL if optimal else Status.FEASIBLE,
        choice=chosen,
        value=value,
        bound=value if optimal else bound,
        prices=prices,
        sentence=_sentence(problem, value, prices, optimal=optimal),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """Rows numbered by group, sorted within their groups; G groups."""

    utility: npt.NDArray[np.float64]
    labels: list[int]  # the caller's name of each group, [G]
    group: npt.NDArray[np.intp]  # [n], 0..G-1
    rank: npt.NDArray[np.intp]  # [n], 0 for the best row of a group
    least: npt.NDArray[np.intp]  # [G]
    most: npt.NDArray[np.intp]  # [G]

    @classmethod
    def of(cls, problem: Selection) -> "_Pool":
        n = problem.n_pool
        groups = np.zeros(n, np.int64) if problem.groups is None else problem.groups
        labels, group = np.unique(groups, return_inverse=True)
        # lexsort is stable: equal utilities stay in order of index.
        order = np.lexsort((-problem.utility, group))
        starts = np.searchsorted(group[order], np.arange(len(labels)))
        rank = np.empty(n, dtype=np.intp)
        rank[order] = np.arange(n) - starts[group[order]]
        limits = problem.limits()
        least, most = np.array([limits[label] for label in labels.tolist()]).T
        return cls(
            utility=problem.utility,
            labels=labels.tolist(),
            group=group,
            rank=rank,
            least=least,
            most=most,
        )

    def demanded(self) -> BoolArray:
        """Rows that a minimum takes."""
        return self.rank < self.least[self.group]

    def free(self) -> BoolArray:
        """Rows that compete for the places beyond the minimums."""
        return ~self.demanded() & (self.rank < self.most[self.group])

    def fill(self, size: int) -> BoolArray:
        chosen = self.demanded()
        rivals = np.flatnonzero(self.free())
        best = rivals[np.argsort(-self.utility[rivals], kind="stable")]
        chosen[best[: size - int(chosen.sum())]] = True
        return chosen

    def prices(self, chosen: BoolArray) -> tuple[float, npt.NDArray[np.float64]]:
        """Duals of the size and of each group: the group's threshold is their sum."""
        free = self.free()
        if (free & chosen).any():
            size_price = float(self.utility[free & chosen].min())
        elif free.any():
            size_price = float(self.utility[free].max())
        else:  # every row's fate was fixed by the quotas: any price supports it
            size_price = float(self.utility[chosen].min())
        n_groups = len(self.labels)
        taken = np.bincount(self.group[chosen], minlength=n_groups)
        last_in = np.full(n_groups, np.inf)
        np.minimum.at(last_in, self.group[chosen], self.utility[chosen])
        first_out = np.full(n_groups, -np.inf)
        np.maximum.at(first_out, self.group[~chosen], self.utility[~chosen])
        threshold = np.full(n_groups, size_price)
        at_most, at_least = taken == self.most, taken == self.least
        threshold[at_most] = np.maximum(threshold, first_out)[at_most]
        threshold[at_least] = np.minimum(threshold, last_in)[at_least]
        return size_price, threshold - size_price

    def dual_value(
        self, size: int, size_price: float, group_prices: npt.NDArray[np.float64]
    ) -> float:
        """An upper bound on every feasible choice, whatever the prices are."""
        surplus = np.maximum(self.utility - size_price - group_prices[self.group], 0).sum()
        places = np.where(group_prices > 0, self.most, self.least)
        return float(size_price * size + group_prices @ places + surplus)


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
    problem: Selection, value: float, prices: Mapping[str, float], *, optimal: bool
) -> str:
    quotas = " within the quotas" if problem.minimum or problem.maximum else ""
    claim = "No other choice" if optimal else "Perhaps another choice"
    parts = [f"{claim} of this size{quotas} has a higher total utility ({value:.4g})."]
    if problem.size < problem.n_pool:
        parts.append(f"The last row kept is worth {prices['size']:.3g}.")
    for name, price in prices.items():
        if name != "size" and price > 0:
            parts.append(f"One more place in {name} would add up to {price:.3g}.")
        elif name != "size" and price < 0:
            parts.append(f"The last row demanded of {name} costs up to {-price:.3g}.")
    return " ".join(parts)
