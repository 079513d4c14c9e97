"""Ridge regression on masks: one eigendecomposition gives every lambda and every left-out mask.

On the standardised columns X~ of `Design`, with S = X~'X~ = V s V' and K = X~X~' = U s U':

    weights   w~ = V (s + lambda)^-1 V'X~'y = X~'U (s + lambda)^-1 U'y
    residual  e = P y lambda,   P = (I - Q Q' - X~ (S + lambda I)^-1 X~') / lambda

Of X~'X~ (n x n) and X~X~' (M x M) the smaller is decomposed. The R rows G of one mask are equal,
so P_GG = (I - h 11') / lambda with their leverage h, and the error of predicting them without
any of them, P_GG^-1 (P y)_G, is e_G + h / (1 - R h) sum(e_G): exact, with sigma held fixed and the
unpenalised columns fitted anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.resampling.design import Design, counts_of, wide

# In mean non-zero eigenvalues of X~X~'. The upper end ranks as empirical influence does.
GRID = tuple(float(value) for value in np.geomspace(1e-2, 1e3, 16))
# A mask with a leverage this close to one over its rows cannot be predicted without them.
ALONE = 1e-9


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """The eigendecomposition that a ridge path needs.

    Attributes:
        design: What was decomposed.
        values: s, eigenvalues of the smaller side, [k].
        vectors: U or V, [k, k].
        rotated: U'y or V'X~'y, [k, m].
        dual: Whether the M x M side was decomposed.
    """

    design: Design
    values: Tensor
    vectors: Tensor
    rotated: Tensor
    dual: bool

    @classmethod
    def of(cls, design: Design) -> "Spectrum":
        """Decompose the smaller side."""
        own, n = design.masks.shape
        dual = own <= n
        if dual:
            matrix, right = design.kernel(), design.residuals
        else:
            matrix = design.gram(counts_of(design.masks)).mul_(own)
            right = design.correlations() * own
        values, vectors = torch.linalg.eigh(matrix)
        return cls(
            design=design,
            values=values.clamp(min=0.0),
            vectors=vectors,
            rotated=vectors.T @ right.to(vectors.dtype),
            dual=dual,
        )

    @property
    def unit(self) -> float:
        """The mean non-zero eigenvalue tr(X~X~') / min(M, n), the unit of a relative lambda."""
        return float(self.values.sum(dtype=torch.float64)) / min(self.design.masks.shape)

    def errors(self, grid: Sequence[float] = GRID) -> NDArray[np.float64]:
        """Mean squared error of predicting each mask from the others, float64 [grid, m].

        Args:
            grid: Relative lambdas.
        """
        design = self.design
        residuals = design.residuals
        lambdas = [rho * self.unit for rho in grid]
        shrunken = [self._shrink(value) for value in lambdas]
        total = torch.zeros(len(grid), residuals.shape[1], dtype=torch.float64)
        counted = torch.zeros(len(grid), dtype=torch.float64)
        for rows in design.spans():
            block = self._rotated_rows(rows)
            free = design.basis[rows].square().sum(1)
            repeats = design.repeats[rows]
            group = torch.from_numpy(design.group[rows] - design.group[rows.start])
            for place, shrink in enumerate(shrunken):
                fitted = block @ (shrink[:, None] * self.rotated)
                error = residuals[rows] - fitted.double()
                leverage = free + (block.square() @ shrink).double()
                share = leverage / (1 - repeats * leverage).clamp(min=ALONE)
                sums = torch.zeros(int(group[-1]) + 1, error.shape[1]).to(error)
                sums.index_add_(0, group.to(error.device), error)
                error = error + share[:, None] * sums[group.to(error.device)]
                known = (1 - repeats * leverage) > ALONE
                total[place] += error[known].square().sum(0).cpu()
                counted[place] += int(known.sum())
        return (total / counted[:, None]).numpy()

    def weights(self, strengths: NDArray[np.float64]) -> Tensor:
        """Weights in mask units, float64 [n, m], for one relative lambda a query [m]."""
        lambdas = torch.from_numpy(strengths * self.unit).to(self.values)
        inner = self.vectors @ (self.rotated / (self.values[:, None] + lambdas))
        scale = self.design.inverse_sigma[:, None]
        if not self.dual:
            return inner.double() * scale
        total = torch.zeros(len(scale), inner.shape[1]).to(scale)
        for rows in self.design.spans():
            total += self.design.standardised(rows).T @ inner[rows].double()
        return total * scale

    def _rotated_rows(self, rows: slice) -> Tensor:
        if self.dual:
            return self.vectors[rows]
        kind = wide(len(self.values))
        return self.design.standardised(rows, kind) @ self.vectors

    def _shrink(self, value: float) -> Tensor:
        over = self.values if self.dual else torch.ones_like(self.values)
        return over / (self.values + value)
