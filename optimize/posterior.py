"""Gaussian regression on training subsets in its dual form: one query, G subsets, n training rows.

The output of a model trained on S is b + x'beta + e, x = 1_S - the mean mask; a priori
beta ~ N(a tau + c, s^2 D) with D = diag(|tau|/mean|tau|) and flat b, a, c; e ~ N(0, sigma^2 v).
With kappa = s^2/sigma^2 everything rests on C = V + kappa K, K = X D X' [G, G]; n enters through
products only. kappa = 0 is the prior with its scale fitted. Nothing here chooses kappa.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from attribution.statistics import ratio

Float64 = npt.NDArray[np.float64]

# Columns of one block of a product, so that no float copy of all masks is ever held.
_BLOCK = 8_192
# Multiplications up to which products stay in float64. Above, blocks are float32 and their sum is
# float64: the error of K, some 1e-6 of its mean eigenvalue, is nothing beside the noise added.
_EXACT = 1 << 27
# A subset without which the coefficients cannot be fitted has P_jj = 0, up to rounding.
_NEVER = 1e-12


class Points(NamedTuple):
    """Where the surrogate is asked: masks, or changes from one mask to another.

    Attributes:
        rows: Bool or int8 [N, n]: 1_S, or 1_after - 1_before.
        centre: Float64 [n] taken off each row; None for changes.
    """

    rows: npt.NDArray[np.bool_] | npt.NDArray[np.int8]
    centre: Float64 | None

    def block(self, columns: slice, kind: type[np.floating]) -> npt.NDArray[np.floating]:
        """Some columns as numbers."""
        part = self.rows[:, columns].astype(kind)
        if self.centre is not None:
            part -= self.centre[columns].astype(kind)
        return part

    def dot(self, vectors: Float64) -> Float64:
        """Products with vectors [n, k], float64 [N, k]."""
        total = np.zeros((len(self.rows), vectors.shape[1]))
        for columns in _blocks(len(vectors)):
            total += self.block(columns, np.float64) @ vectors[columns]
        return total

    def spread(self, values: Float64) -> Float64:
        """Row-weighted sums over the points, rows' @ values [N, k]: float64 [n, k]."""
        found = np.empty((self.rows.shape[1], values.shape[1]))
        for columns in _blocks(len(found)):
            found[columns] = self.block(columns, np.float64).T @ values
        return found


def gram(left: Points, right: Points, diagonal: Float64) -> Float64:
    """Products left D right' with D = diag(diagonal [n]) >= 0, float64 [N_left, N_right]."""
    shape = len(left.rows), len(right.rows)
    exact = shape[0] * shape[1] * len(diagonal) <= _EXACT
    kind: type[np.floating] = np.float64 if exact else np.float32
    root: npt.NDArray[np.floating] = np.sqrt(diagonal).astype(kind)
    total = np.zeros(shape)
    with _threads_for(shape[0] * shape[1] * len(diagonal)):
        for columns in _blocks(len(diagonal)):
            first = left.block(columns, kind) * root[columns]
            second = first if right is left else right.block(columns, kind) * root[columns]
            total += (torch.from_numpy(first) @ torch.from_numpy(second).T).numpy()
    return total


def gram_diagonal(points: Points, diagonal: Float64) -> Float64:
    """Products x'Dx of each point, float64 [N]."""
    total = np.zeros(len(points.rows))
    for columns in _blocks(len(diagonal)):
        total += points.block(columns, np.float64) ** 2 @ diagonal[columns]
    return total


class Fits(NamedTuple):
    """One query fitted at several kappa.

    Attributes:
        coefficients: Float64 [n_kappa, p], of the columns of F; 0 where the last was dropped.
        dual: Float64 [n_kappa, G], C^-1 r: beta is a tau + c + kappa D X' dual.
        noise: Float64 [n_kappa], sigma^2, on G - (columns used) degrees of freedom.
        errors: Float64 [n_kappa, G], what each subset is mispredicted by when it leaves the fit
            and the coefficients are fitted anew.
        standard: Float64 [n_kappa, G], the same over their standard deviations.
        dropped: Bool [n_kappa], whether the last column was left out.
    """

    coefficients: Float64
    dual: Float64
    noise: Float64
    errors: Float64
    standard: Float64
    dropped: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """One eigendecomposition of V^-1/2 K V^-1/2, from which every kappa follows."""

    values: Float64
    vectors: Float64
    root: Float64  # v^-1/2 [G]

    @classmethod
    def of(cls, kernel: Float64, variances: Float64) -> "Spectrum":
        """From K [G, G] and the relative noise variances v [G]."""
        root = 1 / np.sqrt(variances)
        with _threads_for(len(kernel) ** 3):
            values, vectors = torch.linalg.eigh(torch.from_numpy(root[:, None] * kernel * root))
        return cls(values=np.maximum(values.numpy(), 0.0), vectors=vectors.numpy(), root=root)

    def fit(self, columns: Float64, outputs: Float64, kappas: Float64, *, may_use: bool) -> Fits:
        """Fit, without the last column where its coefficient is negative or `may_use` is not set.

        Args:
            columns: F, float64 [G, p], of full rank; the last is the sum of scores.
            outputs: Float64 [G].
            kappas: s^2/sigma^2, float64 [n_kappa].
            may_use: Whether the last column may be used at all.
        """
        without = self._fit(columns[:, :-1], outputs, kappas)
        without = without._replace(
            coefficients=np.pad(without.coefficients, ((0, 0), (0, 1))), dropped=~without.dropped
        )
        if not may_use:
            return without
        full = self._fit(columns, outputs, kappas)
        negative = full.coefficients[:, -1] < 0
        pairs = zip(without, full, strict=True)
        return Fits(*(np.where(negative.reshape(-1, *[1] * (b.ndim - 1)), a, b) for a, b in pairs))

    def _fit(self, columns: Float64, outputs: Float64, kappas: Float64) -> Fits:
        shrink = 1 / (1 + kappas[:, None] * self.values)
        white = self.root[:, None] * np.column_stack([columns, outputs])
        turned = shrink.T[:, :, None] * (self.vectors.T @ white)[:, None, :]
        # C^-1 [F, y] in whitened rows, [n_kappa, G, p + 1]; then A = F'C^-1 F.
        solved = np.moveaxis(
            (self.vectors @ turned.reshape(len(outputs), -1)).reshape(turned.shape), 1, 0
        )
        basis, target = solved[..., :-1], solved[..., -1]
        normal = white[:, :-1].T @ basis
        found = np.linalg.solve(normal, white[:, :-1].T @ solved[..., -1:])
        coefficients: Float64 = np.asarray(found[..., 0], dtype=np.float64)
        # P y and the diagonal of P = C^-1 - C^-1 F A^-1 F'C^-1.
        projected = target - np.einsum("kgp,kp->kg", basis, coefficients)
        spent = np.linalg.solve(normal, np.swapaxes(basis, 1, 2))
        own = (self.vectors**2 @ shrink.T).T - np.einsum("kgp,kpg->kg", basis, spent)
        residual = white[:, -1] - coefficients @ white[:, :-1].T
        noise = np.maximum(np.einsum("kg,kg->k", residual, projected), 0.0)
        noise /= len(outputs) - columns.shape[1]
        own = np.maximum(own, _NEVER)
        return Fits(
            coefficients=coefficients,
            dual=self.root * projected,
            noise=noise,
            errors=projected / own / self.root,
            standard=ratio(projected, np.sqrt(own * noise[:, None])),
            dropped=np.zeros(len(kappas), dtype=bool),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """The covariance of beta after the fit, in units of sigma^2, ready for new points."""

    factor: Float64  # lower Cholesky factor of C [G, G]
    basis: Float64  # factor^-1 F [G, p], the columns that were used
    normal: Float64  # lower Cholesky factor of A [p, p]
    kappa: float

    @classmethod
    def of(cls, kernel: Float64, variances: Float64, columns: Float64, kappa: float) -> "Posterior":
        """From K [G, G], v [G] and the columns used, F [G, p]."""
        factor: Float64 = np.asarray(
            np.linalg.cholesky(np.diag(variances) + kappa * kernel), dtype=np.float64
        )
        basis: Float64 = np.asarray(np.linalg.solve(factor, columns), dtype=np.float64)
        return cls(
            factor=factor,
            basis=basis,
            normal=np.asarray(np.linalg.cholesky(basis.T @ basis), dtype=np.float64),
            kappa=kappa,
        )

    def parts(self, cross: Float64, columns: Float64) -> tuple[Float64, Float64]:
        """Two matrices whose products give all covariances between new points.

        cov(i, j) sigma^-2 = kappa x_i'D x_j - (L'L)_ij + (U'U)_ij.

        Args:
            cross: X D x' of the bank's subsets with the points [G, N].
            columns: F of the points, [N, p].

        Returns:
            L [G, N], what the bank explains, and U [p, N], what the coefficients add.
        """
        explained = np.asarray(np.linalg.solve(self.factor, self.kappa * cross), dtype=np.float64)
        unexplained = columns.T - self.basis.T @ explained
        added = np.linalg.solve(self.normal, unexplained)
        return explained, np.asarray(added, dtype=np.float64)


@dataclass(slots=True)
class _Threads:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    before: int = 1


_threads = _Threads()


@contextmanager
def _threads_for(work: int) -> Iterator[None]:
    """One thread for products and factors so small that threads would only wait for each other.

    341 queries of 60 subsets, two cores busy with other work: 0.6 s of CPU instead of 9 to 20 s.
    """
    if work > _EXACT:
        yield
        return
    # Torch's thread count is one number for the process: the first that needs it sets it to one,
    # the last that leaves puts it back.
    with _threads.lock:
        if _threads.users == 0:
            _threads.before = torch.get_num_threads()
            torch.set_num_threads(1)
        _threads.users += 1
    try:
        yield
    finally:
        with _threads.lock:
            _threads.users -= 1
            if _threads.users == 0:
                torch.set_num_threads(_threads.before)


def _blocks(n: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, n, _BLOCK)]
