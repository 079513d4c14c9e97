"""What retrained models add to gradient scores: LDS, error bars and size of predicted changes.

The prior is TRAK at ten checkpoints; the surrogate is calibrated on half-subsets with one seed each
and judged on sixty others with three. Digits with a perceptron (three splits) and a small CNN;
2,000 images of Fashion-MNIST with a small perceptron where `WINNOW_DATA` is set. Then the same
number of retrainings spent on random subsets and on those that `optimize.next_masks` chooses.
Run: python -m benchmarks.surrogate_gain [mlp] [cnn] [fashion] [design]
"""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from attribution import attribute
from attribution.bank import RetrainBank
from attribution.evaluate import lds, lds_gain
from attribution.models import build
from attribution.statistics import calibration_line, coverage
from attribution.training import Recipe
from benchmarks import lds_digits, problems
from benchmarks.peers.exchange import network
from benchmarks.retrained import bank_of_subsets, networks
from optimize import LinearDatamodel, bought, calibrate, next_masks

Pair = tuple[np.ndarray, np.ndarray]
JUDGING, SEEDS = 60, 3
HEADER = (
    "problem    seed models    rho   prior  surrogate          gain [95 % interval]   "
    "coverage  slope"
)
FASHION = problems.Size(n_train=2_000, n_query=100)
FASHION_RECIPE = Recipe(lr=0.01, momentum=0.9, weight_decay=1e-3, epochs=20, batch_size=50)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Scores, retrained models to calibrate on and retrained models to judge by."""

    name: str
    seed: int
    prior: np.ndarray
    fit: RetrainBank
    judge: RetrainBank


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=[], metavar="mlp, cnn, fashion or design")
    asked = parser.parse_args().parts
    wanted = asked or ["mlp", "cnn", "design"] + ["fashion"] * ("WINNOW_DATA" in os.environ)
    print(HEADER)
    if "mlp" in wanted:
        for seed in (0, 1, 2):
            table(digits("mlp", lds_digits.model, 400, seed), (25, 50, 100, 400))
    if "cnn" in wanted:
        table(digits("cnn", lambda: network("cnn"), 200, 0), (25, 50, 100, 200))
    if "fashion" in wanted:
        rows = problems.fashion(FASHION)
        model = build("mlp", (784,), 10, hidden=[32])
        trained = train("fashion", lambda: model, *rows, FASHION_RECIPE, 200, 0)
        table(trained, (25, 50, 100, 200))
    if "design" in wanted:
        spend(digits("mlp", lds_digits.model, 400, 0))


def digits(name: str, model: Callable[[], nn.Module], models: int, seed: int) -> Trained:
    """A network on clean digits."""
    return train(name, model, *lds_digits.problem(seed), lds_digits.RECIPE, models, seed)


def train(
    name: str,
    model: Callable[[], nn.Module],
    rows: Pair,
    queries: Pair,
    recipe: Recipe,
    models: int,
    seed: int,
) -> Trained:
    """Both banks, ten checkpoints and their scores, with the damping that nothing tuned."""

    def bank(subsets: int, seeds: int, key: int) -> RetrainBank:
        return bank_of_subsets(model, rows, queries, recipe, subsets, seeds=seeds, seed=key)

    states = networks(model, rows, recipe, lds_digits.N_CHECKPOINTS, seed)
    scores = attribute(
        "trak", model(), states, train=rows, queries=queries, curvature="logistic", damping=1.0
    )
    fit, judge = bank(models, 1, 2_000 + seed), bank(JUDGING, SEEDS, 1_000 + seed)
    return Trained(name=name, seed=seed, prior=np.asarray(scores), fit=fit, judge=judge)


def table(trained: Trained, counts: tuple[int, ...]) -> None:
    """One line for each number of retrainings."""
    judge = trained.judge
    prior = lds(trained.prior, judge, resamples=0).mean
    for models in counts:
        surrogate = calibrate(trained.prior, trained.fit.subset(np.arange(models)))
        gain, low, high = lds_gain(surrogate.weights, trained.prior, judge)
        inside, slope = calibration(surrogate, judge)
        print(
            f"{trained.name:10} {trained.seed:4} {models:6} {surrogate.rho:6.3g}   {prior:.3f}  "
            f"{prior + gain:9.3f}   {gain:+.3f} [{low:+.3f}, {high:+.3f}]     "
            f"{inside:8.3f}  {slope:5.2f}",
            flush=True,
        )


def calibration(surrogate: LinearDatamodel, judge: RetrainBank) -> tuple[float, float]:
    """Coverage of 90 % intervals for one retraining; slope of observed on predicted changes.

    Changes are between random pairs of subsets, each the mean of its models, all queries together.
    """
    single = judge.subset(np.arange(0, len(judge), SEEDS))
    low, high = surrogate.interval(*surrogate.predict(single.masks))
    means = judge.outputs.reshape(JUDGING, SEEDS, -1).mean(axis=1)
    half = JUDGING // 2
    predicted, _ = surrogate.predict_change(single.masks[:half], single.masks[half:])
    line = calibration_line(predicted, means[half:] - means[:half])
    return coverage(low, high, single.outputs), line.slope


def spend(trained: Trained, start: int = 50, more: int = 50) -> None:
    """The same number of further retrainings, on random subsets and on chosen ones.

    The candidates are subsets that are trained already, so that only looking at them is counted;
    the targets are the very subsets that judge, whose outputs stay unseen.
    """
    pool = trained.fit
    first = calibrate(trained.prior, pool.subset(np.arange(start)))
    targets = trained.judge.masks[::SEEDS]
    candidates = pool.masks[start:]
    plan = next_masks(first, more, targets=targets, candidates=candidates)
    places = [int(np.flatnonzero((candidates == mask).all(axis=1))[0]) for mask in plan.masks]
    print(f"\n{more} retrainings after {start}, predicted variance {plan.before:.3f} before")
    print("subsets   predicted variance   sd   leave-one-out error     LDS")
    for name, rows, promised in (
        ("random", np.arange(more), plan.random[-1]),
        ("chosen", np.array(places), plan.after[-1]),
    ):
        bank = pool.subset(np.concatenate([np.arange(start), start + rows]))
        surrogate = calibrate(trained.prior, bank)
        found = bought(first, surrogate, targets)
        score = lds(surrogate.weights, trained.judge, resamples=0).mean
        print(
            f"{name:8} {promised:20.3f} {found.sd[1]:.3f}  {found.error[1]:18.3f}   {score:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
