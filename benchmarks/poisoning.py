"""What could a contributor of a few rows do, and would one notice? Attacks and screens, retrained.

Digits with the perceptron of `benchmarks.lds_digits`, and 2,000 images of Fashion-MNIST with a
small one where `WINNOW_DATA` is set; five checkpoints, five splits. For each split one class is the
target, half of its test rows are named by the attacker and the other half only judged. Flips at 2
and 3.5 % of the rows stand against 20 random draws anywhere and 20 inside the target class; the
scale of predictions is fitted to other retrainings, which contain flips. Then planted flips and a
planted trigger against every screen, and certified votes.

    python -m benchmarks.poisoning [--seeds 5] [--only digits fashion] [--parts attack defence vote]
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from attribution.bank import draw_masks
from attribution.estimators.features import Features, featurize
from attribution.estimators.resampling.empirical import empirical_influence
from attribution.estimators.trak import self_influence, trak_scores
from attribution.models import build, fresh
from attribution.outputs import of_models
from attribution.projection import Projection
from attribution.retraining import Retraining
from attribution.statistics import calibration_line
from attribution.streams import Purpose, stream
from attribution.training import TrainedModels, predict, train_models
from benchmarks import lds_digits, problems
from benchmarks.surrogate_gain import FASHION_RECIPE
from optimize.defence import screens
from optimize.defence.judge import judge_screens, suspects
from optimize.defence.partition import partition, train_votes
from optimize.defence.support import self_supporting
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
CLASSES, CHECKPOINTS, DRAWS, SEEDS, TENTHS = 10, 5, 20, 5, 1_000
SHARES = (0.02, 0.035)
# What may be lost on all other classes: nats of their mean margin, and points of their accuracy.
# The first bounds the search, the second is only checked.
STEALTH, POINTS = 0.5, 2.0
TRIGGER = {"digits": (8, 2), "fashion": (28, 3)}
FASHION = problems.Size(n_train=2_000, n_query=500)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One split of one problem, and what the attacker wants."""

    name: str
    seed: int
    retraining: Retraining
    target: int

    @property
    def labels(self) -> np.ndarray:
        """Of the training rows."""
        return np.asarray(self.retraining.train[1])

    def queries(self, part: str) -> np.ndarray:
        """Test rows: named by the attacker, held out of the target class, or all others."""
        own = np.asarray(self.retraining.queries[1]) == self.target
        place = np.cumsum(own) % 2 == 0
        return np.flatnonzero({"named": own & place, "held": own & ~place, "other": ~own}[part])

    def weights(self, part: str) -> np.ndarray:
        """The mean over them."""
        found = np.zeros(self.retraining.n_query)
        found[self.queries(part)] = 1 / len(self.queries(part))
        return found


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
    lens = Lens(retraining=setting.retraining, checkpoints=CHECKPOINTS, seed=setting.seed)
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
    models = trained(replace(setting.retraining, seeds=2, seed=10_000 + setting.seed), sets)
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


def trained(retraining: Retraining, sets: list[Moves]) -> PoisonedModels:
    """Models of some sets of flips."""
    return train_poisoned(retraining, Universe.of_flips(retraining.train, sets))


def report(
    setting: Setting,
    sets: list[Moves],
    target: np.ndarray,
    scale: DamageScale,
    summary: Summary,
) -> None:
    """Retrain, with seeds that nothing was fitted to, and print one budget."""
    models = trained(replace(setting.retraining, seed=20_000 + setting.seed), sets)
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


def defend(setting: Setting, flipped: Moves) -> dict[tuple[str, str], np.ndarray]:
    """Plant flips and a trigger, screen, sanitise, retrain: numbers of each (attack, screen)."""
    inputs, labels = setting.retraining.train
    moved = labels.copy()
    moved[flipped.rows] = flipped.labels
    rng = stream(setting.seed, Purpose.POISON, 4)
    inside = random_flips(labels, CLASSES, len(flipped), rng, inside=setting.target)
    noisy = labels.copy()
    noisy[inside.rows] = inside.labels
    rows = rng.choice(np.flatnonzero(labels != setting.target), len(flipped), replace=False)
    stamped, named = inputs.copy(), labels.copy()
    stamped[rows], named[rows] = stamp(setting.name, inputs[rows]), setting.target
    planted = {
        "worst flips": ((inputs, moved), flipped.rows),
        "random flips": ((inputs, noisy), inside.rows),
        "trigger": ((stamped, named), rows),
    }
    table = {}
    for attack_name, (train, bad) in planted.items():
        mask = np.zeros(len(labels), dtype=bool)
        mask[bad] = True
        suspicion = screened(setting, train, len(bad))
        judged = judge_screens(suspicion, mask)
        removed = [~suspects(values, len(bad)) for values in suspicion.values()]
        harm, accuracy = harm_of(setting, attack_name, train, [np.ones_like(mask), ~mask, *removed])
        for place, (name, one) in enumerate(judged.items()):
            numbers = (one.auroc, one.average_precision, one.recall)
            table[attack_name, name] = np.array([*numbers, harm[place + 2], accuracy[place + 2]])
        for place, name in enumerate(("nothing removed", "all planted removed")):
            table[attack_name, name] = np.array([*[np.nan] * 3, harm[place], accuracy[place]])
    return table


def stamp(name: str, inputs: np.ndarray) -> np.ndarray:
    """The inputs with a bright square in the lower right corner."""
    side, width = TRIGGER[name]
    pictures = inputs.reshape(len(inputs), side, side).copy()
    pictures[:, -width:, -width:] = inputs.max()
    return pictures.reshape(inputs.shape)


def screened(setting: Setting, train: Pair, budget: int) -> dict[str, np.ndarray]:
    """Suspicion of every row by every screen, from models of the poisoned rows."""
    n, retraining = len(train[1]), replace(setting.retraining, train=train)
    net = fresh(retraining.model, 0)

    def models(masks: np.ndarray, seeds: np.ndarray) -> TrainedModels:
        return train_models(
            retraining.model, train, masks=masks, seeds=seeds, training=retraining.training
        )

    def margins(masks: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        logits = predict(net, models(masks, seeds).states, train[0]).float().numpy()
        return of_models("margin", logits, train[1])

    keys = [int(stream(setting.seed, Purpose.INIT, c).integers(2**62)) for c in range(CHECKPOINTS)]
    found = models(np.ones((CHECKPOINTS, n), dtype=bool), np.array(keys))
    states = [dict(found.state(c)) for c in range(CHECKPOINTS)]
    own, asked = (features(net, states, rows) for rows in (train, retraining.queries))
    hidden = np.concatenate([hidden_of(net, state, train[0]) for state in states], axis=1)
    halves, seeds, _ = draw_masks(n, 20, [0.5], 1, setting.seed)
    unseen = np.where(halves, np.nan, np.logaddexp(0, -margins(halves, seeds)))
    # A few poisons teach a trigger as well as many: only where they are few does each one count.
    # Recall of the planted trigger on digits: 0.98 from tenths, 0.14 from halves.
    tenths, seeds, _ = draw_masks(n, TENTHS, [0.1], 1, setting.seed)
    effects, _ = empirical_influence(tenths, margins(tenths, seeds))
    support = self_supporting(effects, sizes=[budget], restarts=10, seed=setting.seed)
    harm = trak_scores(own, asked)
    return {
        "self-influence": screens.memorised(self_influence(own)),
        "harm": screens.harmful(harm),
        "harm in class": screens.harmful(harm, labels=train[1]),
        "loss when left out": screens.lossy(unseen),
        "self-support": support.suspicion,
        "spectral": screens.spectral(hidden, train[1]),
        "residual": screens.residual(hidden, train[1]),
        "centre": screens.far_from_centre(hidden, train[1]),
        "neighbours": screens.disagreeing(train[0], train[1]),
        "hidden neighbours": screens.disagreeing(hidden, train[1]),
    }


def features(net: nn.Module, states: list[dict], rows: Pair) -> list[Features]:
    """TRAK's features at each checkpoint."""
    return [
        featurize(
            net,
            state,
            rows,
            output="margin",
            task="classification",
            projection=Projection(),
            checkpoint=number,
        )
        for number, state in enumerate(states)
    ]


@torch.no_grad()
def hidden_of(net: nn.Module, state: dict, inputs: np.ndarray) -> np.ndarray:
    """What the last layer reads."""
    net.load_state_dict(state)
    return net[:-1](torch.as_tensor(inputs)).numpy()


def harm_of(
    setting: Setting, name: str, train: Pair, kept: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What an attack still does after training on some rows, and the accuracy elsewhere, in %."""
    retraining = replace(setting.retraining, train=train, seeds=3, seed=30_000 + setting.seed)
    inputs, labels = setting.retraining.queries
    if name == "trigger":
        others = labels != setting.target
        stamped = stamp(setting.name, inputs[others])
        joined = np.concatenate([inputs, stamped]), np.concatenate([labels, labels[others]])
        found = replace(retraining, queries=joined).on(np.stack(kept)).logits.argmax(axis=-1)
        clean, marked = found[:, :, : len(labels)], found[:, :, len(labels) :]
        harm = 100 * (marked == setting.target).mean(axis=(1, 2))
        return harm, 100 * (clean == labels).mean(axis=(1, 2))
    found = retraining.on(np.stack(kept)).logits.argmax(axis=-1) == labels
    named = setting.queries("named")
    return 100 * (1 - found[:, :, named].mean(axis=(1, 2))), 100 * found.mean(axis=(1, 2))


def vote(setting: Setting) -> None:
    """Certified accuracy of partition and finite aggregation."""
    train, (inputs, labels) = setting.retraining.train, setting.retraining.queries
    for spread in (1, 2):
        dealt = partition(train, 20, spread=spread)
        votes = train_votes(
            setting.retraining.model,
            train,
            dealt,
            inputs,
            setting.retraining.training,
            n_classes=CLASSES,
        )
        curve = votes.certified_accuracy(labels)
        cells = " ".join(f"{100 * value:5.1f}" for value in curve[:11])
        print(f"{setting.name:8} {setting.seed:4} {spread:6}  {cells}", flush=True)


HEADER = (
    "problem  seed class flips   clean  anywhere  inside   round 0       1       2   "
    "held-out inside, round 2   others, %, nats           predicted  retrained"
)


def print_defence(name: str, tables: list[dict[tuple[str, str], np.ndarray]]) -> None:
    """Means over the splits."""
    print(
        f"\n{name}: means over {len(tables)} splits; harm is the error on the named targets, in %,"
    )
    print(
        "or the share of stamped rows given the target class; accuracy is over all test rows, in %"
    )
    print(f"{'attack':13} {'screen':20}  AUROC     AP  recall    harm  accuracy")
    for attack_name, screen in tables[0]:
        mean = np.mean([table[attack_name, screen] for table in tables], axis=0)
        shown = " ".join(f"{value:6.3f}" if value == value else f"{'':6}" for value in mean[:3])
        print(f"{attack_name:13} {screen:20} {shown}  {mean[3]:6.1f}  {mean[4]:8.1f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], choices=["digits", "fashion"])
    parser.add_argument("--parts", nargs="*", default=["attack", "defence", "vote"])
    asked = parser.parse_args()
    there = ["digits"] + ["fashion"] * bool(os.environ.get("WINNOW_DATA"))
    for name in asked.only or there:
        started = time.perf_counter()
        summary, tables = Summary(), []
        every = list(settings([name], asked.seeds))
        if "attack" in asked.parts:
            print(HEADER)
        for setting in every:
            found = attack(setting, summary) if "attack" in asked.parts else {}
            if "defence" in asked.parts:
                tables.append(defend(setting, found[max(found)] if found else planted(setting)))
        if summary.lines:
            summary.show()
        if tables:
            print_defence(name, tables)
        if "vote" in asked.parts:
            print("\nproblem  seed spread  accuracy certified against 0, 1, 2, ... changes, in %")
            vote(every[0])
        print(f"{name}: {time.perf_counter() - started:.0f} s\n", flush=True)


def planted(setting: Setting) -> Moves:
    """Flips for the screens where none were searched for."""
    budget = round(SHARES[-1] * len(setting.labels))
    return draws(setting, budget, 1, 1)[1]


if __name__ == "__main__":
    main()
