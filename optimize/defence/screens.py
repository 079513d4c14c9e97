"""Screens: one suspicion a row, float64 [n], higher for rows that should be looked at first.

Each takes arrays that are stored anyway (scores, losses, representations, labels) and says nothing
of thresholds; `judge` measures what they find. Distances are Euclidean; a class is a label as
given, so a mislabelled row is measured against the class that it claims.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from attribution.outputs import FALLING, Output, OutputLike
from attribution.scored import recorded_output
from attribution.statistics import ratio
from schemas.errors import ShapeError

Float64 = npt.NDArray[np.float64]

# Rows whose distances to all others are held at once.
_BLOCK = 512
# A normal distribution's standard deviation over its median absolute deviation.
_MAD = 1.4826


def memorised(self_influence: npt.ArrayLike, *, output: OutputLike = Output.MARGIN) -> Float64:
    """Rows that only their own presence explains (Feldman and Zhang 2020).

    Args:
        self_influence: tau[i, i], float [n].
        output: What the scores are of.
    """
    return -_sign(self_influence, output) * _vector(self_influence, "self-influence")


def harmful(
    scores: npt.ArrayLike,
    *,
    labels: npt.ArrayLike | None = None,
    output: OutputLike = Output.MARGIN,
) -> Float64:
    """Minus the mean score over queries (plus for a loss), or how far it stands out in its class.

    Args:
        scores: Float [n_query, n], of trusted queries.
        labels: Int [n]; where given, harm is measured from the median of the row's class in
            robust standard deviations, so that a class that is hard as a whole is no outlier.
        output: What the scores are of.

    Raises:
        ShapeError: The arrays do not fit, or hold NaN.
    """
    tau = np.asarray(scores)
    if tau.ndim != 2 or len(tau) == 0:
        raise ShapeError(f"scores have shape {tau.shape}; give [n_query, n_train]")
    harm = _sign(scores, output) * _vector(tau.mean(axis=0, dtype=np.float64), "mean score")
    if labels is None:
        return harm
    found = np.empty(len(harm))
    for members in _classes(labels, len(harm)):
        offset = harm[members] - np.median(harm[members])
        found[members] = ratio(offset, _MAD * np.full(len(members), np.median(np.abs(offset))))
    return found


def lossy(losses: npt.ArrayLike) -> Float64:
    """Mean loss of each row over models, [M, n] or [n].

    Models that did not train on the row say most; NaN marks those to leave out.

    Raises:
        ShapeError: A row has no loss at all.
    """
    values = np.atleast_2d(np.asarray(losses, dtype=np.float64))
    known = np.isfinite(values)
    if not known.any(axis=0).all():
        row = int(np.flatnonzero(~known.any(axis=0))[0])
        raise ShapeError(f"row {row} has no finite loss; train a model without it, or with it")
    return np.asarray(np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0))


def spectral(features: npt.ArrayLike, labels: npt.ArrayLike, *, components: int = 1) -> Float64:
    """Squared length along the first singular directions of the row's class (Tran et al. 2018).

    A planted group that shares a direction stands out; features are centred class by class.
    """
    rows = _matrix(features)
    found = np.zeros(len(rows))
    for members in _classes(labels, len(rows)):
        centred = rows[members] - rows[members].mean(axis=0)
        directions = np.linalg.svd(centred, full_matrices=False)[2][:components]
        found[members] = ((centred @ directions.T) ** 2).sum(axis=1)
    return found


def residual(features: npt.ArrayLike, labels: npt.ArrayLike, *, energy: float = 0.95) -> Float64:
    """Distance from the subspace that holds most of the class's variance (Koh et al. 2022).

    Args:
        features: Float [n, p].
        labels: Int [n].
        energy: Share of a class's variance that its subspace holds.
    """
    rows = _matrix(features)
    found = np.zeros(len(rows))
    for members in _classes(labels, len(rows)):
        centred = rows[members] - rows[members].mean(axis=0)
        _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
        held = np.cumsum(sizes**2)
        kept = directions[: int(np.searchsorted(held, energy * held[-1])) + 1]
        found[members] = np.linalg.norm(centred - centred @ kept.T @ kept, axis=1)
    return found


def far_from_centre(features: npt.ArrayLike, labels: npt.ArrayLike) -> Float64:
    """Distance from the mean of the row's class: the sphere of Koh et al. (2022)."""
    rows = _matrix(features)
    found = np.empty(len(rows))
    for members in _classes(labels, len(rows)):
        found[members] = np.linalg.norm(rows[members] - rows[members].mean(axis=0), axis=1)
    return found


def far_from_neighbours(features: npt.ArrayLike, labels: npt.ArrayLike, *, k: int = 5) -> Float64:
    """Mean distance to the k nearest other rows of the same class.

    A class of k rows or fewer gives what it has; a row alone in its class is infinitely far.
    """
    rows = _matrix(features)
    found = np.full(len(rows), np.inf)
    for members in _classes(labels, len(rows)):
        nearest = min(_positive("k", k), len(members) - 1)
        if nearest == 0:
            continue
        for part, distances in _distances(rows[members]):
            closest = np.partition(distances, nearest - 1, axis=1)[:, :nearest]
            found[members[part]] = np.sqrt(closest).mean(axis=1)
    return found


def disagreeing(features: npt.ArrayLike, labels: npt.ArrayLike, *, k: int = 10) -> Float64:
    """Share of the k nearest other rows that have another label.

    Ties of the share are broken by the distance at which the own label is first met.
    """
    rows, own = _matrix(features), np.asarray(labels)
    _classes(own, len(rows))
    nearest = min(_positive("k", k), len(rows) - 1)
    if nearest < 1:
        raise ShapeError("there is one row and no neighbour; give two rows or more")
    share, first = np.empty(len(rows)), np.empty(len(rows))
    for part, distances in _distances(rows):
        closest = np.argpartition(distances, nearest - 1, axis=1)[:, :nearest]
        share[part] = (own[closest] != own[part][:, None]).mean(axis=1)
        same = own[None] == own[part][:, None]
        first[part] = np.where(same, distances, np.inf).min(axis=1)
    return np.asarray(share + rankdata(first) / ((len(rows) + 1) * nearest))


def _distances(rows: Float64) -> Iterator[tuple[slice, Float64]]:
    """Squared distances of some rows to all, infinite to themselves, block by block."""
    squares = (rows**2).sum(axis=1)
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, min(start + _BLOCK, len(rows)))
        found = squares[part, None] + squares[None] - 2 * rows[part] @ rows.T
        np.maximum(found, 0.0, out=found)
        found[np.arange(part.stop - start), np.arange(start, part.stop)] = np.inf
        yield part, found


def _sign(scores: npt.ArrayLike, output: OutputLike) -> float:
    return 1.0 if (recorded_output(scores) or output) in FALLING else -1.0


def _classes(labels: npt.ArrayLike, n: int) -> list[npt.NDArray[np.intp]]:
    own = np.asarray(labels)
    if own.shape != (n,) or own.dtype.kind not in "iub":
        raise ShapeError(
            f"labels are {own.dtype} of shape {own.shape} for {n} rows; give one class index each"
        )
    return [np.flatnonzero(own == label) for label in np.unique(own)]


def _matrix(features: npt.ArrayLike) -> Float64:
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim < 2 or len(rows) == 0:
        raise ShapeError(f"features have shape {rows.shape}; give one row of numbers for each row")
    rows = rows.reshape(len(rows), -1)
    if not np.isfinite(rows).all():
        row = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        raise ShapeError(f"the features of row {row} are not finite; drop or repair it")
    return rows


def _vector(values: npt.ArrayLike, name: str) -> Float64:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ShapeError(f"{name} has shape {found.shape}; give one finite number for each row")
    return found


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise ShapeError(f"{name} is {value}; give 1 or more")
    return value
