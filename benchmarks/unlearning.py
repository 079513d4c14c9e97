"""Unlearning against retraining: predicted changes, and models that were made to forget.

N models are trained on all rows, 2 N oracles without each forget set: random rows, half of a class,
and the top rows along the first principal component of the scores. (i) Predicted change of the
validation margins against that of the oracles, calibrated on retrained models near all rows: random
removals of three sizes, and with them removals of other slices (halves of other classes, other
components). (ii) Each method's KLoM (forget, retain, validation; matched to its null, N a side),
U-LiRA on the forget set, accuracy and cost in examples, scoring included; the bank's retrainings
are not in it, for one bank serves every request. Recipes were tuned on other forget sets
(`--tune`): other random rows, half of another class, the third component.

    [WINNOW_DATA=...] python -m benchmarks.unlearning [digits] [fashion] [--tune]
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attribution.bank import RetrainBank
from attribution.changes import agreement
from attribution.closeness import closeness, u_lira
from attribution.outputs import of_models
from benchmarks.unlearning_cases import (
    CASES,
    Case,
    Pair,
    Trained,
    bank_near,
    forget_sets,
    full_models,
    margins,
    oracles_of,
    retain_points,
)
from optimize import LinearDatamodel, calibrate
from optimize.unlearning import (
    RemovalSlopes,
    Unlearned,
    forget_directions,
    method_of,
    removal_slopes,
    unlearn,
    unlearned_logits,
)

# Checkpoints whose mean prediction calibrates the teacher, on this many removals of the bank.
CALIBRATING, ALIKE = 6, 15
DIRECTIONS: dict[str, Any] = {
    "curvature": "logistic",
    "damping": 0.3,
    "centred": True,
    "newton": True,
}


def print_predictions(
    title: str,
    rows: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    surrogates: Mapping[str, LinearDatamodel],
    trained: Trained,
) -> None:
    """Predicted against observed change of the validation margins, [models, queries] each."""
    whole = np.ones(trained.tau.shape[1], dtype=bool)
    left = whole.copy()
    left[rows] = False
    guesses = {"nothing (scores as they are)": -trained.tau[:, rows].sum(axis=1)}
    for name, surrogate in surrogates.items():
        guesses[name] = (surrogate.expect(left) - surrogate.expect(whole))[0]
    for name, guess in guesses.items():
        told = agreement(guess, before, after)
        print(
            f"{title:18}{name:30}{told.correlation:8.2f}{told.ceiling:8.2f}"
            f"{told.correlation / told.ceiling:9.2f}{told.slope:8.2f}"
            f"{told.error:9.3f}{told.error_unchanged:11.3f}",
            flush=True,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Removal:
    """A forget set, its oracles, and what matching predicts of it: directions and their sizes."""

    rows: np.ndarray
    oracles: Mapping[str, Tensor]
    flat: Tensor
    slopes: RemovalSlopes


def print_methods(case: Case, trained: Trained, asked: Removal) -> None:
    """One line a method: closeness to the oracles, membership, accuracy, cost."""
    rows, kept = asked.rows, retain_points(case)
    points: Pair = tuple(  # type: ignore[assignment]
        np.concatenate([train[rows], train[kept], validation])
        for train, validation in zip(case.train, case.validation, strict=True)
    )
    first, second = len(rows), len(rows) + len(kept)
    groups = {
        "forget": np.arange(first),
        "retain": np.arange(first, second),
        "validation": np.arange(second, len(points[1])),
    }
    truth = margins(case, asked.oracles, points)

    def line(name: str, states: Mapping[str, Tensor], cost: float, seconds: float) -> None:
        found = margins(case, states, points)
        close = closeness(found, truth, groups=groups)
        attack = u_lira(found[:, :first], truth[: len(found), :first])
        right = (found[:, second:] > 0).mean()
        cells = "".join(f"{c.mean:7.2f}{c.p95:6.2f}" for c in close.values())
        print(
            f"{name:18}{cells}{attack.accuracy:9.2f} ±{attack.sd:5.2f}{right:8.1%}{cost:8.1%}"
            f"{seconds:7.0f}",
            flush=True,
        )
        if name == "untouched":
            floor = "".join(f"{c.null_mean:7.2f}{c.null_p95:6.2f}" for c in close.values())
            print(
                f"{'null (oracles)':18}{floor}{0.5:9.2f}{'':7}{(truth[:, second:] > 0).mean():8.1%}"
            )

    line("untouched", trained.states, 0.0, 0.0)
    for name, options in case.methods:
        started = time.perf_counter()
        done = run(case, trained, asked, name, options)
        cost = done.cost.share(len(case.train[1]) - len(rows), case.recipe.epochs)
        line(name, done.states, cost, time.perf_counter() - started)


def run(
    case: Case, trained: Trained, asked: Removal, name: str, options: Mapping[str, Any]
) -> Unlearned:
    """One method on all models.

    `retain_rows` is made a multiple of the forget set, and `batches` of it in an epoch a batch
    size: what was tuned on small sets would climb in too many steps on large ones.
    """
    given = dict(options)
    if "batches" in given:
        given["batch_size"] = -(-len(asked.rows) // given.pop("batches"))
    if "retain_rows" in given:
        given["retain_per_forget"] = given.pop("retain_rows") / len(asked.rows)
    predicted = name in ("matching", "projected")
    if predicted:
        given["scale"] = asked.slopes.kept
    if name == "matching":
        given["forgotten_scale"] = asked.slopes.forgotten
    return unlearn(
        method_of(name, given),
        case.model,
        trained.states,
        train=case.train,
        forget=asked.rows,
        weight_decay=case.recipe.weight_decay,
        oracles=asked.oracles if name == "oracle_matching" else None,
        directions=asked.flat if predicted else None,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=["digits"], help=", ".join(CASES))
    parser.add_argument("--models", type=int, default=0, help="N; by default the case's own")
    parser.add_argument("--tune", action="store_true", help="the forget sets that tune")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.cases:
        report(CASES[name](asked.models), tuning=asked.tune)


def report(case: Case, *, tuning: bool) -> None:
    """Both tables of one case."""
    started, n_query = time.perf_counter(), len(case.validation[1])
    trained = full_models(case)
    sets = forget_sets(case, trained, tuning=tuning)
    random, sliced = bank_near(case, trained)
    calibrated = {
        name: calibrate(trained.tau, replace(bank, outputs=bank.outputs[:, :n_query]))
        for name, bank in (("random removals", random), ("and removals of slices", sliced))
    }
    slopes = slopes_of(case, trained, sliced, sets)
    flat = forget_directions(
        case.model, trained.states, train=case.train, forget=list(sets.values()), **DIRECTIONS
    ).flat
    oracles = {name: oracles_of(case, rows, key) for key, (name, rows) in enumerate(sets.items())}
    size = sum(value[0].numel() for value in trained.states.values())
    print(
        f"\n{case.title}: {len(case.train[1])} rows, {size} parameters, N = {case.models}, "
        f"{2 * case.models} oracles a set, banks of {len(random)} and {len(sliced)}; "
        f"{time.perf_counter() - started:.0f} s"
    )
    before = margins(case, trained.states, case.validation)
    print(
        f"{'forget set':18}{'calibrated on':30}{'Pearson':>8}{'ceiling':>8}{'reached':>9}"
        f"{'slope':>8}{'error':>9}{'no change':>11}"
    )
    for name, rows in sets.items():
        after = margins(case, oracles[name], case.validation)
        print_predictions(name, rows, before, after, calibrated, trained)
    for number, (name, rows) in enumerate(sets.items()):
        own = slopes[name]
        print(
            f"\n{name}: {len(rows)} rows; teacher's scale {own.kept:.2f}, of forgotten rows "
            f"{own.forgotten:.2f}"
        )
        print(
            f"{'method':18}{'forget':>7}{'P95':>6}{'retain':>7}{'P95':>6}{'valid.':>7}{'P95':>6}"
            f"{'U-LiRA':>9}{'sd':>7}{'acc.':>8}{'cost':>8}{'s':>7}"
        )
        asked = Removal(rows=rows, oracles=oracles[name], flat=flat[number], slopes=own)
        print_methods(case, trained, asked)


def slopes_of(
    case: Case, trained: Trained, bank: RetrainBank, sets: Mapping[str, np.ndarray]
) -> dict[str, RemovalSlopes]:
    """The teacher's scales for each forget set, from its predictions for removals in the bank.

    A Newton step overshoots where most of what holds a direction goes, so that each set is
    calibrated on removals that are predicted to move the rows that stay about as far.
    """
    first, (inputs, labels) = len(case.validation[1]), case.train
    # Five is prime to the cycles of sizes and of slices.
    chosen = np.arange(0, len(bank), 5)
    part = RetrainBank(
        masks=bank.masks[chosen], outputs=bank.outputs[chosen][:, first:], seeds=bank.seeds[chosen]
    )
    few = {name: value[:CALIBRATING] for name, value in trained.states.items()}
    asked = [*(np.flatnonzero(~mask) for mask in part.masks), *sets.values()]
    found = forget_directions(case.model, few, train=case.train, forget=asked, **DIRECTIONS)
    changes, reach = [], []
    for number, rows in enumerate(asked):
        before, after = (
            of_models("margin", logits.numpy(), labels).mean(axis=0)
            for logits in unlearned_logits(case.model, few, inputs, found, forget_set=number)
        )
        changes.append(after - before)
        reach.append(np.log(np.delete(changes[-1], rows).std()))
    whole = margins(case, trained.states, case.train).mean(axis=0)
    slopes = {}
    for name, own in zip(sets, reach[len(part) :], strict=True):
        near = np.argsort(np.abs(np.array(reach[: len(part)]) - own))[:ALIKE]
        slopes[name] = removal_slopes(
            np.array(changes)[near],
            part.subset(near),
            rows=np.arange(len(labels)),
            whole=whole,
        )
    return slopes


if __name__ == "__main__":
    main()
