"""Verdicts: the chosen rows and their rivals, retrained and compared on rows the solver never saw.

Every arm is retrained with the same training seeds; a random arm draws another subset for each.
Intervals are over retrainings, for the judging rows at hand.
"""

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.manifest import Manifest
from schemas.methods import FALLING
from schemas.spec import SelectSpec
from tasks.bank import logits_of, outputs_of, retrained
from tasks.bank_extension import MASKS_FILE, SEEDS_FILE
from tasks.blueprint import VERSIONS, Blueprint, IntArray
from tasks.job import Job, blueprint
from tasks.progress import advance
from tasks.solve import (
    CHOICE_FILE,
    predicted_change,
    surrogate_of,
)

if TYPE_CHECKING:
    from optimize.averaged import MeanDatamodel

STAGE = "verdict"
CHOSEN, ALL = "chosen", "all"

BoolArray = NDArray[np.bool_]


@task(name="verdict", cache_policy=NO_CACHE)
def judge(job: Job, name: str) -> Manifest:
    """Retrain on the choice and on its rivals, and say whether the prediction held."""
    plan = blueprint(job)
    problem = next(problem for problem in plan.spec.selections if problem.name == name)
    key = plan.verdict_key(problem) or ""
    manifest = plan.artifacts.find(STAGE, key) or _judge(plan, problem, key)
    advance(STAGE, plan.count_done(STAGE, key), len(plan.spec.selections))
    return manifest


def verdict_draw(plan: Blueprint) -> tuple[tuple[int, ...], IntArray]:
    """The training seeds that every arm shares, and the suffix of the streams that they are of.

    It is the first draw of which the bank has adopted no retraining: what was fitted never judges.
    """
    from attribution.streams import SEED_LIMIT, Purpose, stream

    adopted = plan.bank.seeds[plan.bank.drawn :]
    for number in itertools.count():
        suffix = (number,) if number else ()
        streams = (
            stream(plan.spec.seed, Purpose.VERDICT, repeat, *suffix)
            for repeat in range(plan.spec.verdict.seeds)
        )
        seeds = np.array([each.integers(SEED_LIMIT) for each in streams], dtype=np.int64)
        if not np.isin(seeds, adopted).any():
            break
    return suffix, seeds


def _judge(plan: Blueprint, problem: SelectSpec, key: str) -> Manifest:
    solution = plan.sealed("solution", plan.solution_key(problem))
    folder = plan.artifacts.folder(solution)
    suffix, drawn = verdict_draw(plan)
    masks = _masks(plan, np.load(folder / CHOICE_FILE), suffix)
    stacked, seeds = np.concatenate(list(masks.values())), np.tile(drawn, len(masks))
    names = retrained(plan, stacked, seeds)
    logits = logits_of(plan, names)
    output = str(solution.facts["output"])
    surrogate = surrogate_of(plan, problem, plan.spec.verdict.judge_on)
    arms = compare(plan, masks, logits, surrogate, output)
    inputs = {"solution": solution.key, "trained_by": plan.trained_by}
    with plan.artifacts.seal(STAGE, key, version=VERSIONS[STAGE], inputs=inputs) as draft:
        np.save(draft.path / MASKS_FILE, stacked)
        np.save(draft.path / SEEDS_FILE, seeds)
        draft.facts |= {
            "arms": arms,
            "output": output,
            "retrainings": names,
            "origins": [f"{STAGE}:{arm}" for arm in masks for _ in drawn],
        }
    return draft.manifest


def _masks(plan: Blueprint, choice: BoolArray, suffix: tuple[int, ...]) -> dict[str, BoolArray]:
    """Subsets of each arm: bool [seeds, n_train]."""
    from attribution.streams import Purpose, stream
    from optimize.select import balanced_subset, random_subset

    size, repeats = int(choice.sum()), plan.spec.verdict.seeds
    labels = plan.dataset.train.targets
    masks = {CHOSEN: np.tile(choice, (repeats, 1))}
    for arm in plan.spec.verdict.arms:
        keys = ((arm == "balanced", repeat, *suffix) for repeat in range(repeats))
        draws = [stream(plan.spec.seed, Purpose.ARMS, *key) for key in keys]
        if arm == ALL:
            masks[arm] = np.ones((repeats, len(choice)), dtype=bool)
        elif arm == "random":
            masks[arm] = np.stack([random_subset(len(choice), size, draw) for draw in draws])
        else:
            masks[arm] = np.stack([balanced_subset(labels, size, draw) for draw in draws])
    return masks


def compare(
    plan: Blueprint,
    masks: dict[str, BoolArray],
    logits: NDArray[np.float32],
    surrogate: "MeanDatamodel",
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
    place = {arm: row for row, arm in enumerate(masks)}
    records = []
    for arm, row in place.items():
        same = arm in (ALL, CHOSEN)
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
            }
        )
    return records


def accuracy_of(plan: Blueprint, logits: NDArray[np.float32], ids: IntArray) -> NDArray[np.float64]:
    """Share of some test rows that models classify rightly, [m]."""
    places = plan.dataset.positions(ids) - plan.n_train
    hits = logits[:, places].argmax(axis=-1) == plan.dataset.test.targets[places]
    return hits.mean(axis=1)
