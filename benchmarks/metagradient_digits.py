"""LDS of the metagradient beside TRAK's where 1, 3 or 5 % of the rows are dropped at random.

The digits perceptron 64-128-64-10 of `benchmarks.lds_digits`, two kinds of truth on the same masks:

    in place     one run trained again with weight 0 on the dropped rows: same initial parameters,
                 same batches, same divisors. A function of the mask, so its ceiling is 1.
    retraining   the usual training without the rows, several seeds a mask, averaged.

TRAK is tuned on other masks of the same kind; the metagradient has nothing to tune. `slope` is that
of the observed change of an output on the predicted one, pooled over masks and queries: 1 where
scores are in the output's unit. Run: python -m benchmarks.metagradient_digits
"""

import argparse
from dataclasses import dataclass, replace

import numpy as np
import torch

from attribution import RetrainBank, Scores, attribute, lds, train_bank
from attribution.bank import draw_masks
from attribution.outputs import evaluate
from attribution.streams import Purpose, stream
from attribution.training import Recipe, train_models
from attribution.training.weighted import WeightedRun
from benchmarks.lds_digits import N_TRAIN, RECIPE, Pair, model, problem

SHARES = (0.99, 0.97, 0.95)
RUNS = 10


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
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument(
        "--subsets", type=int, default=60, help="judging masks, all shares together"
    )
    parser.add_argument("--seeds", type=int, default=5, help="retrainings of each mask")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    recipe = replace(RECIPE, epochs=asked.epochs)
    train, (inputs, labels) = problem(asked.seed)
    queries = inputs[: asked.queries], labels[: asked.queries]
    seeds = [int(stream(asked.seed, Purpose.INIT, c).integers(2**62)) for c in range(RUNS)]
    truths = [
        in_place(train, queries, recipe, seeds[0], asked.subsets, asked.seed),
        retraining(train, queries, recipe, asked.subsets, asked.seeds, asked.seed),
    ]
    unrolled = metagradients(train, queries, recipe, seeds)
    states = checkpoints(train, recipe, seeds)
    print(f"{asked.queries} queries, {asked.epochs} epochs, {asked.subsets} masks")
    print("truth       method                      LDS                     ceiling  slope  seconds")
    for truth in truths:
        for name, scores in unrolled.items():
            print(line(truth, name, scores), flush=True)
        for curvature, count in (("logistic", 1), ("ggn", 1), ("logistic", RUNS)):
            scores = attribute(
                "trak",
                model(),
                states[:count],
                train=train,
                queries=queries,
                bank=truth.tune,
                curvature=curvature,
                device="cpu",
            )
            print(line(truth, f"TRAK {curvature}, {count} model(s)", scores), flush=True)


def in_place(
    train: Pair, queries: Pair, recipe: Recipe, seed: int, subsets: int, key: int
) -> Truth:
    """The run of one seed with weight 0 on the dropped rows."""

    def outputs(weights: np.ndarray) -> np.ndarray:
        run = WeightedRun(model, train, training=recipe, seed=seed, weights=weights, device="cpu")
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
    train: Pair, queries: Pair, recipe: Recipe, subsets: int, repeats: int, key: int
) -> Truth:
    """Models trained without the dropped rows, each under a seed of its own."""

    def bank(count: int, name: int, shares: tuple[float, ...]) -> RetrainBank:
        masks, seeds, alpha = draw_masks(N_TRAIN, count * repeats, shares, repeats, name)
        return train_bank(
            model,
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
    train: Pair, queries: Pair, recipe: Recipe, seeds: list[int]
) -> dict[str, Scores]:
    """Of the run of `in_place` alone, and averaged over some."""
    return {
        f"metagradient, {count} run(s)": attribute(
            "metagradient",
            model(),
            None,
            train=train,
            queries=queries,
            training=recipe,
            seeds=seeds[:count],
            device="cpu",
        )
        for count in (1, RUNS)
    }


def checkpoints(train: Pair, recipe: Recipe, seeds: list[int]) -> list[dict[str, torch.Tensor]]:
    """Models of all rows, the first that of `in_place`."""
    masks = np.ones((len(seeds), N_TRAIN), dtype=bool)
    trained = train_models(model, train, masks=masks, seeds=seeds, training=recipe, device="cpu")
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
