"""What a selection maximises: effects on its targets, several sets of them, and what caution takes.

Utilities are in units of the output, and better when higher: of an output that should fall they
are the effects with their sign changed.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.methods import FALLING
from schemas.spec import SelectSpec
from tasks.blueprint import Blueprint
from tasks.score import calibrating_bank, load_scores
from tasks.surrogate import calibrated, surrogate_of

if TYPE_CHECKING:
    from optimize.averaged import MeanDatamodel
    from optimize.datamodel import LinearDatamodel

Float64 = NDArray[np.float64]


class Targets(NamedTuple):
    """The surrogate of every output over a problem's targets, and the share of each in the mean.

    Attributes:
        surrogate: Of all rows of all sets.
        shares: Float64 [n_query], of sum 1.
    """

    surrogate: "LinearDatamodel"
    shares: Float64


def targets_of(plan: Blueprint, problem: SelectSpec) -> Targets:
    """The targets of a problem; each set's weight is shared out among its rows.

    One model makes all their errors, and one surrogate of all of them knows how they correlate.
    """
    from optimize.surrogate import calibrate

    attribution = plan.spec.attribution_named(problem.uses)
    if len(problem.weights) == 1:
        (name,) = problem.weights
        surrogate = calibrated(plan, attribution, name)
        return Targets(surrogate, np.full(len(surrogate.tau), 1 / len(surrogate.tau)))
    ids = {name: plan.sets.ids(name) for name in problem.weights}
    every = np.unique(np.concatenate(list(ids.values())))
    shares = np.zeros(len(every))
    for name, weight in problem.weights.items():
        shares[np.searchsorted(every, ids[name])] += weight / len(ids[name])
    scores = load_scores(plan, attribution)[np.searchsorted(plan.sets.scored, every)]
    surrogate = calibrate(scores, calibrating_bank(plan, attribution, every))
    return Targets(surrogate, shares / shares.sum())


def surrogates_of(plan: Blueprint, problem: SelectSpec, targets: Targets) -> "list[MeanDatamodel]":
    """The surrogate of the mean over all targets, or one for each set where the worst counts."""
    if problem.combine == "worst":
        return [surrogate_of(plan, problem, name) for name in problem.weights]
    return [targets.surrogate.averaged(targets.shares)]


def objective(
    problem: SelectSpec, surrogates: "list[MeanDatamodel]", output: str
) -> dict[str, Any]:
    """The surrogates as keywords of `optimize.select.select`.

    Outputs without any row are levels, which only the worst of several sets compares.
    """
    from optimize.spread import spread_of

    sign = -1.0 if output in FALLING else 1.0
    stated: dict[str, Any] = {
        "utility": sign * np.concatenate([each.weights for each in surrogates]),
        "combine": problem.combine,
    }
    if problem.combine == "worst":
        stated["base"] = sign * np.concatenate([each.intercept for each in surrogates])
    if problem.caution:
        everything = np.ones(stated["utility"].shape[1], dtype=bool)
        stated["caution"] = problem.caution
        stated["spreads"] = [spread_of(each, everything) for each in surrogates]
    return stated


def utility_at(stated: dict[str, Any], choice: NDArray[np.bool_]) -> Float64:
    """What having each row adds, [n_train]: to the mean, or to the set that is worst off."""
    utility = stated["utility"]
    return utility[int((utility @ choice + stated.get("base", 0.0)).argmin())]
