"""Values as weighted sums over coalitions, and all of them by enumeration.

    phi_i = sum_{S without i} p(|S|) (u(S + i) - u(S)),    sum_k C(n-1, k) p(k) = 1

    Shapley        p(k) = k! (n-1-k)! / n!                               (Shapley 1953)
    Beta(a, b)     p(k) = B(k + b, n - 1 - k + a) / B(a, b)              (Kwon & Zou 2022)
    Banzhaf        p(k) = 2^-(n-1)                                       (Wang & Jia 2023)
    leave one out  p(k) = 1 for k = n - 1, else 0

Beta(1, 1) is Shapley; a > b favours small coalitions. The total weight of each size, C(n-1, k)
p(k), is what sampling needs, and unlike p itself it does not underflow.
"""

import numpy as np
from scipy.special import betaln
from scipy.stats import betabinom

from attribution.valuation.game import FloatArray, Game, everyone_and_no_one
from schemas.errors import ShapeError

# 2^12 = 4,096 retrainings; one more player doubles them.
MOST_PLAYERS = 12


def beta_size_weights(n_players: int, shape: tuple[float, float]) -> FloatArray:
    """Total weight C(n-1, k) p(k) of the coalitions of each size, [n_players]; it sums to 1.

    Raises:
        ShapeError: A shape parameter is not a positive number.
    """
    a, b = _checked_shape(shape)
    return np.asarray(betabinom.pmf(np.arange(n_players), n_players - 1, b, a))


def beta_weights(n_players: int, shape: tuple[float, float]) -> FloatArray:
    """Weight p(k) of one coalition of k other players, [n_players].

    Raises:
        ShapeError: A shape parameter is not a positive number.
    """
    a, b = _checked_shape(shape)
    size = np.arange(n_players)
    return np.exp(betaln(size + b, n_players - 1 - size + a) - betaln(a, b))


def banzhaf_weights(n_players: int) -> FloatArray:
    """Weight p(k) of one coalition, the same for every size, [n_players]."""
    return np.full(n_players, 0.5 ** (n_players - 1))


def enumerated_values(game: Game, weights: FloatArray) -> FloatArray:
    """Exact values from the utility of each of the 2^n coalitions, [m, n].

    Args:
        game: At most `MOST_PLAYERS` players.
        weights: p(k) of a coalition of k other players, [n].

    Raises:
        ShapeError: There are more players.
    """
    n = game.n_players
    if n > MOST_PLAYERS:
        raise ShapeError(
            f"exact values of {n} players need {2**n:,} evaluations; sample them (exact=False), "
            f"or group rows into at most {MOST_PLAYERS} sources"
        )
    masks = (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)
    sizes = masks.sum(axis=1, keepdims=True)
    # u(S) counts for a member of S in the coalition S without it, and against everyone else.
    joined, apart = weights[np.maximum(sizes - 1, 0)], weights[np.minimum(sizes, n - 1)]
    return (np.where(masks, joined, -apart).T @ game.table(masks)).T


def leave_one_out_values(game: Game) -> FloatArray:
    """u(U) - u(U without i) of each player, [m, n], from n + 1 evaluations."""
    without = ~np.eye(game.n_players, dtype=bool)
    found = game.table(np.concatenate([everyone_and_no_one(game.n_players)[:1], without]))
    return (found[:1] - found[1:]).T


def _checked_shape(shape: tuple[float, float]) -> tuple[float, float]:
    if len(shape) != 2 or not all(np.isfinite(part) and part > 0 for part in shape):
        raise ShapeError(f"shape is {shape}; give two positive numbers (a, b), as in (16, 1)")
    return float(shape[0]), float(shape[1])
