"""LDS of the metagradient beside TRAK's where 1, 3 or 5 % of the rows are dropped at random.

The digits perceptron 64-128-64-10, two kinds of truth on the same masks:

    in place     one run trained again with weight 0 on the dropped rows: same initial parameters,
                 same batches, same divisors. A function of the mask, so its ceiling is 1.
    retraining   the usual training without the rows, several seeds a mask, averaged.

TRAK is tuned on other masks of the same kind; the metagradient has nothing to tune. `slope` is that
of the observed change of an output on the predicted one, pooled over masks and queries: 1 where
scores are in the output's unit.

Two recipes, for a derivative says of a finite change what the smoothness of the run lets it say
(Engstrom et al. 2025): "smooth" has GELU and a rate that falls along a cosine from 0.02; "usual",
ReLU and a constant 0.05, is that of `benchmarks.lds_digits`.

Run: python -m benchmarks.metagradient_digits
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from attribution import RetrainBank, Scores, attribute, lds, train_bank
from attribution.bank import draw_masks
from attribution.models import build
from attribution.outputs import evaluate
from attribution.training import Recipe, train_models
from attribution.training.weighted import WeightedRun
from benchmarks.lds_digits import N_TRAIN, RECIPE, Pair, problem
from benchmarks.retrained import network_seeds

Make = Callable[[], nn.Module]
SHARES = (0.99, 0.97, 0.95)
RUNS = 3
CHECKPOINTS = 10
RECIPES = {
    "smooth": ("gelu", replace(RECIPE, lr=0.02, schedule="cosine")),
    "usual": ("relu", RECIPE),
}


@dataclass(frozen=True, kw_only=True)
class Truth:
    """One kind of counterfactual: banks to tune on and to judge by, and the outputs of all rows."""

    name: str
    tune: RetrainBank
    judge: RetrainBank
    whole: np.ndarray


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument(
        "--subsets", type=int, default=60, help="judging masks, all shares together"
    )
    parser.add_argument("--seeds", type=int, default=5, help="retrainings of each mask")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for name in asked.recipes:
        activation, recipe = RECIPES[name]
        print(
            f"{name}: {activation}, {asked.epochs} epochs, {asked.queries} queries, "
            f"{asked.subsets} masks"
        )
        compare(partial(model, activation), replace(recipe, epochs=asked.epochs), asked)


def model(activation: str) -> nn.Module:
    """The perceptron, drawn anew."""
    return build("mlp", (64,), 10, hidden=[128, 64], activation=activation)


def compare(make: Make, recipe: Recipe, asked: argparse.Namespace) -> None:
    """Print the table of one recipe."""
    train, (inputs, labels) = problem(asked.seed)
    queries = inputs[: asked.queries], labels[: asked.queries]
    seeds = network_seeds(CHECKPOINTS, asked.seed)
    data = make, train, queries, recipe
    truths = [
        in_place(*data, seeds[0], asked.subsets, asked.seed),
        retraining(*data, asked.subsets, asked.seeds, asked.seed),
    ]
    unrolled = {count: metagradients(*data, seeds[:count]) for count in (1, RUNS)}
    states = checkpoints(make, train, recipe, seeds)
    print("truth       method                      LDS                     ceiling  slope  seconds")
    for truth in truths:
        for count, scores in unrolled.items():
            print(line(truth, f"metagradient, {count} run(s)", scores), flush=True)
        for count in (1, CHECKPOINTS):
            scores = attribute(
                "trak",
                make(),
                states[:count],
                train=train,
                queries=queries,
                bank=truth.tune,
                device="cpu",
            )
            print(line(truth, f"TRAK, {count} checkpoint(s)", scores), flush=True)


def in_place(
    make: Make, train: Pair, queries: Pair, recipe: Recipe, seed: int, subsets: int, key: int
) -> Truth:
    """The run of one seed with weight 0 on the dropped rows."""

    def outputs(weights: np.ndarray) -> np.ndarray:
        run = WeightedRun(make, train, training=recipe, seed=seed, weights=weights, device="cpu")
        params = run.end().params
        run.net.eval()
        with torch.no_grad():
            logits = run.logits(params, torch.from_numpy(queries[0]))
        return evaluate("margin", logits, torch.from_numpy(queries[1])).numpy()

    banks = []
    for count, name in ((subsets // 2, 2_000 + key), (subsets, 1_000 + key)):
        masks, _, alpha = draw_masks(N_TRAIN, count, SHARES, 1, name)
        rows = np.stack([outputs(mask.astype(float)) for mask in masks])
        same = np.full(count, seed)
        banks.append(RetrainBank(masks=masks, outputs=rows, seeds=same, alpha=alpha))
    return Truth(name="in place", tune=banks[0], judge=banks[1], whole=outputs(np.ones(N_TRAIN)))


def retraining(
    make: Make, train: Pair, queries: Pair, recipe: Recipe, subsets: int, repeats: int, key: int
) -> Truth:
    """Models trained without the dropped rows, each under a seed of its own."""

    def bank(count: int, name: int, shares: tuple[float, ...]) -> RetrainBank:
        masks, seeds, alpha = draw_masks(N_TRAIN, count * repeats, shares, repeats, name)
        return train_bank(
            make,
            train,
            queries=queries,
            masks=masks,
            seeds=seeds,
            training=recipe,
            alpha=alpha,
            device="cpu",
        )

    whole = bank(10, 3_000 + key, (1.0,)).outputs.mean(axis=0)
    return Truth(
        name="retraining",
        tune=bank(subsets // 2, 2_000 + key, SHARES),
        judge=bank(subsets, 1_000 + key, SHARES),
        whole=whole,
    )


def metagradients(
    make: Make, train: Pair, queries: Pair, recipe: Recipe, seeds: list[int]
) -> Scores:
    """Averaged over runs, the first that of `in_place`."""
    return attribute(
        "metagradient",
        make(),
        None,
        train=train,
        queries=queries,
        training=recipe,
        seeds=seeds,
        device="cpu",
    )


def checkpoints(
    make: Make, train: Pair, recipe: Recipe, seeds: list[int]
) -> list[dict[str, torch.Tensor]]:
    """Models of all rows, the first that of `in_place`."""
    masks = np.ones((len(seeds), N_TRAIN), dtype=bool)
    trained = train_models(make, train, masks=masks, seeds=seeds, training=recipe, device="cpu")
    return [trained.state(number) for number in range(len(seeds))]


def line(truth: Truth, name: str, scores: Scores) -> str:
    """One line of the table."""
    found = lds(scores, truth.judge)
    ceiling = 1.0 if found.ceiling is None else found.ceiling
    low, high = found.interval
    predicted = -(~truth.judge.masks).astype(float) @ np.asarray(scores).T
    observed = truth.judge.outputs - truth.whole
    slope = float((predicted * observed).sum() / (predicted**2).sum())
    shares = ", ".join(f"{1 - share:.0%} {one.mean:.2f}" for share, one in found.by_alpha.items())
    return (
        f"{truth.name:11} {name:26}  {found.mean:.3f} [{low:.3f}, {high:.3f}]  {ceiling:8.3f}  "
        f"{slope:5.2f}  {scores.record['seconds']['total']:5.1f}  LDS where dropped: {shares}"
    )


if __name__ == "__main__":
    main()
