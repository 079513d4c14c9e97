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

from attribution.bootstrap import (
    crossed_interval,
    mean_correlation_draws,
    resample_counts,
    small_sample_shift,
)
from attribution.scored import check_finite, recorded_output
from attribution.statistics import (
    Triple,
    anova_reliability,
    auroc,
    average_precision,
    calibration_line,
    coverage,
    group_means,
    mean_interval,
    spearman_columns,
    welch_interval,
)
from attribution.streams import Purpose, stream
from attribution.subsets import FEWEST_MASKS, Subsets, alpha_rows, mask_groups, subset_sums
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
    "lds_gain",
    "mask_groups",
    "mean_interval",
    "subset_sums",
    "welch_interval",
]

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]


class Bank(Subsets, Protocol):
    """What this module reads of a bank of retrained models."""

    @property
    def outputs(self) -> FloatArray:
        """Float [M, n_query], the output of each retrained model on each query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LdsResult:
    """The linear datamodeling score of one set of scores on one bank.

    Attributes:
        mean: Mean over queries of one Spearman correlation per query, in [-1, 1].
        interval: Bootstrap interval of the mean over all queries and subsets like these; masks
            and queries are both resampled. Its centre lies a little above `mean`, since a rank
            correlation over few subsets is too small on average.
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
    _check_confidence(confidence)
    measured = list(_measured(tau, bank, resamples, seed))
    by_alpha = {family.alpha: family.result(draws, confidence) for family, draws in measured}
    return _over_shares(by_alpha, [draws for _, draws in measured], confidence)


def lds_gain(
    scores: npt.ArrayLike,
    other: npt.ArrayLike,
    bank: Bank,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Triple:
    """LDS of some scores minus that of others on the same bank: (difference, low, high).

    Both are resampled alike, so what makes subsets and queries easy or hard for both cancels; two
    separate intervals may well overlap where this one excludes 0.

    Args:
        scores: Float [n_query, n_train].
        other: Float [n_query, n_train], of the same rows and output.
        bank: Retrained models that were used neither to tune nor to fit either of them.
        confidence: Level of the interval.
        resamples: Bootstrap resamples.
        seed: Key of the bootstrap's random stream.

    Raises:
        ShapeError: As `lds`.
    """
    _check_confidence(confidence)
    ours, theirs = (
        list(_measured(checked_scores(tau, bank), bank, resamples, seed)) for tau in (scores, other)
    )
    per_query = np.mean(
        [one.per_query - two.per_query for (one, _), (two, _) in zip(ours, theirs, strict=True)],
        axis=0,
    )
    draws = [one - two for (_, one), (_, two) in zip(ours, theirs, strict=True)]
    n_masks = round(np.mean([len(family.predicted) for family, _ in ours]))
    low, high = crossed_interval(
        np.mean(draws, axis=0), per_query, n_masks=n_masks, confidence=confidence, reach=2.0
    )
    return float(per_query.mean()), low, high


def _measured(
    tau: FloatArray, bank: Bank, resamples: int, seed: int
) -> Iterator[tuple["_Family", npt.NDArray[np.float64]]]:
    """Each share with its bootstrap draws [2, resamples].

    One stream is for the queries and one for each share's masks, so that a share's masks are
    drawn alike whether it is scored alone or with others.
    """
    query_counts = resample_counts(stream(seed, Purpose.BOOTSTRAP, 0), len(tau), resamples)
    for alpha, rows in alpha_rows(bank):
        family = _Family.of(alpha, rows, tau, bank)
        rng = stream(seed, Purpose.BOOTSTRAP, 1, round(alpha * 1_000_000))
        counts = resample_counts(rng, len(family.predicted), resamples)
        yield (
            family,
            mean_correlation_draws(family.predicted, family.observed, counts, query_counts),
        )


def _over_shares(
    by_alpha: dict[float, LdsResult], draws: list[npt.NDArray[np.float64]], confidence: float
) -> LdsResult:
    parts = list(by_alpha.values())
    per_query = np.mean([part.per_query for part in parts], axis=0)
    mean = float(per_query.mean())
    ceilings = [part.ceiling for part in parts if part.ceiling is not None]
    ceiling = float(np.mean(ceilings)) if len(ceilings) == len(parts) else None
    n_masks = sum(part.n_masks for part in parts)
    shifts = [small_sample_shift(part.per_query, part.n_masks) for part in parts]
    return LdsResult(
        mean=mean,
        interval=crossed_interval(
            np.mean(draws, axis=0),
            per_query,
            n_masks=round(n_masks / len(parts)),
            confidence=confidence,
            shift=float(np.mean(shifts)),
        ),
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

    @property
    def per_query(self) -> npt.NDArray[np.float64]:
        return spearman_columns(self.predicted, self.observed)

    def result(self, draws: npt.NDArray[np.float64], confidence: float) -> LdsResult:
        per_query, n_masks = self.per_query, len(self.predicted)
        mean = float(per_query.mean())
        note = "" if self.ceiling is not None else "each subset was trained with one seed only"
        if self.ceiling == 0:
            note = "the outputs differ no more between subsets than between seeds"
        return LdsResult(
            mean=mean,
            interval=crossed_interval(
                draws,
                per_query,
                n_masks=n_masks,
                confidence=confidence,
                shift=small_sample_shift(per_query, n_masks),
            ),
            per_query=per_query,
            ceiling=self.ceiling,
            relative=mean / self.ceiling if self.ceiling else None,
            ceiling_note=note,
            null_sd=1 / math.sqrt(n_masks - 1),
            n_masks=n_masks,
            n_seeds=self.n_seeds,
            confidence=confidence,
        )


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ShapeError(f"confidence is {confidence}; give a number between 0 and 1, as 0.95")


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
    check_finite(tau)
    if not np.isfinite(outputs).all():
        row, query = np.argwhere(~np.isfinite(outputs))[0]
        raise ShapeError(
            f"the bank's output of row {row} and query {query} is {outputs[row, query]}; leave out "
            "retrainings that diverged"
        )
    scored, kept = recorded_output(scores), getattr(bank, "output", None)
    if scored is not None and kept is not None and scored != str(kept):
        raise ShapeError(
            f"the scores are of output {scored!r} and the bank holds {str(kept)!r}; "
            "score and retrain for one output"
        )
    return tau
