"""What one more unit of each constraint is worth: the dual prices of the relaxation, by name."""

import numpy as np

from optimize.problem import DUPLICATES, EXCLUDE, INCLUDE, SIZE, Float64, Selection
from optimize.selection.programme import Programme, best_of_units, rivals


def prices(
    problem: Selection,
    programme: Programme,
    found: Float64,
    pieces: tuple[Float64, Float64],
    weights: Float64,
) -> dict[str, float]:
    """Prices by name, each what the relaxation's value gains when a limit is loosened by one.

    Of rows that must be chosen, or must not, and of duplicates, it is the gain when all of them are
    loosened together: when every such row may be left out, or put in, by a share, for each whole
    share; when every duplicate group may give one row more.

    Args:
        problem: The problem.
        programme: Its programme.
        found: Prices of the programme's constraints, [K].
        pieces: The linear pieces [J, n_pool], [J] that were maximised in the end.
        weights: [J], theirs.
    """
    named = dict(zip(programme.names, found.tolist(), strict=True))
    if problem.size is None:
        del named[SIZE]
    special = (problem.include, problem.exclude, problem.duplicates)
    if all(each is None for each in special):
        return named
    worth = weights @ pieces[0] - programme.pool @ found
    taken, barred = (
        np.zeros(problem.n_pool, bool) if mask is None else mask for mask in special[:2]
    )
    unit = np.arange(problem.n_pool)
    if problem.duplicates is not None:
        unit = np.unique(problem.duplicates, return_inverse=True)[1]
    full = np.zeros(int(unit.max()) + 1, dtype=bool)
    full[unit[taken]] = True
    rival = np.where(taken | barred, -np.inf, worth)
    best = np.maximum(best_of_units(rival, unit), 0.0)
    if problem.include is not None:
        named[INCLUDE] = float(np.minimum(worth - best[unit], 0.0)[taken].sum())
    if problem.exclude is not None:
        outside = np.where(barred & ~full[unit], worth - best[unit], 0.0)
        named[EXCLUDE] = float(np.maximum(outside, 0.0).sum())
    if problem.duplicates is not None:
        second = np.full(len(best), -np.inf)
        leads = rival == best_of_units(rival, unit)[unit]
        np.maximum.at(second, unit, np.where(leads, rivals(rival, unit), rival))
        named[DUPLICATES] = float(np.maximum(np.where(full, best, second), 0.0).sum())
    return named
