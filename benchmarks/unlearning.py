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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attribution import attribute
from attribution.bank import RetrainBank, draw_masks, train_bank
from attribution.closeness import closeness, u_lira
from attribution.outputs import of_models
from attribution.statistics import calibration_line
from attribution.streams import Purpose, stream
from attribution.training import Recipe, predict, train_models
from benchmarks import lds_digits, problems
from optimize import LinearDatamodel, calibrate
from optimize.unlearning import (
    Directions,
    RemovalSlopes,
    Unlearned,
    forget_directions,
    method_of,
    removal_slopes,
    unlearn,
    unlearned_logits,
)

Pair = tuple[np.ndarray, np.ndarray]
Method = tuple[str, dict[str, Any]]
CHECKPOINTS = 10
# Checkpoints whose mean prediction calibrates the teacher, on this many removals of the bank.
CALIBRATING, ALIKE = 6, 15
# Rows on which the retain group's KLoM is taken.
RETAIN_POINTS = 200


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows, a model, a recipe, and how many models are unlearned."""

    title: str
    train: Pair
    validation: Pair
    model: Callable[[], nn.Module]
    recipe: Recipe
    models: int
    sizes: tuple[int, ...]
    slice_class: int
    component_rows: int
    bank: int
    methods: tuple[Method, ...]


def small_cnn() -> nn.Module:
    """Two strided convolutions and a linear layer for 28 x 28 images in rows of 784."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(784, 10),
    )


DIRECTIONS: dict[str, Any] = {
    "curvature": "logistic",
    "damping": 0.3,
    "centred": True,
    "newton": True,
}
MATCHED = {"batch_size": 128, "retain_rows": 800}
TUNED: tuple[Method, ...] = (
    ("finetune", {"lr": 3e-5, "epochs": 3, "batch_size": 128}),
    ("ascent", {"lr": 6e-4, "epochs": 2, "batches": 1}),
    ("ascent_descent", {"lr": 1e-3, "epochs": 2, "ascent_epochs": 2, "batch_size": 128}),
    ("scrub", {"lr": 2e-2, "epochs": 3, "ascent_epochs": 3, "batches": 2}),
    ("graddiff", {"lr": 6e-4, "epochs": 3, "batches": 1}),
    ("npo", {"lr": 6e-4, "epochs": 3, "batches": 1}),
    ("projected", {}),
    ("matching", {**MATCHED, "lr": 5e-4, "epochs": 3, "repeats": 2, "warm": True}),
    ("oracle_matching", {**MATCHED, "lr": 3e-3, "epochs": 15, "decay": 0.9, "repeats": 1}),
)


def digits(models: int) -> Case:
    """scikit-learn's digits and a perceptron."""
    train, validation = lds_digits.problem()
    return Case(
        title="digits, MLP",
        train=train,
        validation=validation,
        model=lds_digits.model,
        recipe=lds_digits.RECIPE,
        models=models or 100,
        sizes=(50, 200),
        slice_class=3,
        component_rows=100,
        bank=60,
        methods=TUNED,
    )


def fashion(models: int) -> Case:
    """A thousand images of Fashion-MNIST and a small CNN."""
    train, validation = problems.fashion(problems.Size(n_train=1_000, n_query=200))
    return Case(
        title="Fashion-MNIST, CNN",
        train=train,
        validation=validation,
        model=small_cnn,
        recipe=Recipe(lr=0.03, schedule="cosine", weight_decay=1e-3, epochs=12, batch_size=50),
        models=models or 30,
        sizes=(50,),
        slice_class=3,
        component_rows=60,
        bank=30,
        methods=tuple(
            (name, {**options, "retain_rows": 200, "epochs": 2} if name == "matching" else options)
            for name, options in TUNED
            if name != "scrub"
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What every forget set of a case shares."""

    states: Mapping[str, Tensor]
    tau: np.ndarray
    components: np.ndarray


def seeds_of(*key: int, count: int) -> list[int]:
    """Training seeds of their own for a key."""
    return [int(stream(0, Purpose.FORGET, 9, *key, c).integers(2**62)) for c in range(count)]


def full_models(case: Case) -> Trained:
    """Models of all rows; scores of training rows for one another; their components."""
    n_train = len(case.train[1])
    whole = np.ones((case.models, n_train), dtype=bool)
    found = train_models(
        case.model,
        case.train,
        masks=whole,
        seeds=seeds_of(0, count=case.models),
        training=case.recipe,
    )
    states = [found.state(c) for c in range(min(CHECKPOINTS, case.models))]
    points = case.validation
    tau = attribute("trak", case.model(), states, train=case.train, queries=points, damping=1.0)
    own = attribute(
        "trak", case.model(), states[:3], train=case.train, queries=case.train, damping=1.0
    )
    _, _, right = np.linalg.svd(np.asarray(own), full_matrices=False)
    return Trained(states=found.states, tau=np.asarray(tau), components=right[:12])


def queries_of(case: Case) -> Pair:
    """Validation rows, then all training rows."""
    pairs = zip(case.validation, case.train, strict=True)
    return tuple(np.concatenate(pair) for pair in pairs)  # type: ignore[return-value]


def retain_points(case: Case) -> np.ndarray:
    """Training rows that no forget set may hold."""
    order = stream(0, Purpose.FORGET, 8).permutation(len(case.train[1]))
    return order[:RETAIN_POINTS]


def forget_sets(case: Case, trained: Trained, *, tuning: bool) -> dict[str, np.ndarray]:
    """Named forget sets: those that are reported, or others of the same kinds for tuning."""
    n_train = len(case.train[1])
    free = np.setdiff1d(np.arange(n_train), retain_points(case))
    found = {}
    for size in case.sizes:
        shuffled = stream(int(tuning), Purpose.FORGET, 7, size).permutation(free)
        found[f"random {size}"] = shuffled[:size]
    label = (case.slice_class + 5 * tuning) % 10
    members = free[case.train[1][free] == label]
    found[f"half of class {label}"] = members[: len(members) // 2]
    number = 2 if tuning else 0
    along = trained.components[number][free]
    found[f"component {number + 1}"] = free[np.argsort(-along)[: case.component_rows]]
    return found


def bank_near(case: Case, trained: Trained) -> tuple[RetrainBank, RetrainBank]:
    """Random removals of three sizes; the same and removals of slices that nothing reports."""
    n_train, count = len(case.train[1]), 3 * case.bank
    masks, seeds, _ = draw_masks(n_train, count, [0.95, 0.9, 0.8], 1, 11)
    slices = np.ones((2 * case.bank, n_train), dtype=bool)
    others = [label for label in range(10) if label != case.slice_class]
    for row, mask in enumerate(slices):
        draw = stream(0, Purpose.FORGET, 6, row)
        if row % 2:
            members = np.flatnonzero(case.train[1] == others[row // 2 % len(others)])
            mask[draw.permutation(members)[: draw.integers(20, len(members) * 3 // 4)]] = False
        else:
            mixed = draw.standard_normal(11) @ trained.components[1:]
            mask[np.argsort(-mixed)[: draw.integers(40, 150)]] = False
    everything = np.concatenate([masks, slices])
    numbers = [*seeds, *seeds_of(1, count=len(slices))]
    bank = train_bank(
        case.model,
        case.train,
        queries=queries_of(case),
        masks=everything,
        seeds=numbers,
        training=case.recipe,
    )
    return bank.subset(np.arange(count)), bank


def oracles_of(case: Case, rows: np.ndarray, key: int) -> Mapping[str, Tensor]:
    """Twice as many models as are unlearned, trained without some rows."""
    masks = np.ones((2 * case.models, len(case.train[1])), dtype=bool)
    masks[:, rows] = False
    seeds = seeds_of(2, key, count=len(masks))
    trained = train_models(case.model, case.train, masks=masks, seeds=seeds, training=case.recipe)
    return trained.states


def margins(case: Case, states: Mapping[str, Tensor], points: Pair) -> np.ndarray:
    """[models, points]."""
    return of_models("margin", predict(case.model, states, points[0]).numpy(), points[1])


def print_predictions(
    title: str,
    rows: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    surrogates: Mapping[str, LinearDatamodel],
    trained: Trained,
) -> None:
    """Predicted against observed change of the validation margins, [models, queries] each."""
    change = after.mean(axis=0) - before.mean(axis=0)
    noise = before.var(axis=0, ddof=1) / len(before) + after.var(axis=0, ddof=1) / len(after)
    ceiling = np.sqrt(max(0.0, 1 - noise.mean() / change.var(ddof=1)))
    none = np.sqrt((change**2).mean())
    whole = np.ones(trained.tau.shape[1], dtype=bool)
    left = whole.copy()
    left[rows] = False
    guesses = {"nothing (scores as they are)": -trained.tau[:, rows].sum(axis=1)}
    for name, surrogate in surrogates.items():
        guesses[name] = (surrogate.expect(left) - surrogate.expect(whole))[0]
    for name, guess in guesses.items():
        line = calibration_line(guess, change)
        error = np.sqrt(((change - guess) ** 2).mean())
        print(
            f"{title:18}{name:30}{line.correlation:8.2f}{ceiling:8.2f}"
            f"{line.correlation / ceiling if ceiling else np.nan:9.2f}{line.slope:8.2f}"
            f"{error:9.3f}{none:11.3f}",
            flush=True,
        )


def print_methods(
    case: Case,
    trained: Trained,
    rows: np.ndarray,
    oracles: Mapping[str, Tensor],
    flat: Tensor,
    slopes: RemovalSlopes,
    methods: tuple[Method, ...],
) -> None:
    """One line a method: closeness to the oracles, membership, accuracy, cost."""
    kept = retain_points(case)
    points: Pair = tuple(  # type: ignore[assignment]
        np.concatenate([whole[rows], whole[kept], asked])
        for whole, asked in zip(case.train, case.validation, strict=True)
    )
    first, second = len(rows), len(rows) + len(kept)
    groups = {
        "forget": np.arange(first),
        "retain": np.arange(first, second),
        "validation": np.arange(second, len(points[1])),
    }
    truth = margins(case, oracles, points)

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
    for name, options in methods:
        started = time.perf_counter()
        done = run(case, trained, rows, oracles, flat, slopes, name, options)
        cost = done.cost.share(len(case.train[1]) - len(rows), case.recipe.epochs)
        line(name, done.states, cost, time.perf_counter() - started)


def run(
    case: Case,
    trained: Trained,
    rows: np.ndarray,
    oracles: Mapping[str, Tensor],
    flat: Tensor,
    slopes: RemovalSlopes,
    name: str,
    options: Mapping[str, Any],
) -> Unlearned:
    """One method on all models.

    `retain_rows` is made a multiple of the forget set, and `batches` of it in an epoch a batch
    size: what was tuned on small sets would climb in too many steps on large ones.
    """
    given = dict(options)
    if "batches" in given:
        given["batch_size"] = -(-len(rows) // given.pop("batches"))
    if "retain_rows" in given:
        given["retain_per_forget"] = given.pop("retain_rows") / len(rows)
    predicted = name in ("matching", "projected")
    if predicted:
        given["scale"] = slopes.kept
    if name == "matching":
        given["forgotten_scale"] = slopes.forgotten
    return unlearn(
        method_of(name, given),
        case.model,
        trained.states,
        train=case.train,
        forget=rows,
        weight_decay=case.recipe.weight_decay,
        oracles=oracles if name == "oracle_matching" else None,
        directions=flat if predicted else None,
    )


def directions_of(case: Case, trained: Trained, sets: Mapping[str, np.ndarray]) -> Directions:
    """Each model's direction for each forget set."""
    return forget_directions(
        case.model,
        trained.states,
        train=case.train,
        forget=list(sets.values()),
        **DIRECTIONS,
    )


CASES: dict[str, Callable[[int], Case]] = {"digits": digits, "fashion": fashion}


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
    flat = directions_of(case, trained, sets).flat
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
        print_methods(case, trained, rows, oracles[name], flat[number], own, case.methods)


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
