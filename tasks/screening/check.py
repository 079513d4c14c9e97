"""Whether a quarantine helped: models retrained with and without what it held up.

Four kinds of models are trained: on the trusted rows alone, with the accepted rows, with the whole
batch, and with as many random rows of it as were accepted, drawn anew for each seed. They are
judged on rows that no screen was aimed at. Rows of an unknown label can be in none of them.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.errors import DataError
from schemas.manifest import Manifest
from schemas.methods import FALLING
from schemas.spec import ScreenSpec
from tasks.bank import accuracy_of, outputs_of
from tasks.bank_extension import MASKS_FILE, SEEDS_FILE
from tasks.blueprint import Blueprint
from tasks.job import Job, blueprint
from tasks.problems.shape import arm_seeds
from tasks.progress import advance
from tasks.screening.answer import answer_of
from tasks.screening.batches import Batch, read_batch
from tasks.screening.evidence import predicted_changes
from tasks.screening.inbox import CHECK, VERSION, checked_key

TRUSTED, ACCEPTED, BATCH, RANDOM = "trusted", "accepted", "batch", "random"

# Draws of random rows whose effect is predicted.
DRAWS = 3

BoolArray = NDArray[np.bool_]
Interval = tuple[float, float, float]


@task(name="check screening", cache_policy=NO_CACHE)
def check_screening(job: Job, screening: Manifest, path: Path) -> Manifest:
    """Retrain with and without what was held up, unless that is sealed."""
    plan = blueprint(job)
    key = checked_key(plan.loaded, screening.key)
    return plan.artifacts.find(CHECK, key) or _check(plan, screening, key, path)


def _check(plan: Blueprint, screening: Manifest, key: str, path: Path) -> Manifest:
    batch = read_batch(plan, path)
    if batch.digest != screening.facts["batch_digest"]:
        raise DataError(f"batch {path} has changed since it was screened; screen it again")
    rows = answer_of(plan.artifacts, screening)["rows"]
    accepted = np.array([row["accepted"] for row in rows])
    problem = plan.spec.problem_of(ScreenSpec, str(screening.facts["problem"]))
    suffix, seeds = arm_seeds(plan, plan.spec.verdict.seeds)
    masks = arms_of(batch.known, accepted, len(seeds), plan.spec.seed, suffix)
    advance(CHECK, 0, len(masks) * len(seeds), "models")
    logits = _trained(plan, batch, masks, np.tile(seeds, len(masks)))
    output = str(screening.facts["output"])
    ids = plan.sets.ids(plan.spec.verdict.judge_on)
    values = outputs_of(plan, logits, ids, output).mean(axis=1).reshape(len(masks), -1)
    hits = None
    if plan.dataset.classes:
        hits = accuracy_of(plan, logits, ids).reshape(len(masks), -1)
    advance(CHECK, len(masks) * len(seeds), len(masks) * len(seeds), "models")
    inputs = {"screening": screening.key, "trained_by": plan.training.digest}
    with plan.artifacts.seal(CHECK, key, version=VERSION, inputs=inputs) as draft:
        np.save(draft.path / MASKS_FILE, np.concatenate([*masks.values()]))
        np.save(draft.path / SEEDS_FILE, seeds)
        told = _predicted(plan, problem, batch, masks)
        draft.facts |= _facts(plan, masks, values, hits, told, output)
    return draft.manifest


def arms_of(
    known: BoolArray, accepted: BoolArray, seeds: int, seed: int, suffix: tuple[int, ...] = ()
) -> dict[str, BoolArray]:
    """Which rows of the batch each model is trained on beside the trusted ones, bool [seeds, n].

    There is no arm that would be another: where nothing is held up, or nothing accepted.

    Args:
        known: Bool [n], the rows that can be trained on.
        accepted: Bool [n].
        seeds: Retrainings of each arm.
        seed: Of the random rows.
        suffix: Names the draw.
    """
    from attribution.streams import Purpose, stream

    held = known & ~accepted
    arms = {TRUSTED: np.zeros_like(known), BATCH: known}
    if held.any() and accepted.any():
        arms = {TRUSTED: arms[TRUSTED], ACCEPTED: accepted, BATCH: known}
    masks = {arm: np.tile(rows, (seeds, 1)) for arm, rows in arms.items()}
    if ACCEPTED in arms:
        masks[RANDOM] = np.zeros((seeds, len(known)), dtype=bool)
        for number in range(seeds):
            draw = stream(seed, Purpose.ARMS, len(known), number, *suffix)
            rows = draw.choice(np.flatnonzero(known), int(accepted.sum()), replace=False)
            masks[RANDOM][number, rows] = True
    return masks


def _trained(
    plan: Blueprint, batch: Batch, masks: dict[str, BoolArray], seeds: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Logits on every test row of models of the trusted rows and some of the batch."""
    from attribution.bank import train_bank_models

    train, test = plan.dataset.train, plan.dataset.test
    new = np.where(batch.known)[0]
    added = np.concatenate([*masks.values()])[:, new]
    _, logits = train_bank_models(
        plan.build_model,
        (
            np.concatenate([np.array(train.inputs), batch.inputs[new]]),
            np.concatenate([train.targets, batch.targets[new]]),
        ),
        eval_inputs=np.array(test.inputs),
        masks=np.concatenate([np.ones((len(added), plan.n_train), dtype=bool), added], axis=1),
        seeds=seeds,
        training=plan.training.recipe(),
        task=plan.dataset.facts.task,
        device=plan.spec.compute.device,
        memory=plan.spec.compute.memory_bytes,
    )
    return logits


def _predicted(
    plan: Blueprint, problem: ScreenSpec, batch: Batch, masks: dict[str, BoolArray]
) -> dict[str, float]:
    """Predicted change of each arm against the trusted rows; of random rows over some draws."""
    parts = [(arm, rows) for arm, own in masks.items() for rows in np.unique(own, axis=0)[:DRAWS]]
    parts = [(arm, rows) for arm, rows in parts if arm != TRUSTED]
    told = predicted_changes(plan, problem, batch, [rows for _, rows in parts])
    if told is None:
        return {}
    found: dict[str, list[float]] = {}
    for (arm, _), change in zip(parts, told, strict=True):
        found.setdefault(arm, []).append(change)
    return {arm: float(np.mean(changes)) for arm, changes in found.items()}


def _facts(
    plan: Blueprint,
    masks: dict[str, BoolArray],
    values: NDArray[np.floating],
    hits: NDArray[np.floating] | None,
    told: dict[str, float],
    output: str,
) -> dict[str, Any]:
    from attribution.evaluate import mean_interval, welch_interval

    own = dict(zip(masks, values, strict=True))
    arms = []
    for place, (arm, added) in enumerate(masks.items()):
        observed = None if arm == TRUSTED else welch_interval(own[arm], own[TRUSTED])
        arms.append(
            {"arm": arm, "n_rows": plan.n_train + int(added[0].sum()), "seeds": len(added)}
            | _columns("accuracy", None if hits is None else mean_interval(hits[place]))
            | _columns("value", mean_interval(own[arm]))
            | {"predicted": told.get(arm)}
            | _columns("observed", observed)
        )
    gains: dict[str, Interval] = {}
    if ACCEPTED in own:
        sign = -1.0 if output in FALLING else 1.0
        for other in (BATCH, RANDOM, TRUSTED):
            gains[other] = welch_interval(sign * own[ACCEPTED], sign * own[other])
    return {
        "arms": arms,
        "gains": {other: list(gain) for other, gain in gains.items()},
        "judge_on": plan.spec.verdict.judge_on,
        "output": output,
        "sentence": sentence_of(gains, output, plan.spec.verdict.seeds),
    }


def sentence_of(gains: dict[str, Interval], output: str, seeds: int) -> str:
    """Whether holding rows up helped, in words.

    Args:
        gains: How much better models with the accepted rows are than those of each other arm, mean
            and bounds of the 95 % interval, more being better; empty where there is no such arm.
        output: By which output.
        seeds: Retrainings of each arm.
    """
    if not gains:
        return "All or none of the rows that can be trained on were accepted: nothing to compare."
    against, control = gains[BATCH], gains[RANDOM]
    better = "lower" if output in FALLING else "higher"
    unit = f"mean {output}, {better} being better"
    if against[1] > 0:
        said = f"Helped: without what it held up models are better by {_shown(against)} ({unit})"
    elif against[2] < 0:
        lost = (-against[0], -against[2], -against[1])
        said = f"Harmed: with what it held up models are better by {_shown(lost)} ({unit})"
    else:
        said = (
            f"Made no difference that {seeds} retrainings of each can tell: {_shown(against)} "
            f"({unit}) against the whole batch"
        )
    return f"{said}; against as many random rows held up the gain is {_shown(control)}."


def _shown(gain: Interval) -> str:
    mean, low, high = gain
    return f"{mean:+.3g} [{low:+.3g}, {high:+.3g}]"


def _columns(name: str, triple: Interval | None) -> dict[str, float | None]:
    names = (name, f"{name}_low", f"{name}_high")
    return dict(zip(names, triple or (None, None, None), strict=True))
