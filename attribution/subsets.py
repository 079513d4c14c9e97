"""The subsets of a bank: how they are drawn, which rows share one, sums of scores over them.

Masks are bool [M, n_train], one row for each retrained model.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from attribution.streams import Purpose, stream
from schemas.errors import ShapeError

BoolArray = npt.NDArray[np.bool_]

# Fewer subsets than this make a rank correlation that can only be -1, 0 or 1.
FEWEST_MASKS = 3


class Subsets(Protocol):
    """What this module reads of a bank."""

    @property
    def masks(self) -> BoolArray:
        """Bool [M, n_train], the training subset of each retrained model."""

    @property
    def alpha(self) -> npt.NDArray[np.floating] | None:
        """Float [M], the nominal share of the rows in each subset, where it is known."""


def draw_masks(
    n_train: int, models: int, alpha: Sequence[float], seeds_per_mask: int, seed: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Random subsets of fixed size round(alpha * n), each repeated under several training seeds.

    Row j belongs to mask j // seeds_per_mask, and masks take the alphas in turn. A row depends on
    its own number only, so a larger bank begins with the rows of a smaller one.

    Args:
        n_train: Rows to draw from.
        models: Rows of the bank, a multiple of ``seeds_per_mask``.
        alpha: Shares of the training rows.
        seeds_per_mask: Retrainings of each subset.
        seed: Of the bank.

    Returns:
        masks bool [models, n_train], training seeds int64 [models], alpha float64 [models].

    Raises:
        ShapeError: Numbers do not divide, or a share leaves no row or is above 1.
    """
    if seeds_per_mask < 1 or models < 1 or models % seeds_per_mask:
        raise ShapeError(
            f"{models} models cannot be {seeds_per_mask} retrainings of each subset; "
            "make models a multiple"
        )
    sizes = [round(share * n_train) for share in alpha]
    for share, size in zip(alpha, sizes, strict=True):
        if not 0 < size <= n_train:
            raise ShapeError(
                f"alpha = {share:g} of {n_train} rows is {size} rows; it must keep at least one"
            )
    if not sizes:
        raise ShapeError("alpha is empty; give at least one share, such as 0.5")
    masks = np.zeros((models, n_train), dtype=bool)
    seeds = np.empty(models, dtype=np.int64)
    shares = np.empty(models, dtype=np.float64)
    for row in range(models):
        subset, repeat = divmod(row, seeds_per_mask)
        place = subset % len(sizes)
        if repeat:
            masks[row] = masks[row - 1]
        else:
            chosen = stream(seed, Purpose.MASKS, subset).permutation(n_train)[: sizes[place]]
            masks[row, chosen] = True
        seeds[row] = stream(seed, Purpose.SEEDS, subset, repeat).integers(2**62)
        shares[row] = alpha[place]
    return masks, seeds, shares


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


def alpha_rows(bank: Subsets) -> Iterator[tuple[float, npt.NDArray[np.intp]]]:
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
