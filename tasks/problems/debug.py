"""Debugging: which rows hold an output down, proposed from scores, and retrained without them.

The hypothesis is the slice whose rows lower the output most beyond as many random rows of the same
classes, if the best of all slices beats the best of random ones; else there is none, and nothing is
retrained. The counterfactual compares models without the slice with models of all rows, and with
models without as many random rows of its classes, in the output of the rows that were asked about.
It is judged on those rows, for they are the question: what must be new is the retrainings.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.manifest import Manifest
from schemas.methods import FALLING
from schemas.spec import DebugSpec
from tasks.bank import logits_of, outputs_of, retrained
from tasks.bank_extension import MASKS_FILE, SEEDS_FILE
from tasks.blueprint import Blueprint
from tasks.problems.evidence import gather
from tasks.problems.look import without_matched
from tasks.problems.shape import (
    ALL,
    CHOICE_FILE,
    CHOSEN,
    SOLUTION,
    UTILITY_FILE,
    VERDICT,
    arm_seeds,
    refuse_predictions,
)
from tasks.surrogate import finite
from tasks.versions import VERSIONS

EVIDENCE_FILE = "evidence.json"
RANDOM = "random"
CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"

BoolArray = NDArray[np.bool_]


def check(plan: Blueprint, problem: DebugSpec) -> None:
    """Refuse queries that are no test rows, and outputs of which neither way is better.

    Raises:
        QueryError: The query cannot be used.
        InfeasibleProblem: The attribution explains the prediction.
    """
    _ = plan.sets.ids(problem.targets)
    refuse_predictions(plan, problem)


def solve(plan: Blueprint, problem: DebugSpec, key: str) -> Manifest:
    """Look for the slice that holds the output down, and keep all that was seen on the way."""
    check(plan, problem)
    found = gather(plan, problem)
    choice = np.ones(plan.n_train, dtype=bool)
    if found.cause is not None:
        choice &= ~found.cause.member
    gain = -float(found.utility[~choice].sum())
    # No set of as many rows holds it down more, by the surrogate.
    most = -float(np.sort(found.utility)[: int((~choice).sum())].sum())
    inputs = {"scores": plan.scores.key(plan.spec.attribution_named(problem.uses)) or ""}
    with plan.artifacts.seal(SOLUTION, key, version=VERSIONS[SOLUTION], inputs=inputs) as draft:
        np.save(draft.path / CHOICE_FILE, choice)
        np.save(draft.path / UTILITY_FILE, found.utility)
        text = json.dumps(found.report, indent=1, allow_nan=False)
        (draft.path / EVIDENCE_FILE).write_text(text, encoding="utf-8")
        draft.facts |= {
            "status": "feasible" if found.cause else "none",
            "size": int(choice.sum()),
            "value": gain,
            "bound": most,
            "gap": abs(most - gain) / max(1.0, abs(most)),
            "prices": {},
            "sentence": found.sentence,
            "output": found.output,
            "surrogate": finite(found.surrogate.diagnostics()),
            "predicted": found.predicted,
        }
    return draft.manifest


def read_report(plan: Blueprint, solution: Manifest) -> dict[str, Any]:
    """The evidence that a solution was found by, as `tasks.problems.evidence` made it."""
    text = (plan.artifacts.folder(solution) / EVIDENCE_FILE).read_text(encoding="utf-8")
    report: dict[str, Any] = json.loads(text)
    return report


def judge(plan: Blueprint, problem: DebugSpec, key: str) -> Manifest:
    """Retrain without the slice, with all rows, and without random rows of the same classes."""
    solution = plan.sealed(SOLUTION, plan.problems.solution_key(problem))
    folder = plan.artifacts.folder(solution)
    report = read_report(plan, solution)
    choice = np.load(folder / CHOICE_FILE)
    output, cause = str(solution.facts["output"]), report["hypothesis"]
    suffix, drawn = arm_seeds(plan, problem.seeds)
    masks: dict[str, BoolArray] = {}
    if cause is not None:
        masks = {
            CHOSEN: np.tile(choice, (problem.seeds, 1)),
            ALL: np.ones((problem.seeds, plan.n_train), dtype=bool),
            RANDOM: without_matched(plan, ~choice, problem.seeds, suffix),
        }
    stacked = np.concatenate([np.empty((0, plan.n_train), dtype=bool), *masks.values()])
    seeds = np.tile(drawn, len(masks))
    names = retrained(plan, stacked, seeds)
    facts: dict[str, Any] = {"arms": [], "verdict": None, "sentence": ""}
    if cause is not None:
        ids = plan.sets.ids(problem.targets)
        values = outputs_of(plan, logits_of(plan, names), ids, output).mean(axis=1)
        facts = _compared(masks, values.reshape(len(masks), -1), report, output)
    inputs = {"solution": solution.key, "trained_by": plan.training.digest}
    with plan.artifacts.seal(VERDICT, key, version=VERSIONS[VERDICT], inputs=inputs) as draft:
        np.save(draft.path / MASKS_FILE, stacked)
        np.save(draft.path / SEEDS_FILE, seeds)
        draft.facts |= facts | {
            "output": output,
            "retrainings": names,
            "origins": [f"{VERDICT}:{arm}" for arm in masks for _ in drawn],
        }
    return draft.manifest


def _compared(
    masks: dict[str, BoolArray],
    values: NDArray[np.floating],
    report: dict[str, Any],
    output: str,
) -> dict[str, Any]:
    """The arms' records, and whether the hypothesis held."""
    from attribution.evaluate import mean_interval, welch_interval

    sign = -1.0 if output in FALLING else 1.0
    own = dict(zip(masks, values, strict=True))
    cause = report["hypothesis"]
    predicted = {CHOSEN: cause["change"], RANDOM: cause["random"], ALL: None}
    arms = [
        {
            "arm": arm,
            "n_rows": int(masks[arm][0].sum()),
            "seeds": len(own[arm]),
            "accuracy": None,
            "value": list(mean_interval(own[arm])),
            "predicted_change": predicted[arm],
            "observed_change": None if arm == ALL else list(welch_interval(own[arm], own[ALL])),
            "advantage": None
            if arm == CHOSEN
            else list(welch_interval(sign * own[CHOSEN], sign * own[arm])),
        }
        for arm in masks
    ]
    beyond = welch_interval(own[CHOSEN], own[RANDOM])
    against_all = welch_interval(own[CHOSEN], own[ALL])
    verdict = decide(
        tuple(sign * bound for bound in beyond),
        tuple(sign * bound for bound in against_all),
        sign * cause["beyond"][0],
    )
    return {"arms": arms, "verdict": verdict, "sentence": _sentence(verdict, beyond, cause, output)}


def decide(beyond: tuple[float, ...], against_all: tuple[float, ...], predicted: float) -> str:
    """Whether retraining bore a hypothesis out; gains as (mean, bound, bound), > 0 is better.

    Confirmed: models without the slice are surely better than those of all rows, and than those
    without random rows. Refuted: against random rows not even half of what was predicted can be
    there, by the interval. Else more seeds must tell.
    """
    if min(beyond[1:]) > 0 and min(against_all[1:]) > 0:
        return CONFIRMED
    return REFUTED if max(beyond[1:]) < predicted / 2 else UNDECIDED


def _sentence(
    verdict: str, beyond: tuple[float, float, float], cause: dict[str, Any], output: str
) -> str:
    mean, low, high = beyond
    found = (
        f"without these {cause['rows']:,} rows the {output} is {mean:+.2f} [{low:+.2f}, "
        f"{high:+.2f}] from where it is without as many random rows of their classes "
        f"({cause['beyond'][0]:+.2f} was predicted)."
    )
    return {
        CONFIRMED: f"Confirmed: {found}",
        REFUTED: f"Refuted: {found} Not half of what was predicted is there.",
        UNDECIDED: f"Undecided: {found} More seeds would tell.",
    }[verdict]
