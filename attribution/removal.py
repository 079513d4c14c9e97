"""Removal curves: what retraining without the rows that scores point at does to each output.

Every query has sets of its own, the k rows that are most helpful or most harmful to it by the
scores; random sets of the same size are the control, since removing any rows at all changes the
outputs. All sets are retrained as one batch of models. Helpful rows raise an output that should be
high and lower a loss.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from attribution.bank import RetrainBank
from attribution.outputs import Task, output_name
from attribution.retraining import Retrained, Retraining, top_rows
from attribution.statistics import mean_interval, welch_interval
from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalEffect:
    """What removing sets of one size did, in the output's unit.

    Attributes:
        size: Rows removed.
        per_query: Float64 [n_query], the change of each output, seeds averaged.
        mean: Mean over queries.
        interval: t-interval of `mean`, over queries and over the control's sets.
    """

    size: int
    per_query: FloatArray = field(repr=False)
    mean: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalCurve:
    """The effect of removing what scores point at, by the number of rows removed.

    Attributes:
        output: What was measured.
        helpful: Without the most helpful rows, minus without random rows.
        harmful: Without the most harmful rows, minus without random rows.
        random: Without random rows, minus with all of them.
        bank: All retrained models, as rows of a bank.
        confidence: The level of the intervals.
    """

    output: str
    helpful: tuple[RemovalEffect, ...]
    harmful: tuple[RemovalEffect, ...]
    random: tuple[RemovalEffect, ...]
    bank: RetrainBank = field(repr=False)
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallestFlip:
    """How few rows carry each prediction, by the scores.

    Attributes:
        smallest: Float64 [n_query], the smallest number of helpful rows tried whose removal makes
            the models predict another class than the query's; 0 where models trained on all rows
            already do, infinite where no size sufficed.
        right: Bool [n_query], models trained on all rows predict the query's class.
        largest: The largest size tried.
        random_share: Share of the rightly predicted queries that are lost when `largest` random
            rows are removed.
        models: Models trained.
    """

    smallest: FloatArray = field(repr=False)
    right: npt.NDArray[np.bool_] = field(repr=False)
    largest: int
    random_share: float
    models: int

    def share(self, size: int) -> float:
        """Share of the rightly predicted queries that removing at most `size` rows flips."""
        return float(np.mean(self.smallest[self.right] <= size)) if self.right.any() else math.nan


def removal_curve(
    scores: npt.ArrayLike,
    retraining: Retraining,
    *,
    sizes: Sequence[int],
    random_sets: int = 5,
    confidence: float = 0.95,
) -> RemovalCurve:
    """Retrain without the most helpful, the most harmful and random rows (Ilyas et al. 2022).

    One batch of `seeds` x (1 + len(sizes) x (2 n_query + random_sets)) models is trained.

    Args:
        scores: Float [n_query, n_train], positive where training on the row raises the output.
        retraining: Data, recipe, output and seeds.
        sizes: Numbers of rows to remove.
        random_sets: Control sets of each size, two or more; all queries share them.
        confidence: Level of the intervals.

    Raises:
        ShapeError: Scores do not fit, a size leaves no row, or there is a single random set.
        TrainingDiverged: A loss became NaN or infinite.
    """
    counts = _checked_sizes(sizes, retraining.n_train)
    if random_sets < 2:
        raise ShapeError(f"random_sets is {random_sets}; an interval needs two or more")
    helpful = top_rows(scores, retraining, helpful=True)
    harmful = top_rows(scores, retraining, helpful=False)
    removed: list[IndexArray] = [np.empty(0, dtype=np.intp)]
    for size in counts:
        removed += _random_sets(retraining, size, random_sets)
        removed += [*helpful[:, :size], *harmful[:, :size]]
    found = retraining.on(retraining.without(removed))
    n_query, everything = retraining.n_query, found.outputs[0]
    rows: dict[str, list[RemovalEffect]] = {"helpful": [], "harmful": [], "random": []}
    for number, size in enumerate(counts):
        start = 1 + number * (random_sets + 2 * n_query)
        control = found.outputs[start : start + random_sets].mean(axis=1)
        for place, name in enumerate(("helpful", "harmful")):
            first = start + random_sets + place * n_query
            # Query q is asked only of the models that lack its own rows.
            own = np.stack([found.outputs[first + q, :, q] for q in range(n_query)], axis=1)
            rows[name].append(_against_control(size, own, control, confidence))
        rows["random"].append(_against_all(size, control, everything, confidence))
    return RemovalCurve(
        output=output_name(retraining.kept),
        bank=found.bank,
        confidence=confidence,
        **{name: tuple(effects) for name, effects in rows.items()},
    )


def smallest_flip(
    scores: npt.ArrayLike,
    retraining: Retraining,
    *,
    sizes: Sequence[int],
    random_sets: int = 5,
    refine: bool = False,
) -> SmallestFlip:
    """The fewest helpful rows whose removal changes each prediction (Ilyas et al. 2022).

    The prediction is the class of highest probability, averaged over the seeds. All sizes of all
    queries are one batch of models. With `refine` each smallest size is narrowed down to a single
    row by bisection, one batch for each round; that supposes that more rows flip no less.

    Args:
        scores: Float [n_query, n_train], of the query's own class: margin, logprob, logit or loss.
        retraining: Data, recipe and seeds; the task must be classification.
        sizes: Numbers of rows to remove.
        random_sets: Control sets of the largest size.
        refine: Whether to bisect between the size that flips and the one below it.

    Raises:
        ShapeError: Scores do not fit, a size leaves no row, or the task is a regression.
        TrainingDiverged: A loss became NaN or infinite.
    """
    if retraining.kind is not Task.CLASSIFICATION:
        raise ShapeError(
            f"the task is {retraining.kind}, with no class that could flip; use removal_curve"
        )
    counts = _checked_sizes(sizes, retraining.n_train)
    order = top_rows(scores, retraining, helpful=True)
    n_query = retraining.n_query
    removed: list[IndexArray] = [np.empty(0, dtype=np.intp)]
    removed += _random_sets(retraining, counts[-1], random_sets)
    removed += [order[q, :size] for size in counts for q in range(n_query)]
    found = retraining.on(retraining.without(removed))
    wrong = _is_wrong(found, retraining)
    right = ~wrong[0]
    queries = np.arange(n_query)
    flipped = wrong[1 + random_sets :].reshape(len(counts), n_query, n_query)[:, queries, queries]
    first = np.where(flipped.any(axis=0), flipped.argmax(axis=0), len(counts))
    smallest = np.array([*counts, math.inf])[first]
    models = len(found.bank)
    if refine:
        floor = np.array([0, *counts])[first]
        models += _bisect(smallest, floor, right, order, retraining)
    smallest[~right] = 0
    lost = wrong[1 : 1 + random_sets, right]
    return SmallestFlip(
        smallest=smallest,
        right=right,
        largest=counts[-1],
        random_share=float(lost.mean()) if lost.size else math.nan,
        models=models,
    )


def _bisect(
    smallest: FloatArray,
    floor: npt.NDArray[np.intp],
    right: npt.NDArray[np.bool_],
    order: IndexArray,
    retraining: Retraining,
) -> int:
    """Narrow `smallest` down in place, from `floor` rows, which do not flip; models trained."""
    models, low = 0, floor.copy()
    while True:
        active = np.flatnonzero(right & np.isfinite(smallest) & (smallest - low > 1))
        if len(active) == 0:
            return models
        middle = (low[active] + smallest[active].astype(np.intp)) // 2
        sets = [order[q, :size] for q, size in zip(active, middle, strict=True)]
        found = retraining.on(retraining.without(sets))
        models += len(found.bank)
        flips = _is_wrong(found, retraining)[np.arange(len(active)), active]
        smallest[active[flips]] = middle[flips]
        low[active[~flips]] = middle[~flips]


def _is_wrong(found: Retrained, retraining: Retraining) -> npt.NDArray[np.bool_]:
    """Whether the seeds of a subset together predict another class, [n_subsets, n_query]."""
    predicted = softmax(found.logits, axis=-1).mean(axis=1).argmax(axis=-1)
    return predicted != np.asarray(retraining.queries[1])


def _against_control(
    size: int, own: FloatArray, control: FloatArray, confidence: float
) -> RemovalEffect:
    """Own models [seeds, n_query] against control sets [random_sets, n_query].

    Queries share the control, so its error does not average out over them: it enters once more,
    as the spread of the sets' means. A single query has its seeds for a sample instead.
    """
    per_query = own.mean(axis=0) - control.mean(axis=0)
    sample = per_query if len(per_query) > 1 else own[:, 0] - control.mean()
    of_sets = control.mean(axis=1)
    mean, low, high = welch_interval(sample, of_sets - of_sets.mean(), confidence=confidence)
    return RemovalEffect(size=size, per_query=per_query, mean=mean, interval=(low, high))


def _against_all(
    size: int, control: FloatArray, everything: FloatArray, confidence: float
) -> RemovalEffect:
    """Control sets [random_sets, n_query] against models of all rows [seeds, n_query]."""
    of_sets, of_all = control.mean(axis=1), everything.mean(axis=1)
    if len(of_all) > 1:
        mean, low, high = welch_interval(of_sets, of_all, confidence=confidence)
    else:
        mean, low, high = mean_interval(of_sets - of_all[0], confidence=confidence)
    per_query = control.mean(axis=0) - everything.mean(axis=0)
    return RemovalEffect(size=size, per_query=per_query, mean=mean, interval=(low, high))


def _random_sets(retraining: Retraining, size: int, count: int) -> list[IndexArray]:
    return [
        stream(retraining.seed, Purpose.ARMS, size, number).permutation(retraining.n_train)[:size]
        for number in range(count)
    ]


def _checked_sizes(sizes: Sequence[int], n_train: int) -> list[int]:
    counts = sorted(set(sizes))
    if not counts or counts[0] < 1 or counts[-1] >= n_train:
        raise ShapeError(
            f"sizes are {list(sizes)}; remove between 1 and {n_train - 1} of {n_train} rows"
        )
    return counts
