"""Solving (H + s I) x = v for many v and many shifts s, given products with H.

Vectors are rows: [b, p]; solutions are [shifts, b, p]. H is symmetric. Every solver answers a
list of shifts, so that a damping can be tuned; a shift at which H + s I is not positive definite
has NaN for its solutions. `exact`, `cg` and `lissa` solve the system; `arnoldi`, `lanczos` and
`nystrom` replace H by r eigenpairs.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from schemas.errors import ShapeError

Product = Callable[[Tensor], Tensor]

# A dense H and its factor take 16 p^2 bytes.
EXACT_LIMIT = 20_000
# Up to this p a Cholesky factor for each shift costs less than CG.
FACTOR_EACH = 4_096
# Relative residual that is enough to rank dampings.
TUNING_TOLERANCE = 1e-2
LANCZOS_BLOCK = 16


class SolverName(StrEnum):
    """How systems are solved."""

    EXACT = "exact"
    CG = "cg"
    LISSA = "lissa"
    ARNOLDI = "arnoldi"
    LANCZOS = "lanczos"
    NYSTROM = "nystrom"


class Solver(Protocol):
    """Solves for all shifts at once.

    Attributes:
        facts: What is worth recording of the last solution.
        nbytes: What it holds besides the model.
    """

    facts: dict[str, Any]
    nbytes: int

    def solve(self, vectors: Tensor, shifts: Sequence[float]) -> Tensor:
        """[b, p] to [shifts, b, p]."""
        ...


class Exact:
    """A Cholesky factor in float64 for each shift, H [p, p] being at hand.

    Args:
        dense: H.
    """

    def __init__(self, dense: Tensor) -> None:
        self.facts: dict[str, Any] = {}
        self.nbytes = dense.nbytes
        self._dense = dense

    def solve(self, vectors: Tensor, shifts: Sequence[float]) -> Tensor:
        """For several shifts of a large H by CG (to 1e-2): one shift then costs p^3/3."""
        if len(shifts) > 1 and len(self._dense) > FACTOR_EACH:
            return ConjugateGradients(lambda rows: rows @ self._dense).solve(vectors, shifts)
        out = vectors.new_full((len(shifts), *vectors.shape), torch.nan)
        for index, shift in enumerate(shifts):
            matrix = self._dense.to(torch.float64, copy=True)
            matrix.diagonal().add_(shift)
            factor, failed = torch.linalg.cholesky_ex(matrix, check_errors=False)
            if not bool(failed):
                out[index] = torch.cholesky_solve(vectors.double().T, factor).T.to(vectors)
        return out


class Spectral:
    """Eigenpairs of H.

    Args:
        values: [r], float64.
        basis: Orthonormal eigenvectors as rows, [r, p].
        rest: Keep what is orthogonal to the basis, H being zero there; otherwise it is dropped.
    """

    def __init__(self, values: Tensor, basis: Tensor, *, rest: bool) -> None:
        self.facts: dict[str, Any] = {"rank": len(values)}
        self.nbytes = basis.nbytes
        self.values, self.basis = values, basis
        self._rest = rest and len(values) < basis.shape[1]

    def solve(self, vectors: Tensor, shifts: Sequence[float]) -> Tensor:
        """Every shift costs one product."""
        out = vectors.new_full((len(shifts), *vectors.shape), torch.nan)
        inside = vectors @ self.basis.T
        outside = vectors - inside @ self.basis if self._rest else None
        lowest = float(self.values.min())
        for index, shift in enumerate(shifts):
            if lowest + shift <= 0.0 or (self._rest and shift <= 0.0):
                continue
            out[index] = (inside / (self.values + shift).to(inside)) @ self.basis
            if outside is not None:
                out[index] += outside / shift
        return out


class ConjugateGradients:
    """Conjugate gradients for all vectors and shifts in one Krylov space (Jegerlehner 1996).

    The smallest shift is iterated; the residuals of the others are multiples of its residuals.
    Each vector has step lengths of its own, and all share the products with H.

    Args:
        product: H times rows, over ALL training rows: CG on a product that changes is no CG.
        tolerance: Relative residual of a single shift; 1e-2 at best where several are tried.
        iterations: Most products with H.
    """

    def __init__(
        self, product: Product, *, tolerance: float = 1e-5, iterations: int = 1000
    ) -> None:
        self.facts: dict[str, Any] = {}
        self.nbytes = 0
        self._product, self._tolerance, self._iterations = product, tolerance, iterations

    def solve(self, vectors: Tensor, shifts: Sequence[float]) -> Tensor:
        """Several shifts come without a check of convergence.

        Raises:
            ShapeError: A single shift did not converge.
        """
        out = vectors.new_full((len(shifts), *vectors.shape), torch.nan)
        tuning = len(shifts) > 1
        tolerance = max(self._tolerance, TUNING_TOLERANCE) if tuning else self._tolerance
        order = sorted(range(len(shifts)), key=lambda index: shifts[index])
        while order:
            found = self._iterate(vectors, [shifts[index] for index in order], tolerance)
            if found is not None:
                out[order] = found
                break
            order = order[1:]  # the smallest shift is too small: try without it
        if order and not tuning and self.facts["residual"] > tolerance:
            raise ShapeError(
                f"conjugate gradients reached a relative residual of {self.facts['residual']:.1e} "
                f"after {self._iterations} products, not {tolerance:.1e}; raise the damping, "
                "`iterations` or `tolerance`"
            )
        return out

    def _iterate(self, vectors: Tensor, shifts: list[float], tolerance: float) -> Tensor | None:
        """Solutions, or None where a direction of negative curvature came up."""
        apart = torch.tensor(shifts, dtype=torch.float64, device=vectors.device) - shifts[0]
        apart = apart.unsqueeze(1)
        residual = vectors.clone()
        direction = vectors.clone()
        directions = vectors.expand(len(shifts), *vectors.shape).clone()
        solutions = torch.zeros_like(directions)
        square = _dot(residual, residual)
        goal = tolerance**2 * square
        # zeta is the factor between a shifted residual and the iterated one, now and before.
        zeta = torch.ones(len(shifts), len(vectors), dtype=torch.float64, device=vectors.device)
        before = zeta.clone()
        step, turn = torch.ones_like(square), torch.zeros_like(square)
        active = torch.ones_like(zeta, dtype=torch.bool)
        count = 0
        while count < self._iterations:
            active &= zeta**2 * square > goal  # for good: a factor that rests cannot catch up
            if not bool(active.any()):
                break
            moving = active.any(0)
            applied = self._product(direction) + shifts[0] * direction
            count += 1
            curved = _dot(direction, applied)
            if bool((moving & (curved <= 0)).any()):
                return None
            last, step = step, torch.where(moving, square / curved, 0.0)
            top = zeta * before * last
            bottom = step * turn * (before - zeta) + before * last * (1 + apart * step)
            new = torch.where(active, top / bottom, zeta)
            steps = torch.where(active, step * new / zeta, 0.0)
            solutions += steps.to(vectors).unsqueeze(2) * directions
            residual -= step.to(vectors).unsqueeze(1) * applied
            old, square = square, _dot(residual, residual)
            turn = torch.where(moving, square / old, 0.0)
            turns = torch.where(active, turn * (new / zeta) ** 2, 0.0)
            directions.mul_(turns.to(vectors).unsqueeze(2)).add_(
                new.to(vectors).unsqueeze(2) * residual
            )
            direction = residual + turn.to(vectors).unsqueeze(1) * direction
            before, zeta = torch.where(active, zeta, before), new
        left = (zeta[0] ** 2 * square / _dot(vectors, vectors).clamp_min(1e-300)).max().sqrt()
        self.facts = {"products": count, "residual": float(left)}
        return solutions


class Lissa:
    """r <- v + r - (H + s I) r / scale, result r / scale (Agarwal et al. 2017), with the whole H.

    Args:
        product: H times rows, over all training rows.
        scale: Must exceed half the largest eigenvalue of H + s I; None: the bound that twenty
            power iterations find, times 1.1.
        tolerance: Relative size of the last step at which to stop.
        iterations: Most steps.
        start: Vectors [b, p] from which the power iterations start.
    """

    def __init__(
        self,
        product: Product,
        *,
        start: Tensor,
        scale: float | None = None,
        tolerance: float = 1e-5,
        iterations: int = 1000,
    ) -> None:
        self.facts: dict[str, Any] = {}
        self.nbytes = 0
        self._product, self._tolerance, self._iterations = product, tolerance, iterations
        self._scale = scale
        self._top = largest_eigenvalue(product, start) if scale is None else 0.0

    def solve(self, vectors: Tensor, shifts: Sequence[float]) -> Tensor:
        """Several shifts are solved by CG (to 1e-2): the system is the same.

        Raises:
            ShapeError: The steps grow: the scale is too small; or they never became small.
        """
        if len(shifts) > 1:
            return ConjugateGradients(self._product).solve(vectors, shifts)
        shift = float(shifts[0])
        scale = 1.1 * (self._top + shift) if self._scale is None else float(self._scale)
        total, step = vectors.clone(), vectors
        size = first = _dot(vectors, vectors).sqrt()
        for count in range(1, self._iterations + 1):
            step = step - (self._product(step) + shift * step) / scale
            total += step
            size = _dot(step, step).sqrt()
            # A contraction never makes a step longer than the first one.
            if not bool((size <= 1.01 * first).all()):
                raise ShapeError(
                    f"LiSSA diverges after {count} steps with scale {scale:.3g}: (H + s I)/scale "
                    "has an eigenvalue outside 0..2; raise `scale` above half the largest "
                    "eigenvalue (scale='auto' finds it), or use hessian='gauss-newton' if H is "
                    "indefinite"
                )
            if bool((size <= self._tolerance * first).all()):
                break
        self.facts = {
            "products": count,
            "scale": scale,
            "residual": float((size / first.clamp_min(1e-300)).max()),
        }
        return (total / scale).unsqueeze(0)


def lanczos(product: Product, start: Tensor, rank: int, *, rest: bool) -> Spectral:
    """The r eigenpairs largest in size, from a block Krylov space 2 r wide.

    Lanczos with full reorthogonalisation, which for a symmetric H is Arnoldi's method (Schioppa
    et al. 2022 project gradients on its eigenvectors).

    Args:
        product: H times rows.
        start: Random vectors [b, p]; their number is the block.
        rank: r.
        rest: As in `Spectral`.
    """
    p = start.shape[1]
    width = min(p, 2 * rank)
    basis = start.new_empty(width, p)
    images = start.new_empty(width, p)
    block, done = start, 0
    while done < width:
        block = block[: width - done]
        # Thrice, for a block may lie in the space already, and then only noise is left of it.
        for _ in range(3):
            block = block - (block @ basis[:done].T) @ basis[:done]
            block = torch.linalg.qr(block.T).Q.T.contiguous()
        rows = slice(done, done + len(block))
        basis[rows] = block
        images[rows] = product(block)
        block, done = images[rows], done + len(block)
    inner = (basis @ images.T).double()
    values, turn = torch.linalg.eigh((inner + inner.T) / 2)
    kept = values.abs().argsort(descending=True)[:rank]
    return Spectral(values[kept], turn[:, kept].T.to(basis) @ basis, rest=rest)


def nystrom(product: Product, start: Tensor) -> Spectral:
    """H ~ (H W)(W^T H W)^+ (H W)^T with W [p, r] random (Frangella et al. 2023, algorithm 2.1).

    Args:
        product: H times rows; H must never be negative.
        start: Random vectors [r, p].
    """
    directions = torch.linalg.qr(start.T).Q.T.contiguous()
    images = product(directions)
    # The shift that keeps the Cholesky factor from failing; taken off again at the end.
    tiny = torch.finfo(start.dtype).eps * float(images.double().norm())
    images = images + tiny * directions
    inner = (directions @ images.T).double()
    factor, failed = torch.linalg.cholesky_ex((inner + inner.T) / 2)
    if bool(failed):
        raise ShapeError(
            "the Nyström approximation needs a curvature that is never negative; use "
            "hessian='gauss-newton' or solver='lanczos'"
        )
    half = torch.linalg.solve_triangular(factor, images.double(), upper=False)
    _, values, basis = torch.linalg.svd(half, full_matrices=False)
    return Spectral((values**2 - tiny).clamp_min(0.0), basis.to(start), rest=True)


def largest_eigenvalue(product: Product, start: Tensor, steps: int = 20) -> float:
    """Of H in size, by power iterations on a block; from below, a few per cent short."""
    block = torch.linalg.qr(start.T).Q.T.contiguous()
    for _ in range(steps):
        block = torch.linalg.qr(product(block).T).Q.T.contiguous()
    return float(torch.linalg.matrix_norm((block @ product(block).T).double(), 2))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a.double(), b.double())
