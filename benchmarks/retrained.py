"""What most measurements begin with: networks of all rows, and banks of subsets of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from attribution.bank import RetrainBank, draw_masks, train_bank
from attribution.streams import Purpose, stream
from attribution.training import Recipe, train_models

Pair = tuple[np.ndarray, np.ndarray]
Make = Callable[[], nn.Module]


def network_seeds(count: int, seed: int = 0) -> list[int]:
    """Training seeds of networks of all rows."""
    return [int(stream(seed, Purpose.INIT, c).integers(2**62)) for c in range(count)]


def networks(
    model: Make, train: Pair, recipe: Recipe, count: int, seed: int = 0
) -> list[dict[str, Any]]:
    """State dicts of independently seeded networks of all rows."""
    whole = np.ones((count, len(train[1])), dtype=bool)
    seeds = network_seeds(count, seed)
    trained = train_models(model, train, masks=whole, seeds=seeds, training=recipe)
    return [trained.state(number) for number in range(count)]


def bank_of_subsets(
    model: Make,
    train: Pair,
    queries: Pair,
    recipe: Recipe,
    subsets: int,
    *,
    seeds: int,
    seed: int,
    shares: Sequence[float] = (0.5,),
) -> RetrainBank:
    """Some seeds of each of some subsets, of all shares together."""
    masks, numbers, alpha = draw_masks(len(train[1]), subsets * seeds, shares, seeds, seed)
    return train_bank(
        model, train, queries=queries, masks=masks, seeds=numbers, training=recipe, alpha=alpha
    )
