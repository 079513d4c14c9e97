"""The problems that methods are compared on, with their ground truth: retrained networks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from attribution.bank import RetrainBank, draw_masks, train_bank
from attribution.streams import Purpose, stream
from attribution.training import Recipe, train_models
from benchmarks.lds_digits import RECIPE
from benchmarks.lds_digits import problem as digits
from benchmarks.peers.exchange import State, network, write_problem

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a problem is; subsets are halves of the rows."""

    n_train: int = 1_400
    n_query: int = 100
    checkpoints: int = 10
    judging: int = 60
    tuning: int = 30
    seeds: int = 3
    epochs: int = 30


@dataclass(frozen=True, kw_only=True)
class Truth:
    """A problem's checkpoints and banks, and the folder that holds what peers read."""

    name: str
    folder: Path
    size: Size
    states: list[State]
    judge: RetrainBank
    tune: RetrainBank


def make(architecture: str, folder: Path, size: Size | None = None, seed: int = 0) -> Truth:
    """Train banks and checkpoints of a network on digits, and write them for the peers."""
    size = size or Size()
    train, queries = (
        (inputs[:count], labels[:count])
        for (inputs, labels), count in zip(digits(seed), (size.n_train, size.n_query), strict=True)
    )
    recipe = replace(RECIPE, epochs=size.epochs)

    def model() -> nn.Module:
        return network(architecture)

    judge = _bank(model, train, queries, recipe, size, size.judging, 1_000 + seed)
    tune = _bank(model, train, queries, recipe, size, size.tuning, 2_000 + seed)
    seeds = [int(stream(seed, Purpose.INIT, c).integers(2**62)) for c in range(size.checkpoints)]
    everything = np.ones((size.checkpoints, size.n_train), dtype=bool)
    trained = train_models(model, train, masks=everything, seeds=seeds, training=recipe)
    states = [dict(trained.state(number)) for number in range(size.checkpoints)]
    write_problem(
        folder,
        architecture=architecture,
        train=train,
        queries=queries,
        states=states,
        masks=tune.masks,
        outputs=tune.outputs,
    )
    return Truth(
        name=f"digits, {architecture}",
        folder=folder,
        size=size,
        states=states,
        judge=judge,
        tune=tune,
    )


def _bank(
    model: Callable[[], nn.Module],
    train: Pair,
    queries: Pair,
    recipe: Recipe,
    size: Size,
    subsets: int,
    seed: int,
) -> RetrainBank:
    masks, seeds, alpha = draw_masks(size.n_train, subsets * size.seeds, [0.5], size.seeds, seed)
    return train_bank(
        model, train, queries=queries, masks=masks, seeds=seeds, training=recipe, alpha=alpha
    )
