"""Exact selection in O(n log n) where only the size and the groups of one partition are limited.

Method: take each group's best rows up to its minimum; fill what is left of the size with the best
of all other rows, no group beyond its maximum; where the size is a range, go on while rows help.

Why it is optimal: with k rows from a group its best k are best, so the value is a sum over groups
of F_g(k_g), F_g concave (it adds sorted utilities). A sum of concave functions under bounds of each
k_g and of their sum is maximised by giving each unit beyond the minimums to the group whose next
row is worth most. The bound does not lean on this argument: it is the Lagrange bound of the
programme at the prices read off the choice, so a wrong choice would show as a gap.
"""

from dataclasses import dataclass

import numpy as np

from optimize.problem import BoolArray, Float64, Selection
from optimize.selection.programme import Indices, Programme


def suffices(problem: Selection, programme: Programme) -> bool:
    """Whether the thresholds of this module solve a problem."""
    limited = [each for each in problem.partitions if each.limited]
    plain = not problem.budgets and programme.unit is None and not problem.caution
    return plain and len(limited) <= 1 and len(programme.gains) == 1


def choose(programme: Programme) -> tuple[BoolArray, Float64] | None:
    """The best candidates, bool [n], and a price for each constraint, [K]; None if none satisfy.

    Ties go to the row of lower index.

    Prices: the size's is the utility of the weakest row that was chosen freely (the best one left
    out, where all were demanded by minimums). A group's price is what a place in it is worth beyond
    that: positive where its maximum binds (one more place would gain up to this much), negative
    where its minimum binds (one demanded row fewer would gain up to as much), else 0.
    """
    pool = _Pool.of(programme)
    if pool is None:
        return None
    chosen = pool.fill()
    return chosen, pool.prices(chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    """Candidates sorted within their groups; the last of G + 1 groups has no limits."""

    utility: Float64
    size: tuple[int, int]
    group: Indices  # [n]
    rank: Indices  # [n], 0 for the best row of a group
    least: Indices  # [G + 1]
    most: Indices  # [G + 1]

    @classmethod
    def of(cls, programme: Programme) -> "_Pool | None":
        utility, n_groups = programme.gains[0], len(programme.names) - 1
        entries = programme.columns.tocoo()
        group = np.full(programme.n, n_groups, dtype=np.intp)
        inside = entries.col > 0
        group[entries.row[inside]] = entries.col[inside] - 1
        rows = np.bincount(group, minlength=n_groups + 1)
        least = np.maximum(np.append(programme.low[1:], 0), 0).astype(np.intp)
        ceiling = np.append(programme.high[1:], np.inf)
        most = np.minimum(ceiling, rows).astype(np.intp)
        low, high = max(programme.low[0], 0), min(programme.high[0], programme.n)
        if programme.clash or (ceiling < 0).any() or (least > most).any() or low > high:
            return None
        if least.sum() > high or most.sum() < low:
            return None
        # lexsort is stable: equal utilities stay in order of index.
        order = np.lexsort((-utility, group))
        rank = np.empty(programme.n, dtype=np.intp)
        rank[order] = np.arange(programme.n) - (np.cumsum(rows) - rows)[group[order]]
        size = int(low), int(high)
        return cls(utility=utility, size=size, group=group, rank=rank, least=least, most=most)

    def free(self) -> BoolArray:
        """Rows that compete for the places beyond the minimums."""
        return (self.rank >= self.least[self.group]) & (self.rank < self.most[self.group])

    def fill(self) -> BoolArray:
        chosen = self.rank < self.least[self.group]
        rivals = np.flatnonzero(self.free())
        best = rivals[np.argsort(-self.utility[rivals], kind="stable")]
        taken = int(chosen.sum())
        helping = int(np.count_nonzero(self.utility[best] > 0))
        low, high = (max(limit - taken, 0) for limit in self.size)
        chosen[best[: min(max(helping, low), high)]] = True
        return chosen

    def prices(self, chosen: BoolArray) -> Float64:
        """Duals of the size and of each group: the group's threshold is their sum."""
        size_price, n_groups = self._size_price(chosen), len(self.least)
        taken = np.bincount(self.group[chosen], minlength=n_groups)
        last_in = np.full(n_groups, np.inf)
        np.minimum.at(last_in, self.group[chosen], self.utility[chosen])
        first_out = np.full(n_groups, -np.inf)
        np.maximum.at(first_out, self.group[~chosen], self.utility[~chosen])
        threshold = np.full(n_groups, size_price)
        at_most, at_least = taken == self.most, taken == self.least
        threshold[at_most] = np.maximum(threshold, first_out)[at_most]
        threshold[at_least] = np.minimum(threshold, last_in)[at_least]
        return np.append(size_price, threshold[:-1] - size_price)

    def _size_price(self, chosen: BoolArray) -> float:
        free = self.free()
        if (free & chosen).any():
            price = float(self.utility[free & chosen].min())
        elif free.any():
            price = float(self.utility[free].max())
        else:  # every row's fate was fixed by the quotas: any price supports it
            price = float(self.utility[chosen].min(initial=0.0))
        size, (low, high) = int(chosen.sum()), self.size
        if low == high:
            return price
        return max(price, 0.0) if size == high else min(price, 0.0) if size == low else 0.0
