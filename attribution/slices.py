"""Which slice of the training rows moves an output more than chance: sums, a null, many looks.

A slice is a set of rows that something names beforehand, such as a value of the metadata. By a
linear datamodel it does what the sum of its rows' effects says. Whether that is remarkable is asked
of as many random rows of the same strata (classes): any rows of a rival class lower a margin, and a
slice is not to blame for the classes of its rows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.statistics import ratio
from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Permutations whose sums are formed at once.
_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceTest:
    """What each slice does, and how surprising that is among all the slices looked at.

    Attributes:
        effect: Float64 [k], the sum of each slice's effects: what having it does.
        expected: Float64 [k], of as many random rows of the same strata.
        spread: Float64 [k], the standard deviation of that; 0 for a slice of whole strata.
        standing: Float64 [k], (effect - expected)/spread; 0 where there is no spread.
        p_low: Float64 [k], chance that the lowest standing of all slices is as low, were their
            rows exchangeable within strata (Westfall and Young 1993).
        p_high: The same of the highest.
        permutations: How many drew the null.
    """

    effect: FloatArray
    expected: FloatArray
    spread: FloatArray
    standing: FloatArray
    p_low: FloatArray
    p_high: FloatArray
    permutations: int


def slice_test(
    effects: npt.ArrayLike,
    members: npt.ArrayLike,
    *,
    strata: npt.ArrayLike | None = None,
    permutations: int = 2_000,
    seed: int = 0,
) -> SliceTest:
    """Sums of effects over slices, each against random rows, all against one another.

    The null permutes effects within strata, for all slices together, so that overlapping slices
    count as the fewer looks that they are. The best of many slices must beat the best of as many
    random ones: its p-value needs no further correction.

    Args:
        effects: Float [n_train], what each row adds to the output.
        members: Bool [k, n_train], the rows of each slice.
        strata: Int [n_train], such as classes; None is a single one.
        permutations: Draws of the null; the least p-value is 1/(permutations + 1).
        seed: Key of the permutations.

    Raises:
        ShapeError: The arrays do not fit, an effect is not finite, or a slice is empty.
    """
    beta = np.asarray(effects, dtype=np.float64)
    rows = np.atleast_2d(np.asarray(members, dtype=bool))
    of_rows = np.zeros(beta.shape, dtype=np.intp) if strata is None else np.asarray(strata)
    if beta.ndim != 1 or rows.shape[1:] != beta.shape or of_rows.shape != beta.shape:
        raise ShapeError(
            f"effects have shape {beta.shape}, members {rows.shape} and strata {of_rows.shape}; "
            "give one of each for every row"
        )
    if not np.isfinite(beta).all() or not rows.any(axis=1).all():
        raise ShapeError("an effect is not finite, or a slice has no row; leave it out")
    groups = np.unique(of_rows, return_inverse=True)[1]
    expected, spread = _moments(beta, rows, groups)
    weights = rows.astype(np.float64)
    effect = weights @ beta

    def standing(sums: FloatArray) -> FloatArray:
        above = sums - expected[:, None]
        scale = np.broadcast_to(spread[:, None], above.shape)
        # A slice of whole strata has one sum; what differs is the rounding of the addition.
        return np.where(scale > 1e-12 * np.abs(beta).sum(), ratio(above, scale), 0.0)

    own = standing(effect[:, None])[:, 0]
    lower, higher = np.zeros(len(rows)), np.zeros(len(rows))
    for start in range(0, permutations, _BLOCK):
        count = min(_BLOCK, permutations - start)
        shuffled = _shuffled(beta, groups, count, seed, start)
        null = standing(weights @ shuffled.T)
        lower += (null.min(axis=0)[None, :] <= own[:, None]).sum(axis=1)
        higher += (null.max(axis=0)[None, :] >= own[:, None]).sum(axis=1)
    return SliceTest(
        effect=effect,
        expected=expected,
        spread=spread,
        standing=own,
        p_low=(1 + lower) / (1 + permutations),
        p_high=(1 + higher) / (1 + permutations),
        permutations=permutations,
    )


def matched_rows(
    member: npt.ArrayLike, strata: npt.ArrayLike | None, rng: np.random.Generator
) -> BoolArray:
    """As many random rows as a slice has in each stratum, bool [n_train]."""
    rows = np.asarray(member, dtype=bool)
    of_rows = np.zeros(rows.shape, dtype=np.intp) if strata is None else np.asarray(strata)
    drawn = np.zeros(rows.shape, dtype=bool)
    for stratum in np.unique(of_rows[rows]):
        pool = np.flatnonzero(of_rows == stratum)
        drawn[rng.permutation(pool)[: int(rows[pool].sum())]] = True
    return drawn


def _moments(
    beta: FloatArray, rows: BoolArray, groups: npt.NDArray[np.intp]
) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of a stratified random sum without replacement, [k] each."""
    count = np.bincount(groups).astype(np.float64)
    mean = np.bincount(groups, weights=beta) / count
    squares = np.bincount(groups, weights=(beta - mean[groups]) ** 2)
    variance = ratio(squares, count - 1)
    taken = np.zeros((len(rows), len(count)))
    np.add.at(taken.T, groups, rows.T.astype(np.float64))
    return taken @ mean, np.sqrt((taken * (1 - taken / count)) @ variance)


def _shuffled(
    beta: FloatArray, groups: npt.NDArray[np.intp], count: int, seed: int, first: int
) -> FloatArray:
    """Effects permuted within groups, [count, n_train]; each permutation has its own stream."""
    order = np.argsort(groups, kind="stable")
    draws = np.empty((count, len(beta)))
    for number in range(count):
        keys = stream(seed, Purpose.BOOTSTRAP, first + number).random(len(beta))
        draws[number, order] = beta[np.lexsort((keys, groups))]
    return draws
