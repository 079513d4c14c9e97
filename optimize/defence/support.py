"""Subsets that support only themselves: a planted group explains its own outputs and no others'.

A [n, n] holds A[i, j], the effect of training row j on the output of row i. For a size s the
diagonal is set to -(s/n) sum_j A[i, j], so that

    F(S) = sum_{i in S} A_ii + sum_{i != j in S} A_ij,  |S| = s

is the support that S gives itself beyond that of a random set of its size (Khaddaj et al. 2023).
Local search swaps a row in for a row out; with s_x = A_xx + sum_{j in S, j != x} (A_xj + A_jx) the
exact gain is s_a - s_r - A_ra - A_ar, and after the swap s_x grows by A_xa + A_ax - A_xr - A_rx.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from attribution.statistics import ratio
from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

Float64 = npt.NDArray[np.float64]

SIZES = (10, 20, 40, 80, 160, 320)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfSupport:
    """What the search found.

    Attributes:
        suspicion: Float64 [n], s_x of each row for the best subset, standardised and averaged over
            sizes: how much it supports that subset and is supported by it.
        visits: Float64 [n], final subsets that hold the row, each divided by its size, over all
            restarts: the score of Khaddaj et al. Where the effects are noisy poor restarts spread
            it (recall of a planted trigger 0.61 and 0.91 on two splits of digits, by `suspicion`
            0.90 and 0.96).
        sizes: The sizes searched.
        values: Float64 [n_sizes], the largest F of each size.
        subsets: Bool [n_sizes, n], where it was reached.
    """

    suspicion: Float64
    visits: Float64
    sizes: tuple[int, ...]
    values: Float64
    subsets: npt.NDArray[np.bool_]


def self_supporting(
    matrix: npt.ArrayLike,
    *,
    sizes: Sequence[int] = SIZES,
    restarts: int = 20,
    swaps: int = 100,
    rounds: int = 100,
    seed: int = 0,
) -> SelfSupport:
    """Search for subsets of several sizes that support themselves.

    Each restart begins at a random subset. A round makes up to `swaps` best swaps, gains or not,
    none with a row that moved in this round, and goes back to the best subset on its way; rounds
    end when one gains nothing.

    Args:
        matrix: A [n, n]; its diagonal is not read. For a loss give its negative.
        sizes: Sizes of the subsets; those of half the rows or more are passed over.
        restarts: Starts of each size.
        swaps: Swaps in a round.
        rounds: Rounds at most.
        seed: Of the starts.

    Raises:
        ShapeError: The matrix is not square or not finite, or no size is left.
    """
    effects = np.asarray(matrix, dtype=np.float64)
    n = len(effects)
    if effects.shape != (n, n) or not np.isfinite(effects).all():
        raise ShapeError(f"the matrix has shape {effects.shape}; give finite effects [n, n]")
    counts = tuple(size for size in sorted(set(sizes)) if 1 <= size < n / 2)
    if not counts or min(restarts, swaps, rounds) < 1:
        raise ShapeError(
            f"sizes {list(sizes)} leave none below half of {n} rows, or restarts, swaps or rounds "
            "are 0; ask for smaller sizes"
        )
    both = effects + effects.T
    np.fill_diagonal(both, 0.0)
    received = effects.sum(axis=1) - effects.diagonal()
    suspicion, visits, values = np.zeros(n), np.zeros(n), np.full(len(counts), -np.inf)
    subsets = np.zeros((len(counts), n), dtype=bool)
    for place, size in enumerate(counts):
        own = -size / n * received
        for number in range(restarts):
            inside = np.zeros(n, dtype=bool)
            start = stream(seed, Purpose.SOLVER, size, number)
            inside[start.choice(n, size, replace=False)] = True
            _search(both, own, inside, swaps, rounds)
            visits[inside] += 1 / size
            value = support_of(effects, inside)
            if value > values[place]:
                values[place], subsets[place] = value, inside
        ties = both[:, subsets[place]].sum(axis=1) + own
        suspicion += ratio(ties - ties.mean(), np.full(n, ties.std())) / len(counts)
    return SelfSupport(
        suspicion=suspicion, visits=visits, sizes=counts, values=values, subsets=subsets
    )


def support_of(matrix: npt.NDArray[np.floating], subset: npt.NDArray[np.bool_]) -> float:
    """F of a subset from its definition, for a matrix whose diagonal is not read."""
    effects = np.asarray(matrix, dtype=np.float64)
    received = effects.sum(axis=1) - effects.diagonal()
    block = effects[np.ix_(subset, subset)]
    beyond = subset.sum() / len(effects) * received[subset].sum()
    return float(block.sum() - block.trace() - beyond)


@njit(cache=True)
def _search(
    both: Float64, own: Float64, inside: npt.NDArray[np.bool_], swaps: int, rounds: int
) -> None:
    """Improve a subset in place until a round of swaps gains nothing."""
    n = len(own)
    ties = own.copy()  # s_x of every row
    for x in range(n):
        if inside[x]:
            for y in range(n):
                ties[y] += both[x, y]
    came, went = np.empty(swaps, np.int64), np.empty(swaps, np.int64)
    for _ in range(rounds):
        moved = np.zeros(n, np.bool_)
        total, highest, kept, made = 0.0, 0.0, 0, 0
        while made < swaps:
            a, r, gain = _best_swap(both, ties, inside, moved)
            if a < 0:
                break
            _swap(both, ties, inside, a, r)
            moved[a] = moved[r] = True
            came[made], went[made] = a, r
            made += 1
            total += gain
            # Rounding alone must not keep a round going.
            if total > highest + 1e-12 * (abs(highest) + abs(gain)):
                highest, kept = total, made
        for step in range(made - 1, kept - 1, -1):
            _swap(both, ties, inside, went[step], came[step])
        if kept == 0:
            return


@njit(cache=True)
def _best_swap(
    both: Float64, ties: Float64, inside: npt.NDArray[np.bool_], moved: npt.NDArray[np.bool_]
) -> tuple[int, int, float]:
    """The swap of rows not yet moved that gains most: in (-1 if there is none), out, gain."""
    n = len(ties)
    best_in, best_out, best = -1, -1, -np.inf
    for r in range(n):
        if not inside[r] or moved[r]:
            continue
        row, leaving = both[r], ties[r]
        for a in range(n):
            if inside[a] or moved[a]:
                continue
            gain = ties[a] - leaving - row[a]
            if gain > best:
                best_in, best_out, best = a, r, gain
    return best_in, best_out, best


@njit(cache=True)
def _swap(both: Float64, ties: Float64, inside: npt.NDArray[np.bool_], a: int, r: int) -> None:
    """Let a in and r out. The diagonal of `both` is 0, so a and r need no case of their own."""
    inside[a], inside[r] = True, False
    entering, leaving = both[a], both[r]
    for x in range(len(ties)):
        ties[x] += entering[x] - leaving[x]
