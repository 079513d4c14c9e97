"""The calibrated surrogate of a problem: what is predicted before anything is retrained for it.

The effect of a row is its posterior effect on the mean output over a set of test rows: each row's
scores, corrected by the retrained models of the bank's calibration half, then averaged. Damping
chosen for the mean alone, one output per retraining, was noisier: on the digits example it found
112 of 126 wrong labels where the damping of 200 single outputs found 114.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.spec import AttributionSpec, ChoiceSpec
from tasks.blueprint import Blueprint
from tasks.score import calibrating_bank, load_scores

if TYPE_CHECKING:
    from optimize.averaged import MeanDatamodel
    from optimize.bent import BentDatamodel
    from optimize.datamodel import LinearDatamodel

# Standard deviations; a bank of a few hundred subsets reaches three.
FAR = 3.0


def surrogate_of(plan: Blueprint, problem: ChoiceSpec, rows: str) -> "MeanDatamodel":
    """The calibrated surrogate of the mean output over a set of test rows.

    Args:
        plan: The blueprint.
        problem: Whose attribution is the prior.
        rows: Name of the set.
    """
    return calibrated(plan, plan.spec.attribution_named(problem.uses), rows).averaged()


def calibrated(plan: Blueprint, attribution: AttributionSpec, rows: str) -> "LinearDatamodel":
    """The calibrated surrogate of each output over a set of test rows."""
    from optimize.surrogate import calibrate

    scores = load_scores(plan, attribution)[plan.sets.places(rows)]
    return calibrate(scores, calibrating_bank(plan, attribution, plan.sets.ids(rows)))


def predicted_change(
    plan: Blueprint,
    surrogate: "MeanDatamodel | BentDatamodel",
    masks: NDArray[np.bool_],
    *,
    seeds: int | None = None,
) -> list[float | None]:
    """Mean predicted change from all rows to some subsets, with its 95 % interval.

    It is the change of a mean over `seeds` retrainings a side, by default as many as the verdict
    has.

    Bounds are None where the bank cannot tell: it has one subset size, and the subsets another.
    """
    repeats = seeds or plan.spec.verdict.seeds
    mean, sd = surrogate.predict_change(np.ones_like(masks), masks, seeds=repeats)
    low, high = surrogate.interval(mean, sd, confidence=0.95)
    means = (float(np.mean(part)) for part in (mean, low, high))
    return [value if np.isfinite(value) else None for value in means]


def extrapolation(plan: Blueprint, effects: NDArray[np.float64], choice: NDArray[np.bool_]) -> str:
    """A sentence where the choice is unlike every subset that the surrogate was fitted to.

    Measured by how far its predicted output lies from that of random rows, in standard deviations
    of the predictions over the bank. Beyond the bank effects need not add up: without the wrong
    labels of the digits example the mean margin rises twice as far as any line through random
    subsets says, the true labels given.
    """
    bank = plan.bank.masks[plan.bank.rows("calibrate")]
    centred = effects - effects.mean()
    usual = float((bank @ centred).std())
    distance = abs(float(centred[choice].sum())) / usual if usual else 0.0
    if distance <= FAR:
        return ""
    return (
        f" It lies {distance:.0f} standard deviations from a random choice, where the bank has no "
        "subset: its predicted change is an extrapolation."
    )


def finite(numbers: dict[str, float]) -> dict[str, Any]:
    """Numbers as JSON has them: an infinite ratio, the prior alone, is null."""
    return {name: value if np.isfinite(value) else None for name, value in numbers.items()}
