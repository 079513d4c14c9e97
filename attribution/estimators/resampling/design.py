"""The regression that all queries share: masks as standardised columns, formed block by block.

With masks X (M, n) of zeros and ones and unpenalised columns F (M, r), which are ones and, in a
bank of several subset sizes, the size |S|, every penalised fit sees

    X~ = (X - F (F'F)^-1 F'X) / sigma,    sigma_i^2 = mean square of what F leaves of column i,

so that a penalty weighs every training row alike, and no weight takes up what size alone explains
(|S| is itself the sum of the columns of X). Weights w~ of X~ are w = w~ / sigma in mask units. A
row that is in every mask or in none has sigma = 0, and weight 0.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.evaluate import mask_groups
from schemas.errors import ShapeError

# Gram matrices up to this side are kept in float64 (512 MiB), larger ones in float32.
WIDE_SIDE = 8_192
# Entries of one block of standardised masks (128 MiB of float64).
BLOCK_ENTRIES = 2**24
# A mask's column of which F leaves a smaller share than this is explained by F, but for rounding;
# an output's, of which it leaves this share squared.
EXPLAINED = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """Masks, outputs and unpenalised columns of a fit; rows that share a mask stand side by side.

    Attributes:
        masks: uint8 [M, n].
        outputs: float64 [M, m].
        order: Which of the given rows each row is, [M].
        group: Number of each row's mask, ascending, [M].
        basis: Q, an orthonormal basis of the unpenalised columns, float64 [M, r].
        mixing: R of F = Q R, with F = (1, |S| / mean size - 1), float64 [r, r].
        mean_size: Of the masks.
        loadings: Q'X, float64 [r, n].
        sigma: float64 [n].
    """

    masks: Tensor
    outputs: Tensor
    order: NDArray[np.intp]
    group: NDArray[np.intp]
    basis: Tensor
    mixing: Tensor
    mean_size: float
    loadings: Tensor
    sigma: Tensor

    @classmethod
    def of(
        cls, masks: NDArray[np.bool_], outputs: NDArray[np.floating], *, device: str = "cpu"
    ) -> "Design":
        """The design of masks bool [M, n] and outputs [M, m].

        Raises:
            ShapeError: Shapes do not fit, an output is not finite, or there are too few masks.
        """
        masks, values = checked_rows(masks, outputs)
        group = mask_groups(masks)[0]
        order = np.argsort(group, kind="stable")
        own = torch.from_numpy(masks[order].view(np.uint8)).to(device)
        return cls._fitting(own, torch.from_numpy(values[order]).to(device), order, group[order])

    @classmethod
    def _fitting(
        cls, masks: Tensor, outputs: Tensor, order: NDArray[np.intp], group: NDArray[np.intp]
    ) -> "Design":
        sizes = masks.sum(1, dtype=torch.int64).double()
        mean_size, rank = float(sizes.mean()), 2 if bool((sizes != sizes[0]).any()) else 1
        if group[-1] < rank:
            raise ShapeError(
                f"there are {group[-1] + 1} distinct subsets; a regression on them needs at least "
                f"{rank + 1}, and some hundreds to be useful"
            )
        basis, mixing = torch.linalg.qr(_unpenalised(sizes, mean_size, rank))
        loadings = torch.zeros(rank, masks.shape[1], dtype=torch.float64, device=masks.device)
        count = torch.zeros_like(loadings[0])
        for rows in _spans(group, masks.shape[1]):
            block = masks[rows].double()
            loadings += basis[rows].T @ block
            count += block.sum(0)
        left = count - loadings.square().sum(0)
        sigma = (left / len(masks)).clamp(min=0.0).sqrt()
        sigma[left <= EXPLAINED * count] = 0.0
        return cls(
            masks=masks,
            outputs=outputs,
            order=order,
            group=group,
            basis=basis,
            mixing=mixing,
            mean_size=mean_size,
            loadings=loadings,
            sigma=sigma,
        )

    def subset(self, rows: NDArray[np.bool_]) -> "Design":
        """The design of some of the rows [M]."""
        _, group = np.unique(self.group[rows], return_inverse=True)
        chosen = torch.from_numpy(rows).to(self.masks.device)
        return self._fitting(self.masks[chosen], self.outputs[chosen], self.order[rows], group)

    @property
    def n_masks(self) -> int:
        """Distinct masks."""
        return int(self.group[-1]) + 1

    @property
    def repeats(self) -> Tensor:
        """How many rows share each row's mask, float64 [M]."""
        return self._on_device(np.bincount(self.group)[self.group].astype(np.float64))

    @property
    def inverse_sigma(self) -> Tensor:
        """1 / sigma, and 0 where sigma is 0, float64 [n]."""
        return torch.where(self.sigma > 0, 1 / self.sigma, 0.0)

    @functools.cached_property
    def residuals(self) -> Tensor:
        """The outputs without what the unpenalised columns explain, float64 [M, m]."""
        left = self.outputs - self.basis @ (self.basis.T @ self.outputs)
        rounding = EXPLAINED**2 * self.outputs.square().sum(0)
        left[:, left.square().sum(0) <= rounding] = 0.0
        return left

    def spans(self) -> Iterator[slice]:
        """Blocks of rows, in order; rows that share a mask are never parted."""
        return _spans(self.group, self.masks.shape[1])

    def standardised(self, rows: slice, dtype: torch.dtype = torch.float64) -> Tensor:
        """Some rows of X~, [rows, n]."""
        left = self.masks[rows].double() - self.basis[rows] @ self.loadings
        return (left * self.inverse_sigma).to(dtype)

    def correlations(self) -> Tensor:
        """X~'y / M of every query, float64 [n, m]."""
        residuals = self.residuals
        total = torch.zeros_like(self.loadings[0][:, None] * residuals[0])
        for rows in self.spans():
            total += self.masks[rows].double().T @ residuals[rows]
        # The residuals are orthogonal to Q, so X'y needs no centring.
        return total * self.inverse_sigma[:, None] / len(residuals)

    def gram(self, counts: Tensor) -> Tensor:
        """X~'X~ / M from X'X: float64 [n, n], or float32 where that side is large."""
        n = len(counts)
        gram = torch.empty_like(counts, dtype=wide(n))
        scale = self.inverse_sigma / len(self.masks)
        for start in range(0, n, step := max(1, BLOCK_ENTRIES // n)):
            part = slice(start, start + step)
            left = counts[part].double() - self.loadings[:, part].T @ self.loadings
            gram[part] = scale[part, None] * left * self.inverse_sigma
        return gram

    def kernel(self) -> Tensor:
        """X~X~', [M, M], in the type of `wide`."""
        n, own = self.masks.shape[1], len(self.masks)
        total = torch.zeros(own, own, dtype=wide(own), device=self.masks.device)
        for start in range(0, n, step := max(1, BLOCK_ENTRIES // own)):
            part = slice(start, start + step)
            left = self.masks[:, part].double() - self.basis @ self.loadings[:, part]
            block = (left * self.inverse_sigma[part]).to(total.dtype)
            total.addmm_(block, block.T)
        return total

    def basis_of(self, masks: Tensor) -> Tensor:
        """The unpenalised columns of other masks [rows, n], in the basis Q: [rows, r]."""
        sizes = masks.sum(1, dtype=torch.int64).double()
        columns = _unpenalised(sizes, self.mean_size, len(self.mixing))
        return torch.linalg.solve(self.mixing, columns, left=False)

    def unpenalised(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Intercept and effect of one more row, [m] each, beside weights in mask units [n, m]."""
        own = self.basis.T @ self.outputs - self.loadings @ weights
        found = torch.linalg.solve(self.mixing, own)
        if len(found) == 1:
            return found[0], torch.zeros_like(found[0])
        return found[0] - found[1], found[1] / self.mean_size

    def _on_device(self, values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).to(self.masks.device)


def counts_of(masks: Tensor) -> Tensor:
    """X'X of masks uint8 [M, n], how many hold both i and k: float32 [n, n], exact to 2^24 rows."""
    n = masks.shape[1]
    total = torch.zeros(n, n, device=masks.device)
    for block in masks.split(max(1, BLOCK_ENTRIES // n)):
        total.addmm_(block.float().T, block.float())
    return total


def wide(side: int) -> torch.dtype:
    """The type in which a Gram matrix of this side is kept."""
    return torch.float64 if side <= WIDE_SIDE else torch.float32


def checked_rows(
    masks: NDArray[np.bool_], outputs: NDArray[np.floating]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Masks bool [M, n] and outputs float64 [M, m], once they fit together.

    Raises:
        ShapeError: They do not, or an output is not finite.
    """
    chosen, values = np.asarray(masks), np.asarray(outputs, dtype=np.float64)
    if chosen.dtype != np.bool_ or chosen.ndim != 2 or chosen.size == 0:
        raise ShapeError(
            f"masks are {chosen.dtype} of shape {chosen.shape}; give bool [models, n_train]"
        )
    if values.ndim != 2 or len(values) != len(chosen):
        raise ShapeError(
            f"outputs have shape {values.shape} for {len(chosen)} masks; give [models, n_query]"
        )
    if not np.isfinite(values).all():
        row, query = np.argwhere(~np.isfinite(values))[0]
        raise ShapeError(
            f"the output of row {row} and query {query} is {values[row, query]}; leave out "
            "retrainings that diverged"
        )
    return np.ascontiguousarray(chosen), values


def _unpenalised(sizes: Tensor, mean_size: float, rank: int) -> Tensor:
    return torch.stack([torch.ones_like(sizes), sizes / mean_size - 1.0][:rank], dim=1)


def _spans(group: NDArray[np.intp], n: int) -> Iterator[slice]:
    """Blocks of rows of about BLOCK_ENTRIES entries that end where a group ends."""
    step = max(1, BLOCK_ENTRIES // n)
    start = 0
    while start < len(group):
        last = group[min(start + step, len(group)) - 1]
        stop = int(np.searchsorted(group, last, side="right"))
        yield slice(start, stop)
        start = stop
