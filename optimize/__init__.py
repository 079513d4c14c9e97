"""Decisions over attribution scores: calibrated predictions, and choices with a certificate.

Importing this package is cheap; the names below load NumPy and SciPy when they are first used. The
function `select` is not among them, since the package's name `select` is its module: say
``from optimize.select import select``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimize.aim import Aimed, aimed_subsets
    from optimize.averaged import MeanDatamodel
    from optimize.bent import BentDatamodel, bend
    from optimize.curve import Family, SizeCurve, best_rows, size_curve, size_grid
    from optimize.datamodel import LinearDatamodel
    from optimize.design import Bought, NextMasks, bought, next_masks
    from optimize.problem import Budget, Partition, Selection, Solution, Status
    from optimize.select import balanced_subset, random_subset, refuse_conflicts, solve_selection
    from optimize.spread import Spread, spread_of
    from optimize.surrogate import calibrate

__all__ = [
    "Aimed",
    "BentDatamodel",
    "Bought",
    "Budget",
    "Family",
    "LinearDatamodel",
    "MeanDatamodel",
    "NextMasks",
    "Partition",
    "Selection",
    "SizeCurve",
    "Solution",
    "Spread",
    "Status",
    "aimed_subsets",
    "balanced_subset",
    "bend",
    "best_rows",
    "bought",
    "calibrate",
    "next_masks",
    "random_subset",
    "refuse_conflicts",
    "size_curve",
    "size_grid",
    "solve_selection",
    "spread_of",
]

_HOMES = {
    "Aimed": "optimize.aim",
    "BentDatamodel": "optimize.bent",
    "Bought": "optimize.design",
    "Budget": "optimize.problem",
    "Family": "optimize.curve",
    "LinearDatamodel": "optimize.datamodel",
    "MeanDatamodel": "optimize.averaged",
    "NextMasks": "optimize.design",
    "Partition": "optimize.problem",
    "Selection": "optimize.problem",
    "SizeCurve": "optimize.curve",
    "Solution": "optimize.problem",
    "Spread": "optimize.spread",
    "Status": "optimize.problem",
    "aimed_subsets": "optimize.aim",
    "balanced_subset": "optimize.select",
    "bend": "optimize.bent",
    "best_rows": "optimize.curve",
    "bought": "optimize.design",
    "calibrate": "optimize.surrogate",
    "next_masks": "optimize.design",
    "random_subset": "optimize.select",
    "refuse_conflicts": "optimize.select",
    "size_curve": "optimize.curve",
    "size_grid": "optimize.curve",
    "solve_selection": "optimize.select",
    "spread_of": "optimize.spread",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'optimize' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
