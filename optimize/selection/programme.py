"""A selection as a linear programme over its candidates: the rows that are not decided beforehand.

    max  min_j (offset_j + gains_j x)   subject to   low <= columns' x <= high,   x in {0, 1}^n,
    and at most one candidate of each unit (a duplicate group, or a row of its own).

Rows that must be chosen are in the constants. For any prices p of the constraints and weights w of
the pieces (w >= 0, sum 1) with reduced gains r = w gains - columns p,

    w offset + sum_k max(p_k high_k, p_k low_k) + sum over units of max(0, max_i r_i)

is an upper bound of every choice (Lagrange): certificates rest on that, not on a solver's word.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import sparse

from optimize.problem import (
    DUPLICATES,
    EXCLUDE,
    INCLUDE,
    SIZE,
    BoolArray,
    Float64,
    Selection,
)

Indices = npt.NDArray[np.intp]


class Demand(NamedTuple):
    """One thing that is asked: a side of a constraint, by the constraint's name."""

    name: str
    side: str  # "least", "most"; "" for rows that must be in or out and for duplicates


@dataclass(frozen=True, slots=True, kw_only=True)
class Programme:
    """See the module; n candidates, K constraints, J pieces.

    Attributes:
        gains: Float64 [J, n].
        offsets: Float64 [J].
        columns: Sparse [n, K], what each candidate takes of each constraint.
        low: Float64 [K], minus infinity where there is no lower side.
        high: Float64 [K].
        names: The constraints, K.
        unit: Int [n], 0..U-1; None where every candidate is a unit.
        rows: Int [n], where the candidates are in the pool.
        pool: Sparse [n_pool, K], as columns for every row.
        clash: Whether rows that must be chosen contradict each other or an exclusion.
    """

    gains: Float64
    offsets: Float64
    columns: Any
    low: Float64
    high: Float64
    names: tuple[str, ...]
    unit: Indices | None
    rows: Indices
    pool: Any
    clash: bool

    @classmethod
    def of(
        cls, problem: Selection, pieces: tuple[Float64, Float64], without: Collection[Demand] = ()
    ) -> "Programme":
        """The programme of a problem, some demands left out.

        Args:
            problem: The constraints.
            pieces: Linear functions of the rows, the least of which is maximised: [J, n_pool], [J].
            without: Demands that need not hold.
        """
        gains, offsets = pieces
        taken, barred, clash = _decided(problem, without)
        rows = np.flatnonzero(~taken & ~barred)
        unit = None
        if problem.duplicates is not None and Demand(DUPLICATES, "") not in without:
            unit = np.unique(problem.duplicates[rows], return_inverse=True)[1]
            if len(gains) == 1 and not problem.caution:
                rows, unit = _undominated(problem, gains[0], rows, unit)
            if unit is not None and unit.max(initial=-1) + 1 == len(rows):
                unit = None
        names, low, high, columns = _constraints(problem, without)
        used = np.asarray(columns[np.flatnonzero(taken)].sum(axis=0)).ravel()
        return cls(
            gains=gains[:, rows],
            offsets=offsets + gains[:, taken].sum(axis=1),
            columns=columns[rows],
            low=low - used,
            high=high - used,
            names=names,
            unit=unit,
            rows=rows,
            pool=columns,
            clash=clash,
        )

    @property
    def n(self) -> int:
        """Candidates."""
        return len(self.rows)

    @property
    def per(self) -> Float64:
        """The mean coefficient of each constraint where it has any, else 1: [K]."""
        entries = np.bincount(self.columns.indices, minlength=len(self.names))
        total = np.bincount(
            self.columns.indices, weights=self.columns.data, minlength=len(self.names)
        )
        return np.where(total > 0, total / np.maximum(entries, 1), 1.0)

    def reduced(self, prices: Float64, weights: Float64) -> Float64:
        """What each candidate is worth beyond what it takes of the constraints, [n]."""
        return np.asarray(weights @ self.gains - self.columns @ prices)

    def margins(self, reduced: Float64) -> Float64:
        """What choosing each candidate adds to the bound, its unit's best other one left, [n].

        Above 0 it belongs to the relaxation's optimum, below 0 it does not; forcing it the other
        way lowers the bound by the magnitude.
        """
        return reduced - rivals(reduced, self.unit)

    def bound(self, prices: Float64, weights: Float64) -> float:
        """The upper bound of every choice at some prices."""
        places = np.zeros(len(prices))
        up, down = prices > 0, prices < 0
        places[up], places[down] = self.high[up], self.low[down]
        best = np.maximum(self.reduced(prices, weights), 0.0)
        if self.unit is not None:
            best = best_of_units(best, self.unit)
        return float(weights @ self.offsets + prices @ places + best.sum())

    def choice(self, problem: Selection, on: BoolArray) -> BoolArray:
        """Candidates and the rows that must be chosen, as bool [n_pool]."""
        chosen = np.zeros(problem.n_pool, dtype=bool)
        if problem.include is not None:
            chosen |= problem.include
        chosen[self.rows[on]] = True
        return chosen


def best_of_units(values: Float64, unit: Indices) -> Float64:
    """The largest value of each unit, [U]."""
    best = np.full(int(unit.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(best, unit, values)
    return best


def rivals(reduced: Float64, unit: Indices | None) -> Float64:
    """The best other value of each row's unit, 0 at least, [n]."""
    if unit is None:
        return np.zeros_like(reduced)
    best = best_of_units(reduced, unit)
    leads = reduced == best[unit]
    alone = np.bincount(unit[leads], minlength=len(best)) == 1
    second = np.full(len(best), -np.inf)
    np.maximum.at(second, unit[~leads], reduced[~leads])
    other = np.where(leads & alone[unit], second[unit], best[unit])
    return np.maximum(other, 0.0)


def _decided(problem: Selection, without: Collection[Demand]) -> tuple[BoolArray, BoolArray, bool]:
    """Rows that must be in, rows that cannot be, and whether these contradict each other."""
    nothing = np.zeros(problem.n_pool, dtype=bool)
    taken, barred = nothing, nothing
    if problem.include is not None and Demand(INCLUDE, "") not in without:
        taken = problem.include
    if problem.exclude is not None and Demand(EXCLUDE, "") not in without:
        barred = problem.exclude
    clash = bool((taken & barred).any())
    if problem.duplicates is not None and Demand(DUPLICATES, "") not in without and taken.any():
        groups, members = np.unique(problem.duplicates[taken], return_counts=True)
        clash |= bool((members > 1).any())
        barred = barred | (np.isin(problem.duplicates, groups) & ~taken)
    return taken, barred & ~taken, clash


def _undominated(
    problem: Selection, gains: Float64, rows: Indices, unit: Indices
) -> tuple[Indices, Indices | None]:
    """Candidates without those that a duplicate in the same groups, as cheap, is worth more than.

    Swapping one for the other changes no count, so leaving them out loses nothing.
    """
    keys = [unit, *(each.labels[rows] for each in problem.partitions if each.limited)]
    order = np.lexsort((rows, -gains[rows], *reversed(keys)))
    first = np.zeros(len(rows), dtype=bool)
    for key in keys:
        first[1:] |= key[order[1:]] != key[order[:-1]]
    first[:1] = True
    best = order[np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))]
    keep = first.copy()
    for budget in problem.budgets:
        costs = budget.costs[rows]
        keep |= costs[order] < costs[best]
    kept = np.sort(order[keep])
    return rows[kept], np.unique(unit[kept], return_inverse=True)[1]


def _constraints(
    problem: Selection, without: Collection[Demand]
) -> tuple[tuple[str, ...], Float64, Float64, Any]:
    """Names, sides and coefficients of the size, the quotas and the budgets over the pool."""
    n, names = problem.n_pool, [SIZE]
    sides = [(float(problem.sizes[0]), float(problem.sizes[1]))]
    entries = [(np.arange(n), np.zeros(n, dtype=np.intp), np.ones(n))]
    for partition in problem.partitions:
        limited = partition.limited
        if not limited:
            continue
        place = np.searchsorted(limited, partition.labels)
        known = np.flatnonzero(np.isin(partition.labels, limited))
        entries.append((known, place[known] + len(names), np.ones(len(known))))
        names += [partition.name(group) for group in limited]
        sides += [
            (float(partition.minimum.get(g, 0)), float(partition.maximum.get(g, np.inf)))
            for g in limited
        ]
    for budget in problem.budgets:
        spent = np.flatnonzero(budget.costs)
        column = np.full(len(spent), len(names), dtype=np.intp)
        entries.append((spent, column, budget.costs[spent]))
        names.append(budget.name)
        sides.append((-np.inf, budget.limit))
    low, high = (np.array(each) for each in zip(*sides, strict=True))
    for number, name in enumerate(names):
        if Demand(name, "least") in without:
            low[number] = -np.inf
        if Demand(name, "most") in without:
            high[number] = np.inf
    row, column, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    columns = sparse.csr_array((value, (row, column)), shape=(n, len(names)))
    return tuple(names), low, high, columns
