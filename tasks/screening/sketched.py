"""New rows and trusted ones as the bank's checkpoints would take them in: from their sketches.

Each checkpoint is a model of a subset. Rows that it trained on make up its curvature and are never
compared; what the others would do, to the targets, to themselves and to each other, is.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from schemas.methods import FALLING
from schemas.screening import SKETCHED, ScreenName
from schemas.spec import AttributionSpec, ScreenSpec, TrakSpec
from tasks.blueprint import Blueprint
from tasks.featurize import load_features, load_weights, take

if TYPE_CHECKING:
    from attribution.estimators.additions import Additions
    from attribution.estimators.features import Features
    from optimize.defence.arrivals import Standing

# Other rows of a group whose support counts, and rows of a group at most.
SUPPORTERS, GROUP_ROWS = 5, 500
# Trusted rows that each model deals to groups, at most.
GROUPED = 2_000

BoolArray = NDArray[np.bool_]
Float64 = NDArray[np.float64]


def tells(attribution: AttributionSpec) -> TypeGuard[TrakSpec]:
    """Whether an attribution says what rows would do by models that did not train on them."""
    return (
        isinstance(attribution, TrakSpec)
        and attribution.checkpoints == "bank"
        and attribution.curvature != "ggn"
    )


class Sketched:
    """Trusted and new rows as the bank's checkpoints take them in."""

    def __init__(
        self, plan: Blueprint, problem: ScreenSpec, rows: tuple[NDArray[Any], NDArray[Any]]
    ) -> None:
        attribution = plan.spec.attribution_named(problem.uses)
        if not isinstance(attribution, TrakSpec):
            raise TypeError(f"{attribution.name} keeps no sketches")
        self.plan, self.problem, self.attribution = plan, problem, attribution
        self.left_out = ~plan.bank.masks[plan.bank.checkpoint_rows]
        damping: Any = plan.sealed("scores", plan.scores.key(attribution)).facts["damping"]
        self.form: dict[str, Any] = {
            "curvature": attribution.curvature,
            "damping": damping,
            "task": plan.dataset.facts.task,
        }
        self.trusted = load_features(plan, attribution.name, "train")
        self.asked = load_features(plan, attribution.name, "query")
        self.new = _features(plan, attribution, rows)
        self.factors: list[tuple[Float64, Float64]] = []

    def standings(self) -> "dict[ScreenName, Standing]":
        """Where new rows stand by each screen that reads sketches."""
        from optimize.defence.arrivals import standing

        output = self.plan.output(self.attribution)
        worse = 1.0 if output in FALLING else -1.0
        targets = self.plan.sets.places(self.problem.targets)
        found: dict[ScreenName, list[tuple[Float64, Float64]]] = {name: [] for name in SKETCHED}
        for model, (trusted, new, asked) in enumerate(
            zip(self.trusted, self.new, self.asked, strict=True)
        ):
            own = take(trusted, np.flatnonzero(~self.left_out[model]))
            old, incoming = (self._additions(own, side) for side in (trusted, new))
            aimed = take(asked, targets)
            harm = [worse * side.effects(aimed).mean(axis=0) for side in (old, incoming)]
            found["harm"].append((harm[0], harm[1]))
            found["self_influence"].append((old.own(), incoming.own()))
            found["group"].append(self._groups(model, old, incoming))
        counted = dict.fromkeys(SKETCHED, self.left_out)
        made = {}
        for name, pairs in found.items():
            before, after = (np.stack(side) for side in zip(*pairs, strict=True))
            if name == "group":
                counted[name] = np.isfinite(before)
            if np.isfinite(after).all() and counted[name].any():
                made[name] = standing(before, after, counted[name])
        return made

    def partners(self, rows: NDArray[np.intp]) -> dict[int, list[int]]:
        """The new rows that support some of them most, the strongest first; after `standings`."""
        total = np.zeros((len(rows), len(self.new[0])))
        for left, right in self.factors:
            total += left[rows] @ right.T
        total[np.arange(len(rows)), rows] = -np.inf
        strongest = np.argsort(-total, axis=1, kind="stable")[:, :SUPPORTERS]
        return dict(zip(rows.tolist(), strongest.tolist(), strict=True))

    def effects(self) -> Float64:
        """Predicted change of the mean output over the judging set by having each new row alone."""
        total = np.zeros(len(self.new[0]))
        for made, judged in self._taken_in():
            total += made.effects(judged).mean(axis=0)
        return np.asarray(total / len(self.new))

    def together(self, groups: Sequence[BoolArray]) -> list[float]:
        """The same by having all rows of each group."""
        total = np.zeros(len(groups))
        for made, judged in self._taken_in():
            total += [made.together(rows, judged).mean() for rows in groups]
        return (total / len(self.new)).tolist()

    def _taken_in(self) -> "Iterator[tuple[Additions, Features]]":
        """New rows as each model takes them in, and the judging set.

        All trusted rows make up the curvature here, for they are what the new rows would join. The
        slopes that calibration finds are not applied: they are those of rows that half of the
        models trained on, and on the grains of `examples/incoming` doubled what was too large.
        """
        places = self.plan.sets.places(self.plan.spec.verdict.judge_on)
        for trusted, new, asked in zip(self.trusted, self.new, self.asked, strict=True):
            yield self._additions(trusted, new), take(asked, places)

    def _additions(self, own: "Features", rows: "Features") -> "Additions":
        from attribution.estimators.additions import additions

        return additions(own, rows, **self.form)

    def _groups(
        self, model: int, trusted: "Additions", new: "Additions"
    ) -> tuple[Float64, Float64]:
        """Mutual support in groups of one size: NaN where a trusted row is in none."""
        from attribution.streams import Purpose, stream
        from optimize.defence.arrivals import mutual_support

        seed, out = self.plan.spec.seed, np.flatnonzero(self.left_out[model])
        left, right = new.weighed()
        self.factors.append((left, right))
        count = min(len(left), len(out), GROUP_ROWS)
        known, incoming = np.full(self.left_out.shape[1], np.nan), np.full(len(left), np.nan)
        if count < 2:
            return known, incoming
        drawn = stream(seed, Purpose.SOLVER, model).permutation(out)[:GROUPED]
        own_left, own_right = trusted.weighed()
        key = (seed, model)
        drawn = drawn[: len(drawn) // count * count]
        known[drawn] = mutual_support(
            own_left[drawn], own_right[drawn], size=count, top=SUPPORTERS, key=key
        )
        incoming = mutual_support(left, right, size=count, top=SUPPORTERS, key=key)
        return known, incoming


def _features(
    plan: Blueprint, attribution: TrakSpec, rows: tuple[NDArray[Any], NDArray[Any]]
) -> "list[Features]":
    """Sketches of new rows at the attribution's checkpoints, by the projections of the trusted."""
    from attribution.devices import resolve
    from attribution.estimators.features import featurize
    from attribution.outputs import task_output
    from attribution.projection import Projection

    task = plan.dataset.facts.task
    return [
        featurize(
            plan.build_model(),
            load_weights(plan, weights),
            rows,
            output=str(task_output(task)),
            task=task,
            projection=Projection(**attribution.projection.model_dump()),
            seed=plan.spec.seed,
            checkpoint=number,
            device=resolve(plan.spec.compute.device),
            memory=plan.spec.compute.memory_bytes,
            name="the batch",
        )
        for number, weights in enumerate(plan.scores.weights(attribution) or ())
    ]
