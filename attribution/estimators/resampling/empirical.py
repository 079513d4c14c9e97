"""Empirical influence (Feldman & Zhang 2020): outputs with a row less outputs without it.

    tau[q, i] = mean of f_q over the masks with i - mean over those without
    se[q, i]  = sqrt(v1 / n1 + v0 / n0)

with the variances v1, v0 of the outputs over the n1 masks with i and the n0 without. For a linear
f and masks of one size tau[q, i] is (tau_i - mean tau) n / (n - 1): one size tells rows apart, and
nothing of their level.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from attribution.estimators.request import Clock, Record, Request, fitted_rows, open_sink
from attribution.estimators.resampling.design import BLOCK_ENTRIES, checked_rows
from attribution.evaluate import alpha_rows, mask_groups
from attribution.statistics import group_means
from schemas.errors import ShapeError


def estimate(request: Request) -> tuple[NDArray[np.float32], Record]:
    """Empirical influence on a request's bank; its standard errors are `empirical_influence`'s.

    Args:
        request: What is asked; of it only the bank is read.
    """
    clock = Clock()
    masks, outputs = fitted_rows(request)
    alpha = getattr(request.bank, "alpha", None)
    scores, errors = empirical_influence(masks, outputs, alpha=alpha, device=request.device)
    values, write = open_sink(request.out, *scores.shape)
    write(slice(0, len(scores)), scores.astype(np.float32))
    clock.stop("score")
    n_masks = len(mask_groups(masks)[1])
    return values, {
        "chosen_from": "nothing was tuned",
        "fitted_to": f"{n_masks} masks ({len(masks)} models)",
        "n_masks": n_masks,
        "standard_error": float(np.median(errors)),
        "seconds": clock.seconds,
    }


def empirical_influence(
    masks: NDArray[np.bool_],
    outputs: NDArray[np.floating],
    *,
    alpha: ArrayLike | None = None,
    device: str = "cpu",
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Differences of two means and their standard errors, one product of matrices a share.

    Models that share a mask are averaged first: seeds are no new draws of the subset. Subsets of
    different shares are compared within their share, and the differences averaged with weights
    n1 n0 / (n1 + n0): the least-squares coefficient of row i with a mean for each share.

    Args:
        masks: bool [M, n].
        outputs: [M, m], in the output's unit.
        alpha: Share of the rows that each mask was drawn with, [M]; by default the masks' sizes,
            or one share for all where sizes are random.
        device: "cpu" or "cuda".

    Returns:
        Scores and standard errors, float64 [m, n]. A row that is in every mask of each share or
        in none has score 0; its error is infinite, as is that of a row with a single mask on one
        side.

    Raises:
        ShapeError: Shapes do not fit, or an output is not finite.
    """
    chosen, values = checked_rows(masks, outputs)
    shares = None if alpha is None else np.asarray(alpha, dtype=np.float64)
    if shares is not None and shares.shape != (len(chosen),):
        raise ShapeError(
            f"alpha has shape {shares.shape}; give one share for each of the {len(chosen)} rows"
        )
    rows = _Rows(masks=chosen, outputs=values, alpha=shares)
    size = values.shape[1], chosen.shape[1]
    total, weight, variance = np.zeros(size), np.zeros(size[1]), np.zeros(size)
    for _, inside in alpha_rows(rows):
        group, first = mask_groups(chosen[inside])
        own = chosen[inside][first]
        count = own.sum(axis=0)
        counted = count * (len(own) - count) / len(own)
        difference, squared_error = _two_means(own, group_means(values[inside], group), device)
        total += counted * difference
        variance += counted**2 * np.where(counted > 0, squared_error, 0.0)
        weight += counted
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(weight > 0, total / weight, 0.0)
        return scores, np.where(weight > 0, np.sqrt(variance) / weight, np.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """What `alpha_rows` reads."""

    masks: NDArray[np.bool_]
    outputs: NDArray[np.float64]
    alpha: NDArray[np.float64] | None


def _two_means(
    masks: NDArray[np.bool_], outputs: NDArray[np.float64], device: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean with less mean without, and the squared error of that, [m, n] each."""
    # Centred, so that sums of squares lose no digits to the mean.
    values = torch.from_numpy(outputs - outputs.mean(axis=0)).to(device)
    both = torch.cat([values, values.square()], dim=1)
    chosen = torch.from_numpy(masks)
    sums = torch.zeros(masks.shape[1], both.shape[1], dtype=torch.float64, device=device)
    step = max(1, BLOCK_ENTRIES // masks.shape[1])
    for rows, right in zip(chosen.split(step), both.split(step), strict=True):
        sums += rows.to(device).double().T @ right
    inside, squares = sums.chunk(2, dim=1)
    n1 = torch.from_numpy(masks.sum(axis=0)).to(device).double()[:, None]
    n0 = len(masks) - n1
    difference = torch.where(n1 * n0 > 0, inside * (1 / n1 + 1 / n0), 0.0)
    outside = values.square().sum(0) - squares
    squared_error = _of_mean(squares, inside, n1) + _of_mean(outside, -inside, n0)
    return difference.T.cpu().numpy(), squared_error.T.cpu().numpy()


def _of_mean(squares: Tensor, sums: Tensor, count: Tensor) -> Tensor:
    """The variance over the count; infinite for a single value, which has no variance."""
    variance = (squares - sums.square() / count).clamp(min=0.0) / (count - 1)
    return torch.where(count > 1, variance / count, torch.inf)
