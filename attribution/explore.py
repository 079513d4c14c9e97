"""What a score matrix is made of: principal components, and rows that help some and hurt others.

A query is a row of tau [n_query, n_train], what every training row does to it; a training row is a
column. A principal component is a direction over training rows along which queries differ most
(Ilyas et al. 2022): the rows at its two ends pull the queries at its two ends. Nothing here trains
a model: what is found is a hypothesis for retraining to judge.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import linalg

from attribution.statistics import ratio
from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.intp]

# Entries up to which the whole matrix is decomposed in float64: 128 MiB of it.
EXACT_ENTRIES = 1 << 24
# Extra columns and rounds of the random range finder; scores fall off slowly at times, and four
# rounds then left the tenth component within 1e-6 of the exact one.
_OVERSAMPLE, _ROUNDS = 10, 4
_BLOCK = 512


class Ends(NamedTuple):
    """The rows at the two ends of a component, the outermost first."""

    high: IndexArray
    low: IndexArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """The leading directions of a score matrix: tau[q] is about centre + loadings[q] @ directions.

    Attributes:
        directions: Float64 [k, n_train], orthonormal; the entry of largest magnitude is positive.
        loadings: Float64 [n_query, k], where each query lies along each direction, in the unit of
            the scores.
        values: Float64 [k], singular values, descending.
        explained: Float64 [k], share of the squared deviation from the centre.
        centre: Float64 [n_train], the mean score of each row; zeros where nothing was taken off.
    """

    directions: FloatArray = field(repr=False)
    loadings: FloatArray = field(repr=False)
    values: FloatArray
    explained: FloatArray
    centre: FloatArray = field(repr=False)

    @property
    def of_rows(self) -> FloatArray:
        """Training rows as points: what each does along each component, [n_train, k]."""
        return self.directions.T * self.values

    def rows(self, component: int, count: int = 5) -> Ends:
        """Training rows at the two ends of a component."""
        return _ends(self.directions[component], count)

    def queries(self, component: int, count: int = 5) -> Ends:
        """Queries at the two ends: rows of the high end raise the output of the high end most."""
        return _ends(self.loadings[:, component], count)


def principal_components(
    scores: npt.ArrayLike,
    count: int = 10,
    *,
    centred: bool = True,
    exact: bool | None = None,
    seed: int = 0,
) -> Components:
    """The directions over training rows along which queries differ most.

    The decomposition is exact up to `EXACT_ENTRIES` scores; above, it is that of a random range
    with power iterations (Halko, Martinsson and Tropp 2011), which reads the scores in blocks of
    queries, from a file if need be.

    Args:
        scores: Float [n_query, n_train].
        count: Components, no more than either side has.
        centred: Take each row's mean over the queries off: what it does to all of them alike.
        exact: Whether to decompose the whole matrix; None decides by its size.
        seed: Key of the random range.

    Raises:
        ShapeError: No matrix, a value that is not finite, or more components than there are.
    """
    tau = np.asarray(scores)
    if tau.ndim != 2 or not 1 <= count <= min(tau.shape):
        raise ShapeError(
            f"{count} components of scores of shape {tau.shape}; give [n_query, n_train] and ask "
            "for no more components than it has rows or columns"
        )
    source = _Centred(tau, centred=centred)
    total = source.squares()
    if not np.isfinite(total):
        raise ShapeError("the scores hold NaN or infinite values; decompose only finite scores")
    if exact if exact is not None else tau.size <= EXACT_ENTRIES:
        left, values, right = linalg.svd(source.block(slice(None)), full_matrices=False)
    else:
        left, values, right = _random_range(source, count, seed)
    left, values, right = left[:, :count], values[:count], right[:count]
    largest = np.abs(right).argmax(axis=1)
    signs = np.where(right[np.arange(count), largest] < 0, -1.0, 1.0)
    return Components(
        directions=right * signs[:, None],
        loadings=left * (values * signs),
        values=values,
        explained=ratio(values**2, np.full(count, total)),
        centre=source.mean,
    )


class _Centred:
    """Scores minus their mean over queries, in blocks of queries as float64."""

    def __init__(self, tau: npt.NDArray[Any], *, centred: bool) -> None:
        self.tau = tau
        self.mean = np.zeros(tau.shape[1])
        if centred:
            self.mean = np.asarray(tau.mean(axis=0, dtype=np.float64))

    def block(self, rows: slice) -> FloatArray:
        return np.asarray(self.tau[rows], dtype=np.float64) - self.mean

    def blocks(self) -> list[slice]:
        return [slice(start, start + _BLOCK) for start in range(0, len(self.tau), _BLOCK)]

    def squares(self) -> float:
        return float(sum((self.block(rows) ** 2).sum() for rows in self.blocks()))

    def times(self, right: FloatArray) -> FloatArray:
        """X right, [n_query, l]."""
        return np.concatenate([self.block(rows) @ right for rows in self.blocks()])

    def transposed(self, left: FloatArray) -> FloatArray:
        """X' left, [n_train, l]."""
        total = np.zeros((self.tau.shape[1], left.shape[1]))
        for rows in self.blocks():
            total += self.block(rows).T @ left[rows]
        return total


def _random_range(
    source: _Centred, count: int, seed: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    width = min(count + _OVERSAMPLE, *source.tau.shape)
    draw = stream(seed, Purpose.SOLVER, 0).standard_normal((source.tau.shape[1], width))
    basis = linalg.qr(source.times(draw), mode="economic")[0]
    for _ in range(_ROUNDS):
        across = linalg.qr(source.transposed(basis), mode="economic")[0]
        basis = linalg.qr(source.times(across), mode="economic")[0]
    left, values, right = linalg.svd(source.transposed(basis).T, full_matrices=False)
    return basis @ left, values, right


def _ends(values: FloatArray, count: int) -> Ends:
    order = np.argsort(-values, kind="stable")
    return Ends(order[:count], np.argsort(values, kind="stable")[:count])


@dataclass(frozen=True, slots=True, kw_only=True)
class Opposites:
    """Training rows that help one group of queries and hurt another.

    Attributes:
        rows: Int [k], the most divisive first.
        first: Float64 [k], mean score of each on the group that it helps.
        second: Float64 [k], mean score on the group that it hurts.
    """

    rows: IndexArray
    first: FloatArray
    second: FloatArray


def opposites(
    scores: npt.ArrayLike, helped: npt.ArrayLike, hurt: npt.ArrayLike, *, count: int = 20
) -> Opposites:
    """The rows that raise the output of some queries and lower that of others.

    Ranked by the weaker of the two effects, each in standard deviations over all rows, so that
    neither group counts for more because its outputs move more. For a loss give the groups in the
    opposite order.

    Args:
        scores: Float [n_query, n_train].
        helped: Queries of the first group, as numbers or a mask.
        hurt: Queries of the second.
        count: The most rows returned; only rows with both signs right are.

    Raises:
        ShapeError: No matrix, or a group is empty.
    """
    tau = np.asarray(scores)
    groups = [np.asarray(group) for group in (helped, hurt)]
    counts = [group.sum() if group.dtype == np.bool_ else group.size for group in groups]
    if tau.ndim != 2 or min(counts) == 0:
        raise ShapeError(f"scores have shape {tau.shape}; give a matrix and two groups of queries")
    first, second = (np.asarray(tau[group].mean(axis=0, dtype=np.float64)) for group in groups)
    weaker = np.minimum(
        ratio(first, np.full(first.shape, first.std())),
        ratio(-second, np.full(second.shape, second.std())),
    )
    order = np.argsort(-weaker, kind="stable")[:count]
    rows = order[weaker[order] > 0]
    return Opposites(rows=rows, first=first[rows], second=second[rows])
