"""Removal curves on clean digits: does what scores point at carry the predictions?

The perceptron and recipe of `benchmarks.lds_digits`. For each of some queries the k most helpful
and most harmful rows by TRAK, by gradient cosines, by similar representations and by random scores
are removed and the network is retrained; the change of the margin is read against random removal of
k rows, and TRAK's against each other's, query by query. Then: how many
rows carry a prediction, how LDS carries over to other subset shares, what a bank of other sizes
would cost and say, and whether the scores need trained weights.

With 10 queries, 3 seeds a set: without the 10 most helpful rows by TRAK margins fell by 2.3 more
[1.6, 3.0] than without 10 random ones, by cosines 0.8 [0.1, 1.6], by random scores 0.2 [-0.2, 0.5];
160 rows by cosines are a whole class, and every prediction flips. LDS of TRAK at 25, 50 and 75 %:
0.62, 0.66, 0.61 of ceilings 0.91, 0.86, 0.76.

    python -m benchmarks.removal_digits [--queries 20] [--epochs 30] [--removal-only]
"""

import argparse
import time
from dataclasses import asdict, replace

import numpy as np

from attribution import attribute, lds
from attribution.api import Scores
from attribution.bank import RetrainBank
from attribution.models import fresh
from attribution.power import cheapest_bank, lds_pilot, lds_power
from attribution.removal import removal_curve, smallest_flip
from attribution.retraining import Retraining
from attribution.sanity import randomised_weights
from attribution.statistics import mean_interval
from attribution.streams import Purpose, stream
from attribution.training import Recipe
from benchmarks.lds_digits import N_TRAIN, RECIPE, Pair, model, problem
from benchmarks.retrained import bank_of_subsets, networks
from schemas.errors import InfeasibleProblem

SIZES = (10, 40, 160)
SHARES = (0.25, 0.5, 0.75)
CHECKPOINTS = 5


def scores_of(
    method: str, states: list[dict[str, object]], train: Pair, queries: Pair
) -> np.ndarray:
    """Scores of a method, or of none: random numbers."""
    if method == "random":
        rng = stream(0, Purpose.ARMS)
        return Scores(rng.standard_normal((len(queries[0]), N_TRAIN)), {"output": "margin"})
    options: dict[str, object] = {"damping": 1.0} if method in ("trak", "ekfac") else {}
    if method == "same-class":
        method, options = "similarity", {"labels": "same"}
    return attribute(method, model(), states, train=train, queries=queries, **options)


def bank_of(shares: tuple[float, ...], recipe: Recipe, train: Pair, queries: Pair) -> RetrainBank:
    """Forty subsets of each share, two seeds each."""
    subsets = 40 * len(shares)
    return bank_of_subsets(model, train, queries, recipe, subsets, seeds=2, seed=1, shares=shares)


def print_removal(methods: dict[str, np.ndarray], retraining: Retraining) -> None:
    """Change of the mean margin against random removal, and the fewest rows that flip."""
    print("\nchange of the margin against random removal of k rows, mean [95 % interval]")
    curves = {}
    for name, scores in methods.items():
        started = time.perf_counter()
        curve = curves[name] = removal_curve(scores, retraining, sizes=SIZES)
        seconds = time.perf_counter() - started
        for k, helpful, harmful in zip(SIZES, curve.helpful, curve.harmful, strict=True):
            cells = [
                f"{each.mean:+6.2f} [{each.interval[0]:+.2f}, {each.interval[1]:+.2f}]"
                for each in (helpful, harmful)
            ]
            print(f"{name:10} k = {k:3}  helpful {cells[0]}  harmful {cells[1]}")
        print(f"{'':10} {len(curve.bank)} retrainings, {seconds:.0f} s")
    print("\nthe helpful rows of trak against those of the others, query by query")
    for name, curve in curves.items():
        if name == "trak":
            continue
        pairs = zip(SIZES, curves["trak"].helpful, curve.helpful, strict=True)
        for k, ours, theirs in pairs:
            # Both were trained beside the same random sets, which cancel.
            mean, low, high = mean_interval(ours.per_query - theirs.per_query)
            print(f"{name:10} k = {k:3}  {mean:+6.2f} [{low:+.2f}, {high:+.2f}]")
    print("\nrightly predicted queries that flip when at most k helpful rows are removed")
    for name, scores in methods.items():
        flip = smallest_flip(scores, retraining, sizes=SIZES)
        shares = ", ".join(f"{flip.share(k):.0%} at {k}" for k in SIZES)
        print(f"{name:10} {shares}; {flip.random_share:.0%} by {flip.largest} random rows")


def print_transfer(methods: dict[str, np.ndarray], bank: RetrainBank) -> None:
    """LDS of the same scores on each subset share."""
    print("\nLDS [95 % interval] / ceiling on subsets of each share")
    print(f"{'':8}" + "".join(f"{share:>31.0%}" for share in SHARES))
    for name, scores in methods.items():
        cells = [
            f"{part.mean:.3f} [{part.interval[0]:.3f}, {part.interval[1]:.3f}] / {part.ceiling:.2f}"
            for part in lds(scores, bank).by_alpha.values()
        ]
        print(f"{name:8}" + "".join(f"{cell:>31}" for cell in cells))


def print_power(scores: np.ndarray, bank: RetrainBank) -> None:
    """What banks of other sizes would say, from this one as a pilot."""
    pilot = asdict(lds_pilot(bank, scores))
    print("\npilot: " + ", ".join(f"{name} {value:.3f}" for name, value in pilot.items()))
    for masks, seeds in ((30, 2), (60, 2), (60, 3), (120, 2)):
        half = lds_power(masks, seeds, bank.n_query, **pilot)
        print(f"{masks} masks x {seeds} seeds: +-{half:.3f} on LDS")
    for half in (0.06, 0.05, 0.04):
        try:
            masks, seeds = cheapest_bank(half, 200, **pilot)
            print(f"+-{half} with 200 queries: {masks} masks x {seeds} seeds")
        except InfeasibleProblem as error:
            print(error)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--removal-only", action="store_true")
    arguments = parser.parse_args()
    recipe = replace(RECIPE, epochs=arguments.epochs)
    train, (inputs, labels) = problem()
    queries = inputs[: arguments.queries], labels[: arguments.queries]
    states = networks(model, train, recipe, CHECKPOINTS)
    names = ("trak", "gradcos", "similarity", "same-class", "random")
    methods = {name: scores_of(name, states, train, queries) for name in names}
    retraining = Retraining(model=model, train=train, queries=queries, training=recipe)
    print_removal(methods, retraining)
    if arguments.removal_only:
        return
    names = ("trak", "gradcos", "random")
    everyone = inputs, labels
    methods = {name: scores_of(name, states, train, everyone) for name in names}
    bank = bank_of(SHARES, recipe, train, everyone)
    print_transfer(methods, bank)
    half = bank.subset(np.asarray(bank.alpha) == 0.5)
    print_power(methods["trak"], half)
    print()
    random = [fresh(model, 100 + c).state_dict() for c in range(CHECKPOINTS)]
    for name in ("trak", "ekfac", "graddot", "gradcos"):
        ours, theirs = (scores_of(name, each, train, everyone) for each in (states, random))
        print(f"{name:8} {randomised_weights(ours, theirs, half).sentence}")


if __name__ == "__main__":
    main()
