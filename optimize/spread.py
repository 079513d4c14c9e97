"""How uncertain a choice's predicted output is, as a quadratic form over rows.

sd(x)^2 = constant + y'(diag(d) - L'L + U'U) y with y = x - reference: the posterior of a linear
datamodel, of which L [G, n] is what the bank explains and U [p, n] what fitted coefficients add.
The form is positive semi-definite, so sd is convex in x, fractions of rows included.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from optimize.averaged import MeanDatamodel
from optimize.posterior import Float64, gram

# Below this share of the unexplained variance, differences are rounding errors.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The sd of one output against a reference; memory (G + p) n float64 numbers.

    Attributes:
        reference: Float64 [n], the rows from which the change is predicted.
        diagonal: Float64 [n], d >= 0.
        explained: Float64 [G, n], L.
        added: Float64 [p, n], U.
        constant: Variance that no choice changes.
    """

    reference: Float64
    diagonal: Float64
    explained: Float64
    added: Float64
    constant: float = 0.0

    @property
    def n_pool(self) -> int:
        """Rows that it is over."""
        return len(self.reference)

    def sd(self, rows: npt.ArrayLike) -> float:
        """The sd for rows [n], bool or fractions."""
        return self._at(rows)[0]

    def slope(self, rows: npt.ArrayLike) -> tuple[float, Float64]:
        """The sd and its gradient, float64 [n]; a subgradient, 0, where the sd is 0."""
        sd, gradient = self._at(rows)
        return sd, gradient / sd if sd > 0 else np.zeros_like(gradient)

    def _at(self, rows: npt.ArrayLike) -> tuple[float, Float64]:
        moved = np.asarray(rows, dtype=np.float64) - self.reference
        free = self.diagonal * moved
        half = free - self.explained.T @ (self.explained @ moved)
        half += self.added.T @ (self.added @ moved)
        variance = float(moved @ half)
        if variance < _ROUNDING * float(moved @ free):
            variance, half = 0.0, np.zeros_like(half)
        return float(np.sqrt(self.constant + variance)), half


def spread_of(surrogate: MeanDatamodel, reference: npt.ArrayLike) -> Spread:
    """The posterior sd of the change of a mean output, without the noise of retrainings.

    `MeanDatamodel.predict_change` combines the queries' sds, which is no quadratic form. Here the
    queries' errors correlate row by row as their leave-one-mask-out errors z do:

        d_i = mean_g (sum_q share_q s_q sqrt(D_qi) z_qg)^2,

    sigma^2 likewise; L is of one regression with these; and each query's uncertain coefficients
    add u_q(x), U(x) = sum_q share_q sigma_q z_qg u_q(x). Where all queries share their D and their
    ratio of noise to prior both agree; on simulated banks this one is 0 to 16 % smaller.

    Args:
        surrogate: The mean output.
        reference: Bool [n_train], the subset from which changes are predicted.
    """
    parent, own = surrogate.parent, surrogate.parent.subsets.points
    n_subsets, n_train = own.rows.shape
    noises = surrogate.shares * np.sqrt(parent.chosen.noise)
    together = noises[:, None] * parent.chosen.standard / np.sqrt(n_subsets)
    roots, sizes, _ = np.linalg.svd(together, full_matrices=False)
    mixed = (roots * sizes)[:, sizes > _ROUNDING * sizes.max(initial=0.0)]
    masks = own.block(slice(0, n_train), np.float64)
    free, added = np.zeros((mixed.shape[1], n_train)), np.zeros((mixed.shape[1], 3, n_train))
    changes = parent.subsets.columns(np.ones(n_train), 0.0)
    for query in np.flatnonzero(noises).tolist():
        posterior, scores = parent.posterior(query)
        diagonal = parent.prior_variances(query)
        _, unknown = posterior.parts(masks * diagonal, np.column_stack([changes, scores]))
        free += mixed[query][:, None] * np.sqrt(parent.chosen.kappa[query] * diagonal)
        added[:, : len(unknown)] += mixed[query][:, None, None] * unknown
    noise, diagonal = float((mixed.sum(axis=0) ** 2).sum()), (free**2).sum(axis=0)
    kernel = gram(own, own, diagonal) + noise * np.diag(parent.subsets.variances)
    explained = np.zeros((0, n_train))
    if diagonal.any():
        explained = np.linalg.solve(np.linalg.cholesky(kernel), masks * diagonal)
    return Spread(
        reference=np.asarray(reference, dtype=np.float64),
        diagonal=diagonal,
        explained=np.asarray(explained),
        added=added.reshape(-1, n_train),
    )
