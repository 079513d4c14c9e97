"""The curvature of TRAK at one checkpoint: K = Phi^T R Phi + lambda I, and its inverse.

Phi is [n, k]; R is 1 ("after-kernel", Park et al. 2023) or p(1-p) ("logistic", the Hessian of the
binary reduction; "ggn", which adds F^T F to make it the multi-class Gauss-Newton matrix). lambda =
rho tr(K) / min(n, k), n with the rows of F: rho counts mean non-zero eigenvalues. With k <= n the
k x k matrix is factored, otherwise the n x n one (Woodbury). R may hold zeros: nothing divides by
it.
"""

from enum import StrEnum

import torch
from torch import Tensor

from attribution.estimators.features import Features
from schemas.errors import ShapeError

# Below this rho, float32 Gram matrices lose the small eigenvalues that lambda should rule.
FLOAT32_RHO = 1e-2


class Curvature(StrEnum):
    """The weights R of the Gauss-Newton sum."""

    AFTER_KERNEL = "after-kernel"
    LOGISTIC = "logistic"
    GGN = "ggn"


def weights_of(features: Features, curvature: str) -> Tensor:
    """R [n] of a curvature.

    Raises:
        ShapeError: The curvature is unknown.
    """
    if curvature not in set(Curvature):
        raise ShapeError(f"unknown curvature {curvature!r}; say {' or '.join(Curvature)}")
    if curvature == Curvature.AFTER_KERNEL:
        return torch.ones_like(features.curvature)
    return features.curvature


def rest_of(features: Features, curvature: str) -> tuple[Tensor | None, Tensor | None]:
    """F and F^T F of a curvature, one of them at most.

    Raises:
        ShapeError: The features were made without what "ggn" needs.
    """
    if curvature != Curvature.GGN:
        return None, None
    if features.rest is None and features.rest_gram is None:
        raise ShapeError(
            "these features do not carry the Gauss-Newton matrix; featurize the training rows "
            "with ggn=True, or use curvature='logistic'"
        )
    return features.rest, features.rest_gram


class Gram:
    """The unregularised curvature of one checkpoint, in the smaller of its two forms.

    Args:
        features: Of the training rows.
        curvature: "after-kernel", "logistic" or "ggn".
        dtype: Type of the matrix products; factorisations are always in float64.

    Attributes:
        phi: Phi [n, k].
        weights: R [n].
        unit: tr(K) / min(rows, k), what rho multiplies.
    """

    def __init__(self, features: Features, *, curvature: str, dtype: torch.dtype) -> None:
        self.phi = features.sketch.to(dtype)
        self.weights = weights_of(features, curvature).to(dtype)
        self._psi = self.phi * self.weights.sqrt().unsqueeze(1)
        rest, gram = rest_of(features, curvature)
        if rest is not None:
            self._psi = torch.cat([self._psi, rest.to(dtype)])
        n, k = self._psi.shape
        self.primal = k <= n or gram is not None
        product = self._psi.T @ self._psi if self.primal else self._psi @ self._psi.T
        self._matrix = product.double()
        if gram is not None:
            self._matrix += gram.double()
        self.unit = float(self._matrix.trace()) / (k if self.primal else n)
        if self.unit <= 0.0:
            raise ShapeError(
                "all gradients, or all curvatures p(1-p), are zero: the model is saturated; use "
                "curvature='after-kernel' or earlier checkpoints"
            )

    @property
    def weighted(self) -> Tensor:
        """R^1/2 Phi [n, k], what each row's margin adds to K."""
        return self._psi[: len(self.phi)]

    def factor(self, rho: float) -> "Inverse":
        """(K + lambda I)^-1 for lambda = rho * unit.

        Raises:
            ShapeError: rho is not positive, or too small for the precision.
        """
        if not 0.0 < rho < float("inf"):
            raise ShapeError(f"damping is {rho}; give a positive number (1 is one mean eigenvalue)")
        ridge = rho * self.unit
        matrix = self._matrix.clone()
        matrix.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if bool(failed):
            raise ShapeError(
                f"damping {rho:g} is too small to factor the curvature; raise it, or use float64"
            )
        return Inverse(factor, None if self.primal else self._psi, ridge)


class Inverse:
    """Rows times (K + lambda I)^-1."""

    def __init__(self, factor: Tensor, psi: Tensor | None, ridge: float) -> None:
        self._factor, self._psi, self._ridge = factor, psi, ridge

    def apply(self, rows: Tensor) -> Tensor:
        """[b, k] -> [b, k], in the rows' own type."""
        if self._psi is None:
            solved = torch.cholesky_solve(rows.double().T, self._factor).T
            return solved.to(rows.dtype)
        coefficients = torch.cholesky_solve((rows @ self._psi.T).double().T, self._factor).T
        return (rows - coefficients.to(rows.dtype) @ self._psi) / self._ridge

    def remainder(self, gram: Gram) -> Tensor:
        """1 - R_i phi_i^T K^-1 phi_i of each training row, [n]."""
        if self._psi is None:
            return 1.0 - gram.weights * self.quadratic(gram.phi)
        # 1 - D (D + lambda)^-1 = lambda (D + lambda)^-1: a tenth of the work, and no cancellation.
        inverse = torch.cholesky_inverse(self._factor)
        return (self._ridge * inverse.diagonal()[: len(gram.phi)]).to(gram.phi.dtype)

    def quadratic(self, rows: Tensor, block: int = 1024) -> Tensor:
        """x^T (K + lambda I)^-1 x for each row x of [n, k], as [n]."""
        parts = [(self.apply(part) * part).sum(1) for part in rows.split(block)]
        return torch.cat(parts)


def leverage_factor(gram: Gram, inverse: Inverse) -> Tensor:
    """1 / (1 - R_i phi_i^T K^-1 phi_i), [n] (Pregibon 1981): a Newton step for removing row i.

    With "ggn" it is the margin's part of that step: what else row i adds to K stays in it.

    Raises:
        ShapeError: A leverage reaches 1: the damping is too small for the number of rows.
    """
    remainder = inverse.remainder(gram)
    if bool((remainder <= 1e-6).any()):
        raise ShapeError(
            "a row has leverage 1, so its removal has no Newton step; raise the damping, or use "
            "leverage=False"
        )
    return 1.0 / remainder


def working_dtype(dtype: torch.dtype | None, rho: float, features: Features) -> torch.dtype:
    """The type of matrix products: as asked, else float32 where rho is large enough for it."""
    if dtype is not None:
        return dtype
    wide = features.sketch.dtype == torch.float64 or rho < FLOAT32_RHO
    return torch.float64 if wide else torch.float32
