"""New rows beside trusted ones: where each stands among rows that are known to be good.

A model flatters the rows it was trained on, so a new row's loss or harm says nothing beside theirs.
Here both sides are seen by models that trained on neither. With V_m(z) the suspicion of row z by
model m, and M_j the models whose subset lacks trusted row j, the place of a new row b is

    p_b = (1 + #{j : mean_{m in M_j} V_m(j) >= mean_{m in M_j} V_m(b)}) / (1 + n).

Row by row the two means are by the very same models, so that j and b could change places if b is as
good as j: the out-of-bag form of the jackknife+ (Barber et al. 2021, Kim et al. 2020). Of a good
row P(p_b <= rate) is near the rate, and 2 rate at most where models are many; a rate below
1 / (1 + n) can never be reached.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

Float64 = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

# New rows whose means by every M_j are held at once; entries of one block of distances.
_BLOCK, _ENTRIES = 256, 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Standing:
    """Where new rows stand among trusted ones.

    Attributes:
        values: Float64 [b], suspicion of each new row, the mean over all models.
        places: Float64 [b], share of trusted rows that are at least as suspicious, in (0, 1].
        n_trusted: Trusted rows that they were compared with.
    """

    values: Float64
    places: Float64
    n_trusted: int


def standing(
    trusted: npt.ArrayLike, incoming: npt.ArrayLike, left_out: npt.ArrayLike | None = None
) -> Standing:
    """Place new rows among trusted ones.

    Args:
        trusted: Suspicion of the trusted rows, float [M, n] by model, or [n] where no model has
            a part in it. What is not `left_out` is not read.
        incoming: The same of the new rows, [M, b] or [b].
        left_out: Bool [M, n], whether a model did not train on a row. Rows that every model trained
            on are passed over.

    Raises:
        ShapeError: The arrays do not fit, a value that counts is not finite, or no row is left.
    """
    known, new = (np.atleast_2d(np.asarray(side, dtype=np.float64)) for side in (trusted, incoming))
    out = np.ones(known.shape, bool) if left_out is None else np.asarray(left_out, dtype=bool)
    if out.shape != known.shape or len(new) != len(known):
        raise ShapeError(
            f"trusted rows have shape {known.shape}, new rows {new.shape} and left_out {out.shape};"
            " give one row of each for every model"
        )
    if not (np.isfinite(known[out]).all() and np.isfinite(new).all()):
        raise ShapeError("a suspicion is NaN or infinite; look at the rows and the models")
    counts = out.sum(axis=0)
    compared = counts > 0
    if not compared.any():
        raise ShapeError("every model trained on every trusted row; give models of subsets")
    counts, out = counts[compared], out[:, compared]
    own = np.where(out, known[:, compared], 0.0).sum(axis=0) / counts
    share = out / counts
    above = np.empty(new.shape[1], dtype=np.int64)
    for start in range(0, new.shape[1], _BLOCK):
        part = slice(start, start + _BLOCK)
        # Equal values of one row must tie, whatever order their means were summed in.
        slack = 1e-12 * (np.abs(own) + 1e-300)
        above[part] = (own + slack >= new[:, part].T @ share).sum(axis=1)
    return Standing(
        values=new.mean(axis=0), places=(1 + above) / (1 + len(own)), n_trusted=len(own)
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neighbourhood:
    """The labels around rows.

    Attributes:
        suspicion: Float64 [n], share of the k nearest trusted rows that have another label; between
            equal shares, how much nearer another label is than the own one.
        nearest: Int64 [n, k], places of those rows, the nearest first.
    """

    suspicion: Float64
    nearest: IntArray


def neighbourhood(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    new_features: npt.ArrayLike | None = None,
    new_labels: npt.ArrayLike | None = None,
    *,
    k: int = 10,
) -> Neighbourhood:
    """Compare labels with those of the nearest trusted rows, by Euclidean distance.

    Args:
        features: Of the trusted rows, float [n, ...].
        labels: Int [n].
        new_features: Of the rows that are looked at [b, ...]; without them the trusted rows are,
            each beside the others.
        new_labels: Int [b].
        k: Neighbours, as many as there are at most.

    Raises:
        ShapeError: The arrays do not fit, or there is no other row.
    """
    known, own = _flat(features), np.asarray(labels)
    itself = new_features is None
    new = known if itself else _flat(new_features)
    claimed = own if itself else np.asarray(new_labels)
    count = min(k, len(known) - itself)
    if own.shape != (len(known),) or claimed.shape != (len(new),) or known.shape[1] != new.shape[1]:
        raise ShapeError(
            f"features {known.shape} and {new.shape} with labels {own.shape} and {claimed.shape}; "
            "give one label for each row, and as many features"
        )
    if count < 1:
        raise ShapeError(f"k is {k} and there are {len(known)} trusted rows; give one or more")
    suspicion, nearest = np.empty(len(new)), np.empty((len(new), count), dtype=np.int64)
    for part, distances in _distances(new, known):
        if itself:
            distances[np.arange(len(distances)), np.arange(part.start, part.stop)] = np.inf
        some = np.argpartition(distances, count - 1, axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(distances, some, axis=1), axis=1, kind="stable")
        nearest[part] = np.take_along_axis(some, order, axis=1)
        same = own == claimed[part, None]
        ours = np.sqrt(np.where(same, distances, np.inf).min(axis=1))
        others = np.sqrt(np.where(same, np.inf, distances).min(axis=1))
        closer = np.where(ours == others, 0.5, ours / np.maximum(ours + others, 1e-300))
        closer = np.where(np.isinf(ours), 1.0, np.where(np.isinf(others), 0.0, closer))
        share = (own[nearest[part]] != claimed[part, None]).mean(axis=1)
        # Below one step of the share, so that it only breaks ties.
        suspicion[part] = share + 0.99 * closer / count
    return Neighbourhood(suspicion=suspicion, nearest=nearest)


def mutual_support(
    left: npt.ArrayLike,
    right: npt.ArrayLike,
    *,
    size: int,
    top: int = 5,
    key: tuple[int, ...] = (0,),
) -> Float64:
    """How much each row is supported by those in its group that support it most, float64 [n].

    A planted group explains itself and nothing else explains it: before any model has seen the
    rows, what they would do to each other tells (the matrix of Khaddaj et al. 2023, of models
    that trained on none of them). Rows are dealt to groups of one size at random, for the mean of
    the largest of many effects grows with their number: only groups of one size compare.

    Args:
        left: Float [n, k]; with `right` the effects A = left @ right^T, made symmetric.
        right: Float [n, k].
        size: Rows of a group, 2 or more and n at most. Rows that are left over stand with some of
            the others, as the last group.
        top: Effects that are averaged.
        key: Names the random groups.

    Raises:
        ShapeError: The arrays do not fit, or there is no such size.
    """
    one, two = np.asarray(left, dtype=np.float64), np.asarray(right, dtype=np.float64)
    n = len(one)
    if one.shape != two.shape or one.ndim != 2 or not 2 <= size <= n or top < 1:
        raise ShapeError(
            f"factors have shapes {one.shape} and {two.shape}, groups {size} rows, and {top} "
            "effects are averaged; give two alike [n, k], groups of 2 to n rows, and 1 or more"
        )
    order = stream(key[0], Purpose.SOLVER, *key[1:], size).permutation(n)
    found = np.empty(n)
    for start in [*range(0, n - size + 1, size)]:
        found[order[start : start + size]] = _support(one, two, order[start : start + size], top)
    if rest := n % size:
        found[order[-rest:]] = _support(one, two, order[-size:], top)[-rest:]
    return found


def _support(left: Float64, right: Float64, rows: npt.NDArray[np.intp], top: int) -> Float64:
    effects = left[rows] @ right[rows].T
    effects = (effects + effects.T) / 2
    np.fill_diagonal(effects, -np.inf)
    count = min(top, len(rows) - 1)
    return np.asarray(np.partition(effects, -count, axis=1)[:, -count:].mean(axis=1))


def _distances(new: Float64, known: Float64) -> Iterator[tuple[slice, Float64]]:
    """Squared distances, block by block of the new rows."""
    squares = (known**2).sum(axis=1)
    step = max(1, _ENTRIES // max(1, len(known)))
    for start in range(0, len(new), step):
        part = slice(start, min(start + step, len(new)))
        found = (new[part] ** 2).sum(axis=1)[:, None] + squares - 2 * new[part] @ known.T
        yield part, np.maximum(found, 0.0, out=found)


def _flat(features: npt.ArrayLike | None) -> Float64:
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim < 2 or not np.isfinite(rows).all():
        raise ShapeError(f"features have shape {rows.shape}; give finite numbers [n, ...]")
    return rows.reshape(len(rows), -1)
