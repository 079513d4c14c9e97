"""The kinds of problem that are solved over scores and judged by retraining, a module each.

Whatever the kind, a problem is checked before anything is trained, solved over the calibrated
surrogate, and judged by retraining; solutions and verdicts have one shape in artifacts and tables.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from schemas.manifest import Manifest
from tasks.blueprint import Blueprint
from tasks.problems import debug, poison, select, trace, unlearn


class Kind(NamedTuple):
    """What is done for one kind of problem.

    Attributes:
        check: Refuses what cannot be solved: (plan, problem).
        solve: Seals the solution: (plan, problem, key).
        judge: Retrains and seals the verdict: (plan, problem, key).
    """

    check: Callable[[Blueprint, Any], None]
    solve: Callable[[Blueprint, Any, str], Manifest]
    judge: Callable[[Blueprint, Any, str], Manifest]


# By the kind that a spec's `[[problem]]` names.
KINDS = {
    "debug": Kind(debug.check, debug.solve, debug.judge),
    "poison": Kind(poison.check, poison.solve, poison.judge),
    "select": Kind(select.check, select.solve, select.judge),
    "unlearn": Kind(unlearn.check, unlearn.solve, unlearn.judge),
    "trace": Kind(trace.check, trace.solve, trace.judge),
}
