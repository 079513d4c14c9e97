"""How sure an LDS will be before a bank is paid for, and the cheapest bank for a wished interval.

Over M subsets and Q queries that share them, the mean of the queries' rank correlations has

    variance = v (c + (1 - c)/Q) + s^2/Q,      v = (1 - r^2)^2 (1 + r^2/2) / (M - 3),

v being that of one query's Spearman correlation r (Bonett and Wright 2000), c the correlation
between the errors of two queries, and s the spread of the queries' own LDS. More queries cannot
remove v c: the subsets are the same. This is what the bootstrap of `attribution.bootstrap`
estimates from a bank; here it is written down from a few numbers, which `lds_pilot` measures.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from attribution.evaluate import Bank, checked_scores
from attribution.statistics import anova_reliability, group_means, ratio, spearman_columns
from attribution.subsets import FEWEST_MASKS, alpha_rows, mask_groups, subset_sums
from schemas.errors import InfeasibleProblem, ShapeError

FloatArray = npt.NDArray[np.float64]

MOST_MASKS = 100_000

# Supposed where no pilot says better: a little worse than a perceptron on digits, with 0.76, 0.63,
# 0.003 and 0.08 (TRAK, five checkpoints, 40 half-subsets, 100 queries).
LDS, RELIABILITY, QUERY_CORRELATION, QUERY_SD = 0.7, 0.5, 0.02, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LdsPilot:
    """What a small bank says about a larger one; the keyword arguments of `lds_power`.

    Attributes:
        lds: What the scores would reach against outputs without seed noise.
        reliability: Share of the variance of one model's output that its subset explains.
        query_correlation: Correlation between the errors of two queries' LDS.
        query_sd: Spread of the queries' own LDS.
    """

    lds: float
    reliability: float
    query_correlation: float
    query_sd: float


def lds_power(
    n_masks: int,
    n_seeds: int,
    n_query: int,
    *,
    lds: float = LDS,
    reliability: float = RELIABILITY,
    query_correlation: float = QUERY_CORRELATION,
    query_sd: float = QUERY_SD,
    confidence: float = 0.95,
) -> float:
    """Half-width of the interval that an LDS will have; 0.04 reads as plus or minus 0.04.

    The defaults are cautious ones of small networks; numbers of a pilot are better (`lds_pilot`).

    Args:
        n_masks: Distinct subsets, four or more; of all shares together, where there are several.
        n_seeds: Models trained on each.
        n_query: Queries.
        lds: What the scores would reach against outputs without seed noise, as
            `LdsResult.relative` says; what is measured is this times the ceiling of `n_seeds`.
        reliability: Of one model: the share of its output's variance that the subset explains.
        query_correlation: Correlation between the errors of two queries. For scores and outputs
            that correlate by k between two queries it is k^2, whatever the LDS.
        query_sd: Spread of the queries' own LDS; 0 for these queries and no others.
        confidence: Level of the interval.

    Raises:
        ShapeError: A number is out of range.
    """
    _check(n_masks, n_seeds, n_query, lds, reliability, query_correlation, query_sd)
    measured = expected_lds(lds, reliability, n_seeds)
    of_one = (1 - measured**2) ** 2 * (1 + measured**2 / 2) / (n_masks - 3)
    of_masks = of_one * (query_correlation + (1 - query_correlation) / n_query)
    of_queries = query_sd**2 / n_query
    level = (1 + confidence) / 2
    dof = _degrees(of_masks, of_queries, n_masks, n_query)
    return float(stats.t.ppf(level, dof) * math.sqrt(of_masks + of_queries))


def cheapest_bank(
    half_width: float,
    n_query: int,
    *,
    seeds: Sequence[int] = (2, 3, 4, 5),
    lds: float = LDS,
    reliability: float = RELIABILITY,
    query_correlation: float = QUERY_CORRELATION,
    query_sd: float = QUERY_SD,
    confidence: float = 0.95,
) -> tuple[int, int]:
    """The (masks, seeds) of fewest models whose LDS has an interval this narrow.

    One seed a subset would mostly be cheaper, but leaves the noise ceiling unknown, without which
    an LDS cannot be read; so two are the least unless `seeds` says otherwise.

    Args:
        half_width: Wished, in units of LDS.
        n_query: Queries.
        seeds: Numbers of seeds to choose from.
        lds: As in `lds_power`, like all that follow.
        reliability: Likewise.
        query_correlation: Likewise.
        query_sd: Likewise.
        confidence: Likewise.

    Raises:
        InfeasibleProblem: No number of subsets suffices: the queries are too few or too diverse.
        ShapeError: A number is out of range.
    """

    def reached(masks: int, repeats: int) -> float:
        return lds_power(
            masks,
            repeats,
            n_query,
            lds=lds,
            reliability=reliability,
            query_correlation=query_correlation,
            query_sd=query_sd,
            confidence=confidence,
        )

    found = []
    for repeats in seeds:
        if reached(MOST_MASKS, repeats) > half_width:
            continue
        low, high = 3, MOST_MASKS  # low masks are too few, high suffice
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reached(middle, repeats) <= half_width else (middle, high)
        found.append((high * repeats, repeats, high))
    if not found:
        raise InfeasibleProblem(
            f"no bank gives ±{half_width:g} with {n_query} queries: their own LDS differ by "
            f"{query_sd:.2g}; ask for less, or for more queries"
        )
    _, repeats, masks = min(found)
    return masks, repeats


def expected_lds(lds: float, reliability: float, n_seeds: int) -> float:
    """The LDS measured on means of this many seeds, of scores with this LDS without seed noise.

    Gaussian outputs: a correlation r has Spearman's (6/pi) asin(r/2), and noise multiplies r by
    the root of the reliability of the mean. With `lds` = 1 it is the noise ceiling.
    """
    of_mean = n_seeds * reliability / (1 + (n_seeds - 1) * reliability)
    pearson = 2 * math.sin(math.pi * lds / 6) * math.sqrt(of_mean)
    return 6 / math.pi * math.asin(pearson / 2)


def lds_pilot(bank: Bank, scores: npt.ArrayLike | None = None) -> LdsPilot:
    """Measure on a small bank what `lds_power` asks for.

    Args:
        bank: Retrained models, several subsets of each share, some trained twice. All shares
            count alike.
        scores: Float [n_query, n_train]. With them the errors' correlation is measured by leaving
            out one subset at a time; without them it is that of perfect scores, and how good the
            scores are is supposed (`LDS`, `QUERY_SD`).

    Raises:
        ShapeError: The arrays do not fit, a share has too few subsets, or no subset was trained
            twice.
    """
    tau = None if scores is None else checked_scores(scores, bank)
    parts = [_of_share(bank, rows, tau) for _, rows in alpha_rows(bank)]
    names = ("lds", "reliability", "query_correlation", "query_sd")
    return LdsPilot(
        **{name: float(np.mean([getattr(part, name) for part in parts])) for name in names}
    )


def _of_share(
    bank: Bank, rows: npt.NDArray[np.intp], tau: npt.NDArray[np.floating] | None
) -> LdsPilot:
    masks, outputs = bank.masks[rows], np.asarray(bank.outputs)[rows].astype(np.float64)
    group, first = mask_groups(masks)
    of_mean = anova_reliability(outputs, group)
    if of_mean is None or len(first) <= FEWEST_MASKS:
        raise ShapeError(
            f"a pilot of {len(first)} subsets and {len(group)} models says nothing of seed noise; "
            f"train more than {FEWEST_MASKS} subsets, some of them twice"
        )
    seeds = len(group) / len(first)
    reliability = float(np.mean(of_mean / (seeds - (seeds - 1) * of_mean)))
    observed = group_means(outputs, group)
    if tau is None:
        centred = observed - observed.mean(axis=0)
        unit = ratio(centred, np.broadcast_to(np.linalg.norm(centred, axis=0), centred.shape))
        chance = 1 / (len(first) - 1)
        shared = (_mean_of_pairs((unit.T @ unit) ** 2) - chance) / (1 - chance)
        return LdsPilot(
            lds=LDS,
            reliability=reliability,
            query_correlation=max(0.0, shared),
            query_sd=QUERY_SD,
        )
    predicted = subset_sums(masks[first], tau)
    per_query = spearman_columns(predicted, observed)
    errors = _jackknife(predicted, observed)
    spread = errors.var(axis=0, ddof=1) / len(errors)
    correlation = 0.0
    if len(per_query) > 1 and spread.any():
        together = errors.mean(axis=1).var(ddof=1) / len(errors)
        n_query = len(per_query)
        correlation = float((n_query * together - spread.mean()) / ((n_query - 1) * spread.mean()))
    correlation = float(np.clip(correlation, 0, 1))
    own = per_query.var(ddof=1) - (1 - correlation) * spread.mean() if len(per_query) > 1 else 0.0
    measured, ceiling = float(per_query.mean()), math.sqrt(float(of_mean.mean()))
    pearson = 2 * math.sin(math.pi * measured / 6) / ceiling if ceiling > 0 else 0.0
    return LdsPilot(
        lds=6 / math.pi * math.asin(float(np.clip(pearson, -1, 1)) / 2),
        reliability=reliability,
        query_correlation=correlation,
        query_sd=math.sqrt(max(0.0, float(own))),
    )


def _jackknife(predicted: FloatArray, observed: FloatArray) -> FloatArray:
    """Pseudo-values of each query's rank correlation, [n_masks, n_query]."""
    count = len(predicted)
    whole = spearman_columns(predicted, observed)
    kept = ~np.eye(count, dtype=bool)
    return np.stack(
        [
            count * whole - (count - 1) * spearman_columns(predicted[rows], observed[rows])
            for rows in kept
        ]
    )


def _mean_of_pairs(matrix: FloatArray) -> float:
    """The mean of what is off the diagonal; 1 for a single query."""
    count = len(matrix)
    if count == 1:
        return 1.0
    return float((matrix.sum() - np.trace(matrix)) / (count * (count - 1)))


def _degrees(of_masks: float, of_queries: float, n_masks: int, n_query: int) -> float:
    """Degrees of freedom of the sum of two variances (Satterthwaite 1946)."""
    if of_masks + of_queries == 0:
        return math.inf
    shares = np.array([of_masks, of_queries]) / (of_masks + of_queries)
    return float(1 / (shares**2 / np.array([n_masks - 1, max(n_query - 1, 1)])).sum())


def _check(
    n_masks: int,
    n_seeds: int,
    n_query: int,
    lds: float,
    reliability: float,
    query_correlation: float,
    query_sd: float,
) -> None:
    if n_masks < 4 or n_seeds < 1 or n_query < 1:
        raise ShapeError(
            f"{n_masks} masks, {n_seeds} seeds and {n_query} queries give no interval; it takes "
            "four masks, one seed and one query"
        )
    shares = {"reliability": reliability, "query_correlation": query_correlation}
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ShapeError(f"{name} is {value}; it must lie between 0 and 1")
    if not -1 <= lds <= 1 or query_sd < 0:
        raise ShapeError(
            f"lds is {lds} and query_sd {query_sd}; give a correlation and a spread of 0 or more"
        )
