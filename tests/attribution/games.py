"""Small games, and their values by the definition."""

from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.special import beta

from attribution.streams import stream
from attribution.valuation import Utility


def random_utility(n: int, columns: int = 2, seed: int = 0) -> Utility:
    """Any function of coalitions is a game; this one is a table of normal numbers."""
    table = stream(seed).standard_normal((2**n, columns))
    return lambda masks: table[masks @ (1 << np.arange(n))]


def smooth_utility(n: int, columns: int = 2, seed: int = 0) -> Utility:
    """A game with falling returns, as data has."""
    worth = stream(seed).random((n, columns)) ** 3
    return lambda masks: np.sqrt(masks @ worth)


def by_definition(
    utility: Utility, n: int, method: str, shape: tuple[float, float] = (1, 1)
) -> NDArray[np.float64]:
    """Values [n] or [m, n]: a loop over the coalitions without each player."""
    a, b = shape
    totals = []
    for player in range(n):
        others = [other for other in range(n) if other != player]
        total = 0.0
        for size in range(n):
            if method == "shapley":
                weight = 1 / (n * comb(n - 1, size))
            elif method == "beta":
                weight = beta(size + b, n - size - 1 + a) / beta(a, b)
            else:
                weight = 0.5 ** (n - 1)
            for coalition in combinations(others, size):
                masks = np.zeros((2, n), dtype=bool)
                masks[:, list(coalition)] = True
                masks[1, player] = True
                without, joined = np.asarray(utility(masks))
                total = total + weight * (joined - without)
        totals.append(total)
    return np.stack(totals, axis=-1)
