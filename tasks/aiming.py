"""Retrainings near a choice: they bend the surrogate that predicts it, and say which size is best.

A choice lies far from the bank's random subsets, where effects do not add up (`optimize.bent`).
Before it is made, some subsets that lean towards it are retrained; they are kept as all retrainings
are. The choice is none of them, and no verdict trains with their seeds.
"""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.methods import FALLING
from schemas.spec import ChoiceSpec, SelectSpec, target_sets
from tasks.bank import read_outputs, retrained
from tasks.bank_extension import Rows, load_rows
from tasks.blueprint import Blueprint
from tasks.score import calibrating_bank, load_scores
from tasks.surrogate import surrogate_of

if TYPE_CHECKING:
    from attribution.bank import RetrainBank
    from optimize.aim import Aimed
    from optimize.averaged import MeanDatamodel
    from optimize.bent import BentDatamodel
    from optimize.curve import SizeCurve
    from optimize.datamodel import LinearDatamodel

AIMED = "aimed"

BoolArray = NDArray[np.bool_]


def aimed_for(
    plan: Blueprint,
    problem: SelectSpec,
    surrogate: "LinearDatamodel",
    shares: NDArray[np.float64],
) -> "tuple[Aimed, Rows]":
    """The subsets that lean towards a problem's choices, retrained.

    Args:
        plan: The blueprint.
        problem: Whose choices.
        surrogate: Of the problem's targets.
        shares: Float64 [n_query], of each target in the mean.
    """
    from attribution.streams import SEED_LIMIT, Purpose, stream
    from optimize.aim import aimed_subsets

    found = aimed_subsets(
        surrogate,
        problem.aimed,
        queries=shares,
        rising=plan.output(plan.spec.attribution_named(problem.uses)) not in FALLING,
        crossed=problem.size == "best",
        seed=plan.spec.seed,
    )
    streams = (stream(plan.spec.seed, Purpose.AIM, Purpose.SEEDS, k) for k in range(problem.aimed))
    seeds = np.array([each.integers(SEED_LIMIT) for each in streams], dtype=np.int64)
    origins = np.full(problem.aimed, f"{AIMED}:{problem.name}")
    retrained(plan, found.masks, seeds, alike=False)
    return found, Rows(masks=found.masks, seeds=seeds, origins=origins)


def predictor(
    plan: Blueprint, problem: ChoiceSpec, rows: str, made: Rows | None
) -> "MeanDatamodel | BentDatamodel":
    """The surrogate of the mean output over a set of test rows, bent where something bends it.

    Args:
        plan: The blueprint.
        problem: Whose attribution is the prior.
        rows: Name of the set.
        made: The aimed retrainings, without the choice itself; None for the line.
    """
    from optimize.bent import bend

    attribution = plan.spec.attribution_named(problem.uses)
    line = surrogate_of(plan, problem, rows)
    if made is None:
        return line
    return bend(line, _observed(plan, made, rows, plan.output(attribution)))


def made_for(plan: Blueprint, problem: ChoiceSpec) -> Rows | None:
    """The aimed retrainings that a solved problem was predicted with, if there were any."""
    solution = plan.sealed("solution", plan.problems.solution_key(problem))
    return load_rows(plan.artifacts, solution) if "origins" in solution.facts else None


def curve_of(
    plan: Blueprint,
    problem: SelectSpec,
    found: "Aimed",
    made: Rows,
    *,
    choose: Callable[[NDArray[np.float64], int], BoolArray],
    sizes: list[int],
) -> "tuple[str, SizeCurve]":
    """The predicted output of the best subset of each size, and which output that is.

    Rows are ranked by the attribution's output, sizes by the log-probability where that is a
    margin: half of the rows can raise margins, and lower accuracy. On Fashion-MNIST with 30 % wrong
    labels the mean margin is largest at 55 to 60 % of the rows with accuracy 0.77 to 0.79, the mean
    log-probability at 70 to 80 % with 0.80 to 0.81, the highest of any size.
    """
    from optimize.bent import bend
    from optimize.curve import Family, size_curve
    from optimize.surrogate import calibrate

    attribution = plan.spec.attribution_named(problem.uses)
    output = plan.output(attribution)
    if output == "margin":
        output = "logprob"
    (aim,) = target_sets(problem)
    bank = calibrating_bank(plan, attribution, plan.sets.ids(aim), output=output)
    surrogate = calibrate(load_scores(plan, attribution)[plan.sets.places(aim)], bank)
    seen = _observed(plan, made, aim, output)
    families = []
    for half in (0, 1):
        line = surrogate.averaged(found.queries[1 - half])
        bent = bend(line, seen.subset(found.unseen_by(1 - half)))
        families.append(Family(bent, functools.partial(choose, found.utilities[half])))
    rising, seeds = output not in FALLING, plan.spec.verdict.seeds
    return output, size_curve(families, sizes, rising=rising, seeds=seeds)


def curve_facts(output: str, curve: "SizeCurve") -> dict[str, Any]:
    """A size curve as a manifest keeps it."""
    return {
        "output": output,
        "best": curve.best_size,
        "enough": curve.enough,
        "beats_all": curve.beats_all,
        "sizes": curve.sizes.tolist(),
        "predicted": curve.output.tolist(),
        "change": curve.change.tolist(),
        "lost": curve.lost.tolist(),
    }


def curve_points(facts: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A size curve as rows of its table; none where a solution has no curve."""
    if facts is None:
        return []
    changes = ("change", "change_low", "change_high")
    names = ("n_rows", "predicted", *changes, "lost", "lost_low", "lost_high")
    columns = zip(facts["sizes"], facts["predicted"], facts["change"], facts["lost"], strict=True)
    return [
        dict(zip(names, (size, predicted, *change, *lost), strict=True))
        | {"output": facts["output"], "best": size == facts["best"]}
        for size, predicted, change, lost in columns
    ]


def _observed(plan: Blueprint, made: Rows, rows: str, output: str) -> "RetrainBank":
    from attribution.bank import RetrainBank

    names = retrained(plan, made.masks, made.seeds, alike=False)
    return RetrainBank(
        masks=made.masks,
        outputs=read_outputs(plan, names, plan.sets.ids(rows), output),
        seeds=made.seeds,
        output=output,
    )
