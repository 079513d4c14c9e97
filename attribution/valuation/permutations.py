"""Monte Carlo values from random permutations (Castro et al. 2009; Ghorbani & Zou 2019).

Players join one after the other in random order; a player's value is the mean of what the utility
gains when it joins, each gain weighted by w(k) = n C(n-1, k) p(k) for the k players before it
(1 everywhere for Shapley). Permutation t is a function of (seed, t) alone. Permutations advance
side by side, so that those with the same number of players are evaluated, or retrained, as one.

Permutations come in pairs, one the other's reverse, and a pair is one draw: a player early in one
is late in the other. MEASURED
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.streams import Purpose, stream
from attribution.valuation.game import FloatArray, Game, everyone_and_no_one
from attribution.valuation.sampling import FEWEST_DRAWS, Moments, check_sampling, relative_error

# Numbers that the gains of a batch of permutations may take (512 MiB of float64).
BATCH_NUMBERS = 2**26
# Beside this index: masks of a bank have one index after their purpose, these streams have two.
_PERMUTATIONS = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampled:
    """Values from draws.

    Attributes:
        values: float64 [m, n].
        errors: Standard errors, float64 [m, n].
        draws: Permutations or coalitions drawn.
        evaluated: Share of the gains that truncation left to evaluate.
        converged: Whether the standard errors came within the tolerance.
    """

    values: FloatArray
    errors: FloatArray
    draws: int
    evaluated: float
    converged: bool


def permutation_values(
    game: Game,
    size_weights: FloatArray,
    *,
    draws: int = 1000,
    at_once: int = 32,
    tolerance: float = 0.05,
    truncation: float = 0.0,
    antithetic: bool = True,
    seed: int = 0,
) -> Sampled:
    """Values by sampling orders in which the players join.

    Args:
        game: The game.
        size_weights: Total weight of the coalitions of each size, [n]; 1/n everywhere for Shapley.
        draws: Most permutations.
        at_once: Permutations evaluated side by side; convergence is looked at after each batch.
        tolerance: Stop at this relative error (`attribution.valuation.sampling`); 0 never stops.
        truncation: Leave a permutation when its utility is within this share of u(U) - u(empty) of
            u(U), for every query; the gains of the players still to come count as 0. It biases
            values by at most that share, and 0 does not truncate.
        antithetic: Draw pairs of reversed permutations.
        seed: Of the permutations.

    Raises:
        ShapeError: A number is out of range, or the utility does not fit.
    """
    check_sampling(draws, at_once, tolerance, truncation)
    ends = game.table(everyone_and_no_one(game.n_players))
    slack = truncation * np.abs(ends[0] - ends[1])
    weights = game.n_players * size_weights
    group = 2 if antithetic else 1
    fits = BATCH_NUMBERS // (ends.shape[1] * game.n_players)
    step = group * max(1, min(at_once, fits) // group)
    moments, drawn, evaluated = Moments(), 0, 0
    while drawn < draws:
        numbers = range(drawn, min(drawn + step, draws + draws % group))
        orders = np.stack([_order(seed, number, game.n_players, group) for number in numbers])
        gains, steps = _gains(game, orders, ends, slack)
        np.multiply(gains, weights[np.argsort(orders, axis=1)][:, None], out=gains)
        moments.add(gains.reshape(-1, group, *gains.shape[1:]).mean(axis=1))
        drawn, evaluated = drawn + len(orders), evaluated + steps
        errors = moments.standard_error()
        converged = (
            moments.count >= FEWEST_DRAWS and relative_error(moments.mean, errors) <= tolerance
        )
        if converged:
            break
    return Sampled(
        values=moments.mean,
        errors=errors,
        draws=drawn,
        evaluated=evaluated / (drawn * game.n_players),
        converged=converged,
    )


def _order(seed: int, number: int, n_players: int, group: int) -> npt.NDArray[np.intp]:
    draw, reverse = divmod(number, group)
    order = stream(seed, Purpose.MASKS, _PERMUTATIONS, draw).permutation(n_players)
    return order[::-1] if reverse else order


def _gains(
    game: Game, orders: npt.NDArray[np.intp], ends: FloatArray, slack: FloatArray
) -> tuple[FloatArray, int]:
    """What each player adds where it joins, [B, m, n], and how many gains were evaluated."""
    gains = np.zeros((len(orders), ends.shape[1], game.n_players))
    masks = np.zeros(orders.shape, dtype=bool)
    reached = np.repeat(ends[1:], len(orders), axis=0)
    alive, steps = np.arange(len(orders)), 0
    for place in range(game.n_players):
        alive = alive[(np.abs(ends[0] - reached[alive]) > slack).any(axis=1) | (slack.max() == 0)]
        if len(alive) == 0:
            break
        players = orders[alive, place]
        masks[alive, players] = True
        found = game.table(masks[alive])
        gains[alive, :, players] = found - reached[alive]
        reached[alive] = found
        steps += len(alive)
    return gains, steps
