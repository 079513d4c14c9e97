"""Banzhaf values from independent coalitions, every one of which serves every player.

    phi_i = mean of u(S) over the S with i - mean over the S without i

is the Banzhaf value if S holds each player with probability 1/2, independently ("maximum sample
reuse", Wang & Jia 2023); then its standard error is sqrt(v1/n1 + v0/n0), with the variances v1, v0
of the utility over the n1 coalitions with i and the n0 without. Coalitions of one size give another
number: with a player there is one other less, so the others' mean worth is taken off its own.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm

from attribution.estimators.request import Clock, Record, Request, open_sink
from attribution.statistics import group_means
from attribution.streams import Purpose, stream
from attribution.valuation.game import BoolArray, FloatArray, Game
from attribution.valuation.permutations import Sampled
from attribution.valuation.sampling import FEWEST_DRAWS, check_sampling, relative_error
from schemas.errors import ShapeError

# Chance that subsets which were rightly drawn are refused, for each side of each check.
REFUSAL = 1e-6
QUERY_BLOCK = 512
# Beside this index: masks of a bank have one index after their purpose, these streams have two.
_COALITIONS = 1


def bernoulli_masks(
    n_train: int, models: int, *, seeds_per_mask: int = 1, seed: int = 0
) -> tuple[BoolArray, npt.NDArray[np.int64], FloatArray]:
    """Subsets that hold each row with probability 1/2, for a bank that can tell Banzhaf values.

    Row j belongs to mask j // seeds_per_mask; a larger bank begins with the rows of a smaller one.
    The empty subset, on which no model can be trained, is drawn again.

    Args:
        n_train: Rows to draw from.
        models: Rows of the bank, a multiple of ``seeds_per_mask``.
        seeds_per_mask: Retrainings of each subset.
        seed: Of the bank.

    Returns:
        masks bool [models, n_train], training seeds int64 [models], alpha float64 [models] (1/2),
        as `attribution.bank.draw_masks`.

    Raises:
        ShapeError: Numbers do not divide, or there is no row.
    """
    if n_train < 1 or seeds_per_mask < 1 or models < 1 or models % seeds_per_mask:
        raise ShapeError(
            f"{models} models of {n_train} rows cannot be {seeds_per_mask} retrainings of each "
            "subset; give at least one row, and a multiple"
        )
    subsets = _coalitions(n_train, range(models // seeds_per_mask), seed, allow_empty=False)
    seeds = [
        stream(seed, Purpose.SEEDS, *divmod(row, seeds_per_mask)).integers(2**62)
        for row in range(models)
    ]
    masks = np.repeat(subsets, seeds_per_mask, axis=0)
    return masks, np.array(seeds, dtype=np.int64), np.full(models, 0.5)


def banzhaf_values(masks: npt.ArrayLike, outputs: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Banzhaf values and their standard errors from coalitions that somebody else drew.

    Rows that share a mask, such as retrainings under several seeds, are averaged first.

    Args:
        masks: bool [M, n], drawn independently with probability 1/2 for each player.
        outputs: [M, m].

    Returns:
        values and standard errors, float64 [m, n].

    Raises:
        ShapeError: Shapes do not fit, the masks were not drawn with probability 1/2, or fewer than
            two of them are with a player, or without.
    """
    subsets, table = _one_row_a_mask(masks, outputs)
    check_bernoulli(subsets)
    return _difference_of_means(subsets, table)


def sampled_banzhaf(
    game: Game, *, draws: int = 1000, at_once: int = 32, tolerance: float = 0.05, seed: int = 0
) -> Sampled:
    """Banzhaf values of a game from coalitions drawn here.

    Args:
        game: The game.
        draws: Most coalitions.
        at_once: Coalitions evaluated together; convergence is looked at after each batch.
        tolerance: Stop at this relative error (`attribution.valuation.sampling`); 0 never stops.
        seed: Of the coalitions.

    Raises:
        ShapeError: A number is out of range, or the utility does not fit.
    """
    check_sampling(draws, at_once, tolerance, 0.0)
    masks = np.zeros((0, game.n_players), dtype=bool)
    converged = False
    while len(masks) < draws and not converged:
        numbers = range(len(masks), min(len(masks) + at_once, draws))
        masks = np.concatenate([masks, _coalitions(game.n_players, numbers, seed)])
        table = game.table(masks)
        enough = _fewest(masks) >= FEWEST_DRAWS
        if enough or len(masks) == draws:
            values, errors = _difference_of_means(masks, table)
            converged = enough and relative_error(values, errors) <= tolerance
    return Sampled(
        values=values, errors=errors, draws=len(masks), evaluated=1.0, converged=converged
    )


def check_bernoulli(masks: BoolArray) -> None:
    """Refuse subsets whose sizes are not those of independent draws with probability 1/2.

    Raises:
        ShapeError: The mean or the variance of the sizes differs by more than chance explains.
    """
    count, n = masks.shape
    sizes = masks.sum(axis=1)
    found = sizes.var(ddof=1) if count > 1 else 0.0
    # Sheppard's 1/12: a few whole numbers are alike more often than chi2 of normal ones allows.
    tails = (
        chi2.cdf((count - 1) * (found + 1 / 12) / (n / 4), count - 1),
        chi2.sf((count - 1) * found / (n / 4), count - 1),
    )
    reach = norm.isf(REFUSAL / 2) / 2
    offset = abs(float(sizes.mean()) - n / 2) / math.sqrt(n / count)
    if min(tails) < REFUSAL or offset > reach:
        raise ShapeError(
            f"{count} masks hold {sizes.mean():.1f} ± {math.sqrt(found):.1f} of {n} rows; drawn "
            f"with probability 1/2, as Banzhaf values need, they would hold {n / 2:g} ± "
            f"{math.sqrt(n) / 2:.1f}: draw them by attribution.valuation.bernoulli_masks"
        )


def estimate(request: Request) -> tuple[npt.NDArray[np.float32], Record]:
    """Banzhaf values of every row for every query, from the bank; checkpoints are not read.

    Args:
        request: What is asked; its bank's subsets hold each row with probability 1/2.

    Raises:
        ShapeError: There is no bank, it is of other rows or queries, or its subsets were drawn
            otherwise.
    """
    n_query, n_train = len(request.queries), len(request.train)
    if request.bank is None:
        raise ShapeError(
            "banzhaf reads retrained models only; give bank=, trained on masks of "
            "attribution.valuation.bernoulli_masks"
        )
    clock = Clock()
    subsets, table = _one_row_a_mask(request.bank.masks, request.bank.outputs)
    if (subsets.shape[1], table.shape[1]) != (n_train, n_query):
        raise ShapeError(
            f"the bank is of {subsets.shape[1]} rows and {table.shape[1]} queries; asked are "
            f"{n_train} and {n_query}"
        )
    check_bernoulli(subsets)
    target, send = open_sink(request.out, n_query, n_train)
    medians = []
    for start in range(0, n_query, QUERY_BLOCK):
        rows = slice(start, min(start + QUERY_BLOCK, n_query))
        values, errors = _difference_of_means(subsets, table[:, rows])
        medians.append(np.median(errors, axis=1))
        send(rows, values.astype(np.float32))
    clock.stop("score")
    record: dict[str, Any] = {
        "damping": None,
        "chosen_from": "there is nothing to damp",
        "fingerprint": [],
        "options": {},
        "masks": len(subsets),
        # The median over rows of each query, and over queries; `banzhaf_values` has them all.
        "standard_error": float(np.median(np.concatenate(medians))),
        "seconds": clock.seconds,
    }
    return target, record


def _coalitions(
    n_players: int, numbers: range, seed: int, *, allow_empty: bool = True
) -> BoolArray:
    masks = np.empty((len(numbers), n_players), dtype=bool)
    for row, number in enumerate(numbers):
        draw = stream(seed, Purpose.MASKS, _COALITIONS, number)
        masks[row] = draw.integers(2, size=n_players)
        while not allow_empty and not masks[row].any():
            masks[row] = draw.integers(2, size=n_players)
    return masks


def _one_row_a_mask(masks: npt.ArrayLike, outputs: npt.ArrayLike) -> tuple[BoolArray, FloatArray]:
    given, table = np.asarray(masks), np.asarray(outputs, dtype=np.float64)
    if given.dtype != np.bool_ or given.ndim != 2 or given.size == 0:
        raise ShapeError(f"masks are {given.dtype} of shape {given.shape}; give bool [M, n]")
    if table.ndim != 2 or len(table) != len(given) or not np.isfinite(table).all():
        raise ShapeError(
            f"outputs have shape {table.shape} for {len(given)} masks; give finite [M, m]"
        )
    _, first, group = np.unique(
        np.packbits(given, axis=1), axis=0, return_index=True, return_inverse=True
    )
    return given[first], group_means(table, group.ravel())


def _fewest(masks: BoolArray) -> int:
    held = masks.sum(axis=0)
    return int(min(held.min(), len(masks) - held.max()))


def _difference_of_means(masks: BoolArray, table: FloatArray) -> tuple[FloatArray, FloatArray]:
    if _fewest(masks) < 2:
        held = masks.sum(axis=0)
        player = int(np.argmin(np.minimum(held, len(masks) - held)))
        raise ShapeError(
            f"player {player} is in {held[player]} of {len(masks)} coalitions; at least two must "
            "be with it and two without: draw more"
        )
    deviations = table - table.mean(axis=0)  # so that squares keep their digits
    members = masks.T.astype(np.float64)
    held = members.sum(axis=1, keepdims=True)
    sums, squares = members @ deviations, members @ deviations**2
    rest = deviations.sum(axis=0) - sums, (deviations**2).sum(axis=0) - squares
    means, variances = [], []
    for count, total, square in ((held, sums, squares), (len(masks) - held, *rest)):
        mean = total / count
        means.append(mean)
        variances.append(np.maximum(square / count - mean**2, 0.0) / (count - 1))
    return (means[0] - means[1]).T, np.sqrt(variances[0] + variances[1]).T
