"""Concave objectives by cuts: outputs less some standard deviations, or the worst of several such.

Each f_j(x) = base_j + utility_j x - kappa sd_j(x) is concave, so its tangents lie above it: with
those found so far for pieces, the relaxation bounds every choice from above (Kelley 1960). Tangents
are taken half-way between the relaxation's optimum and the best point known (Ben-Ameur and Neto
2007), then at whole choices, where they are exact (Duran and Grossmann 1986).
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from optimize.problem import BoolArray, Float64, Selection
from optimize.selection.integer import round_off
from optimize.selection.programme import Programme
from optimize.selection.relaxation import Relaxed, relax

# Tangents for the relaxation and then for whole choices, at most.
ROUNDS, WHOLE_ROUNDS = 60, 40
_SAME = 1e-12


class Found(NamedTuple):
    """The best choice, what no choice exceeds, and the last relaxation with its linear pieces."""

    choice: BoolArray | None
    bound: float
    relaxed: Relaxed
    programme: Programme
    pieces: tuple[Float64, Float64]


def maximise(problem: Selection, *, gap: float, seconds: float, nodes: int) -> Found:
    """The rows with the largest least f_j that the limits allow to find.

    Args:
        problem: With caution.
        gap: As for `optimize.selection.integer.round_off`.
        seconds: Of one integer programme.
        nodes: Of one integer programme.
    """
    cuts = _Cuts.of(problem)
    relaxed = relax(cuts.programme)
    best, choice, bound = -np.inf, None, np.inf
    for number in range(WHOLE_ROUNDS):
        if number == 1:  # the first choice was that of no caution
            relaxed, bound = _relax(problem, cuts, relaxed, gap)
        if relaxed.slack:
            break
        whole = round_off(cuts.programme, relaxed, gap=gap / 2, seconds=seconds, nodes=nodes)
        bound = min(bound, whole.bound)
        if whole.on is None:
            break
        rows = cuts.programme.choice(problem, whole.on)
        if (value := problem.value(rows)) > best:
            best, choice = value, rows
        if bound - best <= gap * max(1.0, abs(bound)):
            break
        if not cuts.add(problem, rows.astype(np.float64)) and number:
            break
        relaxed = relax(cuts.programme, relaxed)
        bound = min(bound, relaxed.bound)
    return Found(choice, bound, relaxed, cuts.programme, cuts.pieces)


def _relax(
    problem: Selection, cuts: "_Cuts", relaxed: Relaxed, gap: float
) -> tuple[Relaxed, float]:
    """The relaxation once its tangents support its optimum, and its bound."""
    bound, level = relaxed.bound, -np.inf
    centre: Float64 | None = None
    for _ in range(ROUNDS):
        if relaxed.slack:
            break
        x = cuts.pool(problem, relaxed.x)
        at = x if centre is None else (x + centre) / 2
        for point in (x, at):
            if (value := problem.value(point)) > level:
                centre, level = point, value
        if bound - level <= gap / 2 * max(1.0, abs(bound)) or not cuts.add(problem, at):
            break
        relaxed = relax(cuts.programme, relaxed)
        bound = min(bound, relaxed.bound)
    return relaxed, bound


@dataclasses.dataclass(slots=True)
class _Cuts:
    """The tangents so far: linear pieces over the pool, and the programme of them."""

    pieces: tuple[Float64, Float64]
    programme: Programme

    @classmethod
    def of(cls, problem: Selection) -> "_Cuts":
        """Those that know no sd: above f since kappa sd is not negative."""
        return cls(problem.pieces, Programme.of(problem, problem.pieces))

    def pool(self, problem: Selection, x: Float64) -> Float64:
        """Candidates' fractions as those of all rows, [n_pool]."""
        rows = self.programme.choice(problem, np.zeros(self.programme.n, bool)).astype(np.float64)
        rows[self.programme.rows] = x
        return rows

    def add(self, problem: Selection, rows: Float64) -> bool:
        """Put the tangents at a point beside the others; whether any lies below those there."""
        gains, offsets = self.pieces
        known = float((gains @ rows + offsets).min())
        fresh = False
        for gain, offset, spread in zip(*problem.pieces, problem.spreads, strict=True):
            sd, slope = spread.slope(rows)
            tangent = gain - problem.caution * slope
            level = offset - problem.caution * (sd - slope @ rows)
            if tangent @ rows + level < known - _SAME * max(1.0, abs(known)):
                gains, offsets = np.vstack([gains, tangent]), np.append(offsets, level)
                fresh = True
        taken = self.pool(problem, np.zeros(self.programme.n)) > 0
        self.pieces = gains, offsets
        self.programme = dataclasses.replace(
            self.programme,
            gains=gains[:, self.programme.rows],
            offsets=offsets + gains[:, taken].sum(axis=1),
        )
        return fresh
