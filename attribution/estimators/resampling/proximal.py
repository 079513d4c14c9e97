"""LASSO paths by accelerated proximal gradients (FISTA, Beck & Teboulle 2009), all queries at once.

The same problem and the same answer as `coordinate_descent`, in products of matrices only: it is
what runs on a GPU, and the slower of the two on a CPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor

MOST_STEPS = 100_000
POWER_STEPS = 50

Gradient = Callable[[Tensor], Tensor]


def largest_eigenvalue(apply: Gradient, n: int, like: Tensor) -> float:
    """An upper estimate of the largest eigenvalue of a positive matrix, by power iteration."""
    # Not random: a vector of ones would be in the null space of the masks of one size.
    vector = torch.cos(torch.arange(n, dtype=like.dtype, device=like.device) ** 2)[:, None]
    value = 0.0
    for _ in range(POWER_STEPS):
        vector = apply(vector / vector.norm().clamp(min=1e-30))
        value = float(vector.norm())
    return 1.05 * value


def descend_together(
    apply: Gradient,
    correlation: Tensor,
    strength: Tensor,
    start: Tensor,
    *,
    lipschitz: float,
    tolerance: Tensor,
) -> tuple[Tensor, bool]:
    """Minimise w'Hw/2 - c'w + strength |w|_1 for every query.

    Args:
        apply: H times a matrix [n, any].
        correlation: c, [n, m].
        strength: [m].
        start: Where to start, [n, m].
        lipschitz: At least the largest eigenvalue of H.
        tolerance: How far from balance a gradient may be in the end, [m].

    Returns:
        The weights [n, m], and whether all queries came to rest.
    """
    found = start.clone()
    moving = torch.arange(found.shape[1], device=found.device)
    weights = ahead = found
    momentum = torch.ones_like(strength)
    for _ in range(MOST_STEPS):
        moved = ahead - (apply(ahead) - correlation[:, moving]) / lipschitz
        limit = strength[moving] / lipschitz
        new = moved.sign() * (moved.abs() - limit).clamp(min=0.0)
        still = lipschitz * (new - ahead).abs().amax(0) <= tolerance[moving]
        # A momentum that points uphill is dropped (O'Donoghue & Candes 2015).
        uphill = ((ahead - new) * (new - weights)).sum(0) > 0
        before = torch.where(uphill, 1.0, momentum)
        momentum = (1 + (1 + 4 * before.square()).sqrt()) / 2
        ahead = new + torch.where(uphill, 0.0, (before - 1) / momentum) * (new - weights)
        weights = new
        if bool(still.any()):
            found[:, moving[still]] = weights[:, still]
            moving, weights, ahead = moving[~still], weights[:, ~still], ahead[:, ~still]
            momentum = momentum[~still]
        if not len(moving):
            return found, True
    found[:, moving] = weights
    return found, False
