"""`value`: what every player of a game is worth, how sure that is, and in one sentence how found.

Small games are enumerated, others sampled. `Values` say which; nothing is chosen silently.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from attribution.valuation.banzhaf import sampled_banzhaf
from attribution.valuation.game import FloatArray, Game, Utility
from attribution.valuation.permutations import Sampled, permutation_values
from attribution.valuation.sampling import relative_error
from attribution.valuation.semivalues import (
    MOST_PLAYERS,
    banzhaf_weights,
    beta_size_weights,
    beta_weights,
    enumerated_values,
    leave_one_out_values,
)
from schemas.errors import NotFound, ShapeError


class Method(StrEnum):
    """How gains in coalitions of different sizes are weighed."""

    SHAPLEY = "shapley"
    BETA = "beta"
    BANZHAF = "banzhaf"
    LEAVE_ONE_OUT = "leave_one_out"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Values:
    """What players are worth; > 0 means that the player raises the utility.

    Attributes:
        method: A name of `Method`.
        values: float64 [n], or [m, n] where the utility has m columns; in the utility's unit.
        standard_errors: Of the values, in their shape; 0 where they are exact.
        n_evaluations: Coalitions whose utility was computed for them, each once.
        converged: Whether the standard errors came within the tolerance.
        sentence: For a report.
    """

    method: str
    values: FloatArray
    standard_errors: FloatArray
    n_evaluations: int
    converged: bool
    sentence: str


def value(
    utility: Utility,
    n_players: int,
    *,
    method: str = Method.SHAPLEY,
    exact: bool | None = None,
    shape: tuple[float, float] = (16.0, 1.0),
    draws: int = 1000,
    at_once: int = 32,
    tolerance: float = 0.05,
    truncation: float = 0.0,
    seed: int = 0,
) -> Values:
    """The value of every player.

    Shapley values alone are efficient: they sum to u(U) - u(empty). Leave-one-out is always exact.

    Args:
        utility: Function of masks bool [B, n_players] to [B] or [B, m]; a `Game` remembers what it
            evaluated before.
        n_players: Players: rows, or sources (`Sources`).
        method: "shapley", "beta" (Kwon & Zou 2022), "banzhaf" (Wang & Jia 2023) or
            "leave_one_out".
        exact: Enumerate all coalitions, or sample; None enumerates up to 12 players.
        shape: (a, b) of "beta"; a > b favours small coalitions, (1, 1) is Shapley.
        draws: Most permutations ("banzhaf": coalitions) that are sampled, 20 or more; permutations
            come by eights.
        at_once: Of them evaluated together.
        tolerance: Sampling stops when the root mean square of the standard errors is at most this
            share of that of the values; 0 never stops early.
        truncation: Leave a permutation within this share of u(U) - u(empty) of its end, as in
            Ghorbani & Zou 2019; biases values, by at most that share where the utility never
            falls.
        seed: Of the draws.

    Raises:
        NotFound: The method is unknown.
        ShapeError: A number is out of range, the utility does not fit, or too many players are to
            be enumerated.
    """
    if method not in set(Method):
        raise NotFound(f"there is no value {method!r}; choose one of {', '.join(Method)}")
    game = utility if isinstance(utility, Game) else Game(utility, n_players)
    if game.n_players != n_players:
        raise ShapeError(f"the game has {game.n_players} players and n_players is {n_players}")
    before, name = game.n_evaluations, _name(method, shape)
    if method == Method.LEAVE_ONE_OUT:
        values = leave_one_out_values(game)
        return _exact(game, method, name, values, game.n_evaluations - before)
    if exact or (exact is None and n_players <= MOST_PLAYERS):
        if method == Method.BANZHAF:
            weights = banzhaf_weights(n_players)
        else:
            weights = beta_weights(n_players, _shape(method, shape))
        values = enumerated_values(game, weights)
        return _exact(game, method, name, values, game.n_evaluations - before)
    if method == Method.BANZHAF:
        if truncation:
            raise ShapeError("coalitions of 'banzhaf' are not truncated; leave truncation at 0")
        found = sampled_banzhaf(game, draws=draws, at_once=at_once, tolerance=tolerance, seed=seed)
    else:
        found = permutation_values(
            game,
            beta_size_weights(n_players, _shape(method, shape)),
            draws=draws,
            at_once=at_once,
            tolerance=tolerance,
            truncation=truncation,
            seed=seed,
        )
    return _sampled(game, method, name, found, game.n_evaluations - before, tolerance)


def _shape(method: str, shape: tuple[float, float]) -> tuple[float, float]:
    return shape if method == Method.BETA else (1.0, 1.0)


def _name(method: str, shape: tuple[float, float]) -> str:
    return {
        Method.SHAPLEY: "Shapley values",
        Method.BETA: f"Beta({shape[0]:g}, {shape[1]:g})-Shapley values",
        Method.BANZHAF: "Banzhaf values",
        Method.LEAVE_ONE_OUT: "Leave-one-out values",
    }[Method(method)]


def _exact(game: Game, method: str, name: str, values: FloatArray, made: int) -> Values:
    shown = values[0] if game.scalar else values
    return Values(
        method=str(method),
        values=shown,
        standard_errors=np.zeros_like(shown),
        n_evaluations=made,
        converged=True,
        sentence=f"{name} of {game.n_players} players, exact, from {made:,} new evaluations.",
    )


def _sampled(
    game: Game, method: str, name: str, found: Sampled, made: int, tolerance: float
) -> Values:
    drawn = "coalitions" if method == Method.BANZHAF else "permutations"
    cut = ""
    if found.evaluated < 1:
        cut = f", truncated after {found.evaluated:.0%} of their players"
    verdict = f", within the {tolerance:.1%} asked for"
    if not found.converged:
        verdict = f", not within the {tolerance:.1%} asked for; allow more draws" * (tolerance > 0)
    if cut:
        verdict += "; they know nothing of truncation's bias"
    return Values(
        method=str(method),
        values=found.values[0] if game.scalar else found.values,
        standard_errors=found.errors[0] if game.scalar else found.errors,
        n_evaluations=made,
        converged=found.converged,
        sentence=(
            f"{name} of {game.n_players} players from {found.draws:,} {drawn}{cut} ({made:,} new "
            f"evaluations): standard errors are {relative_error(found.values, found.errors):.1%} "
            f"of the values{verdict}."
        ),
    )
