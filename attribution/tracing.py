"""Fact tracing: do scores put the training rows first that state a fact?

Proponents are the rows that are known to state what a query asks for. MRR is the mean over queries
of 1 / (rank of the first proponent), recall@k the mean share of proponents among the k rows of
highest score (Akyürek et al. 2022). Rows of one score are in random order, so what is reported is
an expectation over their orders: a method that scores all rows alike gains nothing by where the
proponents happen to lie. Whether the rows that state a fact are those that taught it is another
question, which `attribution.fact_removal` answers by retraining.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from attribution.bootstrap import resample_counts
from attribution.outputs import FALLING
from attribution.scored import check_finite, recorded_output
from attribution.statistics import Triple
from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

RESAMPLES = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """How far up the proponents are, for each query that has one, and on average.

    Attributes:
        k: Rows that recall looks at.
        queries: Intp [n_judged], the queries that have a proponent; the others are left out.
        reciprocal_rank: Float64 [n_judged], expected 1 / rank of the first proponent.
        recall: Float64 [n_judged], expected share of the proponents among the first k rows. With
            more than k proponents it cannot reach 1.
        mrr: Mean reciprocal rank with its interval, over queries.
        recall_at_k: Mean recall with its interval.
        confidence: The level of the intervals.
    """

    k: int
    queries: npt.NDArray[np.intp] = field(repr=False)
    reciprocal_rank: FloatArray = field(repr=False)
    recall: FloatArray = field(repr=False)
    mrr: Triple
    recall_at_k: Triple
    confidence: float

    def minus(self, other: "Retrieval", *, seed: int = 0) -> tuple[Triple, Triple]:
        """Differences of MRR and of recall to another method's, paired by query.

        Raises:
            ShapeError: The other was judged on other queries, or for another k.
        """
        if self.k != other.k or not np.array_equal(self.queries, other.queries):
            raise ShapeError("the two were judged on other queries or for another k; use the same")
        pairs = (
            (self.reciprocal_rank, other.reciprocal_rank),
            (self.recall, other.recall),
        )
        first, second = (_bootstrap(a - b, self.confidence, seed) for a, b in pairs)
        return first, second


def retrieval(
    scores: npt.ArrayLike,
    proponents: npt.ArrayLike | Sequence[Sequence[int]],
    *,
    k: int = 10,
    confidence: float = 0.95,
    seed: int = 0,
) -> Retrieval:
    """MRR and recall@k of scores against the rows that are known to state each fact.

    Args:
        scores: Float [n_query, n_train]; a `Scores` of a loss counts with its sign changed, other
            arrays rank from the highest value.
        proponents: Bool [n_query, n_train], or a list of row numbers for each query.
        k: Rows that recall looks at.
        confidence: Level of the intervals, by bootstrap over queries.
        seed: Key of the resamples.

    Raises:
        ShapeError: Shapes do not fit, a score is not finite, no query has a proponent, or k is not
            in 1..n_train.
    """
    tau = helpfulness(scores)
    truth = _checked_proponents(proponents, tau.shape)
    if not 1 <= k <= tau.shape[1]:
        raise ShapeError(f"k is {k}; look at between 1 and {tau.shape[1]} rows")
    judged = np.flatnonzero(truth.any(axis=1))
    if len(judged) == 0:
        raise ShapeError("no query has a proponent among the training rows; check what links them")
    rank = np.array([expected_reciprocal_rank(tau[q], truth[q]) for q in judged])
    recall = np.array([expected_recall(tau[q], truth[q], k) for q in judged])
    return Retrieval(
        k=k,
        queries=judged,
        reciprocal_rank=rank,
        recall=recall,
        mrr=_bootstrap(rank, confidence, seed),
        recall_at_k=_bootstrap(recall, confidence, seed),
        confidence=confidence,
    )


def helpfulness(scores: npt.ArrayLike) -> FloatArray:
    """Scores [n_query, n_train] turned so that the most helpful rows have the highest.

    Raises:
        ShapeError: They are no matrix, or one is NaN or infinite.
    """
    tau = np.asarray(scores, dtype=np.float64)
    if tau.ndim != 2:
        raise ShapeError(f"scores have shape {tau.shape}; give [n_query, n_train]")
    check_finite(tau)
    return -tau if recorded_output(scores) in FALLING else tau


def top_rows_of(scores: npt.ArrayLike, k: int, *, seed: int = 0) -> npt.NDArray[np.intp]:
    """The k most helpful rows of each query, [n_query, k]; ties are broken at random.

    By row number a method without an opinion, such as BM25 on a query whose words occur nowhere,
    would always name the file's first rows.

    Raises:
        ShapeError: As `retrieval`.
    """
    tau = helpfulness(scores)
    if not 1 <= k <= tau.shape[1]:
        raise ShapeError(f"k is {k}; take between 1 and {tau.shape[1]} rows")
    found = np.empty((len(tau), k), dtype=np.intp)
    for query, row in enumerate(tau):
        coin = stream(seed, Purpose.REMOVAL, query).random(len(row))
        found[query] = np.lexsort((coin, -row))[:k]
    return found


def expected_reciprocal_rank(scores: FloatArray, proponent: BoolArray) -> float:
    """Expectation of 1 / rank of the first proponent when ties are in random order.

    Let a rows lie above the best proponents' score, and g rows have it, p of them proponents. The
    first proponent is at place j of the g with probability p / (g - j + 1) times that of having met
    none before.
    """
    best = scores[proponent].max()
    above = int((scores > best).sum())
    tied = scores == best
    size, hits = int(tied.sum()), int((tied & proponent).sum())
    place = np.arange(1, size - hits + 2)
    meets = hits / (size - place + 1)
    missed = np.concatenate([[1.0], np.cumprod(1 - meets)[:-1]])
    return float((meets * missed / (above + place)).sum())


def expected_recall(scores: FloatArray, proponent: BoolArray, k: int) -> float:
    """Expected share of the proponents among the k rows of highest score, ties in random order."""
    last = np.partition(scores, len(scores) - k)[len(scores) - k]
    above, tied = scores > last, scores == last
    room = (k - int(above.sum())) / int(tied.sum())
    found = int((above & proponent).sum()) + room * int((tied & proponent).sum())
    return float(found / proponent.sum())


def _bootstrap(values: FloatArray, confidence: float, seed: int) -> Triple:
    """Mean over queries and its percentile interval; NaN bounds for a single query."""
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    counts = resample_counts(stream(seed, Purpose.BOOTSTRAP), len(values), RESAMPLES)
    level = (1 - confidence) / 2
    low, high = np.quantile(counts @ values / len(values), [level, 1 - level])
    return mean, float(low), float(high)


def _checked_proponents(
    proponents: npt.ArrayLike | Sequence[Sequence[int]], shape: tuple[int, ...]
) -> BoolArray:
    if isinstance(proponents, np.ndarray) and proponents.dtype == bool:
        if proponents.shape != shape:
            raise ShapeError(f"proponents have shape {proponents.shape} for scores {shape}")
        return proponents
    lists: list[Any] = list(proponents)  # type: ignore[arg-type]
    if len(lists) != shape[0]:
        raise ShapeError(
            f"there are {len(lists)} lists of proponents for {shape[0]} queries; give one each"
        )
    truth = np.zeros(shape, dtype=bool)
    for query, rows in enumerate(lists):
        numbers = np.asarray(rows, dtype=np.intp)
        if numbers.size and (numbers.min() < 0 or numbers.max() >= shape[1]):
            raise ShapeError(f"proponents of query {query} are no rows 0..{shape[1] - 1}")
        truth[query, numbers] = True
    return truth
