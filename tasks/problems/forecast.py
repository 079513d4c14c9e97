"""What forgetting is predicted to change, before anything is retrained: by whom, and how surely.

Newton steps predict where the run has what they take (`tasks.unlearning.newton`), else the
calibrated linear surrogate. On the digits example's model, five other forget sets, predicted and
retrained changes of single queries correlated at 0.69 to 0.86 of what noise allows by the surrogate
and at 0.78 to 0.94 by Newton steps (10 checkpoints: 0.81 to 0.95).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.spec import AttributionSpec, TrakSpec, UnlearnSpec
from tasks.blueprint import Blueprint
from tasks.surrogate import calibrated, extrapolation, predicted_change
from tasks.unlearning.newton import foretold, unable

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """Predicted changes without the rows that go.

    Attributes:
        changes: Of each query of each set, and their standard deviations: float64 [2, q].
        predicted: Mean change on the judging set and its 95 % interval; None where unknown.
        sentence: How it was predicted, and where that is not to be relied on.
        by: The same as a record.
    """

    changes: dict[str, FloatArray]
    predicted: list[float | None]
    sentence: str
    by: dict[str, Any]


def forecast(plan: Blueprint, problem: UnlearnSpec, stay: BoolArray) -> Forecast:
    """Predict the changes on the targets and on the judging set.

    Args:
        plan: The blueprint.
        problem: Whose attribution predicts; its models are on either side of the change.
        stay: Rows that are not forgotten, bool [n_train].
    """
    attribution = plan.spec.attribution_named(problem.uses)
    why = unable(plan, attribution, ~stay)
    if isinstance(attribution, TrakSpec) and not why:
        return _by_newton(plan, problem, attribution, stay)
    return _by_surrogate(plan, problem, attribution, stay, why)


def _by_newton(
    plan: Blueprint, problem: UnlearnSpec, attribution: TrakSpec, stay: BoolArray
) -> Forecast:
    judge_on = plan.spec.verdict.judge_on
    # The judging set first: it is what the sentence is of.
    names = dict.fromkeys((judge_on, problem.targets))
    found = foretold(plan, attribution, ~stay, list(names), seeds=problem.models)
    judged = found.sets[judge_on]
    bounds = (judged.mean, *judged.interval(confidence=0.95))
    return Forecast(
        changes={name: np.stack([each.change, each.sd]) for name, each in found.sets.items()},
        predicted=[value if np.isfinite(value) else None for value in bounds],
        sentence=found.sentence,
        by={"method": "newton", "checkpoints": found.checkpoints, "sets": found.record()},
    )


def _by_surrogate(
    plan: Blueprint, problem: UnlearnSpec, attribution: AttributionSpec, stay: BoolArray, why: str
) -> Forecast:
    judge_on, everything = plan.spec.verdict.judge_on, np.ones_like(stay)
    surrogates = {name: calibrated(plan, attribution, name) for name in (problem.targets, judge_on)}
    changes = {
        name: np.concatenate(each.predict_change(everything, stay, seeds=problem.models))
        for name, each in surrogates.items()
    }
    mean = surrogates[judge_on].averaged()
    return Forecast(
        changes=changes,
        predicted=predicted_change(plan, mean, stay[None], seeds=problem.models),
        sentence=f" Predicted by the linear surrogate, for {why}."
        + extrapolation(plan, mean.weights[0], stay),
        by={"method": "surrogate", "why": why},
    )
