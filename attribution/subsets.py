"""The subsets of a bank: which rows share one, of which share they are, sums of scores over them.

Masks are bool [M, n_train], one row for each retrained model.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

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
