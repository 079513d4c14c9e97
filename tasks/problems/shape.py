"""What the solutions and verdicts of every kind of problem share: stages, files, arms and seeds."""

import itertools

import numpy as np

from tasks.blueprint import Blueprint
from tasks.sets import IntArray

SOLUTION, VERDICT = "solution", "verdict"
# Bool [n_train], the rows to train on; float64 [n_train], what having each row adds.
CHOICE_FILE, UTILITY_FILE = "choice.npy", "utility.npy"
# The arms of every verdict: the answer, and all rows, against which changes are measured.
CHOSEN, ALL = "chosen", "all"
# The arm of models that were retrained without what had to be forgotten.
RETRAINED = "retrained"


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
