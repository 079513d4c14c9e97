"""Checks that any attribution should pass before its numbers are believed.

Each is a function of scores that were made in a known situation: a training set mixed from two
sources, rows planted twice or more, a model whose weights were drawn at random. Each returns a
small result with a plain sentence. Failing one is no proof of a bug, passing all no proof of truth;
what retraining says comes first (`attribution.evaluate`).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from attribution.evaluate import Bank, lds, lds_gain
from attribution.statistics import mean_interval
from schemas.errors import ShapeError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SanityCheck:
    """What a check found.

    Attributes:
        name: Of the check.
        passed: Whether the finding is what it should be.
        value: The finding: a share, a relative difference, a difference of LDS.
        expected: What it is held against.
        sentence: The finding in words.
    """

    name: str
    passed: bool
    value: float
    expected: float
    sentence: str


def mixed_sources(
    scores: npt.ArrayLike,
    train_sources: npt.ArrayLike,
    query_sources: npt.ArrayLike,
    *,
    top: int = 10,
) -> SanityCheck:
    """Whether the strongest influences come from the query's own source.

    For a training set that is mixed from data sets with nothing in common; strength is the size of
    a score, whatever its sign.

    Args:
        scores: Float [n_query, n_train].
        train_sources: [n_train], the source of each row, as integers or words.
        query_sources: [n_query].
        top: How many of each query's strongest rows are looked at.

    Returns:
        Passed if the 95 % interval of the share, over queries, lies above what rows drawn at
        random would give.

    Raises:
        ShapeError: The arrays do not fit, or there is a single source.
    """
    tau, of_rows, of_queries = (np.asarray(part) for part in (scores, train_sources, query_sources))
    if tau.shape != (len(of_queries), len(of_rows)):
        raise ShapeError(
            f"scores have shape {tau.shape} for {len(of_queries)} query sources and "
            f"{len(of_rows)} row sources; give one source for each"
        )
    if len(np.unique(of_rows)) < 2 or not 0 < top <= len(of_rows):
        raise ShapeError(
            f"{len(np.unique(of_rows))} sources and top {top}; mix two sources or more, and look "
            f"at 1 to {len(of_rows)} rows"
        )
    strongest = np.argsort(-np.abs(tau), axis=1, kind="stable")[:, :top]
    own = (of_rows[strongest] == of_queries[:, None]).mean(axis=1)
    chance = float((of_rows[None, :] == of_queries[:, None]).mean())
    share, low, _ = mean_interval(own)
    low = low if np.isfinite(low) else share
    return SanityCheck(
        name="mixed sources",
        passed=bool(low > chance),
        value=share,
        expected=chance,
        sentence=(
            f"{share:.0%} of the {top} strongest influences come from the query's own source; "
            f"drawn at random it would be {chance:.0%}."
        ),
    )


def cluster_scores(scores: npt.ArrayLike, clusters: npt.ArrayLike) -> FloatArray:
    """Scores of groups of rows, float64 [n_query, n_clusters]: the sum over each one's rows.

    Duplicates split their credit: each alone seems to matter little, removing all of them does.
    A linear datamodel predicts the effect of a group as the sum of its rows' scores.

    Args:
        scores: Float [n_query, n_train].
        clusters: Int [n_train], 0..n_clusters-1; rows of one number belong together.

    Raises:
        ShapeError: There is not one non-negative cluster for each row.
    """
    tau, of_rows = np.asarray(scores, dtype=np.float64), np.asarray(clusters)
    fits = tau.ndim == 2 and of_rows.shape == tau.shape[1:]
    if not fits or not np.issubdtype(of_rows.dtype, np.integer):
        raise ShapeError(
            f"clusters are {of_rows.dtype} of shape {of_rows.shape} for scores of shape "
            f"{tau.shape}; give one integer for each training row"
        )
    if of_rows.min() < 0:
        raise ShapeError(f"cluster {of_rows.min()} is negative; number clusters from 0")
    sums = np.zeros((int(of_rows.max()) + 1, len(tau)))
    np.add.at(sums, of_rows, tau.T)
    return sums.T


def planted_duplicates(
    scores: npt.ArrayLike, clusters: npt.ArrayLike, *, tolerance: float = 0.01
) -> SanityCheck:
    """Whether exact copies of a row get the same score.

    No model can tell copies apart, so neither may their scores; what differs is rounding, or a
    method that looks at a row's place. Read the copies' joint effect from `cluster_scores`.

    Args:
        scores: Float [n_query, n_train].
        clusters: Int [n_train]; rows of one number are exact copies, label and all.
        tolerance: Difference allowed between copies, as a share of the scores' spread.

    Raises:
        ShapeError: Clusters do not fit, or no row has a copy.
    """
    tau, of_rows = np.asarray(scores, dtype=np.float64), np.asarray(clusters)
    sums = cluster_scores(tau, of_rows)
    count = np.bincount(of_rows)
    copied = np.flatnonzero(count[of_rows] > 1)
    if len(copied) == 0:
        raise ShapeError("no two rows share a cluster; plant a copy to see whether credit is split")
    apart = tau[:, copied] - (sums / np.maximum(count, 1))[:, of_rows[copied]]
    spread = float(tau.std()) or 1.0
    difference = float(np.abs(apart).max()) / spread
    share = float(1 / count[of_rows[copied]].mean())
    alike = difference <= tolerance
    said = "share their credit equally" if alike else "are told apart"
    return SanityCheck(
        name="planted duplicates",
        passed=alike,
        value=difference,
        expected=tolerance,
        sentence=(
            f"Copies {said}: their scores differ by at most {difference:.2g} of the scores' spread,"
            f" and one copy holds {share:.0%} of what its cluster does."
        ),
    )


def randomised_weights(
    scores: npt.ArrayLike, random_scores: npt.ArrayLike, bank: Bank, *, seed: int = 0
) -> SanityCheck:
    """Whether scores need the trained weights (after Adebayo et al. 2018).

    Scores of the same method, made from weights that were drawn at random and never trained, must
    predict retrained models less well. What they keep is owed to the data and the architecture.

    Args:
        scores: Float [n_query, n_train], from trained weights.
        random_scores: The same from random weights.
        bank: Retrained models that tuned neither.
        seed: Key of the bootstrap.

    Raises:
        ShapeError: Scores do not fit the bank.
    """
    trained, random = (lds(tau, bank, resamples=0).mean for tau in (scores, random_scores))
    lost, low, high = lds_gain(scores, random_scores, bank, seed=seed)
    passed = low > 0
    said = "lose" if passed else "do not clearly lose"
    return SanityCheck(
        name="randomised weights",
        passed=passed,
        value=lost,
        expected=0.0,
        sentence=(
            f"With random weights the scores {said} LDS: {random:.2f} instead of {trained:.2f}, "
            f"lower by {lost:.2f} [{low:.2f}, {high:.2f}]."
        ),
    )
