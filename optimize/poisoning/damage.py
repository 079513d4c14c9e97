"""From predicted to retrained damage: poisoned models, their calibration, and budget curves.

Linear predictions of poisons are far too large: on digits 28 flips were to take 170 to 300 nats
from a class's mean margin and took 4 to 6, 14 flips half the first and three quarters of the
second. So a scale and a power are fitted to models trained on poisoned sets, and predictions are
read through them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from attribution.retraining import Retrained, Retraining
from optimize.poisoning.moves import Universe
from optimize.poisoning.problem import Poisoning, solve_poisoning
from optimize.problem import Solution
from schemas.errors import ShapeError

Float64 = npt.NDArray[np.float64]

POWERS = tuple(float(power) for power in np.linspace(0.2, 1.0, 17))


@dataclass(frozen=True, kw_only=True, eq=False)
class PoisonedModels:
    """Models trained on poisoned sets, beside models of the clean rows.

    Attributes:
        found: What was trained; the clean set is number 0, the others follow in their order.
        targets: Labels [n_query] of the queries.
    """

    found: Retrained
    targets: npt.NDArray[np.integer]

    def changes(self, weights: npt.ArrayLike) -> Float64:
        """Change of a weighted sum of outputs against the clean rows, seeds averaged, [n_sets]."""
        sums = self.found.outputs.mean(axis=1) @ np.asarray(weights, dtype=np.float64)
        return np.asarray(sums[1:] - sums[0])

    def losses(self, queries: npt.ArrayLike) -> Float64:
        """Mean cross-entropy of some queries, [1 + n_sets, seeds], the clean set first."""
        asked = np.asarray(queries)
        logits = self.found.logits[:, :, asked].astype(np.float64)
        own = self.targets[asked][None, None, :, None]
        picked = np.take_along_axis(logits, np.broadcast_to(own, (*logits.shape[:3], 1)), axis=3)
        return np.asarray((np.logaddexp.reduce(logits, axis=3) - picked[..., 0]).mean(axis=2))

    def accuracies(self, queries: npt.ArrayLike) -> Float64:
        """Share of some queries that are classified rightly, [1 + n_sets, seeds]."""
        asked = np.asarray(queries)
        right = self.found.logits[:, :, asked].argmax(axis=-1) == self.targets[asked]
        return np.asarray(right.mean(axis=2))


def train_poisoned(retraining: Retraining, universe: Universe) -> PoisonedModels:
    """Train `retraining.seeds` models on the clean rows and on each poisoned set, all as one.

    Args:
        retraining: Recipe, queries and seeds; its own training rows give way to the universe's.
        universe: The poisoned sets.

    Raises:
        TrainingDiverged: A loss became NaN or infinite.
    """
    masks = np.concatenate([universe.clean[None], universe.masks])
    found = replace(retraining, train=universe.train).on(masks)
    return PoisonedModels(found=found, targets=np.asarray(retraining.queries[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class DamageScale:
    """Observed changes as a scaled power of predicted ones, the sign kept.

    Attributes:
        scale: a of observed = a |predicted|^power.
        power: 1 where effects add up; less where they saturate.
        error: Root mean square of the leave-one-out errors, in the output's unit.
        n: Poisoned sets that it was fitted to.
    """

    scale: float
    power: float
    error: float
    n: int

    def __call__(self, predicted: npt.ArrayLike) -> Float64:
        """Calibrated changes."""
        values = np.asarray(predicted, dtype=np.float64)
        return np.asarray(self.scale * np.sign(values) * np.abs(values) ** self.power)

    def inverse(self, observed: float) -> float:
        """The prediction that stands for an observed change of 0 or more: a bound's other side."""
        return (observed / self.scale) ** (1 / self.power) if self.scale else np.inf


def fit_scale(
    predicted: npt.ArrayLike, observed: npt.ArrayLike, *, powers: Sequence[float] = POWERS
) -> DamageScale:
    """Fit the size of predictions to retrained models.

    For each power the scale is that of least squares; the power is the one of the least exact
    leave-one-out error. A negative scale is refused and becomes 0: predictions that point the
    wrong way predict nothing.

    Args:
        predicted: Predicted change of one aggregate for each poisoned set, linear in its moves.
        observed: What retraining found.
        powers: Powers to try.

    Raises:
        ShapeError: Fewer than three sets, arrays that do not fit, or predictions of which fewer
            than two differ from 0.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (predicted, observed))
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3:
        raise ShapeError(
            f"predictions have shape {x.shape} and observations {y.shape}; give one of each for "
            "three poisoned sets or more"
        )
    # One alone would be left out of the only fit there is.
    if not (np.isfinite(x).all() and np.isfinite(y).all()) or np.count_nonzero(x) < 2:
        raise ShapeError(
            f"{np.count_nonzero(x)} of {len(x)} predictions differ from 0, and "
            f"{np.isfinite(x).sum()} of them and {np.isfinite(y).sum()} observations are finite; "
            "all must be finite and two or more differ from 0"
        )
    tried = []
    for power in powers:
        powered = np.sign(x) * np.abs(x) ** power
        total = float(powered @ powered)
        scale = max(0.0, float(powered @ y) / total)
        left_out = (y - scale * powered) / (1 - powered**2 / total) if scale else y
        error = float(np.sqrt((left_out**2).mean()))
        tried.append(DamageScale(scale=scale, power=float(power), error=error, n=len(x)))
    return min(tried, key=lambda one: one.error)


def changes_to_come(
    poisoned: npt.ArrayLike,
    clean: npt.ArrayLike,
    *,
    others: npt.ArrayLike,
    coming: int,
    proportional: bool = False,
    confidence: float = 0.95,
) -> tuple[Float64, Float64]:
    """What to expect of a mean over new models of poisoned sets, against new ones of clean rows.

    How far models of one set are apart is pooled over all sets, and the interval is t's. Which sets
    there are must not have been chosen by `poisoned`; `others` may have chosen them.

    Args:
        poisoned: [n_sets, repeats], a value of each model.
        clean: [n_clean], the same of models of the clean rows.
        others: [m, repeats'], of further sets: they say how far models are apart, and no more.
        coming: Models in each mean that is to come.
        proportional: Whether models are apart in proportion to their mean, as losses are.
        confidence: Of the intervals.

    Returns:
        Expected changes [n_sets], and half widths of their intervals.

    Raises:
        ShapeError: Nothing was trained twice, or means that are to scale the spread are not above
            0.
    """
    own, base, beside = (np.asarray(each, dtype=np.float64) for each in (poisoned, clean, others))
    freedom = sum(each.size - len(each) for each in (own, beside))
    if own.ndim != 2 or beside.ndim != 2 or freedom < 1 or base.size < 2:
        raise ShapeError(
            f"values have shapes {own.shape}, {beside.shape} and {base.shape}; give some models of "
            "each set, [n_sets, repeats], and two or more of the clean rows"
        )
    total = 0.0
    for each in (own, beside):
        level = each.mean(axis=1, keepdims=True)
        if proportional and not (level > 0).all():
            raise ShapeError(f"a mean is {level.min():.3g}; proportional spreads need them above 0")
        total += float((((each - level) / (level if proportional else 1.0)) ** 2).sum())
    means = own.mean(axis=1)
    variance = total / freedom * (means**2 if proportional else np.ones_like(means))
    noise = variance * (1 / own.shape[1] + 1 / coming)
    noise += base.var(ddof=1) * (1 / base.size + 1 / coming)
    reach = stats.t.ppf((1 + confidence) / 2, freedom)
    return means - base.mean(), np.asarray(reach * np.sqrt(noise))


@dataclass(frozen=True, slots=True, kw_only=True)
class DamageCurve:
    """What each budget could do at worst.

    Attributes:
        budgets: Rows that may be changed.
        solutions: The worst moves of each.
        predicted: Float64 [n_budgets], the damage, calibrated where a scale was given.
        bounds: Float64 [n_budgets], what no moves are predicted to exceed, likewise.
    """

    budgets: tuple[int, ...]
    solutions: tuple[Solution, ...] = field(repr=False)
    predicted: Float64
    bounds: Float64


def damage_curve(
    problem: Poisoning, budgets: Sequence[int], *, scale: DamageScale | None = None
) -> DamageCurve:
    """What could a contributor of m rows do, for several m?

    Args:
        problem: Its own budget is not used.
        budgets: Rows that may be changed.
        scale: Of the targets' aggregate; None leaves predictions as they are.
    """
    counts = tuple(sorted(set(budgets)))
    solutions = tuple(solve_poisoning(replace(problem, budget=count)) for count in counts)
    values, bounds = np.array([(one.value, one.bound) for one in solutions]).reshape(-1, 2).T
    if scale is not None:
        values, bounds = scale(values), scale(bounds)
    return DamageCurve(budgets=counts, solutions=solutions, predicted=values, bounds=bounds)


def weak_spots(problem: Poisoning, groups: npt.ArrayLike) -> Mapping[int, Solution]:
    """The worst that each group of rows could do alone, the most dangerous group first.

    Args:
        problem: Moves over all rows; budget and allowance hold for each group.
        groups: Int [n_rows], the source or class of each row that moves name.

    Returns:
        A solution for each group that has moves, over all moves.

    Raises:
        ShapeError: A move names a row that has no group.
    """
    of_row = np.asarray(groups)
    if of_row.ndim != 1 or problem.rows.max() >= len(of_row) or problem.rows.min() < 0:
        raise ShapeError(
            f"groups have shape {of_row.shape} and moves name row {problem.rows.max()}; give the "
            "group of each row"
        )
    of_move = of_row[problem.rows]
    found = {}
    for group in np.unique(of_move).tolist():
        inside = np.flatnonzero(of_move == group)
        part = replace(
            problem,
            damage=problem.damage[inside],
            side=problem.side[inside],
            rows=problem.rows[inside],
        )
        solution = solve_poisoning(part)
        choice = np.zeros(len(of_move), dtype=bool)
        choice[inside[solution.choice]] = True
        found[group] = replace(solution, choice=choice)
    return dict(sorted(found.items(), key=lambda item: -item[1].value))
