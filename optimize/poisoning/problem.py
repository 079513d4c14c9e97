"""The worst that a budget of changed rows can do: a problem over moves, solved with a certificate.

A move puts a label on a row: a flip of a training row, or the insertion of a candidate. Each has a
predicted damage to the targets and a predicted side effect on everything else; both add up over
moves, at most one a row. Nothing here predicts or retrains.
"""

import operator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import LinearConstraint

from optimize.highs import integer_programme
from optimize.problem import Solution, Status
from schemas.errors import InfeasibleProblem, ShapeError

Float64 = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# HiGHS stops within 1e-6 of its objective, whose largest coefficient is made SCALE; sums of the
# same numbers in another order differ by rounding.
_SCALE = 1e3
_CLOSED = 1e-8
_HALVINGS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisoning:
    """Choose at most `budget` moves, at most one a row, of the largest total damage.

    Attributes:
        damage: Float64 [n_moves], finite: what each move takes from the targets, larger is worse
            for them.
        side: Float64 [n_moves], finite: what each move adds to everything else, negative where it
            harms.
        rows: Int [n_moves], the row that each move changes.
        budget: Moves at most, 1 or more; fewer are chosen where no other helps.
        allowance: What everything else may lose in total, 0 or more: the attack stays unnoticed.

    Raises:
        ShapeError: The arrays do not fit, or a number is not finite.
        InfeasibleProblem: The budget is 0, or the allowance is negative.
    """

    kind: ClassVar[str] = "poison"

    damage: Float64
    side: Float64
    rows: npt.NDArray[np.int64]
    budget: int
    allowance: float = np.inf

    def __post_init__(self) -> None:
        rows = np.asarray(self.rows)
        if rows.ndim != 1 or len(rows) == 0 or rows.dtype.kind not in "iu":
            raise ShapeError(
                f"rows are {rows.dtype} of shape {rows.shape}; give the row of each move"
            )
        object.__setattr__(self, "rows", rows.astype(np.int64))
        for name in ("damage", "side"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            if values.shape != rows.shape:
                raise ShapeError(
                    f"{name} has shape {values.shape} for {len(rows)} moves; give one number each"
                )
            if not np.isfinite(values).all():
                move = int(np.flatnonzero(~np.isfinite(values))[0])
                raise ShapeError(f"the {name} of move {move} is {values[move]}; it must be finite")
            object.__setattr__(self, name, values)
        try:
            budget = operator.index(self.budget)
        except TypeError:
            raise ShapeError(f"budget is {self.budget!r}; give a whole number of rows") from None
        if budget < 1:
            raise InfeasibleProblem(f"budget is {budget}; allow at least 1 row")
        if not self.allowance >= 0:
            raise InfeasibleProblem(
                f"allowance is {self.allowance}; it is what may be lost, 0 or more"
            )
        object.__setattr__(self, "budget", budget)


def solve_poisoning(problem: Poisoning, *, seconds: float = 20.0) -> Solution:
    """The moves of the largest total damage, and a bound that no moves can exceed.

    Method: for a price mu of side effects each row's best move is a maximum and the best rows are a
    sort, so the dual L(mu) is exact; it is convex and is minimised by halving. Moves whose use
    would push the dual below the best choice found cannot be in a better one and are dropped; HiGHS
    closes the gap on the few that remain.

    Args:
        problem: What is asked.
        seconds: For HiGHS; when they run out the best choice so far is returned with its bound.

    Returns:
        `choice` bool [n_moves]. Prices: "budget", what one more row would add, and "allowance",
        what one more unit of it would, both of the dual.
    """
    search = _Dual(problem)
    search.minimise()
    choice, bound = search.choice, search.bound
    if bound - search.value > _rounding(problem):
        choice, bound = _close(problem, search, seconds)
    value = float(problem.damage[choice].sum())
    optimal = bound - value <= _rounding(problem)
    return Solution(
        status=Status.OPTIMAL if optimal else Status.FEASIBLE,
        choice=choice,
        value=value,
        bound=value if optimal else bound,
        prices={"budget": search.threshold, "allowance": search.price},
        sentence=_sentence(problem, choice, search, optimal=optimal),
    )


class _Dual:
    """Lagrangian of the allowance; the best feasible choice and the lowest bound met on the way."""

    def __init__(self, problem: Poisoning) -> None:
        self.problem = problem
        _, self.group = np.unique(problem.rows, return_inverse=True)
        self.n_rows = int(self.group.max()) + 1
        self.choice = np.zeros(len(problem.rows), dtype=bool)
        self.value, self.bound = 0.0, np.inf
        self.price = self.threshold = 0.0
        self._worth = np.zeros(len(problem.rows))
        self._best = np.zeros(self.n_rows)

    def minimise(self) -> None:
        """Halve the interval of prices that holds the least dual value."""
        if self._try(0.0):
            return
        low, high = 0.0, 1.0
        while not self._try(high):
            low, high = high, 4 * high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if not low < middle < high:
                return
            if self._try(middle):
                high = middle
            else:
                low = middle

    def may_improve(self) -> npt.NDArray[np.intp]:
        """Moves that some choice better than the one found could hold."""
        lost = np.maximum(self._best, self.threshold)[self.group] - self._worth
        return np.flatnonzero(self.bound - lost >= self.value - _rounding(self.problem))

    def _try(self, price: float) -> bool:
        """Whether the dual's choice at this price stays within the allowance."""
        problem = self.problem
        worth = problem.damage + (price * problem.side if price else 0.0)
        order = np.lexsort((-worth, self.group))
        first = order[np.searchsorted(self.group[order], np.arange(self.n_rows))]
        best = np.maximum(worth[first], 0.0)
        ranked = np.argsort(-best, kind="stable")
        taken = ranked[: problem.budget]
        taken = taken[best[taken] > 0]
        dual = float(best[taken].sum()) + (price * problem.allowance if price else 0.0)
        if dual < self.bound:
            rest = ranked[problem.budget : problem.budget + 1]
            self.bound, self.price = dual, price
            self.threshold = float(best[rest][0]) if len(rest) else 0.0
            self._worth, self._best = worth, best
        chosen = first[taken]
        value = float(problem.damage[chosen].sum())
        if problem.side[chosen].sum() < -problem.allowance:
            return False
        if value > self.value:
            self.value = value
            self.choice = np.zeros(len(problem.rows), dtype=bool)
            self.choice[chosen] = True
        return True


def _close(problem: Poisoning, search: _Dual, seconds: float) -> tuple[BoolArray, float]:
    """HiGHS over the moves that may still matter; a choice and a bound."""
    core = search.may_improve()
    group = np.unique(search.group[core], return_inverse=True)[1]
    ones, columns = np.ones(len(core)), np.arange(len(core))
    scale = _SCALE / float(np.abs(problem.damage[core]).max())
    harm = float(np.abs(problem.side[core]).max()) or 1.0
    constraints = [
        LinearConstraint(ones[None], ub=problem.budget),
        LinearConstraint(problem.side[core][None] / harm, lb=-problem.allowance / harm),
        LinearConstraint(sparse.csr_array((ones, (group, columns))), ub=1.0),
    ]
    found = integer_programme(
        -scale * problem.damage[core],
        integrality=ones,
        bounds=(0, 1),
        constraints=constraints,
        options={"time_limit": seconds, "mip_rel_gap": 0.0},
    )
    bound = search.bound
    if found.mip_dual_bound is not None:
        bound = min(bound, max(search.value, -float(found.mip_dual_bound) / scale))
    if found.x is None:
        return search.choice, bound
    choice = np.zeros(len(problem.rows), dtype=bool)
    choice[core[found.x > 0.5]] = True
    # HiGHS allows itself 1e-6 of slack; what is returned keeps to the allowance itself.
    feasible = problem.side[choice].sum() >= -problem.allowance
    better = problem.damage[choice].sum() > search.value
    return (choice if feasible and better else search.choice), bound


def _rounding(problem: Poisoning) -> float:
    largest = np.sort(np.abs(problem.damage))[-problem.budget :]
    return _CLOSED * float(largest.sum())


def _sentence(problem: Poisoning, choice: BoolArray, search: _Dual, *, optimal: bool) -> str:
    n_chosen, value = int(choice.sum()), float(problem.damage[choice].sum())
    claim = "no other choice is predicted to do more" if optimal else "a better one may exist"
    parts = [f"{n_chosen} of at most {problem.budget} rows take {value:.4g}; {claim}."]
    if search.threshold > 0:
        parts.append(f"One more row would take about {search.threshold:.3g}.")
    if search.price > 0:
        parts.append(f"One more unit of allowance would take up to {search.price:.3g}.")
    return " ".join(parts)
