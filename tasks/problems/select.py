"""Selection: which rows to train on, and the retraining of the choice beside its rivals.

Every arm is retrained with the same training seeds; a random arm draws another subset for each.
Intervals are over retrainings, for the judging rows at hand.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InfeasibleProblem
from schemas.manifest import Manifest
from schemas.methods import FALLING
from schemas.spec import SelectSpec
from tasks.aiming import aimed_for, curve_facts, curve_of, made_for, predictor
from tasks.bank import accuracy_of, logits_of, outputs_of, retrained
from tasks.bank_extension import MASKS_FILE, SEEDS_FILE, Rows
from tasks.blueprint import Blueprint
from tasks.constraints import duplicates_of
from tasks.problems.arms import FIXED, masks_of, refuse_arms
from tasks.problems.objective import objective, surrogates_of, targets_of, utility_at
from tasks.problems.shape import (
    ALL,
    CHOICE_FILE,
    CHOSEN,
    COPIES_FILE,
    SOLUTION,
    UTILITY_FILE,
    VERDICT,
    arm_seeds,
    refuse_predictions,
)
from tasks.reporting.intervals import Interval
from tasks.reporting.wording import signed_interval
from tasks.surrogate import extrapolation, finite, predicted_change
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from optimize.aim import Aimed
    from optimize.averaged import MeanDatamodel
    from optimize.bent import BentDatamodel
    from optimize.curve import SizeCurve

BoolArray = NDArray[np.bool_]


def check(plan: Blueprint, problem: SelectSpec) -> None:
    """Refuse what no choice of rows can satisfy, objectives that are none, and arms of no rows.

    Raises:
        InfeasibleProblem: Constraints conflict, or the output or an arm makes no sense here.
        NotFound: A quota or a budget names no class, column or value of the data.
        DataError: Some row has no cost.
        QueryError: A set of rows to choose, or to leave out, cannot be used.
        ShapeError: Texts are to be compared by cosine.
        RecipeError: The model has no hidden layer for an arm.
    """
    from optimize.problem import Selection
    from optimize.select import refuse_conflicts

    refuse_predictions(plan, problem)
    try:
        refuse_conflicts(Selection(utility=np.zeros(plan.n_train), **bounds_of(plan, problem)))
    except InfeasibleProblem as error:
        raise InfeasibleProblem(f"problem '{problem.name}': {error}") from None
    refuse_arms(plan, problem)


def solve(plan: Blueprint, problem: SelectSpec, key: str) -> Manifest:
    """Choose the rows that make the outputs over the targets best, within all constraints."""
    from optimize.select import select

    output = plan.output(plan.spec.attribution_named(problem.uses))
    targets = targets_of(plan, problem)
    surrogates = surrogates_of(plan, problem, targets)
    stated, bounds = objective(problem, surrogates, output), bounds_of(plan, problem)
    made, curve, told = None, None, ""
    if problem.aimed:
        found, made = aimed_for(plan, problem, *targets)
        if problem.size == "best":
            known = targets.surrogate.sizes[0]
            by, curve = _size_curve(plan, problem, found, made, bounds, smallest=known)
            # Its price is of this attribution's output alone; the curve has spoken on the size.
            bounds |= {"size": curve.best_size, "size_priced": False}
            told = f" {size_sentence(by, curve, plan.n_train)}"
    solution = select(**stated, **bounds)
    made = made and made.without(solution.choice[None])
    judge = predictor(plan, problem, plan.spec.verdict.judge_on, made)
    warning = "" if made else extrapolation(plan, judge.weights[0], solution.choice)
    inputs = {"scores": plan.scores.key(plan.spec.attribution_named(problem.uses)) or ""}
    with plan.artifacts.seal(SOLUTION, key, version=VERSIONS[SOLUTION], inputs=inputs) as draft:
        np.save(draft.path / CHOICE_FILE, solution.choice)
        np.save(draft.path / UTILITY_FILE, utility_at(stated, solution.choice))
        if bounds["duplicates"] is not None:
            np.save(draft.path / COPIES_FILE, copies_of(solution.choice, bounds["duplicates"]))
        if made:
            np.save(draft.path / MASKS_FILE, made.masks)
            np.save(draft.path / SEEDS_FILE, made.seeds)
            draft.facts |= {"origins": made.origins.tolist()}
        draft.facts |= {
            "status": str(solution.status),
            "size": solution.size,
            "value": solution.value,
            "bound": solution.bound,
            "gap": solution.gap,
            "prices": dict(solution.prices),
            "sentence": f"{solution.sentence}{told}{warning}",
            "output": output,
            "surrogate": finite(surrogates[0].diagnostics()),
            "predicted": predicted_change(plan, judge, solution.choice[None]),
            "curve": curve_facts(by, curve) if curve else None,
        }
    return draft.manifest


def _size_curve(
    plan: Blueprint,
    problem: SelectSpec,
    found: "Aimed",
    made: Rows,
    bounds: dict[str, Any],
    *,
    smallest: int,
) -> "tuple[str, SizeCurve]":
    """The curve over the sizes that the constraints allow and the bank can tell of."""
    from optimize.curve import size_grid
    from optimize.select import select

    most, least = (select(np.full(plan.n_train, sign), **bounds).size for sign in (1.0, -1.0))

    def choose(values: NDArray[np.float64], size: int) -> BoolArray:
        return select(values, **(bounds | {"size": size})).choice

    sizes = size_grid(min(max(smallest, least), most), most)
    return curve_of(plan, problem, found, made, choose=choose, sizes=sizes)


def size_sentence(output: str, curve: "SizeCurve", n_train: int) -> str:
    """What the size curve says, and first of all whether any size is worth dropping rows for."""
    told = f"{curve.best_size} rows have the best predicted {output}"
    if curve.enough < curve.best_size:
        told += f"; from {curve.enough} on what is lost may be nothing"
    if curve.best_size == n_train:
        return f"{told}; no smaller number is predicted to beat them."
    mean, low, high = curve.change[curve.best].tolist()
    change = f"{signed_interval(Interval(mean=mean, low=low, high=high))} (90 % interval)"
    if curve.beats_all:
        return f"{told}; against all {n_train} rows it changes by {change}."
    sure = "predicted" if (mean <= 0) == curve.rising else "sure"
    return (
        f"{told}, but no size is {sure} to beat all {n_train} rows: at {curve.best_size} it "
        f"changes by {change}."
    )


def copies_of(choice: BoolArray, groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The chosen row of each dropped row's group of copies, -1 where there is none: [n_train].

    Args:
        choice: Bool [n_train], one row of a group at most.
        groups: [n_train].
    """
    of_group = np.full(int(groups.max()) + 1, -1)
    of_group[groups[choice]] = np.flatnonzero(choice)
    return np.where(choice, -1, of_group[groups])


def judge(plan: Blueprint, problem: SelectSpec, key: str) -> Manifest:
    """Retrain on the choice and on its rivals, and compare."""
    solution = plan.sealed("solution", plan.problems.solution_key(problem))
    folder = plan.artifacts.folder(solution)
    suffix, drawn = arm_seeds(plan, plan.spec.verdict.seeds)
    masks = masks_of(plan, problem, np.load(folder / CHOICE_FILE), suffix)
    stacked, seeds = np.concatenate(list(masks.values())), np.tile(drawn, len(masks))
    names = retrained(plan, stacked, seeds)
    logits = logits_of(plan, names)
    output = str(solution.facts["output"])
    surrogate = predictor(plan, problem, plan.spec.verdict.judge_on, made_for(plan, problem))
    arms = compare(plan, masks, logits, surrogate, output)
    inputs = {"solution": solution.key, "trained_by": plan.training.digest}
    with plan.artifacts.seal(VERDICT, key, version=VERSIONS[VERDICT], inputs=inputs) as draft:
        np.save(draft.path / MASKS_FILE, stacked)
        np.save(draft.path / SEEDS_FILE, seeds)
        draft.facts |= {
            "arms": arms,
            "output": output,
            "retrainings": names,
            "origins": [f"{VERDICT}:{arm}" for arm in masks for _ in drawn],
        }
    return draft.manifest


def compare(
    plan: Blueprint,
    masks: dict[str, BoolArray],
    logits: NDArray[np.float32],
    surrogate: "MeanDatamodel | BentDatamodel",
    output: str,
) -> list[dict[str, Any]]:
    """What each arm did, against all rows and against the choice; one record an arm."""
    from attribution.evaluate import mean_interval, welch_interval

    judged = plan.sets.ids(plan.spec.verdict.judge_on)
    repeats = plan.spec.verdict.seeds
    values = outputs_of(plan, logits, judged, output).mean(axis=1).reshape(-1, repeats)
    quality = accuracy_of(plan, logits, judged) if plan.dataset.classes else None
    # A better model has more of what is compared: accuracy, or less error.
    better = quality if quality is not None else (-1 if output in FALLING else 1) * values.ravel()
    better = better.reshape(-1, repeats)
    likely = _likelihood(plan, logits)
    place = {arm: row for row, arm in enumerate(masks)}
    records = []
    for arm, row in place.items():
        same = arm in FIXED
        unchanged = arm == ALL
        records.append(
            {
                "arm": arm,
                "n_rows": int(masks[arm][0].sum()),
                "seeds": repeats,
                "accuracy": None if quality is None else list(mean_interval(better[row])),
                "value": list(mean_interval(values[row])),
                "predicted_change": None
                if unchanged
                else predicted_change(plan, surrogate, masks[arm][:1] if same else masks[arm]),
                "observed_change": None
                if unchanged
                else list(welch_interval(values[row], values[place[ALL]])),
                "advantage": None
                if arm == CHOSEN
                else list(welch_interval(better[place[CHOSEN]], better[row])),
                "logprob": None if likely is None else list(mean_interval(likely[row])),
                "logprob_advantage": None
                if likely is None or arm == CHOSEN
                else list(welch_interval(likely[place[CHOSEN]], likely[row])),
            }
        )
    return records


def _likelihood(plan: Blueprint, logits: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """Mean log-probability of the judging rows' labels, [arms, seeds]; None for a regression.

    Accuracy and margins can rise while it falls, for neither minds how sure a wrong answer is.
    """
    if plan.dataset.facts.task == "regression":
        return None
    values = outputs_of(plan, logits, plan.sets.ids(plan.spec.verdict.judge_on), "logprob")
    return values.mean(axis=1, dtype=np.float64).reshape(-1, plan.spec.verdict.seeds)


def bounds_of(plan: Blueprint, problem: SelectSpec) -> dict[str, Any]:
    """Size, quotas, budgets and rows of a problem, as the solver takes them."""
    duplicates = duplicates_of(plan.dataset, problem)
    return plan.problems.limits(problem).options() | {"duplicates": duplicates}
