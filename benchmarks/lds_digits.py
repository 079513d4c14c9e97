"""LDS of TRAK on clean digits: an MLP 64-128-64-10, ten checkpoints, 100 queries.

Sixty half-subsets, three seeds each, evaluate; thirty others tune the damping. Everything is keyed
by the seeds below. Prints LDS with its interval and ceiling, and the seconds of each part.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn

from attribution import attribute, lds
from attribution.bank import RetrainBank
from attribution.models import build
from attribution.streams import Purpose, stream
from attribution.training import Recipe
from benchmarks.retrained import bank_of_subsets, networks

Pair = tuple[NDArray[Any], NDArray[Any]]
N_TRAIN, N_QUERY, N_CHECKPOINTS = 1_400, 100, 10
RECIPE = Recipe(lr=0.05, momentum=0.9, weight_decay=1e-3, epochs=30, batch_size=50)


def problem(seed: int = 0) -> tuple[Pair, Pair]:
    """Train and query arrays: pixels shifted and scaled as one, by the training rows; labels."""
    data = load_digits()
    labels = data.target.astype(np.int64)
    order = stream(seed, Purpose.SPLIT).permutation(len(labels))
    train, queries = order[:N_TRAIN], order[N_TRAIN : N_TRAIN + N_QUERY]
    pixels = data.data[train]
    inputs = ((data.data - pixels.mean()) / pixels.std()).astype(np.float32)
    return (inputs[train], labels[train]), (inputs[queries], labels[queries])


def model() -> nn.Module:
    """The perceptron, drawn anew."""
    return build("mlp", (64,), 10, hidden=[128, 64])


def bank_of(subsets: int, seeds: int, seed: int, train: Pair, queries: Pair) -> RetrainBank:
    """Retrainings on half of the rows."""
    return bank_of_subsets(model, train, queries, RECIPE, subsets, seeds=seeds, seed=seed)


def main(seed: int = 0) -> None:
    """Measure and print."""
    train, queries = problem(seed)
    started = time.perf_counter()
    judge = bank_of(60, 3, 1_000 + seed, train, queries)
    tune = bank_of(30, 3, 2_000 + seed, train, queries)
    states = networks(model, train, RECIPE, N_CHECKPOINTS, seed)
    print(f"270 retrainings and {N_CHECKPOINTS} checkpoints: {time.perf_counter() - started:.1f} s")
    for curvature in ("logistic", "after-kernel"):
        for count in (1, N_CHECKPOINTS):
            scores = attribute(
                "trak",
                model(),
                states[:count],
                train=train,
                queries=queries,
                bank=tune,
                curvature=curvature,
            )
            found = lds(scores, judge)
            low, high = found.interval
            print(
                f"{curvature:13} {count:2} checkpoints: "
                f"LDS {found.mean:.3f} [{low:.3f}, {high:.3f}], ceiling {found.ceiling:.3f}, "
                f"rho {scores.record['damping']:g}, "
                f"seconds {scores.record['seconds']}"
            )


if __name__ == "__main__":
    main()
