"""What the solutions and verdicts of every kind of problem share: stages, files, arms and seeds."""

import itertools

import numpy as np

from schemas.errors import InfeasibleProblem
from schemas.spec import DebugSpec, SelectSpec
from tasks.blueprint import Blueprint
from tasks.sets import IntArray

SOLUTION, VERDICT = "solution", "verdict"
# Bool [n_train], the rows to train on; float64 [n_train], what having each row adds.
CHOICE_FILE, UTILITY_FILE = "choice.npy", "utility.npy"
# Int [n_train], the chosen row that each dropped one is a copy of, or -1; where copies count.
COPIES_FILE = "copies.npy"
# The arms of every verdict: the answer, and all rows, against which changes are measured.
CHOSEN, ALL = "chosen", "all"
# The arm of models that were retrained without what had to be forgotten.
RETRAINED = "retrained"


def refuse_predictions(plan: Blueprint, problem: DebugSpec | SelectSpec) -> None:
    """Refuse to improve an output of which neither way is better.

    Raises:
        InfeasibleProblem: The attribution explains the prediction.
    """
    if plan.output(plan.spec.attribution_named(problem.uses)) == "prediction":
        raise InfeasibleProblem(
            f"problem '{problem.name}': attribution '{problem.uses}' explains the prediction, and "
            "a higher prediction is not a better one; give it output = 'squared_error'"
        )


def arm_seeds(plan: Blueprint, count: int) -> tuple[tuple[int, ...], IntArray]:
    """So many training seeds, and the suffix of the streams that they are of.

    It is the first draw of which the bank has adopted no retraining: what was fitted never judges.
    """
    from attribution.streams import SEED_LIMIT, Purpose, stream

    adopted = plan.bank.seeds[plan.bank.drawn :]
    for number in itertools.count():
        suffix = (number,) if number else ()
        streams = (
            stream(plan.spec.seed, Purpose.VERDICT, repeat, *suffix) for repeat in range(count)
        )
        seeds = np.array([each.integers(SEED_LIMIT) for each in streams], dtype=np.int64)
        if not np.isin(seeds, adopted).any():
            break
    return suffix, seeds
