"""Selection on wrong labels: what is chosen, what was predicted of it, what retraining then says.

Cases are fixed: scikit-learn's digits with 10 % of the labels flipped (perceptron), 3,000 images of
Fashion-MNIST with 30 % (perceptron), 5,000 of CIFAR-10 with the labels that people gave, CIFAR-10N
`aggre_label` and `worse_label` (a small CNN on 16 x 16). Rows are ranked by their effect on the
mean margin of the targets; the size is the best predicted one, by the mean log-probability of
targets that did not rank the rows. Two shifted targets reuse the noisy banks, trained on all
classes: footwear, and animals, against rows whose hidden features are most like the targets'.

Every arm is retrained with training seeds of its own and judged on queries that nothing saw before.
A prediction is of the change of their mean margin against training on all rows, 90 % interval,
stated before: with it come the arms' own predictions. The last line counts signs and coverage.
Run: WINNOW_DATA=... python -m benchmarks.selection [digits] [fashion] [aggre] [worse]
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

from attribution import attribute
from attribution.bank import RetrainBank, draw_masks, train_bank_models
from attribution.models import build
from attribution.outputs import of_models
from attribution.statistics import auroc, mean_interval, welch_interval
from attribution.streams import Purpose, stream
from attribution.training import Recipe, TrainedModels
from benchmarks.problems import Size, fashion
from optimize import (
    BentDatamodel,
    Family,
    LinearDatamodel,
    aimed_subsets,
    bend,
    best_rows,
    calibrate,
    random_subset,
    size_curve,
    size_grid,
)

Pair = tuple[np.ndarray, np.ndarray]
SHARES, BANK_SEEDS, CHECKPOINTS = [0.5, 0.9], 2, 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """Rows with given labels, the labels that are true, queries, and how to train."""

    name: str
    train: Pair
    true: np.ndarray
    queries: Pair  # the targets first
    n_targets: int
    model: nn.Module
    recipe: Recipe
    bank: int = 120
    aimed: int = 48
    seeds: int = 20
    shifted: tuple[str, tuple[int, ...]] | None = None


@dataclass
class Tally:
    """Predictions beside what was seen."""

    signs: list[bool] = field(default_factory=list)
    chosen: list[bool] = field(default_factory=list)
    rivals: list[bool] = field(default_factory=list)
    clean: list[bool] = field(default_factory=list)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=[], metavar="digits, fashion, aggre or worse")
    asked = parser.parse_args().cases or list(CASES)
    tally = Tally()
    for name in asked:
        measure(CASES[name](), tally)
    print(
        f"\nsign right where the 90 % interval excludes 0: {sum(tally.signs)} of "
        f"{len(tally.signs)}; observed change inside it: {_of(tally.chosen)} chosen subsets, "
        f"{_of(tally.rivals)} random or similar ones, {_of(tally.clean)} of all right labels"
    )


def _of(inside: list[bool]) -> str:
    return f"{sum(inside)} of {len(inside)}"


class Bench:
    """One case with its bank, its scores and what they cost."""

    def __init__(self, case: Case) -> None:
        self.case, self.n = case, len(case.true)
        self.masks, self.seeds, _ = draw_masks(self.n, case.bank, SHARES, BANK_SEEDS, 0)
        started = time.perf_counter()
        models, self.margins, _ = self.train(self.masks, self.seeds)
        self.bank_seconds = time.perf_counter() - started
        small = np.flatnonzero(self.masks.sum(axis=1) == round(SHARES[0] * self.n))
        self.states = [models.state(int(row)) for row in small[::BANK_SEEDS][:CHECKPOINTS]]
        tuned = self._scores(slice(0, case.n_targets), bank=self.observed(self.targets()))
        self.tau = self._scores(slice(None), damping=tuned.record["damping"])

    def targets(self) -> np.ndarray:
        """Places of the targets among the queries."""
        return np.arange(self.case.n_targets)

    def train(self, masks: np.ndarray, seeds: np.ndarray) -> tuple[TrainedModels, np.ndarray, ...]:
        """Models, their margins [m, n_query] and hits [m, n_query]."""
        case, (inputs, labels) = self.case, self.case.queries
        models, logits = train_bank_models(
            case.model,
            case.train,
            eval_inputs=inputs,
            masks=masks,
            seeds=seeds,
            training=case.recipe,
        )
        margins = of_models("margin", logits, labels, task="classification")
        return models, margins, logits.argmax(axis=-1) == labels

    def observed(self, places: np.ndarray) -> RetrainBank:
        """The bank on some queries."""
        return RetrainBank(
            masks=self.masks, outputs=self.margins[:, places], seeds=self.seeds, output="margin"
        )

    def calibrated(
        self, places: np.ndarray, output: Callable[[np.ndarray], np.ndarray]
    ) -> LinearDatamodel:
        """The surrogate of an output that margins determine, with the margins' scores as prior."""
        rows = SimpleNamespace(
            masks=self.masks, outputs=output(self.margins[:, places]), alpha=None
        )
        return calibrate(self.tau[places], rows)

    def _scores(self, places: slice, **options: object) -> np.ndarray:
        inputs, labels = self.case.queries
        return attribute(
            "trak",
            self.case.model,
            self.states,
            train=self.case.train,
            queries=(inputs[places], labels[places]),
            curvature="logistic",
            projection={"kind": "sparse", "dim": 2048},
            **options,
        )


def measure(case: Case, tally: Tally) -> None:
    """One case, and the shifted target that its bank serves."""
    bench = Bench(case)
    everyone = np.arange(len(case.queries[1]))
    wrong = case.train[1] != case.true
    print(
        f"\n## {case.name}: {bench.n} rows, {wrong.mean():.0%} labels wrong; {case.bank} models "
        f"in {bench.bank_seconds:.0f} s, {case.aimed} aimed ones, {case.seeds} seeds an arm"
    )
    judge(bench, everyone, tally, rivals={"clean": ~wrong}, seed=1)
    if case.shifted:
        title, classes = case.shifted
        print(f"\n## {case.name}, the target is {title}")
        slice_ = everyone[np.isin(case.queries[1], classes)]
        judge(bench, slice_, tally, rivals={}, seed=2)


def judge(
    bench: Bench, places: np.ndarray, tally: Tally, *, rivals: dict[str, np.ndarray], seed: int
) -> None:
    """Choose for the targets among some queries, predict, retrain and compare on the others."""
    case = bench.case
    targets, held = places[places < case.n_targets], places[places >= case.n_targets]
    margins = bench.calibrated(targets, _same)
    aimed = aimed_subsets(margins, case.aimed, seed=seed)
    rng = stream(seed, Purpose.SEEDS)
    _, seen, _ = bench.train(aimed.masks, rng.integers(2**62, size=case.aimed))
    by_logprob = bench.calibrated(targets, _logprob)
    curve = size_curve(
        [_family(by_logprob, aimed, _logprob(seen[:, targets]), half) for half in (0, 1)],
        size_grid(round(SHARES[0] * bench.n), bench.n),
        seeds=case.seeds,
    )
    utility = margins.averaged().weights[0]
    chosen = best_rows(utility)(curve.best_size)
    rows = SimpleNamespace(masks=aimed.masks, outputs=seen[:, held], alpha=None)
    surrogate = bend(bench.calibrated(held, _same).averaged(), rows)
    right = case.train[1] == case.true
    print(
        f"predicted best size {curve.best_size} ({curve.best_size / bench.n:.0%}), enough "
        f"{curve.enough}; AUROC of right labels {auroc(utility, right):.3f}, right of the chosen "
        f"{right[chosen].mean():.3f}"
    )
    if not rivals:
        rivals = {"similar": best_rows(_similarity(bench, targets))(curve.best_size)}
    _compare(bench, held, surrogate, tally, {"chosen": chosen} | rivals, curve.best_size)


def _family(surrogate: LinearDatamodel, aimed: object, seen: np.ndarray, half: int) -> Family:
    """Subsets that one half of the targets ranks, predicted for the other."""
    rows = aimed.unseen_by(1 - half)
    observed = SimpleNamespace(masks=aimed.masks[rows], outputs=seen[rows], alpha=None)
    bent = bend(surrogate.averaged(aimed.queries[1 - half]), observed)
    return Family(bent, best_rows(aimed.utilities[half]))


def _compare(
    bench: Bench,
    held: np.ndarray,
    surrogate: BentDatamodel,
    tally: Tally,
    arms: dict[str, np.ndarray],
    size: int,
) -> None:
    repeats = bench.case.seeds
    seeds = stream(0, Purpose.VERDICT).integers(2**62, size=repeats)
    draws = [random_subset(bench.n, size, stream(0, Purpose.ARMS, k)) for k in range(repeats)]
    masks = {name: np.tile(mask, (repeats, 1)) for name, mask in arms.items()}
    masks |= {"random": np.stack(draws), "all": np.ones((repeats, bench.n), dtype=bool)}
    _, margins, hits = bench.train(np.concatenate(list(masks.values())), np.tile(seeds, len(masks)))
    values = margins[:, held].mean(axis=1).reshape(len(masks), repeats)
    accuracy = hits[:, held].mean(axis=1).reshape(len(masks), repeats)
    places = {name: row for row, name in enumerate(masks)}
    print("arm      rows   accuracy               change of margin       predicted, 90 %")
    for name, row in places.items():
        line = f"{name:8} {masks[name][0].sum():5}  {_three(mean_interval(accuracy[row]))}"
        if name != "all":
            observed = welch_interval(values[row], values[places["all"]])
            asked = masks[name] if name == "random" else masks[name][:1]
            mean, sd = surrogate.predict_change(np.ones_like(asked), asked, seeds=repeats)
            low, high = (float(end.mean()) for end in surrogate.interval(mean, sd))
            inside = low <= observed[0] <= high
            counted = {"chosen": tally.chosen, "clean": tally.clean}.get(name, tally.rivals)
            counted.append(inside)
            if name != "clean" and (low > 0 or high < 0):
                tally.signs.append((low > 0) == (observed[0] > 0))
            line += f"  {_three(observed)}  {_three((float(mean.mean()), low, high))}"
            line += "" if inside else "  outside"
        print(line)
    for rival in (name for name in places if name != "chosen"):
        won = welch_interval(accuracy[places["chosen"]], accuracy[places[rival]])
        margin = welch_interval(values[places["chosen"]], values[places[rival]])
        print(f"chosen less {rival}: accuracy {_three(won)}, margin {_three(margin)}", flush=True)


def _similarity(bench: Bench, targets: np.ndarray) -> np.ndarray:
    inputs, labels = bench.case.queries
    scores = attribute(
        "similarity",
        bench.case.model,
        bench.states,
        train=bench.case.train,
        queries=(inputs[targets], labels[targets]),
    )
    return np.asarray(scores).mean(axis=0)


def _same(margins: np.ndarray) -> np.ndarray:
    return margins


def _logprob(margins: np.ndarray) -> np.ndarray:
    """Log-probability of the true label, from its margin log p/(1 - p)."""
    return -np.logaddexp(0.0, -margins.astype(np.float64))


def _three(values: tuple[float, float, float]) -> str:
    return f"{values[0]:+.3f} [{values[1]:+.3f}, {values[2]:+.3f}]"


def flipped(labels: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Labels, a share of them changed to another class at random."""
    rng = stream(seed, Purpose.CORRUPT)
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    found = labels.copy()
    found[wrong] = (labels[wrong] + rng.integers(1, 10, len(wrong))) % 10
    return found


def digits_case() -> Case:
    """Digits, 10 % flips."""
    data = load_digits()
    labels = data.target.astype(np.int64)
    order = stream(0, Purpose.SPLIT).permutation(len(labels))
    train, queries = order[:1_257], order[1_257:]
    pixels = data.data[train]
    inputs = ((data.data - pixels.mean()) / pixels.std()).astype(np.float32)
    return Case(
        name="digits, 10 % flips",
        train=(inputs[train], flipped(labels[train], 0.1)),
        true=labels[train],
        queries=(inputs[queries], labels[queries]),
        n_targets=200,
        model=build("mlp", (64,), 10, hidden=[128, 64]),
        recipe=Recipe(lr=0.05, momentum=0.9, weight_decay=1e-4, epochs=60, batch_size=50),
    )


def fashion_case() -> Case:
    """Fashion-MNIST on 14 x 14, 30 % flips."""
    train, queries = fashion(Size(n_train=3_000, n_query=1_000))
    small, asked = (_pooled(pair[0].reshape(-1, 1, 28, 28)) for pair in (train, queries))
    return Case(
        name="Fashion-MNIST, 30 % flips",
        train=(small, flipped(train[1], 0.3)),
        true=train[1],
        queries=(asked, queries[1]),
        n_targets=400,
        model=build("mlp", (196,), 10, hidden=[64]),
        recipe=Recipe(
            lr=0.02, momentum=0.9, weight_decay=1e-4, epochs=40, batch_size=50, schedule="cosine"
        ),
        shifted=("footwear", (5, 7, 9)),
    )


def cifar_case(labels: str) -> Case:
    """CIFAR-10 on 16 x 16 with labels that people gave, a small CNN."""
    folder = Path(os.environ.get("WINNOW_DATA", "")) / "cifar10"
    if not folder.is_dir():
        raise FileNotFoundError("CIFAR-10 is not there; let WINNOW_DATA name its folder")
    small, given = np.load(folder / "cifar10_small.npz"), np.load(folder / "labels.npz")
    images = {part: _pooled(_channels(small[f"{part}_images"])) for part in ("train", "test")}
    index, asked = small["train_index"], small["test_index"]
    order = stream(0, Purpose.SPLIT).permutation(len(asked))
    model = nn.Sequential(
        nn.Unflatten(1, (3, 16, 16)),
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    return Case(
        name=f"CIFAR-10N {labels}",
        train=(images["train"], given[f"cifar10n_{labels}"][index].astype(np.int64)),
        true=given["train_labels"][index].astype(np.int64),
        queries=(images["test"][order], given["test_labels"][asked][order].astype(np.int64)),
        n_targets=400,
        model=model,
        recipe=Recipe(
            lr=0.02, momentum=0.9, weight_decay=5e-4, epochs=10, batch_size=50, schedule="cosine"
        ),
        bank=80,
        aimed=36,
        shifted=("animals", (2, 3, 4, 5, 6, 7)) if labels == "worse_label" else None,
    )


def _channels(images: np.ndarray) -> np.ndarray:
    """RGB bytes [n, 32, 32, 3] as numbers of spread about one [n, 3, 32, 32]."""
    return np.moveaxis((images.astype(np.float32) / 255 - 0.47) / 0.25, 3, 1)


def _pooled(images: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels, as rows."""
    count, channels, height, width = images.shape
    blocks = images.reshape(count, channels, height // 2, 2, width // 2, 2)
    return np.ascontiguousarray(blocks.mean(axis=(3, 5)).reshape(count, -1), dtype=np.float32)


CASES: dict[str, Callable[[], Case]] = {
    "digits": digits_case,
    "fashion": fashion_case,
    "aggre": lambda: cifar_case("aggre_label"),
    "worse": lambda: cifar_case("worse_label"),
}


if __name__ == "__main__":
    main()
