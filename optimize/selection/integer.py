"""Whole rows from a relaxation: a small integer programme over the candidates nearest to doubt.

The core problem (Balas and Zemel 1980): candidates whose margin is large stay as the relaxation has
them, the rest is solved exactly by HiGHS. Forcing a decided candidate the other way would lower the
Lagrange bound by its margin, so what the core proves, or that, bounds every choice.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint

from optimize.highs import integer_programme
from optimize.problem import BoolArray
from optimize.selection.programme import Indices, Programme
from optimize.selection.relaxation import Relaxed

# Sizes of the core that are tried in turn, the last being everything.
CORES = (1_500, 20_000)
_TIMED_OUT, _INFEASIBLE = 1, 2


class Whole(NamedTuple):
    """The best candidates that were found.

    Attributes:
        on: Bool [n]; None where nothing satisfies the constraints.
        bound: What no choice can exceed, in the programme's units.
    """

    on: BoolArray | None
    bound: float


def round_off(
    programme: Programme, relaxed: Relaxed, *, gap: float, seconds: float, nodes: int
) -> Whole:
    """The best choice of whole candidates that the limits allow to find.

    Args:
        programme: The programme.
        relaxed: The optimum of its relaxation, without slack.
        gap: Stop when bound and value differ by less than this, relative to the bound where that
            exceeds 1.
        seconds: Stop when a core took as long.
        nodes: Stop when a core branched as often: unlike seconds the same on every machine.
    """
    margins = programme.margins(programme.reduced(relaxed.prices, relaxed.weights))
    # What the bound loses when a candidate goes the other way; 0 where the relaxation has erred.
    loss = np.maximum(np.where(relaxed.x > 0.5, margins, -margins), 0.0)
    torn = (relaxed.x > 1e-6) & (relaxed.x < 1 - 1e-6)
    if not programme.n:
        return Whole(torn, relaxed.bound)
    best = Whole(None, relaxed.bound)
    value = -np.inf
    for size in (*(core for core in CORES if core < programme.n), programme.n):
        core = np.ones(programme.n, dtype=bool)
        if size < programme.n:
            core = torn.copy()
            core[np.argpartition(loss, size)[:size]] = True
        found = _solve_core(programme, relaxed, core, gap=gap, seconds=seconds, nodes=nodes)
        outside = relaxed.bound - float(loss[~core].min(initial=np.inf))
        bound = min(best.bound, max(found.bound, outside))
        if found.on is not None:
            reached = float((programme.gains @ found.on + programme.offsets).min())
            if reached > value:
                best, value = Whole(found.on, bound), reached
        best = Whole(best.on, bound)
        if best.on is not None and (bound - value <= gap * max(1.0, abs(bound))):
            break
        if best.on is not None and outside < value:
            break  # a larger core cannot help: more nodes might
    return best


def _solve_core(
    programme: Programme,
    relaxed: Relaxed,
    core: BoolArray,
    *,
    gap: float,
    seconds: float,
    nodes: int,
) -> Whole:
    on = (relaxed.x > 0.5) & ~core
    inside = np.flatnonzero(core)
    limits = _limits(programme, on, inside)
    gains, fixed = programme.gains[:, inside], programme.gains[:, on].sum(axis=1)
    offsets = programme.offsets + fixed
    unit = float(np.abs(gains).max(initial=0.0)) or 1.0
    m = len(inside)
    cost = np.zeros(m + 2)
    # The last variable is 1: it carries the constant, to which HiGHS's relative gap then refers.
    cost[m + 1] = -offsets.mean() / unit
    if len(gains) > 1:
        cost[m] = -1.0
        level = (offsets - offsets.mean()) / unit
        limits.append(
            LinearConstraint(
                sparse.csr_array(np.column_stack([gains / unit, -np.ones(len(gains)), 0 * level])),
                -level,
                np.inf,
            )
        )
    else:
        cost[:m] = -gains[0] / unit
    free = np.inf if len(gains) > 1 else 0.0
    result = integer_programme(
        cost,
        integrality=np.r_[np.ones(m), 0, 0],
        bounds=Bounds(np.r_[np.zeros(m), -free, 1], np.r_[np.ones(m), free, 1]),
        constraints=limits,
        options={"mip_rel_gap": gap, "time_limit": seconds, "node_limit": nodes},
    )
    if result.status == _INFEASIBLE:
        return Whole(None, -np.inf)
    proven = result.mip_dual_bound
    bound = np.inf if proven is None or not np.isfinite(proven) else -float(proven) * unit
    if result.x is None:
        return Whole(None, bound)
    chosen = on.copy()
    chosen[inside] = result.x[:m] > 0.5
    return Whole(chosen, bound)


def _limits(programme: Programme, on: BoolArray, inside: Indices) -> list[LinearConstraint]:
    """The constraints on the core, of two idle variables beside it."""
    spent = on @ programme.columns
    columns: Any = sparse.csr_array(programme.columns[inside])
    per = programme.per
    rows = sparse.hstack([(columns / per).T, sparse.csr_array((len(per), 2))], format="csr")
    found = [LinearConstraint(rows, (programme.low - spent) / per, (programme.high - spent) / per)]
    if programme.unit is not None:
        unit = programme.unit[inside]
        taken = np.isin(programme.unit, programme.unit[on])[inside]
        names, place = np.unique(unit, return_inverse=True)
        ones = sparse.csr_array(
            (np.ones(len(unit)), (place, np.arange(len(unit)))), shape=(len(names), len(unit) + 2)
        )
        room = np.ones(len(names))
        room[place[taken]] = 0.0
        found.append(LinearConstraint(ones, -np.inf, room))
    return found
