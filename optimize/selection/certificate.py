"""Checks of an answer that look at the problem and the chosen rows only."""

import numpy as np

from optimize.problem import DUPLICATES, EXCLUDE, INCLUDE, SIZE, BoolArray, Selection
from optimize.selection.programme import Demand

# Budgets are sums of floating-point costs.
_ROUNDING = 1e-9


def violated(problem: Selection, choice: BoolArray) -> list[Demand]:
    """The demands that a choice does not meet; none for a feasible one."""
    found = []
    size, (least, most) = int(choice.sum()), problem.sizes
    found += [Demand(SIZE, "least")] * (size < least) + [Demand(SIZE, "most")] * (size > most)
    for partition in problem.partitions:
        groups, rows = np.unique(partition.labels[choice], return_counts=True)
        taken = dict(zip(groups.tolist(), rows.tolist(), strict=True))
        for group in partition.limited:
            name, rows_of = partition.name(group), taken.get(group, 0)
            if rows_of < partition.minimum.get(group, 0):
                found.append(Demand(name, "least"))
            if rows_of > partition.maximum.get(group, rows_of):
                found.append(Demand(name, "most"))
    for budget in problem.budgets:
        if float(budget.costs[choice].sum()) > budget.limit * (1 + _ROUNDING):
            found.append(Demand(budget.name, "most"))
    if problem.duplicates is not None:
        groups = problem.duplicates[choice]
        found += [Demand(DUPLICATES, "")] * (len(np.unique(groups)) < len(groups))
    if problem.include is not None and (problem.include & ~choice).any():
        found.append(Demand(INCLUDE, ""))
    if problem.exclude is not None and (problem.exclude & choice).any():
        found.append(Demand(EXCLUDE, ""))
    return found


def demands(problem: Selection) -> list[Demand]:
    """Everything that a problem asks, one by one."""
    found = [Demand(SIZE, "least")] + [Demand(SIZE, "most")] * (problem.size is not None)
    for partition in problem.partitions:
        for side, quotas in (("least", partition.minimum), ("most", partition.maximum)):
            found += [Demand(partition.name(group), side) for group in sorted(quotas)]
    found += [Demand(budget.name, "most") for budget in problem.budgets]
    masks = ((INCLUDE, problem.include), (EXCLUDE, problem.exclude))
    found += [Demand(name, "") for name, mask in masks if mask is not None and mask.any()]
    if problem.duplicates is not None:
        found.append(Demand(DUPLICATES, ""))
    return found
