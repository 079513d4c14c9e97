"""Decisions over attribution scores: calibrated predictions, and choices with a certificate.

Importing this package is cheap; the names below load NumPy and SciPy when they are first used. The
function `select` is not among them, since the package's name `select` is its module: say
``from optimize.select import select``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimize.averaged import MeanDatamodel
    from optimize.datamodel import LinearDatamodel
    from optimize.design import Bought, NextMasks, bought, next_masks
    from optimize.problem import Selection, Solution, Status
    from optimize.select import balanced_subset, random_subset, solve_selection
    from optimize.surrogate import calibrate

__all__ = [
    "Bought",
    "LinearDatamodel",
    "MeanDatamodel",
    "NextMasks",
    "Selection",
    "Solution",
    "Status",
    "balanced_subset",
    "bought",
    "calibrate",
    "next_masks",
    "random_subset",
    "solve_selection",
]

_HOMES = {
    "LinearDatamodel": "optimize.datamodel",
    "MeanDatamodel": "optimize.averaged",
    "Bought": "optimize.design",
    "NextMasks": "optimize.design",
    "bought": "optimize.design",
    "next_masks": "optimize.design",
    "Selection": "optimize.problem",
    "Solution": "optimize.problem",
    "Status": "optimize.problem",
    "balanced_subset": "optimize.select",
    "calibrate": "optimize.surrogate",
    "random_subset": "optimize.select",
    "solve_selection": "optimize.select",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'optimize' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
