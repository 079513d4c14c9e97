"""LASSO on masks (Ilyas et al. 2022): all queries on one Gram matrix, lambda per query.

In the standardised columns X~ of `Design`, query by query,

    minimise (1/2M) |y - X~ w~|^2 + lambda |w~|_1

down a geometric path from lambda_max = max |X~'y| / M, above which every weight is 0. A lambda
is relative: a share of its query's lambda_max. Held are X~'X~ (n x n) or X~' (n x M), see
`holds_gram`, n x m correlations and weights, and while lambda is chosen the counts X'X and a fold's
masks and Gram matrix.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from attribution.estimators.resampling.coordinate_descent import WORSE, descend
from attribution.estimators.resampling.design import WIDE_SIDE, Design, counts_of
from attribution.estimators.resampling.proximal import descend_together, largest_eigenvalue
from attribution.streams import Purpose, stream
from schemas.errors import WinnowError

FOLDS = 5
# Shares of lambda_max.
PATH = tuple(float(share) for share in np.geomspace(1.0, 0.01, 40))
# A path ends when this many lambdas in a row have predicted held-out masks no better, and the last
# a tenth worse: to walk all 40 took five times as long for the same LDS (digits, three seeds).
PATIENCE = 4
# How exactly a path is walked while lambda is chosen, and in the end, as a share of lambda_max.
ROUGH, FINE = 1e-4, 1e-10
# Nor finer than this by gradients: steps shrink slowly there, and float32 has no more to give.
FINEST = {torch.float64: 1e-7, torch.float32: 1e-5}
# Queries whose paths one call of the solver walks together.
TOGETHER = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Rows that are predicted and not fitted, as the fit sees them.

    Attributes:
        masks: uint8 [n, rows]: column by column, as they are read.
        basis: Their unpenalised columns in the fit's basis, [rows, r].
        target: Outputs less what the unpenalised columns alone predict, [rows, m].
    """

    masks: Tensor
    basis: Tensor
    target: Tensor

    @classmethod
    def of(cls, design: Design, masks: Tensor, outputs: Tensor) -> "HeldOut":
        """Masks uint8 [rows, n] and outputs [rows, m] beside the design of others."""
        basis = design.basis_of(masks)
        return cls(
            masks=masks.T.contiguous(),
            basis=basis,
            target=outputs - basis @ (design.basis.T @ design.outputs),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Lasso:
    """The LASSO problems of all queries on one design.

    Attributes:
        design: Masks and outputs.
        held: X~'X~ / M [n, n], or X~' [n, M].
        is_gram: Which of the two.
        correlation: X~'y / M, float64 [m, n].
    """

    design: Design
    held: Tensor
    is_gram: bool
    correlation: Tensor

    @classmethod
    def of(cls, design: Design, counts: Tensor | None = None) -> "Lasso":
        """The problems of a design; `counts` is its X'X where that is known."""
        is_gram = holds_gram(design)
        if is_gram:
            held = design.gram(counts_of(design.masks) if counts is None else counts)
        else:
            own, n = design.masks.shape
            kind = torch.float64 if own * n <= WIDE_SIDE**2 else torch.float32
            held = torch.empty(n, own, dtype=kind, device=design.masks.device)
            for rows in design.spans():
                held[:, rows] = design.standardised(rows, kind).T
        correlation = design.correlations().T.contiguous()
        return cls(design=design, held=held, is_gram=is_gram, correlation=correlation)

    @property
    def largest(self) -> Tensor:
        """lambda_max of every query, [m]; 1 where the output does not vary."""
        return _positive(self.correlation.abs().amax(1))

    def errors(self, unit: Tensor, test: HeldOut) -> NDArray[np.float64]:
        """Sums of squared errors over held-out rows at each of `PATH` x unit: [path, m].

        They are infinite where the path had ended.
        """
        walk = self._descend if self.held.device.type == "cpu" else self._descend_together
        paths = [np.array(PATH)] * len(unit)
        return walk(paths, unit, ROUGH, test)[1]

    def weights(self, strengths: NDArray[np.float64]) -> Tensor:
        """Weights in mask units, float64 [n, m], for one relative lambda a query [m]."""
        walk = self._descend if self.held.device.type == "cpu" else self._descend_together
        shares = np.array(PATH)
        paths = [np.append(shares[shares > strength], strength) for strength in strengths]
        return walk(paths, self.largest, FINE, None)[0].T * self.design.inverse_sigma[:, None]

    def _descend(
        self, paths: list[NDArray[np.float64]], unit: Tensor, tolerance: float, test: HeldOut | None
    ) -> tuple[Tensor, NDArray[np.float64]]:
        m, n = self.correlation.shape
        found = np.zeros((m, n))
        errors = np.full((max(map(len, paths)), m), np.inf)
        design, largest = self.design, self.largest.numpy()
        held, correlation = self.held.numpy(), self.correlation.numpy()
        residuals = design.residuals.T.contiguous().numpy()
        loadings, inverse = design.loadings.numpy(), design.inverse_sigma.numpy()
        nothing = np.zeros((n, 0), dtype=np.uint8), np.zeros((0, len(loadings)))
        masks, basis = (test.masks.numpy(), test.basis.numpy()) if test else nothing
        targets = test.target.T.contiguous().numpy() if test else np.zeros((m, 0))

        def walk(query: int) -> bool:
            own = np.full(len(paths[query]), np.inf)
            solved = descend(
                held,
                self.is_gram,
                residuals[query],
                correlation[query],
                paths[query] * float(unit[query]),
                tolerance * largest[query],
                (masks, basis, loadings, inverse, targets[query]),
                PATIENCE,
                found[query],
                own,
            )
            errors[: len(own), query] = own
            return bool(solved)

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            _refuse_unsolved(all(list(pool.map(walk, range(m)))))
        return torch.from_numpy(found), errors

    def _descend_together(
        self, paths: list[NDArray[np.float64]], unit: Tensor, tolerance: float, test: HeldOut | None
    ) -> tuple[Tensor, NDArray[np.float64]]:
        held, m = self.held, len(self.correlation)
        levels = max(map(len, paths))
        errors = np.full((levels, m), np.inf)
        found = torch.zeros_like(self.correlation)
        lipschitz = largest_eigenvalue(self._apply, held.shape[0], held)
        # A shorter path stays at its last lambda, which it has solved already.
        whole = np.stack([np.append(path, [path[-1]] * (levels - len(path))) for path in paths])
        lambdas = torch.from_numpy(whole).to(unit) * unit[:, None]
        slack = max(tolerance, FINEST[held.dtype]) * self.largest.to(held.dtype)
        for start in range(0, m, TOGETHER):
            part = slice(start, start + TOGETHER)
            correlation = self.correlation[part].T.to(held.dtype)
            weights = torch.zeros_like(correlation)
            for level in range(levels):
                weights, solved = descend_together(
                    self._apply,
                    correlation,
                    lambdas[part, level].to(held.dtype),
                    weights,
                    lipschitz=lipschitz,
                    tolerance=slack[part],
                )
                _refuse_unsolved(solved)
                if test is not None:
                    errors[level, part] = self._held_out(weights, part, test)
                    past = errors[: level + 1, part]
                    worse = past[-1] > WORSE * past.min(axis=0)
                    if (worse & (past.argmin(axis=0) <= level - PATIENCE)).all():
                        break
            found[part] = weights.T.double()
        return found, errors

    def _apply(self, weights: Tensor) -> Tensor:
        if self.is_gram:
            return self.held @ weights
        return self.held @ (self.held.T @ weights) / self.held.shape[1]

    def _held_out(self, weights: Tensor, part: slice, test: HeldOut) -> NDArray[np.float64]:
        scaled = weights.double() * self.design.inverse_sigma[:, None]
        explained = test.basis @ (self.design.loadings @ scaled)
        chosen = test.masks.T.to(weights.dtype) @ scaled.to(weights.dtype)
        left = test.target[:, part] - chosen.double() + explained
        return left.square().sum(0).cpu().numpy()


def holds_gram(design: Design) -> bool:
    """Whether X~'X~ is held, and not X~': it is smaller, or not much larger and small enough.

    From 400 masks of 1,400 rows it took 0.8 of the time, from 70 of 4,656 seven times it.
    """
    own, n = design.masks.shape
    return n <= max(own, min(4 * own, WIDE_SIDE))


def lasso_errors(design: Design, *, folds: int = FOLDS, seed: int = 0) -> NDArray[np.float64]:
    """Mean squared error of predicting each fold's masks from the others', float64 [path, m].

    Args:
        design: Masks and outputs.
        folds: In how many parts the distinct masks are dealt; those of one size evenly.
        seed: Key of the dealing.
    """
    fold = mask_folds(design, folds, seed)
    unit = _positive(design.correlations().abs().amax(0))
    counts = counts_of(design.masks) if holds_gram(design) else None
    total = np.zeros((len(PATH), design.outputs.shape[1]))
    for number in range(int(fold.max()) + 1):
        inside = fold == number
        rest, chosen = design.subset(~inside), torch.from_numpy(inside).to(design.masks.device)
        test = HeldOut.of(rest, design.masks[chosen], design.outputs[chosen])
        less = None if counts is None else counts - counts_of(design.masks[chosen])
        total += Lasso.of(rest, less).errors(unit, test)
    return total / len(fold)


def mask_folds(design: Design, folds: int, seed: int) -> NDArray[np.intp]:
    """Fold of each row of a design, [M]; rows that share a mask are in one fold."""
    first = np.flatnonzero(np.diff(design.group, prepend=-1))
    sizes = design.masks.sum(1, dtype=torch.int64).cpu().numpy()[first]
    shuffled = stream(seed, Purpose.FOLDS).permutation(len(first))
    by_size = shuffled[np.argsort(sizes[shuffled], kind="stable")]
    fold = np.empty(len(first), dtype=np.intp)
    fold[by_size] = np.arange(len(first)) % min(folds, len(first))
    return fold[design.group]


def _positive(values: Tensor) -> Tensor:
    return torch.where(values > 0, values, 1.0)


def _refuse_unsolved(solved: bool) -> None:
    if not solved:
        raise WinnowError(
            "the LASSO did not converge; give a larger strength, or say penalty='ridge'"
        )
