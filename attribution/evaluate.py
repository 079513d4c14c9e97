"""How good scores are, measured on models that were really retrained.

Scores are tau [n_query, n_train]; a bank holds masks [M, n_train] and outputs [M, n_query]. The
linear datamodeling score (LDS) compares, query by query, sums of scores over held-out subsets with
the outputs of models trained on those subsets. Nothing here trains a model. The statistics that
verdicts use (AUROC, average precision, t-intervals, the calibration line) are those of
`attribution.statistics`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from attribution.statistics import (
    anova_reliability,
    auroc,
    average_precision,
    calibration_line,
    coverage,
    group_means,
    mean_interval,
    ratio,
    spearman_columns,
    welch_interval,
)
from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

__all__ = [
    "LdsResult",
    "alpha_rows",
    "auroc",
    "average_precision",
    "calibration_line",
    "checked_scores",
    "coverage",
    "lds",
    "mask_groups",
    "mean_interval",
    "subset_sums",
    "welch_interval",
]

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]

# Fewer subsets than this make a rank correlation that can only be -1, 0 or 1.
FEWEST_MASKS = 3
_BLOCK = 2_000_000  # float32 numbers in each array of the bootstrap: 8 MB


class Bank(Protocol):
    """What this module reads of a bank of retrained models."""

    @property
    def masks(self) -> BoolArray:
        """Bool [M, n_train], the training subset of each retrained model."""

    @property
    def outputs(self) -> FloatArray:
        """Float [M, n_query], the output of each retrained model on each query."""

    @property
    def alpha(self) -> FloatArray | None:
        """Float [M], the nominal share of the rows in each subset, where it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LdsResult:
    """The linear datamodeling score of one set of scores on one bank.

    Attributes:
        mean: Mean over queries of one Spearman correlation per query, in [-1, 1].
        interval: Bootstrap interval of `mean`; masks and queries are both resampled.
        per_query: Float64 [n_query]; 0 where the scores or the outputs of a query do not vary.
        ceiling: What a perfect method would score against outputs this noisy, or None.
        relative: mean / ceiling, or None.
        ceiling_note: Why there is no ceiling; empty where there is one.
        null_sd: Standard deviation of one query's correlation if the scores meant nothing. The
            mean over queries is not 1/sqrt(n_query) of it: all queries share the masks.
        n_masks: Distinct subsets.
        n_seeds: Models trained per subset, on average, rounded.
        confidence: The level of `interval`.
        by_alpha: The result within each subset share; empty inside such a result.
    """

    mean: float
    interval: tuple[float, float]
    per_query: npt.NDArray[np.float64] = field(repr=False)
    ceiling: float | None
    relative: float | None
    ceiling_note: str
    null_sd: float
    n_masks: int
    n_seeds: int
    confidence: float
    by_alpha: Mapping[float, "LdsResult"] = field(default_factory=dict, repr=False)


def lds(
    scores: npt.ArrayLike,
    bank: Bank,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> LdsResult:
    """The linear datamodeling score (Park et al. 2023), with its interval and noise ceiling.

    For each query, Spearman's correlation over the distinct subsets S of the bank between
    sum_{i in S} tau[q, i] and the output f_q(S), the models that share a subset averaged first;
    then the mean over queries. A bank with several subset shares is scored within each share and
    the shares averaged, since across shares the correlation mostly measures the subset's size.

    The ceiling is (6/pi) asin(sqrt(rho_R)/2), where rho_R = 1 - MSW/MSB is the reliability of a
    mean of R models by one-way ANOVA, clipped at 0: the Spearman correlation, for many subsets of
    Gaussian outputs, of the noiseless output with the observed one. It needs R >= 2.

    Args:
        scores: Float [n_query, n_train], positive where training on the row raises the output.
        bank: Retrained models that were used neither to tune nor to fit the scores.
        confidence: Level of the interval.
        resamples: Bootstrap resamples; 0 gives a NaN interval.
        seed: Key of the bootstrap's random stream.

    Raises:
        ShapeError: The arrays do not fit, hold NaN, or a share has fewer than three subsets.
    """
    tau = checked_scores(scores, bank)
    if not 0 < confidence < 1:
        raise ShapeError(f"confidence is {confidence}; give a number between 0 and 1, as 0.95")
    families = [_Family.of(alpha, rows, tau, bank) for alpha, rows in alpha_rows(bank)]
    query_counts = _resample_counts(stream(seed, Purpose.BOOTSTRAP, 0), len(tau), resamples)
    # One stream for the queries and one for each share's masks, so that a share's masks are
    # drawn alike whether it is scored alone or with others.
    draws = [
        family.bootstrap(
            query_counts, stream(seed, Purpose.BOOTSTRAP, 1, round(family.alpha * 1_000_000))
        )
        for family in families
    ]
    by_alpha = {
        family.alpha: family.result(draw, confidence)
        for family, draw in zip(families, draws, strict=True)
    }
    return _over_shares(by_alpha, np.mean(draws, axis=0), confidence)


def _over_shares(
    by_alpha: dict[float, LdsResult], draws: npt.NDArray[np.float64], confidence: float
) -> LdsResult:
    parts = list(by_alpha.values())
    per_query = np.mean([part.per_query for part in parts], axis=0)
    mean = float(per_query.mean())
    ceilings = [part.ceiling for part in parts if part.ceiling is not None]
    ceiling = float(np.mean(ceilings)) if len(ceilings) == len(parts) else None
    n_masks = sum(part.n_masks for part in parts)
    return LdsResult(
        mean=mean,
        interval=_interval(draws, per_query, confidence),
        per_query=per_query,
        ceiling=ceiling,
        relative=mean / ceiling if ceiling else None,
        ceiling_note=next((part.ceiling_note for part in parts if part.ceiling_note), ""),
        null_sd=math.sqrt(sum(part.null_sd**2 for part in parts)) / len(parts),
        n_masks=n_masks,
        n_seeds=round(sum(part.n_seeds * part.n_masks for part in parts) / n_masks),
        confidence=confidence,
        by_alpha=by_alpha,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """The subsets of one share: predicted and observed are [n_masks, n_query]."""

    alpha: float
    predicted: npt.NDArray[np.float64]
    observed: npt.NDArray[np.float64]
    ceiling: float | None
    n_seeds: int

    @classmethod
    def of(cls, alpha: float, rows: npt.NDArray[np.intp], tau: FloatArray, bank: Bank) -> "_Family":
        masks, outputs = bank.masks[rows], np.asarray(bank.outputs)[rows].astype(np.float64)
        group, first = mask_groups(masks)
        if len(first) < FEWEST_MASKS:
            raise ShapeError(
                f"the bank has {len(first)} distinct subsets at alpha {alpha:g}; LDS needs at "
                f"least {FEWEST_MASKS}, and some 50 to say anything"
            )
        reliability = anova_reliability(outputs, group)
        ceiling = None
        if reliability is not None:
            ceiling = float(np.mean(6 / np.pi * np.arcsin(np.sqrt(reliability) / 2)))
        return cls(
            alpha=alpha,
            predicted=subset_sums(masks[first], tau),
            observed=group_means(outputs, group),
            ceiling=ceiling,
            n_seeds=round(len(group) / len(first)),
        )

    def bootstrap(
        self, query_counts: npt.NDArray[np.float64], rng: np.random.Generator
    ) -> npt.NDArray[np.float64]:
        """Mean LDS of every resample: of masks alone and of masks and queries, [2, resamples].

        Ranks are taken anew in every resample. A mid-rank, centred, is half the sum over the
        resampled subsets of sign(v_i - v_j), so the ranks of all resamples are one matrix product
        per query, ties included, and exact in float32 (integers below 2^24).
        """
        resamples, n_query = query_counts.shape
        n_masks = len(self.predicted)
        counts = _resample_counts(rng, n_masks, resamples).astype(np.float32)
        total = np.zeros((2, resamples))
        step = max(1, _BLOCK // (n_masks * max(resamples, n_masks)))
        for start in range(0, n_query, step):
            part = slice(start, min(start + step, n_query))
            x = _resampled_ranks(self.predicted[:, part], counts)
            y = _resampled_ranks(self.observed[:, part], counts)
            weighted = counts[:, None, :] * x
            xy = np.einsum("bqm,bqm->bq", weighted, y)
            xx = np.einsum("bqm,bqm->bq", weighted, x)
            yy = np.einsum("bqm,bqm->bq", np.multiply(counts[:, None, :], y, out=weighted), y)
            correlation = ratio(xy, np.sqrt(xx) * np.sqrt(yy))
            total[0] += correlation.sum(axis=1)
            total[1] += (correlation * query_counts[:, part]).sum(axis=1)
        return total / n_query

    def result(self, draws: npt.NDArray[np.float64], confidence: float) -> LdsResult:
        per_query = spearman_columns(self.predicted, self.observed)
        mean = float(per_query.mean())
        note = "" if self.ceiling is not None else "each subset was trained with one seed only"
        if self.ceiling == 0:
            note = "the outputs differ no more between subsets than between seeds"
        return LdsResult(
            mean=mean,
            interval=_interval(draws, per_query, confidence),
            per_query=per_query,
            ceiling=self.ceiling,
            relative=mean / self.ceiling if self.ceiling else None,
            ceiling_note=note,
            null_sd=1 / math.sqrt(len(self.predicted) - 1),
            n_masks=len(self.predicted),
            n_seeds=self.n_seeds,
            confidence=confidence,
        )


def subset_sums(
    masks: npt.ArrayLike, scores: npt.ArrayLike, *, block: int = 256
) -> npt.NDArray[np.float64]:
    """Sum of scores over each subset, float64 [n_masks, n_query].

    A query whose sums differ by no more than the rounding of the addition gets equal sums, so that
    a constant row of scores ranks nothing instead of ranking noise.
    """
    selected = np.asarray(masks, dtype=np.float64)
    tau = np.asarray(scores)
    sums = np.empty((len(selected), len(tau)))
    for start in range(0, len(tau), block):
        part = tau[start : start + block].astype(np.float64)
        sums[:, start : start + block] = selected @ part.T
        rounding = 16 * np.finfo(np.float64).eps * np.abs(part).sum(axis=1)
        flat = np.flatnonzero(np.ptp(sums[:, start : start + block], axis=0) <= rounding)
        sums[:, start + flat] = sums[:1, start + flat]
    return sums


def mask_groups(masks: BoolArray) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Which rows share a mask: group of each row [M], and the first row of each group [G].

    Groups are numbered in the order in which their first rows appear.
    """
    packed = np.packbits(np.asarray(masks, dtype=bool), axis=1)
    _, first, inverse = np.unique(packed, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return np.argsort(order)[inverse.ravel()], first[order]


def alpha_rows(bank: Bank) -> Iterator[tuple[float, npt.NDArray[np.intp]]]:
    """The rows of each subset share, shares ascending.

    Without declared shares the subset sizes stand for them, if every size has enough subsets;
    otherwise (subsets of random size) all rows are one family, at their mean share.
    """
    masks = np.asarray(bank.masks)
    if bank.alpha is not None:
        shares = np.asarray(bank.alpha, dtype=np.float64)
    else:
        shares = masks.mean(axis=1)
        distinct = shares[mask_groups(masks)[1]]
        if np.unique(distinct, return_counts=True)[1].min() < FEWEST_MASKS:
            shares = np.full(len(masks), shares.mean())
    for alpha in np.unique(shares):
        yield float(alpha), np.flatnonzero(shares == alpha)


def _resampled_ranks(
    values: npt.NDArray[np.float64], counts: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Twice the centred mid-ranks in every resample, float32 [resamples, n_query, n_masks]."""
    n_masks, n_query = values.shape
    # signs[j, q, i] = sign(v_i - v_j): one large product, since many small ones took ten times
    # as long where other processes kept the cores busy.
    signs = np.sign(values.T[None, :, :] - values[:, :, None]).astype(np.float32)
    ranks = counts @ signs.reshape(n_masks, n_query * n_masks)
    return ranks.reshape(len(counts), n_query, n_masks)


def _resample_counts(
    rng: np.random.Generator, size: int, resamples: int
) -> npt.NDArray[np.float64]:
    """How often each of `size` things is drawn in each resample, [resamples, size]."""
    return rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float64)


def _interval(
    draws: npt.NDArray[np.float64], per_query: npt.NDArray[np.float64], confidence: float
) -> tuple[float, float]:
    """Interval of the mean LDS from draws [2, resamples], as `_Family.bootstrap` returns them.

    Resampling masks and queries together counts the noise of one query on one mask three times
    (Owen 2007); resampling each alone counts it once. So the variance wanted is
    2 (masks alone + queries alone) - both, and the draws are scaled to it about the estimate.
    In 300 simulations of 40 masks and 30 queries a 95 % percentile interval covered 98 %, and its
    centre lay 0.014 low, as tied subsets rank less sharply.
    """
    if draws.size == 0:
        return math.nan, math.nan
    mean, n_query = float(per_query.mean()), len(per_query)
    masks_alone, both = draws.var(axis=1)
    queries_alone = float(per_query.var(ddof=1)) / n_query if n_query > 1 else 0.0
    wanted = max(2 * (masks_alone + queries_alone) - both, masks_alone, queries_alone)
    scale = math.sqrt(wanted / both) if both > 0 else 0.0
    tails = np.quantile(draws[1], [(1 - confidence) / 2, (1 + confidence) / 2]) - draws[1].mean()
    low, high = np.clip(mean + scale * tails, -1.0, 1.0)
    return float(low), float(high)


def checked_scores(scores: npt.ArrayLike, bank: Bank) -> FloatArray:
    """The scores as an array, once it fits the bank in shape, in values and in the output scored.

    Raises:
        ShapeError: It does not fit; a score or an output is NaN or infinite.
    """
    tau = np.asarray(scores)
    masks, outputs = np.asarray(bank.masks), np.asarray(bank.outputs)
    if tau.ndim != 2 or tau.shape != (outputs.shape[1], masks.shape[1]):
        raise ShapeError(
            f"scores have shape {tau.shape}, but the bank holds {outputs.shape[1]} queries and "
            f"{masks.shape[1]} training rows; give scores [n_query, n_train] of the same rows"
        )
    if not np.isfinite(tau).all():
        query, row = np.argwhere(~np.isfinite(tau))[0]
        raise ShapeError(
            f"the score of query {query} and training row {row} is {tau[query, row]}; "
            "scores must be finite"
        )
    if not np.isfinite(outputs).all():
        row, query = np.argwhere(~np.isfinite(outputs))[0]
        raise ShapeError(
            f"the bank's output of row {row} and query {query} is {outputs[row, query]}; leave out "
            "retrainings that diverged"
        )
    record, kept = getattr(scores, "record", None), getattr(bank, "output", None)
    scored = record.get("output") if isinstance(record, Mapping) else None
    if scored is not None and kept is not None and str(scored) != str(kept):
        raise ShapeError(
            f"the scores are of output {str(scored)!r} and the bank holds {str(kept)!r}; "
            "score and retrain for one output"
        )
    return tau
