"""What could a contributor of a few rows do? Label flips found by the solver, retrained.

Digits with the perceptron of `benchmarks.lds_digits`, and 1,000 images of Fashion-MNIST with a
small one where `WINNOW_DATA` is set; five checkpoints, five splits. For each split one class is the
target, half of its test rows are named by the attacker and the other half only judged. Flips at 2
and 3.5 % of the rows stand against 20 random draws anywhere and 20 inside the target class; the
scale of predictions is fitted to other retrainings, which contain flips. Whether one would notice
is `benchmarks.screening`.

    python -m benchmarks.poisoning [--seeds 5] [--only digits fashion]
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from attribution.models import build
from attribution.projection import Projection
from attribution.retraining import Retraining
from attribution.statistics import calibration_line
from attribution.streams import Purpose, stream
from benchmarks import lds_digits, problems
from benchmarks.surrogate_gain import FASHION_RECIPE
from optimize.poisoning.damage import (
    DamageScale,
    PoisonedModels,
    damage_curve,
    fit_scale,
    train_poisoned,
)
from optimize.poisoning.moves import Moves, Universe, flips, random_flips, worst_moves
from optimize.poisoning.search import Lens, worst_flips

Pair = tuple[np.ndarray, np.ndarray]
CLASSES, CHECKPOINTS, DRAWS, SEEDS = 10, 5, 20, 3
SHARES = (0.02, 0.035)
# What may be lost on all other classes: nats of their mean margin, and points of their accuracy.
# The first bounds the search, the second is only checked.
STEALTH, POINTS = 0.5, 2.0
NAMES = ("digits", "fashion")
FASHION = problems.Size(n_train=1_000, n_query=500)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One split of one problem, and what the attacker wants."""

    name: str
    seed: int
    train: Pair
    tested: Pair
    retraining: Retraining
    target: int

    @property
    def labels(self) -> np.ndarray:
        """Of the training rows."""
        return self.train[1]

    @property
    def lens(self) -> Lens:
        """How its flips are seen."""
        return Lens(
            retraining=self.retraining,
            checkpoints=CHECKPOINTS,
            projection=Projection(dim=1_024),
            seed=self.seed,
        )

    def queries(self, part: str) -> np.ndarray:
        """Test rows: named by the attacker, held out of the target class, or all others."""
        own = self.tested[1] == self.target
        place = np.cumsum(own) % 2 == 0
        return np.flatnonzero({"named": own & place, "held": own & ~place, "other": ~own}[part])

    def weights(self, part: str) -> np.ndarray:
        """The mean over them."""
        found = np.zeros(self.retraining.n_query)
        found[self.queries(part)] = 1 / len(self.queries(part))
        return found


def asked_of(description: str) -> argparse.Namespace:
    """The splits and the problems of a run: both, but for the one whose images are not there."""
    there = [name for name in NAMES if name == "digits" or os.environ.get("WINNOW_DATA")]
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=there, choices=NAMES)
    return parser.parse_args()


def settings(only: list[str], seeds: int) -> Iterator[Setting]:
    """Every split of every problem that is there."""
    for name in only:
        for seed in range(seeds):
            if name == "digits":
                train, _ = lds_digits.problem(seed)
                queries, model, recipe = rest_of_digits(seed), lds_digits.model, lds_digits.RECIPE
            else:
                train, queries = problems.fashion(FASHION, seed)
                model, recipe = fashion_model, FASHION_RECIPE
            yield Setting(
                name=name,
                seed=seed,
                train=train,
                tested=queries,
                retraining=Retraining(
                    model=model, train=train, queries=queries, training=recipe, seeds=SEEDS
                ),
                target=int(stream(seed, Purpose.POISON).integers(CLASSES)),
            )


def rest_of_digits(seed: int) -> Pair:
    """All rows that `lds_digits.problem` does not train on, scaled as its own."""
    data = lds_digits.load_digits()
    order = stream(seed, Purpose.SPLIT).permutation(len(data.target))
    pixels, rest = data.data[order[: lds_digits.N_TRAIN]], order[lds_digits.N_TRAIN :]
    inputs = (data.data[rest] - pixels.mean()) / pixels.std()
    return inputs.astype(np.float32), data.target[rest].astype(np.int64)


def fashion_model() -> nn.Module:
    """The small perceptron of `benchmarks.surrogate_gain`."""
    return build("mlp", (784,), CLASSES, hidden=[32])


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What is said of all splits of a problem together.

    Attributes:
        lines: Predicted and retrained change of the targets' margin of every set of flips.
        beaten: Whether each attack's loss exceeds the 95th percentiles of both kinds of draws.
        lost: Points of accuracy that each attack costs all other classes.
    """

    lines: list[tuple[float, float]] = field(default_factory=list)
    beaten: list[bool] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)

    def show(self) -> None:
        """Print it."""
        line = calibration_line(*np.array(self.lines).T)
        low, high = line.slope_interval
        unseen = sum(points <= POINTS for points in self.lost)
        print(
            f"{sum(self.beaten)} of {len(self.beaten)} attacks of round 2 exceed both 95th "
            f"percentiles; {unseen} cost the other classes {POINTS:g} points or less, at most "
            f"{max(self.lost):.1f}\nretrained on predicted change of the named targets' margin, "
            f"{line.n} sets: slope {line.slope:.2f} [{low:.2f}, {high:.2f}], correlation "
            f"{line.correlation:.2f}"
        )


def attack(setting: Setting, summary: Summary) -> dict[int, Moves]:
    """Find the worst flips, retrain them beside random ones, print; the last round by budget."""
    lens = setting.lens
    target, other = lens.effects(np.stack([setting.weights("named"), setting.weights("other")]))
    budgets = [round(share * len(setting.labels)) for share in SHARES]
    of_target, of_other = scales(setting, target, other, budgets)
    allowance = of_other.inverse(STEALTH)
    problem = worst_moves(
        flips(setting.labels, CLASSES),
        target,
        other,
        budget=1,
        own=setting.labels,
        allowance=allowance,
    )
    curve = damage_curve(problem, [budgets[0] // 2, *budgets, 2 * budgets[0]], scale=of_target)
    every = flips(setting.labels, CLASSES)
    planned = [every.take(one.choice) for one in curve.solutions]
    found = {}
    for budget in budgets:
        rounds = worst_flips(
            lens, setting.weights("named"), budget=budget, side=other, allowance=allowance, rounds=2
        )
        found[budget] = rounds[-1].moves
        sets = [*draws(setting, budget, DRAWS, 1), *(one.moves for one in rounds)]
        report(
            setting, sets + (planned if budget == budgets[0] else []), target, of_target, summary
        )
    gaps = max(one.gap for one in curve.solutions)
    cells = zip(curve.budgets, curve.predicted, strict=True)
    worth = ", ".join(f"{budget}: {value:.1f}" for budget, value in cells)
    print(
        f"  at most, predicted at the clean networks [rows: nats] {worth}; largest gap {gaps:.1g}"
    )
    return found


def scales(
    setting: Setting, target: np.ndarray, other: np.ndarray, budgets: list[int]
) -> tuple[DamageScale, DamageScale]:
    """Sizes of predictions, from retrained sets of random and of half-planned flips."""
    rng = stream(setting.seed, Purpose.POISON, 2)
    gains = target - target[np.arange(len(setting.labels)), setting.labels][:, None]
    label, order = gains.argmin(axis=1), np.argsort(gains.min(axis=1))
    sets = []
    for budget in (budgets[0] // 2, *budgets):
        sets += draws(setting, budget, 5, 3)
        for reach in (2, 3, 4, 6, 8):
            rows = rng.choice(order[: reach * budget], budget, replace=False)
            sets.append(Moves(rows=rows, labels=label[rows]))
    models = trained(setting, sets, seeds=2, seed=10_000 + setting.seed)
    fitted = [
        fit_scale([one.gains(effects, setting.labels).sum() for one in sets], models.changes(part))
        for effects, part in (
            (target, setting.weights("named")),
            (other, setting.weights("other")),
        )
    ]
    return fitted[0], fitted[1]


def draws(setting: Setting, budget: int, count: int, key: int) -> list[Moves]:
    """Random flips anywhere, then as many inside the target class."""
    return [
        random_flips(
            setting.labels,
            CLASSES,
            budget,
            stream(setting.seed, Purpose.ARMS, key, budget, number, 0 if inside is None else 1),
            inside=inside,
        )
        for inside in (None, setting.target)
        for number in range(count)
    ]


def trained(setting: Setting, sets: list[Moves], **changes: int) -> PoisonedModels:
    """Models of some sets of flips."""
    universe = Universe.of_flips(setting.train, sets)
    return train_poisoned(replace(setting.retraining, **changes), universe)


def report(
    setting: Setting,
    sets: list[Moves],
    target: np.ndarray,
    scale: DamageScale,
    summary: Summary,
) -> None:
    """Retrain, with seeds that nothing was fitted to, and print one budget."""
    models = trained(setting, sets, seed=20_000 + setting.seed)
    loss, held = (models.losses(setting.queries(part)).mean(axis=1) for part in ("named", "held"))
    accuracy = 100 * models.accuracies(setting.queries("other")).mean(axis=1)
    predicted = scale([one.gains(target, setting.labels).sum() for one in sets])
    observed = models.changes(setting.weights("named"))
    summary.lines.extend(zip(predicted.tolist(), observed.tolist(), strict=True))
    side = models.changes(setting.weights("other"))[2 * DRAWS + 2]
    anywhere, inside = slice(1, 1 + DRAWS), slice(1 + DRAWS, 1 + 2 * DRAWS)
    first = 1 + 2 * DRAWS
    rivals = max(np.percentile(loss[anywhere], 95), np.percentile(loss[inside], 95))
    summary.beaten.append(bool(loss[first + 2] > rivals))
    summary.lost.append(float(accuracy[0] - accuracy[first + 2]))
    print(
        f"{setting.name:8} {setting.seed:4} {setting.target:5} {len(sets[0]):5}  "
        f"{loss[0]:6.3f} {np.percentile(loss[anywhere], 95):9.3f} "
        f"{np.percentile(loss[inside], 95):7.3f}   "
        + " ".join(f"{value:7.3f}" for value in loss[first : first + 3])
        + f"   {np.percentile(held[inside], 95):7.3f} {held[first + 2]:7.3f}   "
        f"{accuracy[0]:6.1f} {accuracy[first + 2]:6.1f} {side:+6.2f}   "
        f"{predicted[2 * DRAWS + 2]:9.2f} {observed[2 * DRAWS + 2]:9.2f}",
        flush=True,
    )


HEADER = (
    "problem  seed class flips   clean  anywhere  inside   round 0       1       2   "
    "held-out inside, round 2   others, %, nats           predicted  retrained"
)


def main() -> None:
    """Measure and print."""
    asked = asked_of(__doc__)
    for name in asked.only:
        started, summary = time.perf_counter(), Summary()
        print(HEADER)
        for setting in settings([name], asked.seeds):
            attack(setting, summary)
        summary.show()
        print(f"{name}: {time.perf_counter() - started:.0f} s\n", flush=True)


if __name__ == "__main__":
    main()
