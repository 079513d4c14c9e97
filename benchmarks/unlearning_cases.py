"""Cases of the unlearning benchmark: rows, models of all of them, forget sets, banks, oracles."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from attribution import attribute
from attribution.bank import RetrainBank, draw_masks, train_bank
from attribution.outputs import of_models
from attribution.streams import Purpose, stream
from attribution.training import Recipe, predict, train_models
from benchmarks import lds_digits, problems

Pair = tuple[np.ndarray, np.ndarray]
Method = tuple[str, dict[str, Any]]
# Checkpoints that scores are averaged over.
CHECKPOINTS = 10
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


CASES: dict[str, Callable[[int], Case]] = {"digits": digits, "fashion": fashion}


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
