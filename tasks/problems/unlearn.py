"""Unlearning: rows that trained models must forget, and how far they then are from retrained ones.

The solution predicts what training without the rows does to every output, and says by what. The
verdict trains N models on all rows and 2 N, the oracles, without those that must go; every method
changes the N, and its models are compared with the oracles as distributions, row by row, beside the
same comparison between two halves of the oracles: what no method falls below.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InfeasibleProblem
from schemas.frozen import either
from schemas.manifest import Manifest
from schemas.methods import FALLING
from schemas.spec import UnlearnSpec
from schemas.unlearning import METHODS_OF_TASK
from tasks.bank import retrained, states_of
from tasks.bank_extension import MASKS_FILE, SEEDS_FILE
from tasks.blueprint import Blueprint
from tasks.problems.distance import (
    arm_records,
    closeness_records,
    membership_of,
    query_record,
    reaching,
)
from tasks.problems.forecast import forecast
from tasks.problems.shape import (
    ALL,
    CHOICE_FILE,
    CHOSEN,
    RETRAINED,
    SOLUTION,
    UTILITY_FILE,
    VERDICT,
    arm_seeds,
)
from tasks.reporting.findings import Interval
from tasks.reporting.forgetting import from_facts, unlearning_sentence
from tasks.reporting.wording import signed_interval
from tasks.requests import CERTIFICATE_FILE
from tasks.surrogate import calibrated, finite
from tasks.unlearning.certify import certified, row_lines
from tasks.unlearning.copies import copies_that_stay
from tasks.unlearning.handover import checkpoints, hand_over
from tasks.unlearning.unlearners import Unlearned, joined, recipe, unlearned
from tasks.unlearning.witnesses import Seen, Witnesses, observe, witnesses
from tasks.versions import VERSIONS

if TYPE_CHECKING:
    from torch import Tensor

# Float64 [2, q]: predicted change of each query of the targets, of the judging set, and its sd.
TARGETS_FILE, JUDGED_FILE = "targets.npy", "judged.npy"
# Float64 [q]: the change of each query of the judging set that retraining made.
OBSERVED_FILE = "observed.npy"
# Id and digest of each forgotten row, a line each; its sha256 is in the certificate.
ROWS_FILE = "forgotten.txt"

BoolArray = NDArray[np.bool_]


def check(plan: Blueprint, problem: UnlearnSpec) -> None:
    """Refuse rows that cannot be forgotten and methods that the task does not have.

    Raises:
        QueryError: The forget set finds no training row, a test row, or all training rows.
        InfeasibleProblem: The task has no such method, or set and requests leave no row.
    """
    task = plan.dataset.facts.task
    known = METHODS_OF_TASK[task]
    if problem.method not in known:
        raise InfeasibleProblem(
            f"problem '{problem.name}': a {task} has no '{problem.method}'; choose {either(known)}"
        )
    if plan.problems.forgotten(problem).all():
        raise InfeasibleProblem(
            f"problem '{problem.name}': its set and the requests together forget all "
            f"{plan.n_train:,} training rows; an untrained model is the answer"
        )
    for method in (problem.method, *problem.rivals(task)):
        recipe(plan, problem, method)


def solve(plan: Blueprint, problem: UnlearnSpec, key: str) -> Manifest:
    """Predict what training without the forgotten rows does to the asked outputs."""
    check(plan, problem)
    attribution = plan.spec.attribution_named(problem.uses)
    output, judge_on = plan.output(attribution), plan.spec.verdict.judge_on
    stay = ~plan.problems.forgotten(problem)
    aimed = calibrated(plan, attribution, problem.targets)
    mean = calibrated(plan, attribution, judge_on).averaged()
    utility = (-1.0 if output in FALLING else 1.0) * aimed.averaged().weights[0]
    told = forecast(plan, problem, stay)
    value = float(utility[stay].sum())
    copies = copies_that_stay(plan.data, ~stay).sentence
    inputs = {"scores": plan.scores.key(attribution) or ""}
    with plan.artifacts.seal(SOLUTION, key, version=VERSIONS[SOLUTION], inputs=inputs) as draft:
        np.save(draft.path / CHOICE_FILE, stay)
        np.save(draft.path / UTILITY_FILE, utility)
        for file, name in ((TARGETS_FILE, problem.targets), (JUDGED_FILE, judge_on)):
            np.save(draft.path / file, told.changes[name])
        draft.facts |= {
            "status": "given",
            "size": int(stay.sum()),
            "value": value,
            "bound": value,
            "gap": 0.0,
            "prices": {},
            "sentence": _said(plan, stay, output, told.predicted)
            + told.sentence
            + (copies and f" {copies}"),
            "output": output,
            "surrogate": finite(mean.diagnostics()),
            "predicted": told.predicted,
            "predicted_by": told.by,
        }
    return draft.manifest


def _said(plan: Blueprint, stay: BoolArray, output: str, predicted: list[float | None]) -> str:
    gone = int((~stay).sum())
    mean, low, high = (math.nan if number is None else number for number in predicted)
    change = Interval(mean=mean, low=low, high=high)
    rows = "this row" if gone == 1 else f"these {gone:,} rows"
    unknown = "" if change.is_known else "; how surely is unknown, for the bank has one subset size"
    return (
        f"Without {rows} the mean {output} on '{plan.spec.verdict.judge_on}' is predicted to "
        f"change by {signed_interval(change)}{unknown}."
    )


def judge(plan: Blueprint, problem: UnlearnSpec, key: str) -> Manifest:
    """Retrain without the rows, unlearn them by every method, and compare."""
    from attribution.changes import agreement

    solution = plan.sealed(SOLUTION, plan.problems.solution_key(problem))
    folder = plan.artifacts.folder(solution)
    stay, count = np.load(folder / CHOICE_FILE), problem.models
    _, seeds = arm_seeds(plan, 3 * count)
    masks = np.ones((3 * count, len(stay)), dtype=bool)
    masks[count:] = stay
    names = retrained(plan, masks, seeds, weights=True)
    whole, without = states_of(plan, names[:count]), states_of(plan, names[count:])
    before = checkpoints(plan)
    changed = _changed(plan, problem, whole, before.states, without, ~stay)
    rows = witnesses(plan, ~stay, str(solution.facts["output"]))
    oracles = observe(plan, without, rows)
    seen = {ALL: observe(plan, whole, rows), RETRAINED: oracles}
    for arm, models in changed.items():
        some = {name: value[:count] for name, value in models.states.items()}
        seen[arm] = observe(plan, some, rows, what=f"a model changed by '{models.method}'")
    predicted, _ = np.load(folder / JUDGED_FILE)
    queries = agreement(predicted, seen[ALL].values, oracles.values)
    facts = _facts(plan, seen, changed, rows, stay)
    facts |= {
        "output": solution.facts["output"],
        "predicted": solution.facts["predicted"],
        "method": problem.method,
        "sized": changed[CHOSEN].sized,
        "models": count,
        "n_forgotten": int((~stay).sum()),
        "requests": sum(each.problem == problem.name for each in plan.problems.requests),
        "oracles": 2 * count,
        "own_output": rows.own_output,
        "queries": query_record(queries),
    }
    facts["arms"] = arm_records(
        seen,
        {arm: len(stay) if arm == ALL else int(stay.sum()) for arm in seen},
        rows,
        list(solution.facts["predicted"]),  # type: ignore[arg-type]
    )
    change = next(arm for arm in facts["arms"] if arm["arm"] == RETRAINED)["observed_change"]
    facts["sentence"] = unlearning_sentence(
        from_facts(facts),
        str(facts["output"]),
        facts["predicted"],
        change[0],
        limit=copies_that_stay(plan.data, ~stay).limit,
    )
    after = {name: value[count:] for name, value in changed[CHOSEN].states.items()}
    inputs = {"solution": solution.key, "trained_by": plan.training.digest}
    with plan.artifacts.seal(VERDICT, key, version=VERSIONS[VERDICT], inputs=inputs) as draft:
        np.save(draft.path / MASKS_FILE, masks)
        np.save(draft.path / SEEDS_FILE, seeds)
        np.save(draft.path / OBSERVED_FILE, queries.observed)
        given = hand_over(plan, draft.path, before, after, oracles=oracles, rows=rows)
        draft.facts |= facts | {
            "checkpoints": given,
            "retrainings": names,
            "origins": [f"{VERDICT}:{ALL}"] * count + [f"{VERDICT}:{RETRAINED}"] * (2 * count),
        }
        (draft.path / ROWS_FILE).write_text(row_lines(plan, problem), encoding="utf-8")
        text = certified(plan, problem, draft.facts)
        (draft.path / CERTIFICATE_FILE).write_text(text, encoding="utf-8")
    return draft.manifest


def _changed(
    plan: Blueprint,
    problem: UnlearnSpec,
    whole: "dict[str, Tensor]",
    handed: "dict[str, Tensor]",
    oracles: "dict[str, Tensor]",
    gone: BoolArray,
) -> dict[str, Unlearned]:
    """What methods make of the models of all rows, the chosen one also of those handed over."""
    changed = {CHOSEN: unlearned(plan, problem, problem.method, joined(whole, handed), gone)}
    for method in problem.rivals(plan.dataset.facts.task):
        changed[method] = unlearned(plan, problem, method, whole, gone, oracles=oracles)
    return changed


def _facts(
    plan: Blueprint,
    seen: dict[str, Seen],
    changed: dict[str, Unlearned],
    rows: Witnesses,
    stay: BoolArray,
) -> dict[str, Any]:
    """How far each arm is from the oracles, and what it cost one model."""
    records = closeness_records(plan, seen, rows)
    attacks = {arm: membership_of(plan, seen, rows, arm) for arm in seen}
    reached = reaching(plan, seen, records, attacks, rows)
    whole = float(stay.sum()) * plan.spec.train.epochs
    costs = []
    for arm in seen:
        models = changed.get(arm)
        membership, spread = attacks[arm]
        own = {"method": None, "options": "{}", "examples": 0.0, "scoring": 0.0, "seconds": 0.0}
        if models is not None:
            own = models.record()
        elif arm == RETRAINED:
            own["examples"] = whole
        costs.append(
            {"arm": arm, **own, "cost": float(own["examples"]) / whole}  # type: ignore[arg-type]
            | {"membership": membership, "membership_sd": spread, "reached": arm in reached}
        )
    return {"closeness": records, "unlearned": costs}
