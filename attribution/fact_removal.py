"""Which rows taught a fact: each query's own rows are left out, for many queries in one model.

For every query and every arm (a method, or random rows) there is a set of k rows. Queries whose
sets are disjoint share a retrained model, which is short of all their sets, so that some hundreds
of facts are tested by a few dozen trainings. What a query loses is read from the models that lack
its own rows. All models of a design lack equally many rows: a set that finds no company is filled
up with random rows, and the random arm lacks as many. How facts are grouped is drawn anew for each
repeat, so that a fact's companions do not become part of its effect.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from attribution.retraining import Retraining, checked_for
from attribution.statistics import Triple
from attribution.streams import Purpose, stream
from attribution.tracing import top_rows_of
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]

RANDOM = "random"
# Of the training rows, what one model may lack. With more, models know less of everything.
SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RemovalDesign:
    """Which models to retrain, and where to read the effect on each query.

    Attributes:
        arms: Names of the methods, and `RANDOM`.
        k: Rows of a query's own set.
        removed: Rows that every model lacks.
        masks: Bool [n_models, n_train], the rows that each model is trained on.
        model_of: Intp [n_arms, repeats, n_query], the model that lacks a query's own rows.
    """

    arms: tuple[str, ...]
    k: int
    removed: int
    masks: npt.NDArray[np.bool_] = field(repr=False)
    model_of: IntArray = field(repr=False)

    @property
    def arm_of(self) -> IntArray:
        """The arm [n_models] that each model belongs to."""
        found = np.empty(len(self.masks), dtype=np.intp)
        for arm, models in enumerate(self.model_of):
            found[models] = arm
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RemovalEffects:
    """What queries lost without the rows that each arm names.

    Attributes:
        design: What was retrained.
        change: Float64 [n_arms, repeats, n_query], output without the query's own rows minus the
            mean output of models of all rows; negative where the rows had raised it.
        base: Float64 [n_base, n_query], outputs of the models of all rows.
        confidence: The level of the intervals.
    """

    design: RemovalDesign
    change: FloatArray = field(repr=False)
    base: FloatArray = field(repr=False)
    confidence: float

    def mean(self, arm: str) -> Triple:
        """Mean change over queries with its interval: over facts, models and base models."""
        place = self._place(arm)
        parts = [_between_facts(self.change[place]), self._between_models(place)]
        own = self.base.mean(axis=1)
        if len(own) > 1:
            parts.append((float(own.var(ddof=1)) / len(own), len(own) - 1))
        return _interval(float(self.change[place].mean()), parts, self.confidence)

    def difference(self, arm: str, other: str = RANDOM) -> Triple:
        """Mean over queries of (change by one arm - change by another), paired by query."""
        a, b = self._place(arm), self._place(other)
        gap = self.change[a] - self.change[b]
        parts = [_between_facts(gap), self._between_models(a), self._between_models(b)]
        return _interval(float(gap.mean()), parts, self.confidence)

    def per_query(self, arm: str) -> FloatArray:
        """Change of each query, repeats averaged, [n_query]."""
        return self.change[self._place(arm)].mean(axis=0)

    def _place(self, arm: str) -> int:
        if arm not in self.design.arms:
            raise ShapeError(
                f"there is no arm {arm!r}; choose one of {', '.join(self.design.arms)}"
            )
        return self.design.arms.index(arm)

    def _between_models(self, arm: int) -> tuple[float, float]:
        """Variance of a mean over queries because queries share models, and its freedom.

        The spread of facts' means knows nothing of what all queries of a model have in common: the
        covariance of two facts is the variance of models times how often the two share one. That
        variance is estimated from deviations from each fact's mean u = C (D s + e), D the models of
        the observations and A = D'CD, by the expectations of two quadratic forms,
        |D'u|^2 = s^2 tr A^2 + e^2 tr A and |u|^2 = s^2 tr A + e^2 tr C (Henderson 1953).
        """
        values, models = self.change[arm], self.design.model_of[arm]
        repeats, n_query = values.shape
        _, owner = np.unique(models, return_inverse=True)
        owner = owner.reshape(models.shape)
        sizes = np.bincount(owner.ravel()).astype(np.float64)
        pairs = float((sizes * (sizes - 1)).sum())
        if pairs == 0 or len(sizes) < 2:
            return 0.0, 1
        if repeats > 1:
            counts = np.zeros((n_query, len(sizes)))
            np.add.at(counts, (np.arange(n_query), owner), 1)
            shared = np.diag(sizes) - counts.T @ counts / repeats
            noise, freedom = values - values.mean(axis=0), values.size - n_query
        else:
            shared = np.diag(sizes) - np.outer(sizes, sizes) / values.size
            noise, freedom = values - values.mean(), values.size - 1
        sums = np.bincount(owner.ravel(), weights=noise.ravel())
        forms = np.array([[(shared**2).sum(), np.trace(shared)], [np.trace(shared), freedom]])
        found = np.linalg.lstsq(forms, np.array([(sums**2).sum(), (noise**2).sum()]))[0]
        covariance = pairs / (repeats**2 * n_query * (n_query - 1))
        free = len(sizes) - len(sizes) / repeats if repeats > 1 else len(sizes) - 1
        return max(float(found[0]), 0.0) * covariance, max(free, 1)


def design_removal(
    own: Mapping[str, npt.ArrayLike],
    n_train: int,
    *,
    repeats: int = 3,
    per_model: int | None = None,
    seed: int = 0,
) -> RemovalDesign:
    """Group queries whose rows are disjoint, for every arm and repeat, beside random rows.

    Args:
        own: For each method the rows [n_query, k] that each query is to lose.
        n_train: Training rows.
        repeats: Groupings, each with models of its own.
        per_model: Most queries of one model; by default as many as a tenth of the rows allows.
        seed: Key of the groupings and of random rows.

    Raises:
        ShapeError: Sets have different shapes, hold a row twice, or leave a model no row.
    """
    sets = {name: np.asarray(rows, dtype=np.intp) for name, rows in own.items()}
    shapes = {rows.shape for rows in sets.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2 or RANDOM in sets:
        raise ShapeError(
            f"the methods' rows have shapes {sorted(shapes)}; give [n_query, k] for each, and call "
            f"none {RANDOM!r}"
        )
    n_query, k = next(iter(shapes))
    if any(len(np.unique(rows)) < k for each in sets.values() for rows in each):
        raise ShapeError("a query's rows hold one row twice; give k different rows")
    if repeats < 1:
        raise ShapeError(f"repeats is {repeats}; retrain at least once")
    most = per_model or max(1, int(SHARE * n_train) // max(k, 1))
    most = min(most, n_query)
    removed = most * k
    if not 0 < removed < n_train:
        raise ShapeError(f"models would lack {removed} of {n_train} rows; remove fewer a model")
    masks: list[npt.NDArray[np.bool_]] = []
    model_of = np.empty((len(sets) + 1, repeats, n_query), dtype=np.intp)
    for arm, name in enumerate([*sets, RANDOM]):
        for repeat in range(repeats):
            # Three indices: with two the name is that of a training seed (`Retraining.on`).
            rng = stream(seed, Purpose.REMOVAL, arm, repeat, 0)
            order = rng.permutation(n_query)
            rows = sets.get(name)
            if rows is None:
                rows = _random_sets(rng, order, k, n_train, most)
            for group in _groups(rows, order, most):
                model_of[arm, repeat, group] = len(masks)
                masks.append(_mask(rng, rows[group].ravel(), n_train, removed))
    return RemovalDesign(
        arms=(*sets, RANDOM), k=k, removed=removed, masks=np.stack(masks), model_of=model_of
    )


def removal_effects(
    design: RemovalDesign,
    outputs: npt.ArrayLike,
    base: npt.ArrayLike,
    *,
    better: int = 1,
    confidence: float = 0.95,
) -> RemovalEffects:
    """What the models of a design say.

    Args:
        design: The models, in its order.
        outputs: Float [n_models, n_query].
        base: Float [n_base, n_query], outputs of models of all rows.
        better: -1 for a loss: its changes are negated, so that a loss that rises is negative.
        confidence: Level of the intervals.

    Raises:
        ShapeError: Shapes do not fit.
    """
    values, whole = better * np.asarray(outputs, float), better * np.asarray(base, float)
    n_query = design.model_of.shape[2]
    if values.shape != (len(design.masks), n_query) or whole.ndim != 2 or not len(whole):
        raise ShapeError(
            f"outputs have shape {values.shape} and base {whole.shape}; give "
            f"{(len(design.masks), n_query)} and one row or more of {n_query}"
        )
    own = values[design.model_of, np.arange(n_query)]
    return RemovalEffects(
        design=design, change=own - whole.mean(axis=0), base=whole, confidence=confidence
    )


def remove_facts(
    scores: Mapping[str, npt.ArrayLike],
    retraining: Retraining,
    *,
    k: int = 10,
    per_model: int | None = None,
    confidence: float = 0.95,
) -> RemovalEffects:
    """Retrain without the k rows that each method holds most helpful to each query.

    Args:
        scores: Float [n_query, n_train] by the method's name.
        retraining: Data, recipe and output; its seeds are the repeats, and train the models of
            all rows.
        k: Rows that each query loses.
        per_model: Most queries of one model.
        confidence: Level of the intervals.

    Raises:
        ShapeError: Scores do not fit, or a model would have no rows.
        TrainingDiverged: A loss became NaN or infinite.
    """
    own = {
        name: top_rows_of(
            retraining.better * checked_for(each, retraining), k, seed=retraining.seed
        )
        for name, each in scores.items()
    }
    design = design_removal(
        own,
        retraining.n_train,
        repeats=retraining.seeds,
        per_model=per_model,
        seed=retraining.seed,
    )
    whole = np.ones((max(retraining.seeds, 2), retraining.n_train), dtype=bool)
    found = replace(retraining, seeds=1).on(np.concatenate([whole, design.masks])).outputs[:, 0]
    return removal_effects(
        design,
        found[len(whole) :],
        found[: len(whole)],
        better=retraining.better,
        confidence=confidence,
    )


def _groups(rows: IntArray, order: IntArray, most: int) -> list[IntArray]:
    """Queries that share a model: each joins the first group that has room and none of its rows."""
    groups: list[list[int]] = []
    taken: list[set[int]] = []
    for query in order.tolist():
        own = set(rows[query].tolist())
        for group, used in zip(groups, taken, strict=True):
            if len(group) < most and not used & own:
                group.append(query)
                used |= own
                break
        else:
            groups.append([query])
            taken.append(own)
    return [np.array(group, dtype=np.intp) for group in groups]


def _random_sets(
    rng: np.random.Generator, order: IntArray, k: int, n_train: int, most: int
) -> IntArray:
    """Random rows [n_query, k], disjoint within each run of `most` queries of an order."""
    runs = -(-len(order) // most)
    parts = [rng.permutation(n_train)[: k * most].reshape(most, k) for _ in range(runs)]
    rows = np.empty((len(order), k), dtype=np.intp)
    rows[order] = np.concatenate(parts)[: len(order)]
    return rows


def _mask(
    rng: np.random.Generator, own: IntArray, n_train: int, removed: int
) -> npt.NDArray[np.bool_]:
    mask = np.ones(n_train, dtype=bool)
    mask[own] = False
    others = np.flatnonzero(mask)
    mask[rng.permutation(others)[: removed - len(own)]] = False
    return mask


def _between_facts(values: FloatArray) -> tuple[float, float]:
    """Variance of the mean of values [repeats, n_query] over facts, and its degrees of freedom.

    A single fact has its repeats for a sample.
    """
    sample = values.mean(axis=0) if values.shape[1] > 1 else values[:, 0]
    if len(sample) < 2:
        return float("nan"), 1
    return float(sample.var(ddof=1)) / len(sample), len(sample) - 1


def _interval(mean: float, parts: list[tuple[float, float]], confidence: float) -> Triple:
    """t-interval from independent parts of a variance, freedom by Satterthwaite (1946)."""
    variances = np.array([part for part, _ in parts])
    total = variances.sum()
    if not total > 0:
        return (mean, mean, mean) if total == 0 else (mean, float("nan"), float("nan"))
    freedom = 1 / ((variances / total) ** 2 / np.array([dof for _, dof in parts])).sum()
    half = float(stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(total))
    return mean, mean - half, mean + half
